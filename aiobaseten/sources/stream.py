"""An archive whose bytes come from an async iterator: of unknown size, and read once."""

from __future__ import annotations

from collections.abc import AsyncIterable

import anyio
import anyio.lowlevel

from aiobaseten.errors import ArchiveError, InvalidPush, Problem
from aiobaseten.options import MiB
from aiobaseten.sources.base import ModelConfig, Source
from aiobaseten.sources.buffer import bytes_view

_END = object()
_NOTHING = memoryview(b"")
CLOSE_TIMEOUT_S = 5.0
SLICE_BYTES = MiB
"""Copied at once, before other tasks have their turn."""


class StreamSource(Source):
    """The chunks of an async iterator, one after the other. Closing the source closes an iterator that has ``aclose``."""

    label = "<stream>"
    size_bytes = None
    seekable = False

    def __init__(self, stream: AsyncIterable[bytes]) -> None:
        self._chunks = aiter(stream)
        self._rest = _NOTHING
        self._position = 0
        self._chunks_taken = 0
        self._closed = False

    async def read_into(self, offset: int, buffer: memoryview) -> int:
        if offset != self._position:
            raise ArchiveError(
                f"{self.label} can be read once, from start to end; byte {offset:,} was asked for at byte {self._position:,}",
                path=self.label,
            )
        filled = since_pause = 0
        while filled < len(buffer) and (self._rest or await self._take_chunk()):
            count = min(len(self._rest), len(buffer) - filled, SLICE_BYTES)
            buffer[filled : filled + count] = self._rest[:count]
            self._rest = self._rest[count:] or _NOTHING  # The stream may use its buffer again.
            self._position += count
            filled += count
            since_pause += count
            if since_pause >= SLICE_BYTES:
                since_pause = 0
                await anyio.lowlevel.checkpoint()
        if self._position == 0:
            raise ArchiveError(f"{self.label} is empty, and an archive is not: the stream ended without a byte", path=self.label)
        return filled

    async def read_config(self) -> ModelConfig:
        raise ArchiveError(
            f"{self.label}: the config.yaml of a stream cannot be read before the stream is sent;"
            " give the push a deployment with its config",
            path=self.label,
        )

    @property
    def fingerprint(self) -> None:
        return None

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        close = getattr(self._chunks, "aclose", None)
        if close is not None:
            with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await close()

    async def _take_chunk(self) -> bool:
        """Put the next chunk that holds something in `_rest`; False at the end of the stream."""
        while (chunk := await anext(self._chunks, _END)) is not _END:
            self._chunks_taken += 1
            self._rest = _bytes_of(chunk, self._chunks_taken)
            if self._rest:
                return True
        return False


def _bytes_of(chunk: object, number: int) -> memoryview:
    try:
        return bytes_view(chunk)
    except (TypeError, ValueError) as error:
        rule = f"must yield bytes; chunk {number} of the stream is a {type(chunk).__name__}"
        raise InvalidPush(problems=[Problem("$.source", rule)]) from error
