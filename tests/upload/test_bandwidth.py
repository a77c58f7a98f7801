"""The bandwidth limit, on a clock that tests move."""

from __future__ import annotations

import heapq
import itertools
import math
import threading

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobaseten.errors import ConfigurationError
from aiobaseten.options import GiB, KiB, MiB
from aiobaseten.upload.bandwidth import BURST_S, BandwidthLimit

RATES = st.floats(math.log(10 * KiB), math.log(GiB)).map(math.exp)


@attrs.define
class ManualTime:
    now_s: float = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@attrs.frozen
class Sent:
    at_s: float
    size_bytes: int


def send(bytes_per_s: float, *, seconds: float, threads: int, lags_s: list[float], slice_bytes: int) -> list[Sent]:
    """What so many threads send that reserve a slice, wait, are late by one of `lags_s`, and send it in no time; simulated, in the
    order of time.

    """
    time = ManualTime()
    limit = BandwidthLimit(bytes_per_s, monotonic=time.monotonic)
    lag_s = itertools.cycle(lags_s)
    end_s = time.now_s + seconds
    # Each entry: when a thread does something next, which one, and what it sends then.
    agenda = [(time.now_s, number, 0) for number in range(threads)]
    sent: list[Sent] = []
    while agenda[0][0] <= end_s:
        time.now_s, number, size_bytes = heapq.heappop(agenda)
        sent.append(Sent(time.now_s, size_bytes))
        wait_s = limit.reserve(slice_bytes)
        assert wait_s >= 0
        heapq.heappush(agenda, (time.now_s + wait_s + next(lag_s), number, slice_bytes))
    return sent


def within(sent: list[Sent], begin_s: float, end_s: float) -> int:
    return sum(slice_.size_bytes for slice_ in sent if begin_s <= slice_.at_s < end_s)


def test_first_slice_and_the_burst_go_at_once_and_the_rest_in_turn() -> None:
    time = ManualTime()
    limit = BandwidthLimit(1000, monotonic=time.monotonic)
    assert limit.reserve(50) == 0
    assert [limit.reserve(100) for _ in range(4)] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_time_that_passed_shortens_the_wait() -> None:
    time = ManualTime()
    limit = BandwidthLimit(1000, monotonic=time.monotonic)
    limit.reserve(1050)
    time.now_s += 0.75
    assert limit.reserve(1) == pytest.approx(0.25)


def test_nothing_saved_up_while_nobody_sends_but_the_burst() -> None:
    time = ManualTime()
    limit = BandwidthLimit(1000, monotonic=time.monotonic)
    limit.reserve(5000)
    time.now_s += 3600
    assert limit.reserve(50) == 0
    assert limit.reserve(100) == 0
    assert limit.reserve(100) == pytest.approx(0.1)


def test_sizes_of_nothing_cost_nothing() -> None:
    limit = BandwidthLimit(1000, monotonic=ManualTime().monotonic)
    assert [limit.reserve(0) for _ in range(3)] == [0, 0, 0]


def test_negative_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="size_bytes must not be negative, and is -1"):
        BandwidthLimit(1000).reserve(-1)


@pytest.mark.parametrize("bytes_per_s", [0, -1, math.nan, math.inf, True])
def test_impossible_limits_are_refused(bytes_per_s: float) -> None:
    with pytest.raises(ConfigurationError, match="bytes_per_s must be a finite number above 0"):
        BandwidthLimit(bytes_per_s)


def test_real_clock_by_default() -> None:
    limit = BandwidthLimit(1)
    limit.reserve(10_000)
    assert 9_000 < limit.reserve(1) <= 10_000


@pytest.mark.parametrize(
    ("bytes_per_s", "expected"),
    [(1, KiB), (10 * KiB, KiB), (100 * KiB, 10 * KiB), (2 * MiB, 2 * MiB // 10), (10 * MiB, 256 * KiB), (GiB, 256 * KiB)],
)
def test_slices_suit_the_limit(bytes_per_s: int, expected: int) -> None:
    assert BandwidthLimit(bytes_per_s).slice_bytes == expected


@given(
    bytes_per_s=RATES,
    threads=st.integers(1, 64),
    lags_s=st.lists(st.floats(0, 0.04), min_size=1, max_size=20),
    begin_s=st.floats(0, 10),
)
def test_accurate_to_five_percent_over_any_ten_seconds(
    bytes_per_s: float, threads: int, lags_s: list[float], begin_s: float
) -> None:
    # Slices that suit a high limit are small beside it and would be too many to simulate; larger ones are the harder case.
    slice_bytes = max(BandwidthLimit(bytes_per_s).slice_bytes, int(bytes_per_s * 0.05))
    # Threads wake late by up to 40 ms: the burst lets even a single one keep up.
    sent = send(bytes_per_s, seconds=20, threads=threads, lags_s=lags_s, slice_bytes=slice_bytes)
    size_bytes = within(sent, 1000 + begin_s, 1010 + begin_s)
    assert size_bytes == pytest.approx(10 * bytes_per_s, rel=0.05)


@given(
    bytes_per_s=RATES,
    threads=st.integers(1, 20),
    lags_s=st.lists(st.sampled_from([0.0, 0.01, 0.3, 2.0]), min_size=1, max_size=20),
    sizes=st.lists(st.floats(0.001, 0.1), min_size=1, max_size=20),
)
def test_reservations_never_promise_more_than_limit_and_burst(
    bytes_per_s: float, threads: int, lags_s: list[float], sizes: list[float]
) -> None:
    """Threads that are late, all at different times: what the schedule gives out begins within the limit all the same."""
    time = ManualTime()
    limit = BandwidthLimit(bytes_per_s, monotonic=time.monotonic)
    reserved: list[Sent] = []
    agenda = [(time.now_s, number) for number in range(threads)]
    lag_s, share = itertools.cycle(lags_s), itertools.cycle(sizes)
    for _ in range(150):
        time.now_s, number = heapq.heappop(agenda)
        size_bytes = max(1, int(bytes_per_s * next(share)))
        begins_s = time.now_s + limit.reserve(size_bytes)
        reserved.append(Sent(begins_s, size_bytes))
        heapq.heappush(agenda, (begins_s + next(lag_s), number))
    assert [slice_.at_s for slice_ in reserved] == sorted(slice_.at_s for slice_ in reserved), "first come, first served"
    for first, begin in enumerate(reserved):
        before_last = 0
        for end in reserved[first:]:
            assert before_last <= bytes_per_s * (end.at_s - begin.at_s + BURST_S) * (1 + 1e-6) + 1
            before_last += end.size_bytes


def test_threads_lose_no_reservation() -> None:
    time = ManualTime()
    limit = BandwidthLimit(1000, monotonic=time.monotonic)
    waits_s: list[float] = []
    together = threading.Barrier(8)

    def reserve_many() -> None:
        together.wait()
        mine = [limit.reserve(10) for _ in range(2000)]
        waits_s.extend(mine)

    threads = [threading.Thread(target=reserve_many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The clock stood still, so each reservation has a time of its own, and all together end where their bytes do.
    assert sorted(waits_s) == pytest.approx([max(0.0, number * 0.01 - BURST_S) for number in range(16_000)], abs=1e-6)
    assert limit.reserve(0) == pytest.approx(160 - BURST_S)
