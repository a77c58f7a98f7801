"""The token bucket, on a clock that tests move."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import FakeClock

from aiobaseten.api.limiter import TokenBucket

pytestmark = pytest.mark.anyio


async def test_one_seconds_worth_at_once_then_the_rate() -> None:
    clock = FakeClock()
    bucket = TokenBucket(4, clock.clock)
    for _ in range(4):
        await bucket.acquire()
    assert clock.sleeps_s == []
    for _ in range(3):
        await bucket.acquire()
    assert clock.sleeps_s == pytest.approx([0.25, 0.25, 0.25])


async def test_rest_refills_no_more_than_the_burst() -> None:
    clock = FakeClock()
    bucket = TokenBucket(2, clock.clock)
    clock.now_s += 3600
    for _ in range(3):
        await bucket.acquire()
    assert clock.sleeps_s == pytest.approx([0.5])


async def test_rate_below_one_per_second_lets_the_first_through() -> None:
    clock = FakeClock()
    bucket = TokenBucket(0.1, clock.clock)
    await bucket.acquire()
    assert clock.sleeps_s == []
    await bucket.acquire()
    assert clock.sleeps_s == pytest.approx([10])


async def test_unlimited() -> None:
    clock = FakeClock()
    bucket = TokenBucket(None, clock.clock)
    for _ in range(1000):
        await bucket.acquire()
    assert clock.sleeps_s == []


@pytest.mark.parametrize("requests_per_s", [None, 100])
async def test_pause_holds_everyone(requests_per_s: float | None) -> None:
    clock = FakeClock()
    bucket = TokenBucket(requests_per_s, clock.clock)
    bucket.pause(37)
    await bucket.acquire()
    await bucket.acquire()
    assert clock.sleeps_s == [37]


async def test_shorter_pause_does_not_end_a_longer_one() -> None:
    clock = FakeClock()
    bucket = TokenBucket(100, clock.clock)
    bucket.pause(37)
    bucket.pause(1)
    await bucket.acquire()
    assert clock.slept_s == 37


async def test_pause_reaches_those_who_wait_already() -> None:
    clock = FakeClock(held=True)
    bucket = TokenBucket(1, clock.clock)
    await bucket.acquire()
    passed_at_s: list[float] = []

    async def call() -> None:
        await bucket.acquire()
        passed_at_s.append(clock.now_s)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        tasks.start_soon(call)
        await clock.advance(0.5)
        bucket.pause(10)
        await clock.advance(20)
    assert passed_at_s == pytest.approx([1010.5, 1011.5])


async def test_first_come_first_served() -> None:
    clock = FakeClock(held=True)
    bucket = TokenBucket(1, clock.clock)
    await bucket.acquire()
    order: list[int] = []

    async def call(number: int) -> None:
        await bucket.acquire()
        order.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(call, number)
        await clock.advance(9.5)
        assert order == list(range(9))
        tasks.start_soon(call, 20)  # a late one does not take the token of one who waits
        await clock.advance(30)
    assert order == list(range(21))


async def test_cancelled_waiters_take_nothing_and_block_nobody() -> None:
    clock = FakeClock(held=True)
    bucket = TokenBucket(1, clock.clock)
    await bucket.acquire()
    passed: list[str] = []

    async def call(name: str) -> None:
        await bucket.acquire()
        passed.append(f"{name} at {clock.now_s:g}")

    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as doomed:
            doomed.start_soon(call, "head")  # sleeps until there is a token
            doomed.start_soon(call, "next")  # waits for its turn
            await clock.advance(0.5)
            tasks.start_soon(call, "last")
            await clock.advance(0.1)
            doomed.cancel_scope.cancel()
        await clock.advance(10)
    assert passed == ["last at 1001"]


@given(
    requests_per_s=st.floats(0.05, 500),
    gaps_s=st.lists(st.floats(0, 3), min_size=1, max_size=60),
)
async def test_never_more_than_burst_and_rate_allow(requests_per_s: float, gaps_s: list[float]) -> None:
    clock = FakeClock()
    bucket = TokenBucket(requests_per_s, clock.clock)
    passed_at_s: list[float] = []
    for gap_s in gaps_s:
        clock.now_s += gap_s
        await bucket.acquire()
        passed_at_s.append(clock.now_s)
    burst = max(1.0, requests_per_s)
    for first, start_s in enumerate(passed_at_s):
        for count, end_s in enumerate(passed_at_s[first:], start=1):
            assert count <= burst + (end_s - start_s) * requests_per_s + 0.001
    if clock.sleeps_s:
        assert max(clock.sleeps_s) <= 1 / requests_per_s + 1e-9
