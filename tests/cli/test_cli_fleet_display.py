from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from rich.console import Console

import aiobaseten as ab
from aiobaseten.bulk import BulkReport, PushOutcome, PushRecord, Throughput
from aiobaseten.cli.fleet_display import FleetBars, FleetLines, FleetView, cut, duration, fleet_view, one_line, summary
from aiobaseten.cli.fleet_tally import FleetTally, Pace
from aiobaseten.events import (
    CommitStarted,
    Committed,
    CredentialsRenewed,
    Event,
    PartUploaded,
    Prepared,
    PushFailed,
    PushStarted,
    Reconciling,
    Retrying,
    UploadCompleted,
    UploadRestarted,
    UploadStarted,
)

MiB = 1 << 20
REPORT = BulkReport(
    started_at=datetime(2026, 3, 1, tzinfo=UTC), duration_s=65.0, records=(), throughput=Throughput(bucket_s=1.0, buckets=())
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def record(push_id: str, **fields: Any) -> PushRecord:
    known: dict[str, Any] = {"number": 1, "name": push_id, "source": "x", "state": "committed", "attempts": 1}
    return PushRecord(**{**known, "push_id": push_id, "began_s": 0.0, "ended_s": 1.0, **fields})


def ended(push_id: str, size_bytes: int | None = None, *, skipped: bool = False) -> PushOutcome:
    state = "skipped" if skipped else "committed"
    return PushOutcome(push=ab.Push(b""), skipped=skipped, record=record(push_id, state=state, size_bytes=size_bytes))


def failed(push_id: str, error: str = "no", *, cause: str | None = "ServerError (status 503)", **fields: Any) -> PushOutcome:
    told = record(push_id, state="failed", cause=cause, error=error if cause else None, **fields)
    return PushOutcome(push=ab.Push(b""), error=ab.ServerError(error, status=503), record=told)


def started(push_id: str, size_bytes: int | None = None, name: str | None = None) -> PushStarted:
    return PushStarted(push_id=push_id, name=name or push_id, size_bytes=size_bytes)


def part(push_id: str, size_bytes: int) -> PartUploaded:
    return PartUploaded(push_id=push_id, part_number=1, size_bytes=size_bytes)


def upload(push_id: str, size_bytes: int) -> list[Event]:
    """All that a push tells, from its start to its commit."""
    return [
        started(push_id, size_bytes),
        Prepared(push_id=push_id, bucket="b", key="k"),
        UploadStarted(push_id=push_id, key="k", size_bytes=size_bytes, part_size_bytes=None, parts=1),
        part(push_id, size_bytes),
        UploadCompleted(push_id=push_id, key="k", size_bytes=size_bytes, parts=1, verified=True),
        CommitStarted(push_id=push_id, model_id=None, name=push_id),
        Committed(push_id=push_id, model_id="m", deployment_id="d"),
    ]


class Seen:
    """A view, its clock, and what it has written."""

    def __init__(
        self, *, terminal: bool, pushes: int | None = 4, size: int | None = 8 * MiB, width: int = 100, height: int = 24
    ) -> None:
        self.clock = Clock()
        self.output = io.StringIO()
        self.console = Console(file=self.output, force_terminal=terminal, width=width, height=height, color_system=None)
        self.view: FleetView = fleet_view(self.console, total_pushes=pushes, total_bytes=size, clock=self.clock)

    def tell(self, *events: Event) -> None:
        for event in events:
            self.view(event)

    def lines(self) -> list[str]:
        return self.output.getvalue().splitlines()

    @contextmanager
    def frames(self) -> Iterator[None]:
        with self.view.showing():
            yield

    def frame(self) -> list[str]:
        """What the terminal shows now: one more refresh, and the lines that it drew."""
        before = len(self.output.getvalue())
        self.console.print("refresh", end="\n")
        drawn = self.output.getvalue()[before:].rpartition("refresh\n")[2]
        return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line).rstrip() for line in drawn.split("\n")]


@pytest.fixture
def lines() -> Seen:
    return Seen(terminal=False)


