"""Every error this library raises on purpose.

::

    BasetenError
    ├── ConfigurationError        an option, key or URL that cannot work; nothing was sent
    ├── InvalidPush               a push that breaks a rule; lists every problem found
    │   ├── ArchiveError          its directory or archive cannot be used as it is
    │   └── SourceChanged         its bytes changed while they were being read
    ├── ApiError                  the service answered, and not with what was asked for
    │   ├── AuthenticationError   401, 403
    │   ├── NotFoundError         404
    │   ├── RateLimited           429
    │   └── ServerError           5xx
    ├── TransportError            no answer: DNS, connection, TLS, timeout, broken off
    ├── UploadError               the object store refused or lost the upload
    │   ├── CredentialsExpired    the scoped credentials ran out
    │   ├── UploadDenied          the scoped credentials do not allow it
    │   └── IntegrityError        what arrived is not what was sent
    ├── CommitUncertain           the commit was sent, its outcome is unknown
    ├── DeploymentFailed          the deployment ended in a failed status
    ├── DeadlineExceeded          a time limit of the caller passed
    └── JournalError              the journal of a run cannot be used

``retryable`` says whether the same call could succeed later without a change by the caller. The first error wins: clean-up that
fails after it adds a note, never a new error. All errors can be pickled. No message shows a secret, whatever it quotes.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from aiobaseten._redaction import redact


class BasetenError(Exception):
    """The root of all errors of this library."""

    retryable: bool = False

    def __init__(self, message: str = "") -> None:
        super().__init__(redact(message))

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, redact(value) if isinstance(value, str) else value)

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else ""


class ConfigurationError(BasetenError):
    """An option, key, URL or file of settings that cannot work. Raised before anything is sent."""


@attrs.frozen
class Problem:
    """One broken rule: where (a JSON path such as ``$.deployment.labels``) and what would be right."""

    path: str
    rule: str

    def __str__(self) -> str:
        return f"{self.path}: {self.rule}"


class InvalidPush(BasetenError):
    """A push that the service would refuse. Raised before anything is sent; `problems` holds every broken rule."""

    def __init__(self, message: str = "", *, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message or "; ".join(map(str, problems)))
        self.problems = tuple(Problem(redact(problem.path), redact(problem.rule)) for problem in problems)


class ArchiveError(InvalidPush):
    """A model directory or archive that cannot be used as it is. `path` names the file at fault."""

    def __init__(self, message: str = "", *, path: str | None = None, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message, problems=problems)
        self.path = path


class SourceChanged(InvalidPush):
    """A file changed or vanished after its size was taken. Push again once it is at rest."""

    retryable = True

    def __init__(self, message: str = "", *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class ApiError(BasetenError):
    """The service answered a call with an error, or with something that is not an answer to it.

    `status` is the HTTP status, `request_id` the service's own id for the call when it gave one, `retry_after_s` its advice on how
    many seconds to wait, if it gave any.
    """

    def __init__(
        self,
        message: str = "",
        *,
        status: int | None = None,
        method: str | None = None,
        path: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.method = method
        self.path = path
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        text = self.message
        if self.method and self.path:
            text = f"{self.method} {self.path}: {text}"
        details = [f"status {self.status}"] if self.status is not None else []
        if self.request_id:
            details.append(f"request id {self.request_id}")
        return f"{text} ({', '.join(details)})" if details else text


class AuthenticationError(ApiError):
    """The key was refused (401) or may not do this (403)."""


class NotFoundError(ApiError):
    """What the call named does not exist (404), or is not visible yet."""


class RateLimited(ApiError):
    """Too many requests (429)."""

    retryable = True


class ServerError(ApiError):
    """The service failed (5xx)."""

    retryable = True


class TransportError(BasetenError):
    """No answer came back. `request_sent` is False only when it is certain that the service never saw the request."""

    retryable = True

    def __init__(self, message: str = "", *, request_sent: bool = True) -> None:
        super().__init__(message)
        self.request_sent = request_sent


class UploadError(BasetenError):
    """The object store did not take the upload.

    `operation` is the S3 call (``UploadPart``), `code` the store's error code (``SlowDown``), `status` the HTTP status,
    `retry_after_s` its advice on how many seconds to wait, if it gave any.
    """

    def __init__(
        self,
        message: str = "",
        *,
        operation: str | None = None,
        code: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.operation = operation
        self.code = code
        self.status = status
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.retryable = retryable

    def __str__(self) -> str:
        details = [
            f"{name} {value}"
            for name, value in (("code", self.code), ("status", self.status), ("request id", self.request_id))
            if value
        ]
        text = f"{self.operation}: {self.message}" if self.operation else self.message
        return f"{text} ({', '.join(details)})" if details else text


class CredentialsExpired(UploadError):
    """The scoped credentials ran out. A push renews them by itself; `Client.upload` leaves that to its caller."""


class UploadDenied(UploadError):
    """The scoped credentials do not allow this call on this key."""


class IntegrityError(UploadError):
    """A checksum differs: what the store holds is not what was read."""


class CommitUncertain(BasetenError):
    """The commit was sent, no usable answer came, and no trace of it could be found in time. It is not sent again blindly.

    Look for a deployment with the label ``aiobaseten-push-id`` = `push_id` before pushing once more.
    """

    def __init__(self, message: str = "", *, push_id: str | None = None) -> None:
        super().__init__(message)
        self.push_id = push_id


class DeploymentFailed(BasetenError):
    """The deployment reached a failed status, named by `status`."""

    def __init__(
        self,
        message: str = "",
        *,
        model_id: str | None = None,
        deployment_id: str | None = None,
        status: str | None = None,
    ) -> None:
        super().__init__(message)
        self.model_id = model_id
        self.deployment_id = deployment_id
        self.status = status


class DeadlineExceeded(BasetenError):
    """A time limit that the caller set has passed. `push_id` is set where it was a push's (`TimeoutOptions.push_s`).

    Then nothing was made: a push whose commit was under way raises `CommitUncertain` from it.
    """

    retryable = True

    def __init__(self, message: str = "", *, push_id: str | None = None) -> None:
        super().__init__(message)
        self.push_id = push_id


class JournalError(BasetenError):
    """The journal of a run cannot be opened, read or written."""
