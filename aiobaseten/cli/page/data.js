// The report's data, and how its facts are worded. Names and errors come from outside: they become text, never markup.

const data = JSON.parse(document.getElementById("data").textContent);

const STEPS = ["prepare", "upload", "commit", "wait"];
const STATES = {
  failed: { mark: "✕", word: "failed", order: 0 },
  skipped: { mark: "–", word: "skipped", order: 1 },
  committed: { mark: "✓", word: "committed", order: 2 },
  active: { mark: "✓", word: "active", order: 3 },
};

const at = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "text") made.textContent = value;
    else if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// Characters that are not seen, or that turn text round, are spelled out: a name must not look like another.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;
const visible = (text) => String(text).replace(HIDDEN, (one) => `\\u{${one.codePointAt(0).toString(16)}}`);
const oneLine = (text) => visible(String(text).replace(/\s+/g, " ").trim());
const cut = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);
const plural = (count, one, many = `${one}s`) => `${whole(count)} ${count === 1 ? one : many}`;
const whole = (count) => count.toLocaleString("en-US");

function inUnits(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return [unit === 0 ? bytes.toFixed(0) : bytes.toFixed(bytes >= 1000 ? 0 : 1), units[unit]];
}

const sizeText = (bytes) => (bytes === null ? "–" : inUnits(bytes).join(" "));
const rateText = (bytesPerSecond) => `${inUnits(bytesPerSecond).join(" ")}/s`;

function timeText(seconds) {
  if (seconds < 10) return `${seconds.toFixed(2)} s`;
  if (seconds < 99.95) return `${seconds.toFixed(1)} s`;
  const rounded = Math.round(seconds);
  const two = (part) => String(part).padStart(2, "0");
  if (rounded < 3600) return `${Math.floor(rounded / 60)} min ${two(rounded % 60)} s`;
  return `${Math.floor(rounded / 3600)} h ${two(Math.floor((rounded % 3600) / 60))} min`;
}

// What a push did from when to when. The step in which it failed is the one that it did not finish.
function stepsOf(push) {
  if (push.state === "skipped") return [{ step: "skipped", from: push.began_s, until: push.ended_s }];
  const ends = [push.prepared_s, push.uploaded_s, push.committed_s];
  const steps = [];
  let from = push.began_s;
  let next = 0;
  ends.forEach((until, index) => {
    if (until === null) return;
    steps.push({ step: STEPS[index], from, until: Math.max(from, until) });
    from = Math.max(from, until);
    next = index + 1;
  });
  const until = Math.max(from, push.ended_s);
  if (push.state === "failed") steps.push({ step: STEPS[next], from, until, failed: true });
  else if (push.state === "active" || until - from > 0.0005) steps.push({ step: "wait", from, until });
  return steps;
}

const pushes = data.rows.map((row) => {
  const push = Object.fromEntries(data.columns.map((column, index) => [column, row[index]]));
  push.steps = stepsOf(push);
  push.took = Object.fromEntries(push.steps.map(({ step, from, until }) => [step, until - from]));
  push.total_s = Math.max(0, push.ended_s - push.began_s);
  push.label = oneLine(push.name) || "(no name)";
  push.failed = push.state === "failed";
  push.found = [push.name, push.source, push.push_id, push.model_id, push.deployment_id, push.cause, push.error]
    .filter((text) => text !== null)
    .join("\n")
    .toLowerCase();
  push.shown = true;
  return push;
});

const failedStep = (push) => push.steps.find(({ failed }) => failed)?.step;

function stateMark(push) {
  const { mark, word } = STATES[push.state];
  return element("span", { class: "state" }, element("span", { class: `mark ${push.state}`, text: mark, "aria-hidden": "true" }), word);
}

function facts(push) {
  const list = [["Began", `${timeText(push.began_s)} into the run`]];
  if (push.size_bytes !== null) list.push(["Archive", sizeText(push.size_bytes)]);
  for (const { step, from, until, failed } of push.steps) {
    if (step !== "skipped") list.push([step[0].toUpperCase() + step.slice(1), timeText(until - from) + (failed ? ", failed" : "")]);
  }
  list.push(["Total", timeText(push.total_s)]);
  if (push.attempts > 1) list.push(["Attempts", whole(push.attempts)]);
  return list;
}

const factList = (list) => element("dl", {}, ...list.flatMap(([name, value]) => [element("dt", { text: name }), element("dd", {}, value)]));
