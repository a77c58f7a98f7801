"""Upload throughput and cost beside other clients, on loopback: ``python upload.py [--quick]``.

Each measurement is a process of its own, warm before it is measured; see `clients.py`. The clients take turns, round after round
and each round starting with another, so that a machine whose speed drifts is unfair to none. Ratios are taken within each
round; medians over the rounds are reported.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import attrs
from clients import CLIENTS, Settings, s5cmd_program, weights
from processes import exit_on_sigterm, run_script, sink
from report import MIB, Cell, Chart, Result, Table, arguments, finish

SMALL_MIB = 32  # Of several parts for every client that sends parts.
SLOWEST_MIB_PER_S = 20
START_S = 60
OURS, DIRECTORY = "aiobaseten", "aiobaseten, directory"
OBSTORE, BOTO3, S5CMD, CEILING = "obstore", "boto3, 10 threads", "s5cmd", "ceiling"
PACKAGES = {BOTO3: "boto3", "aioboto3 upload_file": "aioboto3", OBSTORE: "obstore", S5CMD: "s5cmd"}  # Beyond what ours needs.
NOTES = (
    "Every client has its own defaults. All of ours but one send the CRC64NVME of each part and of the whole.",
    "CPU is user and system time of the client's whole process tree.",
    f"Imports, client creation and a first upload of {SMALL_MIB} MiB are not measured.",
    "Loop lag is how late a 1 ms ticker was on the asyncio loop of the process; clients that block ran in a thread beside it.",
    "awscrt's S3Client has its default throughput target of 10 Gbit/s, and sends no checksum by default.",
    "The ceiling: bare sockets in 2 threads that read a part of 8 MiB, take its CRC64NVME and write a PUT.",
)

Measurement = dict[str, float]
Rounds = dict[str, list[Measurement]]


@attrs.frozen(kw_only=True)
class Case:
    """What is uploaded, and how."""

    size_mib: int
    tls: bool

    @property
    def title(self) -> str:
        size = f"{self.size_mib // 1024} GiB" if self.size_mib >= 1024 else f"{self.size_mib} MiB"
        return f"{size} over {'TLS' if self.tls else 'plain http'}"


@attrs.frozen(kw_only=True)
class Target:
    """What the project aims at: our figure, beside another client's or by itself, at least or at most so much."""

    title: str
    reach: Callable[[Rounds], float]
    bound: float
    at_least: bool

    def row(self, rounds: Rounds) -> list[Cell]:
        reached = self.reach(rounds)
        met = reached >= self.bound if self.at_least else reached <= self.bound
        return [self.title, f"{'at least' if self.at_least else 'at most'} {self.bound:g}", reached, "met" if met else "missed"]


def ratio(measure: str, to: str, *, of: str = OURS, inverse: bool = False) -> Callable[[Rounds], float]:
    """The median of the ratios of each round; wall time inverted is speed."""

    def reach(rounds: Rounds) -> float:
        pairs = zip(rounds[of], rounds[to], strict=True)
        return median(theirs[measure] / ours[measure] if inverse else ours[measure] / theirs[measure] for ours, theirs in pairs)

    return reach


TARGETS = (
    Target(title="MiB/s, to obstore's", reach=ratio("wall_s", OBSTORE, inverse=True), bound=1.2, at_least=True),
    Target(title="CPU s/GiB, to obstore's", reach=ratio("cpu_s", OBSTORE), bound=0.65, at_least=False),
    Target(title="peak RSS, to obstore's", reach=ratio("rss_mib", OBSTORE), bound=0.75, at_least=False),
    Target(title="MiB/s, to boto3's", reach=ratio("wall_s", BOTO3, inverse=True), bound=4, at_least=True),
    Target(title="MiB/s, to the ceiling's", reach=ratio("wall_s", CEILING, inverse=True), bound=0.85, at_least=True),
    Target(
        title="directory's MiB/s, to the file's", reach=ratio("wall_s", OURS, of=DIRECTORY, inverse=True), bound=0.9, at_least=True
    ),
    Target(
        title="loop lag p99, ms", reach=lambda rounds: median(each["lag_p99_ms"] for each in rounds[OURS]), bound=10, at_least=False
    ),
)


def make_model(directory: Path, size_bytes: int) -> Path:
    """A model whose weights are random bytes, in the page cache when this returns."""
    weights(directory).parent.mkdir(parents=True)
    (directory / "config.yaml").write_text("model_name: benchmark\n")
    with weights(directory).open("wb") as file:
        for start in range(0, size_bytes, MIB):
            file.write(os.urandom(min(MIB, size_bytes - start)))
    return directory


