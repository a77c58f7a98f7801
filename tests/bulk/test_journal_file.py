"""Which files a journal opens, how it keeps others out, and what it says when it cannot."""

from __future__ import annotations

import os
import random
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from filelock import FileLock
from support.ledgers import RECEIPT, TARGET
from support.processes import names_in

from aiobaseten.bulk import journal_file
from aiobaseten.bulk.journal import Journal
from aiobaseten.errors import JournalError, ServerError

pytestmark = pytest.mark.anyio

HOLDER = """
import anyio, sys
from aiobaseten.bulk.journal import Journal
from aiobaseten.retry import Clock

async def main():
    async with Journal(sys.argv[1], clock=Clock(time=lambda: 1_764_000_000.5)):
        print("open", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)

anyio.run(main)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deploy.db"


async def opens(path: str | Path) -> int:
    """How many pushes a journal holds."""
    async with Journal(path) as journal:
        return len(journal._ids)


async def make(path: Path, pushes: int = 1) -> None:
    async with Journal(path) as journal:
        for number in range(pushes):
            entry = await journal.entry(f"{number}", name="iris", source="./iris")
            await entry.prepared("print" * 10, TARGET)


async def refused(path: str | Path, words: str) -> None:
    """Opening fails with these words, and has neither kept the lock nor changed what is in the file."""
    before = content_of(path)
    with pytest.raises(JournalError, match=words) as caught:
        await opens(path)
    assert not caught.value.retryable
    assert content_of(path) == before
    if content_of(lock_of(path)) is not None:
        with FileLock(lock_of(path), timeout=0):
            pass


def lock_of(path: str | Path) -> Path:
    return Path(path).with_name("deploy.db.lock")


def content_of(path: str | Path) -> bytes | None:
    return Path(path).read_bytes() if Path(path).is_file() else None


def put(path: Path, content: bytes = b"", mode: int = 0o600) -> None:
    path.write_bytes(content)
    path.chmod(mode)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write_as(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


@contextmanager
def unprivileged() -> Iterator[Path]:
    """A directory whose permissions count, also where the tests run as root."""
    with tempfile.TemporaryDirectory() as directory:
        if os.geteuid():
            yield Path(directory)
            return
        os.chown(directory, 65534, 65534)
        os.seteuid(65534)
        try:
            yield Path(directory)
        finally:
            os.seteuid(0)


def link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def run_holder(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def test_a_journal_may_be_named_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("deploy.db", ":memory:", "a?b#c%20d.db", "\N{SNOWMAN}.db"):
        await make(Path(name))
        assert await opens(name) == 1
        assert content_of(tmp_path / name)


async def test_a_link_leads_to_the_journal_and_its_lock(tmp_path: Path, path: Path) -> None:
    await make(path)
    other = tmp_path / "link.db"
    link(other, path)
    async with Journal(path):
        with pytest.raises(JournalError, match=r"link\.db is in use"):
            await opens(other)
    assert await opens(other) == 1
    assert "link.db.lock" not in names_in(tmp_path)


async def test_an_empty_file_becomes_a_journal(path: Path) -> None:
    put(path, mode=0o644)
    assert await opens(path) == 0
    assert mode_of(path) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
async def test_all_of_its_files_are_for_the_owner_alone(path: Path) -> None:
    previous = os.umask(0)
    try:
        async with Journal(path) as journal:
            await journal.entry("a", name="iris", source="./iris")
            files = {each.name: mode_of(each) for each in path.parent.iterdir()}
    finally:
        os.umask(previous)
    assert files == dict.fromkeys(("deploy.db", "deploy.db-wal", "deploy.db-shm", "deploy.db.lock"), 384)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
async def test_wider_permissions_are_narrowed(path: Path) -> None:
    await make(path)
    for each in (path, lock_of(path)):
        each.touch()
        each.chmod(0o644)
    async with Journal(path) as journal:
        await journal.entry("b", name="iris", source="./iris")
        assert {mode_of(each) for each in path.parent.iterdir()} == {0o600}


async def test_the_settings_that_make_it_safe_are_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {}
    make_tables = journal_file.JournalFile._make_tables

    def look(file: journal_file.JournalFile) -> None:
        for name in ("journal_mode", "synchronous", "secure_delete", "foreign_keys"):
            [settings[name]] = file._connection.execute(f"PRAGMA {name}").fetchone()
        make_tables(file)

    monkeypatch.setattr(journal_file.JournalFile, "_make_tables", look)
    await make(path)
    assert settings == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "foreign_keys": 1}
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (journal_file.SCHEMA_VERSION,)
        assert connection.execute("PRAGMA application_id").fetchone() == (journal_file.APPLICATION_ID,)


async def test_one_journal_is_in_use_once(path: Path) -> None:
    async with Journal(path) as journal:
        with pytest.raises(JournalError, match=rf"in use by process {os.getpid()} on host"):
            await opens(path)
        with pytest.raises(JournalError, match=rf"in use by process {os.getpid()} on host"):
            await journal.__aenter__()
        entry = await journal.entry("a", name="iris", source="./iris")
        await entry.failed(ServerError("down"))
    assert await opens(path) == 1


async def test_two_processes_cannot_use_one_journal(path: Path) -> None:
    with run_holder(path) as child:
        assert child.stdout is not None
        assert await anyio.to_thread.run_sync(child.stdout.readline) == "open\n"
        holder = rf"process {child.pid} on host {socket.gethostname()} since 2025-11-24 16:00:00 UTC"
        with pytest.raises(JournalError, match=rf"deploy\.db is in use by {holder}"):
            await opens(path)
        child.kill()
    assert await opens(path) == 0


async def test_a_lock_whose_holder_cannot_be_read_is_still_one(path: Path) -> None:
    lock = FileLock(lock_of(path), timeout=0)
    with lock, pytest.raises(JournalError, match=r"deploy\.db is in use by another process"):
        await opens(path)
    await make(path)
    with lock, pytest.raises(JournalError, match=r"deploy\.db is in use by another process"):
        await opens(path)
    assert await opens(path) == 1


async def test_a_journal_of_a_newer_version_is_left_alone(path: Path) -> None:
    await make(path)
    write_as(path, "PRAGMA user_version = 7")
    await refused(path, r"deploy\.db was made by a newer aiobaseten \(schema 7, this one knows 1\): upgrade")


async def test_the_file_of_another_application_is_left_alone(path: Path) -> None:
    put(path, mode=0o644)
    write_as(path, "CREATE TABLE notes (text)")
    await refused(path, r"deploy\.db is not a journal of aiobaseten, but another application's SQLite file")
    assert mode_of(path) == 0o644
    write_as(path, "DROP TABLE notes", "PRAGMA application_id = 252006673")
    await refused(path, "another application's SQLite file")


async def test_a_file_that_is_not_sqlite_is_left_alone(path: Path) -> None:
    put(path, b"models:\n  - ./iris\n" * 100)
    await refused(path, r"deploy\.db is not a journal of aiobaseten: file is not a database; name another file")


async def test_a_damaged_journal_is_refused(path: Path) -> None:
    await make(path, 200)
    whole = content_of(path)
    assert whole
    chance = random.Random(5)
    for start in (100, *range(4096, len(whole), 4096)):
        damaged = bytearray(whole)
        damaged[start : start + 200] = chance.randbytes(200)
        put(path, damaged)
        with pytest.raises(JournalError, match=r"deploy\.db is damaged: \w"):
            await opens(path)
    put(path, whole)
    assert await opens(path) == 200


async def test_a_journal_without_its_tables_is_refused(path: Path) -> None:
    await make(path)
    write_as(path, "DROP TABLE credentials")
    await refused(path, r"deploy\.db cannot be opened: no such table: credentials")


async def test_a_directory_is_refused(tmp_path: Path) -> None:
    await refused(tmp_path, r"cannot be opened: it is a directory; name a file in it")
    assert names_in(tmp_path) == []


async def test_the_parent_must_be_a_directory(tmp_path: Path) -> None:
    await refused(tmp_path / "runs" / "deploy.db", r"deploy\.db cannot be opened: .*runs does not exist")
    (tmp_path / "runs").touch()
    await refused(tmp_path / "runs" / "deploy.db", r"deploy\.db cannot be opened: .*runs is not a directory")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
async def test_a_pipe_is_refused(path: Path) -> None:
    os.mkfifo(path)
    await refused(path, r"deploy\.db cannot be opened: it is not a regular file")


async def test_a_loop_of_links_is_refused(path: Path) -> None:
    link(path, path)
    await refused(path, r"deploy\.db cannot be opened: ")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (7, "must be the path of a file, such as 'deploy.db', not a int"),
        (None, "not a NoneType"),
        (b"deploy.db", "not a bytes"),
        ("", "not ''"),
        ("deploy\0.db", r"not 'deploy\\x00.db'"),
    ],
)
async def test_what_is_not_a_path_is_refused(value: Any, words: str) -> None:
    with pytest.raises(JournalError, match=words):
        Journal(value)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
async def test_a_file_that_cannot_be_written_is_refused(path: Path) -> None:
    await make(path)  # All that is imported late is there then, for whoever may no longer read it.
    with unprivileged() as directory:
        journal = directory / "deploy.db"
        await make(journal)
        journal.chmod(0o400)
        await refused(journal, r"deploy\.db cannot be opened: .*Permission denied")
        journal.chmod(0o600)
        assert await opens(journal) == 1


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
async def test_a_directory_that_cannot_be_written_is_refused(path: Path) -> None:
    await make(path)
    with unprivileged() as directory:
        directory.chmod(0o500)
        await refused(directory / "deploy.db", r"deploy\.db cannot be opened: .*Permission denied")
        directory.chmod(0o700)
        assert await opens(directory / "deploy.db") == 0


async def test_an_error_that_nobody_thought_of_is_raised_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(journal_file, "connect", fail)
        with pytest.raises(MemoryError):
            await opens(path)
    assert await opens(path) == 0


def test_a_row_of_credentials_shows_none() -> None:
    row = journal_file.CredentialsRow(7, "planted-id", "planted-secret", "planted-token")
    assert repr(row) == "CredentialsRow(push=7)"


async def test_a_full_disk_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_little_room(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute("PRAGMA max_page_count = 20")
        return connection

    connect = journal_file.connect
    monkeypatch.setattr(journal_file, "connect", with_little_room)
    safe: list[str] = []

    async def run() -> None:
        async with Journal(path) as journal:
            for number in range(1000):
                entry = await journal.entry(f"{number}", name="iris" * 100, source="./iris")
                await entry.uploaded(RECEIPT)
                safe.append(entry.key)

    with pytest.raises(JournalError, match=r"deploy\.db cannot be written or read any more: database or disk is full"):
        await run()
    assert safe
    monkeypatch.setattr(journal_file, "connect", connect)
    async with Journal(path) as journal:
        assert sorted(journal._ids) == sorted(safe)
        for key in safe:
            entry = await journal.entry(key, name="", source="")
            assert (entry.state, entry.receipt) == ("uploaded", RECEIPT)


async def test_no_room_for_a_new_journal_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_no_room(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute("PRAGMA max_page_count = 2")
        return connection

    connect = journal_file.connect
    monkeypatch.setattr(journal_file, "connect", with_no_room)
    with pytest.raises(JournalError, match=r"deploy\.db cannot be opened: database or disk is full"):
        await opens(path)
    monkeypatch.setattr(journal_file, "connect", connect)
    assert await opens(path) == 0
