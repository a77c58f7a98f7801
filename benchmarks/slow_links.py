"""Our client as it comes against fixed numbers of connections, over slow links: ``python slow_links.py [--quick]``.

The sink imitates the links: 40 ms round trips, and a cap on each connection, on all together, or on the requests at once. Each
upload has a client of its own, warmed with a few bytes: what it has learnt of a link it must learn within the upload. Archives are
sparse files. Few connections cannot carry in reasonable time what many can: they get an archive that takes them as long as the
best takes for its own, and MiB/s are compared.
"""

from __future__ import annotations

import asyncio
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
from processes import Endpoint, client, exit_on_sigterm, serve, sink

import aiobaseten as ab
from aiobaseten.events import Event, PartUploaded

RTT_MS = 40
PART_MIB = 8
UNTUNED = "untuned"
UNTUNED_WITH_MEMORY = "untuned, memory for 64"
MOST_CONNECTIONS = 64  # of all fixed numbers that are tried
KEYS = ab.AWSCredentials(aws_access_key_id="AKIABENCHMARK", aws_secret_access_key="secret", aws_session_token="token")
TARGET = ab.UploadTarget(credentials=KEYS, bucket="bucket", key="model.tgz", region="us-west-2")


@attrs.frozen
class Case:
    """A link.

    :param flags: of the sink
    :param each_mib_per_s: the most that one connection carries
    :param all_mib_per_s: the most that all carry together, or this machine does
    """

    name: str
    flags: tuple[str, ...]
    each_mib_per_s: float
    all_mib_per_s: float


CASES = (
    Case("4 MiB/s per connection", ("--cap-mib-per-s", "4"), 4, 256),
    Case("16 MiB/s per connection", ("--cap-mib-per-s", "16"), 16, 512),
    Case("16 MiB/s per connection, 12 requests at once", ("--cap-mib-per-s", "16", "--slow-down-above", "12"), 16, 192),
    Case("50 Mbit/s in all", ("--total-cap-mib-per-s", "6"), 6, 6),
)


def options(connections: str, ca_bundle: str | None) -> ab.Options:
    """Options as they come, or for a fixed number of connections with memory for all of them."""
    if connections == UNTUNED:
        transfer = ab.TransferOptions()
    elif connections == UNTUNED_WITH_MEMORY:
        transfer = ab.TransferOptions(memory_budget_bytes=MOST_CONNECTIONS * PART_MIB * report.MIB)
    else:
        number = int(connections)
        transfer = ab.TransferOptions(max_connections=number, memory_budget_bytes=number * PART_MIB * report.MIB)
    return ab.Options(ca_bundle=Path(ca_bundle) if ca_bundle else None, transfer=transfer)


async def upload(store: Endpoint, connections: str, file: str, longest_s: float) -> dict[str, Any]:
    """One upload, of which after `longest_s` the parts that have arrived count."""
    arrived_bytes = 0

    def count(event: Event) -> None:
        nonlocal arrived_bytes
        if isinstance(event, PartUploaded):
            arrived_bytes += event.size_bytes

    error = None
    async with ab.Client(
        "benchmark", s3_endpoint_url=store.url, options=options(connections, store.ca_bundle), observer=count
    ) as opened:
        await opened.upload(TARGET, b"to be warm")
        arrived_bytes, started = 0, time.perf_counter()
        try:
            async with asyncio.timeout(longest_s):
                await opened.upload(TARGET, Path(file))
        except (TimeoutError, ab.BasetenError) as failure:
            error = type(failure).__name__
        wall_s = time.perf_counter() - started
    return {"arrived_mib": arrived_bytes / report.MIB, "wall_s": wall_s, "error": error}


async def be_client(store: Endpoint) -> None:
    async def answer(*, connections: str, file: str, longest_s: float) -> dict[str, Any]:
        return await upload(store, connections, file, longest_s)

    await serve(answer)


