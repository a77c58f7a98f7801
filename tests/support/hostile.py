"""What hostile input may lead to: an error of this library that can be shown, in bounded time and memory."""

from __future__ import annotations

import os
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fuzz.targets import check_message

from aiobaseten.errors import BasetenError
from aiobaseten.options import MiB
from aiobaseten.sources import open_source

MAX_MEMORY_BYTES = 256 * MiB


@dataclass
class Refused:
    errors: list[BasetenError] = field(default_factory=list)

    @property
    def error(self) -> BasetenError:
        (error,) = self.errors
        return error


@contextmanager
def refused(kind: type[BasetenError] | tuple[type[BasetenError], ...] = BasetenError, *words: str) -> Iterator[Refused]:
    """The block raises an error of that kind, which can be shown and holds the words."""
    caught = Refused()
    with pytest.raises(kind) as raised:
        yield caught
    caught.errors.append(raised.value)
    text = str(raised.value)
    check_message(text)
    for word in words:
        assert word in text, text
    for note in getattr(raised.value, "__notes__", []):
        check_message(note)


async def refused_source(path: Any, *words: str, **options: Any) -> BasetenError:
    """The error that comes of opening a source, or of reading it."""
    with refused(BasetenError, *words) as caught:
        await read_source(path, **options)
    return caught.error


async def read_source(path: Any, **options: Any) -> int:
    """Open a source and read all of it. Returns its size."""
    async with await open_source(path, **options) as source:
        await source.read_config()
        position = 0
        buffer = memoryview(bytearray(8 * MiB))
        while count := await source.read_into(position, buffer):
            position += count
        return position


@contextmanager
def little_memory(limit_bytes: int = MAX_MEMORY_BYTES) -> Iterator[None]:
    """Python allocates no more than that in the block."""
    tracemalloc.start()
    try:
        yield
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < limit_bytes, f"{peak_bytes:,} bytes"


def a_directory(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        before = Path.cwd()
        os.chdir(path.parent)  # A socket's path may have 108 bytes only.
        try:
            unix.bind("s")
            Path("s").rename(path.name)
        finally:
            os.chdir(before)


def a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def an_endless_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def an_empty_device(path: Path) -> None:
    path.symlink_to("/dev/null")


def a_terabyte(path: Path) -> None:
    """Of nothing: the file takes no room."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


NO_SMALL_FILES: list[Callable[[Path], None]] = [
    a_directory,
    a_pipe,
    a_socket,
    a_dangling_link,
    a_link_to_itself,
    an_endless_device,
    an_empty_device,
    a_terabyte,
]
"""What may lie where a small text file should be."""


@asynccontextmanager
async def closing_stream(chunks: Any) -> AsyncIterator[Any]:
    """An async iterator that is closed in the end."""
    try:
        yield chunks
    finally:
        await chunks.aclose()
