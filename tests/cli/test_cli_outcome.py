from __future__ import annotations

import json

import pytest

import aiobaseten as ab
from aiobaseten.cli.outcome import Exit, Outcome, exit_for, exit_for_all, human_bytes, ignored_lines
from aiobaseten.local import LocalStackError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ab.InvalidPush("x"), Exit.BAD_INPUT),
        (ab.ArchiveError("x"), Exit.BAD_INPUT),
        (ab.ConfigurationError("x"), Exit.BAD_INPUT),
        (ab.AuthenticationError("x"), Exit.REFUSED_KEY),
        (ab.NotFoundError("x"), Exit.NOT_FOUND),
        (ab.ApiError("x"), Exit.REFUSED),
        (ab.UploadDenied("x"), Exit.REFUSED),
        (ab.RateLimited("x"), Exit.SERVICE_FAILURE),
        (ab.ServerError("x"), Exit.SERVICE_FAILURE),
        (ab.TransportError("x"), Exit.SERVICE_FAILURE),
        (ab.CommitUncertain("x"), Exit.SERVICE_FAILURE),
        (LocalStackError("x"), Exit.SERVICE_FAILURE),
        (ab.UploadError("x"), Exit.SERVICE_FAILURE),
        (ab.CredentialsExpired("x"), Exit.SERVICE_FAILURE),
        (ab.DeploymentFailed("x"), Exit.FAILED),
        (ab.DeadlineExceeded("x"), Exit.FAILED),
    ],
)
def test_each_error_has_its_exit_code(error: ab.BasetenError, code: Exit) -> None:
    assert exit_for(error) is code


def test_several_failures_end_with_their_code_or_with_one() -> None:
    assert exit_for_all([]) is Exit.DONE
    assert exit_for_all([ab.NotFoundError("a"), ab.NotFoundError("b")]) is Exit.NOT_FOUND
    assert exit_for_all([ab.NotFoundError("a"), ab.InvalidPush("b")]) is Exit.FAILED


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 30, "3.0 GiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert human_bytes(size) == text


def test_what_was_left_out() -> None:
    ignored = [
        ab.Ignored(path="lib/", rule="lib/", is_default=False, files=3, size_bytes=2048),
        ab.Ignored(path="x.log", rule="*.log", is_default=False, files=1, size_bytes=1),
    ]
    assert ignored_lines(ignored) == ["  left out by .truss_ignore: 4 files, 2.0 KiB; the largest is lib/ (2.0 KiB, rule 'lib/')"]
    assert ignored_lines([]) == []


def test_a_failure_keeps_its_notes() -> None:
    error = ab.UploadError("no", code="SlowDown", retryable=True)
    error.add_note("could not be aborted")
    outcome = Outcome(source="m", seconds=1.23456, error=error)
    record = json.loads(json.dumps(outcome.as_json()))
    known = {name: value for name, value in record.items() if value is not None}
    assert known == {
        "source": "m",
        "ok": False,
        "skipped": False,
        "seconds": 1.235,
        "error": {"type": "UploadError", "message": "no (code SlowDown)", "notes": ["could not be aborted"], "retryable": True},
    }
    assert {"model_id", "deployment_id", "push_id", "status", "size_bytes", "ignored"} < set(record)
    assert outcome.lines() == ["m: failed: UploadError: no (code SlowDown)", "  could not be aborted"]


def test_an_outcome_of_nothing_says_nothing() -> None:
    assert Outcome(source="m", seconds=0).lines() == []
