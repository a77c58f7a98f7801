"""Peak memory against the size of the archive and against the number of pushes: ``python memory.py [--quick]``.

Each measurement is a new process, so that it has a peak of its own. Archives are sparse files. Everything goes over plain http,
where the sink's kernel drops the bytes, so that large archives are quick.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import report
from processes import client, control_plane, exit_on_sigterm, peak_rss_mib, serve, sink
from small_pushes import Service, make_models, open_client, push_all, service

import aiobaseten as ab

AT_ONCE = 256
DIRECTORIES = 100
TIMEOUT_S = 600
KEYS = ab.AWSCredentials(aws_access_key_id="AKIABENCHMARK", aws_secret_access_key="secret", aws_session_token="token")
TARGET = ab.UploadTarget(credentials=KEYS, bucket="bucket", key="model.tgz", region="us-west-2")
MIB_OF = {"MiB": 1, "GiB": 1024}


async def be_client(service: Service, models: list[Path]) -> None:
    """Do one thing, and tell the peak of all there was."""
    async with open_client(service) as opened:

        async def answer(*, archive: str | None = None, pushes: int | None = None) -> dict[str, Any]:
            started = time.perf_counter()
            if archive is not None:
                await opened.upload(TARGET, Path(archive))
            if pushes is not None:
                await push_all(opened, models, pushes, prefix="memory", at_once=AT_ONCE)
            return {"rss_mib": peak_rss_mib(), "wall_s": time.perf_counter() - started}

        await serve(answer)


@attrs.frozen
class Load:
    """One line of a table."""

    label: str
    request: dict[str, Any]


def archives(directory: Path, sizes: list[str]) -> Iterator[Load]:
    """Sparse files of these sizes."""
    for size in sizes:
        number, unit = size.split()
        file = directory / size.replace(" ", "-")
        with file.open("wb") as archive:
            archive.truncate(int(number) * MIB_OF[unit] * report.MIB)
        yield Load(f"archive of {size}", {"archive": str(file)})


def run(sizes: list[str], pushes: list[int], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """The measurements of each load, round after round in rotating order."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="memory-")))
        make_models(directory / "models", DIRECTORIES)
        loads = [*archives(directory, sizes), *(Load(f"{count:,} pushes", {"pushes": count}) for count in pushes)]
        service_plane, _ = stack.enter_context(control_plane())
        planes = service(service_plane, stack.enter_context(sink("--seconds", str(len(loads) * rounds * TIMEOUT_S))), directory)
        arguments = ["client", json.dumps(attrs.asdict(planes)), str(directory / "models")]
        measured: dict[str, list[dict[str, Any]]] = {load.label: [] for load in loads}
        for number, offset in itertools.product(range(rounds), range(len(loads))):
            load = loads[(number + offset) % len(loads)]
            with client("memory.py", *arguments, timeout_s=TIMEOUT_S) as child:
                measured[load.label].append(child.ask(**load.request))
    return measured


def table(title: str, measured: dict[str, list[dict[str, Any]]]) -> report.Table:
    peaks = {label: median(one["rss_mib"] for one in ones) for label, ones in measured.items()}
    first = next(iter(peaks.values()))
    return report.Table(
        title=title,
        columns=["what", "peak RSS MiB", "difference to the first"],
        rows=[[label, peak, peak - first] for label, peak in peaks.items()],
        chart=report.Chart(column="peak RSS MiB", unit="MiB"),
    )


def main() -> None:
    arguments = report.arguments(__doc__).parse_args()
    exit_on_sigterm()
    if arguments.quick:
        sizes, pushes, rounds = ["256 MiB", "1 GiB", "2 GiB"], [50, 300], 1
    else:
        sizes, pushes, rounds = ["1 GiB", "4 GiB", "16 GiB"], [100, 1000, 10_000], 3
    measured = run(sizes, pushes, rounds)
    by_size = {label: ones for label, ones in measured.items() if "archive" in label}
    by_number = {label: ones for label, ones in measured.items() if "pushes" in label}
    medians = [median(one["rss_mib"] for one in ones) for ones in measured.values()]
    tables = [
        table("Peak memory against the size of the archive", by_size),
        attrs.evolve(
            table("Peak memory against the number of pushes", by_number),
            notes=[
                f"Each measurement is a new process, medians over rounds ({rounds}); pushes are of 50 KiB each, {AT_ONCE} at once.",
                f"All of both tables lie within {max(medians) - min(medians):.0f} MiB.",
            ],
        ),
    ]
    settings = {"sizes": sizes, "pushes": pushes, "rounds": rounds, "at_once": AT_ONCE}
    report.finish(report.Result(benchmark="memory", title="Memory", settings=settings, tables=tables, raw=measured), arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["client"]:
        asyncio.run(be_client(Service(**json.loads(sys.argv[2])), sorted(Path(sys.argv[3]).iterdir())))
    else:
        main()
