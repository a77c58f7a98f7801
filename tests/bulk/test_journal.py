"""What the journal writes is there after any end of the process; the rest of its file is in test_journal_file.py."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ledgers
from support.ledgers import COMMIT, CREATED, DEPLOYMENT, RECEIPT, SECRETS, TARGET, part

from aiobaseten.bulk import journal_writer
from aiobaseten.bulk.journal import Journal, JournalEntry
from aiobaseten.bulk.journal_file import Changes, JournalFile
from aiobaseten.errors import CommitUncertain, JournalError, ServerError
from aiobaseten.ledger import Ledger, SentCommit
from aiobaseten.models import UploadTarget
from aiobaseten.retry import Clock
from aiobaseten.upload import PartialUpload

pytestmark = pytest.mark.anyio

CLOCK = Clock(time=lambda: 1_764_000_000.5)

CHILD = """
import anyio, sys
from aiobaseten.bulk.journal import Journal
from support.ledgers import COMMIT, RECEIPT, TARGET, part

async def main():
    async with Journal(sys.argv[1]) as journal:
        entry = await journal.entry("a", push_id="id-a", name="iris", source="./iris")
        other = await journal.entry("b", push_id="id-b", name="wine", source="./wine")
        await entry.prepared("print", TARGET)
        await other.prepared("print", TARGET)
        await other.upload_created(TARGET, "upload", 8_000_000)
        other.part_uploaded(part(1))
        await entry.uploaded(RECEIPT)
        await entry.committing(COMMIT, 1_764_000_000.25)
        print("committing", flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deploy.db"


@asynccontextmanager
async def opened(path: Path, key: str = "a", **options: Any) -> AsyncIterator[JournalEntry]:
    async with Journal(path, clock=CLOCK, **options) as journal:
        yield await journal.entry(key, push_id="id", name="iris", source="./iris")


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    """What another process would see in the file now."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def writer_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "aiobaseten-journal"]


class Gate:
    """Holds the writer thread up before each transaction until it is opened, and counts the transactions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self.is_open = threading.Event()
        self.transactions: list[Changes] = []
        write = JournalFile.write

        def held_up(file: JournalFile, changes: Changes) -> None:
            self.reached.set()
            assert self.is_open.wait(30)
            self.transactions.append(changes)
            write(file, changes)

        monkeypatch.setattr(JournalFile, "write", held_up)

    async def holds(self) -> None:
        assert await anyio.to_thread.run_sync(self.reached.wait, 30)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.is_open.set()


async def test_a_new_entry_is_pending_and_has_an_id_of_its_own(path: Path) -> None:
    async with Journal(path) as journal:
        first = await journal.entry("a", name="iris", source="./iris")
        second = await journal.entry("b", name="iris", source="./iris")
        assert (first.state, first.created, first.error) == ("pending", None, None)
        assert len(first.push_id) == 32
        assert first.push_id != second.push_id
    assert rows(path, "SELECT key, state, push_id FROM pushes ORDER BY id") == [
        ("a", "pending", first.push_id),
        ("b", "pending", second.push_id),
    ]


async def test_an_entry_is_as_the_earlier_run_left_it(path: Path) -> None:
    async with opened(path) as entry:
        await entry.prepared("print", TARGET)
        await entry.uploaded(RECEIPT)
        await entry.committing(COMMIT, 12.5)
        await entry.committed(CREATED)
    async with Journal(path) as journal:
        entry = await journal.entry("a", push_id="another", name="another", source="another")
        assert (entry.state, entry.push_id, entry.name, entry.source) == ("committed", "id", "iris", "./iris")
        assert entry.created == CREATED
        assert entry.receipt == RECEIPT
        assert entry.sent == SentCommit(commit=COMMIT, sent_at_s=12.5)
        assert entry.fingerprint == "print"
        assert entry.place == TARGET.place
        assert entry.target is None


async def test_an_entry_asked_for_again_has_what_was_put_in_meanwhile(path: Path) -> None:
    async with Journal(path) as journal:
        entry = await journal.entry("a", name="iris", source="./iris")
        await entry.prepared("print", None)
        again = await journal.entry("a", name="iris", source="./iris")
        assert (again.state, again.fingerprint, again.push_id) == ("prepared", "print", entry.push_id)


async def test_each_step_is_in_the_file_when_it_has_returned(path: Path) -> None:
    async with opened(path) as entry:

        def state() -> str:
            [(key, state, updated_at_s)] = rows(path, "SELECT key, state, updated_at_s FROM pushes")
            assert (key, updated_at_s) == ("a", 1_764_000_000.5)
            assert state == entry.state
            return str(state)

        await entry.prepared("print", TARGET)
        await entry.upload_created(TARGET, "upload", 5_000_000)
        assert state() == "uploading"
        await entry.uploaded(RECEIPT)
        assert state() == "uploaded"
        await entry.committing(COMMIT, 12.5)
        assert state() == "committing"
        assert rows(path, "SELECT sent_at_s FROM pushes") == [(12.5,)]
        await entry.not_committed()
        assert state() == "uploaded"
        await entry.failed(ServerError("down", status=503))
        assert state() == "failed"
        assert entry.error == "down (status 503)"
        assert rows(path, "SELECT error FROM pushes") == [("down (status 503)",)]
        await entry.committing(COMMIT, 13.5)
        await entry.committed(CREATED)
        assert state() == "committed"
        assert entry.error is None
        up = attrs.evolve(DEPLOYMENT, status="ACTIVE")
        await entry.active(up)
        assert state() == "active"
    async with opened(path) as entry:
        assert entry.created == attrs.evolve(CREATED, deployment=up)
        assert entry.state == "active"


async def test_not_committed_without_an_upload_leaves_it_prepared(path: Path) -> None:
    async with opened(path) as entry:
        await entry.prepared(None, None)
        await entry.committing(COMMIT, 12.5)
        await entry.not_committed()
        assert (entry.state, entry.sent) == ("prepared", None)


async def test_a_failure_after_the_commit_does_not_hide_it(path: Path) -> None:
    async with opened(path) as entry:
        await entry.prepared("print", TARGET)
        await entry.committing(COMMIT, 12.5)
        await entry.failed(CommitUncertain("nobody knows"))
        assert (entry.state, entry.error) == ("committing", "nobody knows")
    async with opened(path) as entry:
        assert (entry.state, entry.error) == ("committing", "nobody knows")
        assert entry.sent is not None
        await entry.committed(CREATED)
        assert (entry.state, entry.error) == ("committed", None)
        await entry.failed(KeyError())
        assert (entry.state, entry.error) == ("committed", "KeyError")


async def test_an_upload_goes_on_in_the_next_run(path: Path) -> None:
    parts = [part(1, None), part(2, 0), part(3, (1 << 64) - 1), part(5, 1 << 63), part(4)]
    async with opened(path) as entry:
        await entry.prepared("print", TARGET)
        await entry.upload_created(TARGET, "upload", 5_000_000)
        for each in parts[:3]:
            entry.part_uploaded(each)
        await entry.failed(ServerError("down"))
        assert entry.state == "failed"
    async with opened(path) as entry:
        assert entry.partial == PartialUpload(upload_id="upload", part_size_bytes=5_000_000, parts=parts[:3])
        assert (entry.place, entry.target) == (TARGET.place, None)
        for each in parts[3:]:
            entry.part_uploaded(each)
        assert entry.state == "uploading"
    async with opened(path) as entry:
        assert entry.partial is not None
        assert entry.partial.parts == sorted(parts, key=lambda each: each.number)
        await entry.prepared("print", TARGET)
        assert entry.state == "uploading"
        await entry.uploaded(RECEIPT)
    assert rows(path, "SELECT count(*) FROM parts") == [(0,)]
    async with opened(path) as entry:
        assert (entry.partial, entry.receipt) == (None, RECEIPT)


async def test_parts_of_an_upload_that_is_gone_are_forgotten(path: Path) -> None:
    async with opened(path) as entry:
        await entry.prepared("print", TARGET)
        await entry.upload_created(TARGET, "first", 5_000_000)
        entry.part_uploaded(part(1))
        entry.part_uploaded(part(2))
        entry.upload_gone()
        assert entry.state == "prepared"
        await entry.upload_created(TARGET, "second", 5_000_000)
        entry.part_uploaded(part(1))
    async with opened(path) as entry:
        assert entry.partial == PartialUpload(upload_id="second", part_size_bytes=5_000_000, parts=[part(1)])
        await entry.prepared("another", TARGET)
        entry.upload_gone()
    async with opened(path) as entry:
        assert (entry.partial, entry.fingerprint, entry.state) == (None, "another", "prepared")
    assert rows(path, "SELECT count(*) FROM parts") == [(0,)]


async def test_many_pushes_at_once_are_written_together(path: Path, gate: Gate) -> None:
    async with Journal(path) as journal:
        first = await journal.entry("first", name="iris", source="./iris")
        await gate.holds()
        entries = [await journal.entry(f"{number}", name="iris", source="./iris") for number in range(100)]

        async def push(entry: JournalEntry) -> None:
            await entry.upload_created(TARGET, f"upload of {entry.key}", 5_000_000)
            entry.part_uploaded(part(1))

        async with anyio.create_task_group() as tasks:
            for entry in (first, *entries):
                tasks.start_soon(push, entry)
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            gate.is_open.set()
    assert [len(changes.rows) for changes in gate.transactions[:2]] == [1, 101]
    assert rows(path, "SELECT count(*), count(DISTINCT upload_id) FROM pushes") == [(101, 101)]
    assert rows(path, "SELECT count(*) FROM parts") == [(101,)]


async def test_a_step_may_be_cancelled_while_it_is_written(path: Path, gate: Gate) -> None:
    async with opened(path) as entry:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(entry.committing, COMMIT, 12.5)
                await gate.holds()
                scope.cancel()
        assert scope.cancelled_caught
        task = asyncio.ensure_future(entry.committing(COMMIT, 13.5))
        await anyio.lowlevel.checkpoint()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.is_open.set()
        await entry.failed(CommitUncertain("cancelled"))
    async with opened(path) as entry:
        assert entry.sent == SentCommit(commit=COMMIT, sent_at_s=13.5)
        assert entry.state == "committing"


async def test_leaving_writes_what_is_queued_however_often_it_is_cancelled(path: Path, gate: Gate) -> None:
    async def run() -> None:
        async with opened(path) as entry:
            await entry.prepared("print", TARGET)

    task = asyncio.ensure_future(run())
    await gate.holds()
    for _ in range(3):
        task.cancel()
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
    assert not task.done()
    gate.is_open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rows(path, "SELECT state FROM pushes") == [("prepared",)]
    assert writer_threads() == []


async def test_leaving_in_a_cancelled_scope_writes_what_is_queued(path: Path) -> None:
    with anyio.CancelScope() as scope:
        async with opened(path) as entry:
            await entry.prepared("print", TARGET)
            scope.cancel()
    assert rows(path, "SELECT state FROM pushes") == [("prepared",)]
    assert writer_threads() == []


async def test_opening_may_be_cancelled(path: Path) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with Journal(path):
            pytest.fail("was cancelled before")
    assert writer_threads() == []
    async with opened(path) as entry:
        assert entry.state == "pending"


async def test_a_closed_journal_leaves_one_file_and_no_thread(path: Path) -> None:
    async with opened(path) as entry:
        await entry.failed(ServerError("down"))
        assert len(writer_threads()) == 1
    assert writer_threads() == []
    assert {each.name for each in path.parent.iterdir()} - {"deploy.db.lock"} == {"deploy.db"}


async def test_a_closed_journal_takes_no_steps(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises(JournalError, match=r"deploy\.db is not open"):
        await journal.entry("a", name="iris", source="./iris")
    async with journal:
        entry = await journal.entry("a", name="iris", source="./iris")
        await entry.upload_created(TARGET, "upload", 5_000_000)
    entry.part_uploaded(part(1))
    with pytest.raises(JournalError, match=r"deploy\.db is closed"):
        await entry.committing(COMMIT, 12.5)
    async with journal:
        entry = await journal.entry("a", name="iris", source="./iris")
        assert entry.partial == PartialUpload(upload_id="upload", part_size_bytes=5_000_000)


Explode = Callable[[], None]


@pytest.fixture
def explode(monkeypatch: pytest.MonkeyPatch) -> Explode:
    """From the call on, nothing can be written."""

    def fail(file: JournalFile, changes: Changes) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    return lambda: monkeypatch.setattr(JournalFile, "write", fail)


FULL = r"deploy\.db cannot be written or read any more: database or disk is full"


async def test_transactions_keep_a_distance_in_which_steps_gather(path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    monkeypatch.setattr(journal_writer, "PACE_S", 0.05)
    gate.is_open.set()
    ended_s: list[float] = []
    async with Journal(path) as journal:
        entries = [await journal.entry(key, name="iris", source="./iris") for key in "abcdefgh"]
        await entries[0].committing(COMMIT, 12.5)
        for _ in range(3):
            ended_s.append(time.monotonic())
            async with anyio.create_task_group() as tasks:
                for entry in entries:
                    tasks.start_soon(entry.committing, COMMIT, 12.5)
        ended_s.append(time.monotonic())
    assert len(gate.transactions) <= 2 + 3
    assert ended_s[-1] - ended_s[0] >= 3 * 0.05


async def test_after_a_failure_of_writing_no_step_is_taken(path: Path, explode: Explode) -> None:
    failures: list[JournalError] = []

    async def run() -> None:
        async with Journal(path) as journal:
            entry = await journal.entry("a", name="iris", source="./iris")
            await entry.committing(COMMIT, 12.5)
            explode()
            for step in (
                lambda: entry.committed(CREATED),
                lambda: entry.uploaded(RECEIPT),
                lambda: entry.prepared(None, None),
                lambda: entry.failed(ServerError()),
                lambda: journal.entry("a", name="iris", source="./iris"),
                lambda: journal.entry("b", name="iris", source="./iris"),
            ):
                with pytest.raises(JournalError, match=FULL) as caught:
                    await step()
                failures.append(caught.value)

    with pytest.raises(JournalError, match=FULL) as caught:
        await run()
    failures.append(caught.value)
    assert len({id(failure) for failure in failures}) == 7
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    assert writer_threads() == []
    assert rows(path, "SELECT state FROM pushes") == [("committing",)]


async def test_a_queued_step_that_fails_is_told_by_the_next_one(path: Path, explode: Explode) -> None:
    async def run() -> None:
        async with opened(path) as entry:
            await entry.upload_created(TARGET, "upload", 5_000_000)
            explode()
            entry.part_uploaded(part(1))
            with pytest.raises(JournalError, match=FULL):
                await entry.not_committed()

    with pytest.raises(JournalError, match=FULL):
        await run()


async def test_a_queued_step_that_fails_is_told_at_the_end(path: Path, explode: Explode) -> None:
    async def run() -> None:
        async with opened(path) as entry:
            await entry.upload_created(TARGET, "upload", 5_000_000)
            explode()
            entry.upload_gone()

    with pytest.raises(JournalError, match=FULL):
        await run()


async def test_the_failure_of_the_run_is_not_hidden_by_the_journals(path: Path, explode: Explode) -> None:
    async def run() -> None:
        async with opened(path) as entry:
            explode()
            await entry.prepared("print", None)
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        await run()
    [note] = caught.value.__notes__
    assert "database or disk is full" in note


async def test_a_failure_that_was_raised_already_is_not_told_twice(path: Path, explode: Explode) -> None:
    async def run() -> None:
        async with opened(path) as entry:
            explode()
            await entry.committing(COMMIT, 12.5)

    with pytest.raises(JournalError, match=FULL) as caught:
        await run()
    assert not hasattr(caught.value, "__notes__")


async def test_those_who_read_hear_of_a_failure_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path):
        pass

    def fail(file: JournalFile, push: int) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(JournalFile, "read", fail)
    with pytest.raises(JournalError, match=r"read any more: database disk image is malformed"):
        async with opened(path):
            pytest.fail("cannot be read")


async def test_a_row_that_cannot_be_read_is_named(path: Path) -> None:
    async with opened(path) as entry:
        await entry.uploaded(RECEIPT)
    for text, words in (("{", "Expecting property name"), ('{"bucket": 1}', r"\$\.bucket: must be a string")):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE pushes SET receipt = ?", [text])
        with pytest.raises(JournalError, match=rf"deploy\.db is damaged: the row of 'a' cannot be read: .*{words}"):
            async with opened(path):
                pytest.fail("cannot be read")


async def test_texts_that_are_not_unicode_are_kept_as_escapes(path: Path) -> None:
    name = "./\udcff-\N{SNOWMAN}\0"
    async with Journal(path) as journal:
        entry = await journal.entry(name, push_id="id", name=name, source=name)
        await entry.failed(ValueError(name))
    async with Journal(path) as journal:
        entry = await journal.entry(name, name="another", source="another")
        assert entry.push_id == "id"
        assert (entry.name, entry.source, entry.error) == ("./\\udcff-\N{SNOWMAN}\0",) * 3


def secrets_in(path: Path) -> set[bytes]:
    content = b"".join(each.read_bytes() for each in path.parent.glob("deploy.db*"))
    return {secret for secret in SECRETS if secret in content}


async def test_credentials_are_not_kept_unless_asked_for(path: Path) -> None:
    async with opened(path) as entry:
        await entry.prepared("print", TARGET)
        await entry.upload_created(TARGET, "upload", 5_000_000)
        assert secrets_in(path) == set()
        assert "planted" not in repr(entry)
        await entry.uploaded(RECEIPT)
        await entry.committing(COMMIT, 12.5)
        await entry.committed(CREATED)
        assert secrets_in(path) == set()
    assert secrets_in(path) == set()


async def test_credentials_that_are_kept_come_back(path: Path) -> None:
    async with opened(path, keep_credentials=True) as entry:
        await entry.prepared("print", TARGET)
        await entry.upload_created(TARGET, "upload", 5_000_000)
        await entry.failed(ServerError("down"))
    assert secrets_in(path) == set(SECRETS)
    async with opened(path, keep_credentials=True) as entry:
        assert entry.target == TARGET
        assert "planted" not in repr(entry)
        assert "planted" not in repr(entry._page)


@pytest.mark.parametrize("end", ["uploaded", "committed", "failed", "another run"])
async def test_kept_credentials_go_when_they_are_of_no_more_use(path: Path, end: str) -> None:
    async with Journal(path, keep_credentials=True) as journal:
        entries = [await journal.entry(f"{number}", name="iris", source="./iris") for number in range(200)]
        for entry in entries:
            await entry.prepared("print", TARGET)
        await entries[0].upload_created(TARGET, "upload", 5_000_000)
        assert rows(path, "SELECT count(*) FROM credentials") == [(200,)]
        for entry in entries:
            match end:
                case "uploaded":
                    await entry.uploaded(RECEIPT)
                case "committed":
                    await entry.committed(CREATED)
                case "failed":
                    entry.upload_gone()
                    await entry.failed(ServerError("down"))
                case _:
                    continue
            assert rows(path, f"SELECT count(*) FROM credentials WHERE push = {int(entry.key) + 1}") == [(0,)]
    if end == "another run":
        async with opened(path) as entry:
            assert entry.target is None
    assert secrets_in(path) == set()


def run_child(path: Path) -> subprocess.Popen[str]:
    tests = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)],
        env={**os.environ, "PYTHONPATH": str(tests)},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
