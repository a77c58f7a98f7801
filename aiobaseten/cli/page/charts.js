// Throughput and timeline, on one time axis. Pushes that were in flight at the same time have lanes of their own.

const charts = { from: 0, until: 0, chosen: null, drag: null, plans: 0 };
const PAPER = 720;
const END = Math.max(data.duration_s, pushes.reduce((latest, push) => Math.max(latest, push.ended_s), 0)) || 1;
charts.until = END;

function packed(all) {
  const lanes = [];
  for (const push of [...all].sort((one, other) => one.began_s - other.began_s || one.ended_s - other.ended_s)) {
    let lane = lanes.findIndex((taken) => taken.end <= push.began_s);
    if (lane < 0) lane = lanes.push({ end: 0, pushes: [] }) - 1;
    lanes[lane].end = Math.max(push.ended_s, push.began_s);
    lanes[lane].pushes.push(push);
    push.lane = lane;
  }
  return lanes;
}

const lanes = packed(pushes);

// The last stretch ends with the run. Where that is less than half a stretch, it is told together with the one before.
function ratesOf({ bucket_s: width, buckets }) {
  const rates = buckets.map((bytes, index) => ({ from: index * width, until: Math.min((index + 1) * width, END), bytes }));
  const last = rates.at(-1);
  if (rates.length > 1 && last.until - last.from < width / 2) {
    rates.pop();
    rates.at(-1).until = Math.max(last.until, last.from);
    rates.at(-1).bytes += last.bytes;
  }
  for (const rate of rates) rate.per_s = rate.bytes / Math.max(rate.until - rate.from, 1e-3);
  return rates;
}

const rates = ratesOf(data.throughput);
const meanRate = data.duration_s > 0 ? data.totals.size_bytes / data.duration_s : 0;

let colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["surface", "ink", "soft", "line", "faint", "rate", "accent", "prepare", "upload", "commit", "wait", "failed", "skipped"];
  colours = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

function context(canvas, width, height) {
  const ratio = charts.printing ? 3 : Math.min(window.devicePixelRatio || 1, 2.5);
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  pen.textBaseline = "middle";
  return pen;
}

function hatched(pen) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 12;
  const brush = tile.getContext("2d");
  brush.fillStyle = colours.failed;
  brush.fillRect(0, 0, 12, 12);
  brush.strokeStyle = colours.surface;
  brush.lineWidth = 3;
  for (const shift of [-12, 0, 12]) {
    brush.beginPath();
    brush.moveTo(shift - 2, 14);
    brush.lineTo(shift + 14, -2);
    brush.stroke();
  }
  const pattern = pen.createPattern(tile, "repeat");
  pattern.setTransform(new DOMMatrix().scale(0.5));
  return pattern;
}

function cross(pen, x, y, size) {
  const half = size / 2;
  for (const [colour, width] of [[colours.surface, size / 2.2 + 2], [colours.failed, Math.max(1.6, size / 4.5)]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.lineCap = "round";
    pen.beginPath();
    pen.moveTo(x - half, y - half);
    pen.lineTo(x + half, y + half);
    pen.moveTo(x + half, y - half);
    pen.lineTo(x - half, y + half);
    pen.stroke();
  }
}

function stretchSteps(span, room) {
  const steps = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400];
  return steps.find((step) => span / step <= room) ?? Math.ceil(span / room / 86400) * 86400;
}

