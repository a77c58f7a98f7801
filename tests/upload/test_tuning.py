"""The number of connections, over simulated links and in simulated time: nothing here depends on how fast this machine is."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.simulated_link import FixedNumber, KiB, Link, MiB, Run, upload

from aiobaseten.errors import ConfigurationError
from aiobaseten.upload.tuning import ConnectionTuner

FIXED_NUMBERS = (1, 2, 4, 8, 16, 32, 64)
AT_MOST = 64
UNCAPPED = 1e12

LINKS = {
    "1 MiB/s per connection": Link(connection_bytes_per_s=1 * MiB, total_bytes_per_s=UNCAPPED),
    "1 MiB/s per connection, large send buffers": Link(
        connection_bytes_per_s=1 * MiB, total_bytes_per_s=UNCAPPED, send_buffer_bytes=4 * MiB
    ),
    "4 MiB/s per connection": Link(connection_bytes_per_s=4 * MiB, total_bytes_per_s=UNCAPPED),
    "8 MiB/s per connection, 42 in all": Link(connection_bytes_per_s=8 * MiB, total_bytes_per_s=42 * MiB),
    "8 MiB/s per connection, 100 in all": Link(connection_bytes_per_s=8 * MiB, total_bytes_per_s=100 * MiB),
    "laptop's 50 Mbit/s": Link(connection_bytes_per_s=6 * MiB, total_bytes_per_s=6 * MiB, send_buffer_bytes=512 * KiB),
    "laptop's 50 Mbit/s, large send buffers": Link(
        connection_bytes_per_s=6 * MiB, total_bytes_per_s=6 * MiB, send_buffer_bytes=4 * MiB
    ),
    "50 Mbit/s to a far store": Link(
        connection_bytes_per_s=400 * KiB, total_bytes_per_s=6 * MiB, send_buffer_bytes=512 * KiB, round_trip_s=0.2
    ),
    "store that answers late": Link(connection_bytes_per_s=20 * MiB, total_bytes_per_s=400 * MiB, answer_s=0.3),
    "2 cores on loopback": Link(
        connection_bytes_per_s=450 * MiB,
        total_bytes_per_s=1000 * MiB,
        round_trip_s=0.001,
        saturated_by=3,
        cost_per_connection=0.02,
    ),
    "25 Gbit/s": Link(connection_bytes_per_s=75 * MiB, total_bytes_per_s=2900 * MiB, round_trip_s=0.01),
    "25 Gbit/s, processors saturated by 40": Link(
        connection_bytes_per_s=60 * MiB,
        total_bytes_per_s=2900 * MiB,
        round_trip_s=0.02,
        answer_s=0.03,
        saturated_by=40,
        cost_per_connection=0.01,
    ),
    "SlowDown above 16": Link(connection_bytes_per_s=10 * MiB, total_bytes_per_s=UNCAPPED, slow_down_above=16),
    "SlowDown above 10": Link(connection_bytes_per_s=10 * MiB, total_bytes_per_s=UNCAPPED, slow_down_above=10),
    "SlowDown above 2": Link(connection_bytes_per_s=10 * MiB, total_bytes_per_s=UNCAPPED, slow_down_above=2),
    "half the bandwidth after 10 s": Link(connection_bytes_per_s=8 * MiB, total_bytes_per_s=100 * MiB, changes=((10, 0.5),)),
    "twice the bandwidth after 10 s": Link(connection_bytes_per_s=8 * MiB, total_bytes_per_s=60 * MiB, changes=((10, 2),)),
    "a dip from 8 s to 12 s": Link(connection_bytes_per_s=8 * MiB, total_bytes_per_s=100 * MiB, changes=((8, 0.2), (12, 1))),
}


SLOW_STORE = Link(connection_bytes_per_s=20 * MiB, total_bytes_per_s=400 * MiB, answer_s=0.7)


@cache
def best_fixed(link: Link, seconds: int, seed: int) -> float:
    return max(upload(link, FixedNumber(number), seconds=seconds, seed=seed).by(seconds) for number in FIXED_NUMBERS)


def tuned(link: Link, seconds: int, *, seed: int = 0, at_most: int = AT_MOST, start: int = 4) -> Run:
    return upload(link, ConnectionTuner(start=start, at_most=at_most, processors=2), seconds=seconds, seed=seed)


def limits_of(run: Run) -> set[int]:
    return {limit for _, limit in run.limits}


@pytest.mark.parametrize("seconds", [20, 60])
@pytest.mark.parametrize("name", LINKS)
def test_nearly_what_the_best_fixed_number_sends(name: str, seconds: int) -> None:
    run = tuned(LINKS[name], seconds)
    assert run.by(seconds) >= 0.9 * best_fixed(LINKS[name], seconds, 0)
    assert min(limits_of(run)) >= 1
    assert max(limits_of(run)) <= AT_MOST


@pytest.mark.parametrize("start", [2, 3])
@pytest.mark.parametrize("name", LINKS)
def test_nearly_as_much_from_fewer_to_begin_with(name: str, start: int) -> None:
    """As on one or two processors: a ramp is longer, and weighs less in a minute."""
    run = tuned(LINKS[name], 60, start=start)
    assert run.by(60) >= 0.88 * best_fixed(LINKS[name], 60, 0)


def test_store_so_slow_that_each_step_takes_a_second_to_judge() -> None:
    """A ramp cannot go faster than parts are answered: it weighs in 20 s, and no more in 60 s."""
    run = tuned(SLOW_STORE, 60)
    assert run.by(20) >= 0.7 * best_fixed(SLOW_STORE, 20, 0)
    assert run.by(60) >= 0.9 * best_fixed(SLOW_STORE, 60, 0)


@pytest.mark.parametrize("seed", range(5))
def test_does_not_wander_where_four_connections_are_enough(seed: int) -> None:
    run = tuned(LINKS["2 cores on loopback"], 60, seed=seed)
    assert max(limits_of(run)) <= 16
    assert run.limit_at(60) <= 8


@pytest.mark.parametrize("seed", range(5))
def test_uses_them_all_where_each_one_pays(seed: int) -> None:
    run = tuned(LINKS["4 MiB/s per connection"], 20, seed=seed)
    assert run.limit_at(5) == AT_MOST


def test_without_noise_the_ramp_doubles_and_stays() -> None:
    link = Link(connection_bytes_per_s=75 * MiB, total_bytes_per_s=UNCAPPED, round_trip_s=0.01, noise=0)
    limits = [limit for _, limit in tuned(link, 5, at_most=24).limits]
    assert [limit for limit, before in zip(limits, [0, *limits], strict=False) if limit != before] == [4, 8, 16, 24]


@pytest.mark.parametrize("at_most", [1, 2, 3, 8])
def test_stays_within_at_most(at_most: int) -> None:
    run = tuned(LINKS["4 MiB/s per connection"], 20, at_most=at_most)
    assert limits_of(run) == {at_most} if at_most <= 4 else max(limits_of(run)) == at_most


@st.composite
def plausible_links(draw: st.DrawFn) -> Link:
    total_bytes_per_s = draw(st.floats(6 * MiB, 3000 * MiB))
    # A slow link leaves the processors idle: more connections cost nothing there.
    most_per_connection = 0.02 if total_bytes_per_s >= 300 * MiB else 0.0
    return Link(
        connection_bytes_per_s=draw(st.floats(1 * MiB, 80 * MiB)),
        total_bytes_per_s=total_bytes_per_s,
        round_trip_s=draw(st.floats(0.001, 0.1)),
        answer_s=draw(st.floats(0, 0.2)),
        send_buffer_bytes=draw(st.integers(256 * KiB, 3 * MiB)),
        saturated_by=draw(st.integers(3, 64)),
        cost_per_connection=draw(st.floats(0, most_per_connection)),
        slow_down_above=draw(st.sampled_from([4, 12, 24, 1000])),
        noise=draw(st.floats(0, 0.2)),
    )


@given(link=plausible_links(), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_any_plausible_link(link: Link, seed: int) -> None:
    run = tuned(link, 30, seed=seed)
    assert run.by(30) >= 0.8 * best_fixed(link, 30, seed)
    assert limits_of(run) <= set(range(1, AT_MOST + 1))


def test_nothing_changes_without_demand() -> None:
    tuner = ConnectionTuner(at_most=AT_MOST, processors=2)
    run = upload(LINKS["4 MiB/s per connection"], tuner, seconds=20, demand=lambda _: 3)
    assert limits_of(run) == {4}
    assert run.by(20) > 0


def test_what_was_learnt_outlasts_a_pause() -> None:
    pause = range(10, 40)
    link = LINKS["8 MiB/s per connection, 100 in all"]
    run = upload(
        link, ConnectionTuner(at_most=AT_MOST, processors=2), seconds=60, demand=lambda at_s: 0 if int(at_s) in pause else 1000
    )
    assert run.limit_at(39) == run.limit_at(10.5) >= 8
    assert run.by(60) - run.by(40) >= 0.9 * best_fixed(link, 20, 0)


def test_a_pause_in_which_nobody_calls_is_not_taken_for_a_slow_link() -> None:
    tuner = ConnectionTuner(at_most=AT_MOST, processors=2)
    sent_bytes = 0
    for step in range(20):
        sent_bytes += 50 * MiB * tuner.limit // 10
        tuner.part_sent(duration_s=0.15)
        tuner.observe(now_s=step / 10, sent_bytes=sent_bytes, cpu_s=0.0, in_use=tuner.limit, wanted=True)
    limit = tuner.limit
    assert limit > 4
    assert tuner.observe(now_s=3600, sent_bytes=sent_bytes, cpu_s=0.0, in_use=limit, wanted=True) == limit
    sent_bytes += 50 * MiB * limit // 10
    assert tuner.observe(now_s=3600.1, sent_bytes=sent_bytes, cpu_s=0.0, in_use=limit, wanted=True) == limit


def test_nothing_is_judged_while_more_connections_than_allowed_finish_their_parts() -> None:
    tuner = ConnectionTuner(at_most=AT_MOST, processors=2)
    for step in range(100):
        assert tuner.observe(now_s=step / 10, sent_bytes=step * 50 * MiB, cpu_s=0.0, in_use=12, wanted=True) == 4


def test_push_back_lowers_the_limit_at_once_and_only_once_a_second() -> None:
    tuner = ConnectionTuner(start=32, at_most=AT_MOST, processors=2)
    assert tuner.pushed_back(now_s=10.0) == tuner.limit == 24
    assert tuner.pushed_back(now_s=10.5) == 24
    assert tuner.pushed_back(now_s=11.0) == 18


def test_push_back_never_goes_below_one() -> None:
    tuner = ConnectionTuner(at_most=AT_MOST, processors=2)
    assert [tuner.pushed_back(now_s=at_s) for at_s in range(10, 16)] == [3, 2, 1, 1, 1, 1]


def test_push_back_while_more_are_tried_goes_back_to_what_worked() -> None:
    run = tuned(Link(connection_bytes_per_s=75 * MiB, total_bytes_per_s=UNCAPPED, slow_down_above=16, noise=0), 20)
    assert max(limits_of(run)) == 32
    assert run.limit_at(20) == 16
    assert run.refused <= 20


def test_recovers_after_push_back() -> None:
    link = Link(connection_bytes_per_s=10 * MiB, total_bytes_per_s=UNCAPPED)
    tuner = ConnectionTuner(start=32, at_most=32, processors=2)
    for at_s in range(-4, 0):
        tuner.pushed_back(now_s=at_s)
    assert tuner.limit == 9
    run = upload(link, tuner, seconds=60)
    assert run.limit_at(30) >= 24


@pytest.mark.parametrize("numbers", [{"start": 0, "at_most": 4}, {"start": 4, "at_most": 0}, {"at_most": -1}])
def test_impossible_numbers_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="start and at_most must be at least 1"):
        ConnectionTuner(**numbers, processors=2)


def limits_on_busy_processors(busy_share: float, *, processors: int) -> list[int]:
    """The limits over 20 s in which each connection adds as much as the others, while sending keeps that share busy."""
    tuner = ConnectionTuner(at_most=AT_MOST, processors=processors)
    limits: list[int] = []
    sent_bytes, cpu_s = 0, 0.0
    for step in range(200):
        sent_bytes += 10 * MiB * tuner.limit
        cpu_s += 0.1 * busy_share * processors
        tuner.part_sent(duration_s=0.05)
        limits.append(tuner.observe(now_s=step / 10, sent_bytes=sent_bytes, cpu_s=cpu_s, in_use=tuner.limit, wanted=True))
    return limits


@pytest.mark.parametrize("processors", [1, 2, 16])
def test_no_more_are_tried_where_the_processors_are_the_limit(processors: int) -> None:
    assert max(limits_on_busy_processors(0.4, processors=processors)) == 4
    assert max(limits_on_busy_processors(0.1, processors=processors)) > 16


def test_more_are_tried_again_when_the_processors_are_free_again() -> None:
    tuner = ConnectionTuner(at_most=AT_MOST, processors=2)
    sent_bytes, cpu_s = 0, 0.0
    for step in range(600):
        sent_bytes += 10 * MiB * tuner.limit
        cpu_s += 0.1 if step < 100 else 0.01
        tuner.part_sent(duration_s=0.05)
        limit = tuner.observe(now_s=step / 10, sent_bytes=sent_bytes, cpu_s=cpu_s, in_use=tuner.limit, wanted=True)
        assert step >= 100 or limit <= 4
    assert tuner.limit > 16
