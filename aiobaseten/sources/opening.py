"""Finds out what kind of source a caller has given, and opens it."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterable
from typing import get_args

from aiobaseten._threads import Check, run_to_end
from aiobaseten.errors import ArchiveError, InvalidPush, Problem
from aiobaseten.sources.base import Source
from aiobaseten.sources.buffer import bytes_view, open_buffer
from aiobaseten.sources.config import MAX_PATH_BYTES
from aiobaseten.sources.directory import Symlinks, open_directory
from aiobaseten.sources.file import FileSource, open_file
from aiobaseten.sources.files import kind_of, printable
from aiobaseten.sources.stream import StreamSource

SourceLike = str | os.PathLike[str] | bytes | bytearray | memoryview | AsyncIterable[bytes]
MAX_SHOWN_CHARACTERS = 100
_WANTED = "must be the path of a model directory or an archive file, bytes, or an async iterator of bytes"


async def open_source(source: SourceLike, *, symlinks: Symlinks = "store") -> Source:
    """Open what is to be uploaded. Close it again, or use it as an async context manager.

    A directory is laid out as an archive: its config is read, its files are listed, and each is opened once to see that it can be
    read. None of them is held open, and no bytes of them are read yet.

    :param source: the path of a model directory or of an archive file; an archive in bytes, bytearray, memoryview or any other
        object with a buffer, which is not copied and must not change until the source is closed; or an async iterator of the
        chunks of an archive, of any size, which can be read once only
    :param symlinks: in a model directory: ``"store"`` keeps links that lead to something in the archive and refuses others;
        ``"follow"`` archives what links lead to as plain files and directories
    :raises InvalidPush: for a source of another kind, or another value of `symlinks`
    :raises ArchiveError: where a path or what is there cannot be used; it lists all that is wrong with a directory's files
    :raises SourceChanged: where a directory changes while it is listed
    """
    if symlinks not in get_args(Symlinks):
        raise InvalidPush(problems=[Problem("$.symlinks", f"must be 'store' or 'follow', not {symlinks!r}")])
    if isinstance(source, str | os.PathLike):
        return await _open_path(os.fsdecode(source), symlinks)
    if isinstance(source, AsyncIterable):
        return _open_stream(source)
    return open_buffer(_view_of(source))


async def _open_path(path: str, symlinks: Symlinks) -> Source:
    opened: list[Source] = []

    def open_(check: Check) -> Source:
        opened.append(_open(path, symlinks, check))
        return opened[0]

    try:
        return await run_to_end(open_)
    except BaseException:
        # A caller who was cancelled does not get what was opened meanwhile.
        for source in opened:
            if isinstance(source, FileSource):
                source.close()
        raise


def _open(path: str, symlinks: Symlinks, check: Check) -> Source:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - to a Path, no path at all is the current directory
    except FileNotFoundError as error:
        raise ArchiveError(f"{_shown(path)} does not exist", path=path) from error
    except OSError as error:
        raise ArchiveError(f"{_shown(path)} cannot be opened: {error.strerror}", path=path) from error
    except ValueError as error:
        raise ArchiveError(f"{_shown(path)} cannot be the name of a file: {error}", path=path) from error
    if stat.S_ISDIR(mode):
        return open_directory(path, label=printable(path), symlinks=symlinks, check=check)
    if stat.S_ISREG(mode):
        return open_file(path, label=printable(path))
    raise ArchiveError(f"{path!r} is {kind_of(mode)}, and must be a model directory or an archive file", path=path)


def _shown(path: str) -> str:
    return repr(path if len(path) < MAX_PATH_BYTES else f"{path[:MAX_SHOWN_CHARACTERS]}...")


def _open_stream(source: AsyncIterable[bytes]) -> StreamSource:
    try:
        return StreamSource(source)
    except TypeError as error:
        raise InvalidPush(problems=[Problem("$.source", f"{_WANTED}, and is no valid iterator: {error}")]) from error


def _view_of(source: object) -> memoryview:
    try:
        return bytes_view(source)
    except (TypeError, ValueError) as error:
        hint = "; give its path, or its bytes" if hasattr(source, "read") else ""
        raise InvalidPush(problems=[Problem("$.source", f"{_WANTED}, not a {type(source).__name__}{hint}")]) from error