async def test_a_killed_process_leaves_what_it_had_been_told_is_safe(path: Path) -> None:
    with run_child(path) as child:
        assert child.stdout is not None
        assert await anyio.to_thread.run_sync(child.stdout.readline) == "committing\n"
        child.kill()
    async with Journal(path) as journal:
        entry = await journal.entry("a", name="", source="")
        assert (entry.state, entry.push_id, entry.name) == ("committing", "id-a", "iris")
        assert entry.sent == SentCommit(commit=COMMIT, sent_at_s=1_764_000_000.25)
        assert entry.receipt == RECEIPT
        other = await journal.entry("b", name="", source="")
        assert other.partial == PartialUpload(upload_id="upload", part_size_bytes=8_000_000, parts=[part(1)])


class Steps:
    """Takes the same steps in memory and in a journal."""

    def __init__(self, path: Path, keep_credentials: bool) -> None:
        self.path = path
        self.keep_credentials = keep_credentials
        self.expected = Ledger(push_id="id")
        self.has_failed = False

    async def take(self, entry: JournalEntry, name: str, values: tuple[Any, ...]) -> None:
        if (name == "part_uploaded" and self.expected.partial is None) or (name == "active" and self.expected.created is None):
            return
        self.has_failed = name == "failed" or (self.has_failed and name == "part_uploaded")
        match name:
            case "failed":
                await entry.failed(values[0])
            case "active":
                assert self.expected.created is not None
                self.expected.created = attrs.evolve(self.expected.created, deployment=values[0])
                await entry.active(values[0])
            case "part_uploaded" | "upload_gone":
                getattr(self.expected, name)(*values)
                getattr(entry, name)(*values)
            case _:
                await getattr(self.expected, name)(*values)
                await getattr(entry, name)(*values)

    async def run(self, runs: list[list[tuple[str, tuple[Any, ...]]]]) -> None:
        for steps in runs:
            async with opened(self.path, keep_credentials=self.keep_credentials) as entry:
                self.compare(entry)
                for name, values in steps:
                    await self.take(entry, name, values)
                state, error = entry.state, entry.error
            async with opened(self.path, keep_credentials=self.keep_credentials) as entry:
                assert (entry.state, entry.error) == (state, error)
                self.compare(entry)

    def compare(self, entry: JournalEntry) -> None:
        expected = self.expected
        for field in ("push_id", "fingerprint", "place", "receipt", "sent", "created"):
            assert getattr(entry, field) == getattr(expected, field), field
        assert by_number(entry.partial) == by_number(expected.partial)
        of_use = expected.receipt is None and expected.created is None and (expected.partial is not None or not self.has_failed)
        if of_use or entry.target is not None:
            assert entry.target == (expected.target if self.keep_credentials else None)
        elif expected.partial is not None:
            assert entry.place == expected.place


