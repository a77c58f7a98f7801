"""How many connections and how much memory the uploads of a client may use at once: fixed by options, or found while they run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import anyio

from aiobaseten.errors import UploadError
from aiobaseten.options import DEFAULT_MEMORY_BUDGET_BYTES, MiB, TransferOptions
from aiobaseten.retry import Clock
from aiobaseten.upload.budget import BufferBudget
from aiobaseten.upload.plan import DEFAULT_PART_SIZE_BYTES
from aiobaseten.upload.transport import Sent
from aiobaseten.upload.tuning import ConnectionTuner

MOST_AT_FIRST = 4
MOST = 64
WHOLE_ARCHIVES = 32
"""Single PutObjects at once where the number is chosen: they wait for the store more than they send."""
MOST_RAISED_BUDGET_BYTES = 1024 * MiB
LOOK_EVERY_S = 0.1
FAST_PART_S = 0.25


class Connections:
    """The bounds that all uploads of a client share.

    :param sent: tells what was sent so far
    :ivar for_parts: a slot for each part that may travel
    :ivar for_archives: a slot for each archive that may travel in a single request
    :ivar budget: the memory for both
    """

    def __init__(self, options: TransferOptions, clock: Clock, sent: Callable[[], Sent]) -> None:
        self._clock = clock
        self._sent = sent
        self._budget_bytes = options.memory_budget_bytes
        self._may_raise_budget = options.max_connections is None and options.memory_budget_bytes == DEFAULT_MEMORY_BUDGET_BYTES
        self._part_size_bytes = options.part_size_bytes or DEFAULT_PART_SIZE_BYTES
        in_memory = MOST if self._may_raise_budget else max(1, min(MOST, self._budget_bytes // self._part_size_bytes))
        processors = usable_processors()
        start = min(MOST_AT_FIRST, processors + 1)
        self._tuner = None
        if options.max_connections is None:
            self._tuner = ConnectionTuner(start=start, at_most=in_memory, processors=processors)
        self._part_s: float | None = None
        self._looked_s = -math.inf
        self._wanted = False
        self.for_parts = anyio.CapacityLimiter(self._tuner.limit if self._tuner else options.max_connections or start)
        self.for_archives = self.for_parts if self._tuner is None else anyio.CapacityLimiter(WHOLE_ARCHIVES)
        self.budget = BufferBudget(options.memory_budget_bytes)

    @property
    def limit(self) -> int:
        """How many parts may travel now."""
        return int(self.for_parts.total_tokens)

    @property
    def are_fast(self) -> bool:
        """Whether the last part was sent in no time."""
        return self._part_s is not None and self._part_s <= FAST_PART_S

    def expect_parts_of(self, size_bytes: int) -> None:
        """An upload with parts of this size begins."""
        self._part_size_bytes = max(self._part_size_bytes, size_bytes)
        self._resize_budget()

    def part_sent(self, duration_s: float) -> None:
        """A part was taken, so long after it was begun."""
        self._part_s = duration_s
        if self._tuner is not None:
            self._tuner.part_sent(duration_s=duration_s)

    def failed(self, error: BaseException) -> None:
        """A request failed in passing. Fewer connections, if that is what the store asks for."""
        asked_for_less = isinstance(error, UploadError) and (error.status in (429, 503) or error.code == "RequestTimeout")
        if self._tuner is not None and (asked_for_less or isinstance(error.__cause__, TimeoutError)):
            self._set(self._tuner.pushed_back(now_s=self._clock.monotonic()))

    def look(self, *, wanted: bool) -> None:
        """See how things go, every `LOOK_EVERY_S` while parts travel.

        :param wanted: whether the upload has more parts than may travel now
        """
        self._wanted |= wanted
        now_s = self._clock.monotonic()
        if self._tuner is None or now_s < self._looked_s + LOOK_EVERY_S / 2:
            return
        self._looked_s = now_s
        sent = self._sent()
        limit = self._tuner.observe(
            now_s=now_s,
            sent_bytes=sent.size_bytes,
            cpu_s=sent.cpu_s,
            in_use=int(self.for_parts.borrowed_tokens),
            wanted=self._wanted,
        )
        self._set(limit)
        self._wanted = False

    def _set(self, limit: int) -> None:
        self.for_parts.total_tokens = limit
        self._resize_budget()

    def _resize_budget(self) -> None:
        if self._may_raise_budget:
            needed_bytes = min(self.limit * self._part_size_bytes, MOST_RAISED_BUDGET_BYTES)
            self.budget.resize(max(self._budget_bytes, needed_bytes))


def usable_processors() -> int:
    """How many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
