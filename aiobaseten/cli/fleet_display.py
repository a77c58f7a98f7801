"""Shows a run of many pushes: a view of fixed height on a terminal, a line every few seconds elsewhere, a summary at the end.

A view is an observer of the `Client` and is told each outcome. Neither makes it draw, but for the first failures, which are told
as they happen: the numbers are those of a `FleetTally`, read when it is time to draw. Names and errors come from outside; they are
shown as plain text on one line.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from aiobaseten.bulk.report import BulkReport, PushOutcome, PushRecord
from aiobaseten.cli.fleet_tally import FleetTally, Flight, Pace
from aiobaseten.cli.outcome import human_bytes
from aiobaseten.events import Event

REFRESHES_PER_S = 4
LINE_EVERY_S = 5.0
FAILURES_TOLD = 20
FLIGHTS_SHOWN = 8
HEAD_LINES = 4
CAUSES_SHOWN = 10


class FleetView(ABC):
    """A view of a run. It writes to its console only."""

    def __init__(self, console: Console, tally: FleetTally, clock: Callable[[], float]) -> None:
        self._console = console
        self._tally = tally
        self._clock = clock
        self._begin()

    @abstractmethod
    def showing(self) -> AbstractContextManager[object]:
        """Shows the run as long as the context lasts, and its last state after that."""

    def __call__(self, event: Event) -> None:
        self._tally.take(event)

    def ended(self, outcome: PushOutcome) -> None:
        """Count a push that has ended; one that failed is told, as long as there are not too many."""
        self._tally.end(outcome)
        if outcome.error is None:
            return
        if self._tally.failed <= FAILURES_TOLD:
            said = cut(one_line(outcome.record.error or str(outcome.error)), 400)
            self.say(f"failed: {one_line(outcome.name)}: {type(outcome.error).__name__}: {said}")
        elif self._tally.failed == FAILURES_TOLD + 1:
            self.say("further failures are in the table at the end")

    def say(self, text: str) -> None:
        """Print a line above the view."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _begin(self) -> None:
        self._began_s = self._clock()
        self._pace = Pace(self._began_s)

    def _elapsed_s(self, now_s: float) -> float:
        return max(now_s - self._began_s, 0.0)


class FleetLines(FleetView):
    """A line of numbers every `LINE_EVERY_S` seconds, as far as anything happens at all."""

    @contextmanager
    def showing(self) -> Generator[object]:
        self._begin()
        try:
            yield self
        finally:
            self.say(self._last_line())

    def _begin(self) -> None:
        super()._begin()
        self._due_s = self._began_s + LINE_EVERY_S

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        self._tell_if_due()

    def ended(self, outcome: PushOutcome) -> None:
        super().ended(outcome)
        self._tell_if_due()

    def _tell_if_due(self) -> None:
        now_s = self._clock()
        if now_s >= self._due_s:
            self._due_s = now_s + LINE_EVERY_S
            self.say(self._line(now_s))

    def _line(self, now_s: float) -> str:
        tally = self._tally
        rate = self._pace.per_s(now_s, tally.taken_bytes)
        left = tally.left_s(self._elapsed_s(now_s), rate)
        total = tally.total_bytes
        sent = human_bytes(tally.sent_bytes) + ("" if total is None else f" of {human_bytes(total)}")
        eta = "" if left is None else f", ETA {duration(left)}"
        return f"{self._counts()}, {sent}, {human_bytes(rate)}/s{eta}"

    def _last_line(self) -> str:
        elapsed = self._elapsed_s(self._clock())
        taken = self._tally.taken_bytes
        mean = f", {human_bytes(taken / elapsed)}/s on average" if elapsed > 0 else ""
        return f"{self._counts()}, {human_bytes(self._tally.sent_bytes)} in {duration(elapsed)}{mean}"

    def _counts(self) -> str:
        tally = self._tally
        of = "" if tally.total_pushes is None else f"/{tally.total_pushes:,}"
        skipped = f" ({tally.skipped:,} skipped)" if tally.skipped else ""
        return f"{tally.done:,}{of} done{skipped}, {tally.failed:,} failed"


class FleetBars(FleetView):
    """Two bars, the numbers, and the pushes that have been in flight for the longest time."""

    @contextmanager
    def showing(self) -> Generator[object]:
        self._begin()
        frame = _Frame(self._tally, self._pace, self._began_s, self._clock)
        live = Live(
            frame,
            console=self._console,
            refresh_per_second=REFRESHES_PER_S,
            redirect_stdout=False,  # or results for another program would end up on the terminal
        )
        with live:
            try:
                yield self
            finally:
                frame.over = True


