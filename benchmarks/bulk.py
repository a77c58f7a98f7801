"""Many pushes in one run: what the run and its journal cost, and how memory grows with pushes: ``python bulk.py [--quick]``.

Pushes are small, and both planes are over TLS and as cheap as can be, so that what is measured is the client. Speed is compared
within a round, in one process that takes the ways to push in turn; each measurement of memory is a new process, so that it has a
peak of its own. Journals are new files in a temporary directory.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import report
from processes import client, control_plane, cpu_s, exit_on_sigterm, peak_rss_mib, serve, sink
from small_pushes import Service, make_models, open_client, push_all, push_in_one_run, service

MODEL_BYTES = 20 * 1024
DIRECTORIES = 100
AT_ONCE = 64
TIMEOUT_S = 900
PLAIN, RUN, JOURNAL = "a call of push for each", "push_many", "push_many with a journal"
WAYS = (PLAIN, RUN, JOURNAL)
MOST_GROWTH_MIB, MOST_COST = 50, 0.10

Measured = dict[str, list[dict[str, Any]]]


async def be_client(service: Service, models: list[Path]) -> None:
    """Push as it is asked, and tell how long that took and what it cost."""
    numbers = itertools.count()
    with tempfile.TemporaryDirectory(prefix="journal-") as directory:
        async with open_client(service) as opened:

            async def answer(*, way: str, count: int) -> dict[str, Any]:
                prefix = f"bulk-{next(numbers)}"
                journal = Path(directory) / f"{prefix}.db" if way == JOURNAL else None
                started, cpu_before_s = time.perf_counter(), cpu_s()
                if way == PLAIN:
                    await push_all(opened, models, count, prefix=prefix, at_once=AT_ONCE)
                else:
                    await push_in_one_run(opened, models, count, prefix=prefix, at_once=AT_ONCE, journal=journal)
                wall_s, used_s = time.perf_counter() - started, cpu_s() - cpu_before_s
                return {"count": count, "wall_s": wall_s, "cpu_s": used_s, "rss_mib": peak_rss_mib()}

            await serve(answer)


def measure_speed(arguments: list[str], count: int, rounds: int) -> Measured:
    """The ways to push in turn, round after round in rotating order."""
    measured: Measured = {way: [] for way in WAYS}
    with client("bulk.py", *arguments, timeout_s=TIMEOUT_S) as child:
        for way in WAYS:
            child.ask(way=way, count=AT_ONCE)
        for number, offset in itertools.product(range(rounds), range(len(WAYS))):
            way = WAYS[(number + offset) % len(WAYS)]
            measured[way].append(child.ask(way=way, count=count))
    return measured


def measure_memory(arguments: list[str], counts: list[int], rounds: int) -> Measured:
    """A new process for each number of pushes, round after round."""
    measured: Measured = {f"{count:,} pushes": [] for count in counts}
    for _, (label, count) in itertools.product(range(rounds), zip(list(measured), counts, strict=True)):
        with client("bulk.py", *arguments, timeout_s=TIMEOUT_S) as child:
            measured[label].append(child.ask(way=JOURNAL, count=count))
    return measured


def pushes_per_s(one: dict[str, Any]) -> float:
    return float(one["count"] / one["wall_s"])


def verdict(met: bool) -> str:
    return "met" if met else "missed"


def speed_table(measured: Measured) -> report.Table:
    rounds = len(measured[RUN])

    def of_plain_run(way: str) -> float:
        return median(pushes_per_s(one) / pushes_per_s(run) for one, run in zip(measured[way], measured[RUN], strict=True))

    cost = 1 - of_plain_run(JOURNAL)
    return report.Table(
        title="What a run and its journal cost",
        columns=["way to push", "pushes/s", "CPU ms per push", "of push_many's speed"],
        rows=[
            [
                way,
                median(map(pushes_per_s, ones)),
                median(one["cpu_s"] * 1000 / one["count"] for one in ones),
                of_plain_run(way),
            ]
            for way, ones in measured.items()
        ],
        notes=[
            f"The journal costs {cost:.1%} of the speed; the target is at most {MOST_COST:.0%}: {verdict(cost <= MOST_COST)}.",
            f"{measured[RUN][0]['count']:,} pushes of {MODEL_BYTES // 1024} KiB each, {AT_ONCE} at once, in one process.",
            f"Medians over rounds ({rounds}), and of ratios within a round.",
        ],
        chart=report.Chart(column="pushes/s", unit="pushes/s"),
    )


def memory_table(measured: Measured) -> report.Table:
    peaks = {label: median(one["rss_mib"] for one in ones) for label, ones in measured.items()}
    first = next(iter(peaks.values()))
    growth = max(peaks.values()) - first
    rounds = len(next(iter(measured.values())))
    return report.Table(
        title="Peak memory of a run with a journal",
        columns=["what", "peak RSS MiB", "difference to the first"],
        rows=[[label, peak, peak - first] for label, peak in peaks.items()],
        notes=[
            f"It grows by {growth:.0f} MiB; the target is at most {MOST_GROWTH_MIB} MiB: {verdict(growth <= MOST_GROWTH_MIB)}.",
            f"Each measurement is a new process, medians over rounds ({rounds}).",
            f"Pushes are of {MODEL_BYTES // 1024} KiB, {AT_ONCE} at once.",
        ],
        chart=report.Chart(column="peak RSS MiB", unit="MiB"),
    )


def main() -> None:
    given = report.arguments(__doc__).parse_args()
    exit_on_sigterm()
    count, rounds, counts, memory_rounds = (100, 3, [50, 300], 1) if given.quick else (1000, 7, [100, 1000, 10_000], 3)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bulk-")))
        make_models(directory / "models", DIRECTORIES, size_bytes=MODEL_BYTES)
        service_plane, _ = stack.enter_context(control_plane("--tls", "--seconds", str(memory_rounds * TIMEOUT_S + TIMEOUT_S)))
        store = stack.enter_context(sink("--tls", "--seconds", str(memory_rounds * TIMEOUT_S + TIMEOUT_S)))
        planes = service(service_plane, store, directory)
        arguments = ["client", json.dumps(attrs.asdict(planes)), str(directory / "models")]
        speed = measure_speed(arguments, count, rounds)
        memory = measure_memory(arguments, counts, memory_rounds)
    result = report.Result(
        benchmark="bulk",
        title="Many pushes in one run",
        settings={"pushes": count, "rounds": rounds, "at_once": AT_ONCE, "model_bytes": MODEL_BYTES, "memory_pushes": counts},
        tables=[speed_table(speed), memory_table(memory)],
        raw={"speed": speed, "memory": memory},
    )
    report.finish(result, given)


if __name__ == "__main__":
    if sys.argv[1:2] == ["client"]:
        asyncio.run(be_client(Service(**json.loads(sys.argv[2])), sorted(Path(sys.argv[3]).iterdir())))
    else:
        main()
