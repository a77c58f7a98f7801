"""What happens during a push, as frozen events, and who may watch.

An observer is called on the loop of its `Client`, between two steps of a push: it must be quick, and an error it raises is logged
once and otherwise ignored. Every event carries the id of the push it belongs to, which is also the deployment's label
``aiobaseten-push-id``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import attrs

logger = logging.getLogger("aiobaseten")


@attrs.frozen(kw_only=True)
class Event:
    """The root of all events. `push_id` is empty for a call that belongs to no push, such as `Client.upload`."""

    push_id: str = ""


@attrs.frozen(kw_only=True)
class PushStarted(Event):
    """The source was read and is valid.

    `name` is the model's name, or where a push goes by id and its config names no model, what the source is called. `size_bytes` is
    None for a stream of unknown length.
    """

    name: str
    size_bytes: int | None


@attrs.frozen(kw_only=True)
class Prepared(Event):
    """The service took the push. `bucket` and `key` are None when no upload is needed."""

    bucket: str | None
    key: str | None


@attrs.frozen(kw_only=True)
class UploadStarted(Event):
    """Bytes are about to leave.

    `part_size_bytes` is None for a single PutObject, and that of the first parts where the length is not known; there `parts` is
    None.
    """

    key: str
    size_bytes: int | None
    part_size_bytes: int | None
    parts: int | None


@attrs.frozen(kw_only=True)
class UploadResumed(Event):
    """The upload goes on where an earlier attempt has left it: the store has so many parts and bytes already."""

    key: str
    parts: int
    size_bytes: int


@attrs.frozen(kw_only=True)
class PartUploaded(Event):
    """The store has taken a part, or the whole archive as one (`part_number` 1)."""

    part_number: int
    size_bytes: int


@attrs.frozen(kw_only=True)
class UploadRestarted(Event):
    """The upload starts over: new credentials came with a new key, or what an earlier attempt had left is gone.

    Bytes counted so far do not count any more.
    """

    key: str


@attrs.frozen(kw_only=True)
class UploadCompleted(Event):
    """The object is complete. `verified` says whether the store confirmed its checksum."""

    key: str
    size_bytes: int
    parts: int
    verified: bool


@attrs.frozen(kw_only=True)
class UploadAborted(Event):
    """A multipart upload was given up. `error` is set where the store refused the abort; its parts may then be billed."""

    key: str
    upload_id: str
    error: str | None


@attrs.frozen(kw_only=True)
class Retrying(Event):
    """A call failed in passing and is repeated after `delay_s` seconds. `attempt` counts the tries made."""

    operation: str
    attempt: int
    delay_s: float
    error: str


@attrs.frozen(kw_only=True)
class CredentialsRenewed(Event):
    """The scoped credentials had expired and prepare gave new ones. With `same_key` the upload goes on where it was."""

    same_key: bool


@attrs.frozen(kw_only=True)
class CommitStarted(Event):
    """The commit is about to be sent."""

    model_id: str | None
    name: str | None


@attrs.frozen(kw_only=True)
class Reconciling(Event):
    """The commit's answer was lost; its deployment is being looked for by `push_id`."""

    error: str


@attrs.frozen(kw_only=True)
class Committed(Event):
    """The deployment exists."""

    model_id: str
    deployment_id: str


@attrs.frozen(kw_only=True)
class PushFailed(Event):
    """The push ended with an error."""

    error: str


@attrs.frozen(kw_only=True)
class StatusChanged(Event):
    """A deployment that is waited for has a new status."""

    model_id: str
    deployment_id: str
    status: str


class Observer(Protocol):
    """Anything that can be called with an event."""

    def __call__(self, event: Event, /) -> object: ...


class Emitter:
    """Calls an observer so that it can never break a push."""

    def __init__(self, observer: Observer | None) -> None:
        self._observer = observer
        self._failure_logged = False

    def __call__(self, event: Event) -> None:
        if self._observer is None:
            return
        try:
            self._observer(event)
        except Exception:
            if not self._failure_logged:
                self._failure_logged = True
                logger.exception("the observer raised on %s; its further errors are not logged", type(event).__name__)


def retry_reporter(emit: Emitter, push_id: str, operation: str) -> Callable[[BaseException, int, float], None]:
    """A callback for `aiobaseten.retry.retrying` that tells each repetition as a `Retrying` event."""

    def report(error: BaseException, attempt: int, delay_s: float) -> None:
        emit(Retrying(push_id=push_id, operation=operation, attempt=attempt, delay_s=delay_s, error=str(error)))

    return report
