"""The client of `soak.py`, in a process of its own, so that it can be measured: ``python soak_client.py SETTINGS``.

It tells each outcome, each upload that was given up, and each sample of what it holds as a line of JSON. Samples are taken while
nothing is under way: from time to time the pushes pause until all that were begun have ended.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import random
import resource
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import attrs
from support.model_dirs import contents_of, model_archive, model_dir, tree_of

import aiobaseten as ab
from aiobaseten.events import CredentialsRenewed, Event, Reconciling, Retrying, UploadAborted
from aiobaseten.local import faults
from aiobaseten.local.fault_plan import FaultPlan
from aiobaseten.local.faulty_client import FaultyClient

MIB = 1024 * 1024
CHUNK_BYTES = 300_000
SMALL_BYTES, LARGE_BYTES = (0, 40_000, 400_000, 2 * MIB), (6 * MIB, 9 * MIB, 12 * MIB, 17 * MIB)
AT_ONCE = 16
SETTLE_S = 0.2
STATM, TASKS = Path("/proc/self/statm"), Path("/proc/self/task")
OPTIONS = ab.Options(
    requests_per_s=None,
    transfer=ab.TransferOptions(part_size_bytes=5 * MIB),
    retry=ab.RetryOptions(initial_backoff_s=0.02, max_backoff_s=0.2),
    timeouts=ab.TimeoutOptions(connect_s=3, read_s=3, complete_s=5, abort_s=3, reconcile_s=2),
)

Kind = Literal["bytes", "file", "directory", "stream"]


@attrs.frozen(kw_only=True)
class Planned:
    """A push of the run.

    :param path: what it pushes; None: bytes that only this push has
    """

    number: int
    kind: Kind
    path: str | None
    name: str | None
    model_id: str | None
    team_id: str | None

    @property
    def own_bytes(self) -> bytes:
        return model_archive(f"soak-{self.number}", weights_bytes=1000 + 997 * self.number % 60_000, seed=self.number)

    def push(self) -> ab.Push:
        where: dict[str, Any] = {"name": self.name, "model_id": self.model_id, "team_id": self.team_id}
        if self.kind == "bytes":
            return ab.Push(self.own_bytes, **where)
        assert self.path is not None
        if self.kind == "stream":
            config = {"model_name": self.name or "soaked"}
            return ab.Push(chunks_of(Path(self.path)), deployment=ab.DeploymentArchivePayload(config=config), **where)
        return ab.Push(self.path, **where)

    def is_held_by(self, content: bytes) -> bool:
        """Whether an archive is this push's: the very bytes, or each file of the directory and nothing else."""
        if self.path is None:
            return content == self.own_bytes
        if self.kind == "directory":
            return contents_of(content) == tree_of(Path(self.path))
        return content == Path(self.path).read_bytes()


@attrs.frozen(kw_only=True)
class Settings:
    """What the client does, and where.

    :param plan: a file with the pushes, as JSON
    :param rate: of faults, from the first outcome on: those of other kinds than the ones before a connection are the proxies'
    :param sample_every: pushes between two samples
    """

    base_url: str
    s3_endpoint_url: str
    api_key: str
    plan: str
    journal: str
    rate: float
    seed: int
    sample_every: int


def make_plan(directory: Path, count: int, *, model_ids: Sequence[str], team_id: str, chance: random.Random) -> list[Planned]:
    """So many pushes, and the files and directories that they push."""
    paths: dict[tuple[Kind, bool], list[str]] = {}
    for is_large, sizes in ((False, SMALL_BYTES), (True, LARGE_BYTES)):
        files = [directory / f"{size}-{index}.tar" for size in sizes for index in range(2)]
        for index, file in enumerate(files):
            file.write_bytes(model_archive("soaked", weights_bytes=int(file.name.split("-")[0]), seed=index + 1000 * is_large))
        directories = [model_dir(directory / f"{size}", "soaked", weights_bytes=size, seed=size) for size in sizes]
        paths["file", is_large] = paths["stream", is_large] = [str(file) for file in files]
        paths["directory", is_large] = [str(each) for each in directories]
    plan: list[Planned] = []
    for number in range(1, count + 1):
        (kind,) = chance.choices(("bytes", "file", "directory", "stream"), (55, 20, 12, 13))
        path = None if kind == "bytes" else chance.choice(paths[kind, chance.random() < 0.3])
        (where,) = chance.choices(("new", "shared", "team", "existing"), (70, 12, 10, 8))
        shared = f"soak-shared-{chance.randrange(1 + count // 100)}"
        name = {"new": f"soak-{number}", "shared": shared, "team": f"soak-{number}"}.get(where)
        model_id = chance.choice(model_ids) if where == "existing" else None
        team = team_id if where == "team" else None
        plan.append(Planned(number=number, kind=kind, path=path, name=name, model_id=model_id, team_id=team))
    return plan


