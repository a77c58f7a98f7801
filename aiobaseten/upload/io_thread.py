"""An event loop in a thread of its own, on which all traffic with the object store runs.

Signing, TLS and socket writes of large bodies would hold up the caller's loop for tens of milliseconds at a time. Here they hold up
nobody: the caller's loop only waits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from aiobaseten.errors import ConfigurationError

T = TypeVar("T")

CLOSED = "the Client was closed while it was in use"


class IoThread:
    """Runs coroutines on its own loop for callers on another loop. Started by the first `run`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._at_end: list[Callable[[], Awaitable[object]]] = []

    def at_end(self, finish: Callable[[], Awaitable[object]]) -> None:
        """Have `finish()` awaited on the thread's loop when it is closed, once no call runs any more."""
        self._at_end.append(finish)

    async def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await `call()` on the thread's loop.

        If the caller is cancelled, so is the call; `run` then comes back only when the call has really ended, so that whatever it
        was using is free again.
        """
        io_loop = self._started()
        caller_loop = asyncio.get_running_loop()
        ended: asyncio.Future[asyncio.Task[T]] = caller_loop.create_future()
        started: list[asyncio.Task[T]] = []

        async def body() -> T:
            return await call()

        def start() -> None:
            task = io_loop.create_task(body())
            started.append(task)
            task.add_done_callback(lambda done: caller_loop.call_soon_threadsafe(ended.set_result, done))

        io_loop.call_soon_threadsafe(start)
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            io_loop.call_soon_threadsafe(lambda: started[0].cancel())  # noqa: PLW0108 - it may not have started yet
            await _to_its_end(ended)
            task = ended.result()
            if not task.cancelled():
                task.exception()  # taken note of, so that asyncio does not report it as never retrieved
            raise
        task = ended.result()
        if task.cancelled():
            raise ConfigurationError(CLOSED)
        return task.result()

    async def aclose(self) -> None:
        """Cancel what still runs, finish, and wait for the thread to end. It cannot be started again."""
        self._closed = True
        if self._loop is None or self._thread is None:
            return
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        loop.call_soon_threadsafe(loop.stop)
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(thread.join)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise ConfigurationError(CLOSED)
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_run_loop, args=(self._loop, self._at_end), name=self._name, daemon=True)
            self._thread.start()
        return self._loop


async def _to_its_end(future: asyncio.Future[Any]) -> None:
    """Wait for a future however often the waiting task is cancelled; the cancellation that led here stands for all."""
    with anyio.CancelScope(shield=True):
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue


def _run_loop(loop: asyncio.AbstractEventLoop, at_end: list[Callable[[], Awaitable[object]]]) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(_finish(at_end))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def _finish(at_end: list[Callable[[], Awaitable[object]]]) -> None:
    calls = asyncio.all_tasks() - {asyncio.current_task()}
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    for finish in at_end:
        await finish()
