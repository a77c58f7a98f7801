"""Reads ranges of files, straight into a caller's buffer, and tells when a file is not what it was.

The one place that opens files for reading. Everything here blocks: it runs in worker threads.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

import attrs

from aiobaseten._threads import Check
from aiobaseten.errors import ArchiveError, SourceChanged
from aiobaseten.options import MiB

SLICE_BYTES = 8 * MiB
"""Read at once. Between two slices a cancelled caller is noticed."""
READ_AHEAD_BYTES = 32 * MiB
"""Beyond each large read. Parts that are read side by side look like jumps, for which the system would not read ahead."""

_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ESTALE}
_seek_lock = threading.Lock()


def kind_of(mode: int) -> str:
    """What sort of file a mode belongs to, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "a special file")


def printable(path: str) -> str:
    """A path as it can be shown anywhere: what does not print, such as bytes that are not UTF-8, is escaped."""
    return path if path.isprintable() else repr(path)[1:-1]


@attrs.frozen(kw_only=True)
class Stamp:
    """By what a file is known to be unchanged."""

    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(size_bytes=status.st_size, mtime_ns=status.st_mtime_ns)


@contextmanager
def opened(path: str, *, follow: bool) -> Generator[int]:
    """A descriptor of a file for the time of a block."""
    descriptor = open_descriptor(path, follow=follow)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_descriptor(path: str, *, follow: bool) -> int:
    """Open a file for reading, without waiting for the other end of a pipe.

    :param follow: whether the last part of the path may be a symbolic link
    :raises OSError: where it cannot be opened
    """
    return os.open(path, _FLAGS if follow else _FLAGS | _NO_FOLLOW)


def read_unchanged(descriptor: int, offset: int, buffer: memoryview, stamp: Stamp, path: str, check: Check) -> None:
    """Fill `buffer` from `offset` on, with bytes of the file that `stamp` was taken of.

    :raises SourceChanged: where the file has another size or time, before reading or after
    :raises ArchiveError: where the file cannot be read
    """
    try:
        _refuse_changed(descriptor, stamp, path)
        if len(buffer) >= MiB:
            read_ahead(descriptor, offset, len(buffer) + READ_AHEAD_BYTES)
        filled = fill(descriptor, offset, buffer, check)
        _refuse_changed(descriptor, stamp, path)
    except OSError as error:
        raise unreadable(path, error) from error
    if filled < len(buffer):
        raise SourceChanged(f"{path!r} ended early while it was being read", path=path)


def read_small_file(path: str, max_bytes: int) -> tuple[bytes, Stamp]:
    """The whole of a file.

    :raises FileNotFoundError: where there is none
    :raises ArchiveError: where it cannot be read, is no regular file, or is too large
    """
    try:
        with opened(path, follow=True) as descriptor:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ArchiveError(f"{path!r} is {kind_of(status.st_mode)}, and must be a regular file", path=path)
            if status.st_size > max_bytes:
                raise ArchiveError(f"{path!r} has {status.st_size:,} bytes, and must not have more than {max_bytes:,}", path=path)
            content, stamp = bytearray(status.st_size), Stamp.of(status)
            read_unchanged(descriptor, 0, memoryview(content), stamp, path, lambda: None)
            return bytes(content), stamp
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ArchiveError(f"{path!r} cannot be read: {error.strerror}", path=path) from error


def unreadable(path: str, error: OSError) -> ArchiveError | SourceChanged:
    """What to raise where a file that was there cannot be opened or read."""
    if error.errno in _GONE:
        return SourceChanged(f"{path!r} is gone, or was replaced, since the push began: {error.strerror}", path=path)
    return ArchiveError(f"{path!r} cannot be read: {error.strerror}", path=path)


def fill(descriptor: int, offset: int, buffer: memoryview, check: Check) -> int:
    """Fill `buffer` from `offset` on; fewer bytes than its length where the file ends."""
    filled = 0
    while filled < len(buffer):
        check()
        count = read_at(descriptor, offset + filled, buffer[filled : filled + SLICE_BYTES])
        if count == 0:
            break
        filled += count
    return filled


def _refuse_changed(descriptor: int, stamp: Stamp, path: str) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise SourceChanged(f"{path!r} was replaced by {kind_of(status.st_mode)} since the push began", path=path)
    if status.st_size != stamp.size_bytes:
        raise SourceChanged(
            f"{path!r} changed since the push began: it had {stamp.size_bytes:,} bytes and has {status.st_size:,}",
            path=path,
        )
    if status.st_mtime_ns != stamp.mtime_ns:
        raise SourceChanged(f"{path!r} was modified since the push began", path=path)


def _no_read_ahead(descriptor: int, offset: int, size_bytes: int) -> None:
    """For systems without posix_fadvise."""


def _read_ahead(descriptor: int, offset: int, size_bytes: int) -> None:
    """Have the system fetch a range while others do their work; it may not care to."""
    with suppress(OSError):
        os.posix_fadvise(descriptor, offset, size_bytes, os.POSIX_FADV_WILLNEED)


def _read_at_once(descriptor: int, offset: int, buffer: memoryview) -> int:
    return os.preadv(descriptor, [buffer], offset)


def _seek_and_read(descriptor: int, offset: int, buffer: memoryview) -> int:
    """For systems without preadv, where the position belongs to all who read from a descriptor."""
    with _seek_lock, open(descriptor, "rb", buffering=0, closefd=False) as file:
        file.seek(offset)
        return file.readinto(buffer) or 0


read_ahead = _read_ahead if hasattr(os, "posix_fadvise") else _no_read_ahead
read_at = _read_at_once if hasattr(os, "preadv") else _seek_and_read