def installed_clients(wanted: Sequence[str]) -> list[str]:
    """Those of `wanted` whose packages are there; the others are named on standard error."""
    found = [name for name in wanted if find_spec(PACKAGES.get(name, "aiobaseten"))]
    if S5CMD in found and not s5cmd_program().exists():
        found.remove(S5CMD)
    for name in wanted:
        if name not in found:
            sys.stderr.write(f"left out: {name}: its package is not installed\n")
    return found


def measure(case: Case, names: Sequence[str], rounds: int, directory: Path) -> Rounds:
    """Have the clients take turns at one case."""
    small, tiny = directory / "small", directory / "tiny"
    model = make_model(directory / case.title.replace(" ", "-"), case.size_mib * MIB)
    measured: Rounds = {name: [] for name in names}
    with sink(*(["--tls"] if case.tls else [])) as endpoint:
        settings = Settings(
            url=endpoint.url, ca_bundle=endpoint.ca_bundle, model=str(model), small_model=str(small), tiny_model=str(tiny)
        )
        passed_on = json.dumps(attrs.asdict(settings))
        for number in range(rounds):
            first = number % len(names)
            for name in (*names[first:], *names[:first]):
                limit_s = START_S + case.size_mib / SLOWEST_MIB_PER_S
                measured[name].append(json.loads(run_script("clients.py", name, passed_on, timeout_s=limit_s)))
            sys.stderr.write(f"{case.title}: round {number + 1} of {rounds}\n")
    weights(model).unlink()
    return measured


def throughput_table(case: Case, rounds: Rounds) -> Table:
    def row(name: str) -> list[Cell]:
        measured = rounds[name]
        return [
            name,
            median(case.size_mib / each["wall_s"] for each in measured),
            ratio("wall_s", name, inverse=True)(rounds),
            median(each["cpu_s"] for each in measured) * 1024 / case.size_mib,
            median(each["rss_mib"] for each in measured),
            median(each["lag_p50_ms"] for each in measured),
            median(each["lag_p99_ms"] for each in measured),
        ]

    return Table(
        title=f"Upload of {case.title}",
        columns=["client", "MiB/s", "our speed to its", "CPU s/GiB", "peak RSS MiB", "loop lag p50 ms", "loop lag p99 ms"],
        rows=[row(name) for name in rounds],
        notes=NOTES,
        chart=Chart(column="MiB/s", unit="MiB/s", detail="CPU s/GiB"),
    )


def tables(cases: dict[Case, Rounds]) -> Iterator[Table]:
    for case, rounds in cases.items():
        yield throughput_table(case, rounds)
        if case.tls and {OURS, DIRECTORY, OBSTORE, BOTO3, CEILING} <= rounds.keys():
            yield Table(
                title=f"Targets for {case.title}",
                columns=["what", "target", "reached", ""],
                rows=[target.row(rounds) for target in TARGETS],
            )


def main() -> None:
    exit_on_sigterm()
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, help="of every client; 5, or 2 with --quick")
    parser.add_argument("--sizes-mib", type=int, nargs="+", help="over TLS; 4096 and 1024, or 256 with --quick")
    parser.add_argument("--clients", nargs="+", choices=[*CLIENTS], default=[*CLIENTS], metavar="NAME", help=", ".join(CLIENTS))
    asked = parser.parse_args()
    rounds = asked.rounds or (2 if asked.quick else 5)
    sizes_mib = asked.sizes_mib or ([256] if asked.quick else [4096, 1024])
    cases = [Case(size_mib=size_mib, tls=True) for size_mib in sizes_mib]
    if not asked.quick:
        cases.append(Case(size_mib=1024, tls=False))
    names = installed_clients(asked.clients)
    with tempfile.TemporaryDirectory(prefix="aiobaseten-bench-") as name:
        directory = Path(name)
        make_model(directory / "small", SMALL_MIB * MIB)
        make_model(directory / "tiny", 1000)
        measured = {case: measure(case, names, rounds, directory) for case in cases}
    result = Result(
        benchmark="upload",
        title="Uploads beside other clients",
        settings={"cases": [case.title for case in cases], "rounds": rounds},
        tables=list(tables(measured)),
        raw={case.title: each for case, each in measured.items()},
    )
    finish(result, asked)


if __name__ == "__main__":
    main()
