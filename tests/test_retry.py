"""The retry policy, on a clock that does not wait."""

from __future__ import annotations

import asyncio
from itertools import islice

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import FakeClock

from aiobaseten.errors import ApiError, BasetenError, NotFoundError, RateLimited, ServerError, TransportError
from aiobaseten.options import RetryOptions
from aiobaseten.retry import Clock, poll_intervals_s, retrying

pytestmark = pytest.mark.anyio


class Flaky:
    """Raises the errors in turn, then returns how often it was called."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.calls


def busy(retry_after_s: float | None = None) -> RateLimited:
    return RateLimited("busy", status=429, retry_after_s=retry_after_s)


async def test_success_at_once() -> None:
    clock = FakeClock()
    assert await retrying(Flaky(), options=RetryOptions(), clock=clock.clock) == 1
    assert clock.sleeps_s == []


async def test_repeats_until_it_works() -> None:
    clock = FakeClock()
    flaky = Flaky(ServerError("1"), TransportError("2"), busy())
    assert await retrying(flaky, options=RetryOptions(), clock=clock.clock) == 4
    assert len(clock.sleeps_s) == 3


@pytest.mark.parametrize("max_attempts", [1, 2, 5])
async def test_last_error_is_raised_as_it_is(max_attempts: int) -> None:
    clock = FakeClock()
    errors = [ServerError(f"try {number}") for number in range(1, 10)]
    flaky = Flaky(*errors)
    with pytest.raises(ServerError) as caught:
        await retrying(flaky, options=RetryOptions(max_attempts=max_attempts), clock=clock.clock)
    assert caught.value is errors[max_attempts - 1]
    assert flaky.calls == max_attempts
    assert len(clock.sleeps_s) == max_attempts - 1


@pytest.mark.parametrize("error", [NotFoundError("gone"), ApiError("odd"), ValueError("a bug"), BasetenError("general")])
@pytest.mark.parametrize("before", [0, 2])
async def test_what_is_not_retryable_is_raised_at_once(error: Exception, before: int) -> None:
    flaky = Flaky(*[ServerError("passing")] * before, error)
    with pytest.raises(type(error)) as caught:
        await retrying(flaky, options=RetryOptions(), clock=FakeClock().clock)
    assert caught.value is error
    assert flaky.calls == before + 1


async def test_caller_decides_what_may_be_repeated() -> None:
    flaky = Flaky(ValueError("fine"), ServerError("not fine"))
    with pytest.raises(ServerError):
        await retrying(
            flaky, options=RetryOptions(), clock=FakeClock().clock, may_repeat=lambda error: isinstance(error, ValueError)
        )
    assert flaky.calls == 2


async def test_waits_at_least_as_long_as_asked() -> None:
    clock = FakeClock()
    options = RetryOptions(initial_backoff_s=0, max_backoff_s=0)
    await retrying(Flaky(busy(37.0), busy(), ServerError("5", retry_after_s=5.0)), options=options, clock=clock.clock)
    assert clock.sleeps_s == [37.0, 0.0, 5.0]


@given(
    initial_backoff_s=st.floats(0, 10),
    max_backoff_s=st.floats(0, 60),
    failures=st.integers(1, 12),
)
async def test_full_jitter_within_its_bounds(initial_backoff_s: float, max_backoff_s: float, failures: int) -> None:
    clock = FakeClock()
    options = RetryOptions(max_attempts=20, initial_backoff_s=initial_backoff_s, max_backoff_s=max_backoff_s)
    await retrying(Flaky(*[ServerError("passing")] * failures), options=options, clock=clock.clock)
    assert len(clock.sleeps_s) == failures
    for tries, slept_s in enumerate(clock.sleeps_s, start=1):
        assert 0 <= slept_s <= min(max_backoff_s, initial_backoff_s * 2 ** (tries - 1)) + 1e-9


async def test_jitter_spreads() -> None:
    clock = FakeClock()
    options = RetryOptions(max_attempts=50, initial_backoff_s=10, max_backoff_s=10)
    await retrying(Flaky(*[ServerError("passing")] * 40), options=options, clock=clock.clock)
    assert max(clock.sleeps_s) - min(clock.sleeps_s) > 3


async def test_on_retry_is_told_before_each_wait() -> None:
    clock = FakeClock()
    told: list[tuple[BaseException, int, float, int]] = []
    errors = [busy(3.0), busy(4.0), NotFoundError("gone")]

    def on_retry(error: BaseException, attempt: int, delay_s: float) -> None:
        told.append((error, attempt, delay_s, len(clock.sleeps_s)))

    options = RetryOptions(initial_backoff_s=0)
    with pytest.raises(NotFoundError):
        await retrying(Flaky(*errors), options=options, clock=clock.clock, on_retry=on_retry)
    assert told == [(errors[0], 1, 3.0, 0), (errors[1], 2, 4.0, 1)]


@pytest.mark.parametrize("failures", [0, 1])
async def test_cancellation_is_no_failure(failures: int) -> None:
    reached = anyio.Event()
    calls = 0

    async def hang() -> None:
        nonlocal calls
        calls += 1
        if calls <= failures:
            raise ServerError("passing")
        reached.set()
        await anyio.sleep_forever()

    def may_repeat(error: BaseException) -> bool:
        assert not isinstance(error, asyncio.CancelledError)
        return True

    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await retrying(hang, options=RetryOptions(), clock=FakeClock().clock, may_repeat=may_repeat)

        tasks.start_soon(run)
        await reached.wait()
        tasks.cancel_scope.cancel()
    assert calls == failures + 1


async def test_cancellation_during_the_wait() -> None:
    clock = FakeClock(held=True)
    flaky = Flaky(busy(100.0))
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await retrying(flaky, options=RetryOptions(), clock=clock.clock)

        tasks.start_soon(run)
        await clock.advance(50)
        tasks.cancel_scope.cancel()
    assert flaky.calls == 1


async def test_calls_at_once_do_not_mix_their_tries() -> None:
    clock = FakeClock()
    results: list[int] = []

    async def run(failures: int) -> None:
        flaky = Flaky(*[ServerError("passing")] * failures)
        results.append(await retrying(flaky, options=RetryOptions(max_attempts=6), clock=clock.clock))

    async with anyio.create_task_group() as tasks:
        for failures in range(6):
            tasks.start_soon(run, failures)
    assert sorted(results) == [1, 2, 3, 4, 5, 6]


async def test_real_clock_waits() -> None:
    clock = Clock()
    started_s = clock.monotonic()
    await clock.sleep(0.01)
    assert clock.monotonic() > started_s


def test_poll_intervals() -> None:
    assert list(islice(poll_intervals_s(), 7)) == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