class _Frame:
    """What the terminal shows at one moment. Made of segments, not of rich's tables: it is drawn four times a second."""

    def __init__(self, tally: FleetTally, pace: Pace, began_s: float, clock: Callable[[], float]) -> None:
        self._tally = tally
        self._pace = pace
        self._began_s = began_s
        self._clock = clock
        self.over = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        now_s = self._clock()
        elapsed = max(now_s - self._began_s, 0.0)
        width = options.max_width
        bold, dim, bad = console.get_style("bold"), console.get_style("dim"), console.get_style("red")
        tally = self._tally
        total, bytes_total = tally.total_pushes, tally.total_bytes
        models = f"{tally.ended:,}" + ("" if total is None else f"/{total:,}")
        sent = human_bytes(tally.sent_bytes) + ("" if bytes_total is None else f" of {human_bytes(bytes_total)}")
        yield from _bar_line("models", models, tally.ended, total, width, console, options, over=self.over)
        yield from _bar_line("bytes", sent, tally.sent_bytes, bytes_total, width, console, options, over=self.over)
        yield from _line([(self._speed(now_s, elapsed), bold)], width)
        failed = f"{tally.failed:,} failed"
        skipped = f", {tally.skipped:,} of them skipped" if tally.skipped else ""
        flying = list(tally.in_flight.values())
        rest = f" · {len(flying):,} in flight" if flying or not self.over else ""
        rest += f" · {tally.retries:,} {'retry' if tally.retries == 1 else 'retries'}" if tally.retries else ""
        done = f"{tally.done:,} done{skipped} · "
        yield from _line([(done, None), (failed, bad if tally.failed else None), (rest, None)], width)
        if self.over:
            return
        shown = max(1, min(FLIGHTS_SHOWN, console.height - HEAD_LINES - 6, total or FLIGHTS_SHOWN))
        yield Segment.line()
        for place in range(shown):
            if place < len(flying):
                yield from _flight_line(flying[place], width, console, options)
            else:
                yield Segment.line()
        more = len(flying) - shown
        yield from _line([(f"… and {more:,} more" if more > 0 else "", dim)], width)

    def _speed(self, now_s: float, elapsed: float) -> str:
        tally = self._tally
        if self.over:
            mean = f"{human_bytes(tally.taken_bytes / elapsed)}/s on average · " if elapsed > 0 else ""
            return f"{mean}{duration(elapsed)}"
        rate = self._pace.per_s(now_s, tally.taken_bytes)
        left = tally.left_s(elapsed, rate)
        eta = "-:--" if left is None else duration(left)
        return f"{human_bytes(rate)}/s · ETA {eta} · {duration(elapsed)} so far"


def fleet_view(
    console: Console, *, total_pushes: int | None, total_bytes: int | None, clock: Callable[[], float] = time.monotonic
) -> FleetView:
    """Bars if the console is a terminal, else lines."""
    tally = FleetTally(total_pushes, total_bytes)
    return FleetBars(console, tally, clock) if console.is_terminal else FleetLines(console, tally, clock)


def summary(report: BulkReport, *, retry_command: str | None) -> RenderableType:
    """What became of a run: its totals, and its failures by cause.

    :param retry_command: what would go on with those that are not deployed
    """
    parts: list[RenderableType] = [Text(), _totals(report)]
    if report.stopped_by is not None:
        stop = f"{type(report.stopped_by).__name__}: {cut(one_line(str(report.stopped_by)), 400)}"
        parts += [Text(), Text(f"Stopped before all pushes were begun: {stop}", style="red")]
    if report.failed:
        parts += [Text(), _failures(report)]
    if retry_command is not None:
        parts += [Text(), Text("To go on with what is not deployed:"), Text(f"  {retry_command}", style="bold", overflow="fold")]
    return Group(*parts)


def _totals(report: BulkReport) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="bold")
    table.add_column()
    table.add_row(f"{report.total:,}", "push" if report.total == 1 else "pushes")
    table.add_row(f"{report.succeeded:,}", "succeeded")
    if report.skipped:
        table.add_row(f"{report.skipped:,}", "skipped, done by an earlier run")
    table.add_row(Text(f"{report.failed:,}", style="red" if report.failed else ""), "failed")
    if report.interrupted:
        table.add_row(f"{report.interrupted:,}", "begun and not ended")
    rate = f", {human_bytes(report.size_bytes / report.duration_s)}/s" if report.duration_s > 0 else ""
    table.add_row(human_bytes(report.size_bytes), f"uploaded in {duration(report.duration_s)}{rate}")
    return table


