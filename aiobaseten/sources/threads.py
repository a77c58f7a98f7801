"""Runs blocking work in a worker thread, and never leaves it behind.

A cancelled caller must not go on while a thread still writes into its buffer or opens a file for it. `anyio.to_thread` waits for
its threads when a cancel scope is cancelled, but not when a task is cancelled by asyncio itself, as `asyncio.timeout` does.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")

Check = Callable[[], None]
"""Raises `Interrupted` once the caller has been cancelled. Work calls it between two steps, so that it ends soon."""


class Interrupted(Exception):
    """The caller was cancelled and waits for the work to end."""


async def run_to_end(work: Callable[[Check], T]) -> T:
    """Call `work(check)` in a worker thread and return what it returns.

    However the caller is cancelled, this comes back only when the work has ended, or was never begun.
    """
    job = _Job(work)
    try:
        return await anyio.to_thread.run_sync(job.run, abandon_on_cancel=True)
    except asyncio.CancelledError:
        await job.stop()
        raise


class _Job(Generic[T]):
    def __init__(self, work: Callable[[Check], T]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._lock = threading.Lock()
        self._begun = False
        self._stopping = False

    def run(self) -> T:
        with self._lock:
            self._check()
            self._begun = True
        try:
            return self._work(self._check)
        finally:
            self._loop.call_soon_threadsafe(self._ended.set)

    def _check(self) -> None:
        if self._stopping:
            raise Interrupted

    async def stop(self) -> None:
        with self._lock:
            self._stopping = True
            if not self._begun:
                return
        with anyio.CancelScope(shield=True):
            while not self._ended.is_set():
                try:
                    await self._ended.wait()
                except asyncio.CancelledError:
                    continue  # The first cancellation is about to be passed on; it stands for this one too.