def test_a_terminal_gets_bars_and_anything_else_lines() -> None:
    assert isinstance(Seen(terminal=True).view, FleetBars)
    assert isinstance(Seen(terminal=False).view, FleetLines)


def test_a_line_every_five_seconds_and_the_last_state_at_the_end(lines: Seen) -> None:
    with lines.view.showing():
        lines.tell(*upload("a", 2 * MiB))
        lines.clock.now_s += 4.9
        lines.view.ended(ended("a", 2 * MiB))
        assert lines.lines() == []
        lines.clock.now_s += 0.1
        lines.tell(started("b", 2 * MiB))
        lines.tell(part("b", MiB))
        assert lines.lines() == ["1/4 done, 0 failed, 2.0 MiB of 8.0 MiB, 409.6 KiB/s, ETA 0:15"]
        lines.clock.now_s += 5
        lines.view.ended(ended("b", 2 * MiB))
        assert lines.lines()[1:] == ["2/4 done, 0 failed, 4.0 MiB of 8.0 MiB, 307.2 KiB/s, ETA 0:13"]
        lines.clock.now_s += 2
    assert lines.lines()[2:] == ["2/4 done, 0 failed, 4.0 MiB in 0:12, 256.0 KiB/s on average"]


def test_the_last_state_comes_after_a_failure_of_the_run_too(lines: Seen) -> None:
    with pytest.raises(KeyError), lines.view.showing():
        raise KeyError
    assert lines.lines() == ["0/4 done, 0 failed, 0 B in 0:00"]


def test_of_a_run_whose_size_is_not_known_there_is_no_total() -> None:
    seen = Seen(terminal=False, pushes=None, size=None)
    with seen.view.showing():
        seen.clock.now_s += 5
        seen.tell(*upload("a", MiB))
    assert seen.lines()[0] == "0 done, 0 failed, 0 B, 0 B/s"
    assert seen.lines()[1] == "0 done, 0 failed, 1.0 MiB in 0:05, 204.8 KiB/s on average"


@pytest.mark.parametrize("terminal", [False, True])
def test_failures_are_told_as_they_happen_up_to_twenty(terminal: bool) -> None:
    seen = Seen(terminal=terminal, pushes=30)
    with seen.view.showing():
        for number in range(25):
            seen.view.ended(failed(f"[red]p{number}[/red]", "busy\n\x1b[31m"))
        text = seen.output.getvalue()
    assert text.count("failed: [red]p") == 20
    assert r"failed: [red]p19[/red]: ServerError: busy \x1b[31m" in text
    assert text.count("further failures are in the table at the end") == 1


def test_a_failure_without_a_cause_is_told_by_its_error(lines: Seen) -> None:
    lines.view.ended(failed("a", "gone", cause=None))
    assert lines.lines() == ["failed: a: ServerError: gone (status 503)"]


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_said_stands_above_the_view(terminal: bool) -> None:
    seen = Seen(terminal=terminal)
    with seen.view.showing():
        seen.view.say("stopping: commits in flight end first [now]")
        if terminal:
            assert seen.frame()[0].startswith("models")
    assert "stopping: commits in flight end first [now]\n" in seen.output.getvalue()


def test_a_terminal_shows_the_numbers_and_the_pushes_in_flight() -> None:
    seen = Seen(terminal=True, pushes=4, size=8 * MiB)
    with seen.frames():
        seen.tell(*upload("a", 2 * MiB))
        seen.view.ended(ended("a", 2 * MiB))
        seen.view.ended(ended("b", 2 * MiB, skipped=True))
        seen.view.ended(failed("c", size_bytes=MiB))
        seen.tell(
            started("d", 2 * MiB, name="[bold]d\n\x1b"), Retrying(push_id="d", operation="x", attempt=1, delay_s=1, error="e")
        )
        seen.tell(UploadStarted(push_id="d", key="k", size_bytes=2 * MiB, part_size_bytes=MiB, parts=2), part("d", MiB))
        seen.tell(started("e", name="e"))
        seen.clock.now_s += 6
        frame = seen.frame()
    assert re.fullmatch(r"models +━+╸? + 75 %  3/4", frame[0])
    assert re.fullmatch(r"bytes +━+╸? + 71 %  5\.0 MiB of 7\.0 MiB", frame[1])
    assert frame[2] == "512.0 KiB/s · ETA 0:04 · 0:06 so far"
    assert frame[3] == "2 done, 1 of them skipped · 1 failed · 2 in flight · 1 retry"
    assert frame[4] == ""
    assert re.fullmatch(r"  \[bold\]d \\x1b +━+ +1\.0 MiB of 2\.0 MiB +upload", frame[5])
    assert re.fullmatch(r"  e +0 B +prepare", frame[6])
    assert frame[7:] == ["", "", ""]


