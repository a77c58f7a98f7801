"""Time that tests move: nothing here waits for real."""

from __future__ import annotations

import heapq
import itertools

import anyio
import anyio.lowlevel

from aiobaseten.retry import Clock


class FakeClock:
    """A clock for what takes an `aiobaseten.retry.Clock`: pass its `clock`.

    Each sleep is recorded in `sleeps_s`. It ends at once, with the time moved on by as much; with `held` it ends when `advance` has
    moved the time that far.
    """

    def __init__(self, now_s: float = 1000.0, *, held: bool = False) -> None:
        self.now_s = now_s
        self.sleeps_s: list[float] = []
        self.clock = Clock(monotonic=lambda: self.now_s, time=lambda: 1_700_000_000 + self.now_s, sleep=self._sleep)
        self._held = held
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, anyio.Event]] = []

    @property
    def slept_s(self) -> float:
        return sum(self.sleeps_s)

    async def advance(self, seconds: float) -> None:
        """Move the time, waking each sleeper at its own moment, and let each go on until it waits again."""
        end_s = self.now_s + seconds
        await self._let_others_run()
        while self._sleepers and self._sleepers[0][0] <= end_s:
            due_s, _, woken = heapq.heappop(self._sleepers)
            self.now_s = max(self.now_s, due_s)
            woken.set()
            await self._let_others_run()
        self.now_s = end_s

    async def _let_others_run(self) -> None:
        for _ in range(20):
            await anyio.lowlevel.checkpoint()

    async def _sleep(self, seconds: float) -> None:
        assert seconds >= 0, seconds
        self.sleeps_s.append(seconds)
        if not self._held:
            self.now_s += seconds
            await anyio.lowlevel.checkpoint()
            return
        woken = anyio.Event()
        heapq.heappush(self._sleepers, (self.now_s + seconds, next(self._order), woken))
        await woken.wait()
