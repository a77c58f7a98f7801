"""Has the cells of the matrix happen, over a real SeaweedFS: `python -m reliability.matrix_run`, in `tests`."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import attrs
from reliability.figures import save_figures
from reliability.matrix import SCENARIOS, WAIT_S, Cell, Outcome, Scenario, cells
from support.clock import FakeClock
from support.model_dirs import model_archive

import aiobaseten as ab
from aiobaseten.events import Event, UploadStarted
from aiobaseten.local import FaultyStack, LocalStack, faults

MiB = 1024 * 1024
LARGE_BYTES = 11 * MiB
WORKERS = 8
PAUSE_S = 60.0
"""Between cells, by the clock that the clients go by: a 429 keeps its endpoint waiting for a while."""
LEFT_RUNNING_S = 5.0
LIMIT_S = 180.0
"""For one cell in real time: a cell whose every call stalls takes long."""
TEAM = "research"
PATIENT = ab.Options(
    transfer=ab.TransferOptions(part_size_bytes=5 * MiB, multipart_threshold_bytes=5 * MiB),
    timeouts=ab.TimeoutOptions(abort_s=20.0),
    requests_per_s=None,
)
HASTY = attrs.evolve(PATIENT, timeouts=ab.TimeoutOptions(read_s=1.5, complete_s=1.5, abort_s=20.0))
"""For calls that stall: on a busy machine others are slow too."""


@attrs.frozen(kw_only=True)
class Result:
    """What became of a cell; `problem` is None where it is what was written down."""

    cell: Cell
    problem: str | None


@attrs.define(kw_only=True)
class Worker:
    """Clients of its own, to the same stack as the others'."""

    stack: LocalStack
    plain: ab.Client
    faulty: FaultyStack
    patient: ab.Client
    hasty: ab.Client
    clock: FakeClock
    events: list[Event]

    async def run(self, cell: Cell) -> Result:
        scenario = SCENARIOS[cell.call]
        name = f"matrix-{secrets.token_hex(6)}"
        archive = model_archive(name, weights_bytes=LARGE_BYTES if scenario.size == "large" else 0)
        await self._make_models(scenario, name)
        before = await self._deployments(name)
        self.faulty.clear()
        self.events.clear()
        self.clock.now_s += PAUSE_S
        for call, part_number, leading in scenario.led_by:
            self.faulty.inject(call, leading, part_number=part_number)
        fault = faults.COMMON[cell.fault].fault
        self.faulty.inject(cell.call, fault, times=cell.times, part_number=scenario.part_number)
        client = self.hasty if cell.fault.startswith("stall") else self.patient
        struck, slept_s = len(self.faulty.struck), self.clock.slept_s
        try:
            with anyio.fail_after(LIMIT_S):
                result = await client.push(ab.Push(archive))
                if scenario.waits:
                    self.stack.set_status(result.deployment.id, "ACTIVE")
                    await client.wait_until_active(result.model.id, result.deployment.id, timeout_s=WAIT_S)
            ended: ab.PushResult | Exception = result
        except Exception as error:  # noqa: BLE001 - whatever it is, it is compared with what was expected
            ended = error
        strikes = sum(each.call == cell.call and each.fault == fault for each in self.faulty.struck[struck:])
        problems = [
            *self._problems_of_end(cell.outcome, ended),
            *self._problems_of_effort(cell.outcome, strikes, self.clock.slept_s - slept_s),
            *await self._problems_of_traces(cell.outcome, name, before),
            *_problems_of_client(client),
            *([] if isinstance(ended, Exception) else await self._problems_of_object(cell.outcome, ended, archive)),
        ]
        return Result(cell=cell, problem="; ".join(problems) or None)

    async def _make_models(self, scenario: Scenario, name: str) -> None:
        if scenario.model == "new":
            return
        await self.plain.push(ab.Push(model_archive(name)))
        if scenario.model == "in two teams":
            (team,) = await self.plain.list_teams(name=TEAM)
            await self.plain.push(ab.Push(model_archive(name), team_id=team.id))

    async def _deployments(self, name: str) -> int:
        models = await self.plain.list_models(name=name)
        return sum([len(await self.plain.list_deployments(model.id)) for model in models])

    def _problems_of_end(self, expected: Outcome, ended: ab.PushResult | Exception) -> Iterator[str]:
        if isinstance(ended, ab.PushResult):
            if expected.error is not None:
                yield f"succeeded in place of {expected.error.__name__}"
            return
        chain = list(_chain(ended))
        words = " | ".join(str(error) for error in chain)
        if expected.error is None or type(ended) is not expected.error:
            yield f"ended with {type(ended).__name__}: {words}"
        elif not re.search(expected.says, words):
            yield f"says {words!r}, and not {expected.says!r}"
        noted = any("could not be aborted" in note for note in getattr(ended, "__notes__", ()))
        if noted != expected.notes:
            yield f"notes {'a' if noted else 'no'} failed clean-up"

    def _problems_of_effort(self, expected: Outcome, strikes: int, slept_s: float) -> Iterator[str]:
        if strikes != expected.strikes and (expected.strikes is not None or strikes == 0):
            yield f"the fault happened {strikes} times in place of {expected.strikes}"
        if not expected.at_least_s - 1e-6 <= slept_s <= expected.at_most_s + 1e-6:
            yield f"waited {slept_s:.1f} s, not from {expected.at_least_s:.1f} to {expected.at_most_s:.1f}"

    async def _problems_of_traces(self, expected: Outcome, name: str, before: int) -> list[str]:
        problems: list[str] = []
        made = await self._deployments(name) - before
        if made != expected.deployments:
            problems.append(f"{made} deployments in place of {expected.deployments}")
        keys = {event.key for event in self.events if isinstance(event, UploadStarted)}
        left = [upload for upload in await self.stack.multipart_uploads() if upload.key in keys]
        if len(left) != expected.left:
            problems.append(f"{len(left)} multipart uploads left in place of {expected.left}")
        return problems

    async def _problems_of_object(self, expected: Outcome, result: ab.PushResult, archive: bytes) -> list[str]:
        assert result.upload is not None
        if result.upload.verified != expected.verified:
            return [f"the upload's verified is {result.upload.verified}"]
        key = self.stack.deployment_key(result.deployment.id)
        if key != result.upload.key:
            return [f"the deployment's archive is {key}, not {result.upload.key}"]
        if await self.stack.object_digest(key) != (len(archive), hashlib.sha256(archive).hexdigest()):
            return ["the object differs from the archive"]
        return []