def _failures(report: BulkReport) -> Table:
    examples: dict[str, PushRecord] = {}
    for record in report.failures:
        examples.setdefault(record.cause or "", record)
    causes = report.failures_by_cause.most_common()
    table = Table(title="Failures by cause", title_justify="left", title_style="bold", expand=False)
    table.add_column("count", justify="right")
    table.add_column("cause", overflow="fold")
    table.add_column("for example", overflow="fold")
    for cause, count in causes[:CAUSES_SHOWN]:
        example = examples[cause]
        said = Text(cut(one_line(example.name), 80), style="bold")
        said.append(f": {cut(one_line(example.error or ''), 200)}", style="not bold")
        table.add_row(f"{count:,}", Text(one_line(cause) or "unknown"), said)
    further = causes[CAUSES_SHOWN:]
    if further:
        table.add_row(f"{sum(count for _, count in further):,}", f"{len(further):,} more", "")
    return table


def one_line(text: str) -> str:
    """Text without line breaks, and with what does not print spelled out, so that no name can steer a terminal."""
    joined = " ".join(text.split())
    if joined.isprintable():
        return joined
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in joined)


def cut(text: str, length: int) -> str:
    """At most so many characters of a text."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def duration(seconds: float) -> str:
    """A time as a clock shows it: ``1:05`` or ``2:03:04``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _line(pieces: list[tuple[str, Style | None]], width: int) -> Iterator[Segment]:
    """One line, cut to the width."""
    left = width
    for text, style in pieces:
        shown = text if cell_len(text) <= left else set_cell_size(text, left)
        left -= cell_len(shown)
        yield Segment(shown, style)
    yield Segment.line()


def _bar_line(
    name: str, numbers: str, done: int, total: int | None, width: int, console: Console, options: ConsoleOptions, *, over: bool
) -> Iterator[Segment]:
    """A name, a bar of what is done, the share, and the numbers."""
    share = " " * 6 if total is None else f"{100 * done // total if total else 100:>4} %"
    numbers = set_cell_size(numbers, 24) if width >= 60 else ""
    bar_width = max(width - 9 - len(share) - 2 - len(numbers), 4)
    yield Segment(f"{name:<8} ")
    yield from _bar(done, total, bar_width, console, options, still=over)
    yield Segment(f"{share}  {numbers}")
    yield Segment.line()


def _flight_line(flight: Flight, width: int, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
    """A push under way: name, bar, bytes, step."""
    size = "" if flight.size_bytes is None else f" of {human_bytes(flight.size_bytes)}"
    numbers = f"{human_bytes(flight.sent_bytes)}{size}"
    wide = width >= 60
    tail = f"  {numbers:<24}{flight.step}" if wide else f"  {flight.step}"
    tail = set_cell_size(tail, 39 if wide else 14)
    bar_width = min(max(width // 10, 4), 20)
    name_width = max(width - bar_width - cell_len(tail) - 3, 4)
    yield Segment(f"  {_fitted(one_line(flight.name), name_width)} ")
    yield from _bar(flight.sent_bytes, flight.size_bytes, bar_width, console, options, still=True)
    yield from _line([(tail.rstrip(), None)], width - name_width - bar_width - 3)


def _fitted(name: str, width: int) -> str:
    """A name in exactly so many cells. What is too long loses its middle: names of one run differ at their ends."""
    if cell_len(name) <= width:
        return set_cell_size(name, width)
    end_width = (width - 1) // 2
    end = set_cell_size(name[::-1], end_width)[::-1]
    return f"{set_cell_size(name, width - 1 - end_width)}…{end}"


def _bar(done: int, total: int | None, width: int, console: Console, options: ConsoleOptions, *, still: bool) -> Iterator[Segment]:
    """Without a total it only shows that something goes on; where it is to be `still`, it is empty then."""
    bar = ProgressBar(total=1 if total is None and still else total, completed=0 if total is None else done, width=width)
    used = 0
    for segment in console.render(bar, options.update(width=width)):
        used += len(segment.text)
        yield segment
    yield Segment(" " * (width - used))
