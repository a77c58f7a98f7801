"""Masking itself: what counts as a secret and for how long, and what becomes of records and errors that hold one."""

from __future__ import annotations

import base64
import gc
import json
import logging
import pickle
import threading
import traceback
from collections.abc import Iterator
from html import escape
from typing import Any
from urllib.parse import quote

import pytest

from aiobaseten import _redaction
from aiobaseten._redaction import LOGGERS, cover_new_loggers, keep_secret, redact, redacted_logs, scrub, scrubbing, takes_secrets
from aiobaseten.errors import ApiError, ArchiveError, Problem, UploadError

SECRET = "s3cr3t\\with'every\"kind/of+&=<sign>"


class Owner:
    pass


@pytest.fixture
def owner() -> Owner:
    owner = Owner()
    keep_secret(owner, SECRET)
    return owner


class Records(logging.Handler):
    """Takes every record of a logger, formatted as usual."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.logger = logging.getLogger(name)
        self.records: list[logging.LogRecord] = []
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.texts.append(self.format(record))


@pytest.fixture(autouse=True)
def nothing_else_is_open() -> Iterator[None]:
    """The local stack of the other tests keeps a block open."""
    open_blocks, _redaction._open_blocks = _redaction._open_blocks, 0
    cover_new_loggers()
    yield
    _redaction._open_blocks = open_blocks
    cover_new_loggers()


@pytest.fixture
def heard(request: pytest.FixtureRequest) -> Iterator[Records]:
    records = Records("botocore.planted")
    records.logger.addHandler(records)
    records.logger.setLevel(logging.DEBUG)
    yield records
    records.logger.removeHandler(records)


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        quote(SECRET, safe=""),
        json.dumps(SECRET)[1:-1],
        repr(SECRET)[1:-1],
        repr(SECRET.encode())[2:-1],
        escape(SECRET),
        base64.b64encode(SECRET.encode()).decode(),
    ],
)
def test_a_secret_is_masked_however_it_is_written(owner: Owner, written: str) -> None:
    assert redact(f"a {written} b").rstrip("= b").startswith("a ***")
    assert "s3cr3t" not in redact(f"a {written} b")
    assert redact("a b") == "a b"


def test_a_secret_is_forgotten_with_its_owner() -> None:
    owner = Owner()
    keep_secret(owner, "forgotten-soon")
    keep_secret(owner, "forgotten-soon")
    assert redact("forgotten-soon") == "***"
    del owner
    gc.collect()
    assert redact("forgotten-soon") == "forgotten-soon"


def test_short_words_are_no_secrets() -> None:
    owner = Owner()
    keep_secret(owner, "key", "")
    assert redact("the key") == "the key"


def test_a_secret_that_is_part_of_another_leaves_nothing_of_that() -> None:
    owner = Owner()
    keep_secret(owner, "ASIA12345", "token/ASIA12345/tail")
    assert redact("token/ASIA12345/tail and ASIA12345") == "*** and ***"


@pytest.mark.parametrize("before", ["Signature=", "Signature:\n", "'SignatureProvided': '", "<SignatureProvided>", "signature:\\n"])
def test_signatures_are_masked(before: str) -> None:
    assert redact(before + "0123456789abcdef" * 4) == before + "***"
    assert redact("StringToSign " + "0123456789abcdef" * 4).endswith("abcdef")


def test_records_are_masked_while_a_block_is_open(owner: Owner, heard: Records) -> None:
    log = heard.logger
    with redacted_logs():
        with redacted_logs():
            pass
        log.debug("plain %s", 1)
        log.debug("told %s and %r", "this", SECRET)
        log.debug("named %(a)s", {"a": 1, "b": SECRET})
        log.debug("extra", extra={"planted": SECRET})
        log.debug({"an": "object", "with": SECRET})
        for words in (SECRET, "harmless"):
            log.error("failed", exc_info=ValueError(words))
    shown = "".join(heard.texts) + "".join(repr(vars(record)) for record in heard.records)
    assert redact(shown) == shown
    assert "s3cr3t" not in shown
    plain, *_, failed, harmless = heard.records
    assert (plain.msg, plain.args) == ("plain %s", (1,))
    assert (failed.exc_info, harmless.exc_info is None) == (None, False)
    assert "ValueError: ***" in heard.texts[-2]
    log.debug("after: %s", SECRET)
    assert SECRET in heard.texts[-1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_broken_format_is_told_by_logging_and_shows_nothing(
    owner: Owner, heard: Records, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", True)
    heard.logger.propagate = False
    try:
        with redacted_logs():
            heard.logger.debug("too few %s %s", SECRET)  # noqa: PLE1206 - that is the point
    finally:
        heard.logger.propagate = True
    assert "s3cr3t" not in capsys.readouterr().err + "".join(heard.texts)


def test_loggers_that_come_later_are_masked_too(owner: Owner) -> None:
    late = Records("urllib3.planted.late")
    with redacted_logs():
        late.logger.setLevel(logging.DEBUG)
        late.logger.addHandler(late)
        cover_new_loggers()
        late.logger.debug(SECRET)
    assert late.texts == ["***"]
    assert late.logger.filters == []
    cover_new_loggers()
    assert late.logger.filters == []


def test_many_blocks_in_many_threads_leave_no_filter_behind() -> None:
    def open_and_close() -> None:
        for _ in range(50):
            with redacted_logs():
                assert logging.getLogger("botocore").filters

    threads = [threading.Thread(target=open_and_close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = [name for name, logger in logging.root.manager.loggerDict.items() if getattr(logger, "filters", ())]
    assert [name for name in left if name.partition(".")[0] in LOGGERS] == []


class Holding(Exception):
    """Holds things, as the errors of the libraries underneath do."""

    def __init__(self, *args: object, **held: object) -> None:
        super().__init__(*args)
        vars(self).update(held)


def said_by(error: BaseException) -> str:
    frames = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__), capture_locals=True)
    return "".join([*traceback.format_exception(error), repr(vars(error)), *(repr(frame.locals) for frame in frames)])


def fail(secret: str) -> None:
    headers = {"Authorization": secret}
    inner = Holding("inner", {"deep": secret}, plain=7)
    try:
        raise inner
    except Holding as error:
        error.add_note(f"note {secret}")
        raise ExceptionGroup("many", [Holding(f"outer {secret}", headers=headers, cause=inner)]) from error


def test_an_error_is_scrubbed_with_all_that_is_behind_it(owner: Owner) -> None:
    with pytest.raises(ExceptionGroup) as caught, scrubbing():
        fail(SECRET)
    error = caught.value
    assert isinstance(error.__cause__, Holding)
    (held,) = error.exceptions
    assert isinstance(held, Holding)
    assert held.args == ("outer ***",)
    assert vars(error.__cause__) == {"plain": 7, "__notes__": ["note ***"]}
    below: Any = error.__traceback__
    while below.tb_next is not None:
        below = below.tb_next
    assert (below.tb_frame.f_code.co_name, below.tb_frame.f_locals) == ("fail", {})
    assert "s3cr3t" not in said_by(error.__cause__) + said_by(held)


def test_what_somebody_else_handles_stays_as_it_is(owner: Owner) -> None:
    """A call that is made while another error is handled has that one as its context."""

    def call() -> None:
        with scrubbing():
            raise KeyError(SECRET)

    try:
        fail(SECRET)
    except ExceptionGroup:
        with pytest.raises(KeyError) as caught:
            call()
    theirs = caught.value.__context__
    assert isinstance(theirs, ExceptionGroup)
    assert "headers" in said_by(theirs)
    assert SECRET in str(theirs.exceptions[0])
    assert caught.value.args == ("***",)


def test_an_error_that_leads_back_to_itself_is_scrubbed() -> None:
    error = ValueError("one")
    error.__cause__ = KeyError("two", error)
    scrub(error)
    assert error.args == ("one",)


def test_errors_of_a_function_that_takes_secrets_carry_no_arguments() -> None:
    @takes_secrets
    def refuse(secret: str, *, also: str) -> None:
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused") as caught:
        refuse(SECRET, also=SECRET)
    frames = traceback.StackSummary.extract(traceback.walk_tb(caught.value.__traceback__), capture_locals=True)
    assert not any("s3cr3t" in repr(frame.locals) for frame in frames)
    assert [frame.name for frame in frames][-2:] == ["call", "refuse"]


@pytest.mark.parametrize("word", ["signature", "signature=", "Signature:\n", "signature\\n"])
def test_masking_takes_no_longer_than_text_is_long(word: str) -> None:
    text = word * (1_000_000 // len(word))
    assert redact(text) == text


def test_a_secret_that_is_not_unicode_is_masked_too() -> None:
    owner = Owner()
    keep_secret(owner, "\ud800-planted")
    assert redact("it is \ud800-planted") == "it is ***"


def test_errors_mask_what_they_carry_beside_their_message() -> None:
    owner = Owner()
    keep_secret(owner, "sk-planted-in-a-path")
    errors = [
        ApiError("no", path="/v1/models/sk-planted-in-a-path", request_id="sk-planted-in-a-path"),
        UploadError("no", code="sk-planted-in-a-path"),
        ArchiveError("no", path="sk-planted-in-a-path", problems=[Problem("$.sk-planted-in-a-path", "sk-planted-in-a-path")]),
    ]
    for error in errors:
        assert "planted" not in f"{error} {vars(error)}"
        assert b"planted" not in pickle.dumps(error)


def test_loggers_and_attributes_that_come_later() -> None:
    owner = Owner()
    keep_secret(owner, "sk-planted-later")
    with redacted_logs():
        warnings_logger = logging.getLogger("py.warnings")
        extra = {"hdr": {"Authorization": "sk-planted-later"}}
        record = warnings_logger.makeRecord("py", logging.INFO, "f", 1, "%s", ("sk-planted-later",), None, extra=extra)
        warnings_logger.filter(record)
        assert "planted" not in f"{record.getMessage()} {vars(record)}"


def test_owners_that_are_collected_amid_anything() -> None:
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for number in range(3000):
            owner = Owner()
            owner.itself = owner  # type: ignore[attr-defined]  # only the collector finds it
            keep_secret(owner, f"secret-number-{number}-x")
            del owner
            assert redact("nothing") == "nothing"
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert redact("secret-number-2999-x") == "secret-number-2999-x"