def by_number(partial: PartialUpload | None) -> object:
    return partial and (partial.upload_id, partial.part_size_bytes, {part.number: part for part in partial.parts})


def steps() -> st.SearchStrategy[tuple[str, tuple[Any, ...]]]:
    texts = ledgers.TEXTS
    values: dict[str, tuple[st.SearchStrategy[Any], ...]] = {
        "prepared": (st.none() | st.sampled_from(["one", "two"]), st.none() | ledgers.targets()),
        "upload_created": (ledgers.targets(), texts.filter(bool), st.integers(5 << 20, 5 << 30)),
        "part_uploaded": (ledgers.parts(),),
        "upload_gone": (),
        "uploaded": (ledgers.receipts(),),
        "committing": (ledgers.commits(), st.floats(0, 4e9)),
        "not_committed": (),
        "committed": (ledgers.created(),),
        "active": (ledgers.model_deployments(),),
        "failed": (st.builds(ServerError, texts),),
    }
    return st.one_of(*(st.tuples(st.just(name), st.tuples(*strategies)) for name, strategies in values.items()))


@settings(max_examples=60)
@given(keep_credentials=st.booleans(), runs=st.lists(st.lists(steps(), max_size=8), min_size=1, max_size=3))
def test_any_steps_come_back_as_they_were_taken(keep_credentials: bool, runs: list[list[tuple[str, tuple[Any, ...]]]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        anyio.run(Steps(Path(directory, "deploy.db"), keep_credentials).run, runs)


async def test_an_upload_may_begin_at_another_place_than_prepare_said(path: Path) -> None:
    elsewhere = UploadTarget(credentials=TARGET.credentials, bucket="bucket", key="elsewhere", region="eu-west-1")
    async with opened(path, keep_credentials=True) as entry:
        await entry.prepared("print", TARGET)
        await entry.upload_created(elsewhere, "upload", 5_000_000)
    async with opened(path, keep_credentials=True) as entry:
        assert (entry.place, entry.target) == (elsewhere.place, elsewhere)
