"""Whether an uploaded object is a model archive: a tar, plain or gzip, with a ``config.yaml`` at its root.

Only headers are read, up to that entry: in a plain tar the contents of files are skipped over, in a compressed one they have to be
unpacked, in pieces. tarfile does the parsing, in a worker thread whose reads come back to the loop as ranged requests.
"""

from __future__ import annotations

import gzip
import io
import posixpath
import tarfile
import zlib
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

import anyio.from_thread
import anyio.to_thread

from aiobaseten.local.object_store import ObjectMissing, ObjectStore

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CONFIG_NAME = "config.yaml"
WINDOW_BYTES = 256 * 1024
MAX_UNPACKED_BYTES = 64 * 1024**3
MAX_HEADER_BYTES = 16 * 1024**2
GZIP_MAGIC = b"\x1f\x8b"


async def find_problem(store: ObjectStore, key: str) -> str | None:
    """What is wrong with the archive at `key`; None when it is one."""
    try:
        size_bytes = await store.size_bytes(key)
    except ObjectMissing:
        return "no object was uploaded to this key"

    def read(start: int, stop: int) -> bytes:
        return anyio.from_thread.run(store.read_range, key, start, stop)

    return await anyio.to_thread.run_sync(find_problem_in, io.BufferedReader(_RangeReader(size_bytes, read), WINDOW_BYTES))


def find_problem_in(file: io.BufferedReader[Any]) -> str | None:
    """What is wrong with the archive in an open file; None when it is one."""
    try:
        if file.peek(len(GZIP_MAGIC))[: len(GZIP_MAGIC)] == GZIP_MAGIC:
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _find_problem_in_tar(_BoundedFile(unpacked, max_position_bytes=MAX_UNPACKED_BYTES))
        return _find_problem_in_tar(_BoundedFile(file, max_position_bytes=None))
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        return f"the object is not a tar archive that can be read, plain or gzip: {error}"


def _find_problem_in_tar(file: _BoundedFile) -> str | None:
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            if posixpath.normpath(member.name) == CONFIG_NAME and not member.isdir():
                return None
            # tarfile would keep every entry it has seen.
            archive.members.clear()  # type: ignore[attr-defined]  # missing in typeshed
    return f"the archive has no {CONFIG_NAME} at its root"


class _BoundedFile(io.BufferedIOBase):
    """Refuses what a hostile archive could ask for: one huge header in memory, or unpacking without end."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, *, max_position_bytes: int | None) -> None:
        super().__init__()
        self._file = file
        self._max_position_bytes = max_position_bytes

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if self._max_position_bytes is not None and offset > self._max_position_bytes:
            raise tarfile.ReadError(f"no {CONFIG_NAME} within its first {self._max_position_bytes} bytes")
        return self._file.seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER_BYTES} bytes")
        return self._file.read(size)


class _RangeReader(io.RawIOBase):
    """A seekable file whose bytes are fetched as they are read."""

    def __init__(self, size_bytes: int, read: Callable[[int, int], bytes]) -> None:
        super().__init__()
        self._size_bytes = size_bytes
        self._read = read
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        stop = min(self._position + len(target), self._size_bytes)
        if stop <= self._position:
            return 0
        data = self._read(self._position, stop)
        target[: len(data)] = data
        self._position += len(data)
        return len(data)
