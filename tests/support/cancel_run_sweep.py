"""Runs of many pushes that are cancelled at each place where they can be, and then run once more with the same journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import attrs
from aiohttp import web
from support.await_points import watched_loop
from support.cancel_sweep import LARGE, OPTIONS, SLACK_S, SMALL, Style, Sweep, cancel_at, check_whole, open_files
from support.fake_s3 import hold
from support.meddling_proxy import Forward, lose_reply
from support.memory_stack import MemoryStack, memory_stack

import aiobaseten as ab
from aiobaseten.options import KiB


def pushes() -> Iterator[ab.Push]:
    """Two to one new model, which wait for each other, and three large ones, which take turns."""
    for deployment_name in ("one", "two"):
        yield ab.Push(SMALL, name="shared", deployment=ab.DeploymentArchivePayload(deployment_name=deployment_name))
    for name in ("b", "c", "d"):
        yield ab.Push(LARGE, name=name)


DEPLOYMENTS = [("b", "deployment-1"), ("c", "deployment-1"), ("d", "deployment-1"), ("shared", "one"), ("shared", "two")]


Beginning = Literal["commit that made nothing", "commit that made it", "upload"]
BEGINNINGS: tuple[Beginning, ...] = ("commit that made nothing", "commit that made it", "upload")
"""In the midst of what a first run was cancelled."""


async def sweep_resumed_runs(directory: Path, style: Style, beginning: Beginning, *, share: tuple[int, int] = (0, 1)) -> Sweep:
    """As `sweep_runs`, where the run that is cancelled goes on with what an earlier one has left."""
    result = Sweep()
    with watched_loop():
        async with memory_stack() as stack, stack.client(OPTIONS) as client:
            for k in count(1 + share[0], share[1]):
                label = f"resumed {beginning}, {style}, k={k}"
                stack.reset()
                journal = directory / f"{style}-{beginning}-{k}.db"

                async def run(journal: Path = journal) -> ab.BulkReport:
                    return await client.push_all([ab.Push(LARGE)], journal=journal, journal_credentials=True)

                await _begin(stack, run, beginning)
                ended = await cancel_at(k, style, run)
                if ended.reached is not None:
                    label += f" ({' < '.join(map(str, reversed(ended.reached)))})"
                    result.add(ended)
                    assert ended.was_cancelled or ended.was_closing, label
                await stack.at_rest()
                check_whole(client, label)
                report = await run()
                assert [record.error for record in report.records] == [None], label
                assert len(stack.deployments) == stack.commits == 1, (label, stack.seen)
                assert not stack.s3.uploads, label
                if ended.reached is None:
                    break
    return result


async def _begin(stack: MemoryStack, run: Callable[[], Coroutine[Any, Any, ab.BulkReport]], beginning: Beginning) -> None:
    """A first run, cancelled in the midst of something."""
    arrived, cancelled = asyncio.Event(), asyncio.Event()

    async def stall(_: web.Request, forward: Forward) -> web.Response:
        if beginning == "commit that made it":
            await forward()
        arrived.set()
        await cancelled.wait()
        return web.Response(status=500)

    if beginning == "upload":
        stack.s3.faults["UploadPart"] = [hold(arrived, cancelled)] * 2
    else:
        stack.plan("POST", "/v1/models", stall)
    task = asyncio.create_task(run())
    await arrived.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    cancelled.set()
    await stack.at_rest()


async def sweep_runs(directory: Path, style: Style, *, keeps_credentials: bool, share: tuple[int, int] = (0, 1)) -> Sweep:
    """Cancel a run at its k-th suspension, for each k that leaves n when divided by m, where `share` is ``(n, m)``.

    After each, another run with its journal must leave each push deployed exactly once, and no upload behind.
    """
    result = Sweep()
    before = open_files()
    options = attrs.evolve(OPTIONS, requests_per_s=3.0)
    with watched_loop(), patch("aiobaseten.push.LARGE_BYTES", 100 * KiB), patch("aiobaseten.bulk.fleet.LARGE_AT_ONCE", 1):
        async with memory_stack(rekey_on_prepare=False) as stack, stack.client(options) as client:
            for k in count(1 + share[0], share[1]):
                label = f"run, {style}, credentials {keeps_credentials}, k={k}"
                stack.reset()
                stack.plan("POST", "/v1/models", lose_reply)
                journal = directory / f"{style}-{keeps_credentials}-{k}.db"

                async def run(journal: Path = journal) -> ab.BulkReport:
                    return await client.push_all(pushes(), journal=journal, journal_credentials=keeps_credentials, concurrency=3)

                ended = await cancel_at(k, style, run)
                assert ended.error is None, (label, ended.error)
                if ended.reached is not None:
                    label += f" ({' < '.join(map(str, reversed(ended.reached)))})"
                    result.add(ended)
                    assert ended.was_cancelled or ended.was_closing, label
                    assert ended.cleanup_s < SLACK_S, label
                    assert all(task.done() for task in ended.tasks), label
                await stack.at_rest()
                check_whole(client, label)
                assert keeps_credentials or not stack.s3.uploads, label
                report = await run()
                assert [record.error for record in report.records if record.error is not None] == [], label
                assert len(report.records) == len(DEPLOYMENTS), label
                made = sorted((deployment.model.name, deployment.name) for deployment in stack.deployments)
                assert made == DEPLOYMENTS, (label, made)
                assert not stack.s3.uploads, label
                if ended.reached is None:
                    break
    assert open_files() <= before, "a file or socket was left open"
    return result