def _problems_of_client(client: ab.Client) -> Iterator[str]:
    planes = client._planes
    assert planes is not None
    connections = planes.engine.connections
    if connections.for_parts.borrowed_tokens or connections.for_archives.borrowed_tokens or connections.budget.used_bytes:
        yield "connections or memory are still taken"
    if planes.engine.s3._transport._scopes:
        yield "a request is still under way"


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


@asynccontextmanager
async def _worker(stack: LocalStack) -> AsyncIterator[Worker]:
    clock = FakeClock()
    events: list[Event] = []
    async with FaultyStack(stack) as faulty, stack.client(options=PATIENT) as plain:
        patient = faulty.client(options=PATIENT, observer=events.append)
        hasty = faulty.client(options=HASTY, observer=events.append)
        patient._clock = hasty._clock = clock.clock
        async with patient, hasty:
            yield Worker(stack=stack, plain=plain, faulty=faulty, patient=patient, hasty=hasty, clock=clock, events=events)


async def run_cells(stack: LocalStack, chosen: Iterable[Cell]) -> list[Result]:
    """Run cells side by side. Those whose fault takes real time begin first.

    :raises TimeoutError: if a task is left when all clients are closed
    """
    waiting = iter(sorted(chosen, key=lambda cell: (not cell.fault.startswith("stall"), cell.times is not None)))
    results: list[Result] = []
    before = asyncio.all_tasks()

    async def work() -> None:
        async with _worker(stack) as worker:
            results.extend([await worker.run(cell) for cell in waiting])

    async with anyio.create_task_group() as tasks:
        for _ in range(WORKERS):
            tasks.start_soon(work)
    await asyncio.wait_for(asyncio.gather(*_of_the_library(asyncio.all_tasks() - before)), LEFT_RUNNING_S)
    return results


def _of_the_library(tasks: set[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """Without those of the stack's own servers."""
    return {task for task in tasks if "RequestHandler.start" not in repr(task.get_coro())}


async def run_all(chosen: list[Cell]) -> list[Result]:
    """Run cells, on a stack whose upload credentials allow to read and on one whose do not."""
    results: list[Result] = []
    for may_read in (False, True):
        those = [cell for cell in chosen if SCENARIOS[cell.call].may_read == may_read]
        async with LocalStack(teams=("default", TEAM), may_read=may_read) as stack:
            results += await run_cells(stack, those)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the figures for docs/reliability.md")
    parser.add_argument("--only", default="", help="cells whose name has this in it")
    arguments = parser.parse_args()
    chosen = [cell for cell in cells() if arguments.only in str(cell)]
    if not chosen:
        parser.error(f"no cell's name has {arguments.only!r} in it")
    begun_s = time.monotonic()
    results = anyio.run(run_all, chosen)
    failed = [result for result in results if result.problem]
    for result in failed:
        sys.stdout.write(f"{result.cell}: {result.problem}\n")
    sys.stdout.write(
        f"{len(results) - len(failed)} of {len(results)} cells are as written down, in {time.monotonic() - begun_s:.0f} s\n"
    )
    if arguments.save and not arguments.only:
        save_figures("matrix", {"cells": len(results), "passed": len(results) - len(failed)})
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
