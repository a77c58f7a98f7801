"""What every benchmark reports, and how: `Result` and `Table`, as JSON for `run.py` and as Markdown for people.

A benchmark is a script with the two flags of `arguments` that ends with ``finish(result, arguments)``. Nothing in a result names
the machine's paths, hosts or users.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import ssl
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

Cell = str | int | float | None
MIB = 1024 * 1024
GIB = 1024 * MIB


@attrs.frozen(kw_only=True)
class Chart:
    """A bar for each row of a table, named by the row's first cell.

    :param column: whose numbers the bars show
    :param unit: of these numbers, as written behind them
    :param detail: a column whose numbers are written beside the bars, or None
    """

    column: str
    unit: str
    detail: str | None = None


@attrs.frozen(kw_only=True)
class Table:
    """Rows of cells, each row as long as `columns`; `notes` are sentences to be read with them.

    Whole numbers are counts, rendered as they are; floats are measurements, rendered with three significant digits; None means
    that there is nothing to measure.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = attrs.field(factory=list)
    chart: Chart | None = None

    def __attrs_post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.title!r}: each row must have {len(self.columns)} cells")
        if self.chart and not {self.chart.column, self.chart.detail or self.chart.column} <= set(self.columns):
            raise ValueError(f"table {self.title!r}: its chart shows a column that it does not have")

    def column(self, name: str) -> list[Cell]:
        """The cells of one column, from the first row to the last."""
        index = list(self.columns).index(name)
        return [row[index] for row in self.rows]


@attrs.frozen(kw_only=True)
class Result:
    """What one run of one benchmark found.

    :param benchmark: the name of its script
    :param settings: what was run: sizes, rounds and the like, ready for JSON
    :param raw: every single measurement, ready for JSON
    """

    benchmark: str
    title: str
    settings: dict[str, Any]
    tables: Sequence[Table]
    raw: dict[str, Any]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The parser of a benchmark's command line: ``--quick`` and ``--json FILE``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results and every measurement here")
    return parser


def finish(result: Result, arguments: argparse.Namespace) -> None:
    """Print the result as Markdown and, where ``--json`` says so, write it."""
    sys.stdout.write(section(result))
    if arguments.json:
        write(result, arguments.json)


def write(result: Result, file: Path) -> None:
    """Write the result as one JSON object."""
    file.write_text(json.dumps(attrs.asdict(result), indent=1) + "\n", encoding="utf-8")


def read(file: Path) -> Result:
    """The result that `write` wrote.

    :raises ValueError, KeyError, TypeError: the file holds no such result
    """
    return from_json(json.loads(file.read_text(encoding="utf-8")))


def from_json(data: dict[str, Any]) -> Result:
    """The result of which ``attrs.asdict`` made this.

    :raises ValueError, KeyError, TypeError: it is none
    """
    tables = [Table(**(table | {"chart": table["chart"] and Chart(**table["chart"])})) for table in data["tables"]]
    return Result(**(data | {"tables": tables}))


def section(result: Result, *, level: int = 2) -> str:
    """The result as Markdown: a heading, and each table below one of its own."""
    parts = [f"{'#' * level} {result.title}\n"]
    for table in result.tables:
        parts += [f"{'#' * (level + 1)} {table.title}\n", markdown(table)]
    return "\n".join(parts) + "\n"


def markdown(table: Table) -> str:
    """The table as Markdown, its notes as a list below it; numbers are aligned to the right."""
    numeric = [not any(isinstance(cell, str) for cell in table.column(name)) for name in table.columns]
    lines = [_line(table.columns), _line(["--:" if right else ":--" for right in numeric])]
    lines += [_line([render(cell) for cell in row]) for row in table.rows]
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def render(cell: Cell) -> str:
    """A cell as people read it; see `Table`."""
    if cell is None:
        return "n/a"
    if isinstance(cell, str):
        return cell.replace("|", "\\|")
    if isinstance(cell, int) or not math.isfinite(cell):
        return str(cell)
    rounded = float(f"{cell:.3g}")
    decimals = 2 - math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{rounded:.{max(decimals, 0)}f}"


def machine() -> dict[str, str]:
    """What the measurements depend on and nobody wants to guess: processor, cores, memory, system, Python, OpenSSL."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory_bytes / GIB:.0f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "OpenSSL": ssl.OPENSSL_VERSION,
    }


def versions(*packages: str) -> dict[str, str | None]:
    """The installed version of each package, None where it is not installed."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name: `platform.processor` knows less on both systems."""
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    described = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in described.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
