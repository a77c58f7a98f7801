// The head of the page, the filter, and what ties the parts together.

const filter = { words: "", state: "all", cause: null };
const KINDS = {
  all: { word: "All", of: () => true, count: data.totals.total },
  failed: { word: "Failed", of: (push) => push.failed, count: data.totals.failed },
  skipped: { word: "Skipped", of: (push) => push.state === "skipped", count: data.totals.skipped },
  succeeded: { word: "Succeeded", of: (push) => push.state === "committed" || push.state === "active", count: data.totals.succeeded },
};

function showHead() {
  const { total, succeeded, skipped, failed, interrupted, size_bytes: bytes } = data.totals;
  const stopped = data.stopped_by !== null || interrupted > 0;
  const good = !failed && !stopped;
  const words = failed
    ? `${whole(failed)} of ${plural(total, "push", "pushes")} failed`
    : stopped
      ? `The run was stopped after ${plural(total, "push", "pushes")}`
      : total
        ? total === 1 ? "The push was deployed" : `All ${whole(total)} pushes are deployed`
        : "There was nothing to push";
  at("verdict").append(element("span", { class: `mark ${good ? "" : "failed"}`, text: good ? "✓" : "✕", "aria-hidden": "true" }), words);
  const began = new Date(data.started_at);
  const utc = `${began.toISOString().slice(0, 19).replace("T", " ")} UTC`;
  at("when").append("Began ", element("time", { datetime: began.toISOString(), title: began.toString(), text: utc }), `, took ${timeText(data.duration_s)}`);
  if (interrupted) at("when").append(`; ${plural(interrupted, "push was", "pushes were")} begun and not ended`);
  if (data.stopped_by !== null) {
    const { type, message, notes } = data.stopped_by;
    at("stopped").hidden = false;
    at("stopped").append(element("b", { text: "Stopped before all pushes were begun: " }), visible([`${type}: ${message}`, ...notes].join("\n")));
  }
  const tile = (name, value, unit = "", kind = "") =>
    element("div", { class: `tile ${kind}` }, element("dt", { text: name }), element("dd", {}, value, ...(unit ? [element("small", { text: unit })] : [])));
  const share = (count) => (count ? `${count < total ? Math.min(99, Math.max(1, Math.round((100 * count) / total))) : 100} %` : "");
  const [amount, unit] = inUnits(bytes);
  const [rate, rateUnit] = inUnits(meanRate);
  at("tiles").append(
    tile("Pushes", whole(total)),
    tile("Succeeded", whole(succeeded), share(succeeded), succeeded ? "" : "none"),
    tile("Skipped", whole(skipped), share(skipped), skipped ? "" : "none"),
    tile("Failed", whole(failed), share(failed), failed ? "bad" : "none"),
    tile("Uploaded", amount, unit),
    tile("Duration", ...measured(data.duration_s)),
    tile("Mean throughput", rate, `${rateUnit}/s`),
  );
}

// A time as a value and a unit: 12.3 and s, 4:05 and min.
function measured(seconds) {
  if (seconds < 99.95) return timeText(seconds).split(" ");
  const rounded = Math.round(seconds);
  const two = (part) => String(part).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(rounded / 3600), Math.floor((rounded % 3600) / 60), rounded % 60];
  return hours ? [`${hours}:${two(minutes)}`, "h"] : [`${minutes}:${two(rest)}`, "min"];
}

function swatch(kind) {
  const canvas = element("canvas", { "aria-hidden": "true" });
  const pen = context(canvas, 22, 12);
  if (kind === "failed") {
    pen.fillStyle = hatched(pen);
    pen.fillRect(0, 1, 15, 10);
    cross(pen, 16, 6, 7);
  } else {
    pen.fillStyle = colours[kind];
    pen.fillRect(0, kind === "skipped" ? 3 : 1, 18, kind === "skipped" ? 6 : 10);
  }
  return canvas;
}

function showLegend() {
  const used = new Set(pushes.flatMap((push) => push.steps.map(({ step, failed }) => (failed ? "failed" : step))));
  const kinds = [...STEPS, "failed", "skipped"].filter((kind) => used.has(kind));
  const words = { failed: "failed in this step" };
  at("legend").replaceChildren(...kinds.map((kind) => element("li", {}, swatch(kind), words[kind] ?? kind)));
}

