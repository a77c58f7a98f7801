"""The tar archive of a model directory, without writing it.

An archive of known files has a known layout: a header, the file's bytes, zeros up to the next 512 bytes, and again. So its size is
known at once, and any range of it can be filled in from the files themselves, in any order, at once and again. This module is the
arithmetic of that; who reads the files is passed in.

The same files give the same bytes on every machine: sorted by name, owned by nobody, of one time, with one of two modes.
"""

from __future__ import annotations

import tarfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator

import attrs

from aiobaseten.sources.files import Stamp

MTIME_S = 315_619_200
"""1980-01-02 00:00 UTC: the first whole day that a zip archive, which a server may make of this one, has a date for everywhere."""
BLOCK_BYTES = tarfile.BLOCKSIZE
RECORD_BYTES = tarfile.RECORDSIZE
END_BYTES = 2 * BLOCK_BYTES
_PLAIN_NAME_BYTES = tarfile.LENGTH_NAME
_PLAIN_SIZE_BYTES = 8**11
_SIZE_FIELD = slice(124, 136)
_CHECKSUM_FIELD = slice(148, 156)


@attrs.frozen(kw_only=True)
class FileEntry:
    """A file of the archive, whose bytes stay where they are.

    :param name: in the archive
    :param path: of the file, absolute
    :param through_link: whether `path` is a symbolic link whose target is archived in its place
    """

    name: str
    path: str
    stamp: Stamp
    executable: bool = False
    through_link: bool = False

    @property
    def size_bytes(self) -> int:
        return self.stamp.size_bytes


@attrs.frozen(kw_only=True)
class TextEntry:
    """A file of the archive that is nowhere else."""

    name: str
    content: bytes = attrs.field(repr=False)
    executable: bool = False

    @property
    def size_bytes(self) -> int:
        return len(self.content)


@attrs.frozen(kw_only=True)
class LinkEntry:
    """A symbolic link in the archive. `target` is relative to the link's own directory."""

    name: str
    target: str
    executable: bool = attrs.field(default=True, init=False)
    size_bytes: int = attrs.field(default=0, init=False)


Entry = FileEntry | TextEntry | LinkEntry
ReadFile = Callable[[FileEntry, int, memoryview], None]
"""Fills a buffer with a file's bytes from an offset on."""


def sort_key(name: str) -> bytes:
    """By what names are ordered: their bytes in the archive."""
    return name.encode("utf-8", "surrogateescape")


def directories_of(name: str) -> Iterator[str]:
    """The directories that a name is in: ``a``, then ``a/b``, of ``a/b/c``."""
    end = name.find("/")
    while end != -1:
        yield name[:end]
        end = name.find("/", end + 1)


def header(entry: Entry) -> bytes:
    """The blocks before an entry's bytes. Names that are long or not ASCII, and sizes from 8 GiB on, take PAX records."""
    if isinstance(entry, LinkEntry) or not _is_plain(entry):
        return _any_header(entry)
    return _plain_file_header(entry)


def _is_plain(entry: Entry) -> bool:
    """Whether an entry's header takes one block."""
    target = entry.target if isinstance(entry, LinkEntry) else ""
    names_fit = all(text.isascii() and len(text) <= _PLAIN_NAME_BYTES for text in (entry.name, target))
    return names_fit and entry.size_bytes < _PLAIN_SIZE_BYTES


def _any_header(entry: Entry) -> bytes:
    info = tarfile.TarInfo(entry.name)
    info.mtime = MTIME_S
    info.mode = 0o755 if entry.executable else 0o644
    info.size = entry.size_bytes
    if isinstance(entry, LinkEntry):
        info.type = tarfile.SYMTYPE
        info.linkname = entry.target
    return info.tobuf(format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape")


_NAMELESS = {executable: _any_header(TextEntry(name="", content=b"", executable=executable)) for executable in (False, True)}


def _plain_file_header(entry: FileEntry | TextEntry) -> bytes:
    """What `_any_header` would make, in a fifth of its time: of one file to another only name, size and checksum change."""
    block = bytearray(_NAMELESS[entry.executable])
    name = entry.name.encode("ascii")
    block[: len(name)] = name
    block[_SIZE_FIELD] = b"%011o\0" % entry.size_bytes
    block[_CHECKSUM_FIELD] = b" " * 8  # as which it counts in itself
    block[_CHECKSUM_FIELD] = b"%06o\0 " % sum(block)
    return bytes(block)


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


class TarLayout:
    """Where each byte of an archive comes from.

    :param entries: with names that differ, in any order
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = sorted(entries, key=lambda entry: sort_key(entry.name))
        self._starts: list[int] = []
        position = 0
        for entry in self.entries:
            self._starts.append(position)
            header_bytes = BLOCK_BYTES if _is_plain(entry) else len(header(entry))
            position += header_bytes + _round_up(entry.size_bytes, BLOCK_BYTES)
        self._starts.append(position)
        self.size_bytes = _round_up(position + END_BYTES, RECORD_BYTES)

    def read_into(self, offset: int, buffer: memoryview, read_file: ReadFile) -> int:
        """Fill `buffer` with the archive's bytes from `offset` on; return how many there were before its end."""
        buffer = buffer[: max(0, self.size_bytes - offset)]
        filled = 0
        for index in range(bisect_right(self._starts, offset) - 1, len(self.entries)):
            if filled == len(buffer):
                return filled
            filled += self._read_entry(index, offset + filled - self._starts[index], buffer[filled:], read_file)
        _zero(buffer[filled:])
        return len(buffer)

    def _read_entry(self, index: int, offset: int, buffer: memoryview, read_file: ReadFile) -> int:
        """Fill `buffer` with what an entry takes of the archive, from `offset` on, as far as both reach."""
        entry = self.entries[index]
        padded_bytes = _round_up(entry.size_bytes, BLOCK_BYTES)
        header_bytes = self._starts[index + 1] - self._starts[index] - padded_bytes
        filled = _copy(header(entry), offset, buffer) if offset < header_bytes else 0
        offset += filled - header_bytes
        wanted = min(len(buffer) - filled, entry.size_bytes - offset)
        if wanted > 0 or entry.size_bytes == 0:  # An empty file, too, may have been changed or removed.
            _read_content(entry, offset, buffer[filled : filled + wanted], read_file)
            filled += wanted
            offset += wanted
        padding = buffer[filled : filled + padded_bytes - offset]
        _zero(padding)
        return filled + len(padding)


def _read_content(entry: Entry, offset: int, buffer: memoryview, read_file: ReadFile) -> None:
    if isinstance(entry, FileEntry):
        read_file(entry, offset, buffer)
    elif isinstance(entry, TextEntry):
        _copy(entry.content, offset, buffer)


def _copy(content: bytes, offset: int, buffer: memoryview) -> int:
    piece = content[offset : offset + len(buffer)]
    buffer[: len(piece)] = piece
    return len(piece)


def _zero(buffer: memoryview) -> None:
    buffer[:] = bytes(len(buffer))
