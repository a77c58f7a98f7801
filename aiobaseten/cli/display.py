"""Shows pushes while they run: bars on a terminal, lines elsewhere. Both are observers of a `Client`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from aiobaseten.bulk import PushOutcome
from aiobaseten.cli.outcome import human_bytes
from aiobaseten.events import (
    CommitStarted,
    Committed,
    CredentialsRenewed,
    Event,
    PartUploaded,
    PushFailed,
    PushStarted,
    Reconciling,
    Retrying,
    StatusChanged,
    UploadAborted,
    UploadCompleted,
    UploadRestarted,
    UploadResumed,
)


class View(Protocol):
    """Shows pushes while they run. An observer of the `Client`."""

    def showing(self) -> AbstractContextManager[object]:
        """Shows them as long as the context lasts."""
        ...

    def __call__(self, event: Event) -> None: ...

    def ended(self, outcome: PushOutcome) -> None:
        """Told each outcome as it is taken."""

    def say(self, text: str) -> None:
        """Print a line."""


class Lines:
    """One line for each thing worth knowing, on the console it is given."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._names: dict[str, str] = {}

    def showing(self) -> AbstractContextManager[object]:
        return nullcontext()

    def ended(self, outcome: PushOutcome) -> None:
        """Its event has told it."""

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def remember(self, event: PushStarted) -> None:
        """Call the push by its name from now on."""
        self._names[event.push_id] = event.name

    def __call__(self, event: Event) -> None:
        if isinstance(event, PushStarted):
            self.remember(event)
        text = _told(event)
        if text is not None:
            name = self._names.get(event.push_id)
            self.say(f"{name}: {text}" if name else text)


class Bars:
    """A bar for each push that is under way; what else is worth knowing goes above them."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[step]}"),
            console=console,
            redirect_stdout=False,  # or results for another program would end up on the terminal
        )
        self._lines = Lines(self._progress.console)
        self._tasks: dict[str, TaskID] = {}

    def showing(self) -> AbstractContextManager[object]:
        return self._progress

    def ended(self, outcome: PushOutcome) -> None:
        """Its event has told it."""

    def say(self, text: str) -> None:
        self._lines.say(text)

    def __call__(self, event: Event) -> None:
        match event:
            case PushStarted():
                self._lines.remember(event)
                if event.push_id in self._tasks:  # Another attempt.
                    self._progress.reset(self._tasks[event.push_id], step="")
                else:
                    self._tasks[event.push_id] = self._progress.add_task(escape(event.name), total=event.size_bytes, step="")
            case _ if event.push_id not in self._tasks:
                self._lines(event)
            case PartUploaded() | UploadResumed():
                self._progress.advance(self._tasks[event.push_id], event.size_bytes)
            case UploadRestarted():
                self._progress.reset(self._tasks[event.push_id], step="starts over")
            case CommitStarted():
                self._progress.update(self._tasks[event.push_id], step="commit")
            case Committed():
                self._progress.update(self._tasks.pop(event.push_id), step="done")
            case PushFailed():
                self._progress.update(self._tasks[event.push_id], step="failed")
            case Retrying() | Reconciling() | CredentialsRenewed() | UploadAborted() | StatusChanged():
                self._lines(event)
            case _:
                pass


def display_for(console: Console) -> Bars | Lines:
    """Bars if the console is a terminal, else lines."""
    return Bars(console) if console.is_terminal else Lines(console)


def _told(event: Event) -> str | None:
    match event:
        case PushStarted(size_bytes=size):
            return "starts" if size is None else f"starts, {human_bytes(size)}"
        case UploadCompleted():
            return f"uploaded, {human_bytes(event.size_bytes)} in {event.parts} {'part' if event.parts == 1 else 'parts'}"
        case UploadRestarted():
            return "the upload starts over"
        case UploadResumed():
            return f"the upload goes on after {human_bytes(event.size_bytes)} in {event.parts} parts"
        case UploadAborted(error=None):
            return "the multipart upload was aborted"
        case UploadAborted():
            return f"the multipart upload {event.upload_id} could not be aborted: {event.error}"
        case Retrying():
            return f"{event.operation} is tried again in {event.delay_s:.1f} s, after: {event.error}"
        case CredentialsRenewed():
            return "the upload credentials had expired and were renewed"
        case Reconciling():
            return f"the commit's answer was lost ({event.error}); looking for the deployment"
        case Committed():
            return f"committed: model {event.model_id}, deployment {event.deployment_id}"
        case StatusChanged():
            return f"deployment {event.deployment_id} is {event.status}"
        case _:
            return None
