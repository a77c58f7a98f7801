"""The file of a run's journal: SQLite in WAL mode, readable by its owner alone, in use by one process at a time.

Everything here blocks, and belongs to the journal's writer thread (`aiobaseten.bulk.journal_writer`). Whatever goes wrong is a
`JournalError` that names the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import attrs
from filelock import FileLock, Timeout

from aiobaseten._text import one_line
from aiobaseten.errors import JournalError

APPLICATION_ID = 0x61627031
SCHEMA_VERSION = 1
PRIVATE = 0o600
ROWS_PER_STATEMENT = 32

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE pushes (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    push_id TEXT NOT NULL,
    name TEXT NOT NULL,
    source TEXT NOT NULL,
    fingerprint TEXT,
    bucket TEXT,
    object_key TEXT,
    region TEXT,
    upload_id TEXT,
    part_size_bytes INTEGER,
    receipt TEXT,
    sent_commit TEXT,
    sent_at_s REAL,
    created TEXT,
    error TEXT,
    updated_at_s REAL NOT NULL
);
CREATE TABLE parts (
    push INTEGER NOT NULL REFERENCES pushes ON DELETE CASCADE,
    number INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    etag TEXT,
    checksum INTEGER,
    PRIMARY KEY (push, number)
) WITHOUT ROWID;
CREATE TABLE credentials (
    push INTEGER PRIMARY KEY REFERENCES pushes ON DELETE CASCADE,
    access_key_id TEXT NOT NULL,
    secret_access_key TEXT NOT NULL,
    session_token TEXT NOT NULL
);
"""


class PushRow(NamedTuple):
    """A row of `pushes`. `receipt`, `sent_commit` and `created` are JSON."""

    id: int
    key: str
    state: str
    push_id: str
    name: str
    source: str
    fingerprint: str | None
    bucket: str | None
    object_key: str | None
    region: str | None
    upload_id: str | None
    part_size_bytes: int | None
    receipt: str | None
    sent_commit: str | None
    sent_at_s: float | None
    created: str | None
    error: str | None
    updated_at_s: float


class PartRow(NamedTuple):
    """A row of `parts`. SQLite's integers are signed: so is the checksum."""

    push: int
    number: int
    size_bytes: int
    etag: str | None
    checksum: int | None


class CredentialsRow(NamedTuple):
    """A row of `credentials`: a table of its own, so that none of its pages is left over when its rows are gone."""

    push: int
    access_key_id: str
    secret_access_key: str
    session_token: str

    def __repr__(self) -> str:
        return f"CredentialsRow(push={self.push})"


class StoredPush(NamedTuple):
    """All that the file holds of a push."""

    row: PushRow
    parts: list[PartRow]
    credentials: CredentialsRow | None


@attrs.define
class Changes:
    """What is to be written in one transaction, each row in its last state.

    :ivar gone: pushes whose parts are deleted, before those in `parts` are added
    :ivar credentials: by push; None where they are deleted
    """

    rows: dict[int, PushRow] = attrs.field(factory=dict[int, PushRow])
    gone: set[int] = attrs.field(factory=set[int])
    parts: dict[int, dict[int, PartRow]] = attrs.field(factory=dict[int, dict[int, PartRow]])
    credentials: dict[int, CredentialsRow | None] = attrs.field(factory=dict[int, "CredentialsRow | None"])


