// Failures by cause, where the time went, throughput as a table, and one push in full.

const MORE = 100;

function failureGroups() {
  const groups = new Map();
  for (const push of pushes) {
    if (!push.failed) continue;
    const cause = push.cause ?? "";
    if (!groups.has(cause)) groups.set(cause, []);
    groups.get(cause).push(push);
  }
  return [...groups].sort(([, one], [, other]) => other.length - one.length);
}

const groups = failureGroups();
const failureLists = [];
const causeText = (cause) => oneLine(cause) || "Unknown cause";

function failureRow(push) {
  const name = element("button", { type: "button", class: "open name", text: cut(push.label, 200), onclick: () => openPush(push) });
  return element(
    "tr", {},
    element("td", {}, name, element("span", { class: "quiet", text: cut(visible(push.source), 160) })),
    element("td", { class: "wide", text: failedStep(push) }),
    element("td", { class: "number wide", text: timeText(push.ended_s) }),
    element("td", { class: "number wide", text: whole(push.attempts) }),
    element("td", { class: "error", text: cut(visible(push.error ?? ""), 2000) }),
  );
}

function failureGroup([cause, failed], only) {
  const body = element("tbody");
  const heads = [["Push", ""], ["In step", "wide"], ["Failed at", "number wide"], ["Attempts", "number wide"], ["Error", ""]];
  const head = element("tr", {}, ...heads.map(([text, kind]) => element("th", { scope: "col", class: kind, text })));
  const more = element("button", { type: "button", class: "more" });
  const showMore = () => {
    const from = body.childElementCount;
    body.append(...failed.slice(from, from + MORE).map(failureRow));
    const left = failed.length - body.childElementCount;
    more.hidden = left === 0;
    more.textContent = `Show ${whole(Math.min(left, MORE))} more of ${whole(left)}`;
  };
  more.addEventListener("click", showMore);
  const filter = element("button", { type: "button", class: "more", text: "Only these in timeline and table", onclick: () => filterCause(cause) });
  const table = element("div", { class: "scroll" }, element("table", {}, element("thead", {}, head), body));
  const group = element(
    "details", { class: "group" },
    element(
      "summary", {},
      element("span", { class: "count", text: whole(failed.length) }),
      element("span", { class: "cause", text: causeText(cause) }),
      element("span", { class: "share", text: `${Math.round((100 * failed.length) / data.totals.failed)} % of the failures` }),
      element("span", { class: "example", text: `${failed[0].label}: ${cut(oneLine(failed[0].error ?? ""), 300)}` }),
    ),
    element("div", { class: "inside" }, table, more, ...(pushes.length > 1 ? [filter] : [])),
  );
  const showFirst = () => group.open && !body.childElementCount && showMore();
  group.addEventListener("toggle", showFirst);
  group.open = only;
  failureLists.push({ group, showFirst });
  return group;
}

function showFailures() {
  const box = at("failure-groups");
  if (!groups.length) {
    box.append(element("p", { class: "quiet", text: pushes.length ? "No push failed." : "There were no pushes." }));
    return;
  }
  at("failures-title").textContent = `${plural(data.totals.failed, "failure")}, ${plural(groups.length, "cause")}`;
  box.append(element("div", { class: "groups" }, ...groups.map((group) => failureGroup(group, groups.length === 1))));
}

function openFailures() {
  for (const { group, showFirst } of failureLists) {
    group.open = true;
    showFirst();
  }
}

function showSteps() {
  const box = at("steps");
  const rows = STEPS.map((step) => {
    const done = pushes.flatMap((push) => push.steps.filter((one) => one.step === step && !one.failed).map((one) => [one.until - one.from, push]));
    done.sort(([one], [other]) => one - other);
    return { step, done, sum: done.reduce((sum, [seconds]) => sum + seconds, 0) };
  }).filter(({ done }) => done.length);
  if (!rows.length) {
    box.append(element("p", { class: "quiet", text: "No push finished a step." }));
    return;
  }
  const whole_s = rows.reduce((sum, row) => sum + row.sum, 0) || 1;
  const heads = [["Step", ""], ["Share", "steps-share"], ["Median", "number"], ["95 % within", "number"], ["Longest", "number wide"], ["By", "wide"]];
  const body = rows.map(({ step, done, sum }) => {
    const part = (share) => done[Math.min(done.length - 1, Math.floor(share * done.length))][0];
    const bar = element("span", { class: "bar" });
    bar.style.width = `${(80 * sum) / whole_s}%`;
    bar.style.background = `var(--${step})`;
    const [longest, push] = done.at(-1);
    return element(
      "tr", {},
      element("th", { scope: "row", text: step }),
      element("td", {}, element("div", { class: "share-bar" }, bar, element("span", { class: "quiet", text: `${Math.round((100 * sum) / whole_s)} %` }))),
      element("td", { class: "number", text: timeText(part(0.5)) }),
      element("td", { class: "number", text: timeText(part(0.95)) }),
      element("td", { class: "number wide", text: timeText(longest) }),
      element("td", { class: "wide" }, element("span", { class: "name", text: cut(push.label, 60) })),
    );
  });
  const head = element("tr", {}, ...heads.map(([text, kind]) => element("th", { scope: "col", class: kind, text })));
  box.append(element("table", { class: "steps" }, element("thead", {}, head), element("tbody", {}, ...body)));
}

function showRateTable() {
  const heads = [["From", "number"], ["To", "number"], ["Bytes", "number"], ["Throughput", "number"]];
  const head = element("tr", {}, ...heads.map(([text, kind]) => element("th", { scope: "col", class: kind, text })));
  const body = rates.map(({ from, until, bytes, per_s }) =>
    element("tr", {}, ...[timeText(from), timeText(until), sizeText(bytes), rateText(per_s)].map((text) => element("td", { class: "number", text }))));
  at("rate-table").append(element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
}

function openPush(push) {
  const dialog = at("push");
  const id = (text) => (text === null ? "–" : element("span", { class: "id", text: visible(text) }));
  const list = [
    ["State", stateMark(push)],
    ["Source", element("span", { class: "id", text: visible(push.source) })],
    ...facts(push),
    ["Model id", id(push.model_id)],
    ["Deployment id", id(push.deployment_id)],
    ["Push id", id(push.push_id)],
    ["Place in the run", whole(push.number)],
  ];
  const content = [
    element("button", { type: "button", class: "close", text: "✕", "aria-label": "Close", onclick: () => dialog.close() }),
    element("h2", { id: "push-title", text: visible(push.name) || push.label }),
    factList(list),
  ];
  if (push.error !== null || push.cause !== null) {
    content.push(element("h3", { text: causeText(push.cause ?? "") }), element("p", { class: "error", text: visible(push.error ?? "") }));
  }
  hideTip();
  dialog.replaceChildren(...content);
  dialog.showModal();
}
