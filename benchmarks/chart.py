"""A table's chart as SVG: horizontal bars on a card of its own, which follows the reader's light or dark mode."""

from __future__ import annotations

from html import escape

from report import Table, render

WIDTH, BAR_HEIGHT, ROW_HEIGHT, MARGIN = 820, 20, 32, 20
TITLE_HEIGHT = 44
CHARACTER_WIDTH = 7.2  # Of the font at its size, on average and rather too wide.
STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de } .bar { fill: #9aa7b5 } .ours { fill: #1f7a4d }
  text { fill: #1f2328; font: 13px system-ui, sans-serif } .title { font-size: 15px; font-weight: 600 } .value { fill: #59636e }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #3d444d } .bar { fill: #656f7c } .ours { fill: #3fb27f }
    text { fill: #f0f6fc } .value { fill: #a3adb8 }
  }
"""


def svg(table: Table, *, ours: str = "aiobaseten") -> str:
    """The chart that the table asks for, its longest bar first; bars whose names start with `ours` stand out.

    :raises ValueError: the table asks for none
    """
    if table.chart is None:
        raise ValueError(f"table {table.title!r} has no chart")
    details = table.column(table.chart.detail) if table.chart.detail else [None] * len(table.rows)
    rows = zip(table.column(table.columns[0]), table.column(table.chart.column), details, strict=True)
    bars = [
        (
            value,
            str(name),
            f"{render(value)} {table.chart.unit}" + (f", {render(detail)} {table.chart.detail}" if detail is not None else ""),
        )
        for name, value, detail in rows
        if isinstance(value, int | float)
    ]
    bars.sort(key=lambda bar: -bar[0])
    left = MARGIN + max((len(name) for _, name, _ in bars), default=0) * CHARACTER_WIDTH + 10
    right = MARGIN + max((len(label) for _, _, label in bars), default=0) * CHARACTER_WIDTH + 10
    scale = (WIDTH - left - right) / (bars[0][0] if bars and bars[0][0] > 0 else 1)
    title, height = escape(table.title), TITLE_HEIGHT + len(bars) * ROW_HEIGHT + MARGIN // 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
        f"<title>{title}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        f'<text class="title" x="{MARGIN}" y="28">{title}</text>',
    ]
    for number, (value, name, label) in enumerate(bars):
        top = TITLE_HEIGHT + number * ROW_HEIGHT
        baseline, width = top + BAR_HEIGHT - 5, max(value * scale, 1)
        kind = "bar ours" if name.startswith(ours) else "bar"
        lines += [
            f'<text x="{left - 10:.0f}" y="{baseline}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{kind}" x="{left:.0f}" y="{top}" width="{width:.0f}" height="{BAR_HEIGHT}" rx="3"/>',
            f'<text class="value" x="{left + width + 8:.0f}" y="{baseline}">{escape(label)}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"
