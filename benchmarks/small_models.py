"""Many small models, from directory to deployment, beside Baseten's documented recipe: ``python small_models.py [--quick]``.

Each model is a directory of five files, 50 KiB in all, and becomes a new model: prepare, upload, commit. Both clients push to one
control plane and one sink, both over TLS. They are up and warm before the first measurement, and take turns, round after round.
The recipe blocks, so it runs in 1, 4 and 16 threads. Ours pushes each model by a call of its own, and all in one run with a
journal.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import report
from processes import client, control_plane, cpu_s, exit_on_sigterm, serve, sink
from small_pushes import FILES, MODEL_BYTES, Service, make_models, open_client, push_all, push_in_one_run, service

DIRECTORIES = 1000
THREADS = (1, 4, 16)
AT_ONCE = 64
WARM_UP = 8
TIMEOUT_S = 3600
OURS, OURS_WITH_JOURNAL = "aiobaseten", "aiobaseten, push_many with a journal"

PushModels = Callable[[int, int], Awaitable[object]]


@asynccontextmanager
async def aiobaseten(service: Service, models: list[Path]) -> AsyncGenerator[PushModels]:
    prefixes = itertools.count()
    async with open_client(service) as opened:
        yield lambda count, at_once: push_all(opened, models, count, prefix=f"ours-{next(prefixes)}", at_once=at_once)


@asynccontextmanager
async def with_journal(service: Service, models: list[Path]) -> AsyncGenerator[PushModels]:
    prefixes = itertools.count()

    async def push_models(count: int, at_once: int) -> None:
        prefix = f"run-{next(prefixes)}"
        with tempfile.TemporaryDirectory(prefix="journal-") as directory:
            await push_in_one_run(opened, models, count, prefix=prefix, at_once=at_once, journal=Path(directory) / "journal.db")

    async with open_client(service) as opened:
        yield push_models


@asynccontextmanager
async def recipe(service: Service, models: list[Path]) -> AsyncGenerator[PushModels]:
    from recipe import push

    numbers = itertools.count()

    def push_models(count: int, threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            for pushed in [pool.submit(push, models[i % len(models)], f"recipe-{next(numbers)}", service) for i in range(count)]:
                pushed.result()

    yield lambda count, threads: asyncio.to_thread(push_models, count, threads)


CLIENTS = {OURS: aiobaseten, OURS_WITH_JOURNAL: with_journal, "recipe": recipe}


async def be_client(name: str, service: Service, models: list[Path]) -> None:
    async with CLIENTS[name](service, models) as push_models:

        async def answer(*, count: int, at_once: int) -> dict[str, Any]:
            started, cpu_before_s = time.perf_counter(), cpu_s()
            await push_models(count, at_once)
            return {"count": count, "wall_s": time.perf_counter() - started, "cpu_s": cpu_s() - cpu_before_s}

        await answer(count=WARM_UP, at_once=WARM_UP)
        await serve(answer)


@attrs.frozen
class Contender:
    """One line of the table: a client and how many models it pushes at once, of how many."""

    label: str
    client: str
    at_once: int
    count: int


def contenders(*, ours: int, recipes: int) -> list[Contender]:
    threads = [Contender(f"recipe, {n} thread{'s' * (n > 1)}", "recipe", n, recipes) for n in THREADS]
    return [*(Contender(f"{name}, {AT_ONCE} at once", name, AT_ONCE, ours) for name in (OURS, OURS_WITH_JOURNAL)), *threads]


def run(lines: list[Contender], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """The measurements of each contender, round after round in rotating order."""
    measured: dict[str, list[dict[str, Any]]] = {line.label: [] for line in lines}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="small-models-")))
        make_models(directory / "models", min(DIRECTORIES, max(line.count for line in lines)))
        service_plane, server = stack.enter_context(control_plane("--tls"))
        planes = service(service_plane, stack.enter_context(sink("--tls", "--seconds", str(TIMEOUT_S))), directory)
        arguments = [json.dumps(attrs.asdict(planes)), str(directory / "models")]
        clients = {
            name: stack.enter_context(client("small_models.py", "client", name, *arguments, timeout_s=TIMEOUT_S))
            for name in CLIENTS
        }
        for number in range(rounds):
            for line in [*lines[number % len(lines) :], *lines[: number % len(lines)]]:
                before_s = server.ask()["cpu_s"]
                one = clients[line.client].ask(count=line.count, at_once=line.at_once)
                measured[line.label].append(one | {"round": number, "server_cpu_s": server.ask()["cpu_s"] - before_s})
    return measured


def models_per_s(one: dict[str, Any]) -> float:
    return float(one["count"] / one["wall_s"])


def times_faster(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    return median(models_per_s(our) / models_per_s(one) for our, one in zip(ours, theirs, strict=True))


def table(lines: list[Contender], measured: dict[str, list[dict[str, Any]]]) -> report.Table:
    ours, recipes = lines[:2], lines[2:]
    rates = {line.label: median(map(models_per_s, measured[line.label])) for line in lines}
    best = max((line.label for line in recipes), key=rates.__getitem__)
    rounds = len(measured[best])
    rows: list[list[report.Cell]] = [
        [
            line.label,
            rates[line.label],
            median(one["cpu_s"] * 1000 / one["count"] for one in measured[line.label]),
            *(times_faster(measured[own.label], measured[line.label]) for own in ours),
        ]
        for line in lines
    ]
    return report.Table(
        title="Small models, prepare to commit, over TLS on both planes",
        columns=["client", "models/s", "CPU ms per model", "our speed over it", "with a journal"],
        rows=rows,
        notes=[
            f"Each model is a directory of {FILES} files, {MODEL_BYTES // 1024} KiB in all.",
            f"We push {lines[0].count} of them per round, the recipe {recipes[0].count}; ratios are taken within a round.",
            f"Medians over rounds; there {'was one' if rounds == 1 else f'were {rounds}'}.",
            "The recipe is Baseten's documented one: requests, tarfile, and a boto3 session for each model's credentials.",
            f"Its best is: {best}.",
        ],
        chart=report.Chart(column="models/s", unit="models/s"),
    )


def main() -> None:
    arguments = report.arguments(__doc__).parse_args()
    exit_on_sigterm()
    ours, recipes, rounds = (200, 16, 1) if arguments.quick else (DIRECTORIES, 100, 5)
    lines = contenders(ours=ours, recipes=recipes)
    measured = run(lines, rounds)
    result = report.Result(
        benchmark="small_models",
        title="Many small models",
        settings={"models": ours, "recipe_models": recipes, "rounds": rounds, "files": FILES, "model_bytes": MODEL_BYTES},
        tables=[table(lines, measured)],
        raw=measured,
    )
    report.finish(result, arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["client"]:
        asyncio.run(be_client(sys.argv[2], Service(**json.loads(sys.argv[3])), sorted(Path(sys.argv[4]).iterdir())))
    else:
        main()