class JournalFile:
    """An open journal, as a context manager that is entered and left in the thread that uses it."""

    def __init__(self, path: str, *, keep_credentials: bool, now_s: Callable[[], float]) -> None:
        self.path = path
        self.keep_credentials = keep_credentials
        self._now_s = now_s
        self._resources = contextlib.ExitStack()
        self._connection: sqlite3.Connection

    def __enter__(self) -> dict[str, int]:
        """Open the file, and make it if there is none.

        :returns: the id of each push's row by the push's key
        :raises JournalError: if it cannot be used, or is in use
        """
        with contextlib.ExitStack() as resources:
            try:
                ids = self._open(resources)
            except sqlite3.Error as error:
                raise self._unusable(error) from error
            except (OSError, RuntimeError) as error:  # pathlib tells of a loop of links with a RuntimeError.
                raise JournalError(f"the journal {self.path} cannot be opened: {error}") from error
            self._resources = resources.pop_all()
        return ids

    def __exit__(self, *_: object) -> None:
        with self._resources, contextlib.suppress(sqlite3.Error):
            self._connection.execute("DELETE FROM meta WHERE name = 'holder'")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _open(self, resources: contextlib.ExitStack) -> dict[str, int]:
        path = Path(self.path).resolve()
        self._check_place(path)
        self._lock(path, resources)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, PRIVATE))  # SQLite would open what cannot be written, and find out late.
        self._connection = resources.enter_context(contextlib.closing(connect(path)))
        is_new = self._check_kind()
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                _narrow(path.with_name(path.name + suffix))
        for setting in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON", "foreign_keys = ON"):
            self._connection.execute(f"PRAGMA {setting}")
        with self._transaction():
            if is_new:
                self._make_tables()
            if not self.keep_credentials:
                self._connection.execute("DELETE FROM credentials")
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES ('holder', ?)", [self._holder()])
        return dict(self._connection.execute("SELECT key, id FROM pushes"))

    def _check_place(self, path: Path) -> None:
        if not path.parent.is_dir():
            problem = "is not a directory" if path.parent.exists() else "does not exist"
            raise JournalError(f"the journal {self.path} cannot be opened: {path.parent} {problem}")
        if path.is_dir():
            raise JournalError(f"the journal {self.path} cannot be opened: it is a directory; name a file in it")
        if path.exists() and not path.is_file():
            raise JournalError(f"the journal {self.path} cannot be opened: it is not a regular file")

    def _lock(self, path: Path, resources: contextlib.ExitStack) -> None:
        lock_path = path.with_name(path.name + ".lock")
        lock = FileLock(lock_path, timeout=0, mode=PRIVATE, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            raise JournalError(f"the journal {self.path} is in use by {_holder_of(path)}") from None
        resources.callback(lock.release)
        _narrow(lock_path)

    def _holder(self) -> str:
        since = datetime.fromtimestamp(self._now_s(), UTC)
        return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": f"{since:%Y-%m-%d %H:%M:%S} UTC"})

    def _check_kind(self) -> bool:
        """Refuse what is not a journal that this version knows. Returns whether the file is still empty."""
        application_id, version, tables = (
            self._connection.execute(query).fetchone()[0]
            for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        )
        if (application_id, version, tables) == (0, 0, 0):
            return True
        if application_id != APPLICATION_ID:
            raise JournalError(
                f"{self.path} is not a journal of aiobaseten, but another application's SQLite file; name another file"
            )
        if version > SCHEMA_VERSION:
            raise JournalError(
                f"the journal {self.path} was made by a newer aiobaseten"
                f" (schema {version}, this one knows {SCHEMA_VERSION}): upgrade"
            )
        problem: str = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise JournalError(f"the journal {self.path} is damaged: {problem.splitlines()[-1]}")
        return False

    def _make_tables(self) -> None:
        for statement in filter(str.strip, SCHEMA.split(";")):
            self._connection.execute(statement)
        self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _unusable(self, error: sqlite3.Error) -> JournalError:
        """A failure at opening."""
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_NOTADB:
                return JournalError(f"{self.path} is not a journal of aiobaseten: {error}; name another file")
            case sqlite3.SQLITE_CORRUPT:
                return JournalError(f"the journal {self.path} is damaged: {error}")
            case _:
                return JournalError(f"the journal {self.path} cannot be opened: {error}")

    @contextlib.contextmanager
    def _transaction(self) -> Generator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # Some failures have rolled it back already.
                self._connection.execute("ROLLBACK")
            raise

    def write(self, changes: Changes) -> None:
        """Write changes in one transaction. Returns once they are on the disk.

        Many rows go into one statement: each statement costs a turn at the interpreter's lock, which a busy event loop
        gives up only every few milliseconds.
        """
        with self._transaction():
            self._put(_UPSERT_PUSHES, PushRow._fields, changes.rows.values())
            self._delete("parts", changes.gone)
            parts = chain.from_iterable(parts.values() for parts in changes.parts.values())
            self._put("INSERT OR REPLACE INTO parts VALUES {}", PartRow._fields, parts)
            self._delete("credentials", (push for push, row in changes.credentials.items() if row is None))
            kept = (row for row in changes.credentials.values() if row is not None)
            self._put("INSERT OR REPLACE INTO credentials VALUES {}", CredentialsRow._fields, kept)

    def _put(self, statement: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
        for chunk in _chunks(rows):
            text = _with_rows(statement, len(columns), len(chunk))
            values = list(chain.from_iterable(chunk))
            try:
                self._connection.execute(text, values)
            except UnicodeEncodeError:
                self._connection.execute(text, [storable(value) if isinstance(value, str) else value for value in values])

    def _delete(self, table: str, pushes: Iterable[int]) -> None:
        for chunk in _chunks(pushes):
            marks = ", ".join("?" * len(chunk))
            self._connection.execute(f"DELETE FROM {table} WHERE push IN ({marks})", chunk)  # nosec B608  # noqa: S608 - names of our own

    def read(self, push: int) -> StoredPush:
        """All that is known of one push."""
        row = self._connection.execute("SELECT * FROM pushes WHERE id = ?", [push]).fetchone()
        parts = self._connection.execute("SELECT * FROM parts WHERE push = ? ORDER BY number", [push]).fetchall()
        credentials = self._connection.execute("SELECT * FROM credentials WHERE push = ?", [push]).fetchone()
        stored = StoredPush(PushRow(*row), [PartRow(*part) for part in parts], credentials and CredentialsRow(*credentials))
        rows: list[PushRow | PartRow | CredentialsRow] = [stored.row, *stored.parts]
        for each in [*rows, stored.credentials] if stored.credentials else rows:
            self._check_types(each, push)
        return stored

    def _check_types(self, row: PushRow | PartRow | CredentialsRow, push: int) -> None:
        """SQLite keeps whatever it was given, whatever the column's type."""
        for field, value in row._asdict().items():
            if not isinstance(value, _TYPES[type(row)][field]):
                raise JournalError(f"the journal {self.path} is damaged: the {field} of push {push} is a {type(value).__name__}")


_TYPES: dict[type, dict[str, Any]] = {row: get_type_hints(row) for row in (PushRow, PartRow, CredentialsRow)}
_STEADY_COLUMNS = ("id", "key", "name", "source")
_UPDATES = ", ".join(f"{column} = excluded.{column}" for column in PushRow._fields if column not in _STEADY_COLUMNS)
_UPSERT_PUSHES = f"INSERT INTO pushes VALUES {{}} ON CONFLICT (id) DO UPDATE SET {_UPDATES}"  # nosec B608  # noqa: S608 - names of our own


@cache
def _with_rows(statement: str, columns: int, rows: int) -> str:
    row = f"({', '.join('?' * columns)})"
    return statement.format(", ".join([row] * rows))


def _chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, ROWS_PER_STATEMENT)):
        yield chunk


def connect(path: Path) -> sqlite3.Connection:
    """Open an existing database, with transactions left to the caller."""
    return sqlite3.connect(path, isolation_level=None, cached_statements=4 * ROWS_PER_STATEMENT)


def storable(text: str) -> str:
    """A text that SQLite takes: half characters, as names of files that are not UTF-8 have them, become escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _narrow(path: Path) -> None:
    if stat.S_IMODE(path.stat().st_mode) != PRIVATE:
        path.chmod(PRIVATE)


def _holder_of(path: Path) -> str:
    """Who has a journal open, as far as it can be read."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
            holder = json.loads(connection.execute("SELECT value FROM meta WHERE name = 'holder'").fetchone()[0])
            return one_line(f"process {holder['pid']} on host {holder['host']} since {holder['since']}")
    except (sqlite3.Error, TypeError, ValueError, LookupError, RecursionError):  # It is only being made, or about to be closed.
        return "another process"
