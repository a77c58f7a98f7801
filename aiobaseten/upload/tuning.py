"""How many connections uploads use at once, found while they run. Pure: the engine says what it sees, and when.

The idea is that of performance-oriented congestion control (Dong et al., "PCC", NSDI 2015), with connections in place of a sending
rate: double as TCP's slow start does while that clearly pays; then try some more or some fewer now and then, and keep what a
measurement shows to be better. A number n that carries r bytes/s is worth ``r / n**price``, so that connections which bring next to
nothing are given up. Only an answer such as SlowDown lowers the number without a measurement, multiplicatively, as AIMD does.
Latency has no rule of its own: with n connections always busy, parts that take longer and a rate that falls are one thing. Where
the processors are what holds uploads back, more are not tried: they would only keep the caller's own work waiting.
"""

from __future__ import annotations

import math
from statistics import median

import attrs

from aiobaseten.errors import ConfigurationError

GROWTH, MORE, FEWER = 2, 1.5, 0.75
"""The step of a ramp, and of probes up and down."""
GROWTH_OF_SLOW, SLOW_PART_S = 4, 0.5
"""Where parts take longer than this, so does each look: fewer and larger steps then get there in time."""
CLEARLY, SOME_GROWTH = 0.35, 1.2
"""The share of its promise that a ramp's step must bring to go on, and the growth it must bring to be kept as the last one."""
PRICE_OF_MORE, PRICE_OF_FEWER = 0.15, 0.05
BACK_OFF, SMALL_STEP = 0.75, 9 / 8

SETTLE_S = 0.1
"""New connections hand their first slices to the kernel at once: that is no throughput, and not counted."""
SAMPLE_S, SAMPLE_BYTES = 0.25, 300 * 1024
"""A sample that has neither is about how slices fall, and is made longer."""
GLIMPSE_SAMPLES = 3
BUSY_SHARE = 0.25
"""Of the host's processors, taken by the threads that send. The rest of an upload needs as much again, and so does its host."""
HALF_LOOK_S, LOOK_S, LONG_LOOK_S, LONGEST_LOOK_S = 0.5, 1.0, 2.0, 10.0
FIRST_UP_S, FIRST_DOWN_S, FIRST_QUIET_S = 1.0, 4.0, 1.5
LONGEST_UP_S, LONGEST_DOWN_S, LONGEST_QUIET_S = 4.0, 32.0, 32.0


@attrs.frozen
class _Sample:
    seconds: float
    size_bytes: int
    cpu_s: float

    def __add__(self, other: _Sample) -> _Sample:
        return _Sample(self.seconds + other.seconds, self.size_bytes + other.size_bytes, self.cpu_s + other.cpu_s)

    @property
    def rate(self) -> float:
        return self.size_bytes / self.seconds


