// Pointer and keyboard on the charts: tooltips, zoom, and the choice of a push.

function pushAt(x, y) {
  const { view, size } = charts;
  const lane = lanes[Math.floor((y + at("lanes-scroll").scrollTop) / size.high)];
  if (!lane) return null;
  const slack = (3 / view.room) * (charts.until - charts.from);
  const seconds = view.seconds(x);
  let [low, high] = [0, lane.pushes.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (lane.pushes[middle].began_s <= seconds + slack) low = middle + 1;
    else high = middle;
  }
  for (let index = low - 1; index >= Math.max(low - 4, 0); index -= 1) {
    const push = lane.pushes[index];
    if (push.shown && push.ended_s + slack >= seconds) return push;
  }
  return null;
}

function placeTip(x, y, ...content) {
  const tip = at("tip");
  tip.replaceChildren(...content);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${y + 18 + height > innerHeight ? Math.max(8, y - height - 12) : y + 18}px`;
}

const hideTip = () => {
  at("tip").hidden = true;
};

function tell(push, x, y) {
  const state = STATES[push.state];
  const head = element("b", { text: cut(push.label, 120) });
  const told = [head, element("span", { text: `${state.mark} ${state.word}` }), factList(facts(push))];
  if (push.error !== null) told.push(element("span", { class: "error", text: cut(visible(push.error), 260) }));
  placeTip(x, y, ...told);
}

function choose(push) {
  if (charts.chosen === push) return;
  charts.chosen = push;
  draw();
}

// For the keyboard: brings a push into view, and says what it is.
function goTo(push) {
  choose(push);
  if (push.ended_s < charts.from || push.began_s > charts.until) {
    const half = (charts.until - charts.from) / 2;
    zoomTo(push.began_s - half, push.began_s + half);
  }
  const scroll = at("lanes-scroll");
  const top = push.lane * charts.size.high;
  if (top < scroll.scrollTop) scroll.scrollTop = top;
  else if (top + charts.size.high > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = top + charts.size.high - scroll.clientHeight;
  drawNow();
  const box = at("lanes").getBoundingClientRect();
  const x = Math.min(Math.max(charts.view.x(push.began_s), charts.view.gutter), charts.view.width);
  tell(push, box.left + x, box.top + top - scroll.scrollTop + charts.size.high);
  const error = push.error === null ? "" : ` ${oneLine(push.error)}`;
  at("told").textContent = `${push.label}: ${STATES[push.state].word}, ${facts(push).map((fact) => fact.join(" ")).join(", ")}.${error}`;
}

function neighbour(key) {
  const { chosen } = charts;
  const shown = inOrder.filter((push) => push.shown);
  if (!shown.length) return null;
  if (!chosen || !chosen.shown || key === "Home") return shown[0];
  if (key === "End") return shown.at(-1);
  if (key === "ArrowRight" || key === "ArrowLeft") {
    const place = shown.indexOf(chosen) + (key === "ArrowRight" ? 1 : -1);
    return shown[Math.min(Math.max(place, 0), shown.length - 1)];
  }
  const way = key === "ArrowDown" ? 1 : -1;
  for (let lane = chosen.lane + way; lanes[lane]; lane += way) {
    const there = lanes[lane].pushes.filter((push) => push.shown);
    const away = (push) => Math.abs(push.began_s - chosen.began_s);
    if (there.length) return there.reduce((best, push) => (away(push) < away(best) ? push : best));
  }
  return chosen;
}

const inOrder = lanes.flatMap((lane) => lane.pushes).sort((one, other) => one.began_s - other.began_s || one.number - other.number);

function onKey(event) {
  const zooms = { "+": 0.5, "=": 0.5, "-": 2, "−": 2 };
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in zooms) zoomBy(zooms[event.key]);
  else if (event.key === "0") zoomTo(0, END);
  else if (event.key === "Escape") {
    choose(null);
    hideTip();
  } else if (event.key === "Enter" && charts.chosen) openPush(charts.chosen);
  else if (["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) {
    const push = neighbour(event.key);
    if (push) goTo(push);
  } else return;
  event.preventDefault();
}

function overRate(event, seconds) {
  const rate = rates.find(({ from, until }) => from <= seconds && seconds < until);
  if (!rate) return hideTip();
  const when = `${timeText(rate.from)} to ${timeText(rate.until)}`;
  return placeTip(event.clientX, event.clientY, element("b", { text: rateText(rate.per_s) }), element("span", { text: when }));
}

function watchPointer(canvas) {
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const within = (seconds) => Math.min(Math.max(seconds, charts.from), charts.until);
  let down = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    down = { x: place(event)[0] };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = place(event);
    if (down && Math.abs(x - down.x) > 5) {
      charts.drag = { from: within(charts.view.seconds(down.x)), until: within(charts.view.seconds(x)) };
      hideTip();
      return draw();
    }
    if (canvas.id === "rate") return overRate(event, charts.view.seconds(x));
    const push = pushAt(x, y);
    choose(push);
    return push ? tell(push, event.clientX, event.clientY) : hideTip();
  });
  canvas.addEventListener("pointerup", (event) => {
    const { drag } = charts;
    charts.drag = null;
    const began = down;
    down = null;
    if (drag) return zoomTo(Math.min(drag.from, drag.until), Math.max(drag.from, drag.until));
    const push = began && canvas.id === "lanes" ? pushAt(...place(event)) : null;
    if (push) openPush(push);
    return undefined;
  });
  const leave = () => {
    [charts.drag, down] = [null, null];
    hideTip();
    if (canvas.id === "lanes" && document.activeElement !== canvas) choose(null);
    draw();
  };
  canvas.addEventListener("pointercancel", leave);
  canvas.addEventListener("pointerleave", () => down || leave());
}
