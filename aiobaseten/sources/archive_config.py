"""Finds the ``config.yaml`` of an archive: a tar, plain or gzip.

In a plain tar the contents of files are skipped over, and of two files of one name the later counts, as it does when the archive is
unpacked. In a compressed one all before the first has to be unpacked, in pieces, and only so far.
"""

from __future__ import annotations

import gzip
import io
import posixpath
import tarfile
import zlib
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, cast

from aiobaseten._threads import Check
from aiobaseten.errors import ArchiveError
from aiobaseten.options import GiB, KiB, MiB
from aiobaseten.sources.base import ModelConfig
from aiobaseten.sources.config import CONFIG_NAME, EXTERNAL_PACKAGE_DIRS, MAX_CONFIG_BYTES, parse_config

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

GZIP_MAGIC = b"\x1f\x8b"
WINDOW_BYTES = 64 * KiB
MAX_HEADER_BYTES = 16 * MiB
MAX_UNPACKED_BYTES = 64 * GiB
MAX_LINKS = 8

ReadAt = Callable[[int, memoryview], int]
"""Fills a buffer from an offset on, and returns how many bytes there were."""


def read_archive_config(read_at: ReadAt, size_bytes: int, *, label: str, check: Check) -> ModelConfig:
    """Read the config of an archive of which any range can be read.

    :param label: what messages call the archive
    :raises ArchiveError: where there is no config that can be read
    """
    config = parse_config(find_config(read_at, size_bytes, label=label, check=check), f"{CONFIG_NAME} in {label}")
    if config.external_package_dirs:
        raise ArchiveError(
            f"{config.label} names {EXTERNAL_PACKAGE_DIRS}, whose files an archive must hold; push the model directory instead",
            path=label,
        )
    return config.model_config


def find_config(read_at: ReadAt, size_bytes: int, *, label: str, check: Check) -> bytes:
    """The content of an archive's config, whatever it is.

    :param check: called now and then; what it raises ends the search
    :raises ArchiveError: where there is no archive that can be read, or no config in it
    """
    try:
        return _find(read_at, size_bytes, label, check)
    # tarfile meets a broken header with any of these.
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError, OverflowError, RecursionError) as error:
        raise ArchiveError(f"{label} is not a tar archive that can be read, plain or gzip: {error}", path=label) from error


def _find(read_at: ReadAt, size_bytes: int, label: str, check: Check) -> bytes:
    """The content of the config, by way of links inside the archive if it is one."""
    name = CONFIG_NAME
    with io.BufferedReader(_Ranges(read_at, size_bytes), WINDOW_BYTES) as packed:
        compressed = packed.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC)
        for _ in range(MAX_LINKS):
            packed.seek(0)
            file: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=packed) if compressed else packed
            with tarfile.open(fileobj=_Bounded(file, check, skips_by_reading=compressed), mode="r:") as archive:
                member = _find_member(archive, name, first=compressed)
                if member is None:
                    told = "" if name == CONFIG_NAME else f", a link to {name!r} that is not there"
                    raise ArchiveError(f"{label} has no {CONFIG_NAME} at its root{told}", path=label)
                if member.isreg():
                    return _read_member(archive, member, label)
            if not member.issym() and not member.islnk():
                raise ArchiveError(f"{CONFIG_NAME} in {label} must be a regular file", path=label)
            name = posixpath.normpath(posixpath.join(posixpath.dirname(name) if member.issym() else "", member.linkname))
    raise ArchiveError(f"{CONFIG_NAME} in {label} leads from link to link", path=label)


def _find_member(archive: tarfile.TarFile, name: str, *, first: bool) -> tarfile.TarInfo | None:
    found = None
    while (member := archive.next()) is not None:
        if posixpath.normpath(member.name) == name:
            found = member
            if first:
                break
        # tarfile would keep every entry that it has seen.
        cast("Any", archive).members.clear()
    else:
        _refuse_early_end(archive)
    return found


def _refuse_early_end(archive: tarfile.TarFile) -> None:
    """tarfile takes a header that it cannot read for the end, which is a block of zeros."""
    file: IO[bytes] = cast("Any", archive).fileobj
    start: int = cast("Any", archive).offset
    file.seek(start)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"the header at byte {start:,} is damaged")


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, label: str) -> bytes:
    if member.size > MAX_CONFIG_BYTES:
        raise ArchiveError(
            f"{CONFIG_NAME} in {label} has {member.size:,} bytes, and must not have more than {MAX_CONFIG_BYTES:,}", path=label
        )
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


class _Bounded(io.BufferedIOBase):
    """A file that tarfile reads, which refuses what a hostile archive could ask for: a huge header, or unpacking without end."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, check: Check, *, skips_by_reading: bool) -> None:
        super().__init__()
        self._file = file
        self._check = check
        self._skips_by_reading = skips_by_reading

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if not self._skips_by_reading:
            return self._file.seek(offset, whence)
        if offset > MAX_UNPACKED_BYTES:
            raise tarfile.ReadError(f"no {CONFIG_NAME} within its first {MAX_UNPACKED_BYTES:,} bytes")
        if offset < self._file.tell():
            self._file.seek(offset)
        while (left := offset - self._file.tell()) > 0 and self.read(min(left, WINDOW_BYTES)):
            pass
        return self._file.tell()

    def read(self, size: int | None = -1) -> bytes:
        self._check()
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of more than {MAX_HEADER_BYTES:,} bytes")
        return self._file.read(size)


class _Ranges(io.RawIOBase):
    """A seekable file over something of which any range can be read."""

    def __init__(self, read_at: ReadAt, size_bytes: int) -> None:
        super().__init__()
        self._read_at = read_at
        self._size_bytes = size_bytes
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
        target = memoryview(buffer).cast("B")[: max(0, self._size_bytes - self._position)]
        count = self._read_at(self._position, target) if len(target) else 0
        self._position += count
        return count
