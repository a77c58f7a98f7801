from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator

import anyio
import pytest

from aiobaseten.upload.io_thread import IoThread

pytestmark = pytest.mark.anyio

colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour")


@pytest.fixture
async def io_thread() -> AsyncIterator[IoThread]:
    thread = IoThread("test-io")
    yield thread
    await thread.aclose()
    assert "test-io" not in [thread.name for thread in threading.enumerate()]


async def test_calls_run_on_the_thread_and_return(io_thread: IoThread) -> None:
    async def where() -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    assert await io_thread.run(where) == "test-io"
    assert await io_thread.run(where) == "test-io"


async def test_errors_come_back_as_they_are(io_thread: IoThread) -> None:
    failure = ValueError("from there")

    async def fail() -> None:
        raise failure

    with pytest.raises(ValueError, match="from there") as caught:
        await io_thread.run(fail)
    assert caught.value is failure


async def test_each_call_has_a_context_of_its_own(io_thread: IoThread) -> None:
    both_set = threading.Barrier(2)

    async def paint(name: str) -> None:
        async def call() -> str:
            colour.set(name)
            await asyncio.to_thread(both_set.wait)
            return colour.get()

        assert await io_thread.run(call) == name

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(paint, "red")
        tasks.start_soon(paint, "blue")


async def test_a_cancelled_call_has_ended_before_run_comes_back(io_thread: IoThread) -> None:
    started = anyio.Event()
    loop = asyncio.get_running_loop()
    log: list[str] = []

    async def slow() -> None:
        loop.call_soon_threadsafe(started.set)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.02)
            log.append("call ended")
            raise

    async def caller() -> None:
        try:
            await io_thread.run(slow)
        finally:
            log.append("run came back")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(caller)
        await started.wait()
        tasks.cancel_scope.cancel()
    assert log == ["call ended", "run came back"]


@pytest.mark.parametrize("failing", [True, False])
async def test_a_call_that_ends_otherwise_while_cancelled_still_cancels(io_thread: IoThread, failing: bool) -> None:
    started = anyio.Event()
    loop = asyncio.get_running_loop()

    async def stubborn() -> str:
        loop.call_soon_threadsafe(started.set)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if failing:
                raise ValueError("instead") from None
        return "too late"

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(io_thread.run, stubborn)
            await started.wait()
            scope.cancel()
    assert scope.cancelled_caught


async def test_closing_ends_what_still_runs() -> None:
    thread = IoThread("test-closing")
    ended = threading.Event()

    async def leave_behind() -> None:
        async def forgotten() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

        task = asyncio.get_running_loop().create_task(forgotten())
        await asyncio.sleep(0)
        assert not task.done()

    await thread.run(leave_behind)
    await thread.aclose()
    assert ended.is_set()
    await thread.aclose()


async def test_closing_before_the_first_call_does_nothing() -> None:
    before = threading.active_count()
    await IoThread("never").aclose()
    assert threading.active_count() == before