def test_the_view_is_as_high_with_ten_thousand_pushes_as_with_none() -> None:
    seen = Seen(terminal=True, pushes=10_000, size=None)
    with seen.frames():
        before = seen.frame()
        for number in range(64):
            seen.tell(started(f"p{number}"))
        after = seen.frame()
    assert len(before) == len(after) == 14
    assert [line.split()[0] for line in after[5:13]] == [f"p{number}" for number in range(8)]
    assert after[13] == "… and 56 more"


def test_a_low_terminal_shows_fewer_pushes() -> None:
    seen = Seen(terminal=True, pushes=100, height=12)
    with seen.frames():
        seen.tell(*(started(f"p{number}") for number in range(10)))
        frame = seen.frame()
    assert len(frame) < 12
    assert frame[-1] == "… and 8 more"


@pytest.mark.parametrize("width", [1, 20, 40, 59, 60, 80, 140])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    seen = Seen(terminal=True, pushes=10_000, size=10_000 * MiB, width=max(width, 20))
    with seen.frames():
        seen.tell(*(started(f"模型{number}" * number, MiB * 1000) for number in range(12)))
        seen.view.ended(failed("x"))
        seen.tell(part("模型1", MiB))
        frame = seen.frame()
    wide = Console(width=200)
    assert all(wide.measure(line).maximum <= max(width, 20) for line in frame)
    assert len(frame) == 14


def test_long_names_keep_their_ends() -> None:
    seen = Seen(terminal=True, width=80)
    with seen.frames():
        seen.tell(started("a", name="customer-with-a-long-name/model-00017"), started("b", name="模型" * 20 + "17"))
        frame = seen.frame()
    assert frame[5].startswith("  customer-with-a…me/model-00017 ")
    assert frame[6].startswith("  模型模型模型模 …模型模型模型17 ")


def test_at_its_end_the_terminal_keeps_the_numbers_only() -> None:
    seen = Seen(terminal=True)
    with seen.frames():
        seen.tell(*upload("a", 2 * MiB))
        seen.view.ended(ended("a", 2 * MiB))
        seen.clock.now_s += 4
    last = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line).rstrip() for line in seen.lines()[-5:]]
    assert [line.split()[0] for line in last if line] == ["models", "bytes", "512.0", "1"]
    assert "512.0 KiB/s on average · 0:04" in last
    assert "1 done · 0 failed" in last


def test_a_run_of_unknown_size_has_bars_without_shares() -> None:
    seen = Seen(terminal=True, pushes=None, size=None)
    with seen.frames():
        seen.tell(started("a"), part("a", MiB))
        frame = seen.frame()
    assert "%" not in "".join(frame)
    assert frame[0].endswith("0")
    assert frame[1].endswith("1.0 MiB")
    assert frame[2] == "0 B/s · ETA -:-- · 0:00 so far"


def test_a_run_of_nothing_is_complete() -> None:
    seen = Seen(terminal=True, pushes=0, size=0)
    with seen.frames():
        assert "100 %  0/0" in seen.frame()[0]


def test_an_event_draws_nothing() -> None:
    seen = Seen(terminal=True)
    for event in upload("a", MiB):
        seen.view(event)
    seen.view.ended(ended("a", MiB))
    assert seen.output.getvalue() == ""


