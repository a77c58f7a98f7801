"""The memory that parts are read into: taken from one budget before a byte is read, and reused."""

from __future__ import annotations

from collections import deque

import anyio
import attrs

from aiobaseten.options import MiB
from aiobaseten.upload.plan import MIN_PART_SIZE_BYTES


class Buffer:
    """A buffer on loan. Give it back with `release` once nothing reads from it any more; further calls do nothing."""

    def __init__(self, budget: BufferBudget, storage: bytearray, size_bytes: int) -> None:
        self._budget: BufferBudget | None = budget
        self._storage = storage
        self._view = memoryview(storage)
        self.content = self._view[:size_bytes]

    def release(self) -> None:
        budget, self._budget = self._budget, None
        if budget is not None:
            self.content.release()
            self._view.release()
            budget.take_back(self._storage)


@attrs.define(eq=False)
class _Waiter:
    size_bytes: int
    granted: anyio.Event = attrs.field(factory=anyio.Event)
    storage: bytearray | None = None


class BufferBudget:
    """Buffers for all uploads of a client, under one bound in bytes.

    First come first served, but what is smaller than any part of a large archive waits in a line of its own, and the two lines take
    turns: a small archive does not wait for all the parts that a large one has asked for, and no crowd of small ones
    keeps a large one waiting. A buffer larger than the whole budget is given out when nothing else is in use. Buffers of at least
    1 MiB are kept for the next part of their size, until parts of another size come or the budget has no room for them.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._used_bytes = 0
        self._idle: list[bytearray] = []
        self._lines: tuple[deque[_Waiter], deque[_Waiter]] = deque(), deque()
        self._turn = 0

    def resize(self, budget_bytes: int) -> None:
        """Change the bound. What is on loan beyond a smaller one comes back in its own time."""
        self._budget_bytes = budget_bytes
        self._grant()
        self._trim()

    @property
    def used_bytes(self) -> int:
        """Bytes on loan now."""
        return self._used_bytes

    @property
    def idle_bytes(self) -> int:
        """Bytes kept for reuse now."""
        return sum(map(len, self._idle))

    async def lend(self, size_bytes: int) -> Buffer:
        """Wait for room and lend a buffer of exactly `size_bytes` bytes. Its content is whatever it was."""
        charged = size_bytes if size_bytes < MiB else -(-size_bytes // MiB) * MiB
        line = self._lines[size_bytes < MIN_PART_SIZE_BYTES]
        if not any(self._lines) and self._fits(charged):
            return Buffer(self, self._take(charged), size_bytes)
        waiter = _Waiter(charged)
        line.append(waiter)
        self._grant()
        try:
            await waiter.granted.wait()
        except BaseException:
            if waiter.storage is not None:
                self.take_back(waiter.storage)
            else:
                line.remove(waiter)
                self._grant()
            raise
        assert waiter.storage is not None
        return Buffer(self, waiter.storage, size_bytes)

    def take_back(self, storage: bytearray) -> None:
        """What `Buffer.release` calls."""
        self._used_bytes -= len(storage)
        if len(storage) >= MiB:
            self._idle.append(storage)
        self._grant()
        self._trim()

    def _grant(self) -> None:
        while any(self._lines):
            turn = self._turn if self._lines[self._turn] else 1 - self._turn
            if not self._fits(self._lines[turn][0].size_bytes):
                return
            waiter = self._lines[turn].popleft()
            waiter.storage = self._take(waiter.size_bytes)
            waiter.granted.set()
            self._turn = 1 - turn

    def _fits(self, size_bytes: int) -> bool:
        return self._used_bytes == 0 or self._used_bytes + size_bytes <= self._budget_bytes

    def _take(self, size_bytes: int) -> bytearray:
        self._used_bytes += size_bytes
        for index, storage in enumerate(self._idle):
            if len(storage) == size_bytes:
                return self._idle.pop(index)
        self._make_way_for(size_bytes)
        self._trim()
        return bytearray(size_bytes)

    def _make_way_for(self, size_bytes: int) -> None:
        """Let go of as many bytes of idle buffers as a new one takes, the oldest first."""
        while self._idle and size_bytes > 0:
            size_bytes -= len(self._idle.pop(0))

    def _trim(self) -> None:
        while self._idle and self._used_bytes + self.idle_bytes > self._budget_bytes:
            self._idle.pop(0)
