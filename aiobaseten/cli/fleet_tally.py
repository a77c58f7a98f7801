"""Counts what a run of many pushes has done: what its displays show, without how they show it.

An event changes a few numbers and nothing more, since thousands come in a second. Displays read the numbers when they draw, from a
thread of their own too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs

from aiobaseten.bulk.report import PushOutcome
from aiobaseten.events import (
    CommitStarted,
    Committed,
    Event,
    PartUploaded,
    Prepared,
    PushFailed,
    PushStarted,
    Reconciling,
    Retrying,
    UploadCompleted,
    UploadRestarted,
    UploadResumed,
    UploadStarted,
)

PACE_WINDOW_S = 10.0
"""A rate is that of so many seconds."""


@attrs.define(kw_only=True, eq=False)
class Flight:
    """A push that is under way.

    :ivar size_bytes: of its archive; None where that is not known yet
    :ivar sent_bytes: those of them that the store has, as far as they still count
    :ivar step: what it is doing, in a word or two
    """

    name: str
    size_bytes: int | None
    sent_bytes: int = 0
    step: str = "prepare"


class Pace:
    """How fast a number grows, over the last `PACE_WINDOW_S` seconds for which it was read."""

    def __init__(self, now_s: float) -> None:
        self._samples: deque[tuple[float, int]] = deque([(now_s, 0)])

    def per_s(self, now_s: float, value: int) -> float:
        """Take a reading of the number, and give its growth in a second."""
        samples = self._samples
        samples.append((now_s, value))
        while len(samples) > 2 and samples[1][0] <= now_s - PACE_WINDOW_S:
            samples.popleft()
        then_s, before = samples[0]
        return (value - before) / (now_s - then_s) if now_s > then_s else 0.0


class FleetTally:
    """The numbers of a run.

    :param total_pushes: how many there will be; None where the run does not know yet
    :param total_bytes: of all archives together; None likewise

    :ivar failed: pushes that ended with an error
    :ivar skipped: pushes that an earlier run had done
    :ivar succeeded: pushes that this run has done
    :ivar retries: calls that were repeated
    :ivar sent_bytes: of archives, as far as they count: what starts over does not, nor what belongs to a push that failed
    :ivar taken_bytes: all that the store took from this run, for the rate
    :ivar in_flight: by push id, the one that began first at the front
    """

    def __init__(self, total_pushes: int | None, total_bytes: int | None) -> None:
        self.total_pushes = total_pushes
        self.failed = self.skipped = self.succeeded = self.retries = 0
        self.sent_bytes = self.taken_bytes = 0
        self.in_flight: dict[str, Flight] = {}
        self._total_bytes = total_bytes
        self._given_up_bytes = 0
        self._takers: dict[type[Event], Callable[..., None]] = {
            PushStarted: self._started,
            Prepared: self._prepared,
            UploadStarted: self._upload_started,
            PartUploaded: self._part_uploaded,
            UploadRestarted: self._upload_restarted,
            UploadResumed: self._upload_resumed,
            UploadCompleted: self._upload_completed,
            CommitStarted: self._commit_started,
            Reconciling: self._reconciling,
            Committed: self._committed,
            Retrying: self._retrying,
            PushFailed: self._attempt_failed,
        }

    @property
    def done(self) -> int:
        """Pushes that need no more doing."""
        return self.succeeded + self.skipped

    @property
    def ended(self) -> int:
        return self.done + self.failed

    @property
    def total_bytes(self) -> int | None:
        """What there is to send, without the pushes that have failed."""
        return None if self._total_bytes is None else max(self._total_bytes - self._given_up_bytes, self.sent_bytes)

    def left_s(self, elapsed_s: float, bytes_per_s: float) -> float | None:
        """How long the rest will take: by its bytes where these are known and not yet all sent, else by its number."""
        if self.total_bytes is not None and self.total_bytes > self.sent_bytes:
            return (self.total_bytes - self.sent_bytes) / bytes_per_s if bytes_per_s > 0 else None
        worked = self.succeeded + self.failed
        if self.total_pushes is None or not worked:
            return None
        return max(self.total_pushes - self.ended, 0) * elapsed_s / worked

    def take(self, event: Event) -> None:
        """Count an event of a push."""
        taker = self._takers.get(type(event))
        if taker is not None:
            taker(event)

    def end(self, outcome: PushOutcome) -> None:
        """Count a push that has ended."""
        record = outcome.record
        flight = self.in_flight.pop(record.push_id, None)
        sent = flight.sent_bytes if flight else 0
        size = record.size_bytes or (flight.size_bytes if flight else None) or 0
        if outcome.error is not None:
            self.failed += 1
            self.sent_bytes -= sent
            self._given_up_bytes += size
            return
        self.sent_bytes += size - sent
        if outcome.skipped:
            self.skipped += 1
        else:
            self.succeeded += 1

    def _started(self, event: PushStarted) -> None:
        flight = self.in_flight.get(event.push_id)
        if flight is None:
            self.in_flight[event.push_id] = Flight(name=event.name, size_bytes=event.size_bytes)
        else:
            self._recount(flight, 0)
            flight.step = "prepare"

    def _prepared(self, event: Prepared) -> None:
        self._step(event, "upload" if event.key is not None else "commit")

    def _upload_started(self, event: UploadStarted) -> None:
        self._upload_again(event, "upload")

    def _upload_restarted(self, event: UploadRestarted) -> None:
        self._upload_again(event, "upload again")

    def _upload_again(self, event: Event, step: str) -> None:
        flight = self.in_flight.get(event.push_id)
        if flight is not None:
            self._recount(flight, 0)
            flight.step = step

    def _part_uploaded(self, event: PartUploaded) -> None:
        size = event.size_bytes
        self.taken_bytes += size
        flight = self.in_flight.get(event.push_id)
        if flight is not None:
            flight.sent_bytes += size
            self.sent_bytes += size

    def _upload_resumed(self, event: UploadResumed) -> None:
        flight = self.in_flight.get(event.push_id)
        if flight is not None:
            self._recount(flight, event.size_bytes)

    def _upload_completed(self, event: UploadCompleted) -> None:
        flight = self.in_flight.get(event.push_id)
        if flight is not None:
            flight.size_bytes = event.size_bytes
            self._recount(flight, event.size_bytes)

    def _recount(self, flight: Flight, sent_bytes: int) -> None:
        self.sent_bytes += sent_bytes - flight.sent_bytes
        flight.sent_bytes = sent_bytes

    def _commit_started(self, event: CommitStarted) -> None:
        self._step(event, "commit")

    def _reconciling(self, event: Reconciling) -> None:
        self._step(event, "reconcile")

    def _committed(self, event: Committed) -> None:
        self._step(event, "wait")

    def _retrying(self, _: Retrying) -> None:
        self.retries += 1

    def _attempt_failed(self, event: PushFailed) -> None:
        self._step(event, "failed")

    def _step(self, event: Event, step: str) -> None:
        flight = self.in_flight.get(event.push_id)
        if flight is not None:
            flight.step = step
