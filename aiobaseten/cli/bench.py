"""The bench: upload throughput as this machine gets it, for one setting after another.

Each setting has a client of its own, which prepares a push, uploads the archive's parts and gives the upload up: nothing is ever
completed or committed. A sweep keeps within its bounds of bytes and seconds; what does not fit any more is skipped, and said to be.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path

import anyio
import anyio.to_thread
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from aiobaseten.cli.bench_plan import WARM_UP_BYTES, Allowance, Plan, Setting
from aiobaseten.cli.bench_report import Report, Step
from aiobaseten.cli.connection import Connection
from aiobaseten.cli.display import Lines
from aiobaseten.cli.outcome import Exit, human_bytes
from aiobaseten.client import Client
from aiobaseten.errors import ApiError, BasetenError, ConfigurationError
from aiobaseten.events import CredentialsRenewed, Event, PartUploaded, Retrying, UploadAborted, UploadStarted
from aiobaseten.local import LocalStack
from aiobaseten.models import DeploymentArchivePayload, PrepareModelUploadRequest, UploadTarget
from aiobaseten.options import MiB, Options, TransferOptions
from aiobaseten.sources import open_source

SLICE_BYTES = 8 * MiB

OpenClient = Callable[[TransferOptions], Client]


class Bench:
    """One sweep. `report` is there once bytes are about to be sent, and stays, however the sweep ends."""

    def __init__(self, plan: Plan, connection: Connection, talk: Console, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self.report: Report | None = None
        self._plan = plan
        self._connection = connection
        self._talk = talk
        self._display = StepDisplay(talk)
        self._now_s = now_s
        self._model_name = f"aiobaseten-bench-{uuid.uuid4().hex[:12]}"

    async def run(self) -> Exit:
        """Measure every setting. `Exit.FAILED` if none of them could be, within the bounds.

        :raises ConfigurationError: for a plan that cannot work, before anything is sent
        :raises BasetenError: as prepare and upload do
        """
        plan = self._plan
        report = Report(plan=plan, size_bytes=await self._archive_size_bytes())
        self._check_disk(report)
        async with self._service() as open_client, self._archive(report.size_bytes) as archive:
            self.report = report
            try:
                with self._display.showing():
                    await self._sweep(report, open_client, archive)
            except BasetenError as error:
                report.ended, report.error = "failed", error
                raise
            except BaseException:
                report.ended = "interrupted"
                raise
            report.ended = "complete"
        return Exit.DONE if report.best else Exit.FAILED

    async def _archive_size_bytes(self) -> int:
        plan = self._plan
        size_bytes, what = plan.size_bytes, "--size"
        if plan.path is not None:
            async with await open_source(plan.path) as source:
                assert source.size_bytes is not None
                size_bytes, what = source.size_bytes, plan.path
        least_bytes = size_bytes + WARM_UP_BYTES
        if plan.max_bytes < least_bytes:
            raise ConfigurationError(
                f"--max-bytes must be at least {least_bytes} ({human_bytes(least_bytes)}), not {plan.max_bytes}: for one upload of"
                f" {what} after a warm-up of {human_bytes(WARM_UP_BYTES)}; --max-seconds ends long uploads early"
            )
        return size_bytes

    def _check_disk(self, report: Report) -> None:
        """Random bytes are in a file, and the local stack keeps even aborted parts on disk as long as it runs."""
        needed_bytes = report.size_bytes if self._plan.path is None else 0
        if self._plan.to == "local":
            needed_bytes += report.at_most_bytes
        directory = tempfile.gettempdir()
        free_bytes = shutil.disk_usage(directory).free
        if needed_bytes > free_bytes:
            raise ConfigurationError(
                f"this needs up to {human_bytes(needed_bytes)} in {directory}, where {human_bytes(free_bytes)} are free:"
                " give a smaller --size or --max-bytes, or set TMPDIR to another directory"
            )

    @asynccontextmanager
    async def _service(self) -> AsyncGenerator[OpenClient]:
        """Where uploads go."""
        if self._plan.to == "baseten":

            def open_client(transfer: TransferOptions) -> Client:
                return self._connection.client(transfer, observer=self._observe)

            open_client(TransferOptions())  # what is wrong with the key or a URL is told before a file is written
            yield open_client
            return
        for field in ("base_url", "s3_endpoint_url", "ca_bundle"):
            if getattr(self._connection, field) is not None:
                raise ConfigurationError(f"--{field.replace('_', '-')} is for --to baseten: the local stack has its own")
        self._say("Starting the local stack: a control plane, and SeaweedFS as its S3.")
        async with LocalStack() as stack:
            self._say("It measures this machine, over plain http; --to baseten measures the way to Baseten's store.")
            yield lambda transfer: stack.client(options=Options(transfer=transfer), observer=self._observe)

    @asynccontextmanager
    async def _archive(self, size_bytes: int) -> AsyncGenerator[str | Path]:
        """What is sent: the path that was given, else a temporary file of random bytes."""
        if self._plan.path is not None:
            yield self._plan.path
            return
        with temporary_file() as path:
            await fill(path, size_bytes)
            yield path

    async def _sweep(self, report: Report, open_client: OpenClient, archive: str | Path) -> None:
        plan = self._plan
        allowance = Allowance(bytes_left=plan.max_bytes, until_s=self._now_s() + plan.max_s)
        async with self._target("the warm-up", Setting(), open_client) as (client, target):
            self._announce(report, target)
            content = os.urandom(WARM_UP_BYTES)
            warm_up = await client.rehearse_upload(target, content, max_duration_s=self._seconds_until(allowance.until_s))
        allowance.spend(warm_up.size_bytes)
        for index, setting in enumerate(plan.settings):
            now_s = self._now_s()
            step = Step(setting=setting, skipped=allowance.reason_to_skip(setting, report.size_bytes, now_s))
            if step.skipped is None:
                limit_s = allowance.share_s(len(plan.settings) - index, now_s)
                with self._display.step(str(setting), report.size_bytes, limit_s):
                    async with self._target(str(setting), setting, open_client) as (client, target):
                        rehearsal = await client.rehearse_upload(
                            target, archive, max_duration_s=self._seconds_until(now_s + limit_s)
                        )
                allowance.spend(rehearsal.size_bytes, rehearsal.bytes_per_s)
                step = Step(setting=setting, rehearsal=rehearsal)
            report.steps.append(step)
            self._display.show(step)

    @asynccontextmanager
    async def _target(self, name: str, setting: Setting, open_client: OpenClient) -> AsyncGenerator[tuple[Client, UploadTarget]]:
        """A client for one setting, and a place to upload to. Errors in the block are told to be of that name."""
        try:
            async with open_client(setting.options) as client:
                yield client, await self._prepare(client)
        except BasetenError as error:
            error.add_note(f"while measuring {name}")
            raise

    def _announce(self, report: Report, target: UploadTarget) -> None:
        what = "random bytes" if self._plan.path is None else f"the archive of {self._plan.path}"
        self._say(
            f"Sending at most {human_bytes(report.at_most_bytes)} of {what}, for about {self._plan.max_s:g} s at most, to the"
            f" bucket {target.bucket} in {target.region}."
            " Every upload is aborted: nothing is kept there, and no deployment is made."
        )

    def _seconds_until(self, until_s: float) -> float:
        return max(0.0, until_s - self._now_s())

    async def _prepare(self, client: Client) -> UploadTarget:
        deployment = DeploymentArchivePayload(config={"model_name": self._model_name})
        response = await client.prepare_model_upload(PrepareModelUploadRequest(name=self._model_name, deployment=deployment))
        if response.target is None:
            raise ApiError(
                "the service says that no upload is needed, so there is nothing to measure",
                method="POST",
                path="/v1/prepare_model_upload",
            )
        return response.target

    def _observe(self, event: Event) -> None:
        if isinstance(event, PartUploaded) and self.report is not None:
            self.report.sent_bytes += event.size_bytes
        self._display(event)

    def _say(self, text: str) -> None:
        self._talk.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def temporary_file() -> Generator[Path]:
    """An empty file, which is removed at the end."""
    descriptor, name = tempfile.mkstemp(prefix="aiobaseten-bench-")
    os.close(descriptor)
    path = Path(name)
    try:
        yield path
    finally:
        path.unlink()


async def fill(path: Path, size_bytes: int) -> None:
    """Fill a file with random bytes, which no store or network can compress.

    :raises ConfigurationError: if it cannot be written
    """
    try:
        for offset in range(0, size_bytes, SLICE_BYTES):
            await anyio.to_thread.run_sync(_write_slice, path, offset, min(SLICE_BYTES, size_bytes - offset))
    except OSError as error:
        raise ConfigurationError(f"{human_bytes(size_bytes)} cannot be written to {path}: {error.strerror}") from error


def _write_slice(path: Path, offset: int, size_bytes: int) -> None:
    """Opens the file itself, and never makes it: a slice that goes on after a cancellation can do no harm."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(os.urandom(size_bytes))