async def chunks_of(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def kind_of(fault: faults.AnyFault) -> str:
    """Its name in `faults.COMMON`."""
    return next(name for name, kind in faults.COMMON.items() if kind.fault == fault)


def tell(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def tell_event(event: Event) -> None:
    match event:
        case UploadAborted():
            tell(aborted=event.upload_id)
        case Retrying() | Reconciling() | CredentialsRenewed():
            tell(went_on=type(event).__name__)
        case _:
            pass


def sample(idle_bytes: int) -> dict[str, float]:
    """What this process holds.

    Memory twice: as it is, and without what is only kept for the next parts, by the C library or, within the memory budget, by the
    client. That differs by some parts from sample to sample.

    :param idle_bytes: of the client's buffers
    """
    gc.collect()
    rss_mib = resident_mib()
    give_back()
    return {
        "rss_mib": rss_mib,
        "rss_in_use_mib": resident_mib() - idle_bytes / MIB,
        "fds": len(os.listdir("/dev/fd")),  # noqa: PTH208 - of this very process
        "threads": len(os.listdir(TASKS)) if TASKS.exists() else threading.active_count(),  # noqa: PTH208
        "tasks": len(asyncio.all_tasks()),
    }


def resident_mib() -> float:
    """This process's memory; without /proc the most that it has ever had."""
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * resource.getpagesize() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def give_back() -> None:
    """Have glibc return to the system what is free; other C libraries have no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Soak:
    """One run of all pushes."""

    def __init__(self, settings: Settings, plan: list[Planned]) -> None:
        self._settings = settings
        self._plan = plan
        self._faults = FaultPlan()
        self._client = FaultyClient(
            self._faults,
            api_key=settings.api_key,
            base_url=settings.base_url,
            s3_endpoint_url=settings.s3_endpoint_url,
            options=OPTIONS,
            observer=tell_event,
        )
        self._ended = 0
        self._another_ended = anyio.Event()

    async def run(self) -> None:
        async with (
            self._client as client,
            client.push_many(self._pushes(), journal=self._settings.journal, concurrency=AT_ONCE) as run,
        ):
            async for outcome in run:
                self._note(outcome)
        report = run.report
        tell(
            struck=[(struck.call, kind_of(struck.fault)) for struck in self._faults.struck],
            reported=[report.total, report.failed, report.interrupted],
            stopped_by=report.stopped_by and str(report.stopped_by),
        )

    async def _pushes(self) -> AsyncIterator[ab.Push]:
        for begun, planned in enumerate(self._plan):
            if begun and begun % self._settings.sample_every == 0:
                await self._sample(begun)
            yield planned.push()
        await self._sample(len(self._plan))

    async def _sample(self, begun: int) -> None:
        while self._ended < begun:
            self._another_ended = anyio.Event()
            await self._another_ended.wait()
        await anyio.sleep(SETTLE_S)
        assert self._client._planes is not None
        tell(sample=sample(self._client._planes.engine.connections.budget.idle_bytes), pushes=begun)

    def _note(self, outcome: ab.PushOutcome) -> None:
        if not self._ended:
            self._faults.inject_randomly(self._settings.rate, seed=self._settings.seed)
        self._ended += 1
        self._another_ended.set()
        record, error = outcome.record, outcome.error
        tell(
            outcome=record.number,
            push_id=record.push_id,
            deployment_id=record.deployment_id,
            state=record.state,
            error=None if error is None else str(error),
            cause=record.cause,
            is_typed=isinstance(error, ab.BasetenError),
            first_cause=None if error is None or error.__cause__ is None else repr(error.__cause__),
            is_passing=isinstance(error, ab.BasetenError) and error.retryable,
        )


def main() -> None:
    settings = Settings(**json.loads(sys.argv[1]))
    plan = [Planned(**planned) for planned in json.loads(Path(settings.plan).read_text())]
    asyncio.run(Soak(settings, plan).run())


if __name__ == "__main__":
    main()