def run(case: Case, runs: list[str], *, rounds: int, seconds: float, directory: Path) -> dict[str, list[dict[str, Any]]]:
    """The uploads over one link, round after round in rotating order."""
    longest_s = seconds * 3
    measured: dict[str, list[dict[str, Any]]] = {connections: [] for connections in runs}
    most_s = len(runs) * rounds * (longest_s + 10) + 60
    with ExitStack() as stack:
        store = stack.enter_context(sink("--tls", "--rtt-ms", str(RTT_MS), "--seconds", str(most_s), *case.flags))
        child = stack.enter_context(client("slow_links.py", "client", json.dumps(attrs.asdict(store)), timeout_s=most_s))
        for number in range(rounds):
            for connections in [*runs[number % len(runs) :], *runs[: number % len(runs)]]:
                number_of = int(connections) if connections.isdecimal() else max(int(one) for one in runs if one.isdecimal())
                size_mib = min(number_of * case.each_mib_per_s, case.all_mib_per_s) * seconds
                archive = sparse_file(directory, parts=max(round(size_mib / PART_MIB), 2))
                measured[connections].append(child.ask(connections=connections, file=str(archive), longest_s=longest_s))
    return measured


def sparse_file(directory: Path, *, parts: int) -> Path:
    archive = directory / f"{parts}-parts"
    with archive.open("wb") as file:
        file.truncate(parts * PART_MIB * report.MIB)
    return archive


def mib_per_s(one: dict[str, Any]) -> float:
    return float(one["arrived_mib"] / one["wall_s"])


def table(case: Case, measured: dict[str, list[dict[str, Any]]], seconds: float) -> report.Table:
    rates = {connections: median(map(mib_per_s, ones)) for connections, ones in measured.items()}
    best = max((connections for connections in rates if connections.isdecimal()), key=rates.__getitem__)
    rows: list[list[report.Cell]] = []
    for connections, ones in measured.items():
        pairs = [(mib_per_s(one), mib_per_s(other)) for one, other in zip(ones, measured[best], strict=True)]
        share = median(rate / best_rate for rate, best_rate in pairs) if all(best_rate for _, best_rate in pairs) else None
        broke = sum(one["error"] not in (None, "TimeoutError") for one in ones)
        rows.append([label(connections), rates[connections], share, broke])
    return report.Table(
        title=f"{case.name}, round trips of {RTT_MS} ms",
        columns=["connections", "MiB/s", "share of the best fixed", "uploads that failed"],
        rows=rows,
        notes=[
            f"The best fixed number is {best}. Shares are taken within a round, of which there {was_or_were(len(measured[best]))}.",
            f"Uploads take some {seconds:.0f} s each, and each begins with a client that knows nothing of the link.",
            "A fixed number has memory for all its parts; untuned, a client has its default, or as much as 64 connections.",
        ],
        chart=report.Chart(column="MiB/s", unit="MiB/s"),
    )


def was_or_were(rounds: int) -> str:
    return "was one" if rounds == 1 else f"were {rounds}"


def label(connections: str) -> str:
    return f"{connections} fixed" if connections.isdecimal() else connections


def main() -> None:
    arguments = report.arguments(__doc__).parse_args()
    exit_on_sigterm()
    if arguments.quick:
        cases, fixed, rounds, seconds = [CASES[0], CASES[3]], ["4", "32"], 1, 2.0
    else:
        cases, fixed, rounds, seconds = list(CASES), ["2", "4", "8", "16", "32", "64"], 3, 20.0
    runs = [UNTUNED, *fixed] if arguments.quick else [UNTUNED, UNTUNED_WITH_MEMORY, *fixed]
    raw: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="slow-links-") as directory:
        for case in cases:
            raw[case.name] = run(case, runs, rounds=rounds, seconds=seconds, directory=Path(directory))
    settings = {"rounds": rounds, "seconds": seconds, "rtt_ms": RTT_MS, "cases": [attrs.asdict(case) for case in cases]}
    result = report.Result(
        benchmark="slow_links",
        title="Slow links",
        settings=settings,
        tables=[table(case, raw[case.name], seconds) for case in cases],
        raw=raw,
    )
    report.finish(result, arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["client"]:
        asyncio.run(be_client(Endpoint(**json.loads(sys.argv[2]))))
    else:
        main()
