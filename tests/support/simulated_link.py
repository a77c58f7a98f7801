"""Links to an object store, in simulated time: how many bytes arrive over a fixed number of connections, or over as many as a tuner
says.

Time goes in ticks. A connection opens (three round trips), takes a part, hands it to its kernel's send buffer as far as that has
room, delivers at its share of the link, waits for the answer, and takes the next part. What is handed over is what a client can
count; what is delivered is what it gets done.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

KiB = 1024
MiB = 1024 * KiB

TICK_S = 0.02
TICKS_PER_OBSERVATION = 5
NOISE_WINDOW_S = 0.5
OPENING_ROUND_TRIPS = 3
BACKOFF_S = 0.5
SLICE_BYTES = 256 * KiB


class Tuner(Protocol):
    """The part of `aiobaseten.upload.tuning.ConnectionTuner` that an upload drives."""

    @property
    def limit(self) -> int: ...

    def observe(self, *, now_s: float, sent_bytes: int, cpu_s: float, in_use: int, wanted: bool) -> int: ...

    def part_sent(self, *, duration_s: float) -> None: ...

    def pushed_back(self, *, now_s: float) -> int: ...


@attrs.frozen(kw_only=True)
class Link:
    """What lies between a host and a store.

    :param connection_bytes_per_s: the most that one connection carries
    :param total_bytes_per_s: the most that all carry together
    :param answer_s: between the last byte of a part and its answer, beside the round trip
    :param send_buffer_bytes: what a connection's kernel takes at once
    :param saturated_by: connections that keep the processors busy; each one more costs `cost_per_connection` of the whole
    :param slow_down_above: parts that begin while more than this many are under way are refused with a SlowDown
    :param noise: every half second the link is faster or slower by up to this share
    :param changes: from when on (seconds) `total_bytes_per_s` is multiplied by what
    """

    connection_bytes_per_s: float
    total_bytes_per_s: float
    round_trip_s: float = 0.04
    answer_s: float = 0.0
    part_bytes: int = 8 * MiB
    send_buffer_bytes: int = 2 * MiB
    saturated_by: int = 1000
    cost_per_connection: float = 0.0
    slow_down_above: int = 1000
    noise: float = 0.2
    changes: tuple[tuple[float, float], ...] = ()

    def total_at(self, now_s: float, in_use: int) -> float:
        factor = 1.0
        for from_s, changed in self.changes:
            if now_s >= from_s:
                factor = changed
        return self.total_bytes_per_s * factor / (1 + self.cost_per_connection * max(0, in_use - self.saturated_by))


@attrs.define
class _Connection:
    part: bool = False
    refused: bool = False
    left_bytes: float = 0.0
    """Of its part, not yet delivered."""
    began_s: float = 0.0
    ready_s: float = 0.0
    """When it may go on: opened, answered, or tired of waiting after a refusal."""
    opened: bool = False


@attrs.frozen(kw_only=True)
class Run:
    """How a simulated upload went.

    :param delivered_bytes: by the end of each second
    :param limits: the tuner's limit after each observation, with its time in seconds
    :param refused: parts that got a SlowDown
    """

    delivered_bytes: Sequence[float]
    limits: Sequence[tuple[float, int]]
    refused: int

    def by(self, seconds: int) -> float:
        """Bytes delivered within so many seconds."""
        return self.delivered_bytes[seconds - 1]

    def limit_at(self, seconds: float) -> int:
        """The limit that was in force then."""
        return [limit for at_s, limit in self.limits if at_s <= seconds][-1]


class FixedNumber:
    """A tuner that tunes nothing."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def observe(self, *, now_s: float, sent_bytes: int, cpu_s: float, in_use: int, wanted: bool) -> int:
        return self.limit

    def part_sent(self, *, duration_s: float) -> None:
        pass

    def pushed_back(self, *, now_s: float) -> int:
        return self.limit


