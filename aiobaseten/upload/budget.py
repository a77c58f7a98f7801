"""The memory that parts are read into: taken from one budget before a byte is read, and reused."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

from aiobaseten.options import MiB


class BufferBudget:
    """Buffers for all uploads of a client, under one bound in bytes, first come first served.

    A buffer larger than the whole budget is given out when nothing else is in use. Buffers of at least 1 MiB are kept for the next
    part of their size, for as long as the budget has room for them.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._used_bytes = 0
        self._idle: list[bytearray] = []
        self._waiting: deque[tuple[int, anyio.Event]] = deque()

    @property
    def used_bytes(self) -> int:
        """Bytes given out now."""
        return self._used_bytes

    @property
    def idle_bytes(self) -> int:
        """Bytes kept for reuse now."""
        return sum(map(len, self._idle))

    @asynccontextmanager
    async def buffer(self, size_bytes: int) -> AsyncGenerator[memoryview]:
        """Wait for room and lend a buffer of exactly `size_bytes` bytes. Its old content is whatever it was."""
        charged = size_bytes if size_bytes < MiB else -(-size_bytes // MiB) * MiB
        await self._acquire(charged)
        try:
            storage = self._take(charged)
        except BaseException:
            self._release(charged)
            raise
        try:
            with memoryview(storage) as view, view[:size_bytes] as lent:
                yield lent
        finally:
            if len(storage) >= MiB:
                self._idle.append(storage)
            self._release(charged)

    async def _acquire(self, size_bytes: int) -> None:
        if not self._waiting and self._fits(size_bytes):
            self._used_bytes += size_bytes
            return
        granted = anyio.Event()
        entry = (size_bytes, granted)
        self._waiting.append(entry)
        try:
            await granted.wait()
        except BaseException:
            if granted.is_set():
                self._release(size_bytes)
            else:
                self._waiting.remove(entry)
                self._grant()
            raise

    def _release(self, size_bytes: int) -> None:
        self._used_bytes -= size_bytes
        self._grant()
        self._trim()

    def _grant(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size_bytes, granted = self._waiting.popleft()
            self._used_bytes += size_bytes
            granted.set()

    def _fits(self, size_bytes: int) -> bool:
        return self._used_bytes == 0 or self._used_bytes + size_bytes <= self._budget_bytes

    def _take(self, size_bytes: int) -> bytearray:
        for index, storage in enumerate(self._idle):
            if len(storage) == size_bytes:
                return self._idle.pop(index)
        self._trim()
        return bytearray(size_bytes)

    def _trim(self) -> None:
        while self._idle and self._used_bytes + self.idle_bytes > self._budget_bytes:
            self._idle.pop(0)