class StepDisplay:
    """A line for each step that has ended and for each retry; on a terminal, below them, a bar for the step that runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            _Pace(),
            console=console,
            transient=True,
            redirect_stdout=False,  # or results for another program would end up on the terminal
        )
        self._lines = Lines(console)
        self._running: TaskID | None = None

    def showing(self) -> AbstractContextManager[object]:
        return self._progress if self._console.is_terminal else nullcontext()

    @contextmanager
    def step(self, name: str, size_bytes: int, limit_s: float) -> Generator[None]:
        """Around a step. Its clock runs from its upload's start."""
        self._running = self._progress.add_task(name, start=False, total=size_bytes, limit_s=limit_s)
        try:
            yield
        finally:
            self._progress.remove_task(self._running)
            self._progress.refresh()
            self._running = None

    def show(self, step: Step) -> None:
        """What became of a step."""
        self._console.print(str(step), markup=False, highlight=False, soft_wrap=True)

    def __call__(self, event: Event) -> None:
        match event:
            case UploadStarted() if self._running is not None:
                self._progress.start_task(self._running)
            case PartUploaded() if self._running is not None:
                self._progress.advance(self._running, event.size_bytes)
            case Retrying() | CredentialsRenewed():
                self._lines(event)
            case UploadAborted() if event.error is not None:
                self._lines(event)
            case _:
                pass


class _Pace(ProgressColumn):
    """The rate so far, and the time left: to the step's limit, or to the end of its bytes where that comes first."""

    def render(self, task: Task) -> Text:
        elapsed_s = task.elapsed or 0.0
        left_s: float = max(0.0, task.fields["limit_s"] - elapsed_s)
        bytes_per_s = task.completed / elapsed_s if elapsed_s else 0.0
        if bytes_per_s:
            left_s = min(left_s, (task.remaining or 0.0) / bytes_per_s)
        return Text(f"{bytes_per_s / MiB:.1f} MiB/s, {left_s:.0f} s left")
