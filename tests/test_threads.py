"""Work in a thread ends before its cancelled caller goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import anyio
import pytest

from aiobaseten._threads import Check, Interrupted, _Job, run_to_end

pytestmark = pytest.mark.anyio


class Work:
    """Blocks until it is cancelled, or released."""

    def __init__(self, *, heeds_cancellation: bool = True) -> None:
        self.begun = threading.Event()
        self.release = threading.Event()
        self.ended = False
        self.interrupted = False
        self._heeds_cancellation = heeds_cancellation

    def __call__(self, check: Check) -> str:
        self.begun.set()
        try:
            while not self.release.wait(0.001):
                if self._heeds_cancellation:
                    check()
        except Interrupted:
            self.interrupted = True
            raise
        finally:
            self.ended = True
        return "done"

    async def has_begun(self) -> None:
        assert await anyio.to_thread.run_sync(self.begun.wait, 30, limiter=anyio.CapacityLimiter(1))


async def test_it_returns_what_the_work_returns() -> None:
    thread = await run_to_end(lambda check: (check(), threading.current_thread())[1])
    assert thread is not threading.current_thread()


async def test_it_raises_what_the_work_raises() -> None:
    def fail(check: Check) -> None:
        raise LookupError("nothing")

    with pytest.raises(LookupError, match="nothing"):
        await run_to_end(fail)


async def test_a_cancelled_scope_waits_for_the_work_to_end() -> None:
    work = Work()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_to_end, work)
            await work.has_begun()
            scope.cancel()
    assert scope.cancelled_caught
    assert work.ended
    assert work.interrupted


async def run_and_cancel(work: Callable[[Check], object], act: Callable[[asyncio.Task[object]], None]) -> None:
    task: asyncio.Task[object] = asyncio.ensure_future(run_to_end(work))
    if isinstance(work, Work):
        await work.has_begun()
    act(task)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_task_cancelled_by_asyncio_waits_for_the_work_to_end() -> None:
    work = Work()
    await run_and_cancel(work, lambda task: task.cancel())
    assert work.ended
    assert work.interrupted


async def test_a_timeout_of_asyncio_waits_for_the_work_to_end() -> None:
    work = Work()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await run_to_end(work)
    assert work.ended


async def test_a_second_cancellation_does_not_end_the_wait() -> None:
    work = Work(heeds_cancellation=False)
    task = asyncio.ensure_future(run_to_end(work))
    await work.has_begun()
    for _ in range(3):
        task.cancel()
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
    assert not task.done()
    work.release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended


async def test_work_that_has_not_begun_never_does() -> None:
    calls: list[str] = []
    blocker = Work(heeds_cancellation=False)
    limiter = anyio.to_thread.current_default_thread_limiter()
    tokens, limiter.total_tokens = limiter.total_tokens, 1
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_to_end, blocker)
            await blocker.has_begun()
            await run_and_cancel(lambda check: calls.append("ran"), lambda task: None if task.done() else _cancel_soon(task))
            blocker.release.set()
    finally:
        limiter.total_tokens = tokens
    assert calls == []


def _cancel_soon(task: asyncio.Task[object]) -> None:
    asyncio.get_running_loop().call_later(0.01, task.cancel)


async def test_a_call_in_a_cancelled_scope_does_nothing() -> None:
    calls: list[str] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_to_end(lambda check: calls.append("ran"))
    assert scope.cancelled_caught
    assert calls == []


async def test_work_that_is_done_needs_no_waiting_for() -> None:
    job = _Job(lambda check: "done")
    assert await anyio.to_thread.run_sync(job.run) == "done"
    assert not job.stop()


async def test_a_thread_that_comes_too_late_does_nothing() -> None:
    calls: list[str] = []
    job = _Job(lambda check: calls.append("ran"))
    assert not job.stop()
    with pytest.raises(Interrupted):
        job.run()
    assert calls == []