function clockText(seconds, step) {
  if (END < 120) return `${seconds.toFixed(step >= 1 ? 0 : Math.ceil(-Math.log10(step)))} s`;
  const two = (part) => String(part).padStart(2, "0");
  const fraction = step < 1 ? (seconds % 1).toFixed(Math.ceil(-Math.log10(step))).slice(1) : "";
  const all = Math.floor(seconds + 1e-6);
  const [hours, minutes, rest] = [Math.floor(all / 3600), Math.floor((all % 3600) / 60), all % 60];
  return (hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`) + fraction;
}

function frame() {
  const width = charts.printing ? PAPER : at("lanes-scroll").clientWidth;
  const gutter = width < 560 ? 44 : 60;
  const room = Math.max(width - gutter - 14, 10);
  const span = charts.until - charts.from;
  const step = stretchSteps(span, Math.max(room / (width < 560 ? 60 : 90), 2));
  const ticks = [];
  for (let tick = Math.ceil(charts.from / step - 1e-9) * step; tick <= charts.until + 1e-9; tick += step) ticks.push(tick);
  return {
    width, gutter, room, step, ticks,
    x: (seconds) => gutter + ((seconds - charts.from) / span) * room,
    seconds: (x) => charts.from + ((x - gutter) / room) * span,
  };
}

function drawGrid(pen, view, height) {
  pen.fillStyle = colours.faint;
  for (const tick of view.ticks) pen.fillRect(Math.round(view.x(tick)), 0, 1, height);
}

function drawDrag(pen, view, height) {
  if (!charts.drag) return;
  const [one, other] = [view.x(charts.drag.from), view.x(charts.drag.until)];
  pen.globalAlpha = 0.18;
  pen.fillStyle = colours.accent;
  pen.fillRect(Math.min(one, other), 0, Math.abs(other - one), height);
  pen.globalAlpha = 1;
}

function drawRate(view) {
  const [top, height] = [8, 118];
  const pen = context(at("rate"), view.width, height);
  const most = Math.max(...rates.map((rate) => rate.per_s), meanRate, 1);
  const power = Math.min(3, Math.floor(Math.log(most) / Math.log(1024)));
  const unit = 1024 ** power;
  const raw = most / unit / 3;
  const scale = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * scale >= raw) * scale;
  const limit = (most / unit) * 1.08;
  const y = (perSecond) => top + (height - top - 1) * (1 - perSecond / unit / limit);
  at("rate-unit").textContent = `in ${["B", "KiB", "MiB", "GiB"][power]}/s, over stretches of ${timeText(data.throughput.bucket_s).replace(/\.?0+ s$/, " s")}`;
  drawGrid(pen, view, height);
  pen.textAlign = "right";
  for (let tick = 0; tick <= limit; tick += step) {
    const line = Math.min(Math.round(y(tick * unit)), height - 1);
    pen.fillStyle = tick === 0 ? colours.line : colours.faint;
    pen.fillRect(view.gutter, line, view.room, 1);
    pen.fillStyle = colours.soft;
    pen.fillText(tick === 0 ? "0" : String(Number(tick.toPrecision(3))), view.gutter - 8, Math.min(line, height - 6));
  }
  pen.save();
  pen.beginPath();
  pen.rect(view.gutter, 0, view.room, height);
  pen.clip();
  const outline = (close) => {
    pen.beginPath();
    rates.forEach((rate, index) => {
      if (index === 0) pen.moveTo(view.x(rate.from), close ? y(0) : y(rate.per_s));
      pen.lineTo(view.x(rate.from), y(rate.per_s));
      pen.lineTo(view.x(rate.until), y(rate.per_s));
    });
    if (close && rates.length) pen.lineTo(view.x(rates.at(-1).until), y(0));
  };
  pen.globalAlpha = 0.22;
  pen.fillStyle = colours.rate;
  outline(true);
  pen.fill();
  pen.globalAlpha = 1;
  pen.strokeStyle = colours.rate;
  pen.lineWidth = 1.5;
  pen.lineJoin = "round";
  outline(false);
  pen.stroke();
  if (meanRate > 0) {
    pen.strokeStyle = colours.ink;
    pen.lineWidth = 1;
    pen.setLineDash([4, 4]);
    pen.beginPath();
    pen.moveTo(view.gutter, y(meanRate));
    pen.lineTo(view.width, y(meanRate));
    pen.stroke();
    pen.setLineDash([]);
    pen.textAlign = "right";
    const words = `mean ${rateText(meanRate)}`;
    const line = y(meanRate) < 20 ? y(meanRate) + 10 : y(meanRate) - 9;
    pen.fillStyle = colours.surface;
    pen.globalAlpha = 0.8;
    pen.fillRect(view.width - 22 - pen.measureText(words).width, line - 7, pen.measureText(words).width + 8, 14);
    pen.globalAlpha = 1;
    pen.fillStyle = colours.ink;
    pen.fillText(words, view.width - 18, line);
  }
  drawDrag(pen, view, height);
  pen.restore();
}

// How high lanes are: with names where there is room for most of them, else as thin as their number asks for.
function measure(view) {
  const named = (view.room * lanes.length * (END / (charts.until - charts.from))) / Math.max(pushes.length, 1) >= 84 && lanes.length <= 64;
  const high = named ? 34 : Math.min(18, Math.max(4, Math.floor(420 / Math.max(lanes.length, 1))));
  const all = Math.max(lanes.length * high, high);
  const seen = Math.min(all, charts.printing ? 3000 : 480);
  return { named, high, all, seen, top: named ? 17 : high > 6 ? 1 : 0.5, bar: named ? 12 : high > 6 ? high - 2 : high - 1 };
}

function drawPush(pen, view, size, push, y, pattern) {
  const [left, right] = [view.x(push.began_s), view.x(push.ended_s)];
  const gap = right - left > 4 ? 1 : 0;
  for (const { step, from, until, failed } of push.steps) {
    const start = Math.max(view.x(from), view.gutter - 4);
    const stop = Math.min(Math.max(view.x(until) - (until === push.ended_s ? gap : 0), start), view.width + 4);
    const least = step === "skipped" || failed ? 1.5 : push.steps.length === 1 ? 1 : 0;
    pen.fillStyle = failed ? pattern : colours[step];
    const inset = step === "skipped" ? size.bar / 4 : 0;
    pen.fillRect(start, y + size.top + inset, Math.max(stop - start, least), size.bar - 2 * inset);
  }
}

function drawLanes(view) {
  const size = measure(view);
  charts.size = size;
  const scroll = at("lanes-scroll");
  scroll.style.height = `${size.seen}px`;
  at("lanes-room").style.height = `${size.all - size.seen}px`;
  at("lanes-unit").textContent = lanes.length
    ? `${plural(lanes.length, "lane")}: as many as were in flight at once`
    : "none";
  const pen = context(at("lanes"), view.width, size.seen);
  const offset = scroll.scrollTop;
  drawGrid(pen, view, size.seen);
  const first = Math.floor(offset / size.high);
  const last = Math.min(lanes.length - 1, Math.floor((offset + size.seen) / size.high));
  pen.textAlign = "right";
  const every = Math.max(1, [1, 2, 5, 10, 20, 50, 100, 200, 500].find((step) => step * size.high >= 16) ?? 1000);
  for (let lane = first; lane <= last; lane += 1) {
    const y = lane * size.high - offset;
    if ((lane + 1) % every === 0 || lane === 0) {
      pen.fillStyle = colours.soft;
      pen.fillText(String(lane + 1), view.gutter - 8, Math.min(Math.max(y + size.top + size.bar / 2, 6), size.seen - 6));
    }
  }
  pen.save();
  pen.beginPath();
  pen.rect(view.gutter - 1, 0, view.room + 14, size.seen);
  pen.clip();
  const pattern = hatched(pen);
  const crosses = [];
  pen.textAlign = "left";
  for (let lane = first; lane <= last; lane += 1) {
    const y = lane * size.high - offset;
    const all = lanes[lane].pushes;
    all.forEach((push, index) => {
      if (push.ended_s < charts.from || push.began_s > charts.until) return;
      pen.globalAlpha = push.shown ? 1 : 0.13;
      drawPush(pen, view, size, push, y, pattern);
      if (push.failed && push.shown) crosses.push([view.x(push.ended_s), y + size.top + size.bar / 2]);
      if (size.named) {
        const left = Math.max(view.x(push.began_s), view.gutter);
        const until = all[index + 1] ? view.x(all[index + 1].began_s) : view.width;
        drawName(pen, push, left, y + 9, Math.min(until, view.width) - left - 12);
      }
    });
  }
  pen.globalAlpha = 1;
  for (const [x, y] of crosses) cross(pen, x, y, Math.min(9, Math.max(4.5, size.bar * 0.7)));
  if (charts.chosen) {
    const push = charts.chosen;
    const left = view.x(push.began_s);
    pen.strokeStyle = colours.ink;
    pen.lineWidth = 2;
    pen.strokeRect(left - 1, push.lane * size.high - offset + size.top - 1, Math.max(view.x(push.ended_s) - left, 2) + 2, size.bar + 2);
  }
  drawDrag(pen, view, size.seen);
  pen.restore();
}

function drawName(pen, push, x, y, room) {
  if (room < 26) return;
  let name = push.label;
  if (pen.measureText(name).width > room) {
    const fits = Math.floor((name.length * room) / pen.measureText(name).width) - 1;
    name = `${name.slice(0, Math.max(fits, 1))}…`;
  }
  pen.fillStyle = push.failed ? colours.failed : colours.ink;
  pen.fillText(name, x, y, room);
}

function drawAxis(view) {
  const pen = context(at("axis"), view.width, 24);
  pen.fillStyle = colours.line;
  pen.fillRect(view.gutter, 0, view.room, 1);
  pen.fillStyle = colours.soft;
  for (const tick of view.ticks) {
    const words = clockText(Math.max(tick, 0), view.step);
    const half = pen.measureText(words).width / 2;
    pen.textAlign = "center";
    pen.fillRect(Math.round(view.x(tick)), 0, 1, 4);
    pen.fillText(words, Math.min(view.x(tick), view.width - half - 1), 14);
  }
}

function drawNow() {
  charts.plans = 0;
  readColours();
  let view = frame();
  drawLanes(view);
  if (!charts.printing && at("lanes-scroll").clientWidth !== view.width) {
    view = frame();
    drawLanes(view);
  }
  charts.view = view;
  drawRate(view);
  drawAxis(view);
}

function draw() {
  if (!charts.plans) charts.plans = requestAnimationFrame(drawNow);
}

function zoomTo(from, until) {
  const span = Math.min(Math.max(until - from, END / 5000), END);
  const start = Math.min(Math.max((from + until) / 2 - span / 2, 0), END - span);
  [charts.from, charts.until] = [start, start + span];
  for (const button of at("zoom").children) button.disabled = span >= END && button.dataset.zoom !== "in";
  draw();
}

function zoomBy(factor) {
  const middle = charts.chosen ? (charts.chosen.began_s + charts.chosen.ended_s) / 2 : (charts.from + charts.until) / 2;
  const half = ((charts.until - charts.from) * factor) / 2;
  zoomTo(middle - half, middle + half);
}
