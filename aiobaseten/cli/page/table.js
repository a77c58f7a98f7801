// All pushes as a table. Only the rows in view are in the document, so that it stays quick with many.

const ROW = 46;
const PRINTED = 300;
const COLUMNS = [
  { head: "#", width: 60, kind: "number wide", key: (push) => push.number, cell: (push) => whole(push.number) },
  { head: "Push", width: 0, key: (push) => push.label.toLowerCase(), cell: nameCell },
  { head: "State", width: 112, key: (push) => STATES[push.state].order, cell: stateMark },
  { head: "Size", width: 84, kind: "number wide", key: (push) => push.size_bytes ?? -1, cell: (push) => sizeText(push.size_bytes) },
  { head: "Began", width: 88, kind: "number wide", key: (push) => push.began_s, cell: (push) => timeText(push.began_s) },
  ...STEPS.filter((step) => pushes.some((push) => step in push.took)).map((step) => ({
    head: step[0].toUpperCase() + step.slice(1), width: 84, kind: "number wide",
    key: (push) => push.took[step] ?? -1,
    cell: (push) => (step in push.took ? timeText(push.took[step]) : "–"),
  })),
  { head: "Total", width: 84, kind: "number", key: (push) => push.total_s, cell: (push) => timeText(push.total_s) },
  { head: "Tries", width: 64, kind: "number wide", key: (push) => push.attempts, cell: (push) => whole(push.attempts) },
  { head: "Deployment, or error", width: 200, kind: "wide", key: (push) => push.cause ?? push.deployment_id ?? "", cell: endCell },
];
const table = { shown: [], sort: 0, down: false, range: "", body: element("tbody") };

function nameCell(push) {
  const open = element("button", { type: "button", class: "open cut name", text: cut(push.label, 200), "data-number": push.number, onclick: () => openPush(push) });
  return element("div", {}, open, element("span", { class: "cut source", text: cut(oneLine(push.source), 200) }));
}

function endCell(push) {
  if (push.error !== null) return element("span", { class: "cut error", text: cut(oneLine(push.error), 160) });
  return element("span", { class: "cut id", text: oneLine(push.deployment_id ?? "–") });
}

function rowOf(push, index) {
  const cells = COLUMNS.map(({ kind = "", cell }) => element("td", { class: kind }, cell(push)));
  return element("tr", { "aria-rowindex": index + 2 }, ...cells);
}

function room(height) {
  const cell = element("td");
  cell.style.height = `${height}px`;
  return element("tr", { class: "room", "aria-hidden": "true" }, cell);
}

function drawRows() {
  const box = at("rows");
  const count = table.shown.length;
  const from = charts.printing ? 0 : Math.max(0, Math.floor(box.scrollTop / ROW) - 10);
  const until = charts.printing ? Math.min(count, PRINTED) : Math.min(count, from + Math.ceil(box.clientHeight / ROW) + 22);
  const range = `${from} ${until} ${table.version}`;
  if (range === table.range) return;
  table.range = range;
  const focused = document.activeElement?.dataset?.number;
  const rows = table.shown.slice(from, until).map((push, index) => rowOf(push, from + index));
  const below = charts.printing ? 0 : (count - until) * ROW;
  table.body.replaceChildren(...(from ? [room(from * ROW)] : []), ...rows, ...(below ? [room(below)] : []));
  if (focused) table.body.querySelector(`[data-number="${focused}"]`)?.focus({ preventScroll: true });
  at("rows-cut").hidden = !(charts.printing && count > until);
  at("rows-cut").textContent = `The first ${whole(until)} of ${plural(count, "push", "pushes")}.`;
}

function fillTable() {
  const { key } = COLUMNS[table.sort];
  const order = table.down ? -1 : 1;
  table.shown = pushes.filter((push) => push.shown);
  table.shown.sort((one, other) => {
    const [left, right] = [key(one), key(other)];
    return (left < right ? -order : left > right ? order : 0) || one.number - other.number;
  });
  table.version = (table.version ?? 0) + 1;
  at("rows").firstElementChild?.setAttribute("aria-rowcount", table.shown.length + 1);
  at("rows").scrollTop = 0;
  drawRows();
  table.empty.hidden = table.shown.length > 0;
}

function sortBy(index) {
  table.down = table.sort === index ? !table.down : COLUMNS[index].kind?.includes("number") && index > 0;
  table.sort = index;
  [...table.heads].forEach((head, place) => {
    if (place === index) head.setAttribute("aria-sort", table.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  fillTable();
}

function makeTable() {
  const columns = COLUMNS.map(({ width, kind = "" }) => {
    const column = element("col", { class: kind });
    if (width) column.style.width = `${width}px`;
    return column;
  });
  table.heads = COLUMNS.map(({ head, kind = "" }, index) =>
    element("th", { scope: "col", class: kind }, element("button", { type: "button", text: head, onclick: () => sortBy(index) })));
  table.heads[0].setAttribute("aria-sort", "ascending");
  const made = element("table", {}, element("colgroup", {}, ...columns), element("thead", {}, element("tr", {}, ...table.heads)), table.body);
  table.empty = element("p", { class: "empty", text: pushes.length ? "No push matches the filter." : "There were no pushes." });
  at("rows").append(made, table.empty);
  at("rows").addEventListener("scroll", () => requestAnimationFrame(drawRows), { passive: true });
}
