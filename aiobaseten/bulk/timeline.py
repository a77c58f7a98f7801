"""Watches a run: when each push reached which step, and how many bytes went out when."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import attrs

from aiobaseten.bulk.report import PushRecord, State, Throughput, cause_of
from aiobaseten.events import Committed, Event, PartUploaded, Prepared, PushStarted, UploadCompleted
from aiobaseten.ledger import Ledger

FIRST_BUCKET_S = 1.0
MOST_BUCKETS = 600


@attrs.define(kw_only=True, eq=False)
class Track:
    """How far a push is. Times are seconds since the run began."""

    number: int
    name: str
    source: str
    began_s: float
    ledger: Ledger = attrs.field(factory=Ledger)
    attempts: int = 0
    prepared_s: float | None = None
    uploaded_s: float | None = None
    committed_s: float | None = None

    def record(self, state: State, ended_s: float, error: Exception | None) -> PushRecord:
        """What a report keeps of the push."""
        created, receipt = self.ledger.created, self.ledger.receipt
        return PushRecord(
            number=self.number,
            name=created.model.name if created else self.name,
            source=self.source,
            push_id=self.ledger.push_id,
            state=state,
            attempts=self.attempts,
            size_bytes=receipt.size_bytes if receipt else None,
            model_id=created.model.id if created else None,
            deployment_id=created.deployment.id if created else None,
            began_s=self.began_s,
            prepared_s=self.prepared_s,
            uploaded_s=self.uploaded_s,
            committed_s=self.committed_s,
            ended_s=ended_s,
            cause=cause_of(error) if error else None,
            error=str(error) if error else None,
        )


class Timeline:
    """The tracks of the pushes under way, and the bytes of all. An observer of the run's events."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._began_s = monotonic()
        self._tracks: dict[str, Track] = {}
        self._bucket_s = FIRST_BUCKET_S
        self._buckets: list[int] = []

    def now_s(self) -> float:
        """Seconds since the run began."""
        return self._monotonic() - self._began_s

    @contextmanager
    def following(self, track: Track) -> Generator[None]:
        """Take the events of a push for its track."""
        push_id = track.ledger.push_id
        self._tracks[push_id] = track
        try:
            yield
        finally:
            self._tracks.pop(push_id, None)

    @property
    def throughput(self) -> Throughput:
        return Throughput(bucket_s=self._bucket_s, buckets=tuple(self._buckets))

    def __call__(self, event: Event) -> None:
        track = self._tracks.get(event.push_id)
        if track is None:
            return
        match event:
            case PushStarted():
                track.name = event.name
            case Prepared():
                track.prepared_s = self.now_s()
            case PartUploaded():
                self._add(event.size_bytes)
            case UploadCompleted():
                track.uploaded_s = self.now_s()
            case Committed():
                track.committed_s = self.now_s()
            case _:
                pass

    def _add(self, size_bytes: int) -> None:
        index = int(self.now_s() / self._bucket_s)
        while index >= MOST_BUCKETS:
            pairs = zip(self._buckets[::2], [*self._buckets[1::2], 0], strict=False)
            self._buckets, self._bucket_s, index = [sum(pair) for pair in pairs], self._bucket_s * 2, index // 2
        self._buckets.extend([0] * (index + 1 - len(self._buckets)))
        self._buckets[index] += size_bytes