class ConnectionTuner:
    """Says how many connections may be in use, for all uploads of a client together. All times are seconds of one monotonic clock.

    :param start: the number to begin with, unless `at_most` is smaller
    :param at_most: the most it ever says, such as the parts that fit into the memory budget
    :param processors: of the host
    :raises ConfigurationError: when `start` or `at_most` is below 1
    """

    def __init__(self, *, start: int = 4, at_most: int, processors: int) -> None:
        if min(start, at_most) < 1:
            raise ConfigurationError(f"start and at_most must be at least 1, not {start} and {at_most}")
        self._at_most = at_most
        self._processors = processors
        self._limit = self._kept = min(start, at_most)
        """The same, unless another number than the one that is kept is being tried."""
        self._kept_rate = 0.0
        self._ramping = True
        self._begun_s = 0.0
        self._up_wait_s, self._down_wait_s, self._quiet_s = FIRST_UP_S, FIRST_DOWN_S, FIRST_QUIET_S
        self._up_at_s = self._down_at_s = self._settled_s = self._pushed_back_s = -math.inf
        self._refused_at: int | None = None
        self._part_s: float | None = None
        self._seen: tuple[float, int, float] | None = None
        self._samples: list[_Sample] = []

    @property
    def limit(self) -> int:
        """How many connections may be in use now."""
        return self._limit

    def part_sent(self, *, duration_s: float) -> None:
        """A part was answered, so long after it was begun. Parts that take long need longer measurements."""
        self._part_s = duration_s if self._part_s is None else 0.8 * self._part_s + 0.2 * duration_s

    def pushed_back(self, *, now_s: float) -> int:
        """The store asked for less (SlowDown, 503) or timed out. Of several in a second one counts. Returns the new limit."""
        if now_s >= self._pushed_back_s + 1:
            self._pushed_back_s, self._refused_at, self._ramping = now_s, self._limit, False
            if self._limit <= self._kept:
                self._kept = max(1, int(self._limit * BACK_OFF))
            self._up_at_s = self._down_at_s = now_s + self._quiet_s
            self._quiet_s = min(LONGEST_QUIET_S, 2 * self._quiet_s)
            self._move(self._kept, now_s)
        return self._limit

    def observe(self, *, now_s: float, sent_bytes: int, cpu_s: float, in_use: int, wanted: bool) -> int:
        """Take note of how things go, about every 100 ms while uploads run. Returns the new limit.

        :param sent_bytes: handed to sockets so far, by all uploads since the client began
        :param cpu_s: CPU seconds that went into sending them
        :param in_use: connections that carry a part now
        :param wanted: whether more than the limit would have been used since the last call; a low rate says nothing otherwise
        """
        if self._seen is None:
            self._begun_s = now_s
        seen_s, seen_bytes, seen_cpu_s = self._seen or (now_s, sent_bytes, cpu_s)
        self._seen = (now_s, sent_bytes, cpu_s)
        if not wanted or in_use < 0.75 * self._limit or not 0 < now_s - seen_s < LOOK_S:
            self._move(self._limit, now_s)
        elif in_use > 1.125 * self._limit:
            self._samples.clear()  # Parts from before the limit was lowered are still on their way.
        elif seen_s >= self._settled_s:
            sample = _Sample(now_s - seen_s, sent_bytes - seen_bytes, cpu_s - seen_cpu_s)
            if self._samples and self._samples[-1].seconds < SAMPLE_S and self._samples[-1].size_bytes < SAMPLE_BYTES:
                sample += self._samples.pop()
            self._samples.append(sample)
            self._judge(now_s)
        return self._limit

    def _judge(self, now_s: float) -> None:
        rate = self._all.rate
        if self._ramping:
            self._judge_ramp(now_s, rate)
        elif self._limit > self._kept:
            self._judge_more(now_s, rate)
        elif self._limit < self._kept:
            self._judge_fewer(now_s, rate)
        elif self._looked(LOOK_S):
            self._kept_rate = rate
            if self._kept < self._at_most and now_s >= self._up_at_s and not self._processors_are_busy:
                self._move(self._more(MORE), now_s)
            elif self._kept > 1 and now_s >= self._down_at_s:
                self._move(min(self._kept - 1, round(self._kept * FEWER)), now_s)
            elif self._looked(2 * LONG_LOOK_S):
                del self._samples[: len(self._samples) // 2]

    def _judge_ramp(self, now_s: float, rate: float) -> None:
        recent = self._samples[-GLIMPSE_SAMPLES:]
        # The median leaves out the moment in which a connection fills its send buffer.
        glimpse = median(sample.rate for sample in recent) if len(recent) == GLIMPSE_SAMPLES else 0.0
        best = max(glimpse, rate if self._looked(HALF_LOOK_S) else 0.0)
        if self._limit == self._kept:
            if glimpse or self._looked(LOOK_S):
                busy = self._processors_are_busy
                self._keep(glimpse or rate)
                if busy:
                    self._stay(now_s)
                else:
                    self._ramp(now_s)
        elif best and best >= self._kept_rate * (1 + CLEARLY * (self._limit / self._kept - 1)):
            self._keep(best)
            self._ramp(now_s)
        elif self._looked(LOOK_S):
            if rate >= self._kept_rate * SOME_GROWTH:
                self._keep(rate)
            self._stay(now_s)

    def _judge_more(self, now_s: float, rate: float) -> None:
        step = self._limit / self._kept
        if self._looked(LOOK_S) and rate >= self._kept_rate * (1 + step) / 2:
            self._keep(rate)
            self._ramp(now_s)
        elif self._looked(LONG_LOOK_S) and rate >= self._kept_rate * step**PRICE_OF_MORE:
            self._keep(rate)
            self._stay(now_s)
        elif self._looked(LONG_LOOK_S):
            self._up_wait_s = min(LONGEST_UP_S, 2 * self._up_wait_s)
            self._up_at_s = now_s + self._pace * self._up_wait_s
            self._move(self._kept, now_s)

    def _judge_fewer(self, now_s: float, rate: float) -> None:
        step = self._limit / self._kept
        needed = step**PRICE_OF_FEWER if self._looked(LONG_LOOK_S) else (1 + step) / 2
        if self._looked(HALF_LOOK_S) and rate < self._kept_rate * needed:
            self._down_wait_s = min(LONGEST_DOWN_S, 2 * self._down_wait_s)
            self._down_at_s = now_s + self._pace * self._down_wait_s
            self._move(self._kept, now_s)
        elif self._looked(LONG_LOOK_S):
            self._keep(rate)
            self._down_wait_s, self._down_at_s = FIRST_DOWN_S, now_s + self._pace * FIRST_DOWN_S

    @property
    def _pace(self) -> float:
        return max(1.0, min(LONGEST_LOOK_S, self._part_s or LONGEST_LOOK_S))

    def _looked(self, at_least_s: float) -> bool:
        """Whether samples span that time, and what a part takes: in that time each send buffer fills as often as it drains."""
        part_s = min(LONGEST_LOOK_S, self._part_s or LONGEST_LOOK_S)
        return self._all.seconds >= max(at_least_s, part_s) - 1e-6

    @property
    def _all(self) -> _Sample:
        return sum(self._samples, _Sample(0.0, 0, 0.0))

    @property
    def _processors_are_busy(self) -> bool:
        everything = self._all
        return everything.cpu_s >= BUSY_SHARE * self._processors * everything.seconds

    def _ramp(self, now_s: float) -> None:
        self._ramping = self._kept < self._at_most
        if self._ramping:
            at_least_s = now_s - self._begun_s if self._part_s is None else self._part_s
            self._move(self._more(GROWTH_OF_SLOW if at_least_s > SLOW_PART_S else GROWTH), now_s)
        else:
            self._stay(now_s, FIRST_DOWN_S * 2)

    def _more(self, factor: float) -> int:
        """The next number up. Where the store has refused some number, half the way there, but on by a small step in any case."""
        goal = round(self._kept * factor)
        if self._refused_at is not None:
            goal = min(self._kept * GROWTH, max((self._kept + self._refused_at) // 2, int(self._kept * SMALL_STEP)))
        return min(self._at_most, max(self._kept + 1, goal))

    def _keep(self, rate: float) -> None:
        self._kept, self._kept_rate = self._limit, rate
        self._samples.clear()
        if self._refused_at is not None and self._kept >= self._refused_at:
            self._refused_at = None

    def _stay(self, now_s: float, down_wait_s: float = FIRST_DOWN_S) -> None:
        """With the number that is kept, and probe from there."""
        self._ramping = False
        self._up_wait_s, self._down_wait_s = FIRST_UP_S, down_wait_s
        self._up_at_s = now_s + self._pace * self._up_wait_s
        self._down_at_s = now_s + self._pace * self._down_wait_s
        self._move(self._kept, now_s)

    def _move(self, limit: int, now_s: float) -> None:
        self._limit = limit
        self._samples.clear()
        self._settled_s = now_s + SETTLE_S
