"""``aiobaseten push``: one run over what was asked for, its display, its interruption and its end."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import anyio
import attrs
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from aiobaseten.bulk import Journal, Manifest, PushOutcome, PushRun, load_manifest
from aiobaseten.cli.display import View, display_for
from aiobaseten.cli.fleet_display import fleet_view, summary
from aiobaseten.cli.outcome import Exit, Outcome, exit_for_all, print_lines
from aiobaseten.cli.report_page import report_page
from aiobaseten.client import Client
from aiobaseten.errors import ConfigurationError, InvalidPush
from aiobaseten.push import Push

MANIFEST_ATTEMPTS = 3
"""Whole pushes of a manifest are begun again where their failure may pass: nobody sits by to do it."""

arguments_given: ContextVar[Sequence[str]] = ContextVar("aiobaseten_arguments", default=())
"""The words of the command under way, to be shown again."""


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Many:
    """Options for pushes in great numbers."""

    manifest: Annotated[
        Path | None,
        Parameter(help="A YAML, TOML or JSON file that names pushes, in place of sources; 'aiobaseten schema' describes it."),
    ] = None
    select: Annotated[
        list[str] | None,
        Parameter(negative="", help="Of the manifest only models whose name or path fits, such as 'search-*'. May be repeated."),
    ] = None
    limit: Annotated[int | None, Parameter(help="Of the manifest at most so many, the first.", validator=Number(gte=1))] = None
    journal: Annotated[
        Path | None,
        Parameter(help="A file from which an interrupted run goes on; with --manifest by default MANIFEST.journal.db beside it."),
    ] = None
    resume: Annotated[
        bool | None,
        Parameter(help="Go on with the journal; the default where there is one. --no-resume sets it aside and begins anew."),
    ] = None
    journal_credentials: Annotated[
        bool, Parameter(negative="", help="Keep the credentials of unfinished uploads in the journal, to go on with their parts.")
    ] = False
    report: Annotated[Path | None, Parameter(help="Write a page about the run to this file, as HTML.")] = None

    def check(self, sources: Sequence[str] | None) -> None:
        """:raises InvalidPush: if the options do not fit together"""
        if (self.manifest is None) == (not sources):
            raise InvalidPush("push needs either sources or --manifest FILE")
        if self.manifest is None and (self.select or self.limit is not None):
            raise InvalidPush("--select and --limit go with --manifest")
        if self.manifest is None and self.journal is None and (self.resume is not None or self.journal_credentials):
            raise InvalidPush("--resume and --journal-credentials go with --journal or --manifest")

    async def load(self) -> Manifest | None:
        """The manifest, checked whole, or the part of it that was asked for.

        :raises InvalidPush: with every mistake in it
        """
        if self.manifest is None:
            return None
        return (await load_manifest(self.manifest)).select(self.select or (), limit=self.limit)

    async def journal_path(self) -> Path | None:
        """The journal of the run: the one that is named, else one beside the manifest.

        :raises ConfigurationError: if there is none to go on with
        :raises JournalError: if the one that is there cannot be used
        """
        if self.journal is None and self.manifest is None:
            return None
        path = self.journal or Path(f"{self.manifest}.journal.db")
        exists = await anyio.Path(path).exists()
        if self.resume is True and not exists:
            raise ConfigurationError(f"--resume: there is no journal {path}")
        if self.resume is False and exists:
            async with Journal(path):
                pass  # Nobody uses it, and all of it is in its one file now.
            await anyio.Path(path).rename(f"{path}.{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        return path


@attrs.frozen(kw_only=True)
class FleetOptions:
    """How ``push`` goes about its pushes. `manifest` is None where sources were given one by one."""

    manifest: Manifest | None
    journal: Path | None
    journal_credentials: bool
    concurrency: int
    wait_timeout_s: float | None
    json_lines: bool
    report: Path | None


def view_for(manifest: Manifest | None, talk: Console) -> View:
    """A view of the whole run of a manifest; of sources that were given one by one, a view of each."""
    if manifest is None:
        return display_for(talk)
    sizes = [entry.size_bytes for entry in manifest.entries]
    known = [size for size in sizes if size is not None]
    total_bytes = sum(known) if len(known) == len(sizes) else None
    return fleet_view(talk, total_pushes=len(sizes), total_bytes=total_bytes)


class Fleet:
    """One run, from its first push to the last line that is printed."""

    def __init__(self, pushes: Sequence[Push], options: FleetOptions, talk: Console, view: View) -> None:
        self._pushes = pushes
        self._options = options
        self._talk = talk
        self._view = view

    async def run(self, client: Client) -> int:
        """Carry the pushes out, and return the exit code."""
        options = self._options
        if options.report is not None:
            _write(options.report, "")  # Where it cannot be written, that is known before the run.
        errors: list[BaseException] = []
        interrupts = 0
        failure: Exception | None = None
        run = client.push_many(
            self._pushes,
            journal=options.journal,
            journal_credentials=options.journal_credentials,
            concurrency=options.concurrency,
            max_attempts=1 if options.manifest is None else MANIFEST_ATTEMPTS,
            wait_timeout_s=options.wait_timeout_s,
        )

        def interrupted() -> None:
            nonlocal interrupts
            interrupts += 1
            if interrupts == 1:
                self._view.say("stopping: commits that were sent are seen through; Ctrl-C again ends at once")
                run.stop()
            else:
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_on_interrupt, interrupted)
            try:
                async with run:
                    with self._view.showing():
                        async for outcome in run:
                            if outcome.error is not None:
                                errors.append(outcome.error)
                            self._tell(outcome)
            except Exception as error:  # noqa: BLE001 - raised below, as it is and after what was done is told
                failure = error
            tasks.cancel_scope.cancel()
        self._end(run, is_interrupted=interrupts > 0)
        if failure is not None:
            raise failure
        return Exit.INTERRUPTED if interrupts else exit_for_all(errors)

    def _tell(self, outcome: PushOutcome) -> None:
        self._view.ended(outcome)
        told = Outcome(
            source=outcome.record.source,
            seconds=outcome.record.ended_s - outcome.record.began_s,
            result=outcome.result,
            status=outcome.result.deployment.status if outcome.result and self._options.wait_timeout_s is not None else None,
            skipped=outcome.skipped,
            error=outcome.error,
        )
        if self._options.json_lines:
            print_lines(sys.stdout, json.dumps(told.as_json()))
        elif self._options.manifest is None:
            print_lines(sys.stderr if told.error else sys.stdout, *told.lines())

    def _end(self, run: PushRun, *, is_interrupted: bool) -> None:
        options, report = self._options, run.report
        if options.manifest is not None or is_interrupted:
            again = shlex.join(["aiobaseten", *arguments_given.get()])
            goes_on = options.journal is not None and not (report.ok and not is_interrupted)
            self._talk.print(summary(report, retry_command=again if goes_on else None))
        if options.report is not None:
            what = options.manifest.path.name if options.manifest else f"{len(self._pushes)} sources"
            _write(options.report, report_page(report, title=what))


async def _on_interrupt(interrupted: Callable[[], None]) -> None:
    """Call back for each Ctrl-C. Where signals cannot be waited for, Python's own answer to it ends the command."""
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        return
    with anyio.open_signal_receiver(signal.SIGINT) as signals:
        async for _ in signals:
            interrupted()


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--report: {path} cannot be written: {error.strerror}") from error
