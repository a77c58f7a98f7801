"""The tree of errors: its shape, what each shows, and that each survives a pickle."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Iterator

import pytest

from aiobaseten import errors
from aiobaseten.errors import (
    ApiError,
    ArchiveError,
    AuthenticationError,
    BasetenError,
    CommitUncertain,
    ConfigurationError,
    CredentialsExpired,
    DeadlineExceeded,
    DeploymentFailed,
    IntegrityError,
    InvalidPush,
    JournalError,
    NotFoundError,
    Problem,
    RateLimited,
    ServerError,
    SourceChanged,
    TransportError,
    UploadDenied,
    UploadError,
)

PROBLEM = Problem("$.deployment.labels", "must be an object, not null")
EXAMPLES: list[tuple[BasetenError, str, bool]] = [
    (BasetenError(), "", False),
    (BasetenError("in general"), "in general", False),
    (ConfigurationError("no key"), "no key", False),
    (InvalidPush(problems=[PROBLEM]), "$.deployment.labels: must be an object, not null", False),
    (InvalidPush(problems=[PROBLEM, Problem("$.name", "is missing")]), f"{PROBLEM}; $.name: is missing", False),
    (InvalidPush("in words", problems=[PROBLEM]), "in words", False),
    (ArchiveError("no config.yaml", path="model"), "no config.yaml", False),
    (SourceChanged("grew", path="weights.bin"), "grew", True),
    (ApiError("as told"), "as told", False),
    (ApiError("as told", status=409), "as told (status 409)", False),
    (
        ApiError("as told", status=400, method="GET", path="/v1/teams", request_id="r1", retry_after_s=3.0),
        "GET /v1/teams: as told (status 400, request id r1)",
        False,
    ),
    (AuthenticationError("wrong key", status=401), "wrong key (status 401)", False),
    (NotFoundError("gone", status=404, request_id="r2"), "gone (status 404, request id r2)", False),
    (RateLimited("busy", status=429, retry_after_s=37.0), "busy (status 429)", True),
    (ServerError("down", status=503), "down (status 503)", True),
    (TransportError("refused", request_sent=False), "refused", True),
    (
        UploadError("odd", operation="UploadPart", code="Odd", status=400, request_id="r3"),
        "UploadPart: odd (code Odd, status 400, request id r3)",
        False,
    ),
    (UploadError("odd", retryable=True), "odd", True),
    (CredentialsExpired("too late", code="ExpiredToken"), "too late (code ExpiredToken)", False),
    (UploadDenied("no"), "no", False),
    (IntegrityError("differs"), "differs", False),
    (CommitUncertain("who knows", push_id="p1"), "who knows", False),
    (DeploymentFailed("failed", model_id="m1", deployment_id="d1", status="BUILD_FAILED"), "failed", False),
    (DeadlineExceeded("too slow", push_id="p1"), "too slow", True),
    (JournalError("locked"), "locked", False),
]


def all_errors(root: type[BasetenError] = BasetenError) -> Iterator[type[BasetenError]]:
    yield root
    for kind in root.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from all_errors(kind)


@pytest.mark.parametrize(("error", "text", "retryable"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_text_and_retryable(error: BasetenError, text: str, retryable: bool) -> None:
    assert str(error) == text
    assert error.retryable is retryable
    assert error.message in text


@pytest.mark.parametrize(("error", "text", "retryable"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_pickle_and_copy_keep_everything(error: BasetenError, text: str, retryable: bool) -> None:
    error.add_note("cleaning up failed")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert vars(twin) == vars(error)
        assert str(twin) == text
        assert twin.retryable is retryable


def test_every_error_has_an_example() -> None:
    assert {type(error) for error, _, _ in EXAMPLES} == set(all_errors())


def test_the_drawn_tree_is_the_tree() -> None:
    """Each class stands in the module's docstring, below its parent."""
    assert errors.__doc__ is not None
    parents: list[str] = []
    drawn: dict[str, str] = {}
    for line in errors.__doc__.splitlines():
        match = re.match(r"    ((?:[│ ]   )*(?:[├└]── )?)([A-Z]\w+)(?:  |$)", line)
        if match is None:
            continue
        depth = len(match.group(1)) // 4
        del parents[depth:]
        drawn[match.group(2)] = parents[-1] if parents else "Exception"
        parents.append(match.group(2))
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in all_errors()}


def test_every_error_says_when_it_is_raised() -> None:
    assert all(inspect.getdoc(kind) for kind in all_errors())


def test_context_of_an_api_error() -> None:
    error = RateLimited("busy", status=429, method="GET", path="/v1/teams", request_id="r1", retry_after_s=37.0)
    assert (error.status, error.method, error.path, error.request_id, error.retry_after_s) == (429, "GET", "/v1/teams", "r1", 37.0)
    assert ApiError("x").retry_after_s is None
