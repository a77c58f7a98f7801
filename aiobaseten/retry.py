"""One retry policy for both planes, and the clock that it and all waiting go by.

The loop is tenacity's; what may be repeated is decided by each error's ``retryable``, narrowed by the caller where repeating is not
safe.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import anyio
import attrs
import tenacity

from aiobaseten.errors import BasetenError
from aiobaseten.options import RetryOptions

MAX_RETRY_AFTER_S = 15 * 60.0

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Clock:
    """Time, as everything here that waits or measures sees it. Tests bring their own.

    :param time: the wall clock's, in seconds since 1970, for what outlives the process
    """

    monotonic: Callable[[], float] = time.monotonic
    time: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep


def poll_intervals_s() -> Iterator[float]:
    """Seconds between looks at something that is waited for: soon at first, every 5 s in the end."""
    yield from (0.5, 1.0, 2.0, 4.0)
    while True:
        yield 5.0


@attrs.define(eq=False)
class Trouble:
    """A failure that something is being done about, such as repeating the call."""

    error: BaseException


_troubles: ContextVar[list[Trouble] | None] = ContextVar("aiobaseten_troubles", default=None)


@contextmanager
def watched_troubles() -> Generator[list[Trouble]]:
    """Yields the troubles of the block and of the tasks that it starts, the newest last."""
    troubles: list[Trouble] = []
    token = _troubles.set(troubles)
    try:
        yield troubles
    finally:
        _troubles.reset(token)


@contextmanager
def in_trouble(error: BaseException) -> Generator[Trouble]:
    """Around what is done about a failure. Where that is cancelled, the failure stays among the `watched_troubles`."""
    trouble = Trouble(error)
    troubles = _troubles.get()
    if troubles is None:
        yield trouble
        return
    troubles.append(trouble)
    was_cancelled = False
    try:
        yield trouble
    except asyncio.CancelledError:
        was_cancelled = True
        raise
    finally:
        if not was_cancelled and trouble in troubles:
            troubles.remove(trouble)


OnRetry = Callable[[BaseException, int, float], None]


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, BasetenError) and error.retryable


async def retrying(
    call: Callable[[], Awaitable[T]],
    *,
    options: RetryOptions,
    clock: Clock,
    may_repeat: Callable[[BaseException], bool] = _is_retryable,
    on_retry: OnRetry | None = None,
) -> T:
    """Await `call()` until it succeeds, may not be repeated, or has had its tries; then its last error is raised.

    :param may_repeat: told each error; by default what is ``retryable`` is repeated
    :param on_retry: told the error, the number of tries made and the seconds until the next
    """
    try:
        return await call()  # nearly every call ends here, without the cost of the loop below
    except Exception as error:
        if not may_repeat(error):
            raise
        first_error = error
    return await _retry_after(first_error, call, options, clock, may_repeat, on_retry)


async def _retry_after(
    first_error: Exception,
    call: Callable[[], Awaitable[T]],
    options: RetryOptions,
    clock: Clock,
    may_repeat: Callable[[BaseException], bool],
    on_retry: OnRetry | None,
) -> T:
    """The tries after the first, which ended with `first_error`."""
    backoff = tenacity.wait_random_exponential(multiplier=options.initial_backoff_s, max=options.max_backoff_s)

    def wait_s(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(backoff(state), getattr(error, "retry_after_s", None) or 0.0)

    def before_sleep(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        assert error is not None
        trouble.error = error
        if on_retry and state.next_action:
            on_retry(error, state.attempt_number, state.next_action.sleep)

    failed_first = [first_error]

    async def attempt() -> T:
        if failed_first:
            raise failed_first.pop()
        return await call()

    attempts = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(options.max_attempts),
        wait=wait_s,
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, Exception) and may_repeat(error)),
        before_sleep=before_sleep,
        sleep=clock.sleep,
        reraise=True,
    )
    with in_trouble(first_error) as trouble:
        return await attempts(attempt)


def retry_after_header_s(advice: str | None, now: str | None) -> float | None:
    """How many seconds the header ``Retry-After`` asks to wait, as a number or as a date; never more than `MAX_RETRY_AFTER_S`.

    :param now: the header ``Date`` of the same answer
    """
    wait_s = seconds(advice)
    if wait_s is None and advice:
        wait_s = _seconds_until(advice, now)
    return None if wait_s is None else min(wait_s, MAX_RETRY_AFTER_S)


def seconds(value: object) -> float | None:
    """A number of seconds, or text that is one; None for what is neither, or below 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if number >= 0 else None


def _seconds_until(moment: str, now: str | None) -> float | None:
    """The seconds from one HTTP date to another; from this machine's time where the service does not tell its own."""
    until = _http_date(moment)
    if until is None:
        return None
    return max(0.0, (until - (_http_date(now or "") or datetime.now(UTC))).total_seconds())


def _http_date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
