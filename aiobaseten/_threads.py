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


def _wait() -> bool:
    return True


async def run_to_end(
    work: Callable[[Check], T], *, interrupt: Callable[[], bool] = _wait, limiter: anyio.CapacityLimiter | None = None
) -> T:
    """Call `work(check)` in a worker thread and return what it returns.

    However the caller is cancelled, this comes back only when the work has ended, or was never begun, or `interrupt` allows it.

    :param interrupt: called when the caller was cancelled, after which `check` raises: frees a thread that blocks, and says whether
        the work must still be waited for
    :param limiter: of how many threads may work at once; left out, anyio's own
    """
    job = _Job(work)
    try:
        return await anyio.to_thread.run_sync(job.run, abandon_on_cancel=True, limiter=limiter)
    except asyncio.CancelledError:
        if job.stop() and interrupt():
            await job.ended()
        raise


class _Job(Generic[T]):
    def __init__(self, work: Callable[[Check], T]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._lock = threading.Lock()
        self._begun = self._done = self._stopping = False

    def run(self) -> T:
        with self._lock:
            self._check()
            self._begun = True
        try:
            return self._work(self._check)
        finally:
            with self._lock:
                self._done = True
                if self._stopping:  # Else nobody waits, and waking the loop for nothing costs more than most work does.
                    self._loop.call_soon_threadsafe(self._ended.set)

    def _check(self) -> None:
        if self._stopping:
            raise Interrupted

    def stop(self) -> bool:
        """Have `check` raise from now on. Returns whether the work is under way."""
        with self._lock:
            self._stopping = True
            return self._begun and not self._done

    async def ended(self) -> None:
        with anyio.CancelScope(shield=True):
            while not self._ended.is_set():
                try:
                    await self._ended.wait()
                except asyncio.CancelledError:
                    continue  # The first cancellation is about to be passed on; it stands for this one too.