class _Upload:
    """One upload without end over one link."""

    def __init__(self, link: Link, tuner: Tuner, seed: int) -> None:
        self.link = link
        self.tuner = tuner
        self.chance = random.Random(seed)
        self.connections: list[_Connection] = []
        self.in_use = 0
        self.refused = 0
        self.delivered_bytes = 0.0
        self.handed_bytes = 0.0
        self._noise = 1.0
        self._noise_ends_s = 0.0

    def tick(self, now_s: float, wanted: int) -> None:
        """Let time pass from `now_s` until a tick later."""
        if now_s >= self._noise_ends_s:
            self._noise = self.chance.uniform(1 - self.link.noise, 1 + self.link.noise)
            self._noise_ends_s += NOISE_WINDOW_S
        end_s = now_s + TICK_S
        rate = self._share(now_s, end_s, wanted)
        for connection in self.connections:
            at_s = max(now_s, connection.ready_s)
            while at_s < end_s:
                if connection.part and connection.left_bytes <= 0:
                    self._answered(connection, at_s)
                if not connection.part:
                    if self.in_use >= min(self.tuner.limit, wanted):
                        break
                    self._begin(connection, at_s)
                else:
                    self._deliver(connection, at_s, rate, end_s)
                at_s = max(at_s, connection.ready_s)

    def _share(self, now_s: float, end_s: float, wanted: int) -> float:
        """Bytes per second for each connection that has something to deliver before `end_s`."""
        allowed = min(self.tuner.limit, wanted)
        self.connections.extend(_Connection() for _ in range(allowed - len(self.connections)))
        ready = [c for c in self.connections if c.part and c.ready_s < end_s]
        moving = sum(c.left_bytes > 0 for c in ready)
        answered = len(ready) - moving
        beginning = max(0, allowed - self.in_use + answered)
        fair = self.link.total_at(now_s, self.in_use) / max(1, moving + beginning)
        return min(self.link.connection_bytes_per_s, fair) * self._noise

    def _begin(self, connection: _Connection, at_s: float) -> None:
        link = self.link
        self.in_use += 1
        connection.part = True
        connection.began_s = at_s
        connection.ready_s = at_s + (0 if connection.opened else OPENING_ROUND_TRIPS * link.round_trip_s)
        connection.opened = True
        connection.refused = self.in_use > link.slow_down_above
        if connection.refused:
            self.refused += 1
            connection.ready_s += link.round_trip_s + self.chance.uniform(0, 2 * BACKOFF_S)
            self.tuner.pushed_back(now_s=at_s)
        else:
            connection.left_bytes = link.part_bytes

    def _deliver(self, connection: _Connection, at_s: float, rate: float, end_s: float) -> None:
        link = self.link
        before = connection.left_bytes
        if before == link.part_bytes:
            self.handed_bytes += min(link.part_bytes, link.send_buffer_bytes)
        after = max(0.0, before - rate * (end_s - at_s))
        connection.left_bytes = after
        self.delivered_bytes += before - after
        self.handed_bytes += max(0.0, before - link.send_buffer_bytes) - max(0.0, after - link.send_buffer_bytes)
        connection.ready_s = end_s
        if after == 0:
            answer_s = link.round_trip_s * self.chance.uniform(0.9, 1.3) + link.answer_s * self.chance.uniform(0.8, 1.2)
            connection.ready_s = at_s + before / rate + answer_s

    def _answered(self, connection: _Connection, at_s: float) -> None:
        connection.part = False
        self.in_use -= 1
        if not connection.refused:
            self.tuner.part_sent(duration_s=at_s - connection.began_s)


def upload(link: Link, tuner: Tuner, *, seconds: int, seed: int = 0, demand: Callable[[float], int] = lambda _: 1000) -> Run:
    """Upload without end for so many simulated seconds.

    :param demand: how many parts there are to send at once, by time in seconds
    """
    run = _Upload(link, tuner, seed)
    by_second: list[float] = []
    limits: list[tuple[float, int]] = [(0.0, tuner.limit)]
    for tick in range(1, round(seconds / TICK_S) + 1):
        began_s, now_s = (tick - 1) * TICK_S, tick * TICK_S
        run.tick(began_s, demand(began_s))
        if tick % TICKS_PER_OBSERVATION == 0:
            sent_bytes = int(run.handed_bytes) // SLICE_BYTES * SLICE_BYTES
            wanted = demand(began_s) > tuner.limit
            limits.append((now_s, tuner.observe(now_s=now_s, sent_bytes=sent_bytes, cpu_s=0.0, in_use=run.in_use, wanted=wanted)))
        if tick % round(1 / TICK_S) == 0:
            by_second.append(run.delivered_bytes)
    return Run(delivered_bytes=by_second, limits=limits, refused=run.refused)
