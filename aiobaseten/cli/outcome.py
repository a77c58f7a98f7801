"""How a command ends: the exit codes, and what is said of each push."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, TextIO

import attrs

from aiobaseten.errors import (
    ApiError,
    AuthenticationError,
    CommitUncertain,
    ConfigurationError,
    InvalidPush,
    NotFoundError,
    RateLimited,
    ServerError,
    TransportError,
    UploadDenied,
    UploadError,
)
from aiobaseten.local import LocalStackError
from aiobaseten.push import CheckResult, PushResult
from aiobaseten.sources import Ignored


class Exit(IntEnum):
    """The exit codes."""

    DONE = 0
    FAILED = 1
    BAD_INPUT = 2
    REFUSED_KEY = 3
    NOT_FOUND = 4
    REFUSED = 5
    SERVICE_FAILURE = 6
    INTERRUPTED = 130


_CODES: Sequence[tuple[tuple[type[BaseException], ...], Exit]] = (
    ((InvalidPush, ConfigurationError), Exit.BAD_INPUT),
    ((AuthenticationError,), Exit.REFUSED_KEY),
    ((NotFoundError,), Exit.NOT_FOUND),
    ((RateLimited, ServerError, TransportError, CommitUncertain, LocalStackError), Exit.SERVICE_FAILURE),
    ((ApiError, UploadDenied), Exit.REFUSED),
    ((UploadError,), Exit.SERVICE_FAILURE),
)


def exit_for(error: BaseException) -> Exit:
    """The exit code of one failure."""
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), Exit.FAILED)


def exit_for_all(errors: Iterable[BaseException]) -> Exit:
    """The exit code of several pushes: that of their failures where these agree, else that a push failed."""
    codes = {exit_for(error) for error in errors}
    if not codes:
        return Exit.DONE
    return codes.pop() if len(codes) == 1 else Exit.FAILED


@attrs.frozen(kw_only=True)
class Outcome:
    """What became of one push or check."""

    source: str
    seconds: float
    result: PushResult | CheckResult | None = None
    status: str | None = None
    skipped: bool = False
    error: BaseException | None = None

    def as_json(self) -> dict[str, Any]:
        """One JSON object, with the same fields for every push; what is not known is null."""
        pushed = self.result if isinstance(self.result, PushResult) else None
        checked = self.result if isinstance(self.result, CheckResult) else None
        upload = pushed.upload if pushed else None
        return {
            "source": self.source,
            "ok": self.error is None,
            "skipped": self.skipped,
            "seconds": round(self.seconds, 3),
            "model_id": pushed.model.id if pushed else checked.model_id if checked else None,
            "model_name": pushed.model.name if pushed else checked.name if checked else None,
            "deployment_id": pushed.deployment.id if pushed else None,
            "deployment_name": pushed.deployment.name if pushed else None,
            "status": self.status or (pushed.deployment.status if pushed else None),
            "push_id": pushed.push_id if pushed else None,
            "s3_key": upload.key if upload else None,
            "size_bytes": upload.size_bytes if upload else checked.size_bytes if checked else None,
            "parts": upload.parts if upload else None,
            "verified": upload.verified if upload else None,
            "ignored": _ignored_as_json(self.result.ignored) if self.result else None,
            "error": None if self.error is None else error_as_json(self.error),
        }

    def lines(self) -> list[str]:
        """The same for people."""
        told = [f"{self.source}: {line}" for line in self._result_lines()]
        told.extend(ignored_lines(self.result.ignored if self.result else ()))
        if self.error is not None:
            told.append(f"{self.source}: failed: {type(self.error).__name__}: {self.error}")
            told.extend(f"  {note}" for note in getattr(self.error, "__notes__", []))
        return told

    def _result_lines(self) -> list[str]:
        match self.result:
            case PushResult() as pushed:
                made = f"deployment {pushed.deployment.id} ({pushed.deployment.name})"
                of = f"model {pushed.model.id} ({pushed.model.name})"
                status = f"; {self.status}" if self.status is not None else ""
                done = "done by an earlier run" if self.skipped else self._upload_line(pushed)
                return [f"{made} of {of}: {done}{status}"]
            case CheckResult() as checked:
                where = f"a new deployment of model {checked.model_id}" if checked.model_id else f"a new model {checked.name}"
                size = "of unknown size" if checked.size_bytes is None else human_bytes(checked.size_bytes)
                return [f"would be {where}, {size}"]
            case None:
                return []

    def _upload_line(self, pushed: PushResult) -> str:
        upload = pushed.upload
        if upload is None:
            return f"no archive needed, {self.seconds:.1f} s"
        parts = "1 part" if upload.parts == 1 else f"{upload.parts} parts"
        verified = "verified" if upload.verified else "not verified by the store"
        return f"{human_bytes(upload.size_bytes)} in {parts}, {self.seconds:.1f} s, {verified}"


def error_as_json(error: BaseException) -> dict[str, Any]:
    """One failure as a JSON object."""
    return {
        "type": type(error).__name__,
        "message": str(error),
        "notes": list(getattr(error, "__notes__", [])),
        "retryable": bool(getattr(error, "retryable", False)),
    }


def ignored_lines(ignored: Sequence[Ignored]) -> list[str]:
    """What was left out of an archive: how much in all, and the largest."""
    if not ignored:
        return []
    files = sum(item.files for item in ignored)
    largest = max(ignored, key=lambda item: item.size_bytes)
    rules = "the default rules" if largest.is_default else ".truss_ignore"
    counted = f"{files} {'file' if files == 1 else 'files'}, {human_bytes(sum(item.size_bytes for item in ignored))}"
    named = f"{largest.path} ({human_bytes(largest.size_bytes)}, rule {largest.rule!r})"
    return [f"  left out by {rules}: {counted}; the largest is {named}"]


def _ignored_as_json(ignored: Sequence[Ignored]) -> dict[str, Any]:
    largest = max(ignored, key=lambda item: item.size_bytes, default=None)
    return {
        "files": sum(item.files for item in ignored),
        "size_bytes": sum(item.size_bytes for item in ignored),
        "largest": largest and {"path": largest.path, "rule": largest.rule, "size_bytes": largest.size_bytes},
    }


def human_bytes(size_bytes: float) -> str:
    """A size in binary units: ``12.3 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def print_lines(stream: TextIO, *lines: str) -> None:
    """Print lines; what the stream cannot encode is escaped, and a reader that has gone away is no reason to stop pushing."""
    encoding = stream.encoding or "utf-8"
    try:
        stream.writelines(line.encode(encoding, "backslashreplace").decode(encoding) + "\n" for line in lines)
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