def test_bytes_of_an_upload_that_starts_over_count_once() -> None:
    tally = FleetTally(1, 2 * MiB)
    for event in (started("a", 2 * MiB), part("a", MiB), part("a", MiB // 2), UploadRestarted(push_id="a", key="k2")):
        tally.take(event)
    assert (tally.sent_bytes, tally.in_flight["a"].step) == (0, "upload again")
    for event in (part("a", MiB), part("a", MiB)):
        tally.take(event)
    assert (tally.sent_bytes, tally.taken_bytes) == (2 * MiB, 3 * MiB + MiB // 2)


def test_bytes_of_a_push_that_is_tried_again_count_once() -> None:
    tally = FleetTally(1, 2 * MiB)
    for event in (*upload("a", 2 * MiB)[:4], PushFailed(push_id="a", error="no")):
        tally.take(event)
    assert (tally.sent_bytes, tally.in_flight["a"].step, tally.failed) == (2 * MiB, "failed", 0)
    tally.take(started("a", 2 * MiB))
    assert (tally.sent_bytes, tally.in_flight["a"].step) == (0, "prepare")
    # The next attempt goes on with what the store has: it sends the rest.
    for event in (part("a", MiB), upload("a", 2 * MiB)[4]):
        tally.take(event)
    assert tally.sent_bytes == 2 * MiB
    tally.end(ended("a", 2 * MiB))
    assert (tally.sent_bytes, tally.done, tally.in_flight) == (2 * MiB, 1, {})


def test_a_push_that_failed_takes_its_bytes_out_of_the_total() -> None:
    tally = FleetTally(2, 4 * MiB)
    for event in (started("a", MiB), part("a", MiB // 2)):
        tally.take(event)
    tally.end(failed("a"))
    assert (tally.sent_bytes, tally.total_bytes, tally.ended) == (0, 3 * MiB, 1)
    tally.end(failed("b"))
    assert tally.total_bytes == 3 * MiB


def test_skipped_pushes_are_done_and_leave_the_rate_alone(lines: Seen) -> None:
    with lines.view.showing():
        lines.view.ended(ended("a", 4 * MiB, skipped=True))
        lines.view.ended(ended("b", None, skipped=True))
        lines.clock.now_s += 5
        lines.tell(started("c"))
    assert lines.lines()[0] == "2/4 done (2 skipped), 0 failed, 4.0 MiB of 8.0 MiB, 0 B/s"


def test_more_bytes_than_were_announced_are_not_more_than_all() -> None:
    tally = FleetTally(1, MiB)
    for event in upload("a", 2 * MiB):
        tally.take(event)
    assert tally.total_bytes == tally.sent_bytes == 2 * MiB


def test_what_belongs_to_no_push_counts_for_the_rate_only() -> None:
    tally = FleetTally(1, MiB)
    for event in (
        part("", MiB),
        UploadRestarted(push_id="?", key="k"),
        UploadCompleted(push_id="?", key="k", size_bytes=1, parts=1, verified=True),
        PushFailed(push_id="?", error="no"),
        CredentialsRenewed(push_id="?", same_key=True),
    ):
        tally.take(event)
    assert (tally.sent_bytes, tally.taken_bytes, tally.in_flight) == (0, MiB, {})


def test_each_step_has_its_word() -> None:
    tally = FleetTally(1, None)
    words: list[str] = []
    for event in (*upload("a", MiB), Reconciling(push_id="a", error="lost")):
        tally.take(event)
        words.append(tally.in_flight["a"].step)
    assert words == ["prepare", "upload", "upload", "upload", "upload", "commit", "wait", "reconcile"]
    tally.take(Prepared(push_id="a", bucket=None, key=None))
    assert tally.in_flight["a"].step == "commit"


def test_the_rate_is_that_of_the_last_ten_seconds() -> None:
    pace = Pace(0.0)
    assert pace.per_s(0.0, 0) == 0
    assert pace.per_s(4.0, 400) == 100
    assert pace.per_s(10.0, 400) == 40
    assert pace.per_s(14.0, 1400) == 100
    assert pace.per_s(60.0, 1400) == 0


def test_what_is_left_is_told_by_bytes_or_else_by_pushes() -> None:
    tally = FleetTally(10, 10 * MiB)
    assert tally.left_s(5, 0) is None
    assert tally.left_s(5, MiB) == 10
    tally = FleetTally(10, None)
    assert tally.left_s(5, MiB) is None
    tally.end(ended("a", skipped=True))
    assert tally.left_s(5, MiB) is None
    tally.end(ended("b"))
    tally.end(failed("c"))
    assert tally.left_s(6, MiB) == 7 * 3
    tally = FleetTally(None, None)
    tally.end(ended("a"))
    assert tally.left_s(5, MiB) is None


def told(report: BulkReport, retry_command: str | None = None, width: int = 100) -> str:
    output = io.StringIO()
    Console(file=output, width=width, force_terminal=True, color_system=None).print(summary(report, retry_command=retry_command))
    return output.getvalue()


def test_the_summary_of_a_good_run_is_its_totals() -> None:
    records = [record("a", size_bytes=65 * MiB, uploaded_s=1.0), record("b", state="active"), record("c", state="skipped")]
    text = told(attrs.evolve(REPORT, records=records))
    assert [line.split() for line in text.splitlines()] == [
        [],
        ["3", "pushes"],
        ["2", "succeeded"],
        ["1", "skipped,", "done", "by", "an", "earlier", "run"],
        ["0", "failed"],
        ["65.0", "MiB", "uploaded", "in", "1:05,", "1.0", "MiB/s"],
    ]


def test_the_summary_tells_what_was_begun_and_not_ended() -> None:
    text = told(attrs.evolve(REPORT, records=[record("a")], interrupted=2), "aiobaseten push --retry")
    assert re.search(r"2 +begun and not ended", text)
    assert "To go on with what is not deployed:" in text


def test_the_summary_groups_failures_by_cause_and_names_an_example() -> None:
    records = [
        failed("[red]a[/red]", "busy\n\x1b[2J now").record,
        failed("b", "busy").record,
        failed("c", "denied", cause="UploadDenied").record,
        failed("d", cause=None).record,
    ]
    text = told(attrs.evolve(REPORT, records=records), "aiobaseten push --from 'fleet [1].yaml' --journal run.db")
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in text.splitlines() if line.startswith(("│", "┃"))]
    assert rows == [
        ["count", "cause", "for example"],
        ["2", "ServerError (status 503)", r"[red]a[/red]: busy \x1b[2J now"],
        ["1", "UploadDenied", "c: denied"],
        ["1", "unknown", "d:"],
    ]
    assert text.splitlines()[-2:] == [
        "To go on with what is not deployed:",
        "  aiobaseten push --from 'fleet [1].yaml' --journal run.db",
    ]


def test_the_summary_of_a_run_that_was_stopped_says_why() -> None:
    text = told(attrs.evolve(REPORT, stopped_by=ab.AuthenticationError("the [key] was refused"), duration_s=0.0))
    assert "Stopped before all pushes were begun: AuthenticationError: the [key] was refused" in text
    assert re.search(r"0 B +uploaded in 0:00 *\n", text)
    assert "To go on" not in text


def test_long_lists_and_texts_are_cut() -> None:
    records = [failed(f"p{number}" * 100, "x" * 5000, cause=f"Cause{number}").record for number in range(25)]
    text = told(attrs.evolve(REPORT, records=records), width=140)
    assert "15 more" in text
    assert "Cause9" in text
    assert "Cause10" not in text
    assert len(text.splitlines()) < 60


def test_one_push_is_not_pushes() -> None:
    assert re.search(r"1 +push ", told(attrs.evolve(REPORT, records=[record("a")])))


def test_words_for_people() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 65, 3600, 7384)] == ["0:00", "1:00", "1:05", "1:00:00", "2:03:04"]
    assert one_line("a\n\tb") == "a b"
    assert one_line("a\x1b\u202e\udcff") == r"a\x1b\u202e\udcff"
    assert cut("abcdef", 4) == "abc…"
    assert cut("abcd", 4) == "abcd"