function applyFilter() {
  const words = filter.words.toLowerCase().split(/\s+/).filter(Boolean);
  const { of } = KINDS[filter.state];
  let count = 0;
  for (const push of pushes) {
    push.shown = of(push) && (filter.cause === null || (push.failed && (push.cause ?? "") === filter.cause)) && words.every((word) => push.found.includes(word));
    count += push.shown;
  }
  if (charts.chosen && !charts.chosen.shown) charts.chosen = null;
  at("matches").textContent = count === pushes.length ? plural(count, "push", "pushes") : `${whole(count)} of ${plural(pushes.length, "push", "pushes")}`;
  fillTable();
  draw();
}

function filterCause(cause) {
  filter.cause = cause;
  at("cause").value = cause === null ? "all" : String(groups.findIndex(([one]) => one === cause));
  if (cause !== null) {
    filter.state = "all";
    at("states").querySelector("input").checked = true;
  }
  applyFilter();
  at("run-title").scrollIntoView({ block: "center" });
}

function makeFilter() {
  for (const [state, { word, count }] of Object.entries(KINDS)) {
    const choice = element("input", { type: "radio", name: "state", value: state, ...(state === "all" ? { checked: "" } : {}) });
    choice.addEventListener("change", () => {
      filter.state = state;
      applyFilter();
    });
    at("states").append(element("label", {}, choice, element("span", {}, word, element("b", { text: whole(count) }))));
  }
  let waiting = 0;
  at("words").addEventListener("input", ({ target }) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      filter.words = target.value;
      applyFilter();
    }, pushes.length > 2000 ? 150 : 0);
  });
  at("cause-label").hidden = groups.length < 2;
  at("cause").append(
    element("option", { value: "all", text: "Any cause" }),
    ...groups.map(([cause, failed], index) => element("option", { value: index, text: `${cut(causeText(cause), 60)} (${whole(failed.length)})` })),
  );
  at("cause").addEventListener("change", ({ target }) => {
    filter.cause = target.value === "all" ? null : groups[Number(target.value)][0];
    applyFilter();
  });
  at("filter").addEventListener("submit", (event) => event.preventDefault());
}

function chartWords() {
  const most = rates.reduce((best, rate) => (rate.per_s > best.per_s ? rate : best), { per_s: 0, from: 0 });
  at("rate").setAttribute("aria-label", `Throughput over time: ${rateText(meanRate)} on average, ${rateText(most.per_s)} at most, ${timeText(most.from)} into the run.`);
  const inWords = `${plural(pushes.length, "push", "pushes")} over ${timeText(END)}, at most ${whole(lanes.length)} at once, ${whole(data.totals.failed)} failed`;
  at("lanes").setAttribute("aria-label", `Timeline: ${inWords}.`);
}

function printing(on) {
  charts.printing = on;
  document.documentElement.classList.toggle("printing", on);
  if (on) openFailures();
  table.range = "";
  drawRows();
  drawNow();
  showLegend();
}

function redraw() {
  drawNow();
  showLegend();
  drawRows();
}

showHead();
for (const part of document.querySelectorAll("main > *")) part.hidden = !pushes.length;
showFailures();
showSteps();
showRateTable();
makeTable();
makeFilter();
chartWords();
applyFilter();
zoomTo(0, END);
redraw();
watchPointer(at("lanes"));
watchPointer(at("rate"));
at("lanes").addEventListener("keydown", onKey);
at("lanes").addEventListener("blur", () => {
  choose(null);
  hideTip();
});
at("lanes-scroll").addEventListener("scroll", draw, { passive: true });
at("zoom").addEventListener("click", ({ target }) => {
  const how = target.dataset.zoom;
  if (how === "all") zoomTo(0, END);
  else if (how) zoomBy(how === "in" ? 0.5 : 2);
});
at("push").addEventListener("click", (event) => event.target === at("push") && at("push").close());
addEventListener("resize", redraw);
addEventListener("scroll", hideTip, { passive: true });
addEventListener("beforeprint", () => printing(true));
addEventListener("afterprint", () => printing(false));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
