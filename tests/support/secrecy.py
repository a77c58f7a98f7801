"""Planted secrets, and everything that could show them: errors with their frames, events, logs, warnings, pickles, output."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import pickle
import stat
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

import aiobaseten

KEY = "sk-planted.Key/31+41&59="
ACCESS_KEY_ID = "ASIAPLANTEDPLANTED01"
SECRET = "sts/planted+Secret0123456789abcdefghijkl"
TOKEN = f"IQoJplanted/{ACCESS_KEY_ID}/" + "Tok+en0=" * 40
PASSWORD = "proxy&planted:p+word"
LOGIN = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
PLANTED = {"key": KEY, "id": ACCESS_KEY_ID, "secret": SECRET, "token": TOKEN, "password": PASSWORD, "login": LOGIN}
PREPARED = {
    "creds": {"aws_access_key_id": ACCESS_KEY_ID, "aws_secret_access_key": SECRET, "aws_session_token": TOKEN},
    "s3_bucket": "bucket",
    "s3_key": "models/1/model.tgz",
    "s3_region": "us-west-2",
}

OUR_FRAMES = str(Path(aiobaseten.__file__).parent)


def secrets_in(text: str | bytes) -> set[str]:
    """The names of the secrets that a text shows, however it writes them."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    return {name for name, secret in PLANTED.items() if any(form in text for form in _forms(secret))}


def _forms(secret: str) -> Iterator[str]:
    yield from (
        secret,
        secret[:24],
        secret[-16:],
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
    )
    yield base64.b64encode(secret.encode()).decode().rstrip("=")[:24]


@dataclass
class Shown:
    """All that was shown while somebody listened."""

    texts: list[str] = field(default_factory=list)
    log_names: set[str] = field(default_factory=set)

    def add(self, *things: object) -> None:
        """What printing, logging or pickling these would show."""
        for thing in things:
            self.texts += [str(thing), repr(thing)]
            if not isinstance(thing, str):
                self.texts.append(pickle.dumps(thing).decode("latin-1"))
            if isinstance(thing, BaseException):
                self.texts += all_that_is_said(thing)

    def add_files(self, directory: Path, pattern: str) -> None:
        self.texts += [path.read_bytes().decode("latin-1") for path in directory.glob(pattern)]

    @property
    def secrets(self) -> dict[str, str]:
        """The secrets among it, each with a text that shows it."""
        texts = set(self.texts)
        if not secrets_in("\n".join(texts)):
            return {}
        return {name: text for text in texts for name in secrets_in(text)}


def modes_in(directory: Path, pattern: str = "*") -> dict[str, int]:
    """The permissions of files, by their names."""
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.glob(pattern)}


def all_that_is_said(error: BaseException) -> list[str]:
    """All text that an error and those behind it could show, local variables of the library's own frames among it."""
    said = traceback.format_exception(error)
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        said += [str(each), repr(each), repr(each.args), repr(vars(each))]
        ours = [step for step in traceback.walk_tb(each.__traceback__) if step[0].f_code.co_filename.startswith(OUR_FRAMES)]
        said += [f"{frame.name}: {frame.locals}" for frame in traceback.StackSummary.extract(ours, capture_locals=True)]
        left += [each.__cause__, each.__context__, *(getattr(each, "exceptions", ()))]
    return said


class _Ear(logging.Handler):
    def __init__(self, shown: Shown) -> None:
        super().__init__(logging.DEBUG)
        self._shown = shown

    def emit(self, record: logging.LogRecord) -> None:
        self._shown.log_names.add(record.name)
        self._shown.texts += [f"{record.name}: {self.format(record)}", f"{record.name}: {vars(record)!r}"]


@contextmanager
def listening(*, debug: bool = True, every_callback: bool = False) -> Iterator[Shown]:
    """Hear every log record at DEBUG and every warning, with asyncio's debugging on; what it says of `every_callback` is much."""
    shown, root = Shown(), logging.getLogger()
    ear, level, loop = _Ear(shown), root.level, asyncio.get_running_loop()
    was_debug, slow = loop.get_debug(), loop.slow_callback_duration
    root.addHandler(ear)
    root.setLevel(logging.DEBUG)
    loop.set_debug(debug)
    loop.slow_callback_duration = 0.0 if every_callback else slow
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield shown
        shown.texts += [str(warning.message) for warning in caught]
    finally:
        loop.set_debug(was_debug)
        loop.slow_callback_duration = slow
        root.setLevel(level)
        root.removeHandler(ear)
