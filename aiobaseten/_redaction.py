"""Keeps secrets out of what is shown: texts of errors, log records, and local variables that a traceback holds on to.

Whoever gets to know a secret says so with `keep_secret`. It is masked for as long as its owner lives, wherever text is made of what
came from outside. Loggers of the libraries underneath show headers and answers at DEBUG: `redacted_logs` masks their records too.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import logging
import re
import sys
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote

P = ParamSpec("P")
T = TypeVar("T")

MASK = "***"
MIN_CHARS = 8
"""What is shorter is no secret, but may well be a word: texts would lose their sense."""
LOGGERS = ("aioboto3", "aiobaseten", "aiobotocore", "aiohttp", "asyncio", "boto3", "botocore", "concurrent", "py", "urllib3")
"""Whose records are masked, and those of all loggers below them."""

_SIGNATURE = re.compile(r"(signature\w{0,24}(?:[\s'\"=:>]|\\n){1,16})[0-9a-f]{64}", re.IGNORECASE)
"""A request's signature, as S3's and botocore's texts name it: with the session token it is the right to that one call."""

_known: dict[int, tuple[str, ...]] = {}
_gone: deque[int] = deque()
"""Ids of owners that are no more. The collector may find one amid anything, so that no more than this is done then."""
_knowing = threading.RLock()
"""Reentrant: what is collected while it is held may log."""


def keep_secret(owner: object, *secrets: str) -> None:
    """Mask `secrets` in whatever is shown from now on, until `owner` is gone."""
    with _knowing:
        _forget_gone()
        if id(owner) in _known:
            return
        _known[id(owner)] = tuple({form for secret in secrets if len(secret) >= MIN_CHARS for form in _forms(secret)})
    weakref.finalize(owner, _gone.append, id(owner)).atexit = False


def redact(text: str) -> str:
    """A text without the secrets that are known, however they are written in it."""
    with _knowing:
        _forget_gone()
        known = list(_known.values())
    found = {form for forms in known for form in forms if form in text}
    for form in sorted(found, key=len, reverse=True):  # One secret may be a part of another.
        text = text.replace(form, MASK)
    return _SIGNATURE.sub(rf"\1{MASK}", text)


def _forget_gone() -> None:
    while _gone:
        _known.pop(_gone.popleft(), None)


def scrub(error: BaseException, *, outer: BaseException | None = None) -> None:
    """Take the secrets out of an error and all that is behind it, and the local variables out of the frames that it has left.

    The frames of the libraries underneath hold headers and answers; what shows local variables of a traceback would show them.

    :param outer: what was being handled already, which is somebody else's and stays as it is
    """
    for each in _chain(error, outer):
        traceback.clear_frames(each.__traceback__)  # Those that are still running keep theirs.
        each.args = tuple(map(_clean, each.args))
        for name, value in vars(each).items():
            vars(each)[name] = [redact(note) for note in value] if name == "__notes__" else _clean(value)


@contextmanager
def scrubbing() -> Generator[None]:
    """Scrub whatever error leaves the block."""
    outer = sys.exception()
    try:
        yield
    except BaseException as error:
        scrub(error, outer=outer)
        raise


def scrubbed(function: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Decorate a coroutine function, so that whatever error leaves it is scrubbed."""

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with scrubbing():
            return await function(*args, **kwargs)

    return call


def takes_secrets(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that is given a secret: its errors carry no local variables of its frames, its arguments among them."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        outer = sys.exception()
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            del args, kwargs
            for each in _chain(error, outer):
                traceback.clear_frames(each.__traceback__)
            raise

    return call


@contextmanager
def redacted_logs() -> Generator[None]:
    """Mask the secrets in all records of `LOGGERS` within the block, of which many may be open."""
    _open_or_close(1)
    try:
        yield
    finally:
        _open_or_close(-1)


def cover_new_loggers() -> None:
    """Mask the records of loggers, too, that modules have brought along which were imported since."""
    _open_or_close(0)


class _Redacting(logging.Filter):
    """Lets every record through, without its secrets. A record that has none stays as it is."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - whatever is wrong with the caller's format, logging itself tells of it
            message = ""
        if redact(message) != message or redact(repr(record.args)) != repr(record.args):
            record.msg, record.args = redact(message or f"{record.msg} {record.args!r}"), None
        if record.exc_info:
            text = logging.Formatter().formatException(record.exc_info)
            if redact(text) != text:
                record.exc_info, record.exc_text = None, redact(text)
        for name, value in vars(record).items():
            if isinstance(value, str):
                vars(record)[name] = redact(value)
            elif name not in _OWN_ATTRIBUTES:
                vars(record)[name] = _clean(value)
        return True


_OWN_ATTRIBUTES = vars(logging.makeLogRecord({})).keys()
_FILTER = _Redacting()
_open_blocks = 0
_counting = threading.Lock()


def _open_or_close(more: int) -> None:
    """Count the open blocks, and have all loggers filtered as long as there is one."""
    global _open_blocks  # noqa: PLW0603 - loggers belong to the process, and so does who filters them
    with _counting:
        _open_blocks += more
        for logger in _loggers():
            if _open_blocks:
                logger.addFilter(_FILTER)
            else:
                logger.removeFilter(_FILTER)


def _loggers() -> Iterator[logging.Logger]:
    for name in (*LOGGERS, "py.warnings"):
        logging.getLogger(name)
    for name, logger in logging.root.manager.loggerDict.copy().items():
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in LOGGERS:
            yield logger


def _forms(secret: str) -> Iterator[str]:
    """How a secret may be written in a text."""
    yield secret
    yield quote(secret, safe="", errors="replace")  # What is not Unicode could not be sent anyway.
    yield json.dumps(secret)[1:-1]
    yield (in_repr := secret.replace("\\", "\\\\"))
    yield in_repr.replace("'", "\\'")
    yield html.escape(secret)
    yield base64.b64encode(secret.encode(errors="replace")).decode().rstrip("=")


def _chain(error: BaseException, outer: BaseException | None) -> Iterator[BaseException]:
    """An error, and all that it comes from or holds, as far as `outer`."""
    seen = {id(outer)}
    left: list[object] = [error]
    while left:
        each = left.pop()
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            left += [each.__cause__, each.__context__, *each.args, *vars(each).values()]
            left += getattr(each, "exceptions", ())  # of a group


def _clean(value: object) -> object:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, BaseException):
        return value  # It is in the chain itself.
    return value if redact(repr(value)) == repr(value) else MASK
