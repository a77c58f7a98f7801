"""What became of the pushes of a run: an outcome for each as it ends, and a report of all that stays small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import attrs

from aiobaseten.push import Push, PushResult

State = Literal["committed", "active", "failed", "skipped"]


@attrs.frozen(kw_only=True)
class PushRecord:
    """One push, in as few words as a report needs. Times are seconds since the run began; None for steps that were not reached.

    :param number: its place among the pushes as the run took them, from 1
    :param name: the model's name, or where it is not known what the source is called
    :param source: the path, ``<stream>``, or the number of bytes
    :param state: ``skipped`` where an earlier run of the journal had committed it; ``active`` only in a run that waits for that
    :param attempts: how often the whole push was begun in this run
    :param size_bytes: of the archive; None where none was uploaded
    :param cause: the kind of failure, the same for failures of one kind, such as ``ServerError (status 503)``
    :param error: the failure in words
    """

    number: int
    name: str
    source: str
    push_id: str
    state: State
    attempts: int
    size_bytes: int | None = None
    model_id: str | None = None
    deployment_id: str | None = None
    began_s: float
    prepared_s: float | None = None
    uploaded_s: float | None = None
    committed_s: float | None = None
    ended_s: float
    cause: str | None = None
    error: str | None = None


@attrs.frozen(kw_only=True)
class PushOutcome:
    """A push that has ended.

    :param push: as it was given
    :param result: what it made, in this run or, where `skipped`, in an earlier one; None where it made nothing
    :param error: why it failed, a `BasetenError` or what the push's own stream raised; with a `result` where the deployment was
        made and did not become active
    :param skipped: whether an earlier run of the journal had done it already
    """

    push: Push
    result: PushResult | None = None
    error: Exception | None = None
    skipped: bool = False
    record: PushRecord

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def name(self) -> str:
        """The model's name, or where it is not known what the source is called."""
        return self.record.name


@attrs.frozen(kw_only=True)
class Throughput:
    """Bytes of archives that the store took, in each stretch of `bucket_s` seconds from the run's beginning on."""

    bucket_s: float
    buckets: tuple[int, ...]


@attrs.frozen(kw_only=True)
class BulkReport:
    """A run of many pushes.

    :param records: of the pushes that have ended, in the order in which they did
    :param stopped_by: the failure that ended the run before all pushes were begun; None where it was not ended so
    :param interrupted: how many pushes were begun and then stopped, and so have no outcome
    """

    started_at: datetime
    duration_s: float
    records: Sequence[PushRecord]
    throughput: Throughput
    stopped_by: Exception | None = None
    interrupted: int = 0

    @property
    def total(self) -> int:
        """How many pushes have ended."""
        return len(self.records)

    @property
    def succeeded(self) -> int:
        """How many were committed in this run."""
        return sum(record.state in ("committed", "active") for record in self.records)

    @property
    def skipped(self) -> int:
        """How many an earlier run had committed."""
        return sum(record.state == "skipped" for record in self.records)

    @property
    def failures(self) -> list[PushRecord]:
        """Those that failed, in the order in which they did."""
        return [record for record in self.records if record.state == "failed"]

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def failures_by_cause(self) -> Counter[str]:
        """How many pushes failed for each cause."""
        return Counter(record.cause or "" for record in self.failures)

    @property
    def size_bytes(self) -> int:
        """Bytes of the archives that were uploaded in this run, to the end."""
        return sum(record.size_bytes or 0 for record in self.records if record.uploaded_s is not None and record.state != "failed")

    @property
    def ok(self) -> bool:
        """Whether every push that was taken is deployed."""
        return not self.failed and not self.interrupted and self.stopped_by is None


def cause_of(error: BaseException) -> str:
    """The kind of a failure, without what differs from push to push."""
    code = getattr(error, "code", None)
    status = getattr(error, "status", None)
    detail = code or (f"status {status}" if status is not None else None)
    return f"{type(error).__name__} ({detail})" if detail else type(error).__name__
