"""The thread that writes a run's journal.

Pushes hand their steps over through a queue and go on, or wait for them to be on the disk. The thread takes all that has come up
meanwhile and writes it in one transaction, with one fsync, and wakes all who waited for it with one call to the event loop.
Transactions keep a little distance: each costs the same, however much it holds.
"""

from __future__ import annotations

import asyncio
import threading
import time
from queue import Empty, SimpleQueue
from typing import Any, Literal

import anyio
import attrs

from aiobaseten._redaction import scrub
from aiobaseten._threads import run_to_end
from aiobaseten.bulk.journal_file import Changes, CredentialsRow, JournalFile, PartRow, PushRow, StoredPush
from aiobaseten.errors import JournalError

PACE_S = 0.01
"""From the end of one transaction to the next, at least. A push has three to wait for, among calls that take much longer."""


@attrs.define
class Step:
    """What one push has to write, or to read.

    :ivar gone: whether all parts that were written before are deleted
    :ivar credentials: None where those that are there are deleted
    """

    push: int
    row: PushRow | None = None
    gone: bool = False
    part: PartRow | None = None
    credentials: CredentialsRow | Literal["unchanged"] | None = "unchanged"
    read: asyncio.Future[StoredPush] | None = None
    written: asyncio.Future[None] | None = None


class _Batch:
    """Steps that are taken together."""

    def __init__(self) -> None:
        self.changes = Changes()
        self.reads: list[tuple[asyncio.Future[StoredPush], int]] = []
        self.waiting: list[asyncio.Future[None]] = []
        self.changes_anything = False
        self.answers: list[tuple[asyncio.Future[Any], Any]] = []

    def fill(self, queue: SimpleQueue[Step | None], *, earliest_s: float) -> bool:
        """Take all that is in the queue, at least one step. Returns whether more may come.

        :param earliest_s: before which nothing is to be written
        """
        step = queue.get()
        if step is not None and step.read is None and (early_s := earliest_s - time.monotonic()) > 0:
            time.sleep(early_s)
        try:
            while step is not None:
                self._add(step)
                step = queue.get_nowait()
        except Empty:
            return True
        return False

    def _add(self, step: Step) -> None:
        push, changes = step.push, self.changes
        if step.read is not None:
            self.reads.append((step.read, push))
            return
        self.changes_anything = True
        if step.row is not None:
            changes.rows[push] = step.row
        if step.gone:
            changes.gone.add(push)
            changes.parts.pop(push, None)
        if step.part is not None:
            changes.parts.setdefault(push, {})[step.part.number] = step.part
        if step.credentials != "unchanged":
            changes.credentials[push] = step.credentials
        if step.written is not None:
            self.waiting.append(step.written)

    def run(self, file: JournalFile) -> None:
        if self.changes_anything:
            file.write(self.changes)
        self.answers = [(future, None) for future in self.waiting]
        self.answers += [(future, file.read(push)) for future, push in self.reads]

    def fail(self, error: JournalError) -> None:
        self.answers = [(future, error) for future in self.waiting]
        self.answers += [(future, error) for future, _ in self.reads]

    def wake(self) -> None:
        """Let those go on who wait, and have not been cancelled. Runs on the event loop."""
        for future, answer in self.answers:
            _resolve(future, answer)


class JournalWriter:
    """A journal's file in its thread, as the event loop uses it. After the first failure no step is taken any more."""

    def __init__(self, file: JournalFile) -> None:
        self._file = file
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[Step | None] = SimpleQueue()
        self._opened: asyncio.Future[dict[str, int]] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="aiobaseten-journal")
        self._closing = False
        self._failure: JournalError | None = None

    async def open(self) -> dict[str, int]:
        """Open the file.

        :returns: the id of each push's row by the push's key
        :raises JournalError: if it cannot be used, or is in use
        """
        self._thread.start()
        try:
            return await self._opened
        except BaseException:
            await self.close()
            raise

    def put(self, step: Step) -> None:
        """Have a step written soon. Whether that fails is told by what comes next."""
        if not self._closing:
            self._queue.put(step)

    def check(self) -> None:
        """:raises JournalError: if no more steps can be taken"""
        if self._failure is not None:
            raise _again(self._failure)
        if self._closing:
            raise JournalError(f"the journal {self._file.path} is closed")

    async def write(self, step: Step) -> None:
        """Have a step written. Returns once it is on the disk.

        :raises JournalError: if it could not be, or an earlier one could not be
        """
        self.check()
        step.written = self._loop.create_future()
        self._queue.put(step)
        await step.written

    async def read(self, push: int) -> StoredPush:
        """All that is known of one push, with what has been put in meanwhile.

        :raises JournalError: if it cannot be read
        """
        self.check()
        read: asyncio.Future[StoredPush] = self._loop.create_future()
        self._queue.put(Step(push, read=read))
        return await read

    async def close(self) -> None:
        """Write what has been put in, close the file and end the thread, however this is cancelled."""
        self._closing = True
        self._queue.put(None)
        cancelled: asyncio.CancelledError | None = None
        with anyio.CancelScope(shield=True):
            while self._thread.is_alive():
                try:
                    await run_to_end(lambda _: self._thread.join())
                except asyncio.CancelledError as error:
                    cancelled = error
        if cancelled is not None:
            raise cancelled

    @property
    def failure(self) -> JournalError | None:
        """Why writing has failed, if it has."""
        return self._failure and _again(self._failure)

    def _run(self) -> None:
        try:
            with self._file as ids:
                self._answer(self._opened, ids)
                self._serve()
        except Exception as error:  # noqa: BLE001 - whoever waits for the file to open must hear of it, whatever it is
            self._answer(self._opened, error)

    def _serve(self) -> None:
        more, earliest_s = True, 0.0
        while more:
            batch = _Batch()
            more = batch.fill(self._queue, earliest_s=earliest_s)
            try:
                if self._failure is None:
                    batch.run(self._file)
            except Exception as error:  # noqa: BLE001 - those who wait must hear of it, whatever it is
                scrub(error)
                self._failure = JournalError(f"the journal {self._file.path} cannot be written or read any more: {error}")
                self._failure.__cause__ = error
            if self._failure is not None:
                batch.fail(self._failure)
            if batch.answers:
                self._loop.call_soon_threadsafe(batch.wake)
            if batch.changes_anything:
                earliest_s = time.monotonic() + PACE_S

    def _answer(self, future: asyncio.Future[Any], answer: object) -> None:
        self._loop.call_soon_threadsafe(_resolve, future, answer)


def _resolve(future: asyncio.Future[Any], answer: object) -> None:
    if future.done():
        return
    match answer:
        case JournalError():
            future.set_exception(_again(answer))
        case Exception():
            future.set_exception(answer)
        case _:
            future.set_result(answer)


def _again(failure: JournalError) -> JournalError:
    """The same failure for one more caller: one exception raised in many places would collect all their tracebacks."""
    error = JournalError(failure.message)
    error.__cause__ = failure.__cause__
    return error
