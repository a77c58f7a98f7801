"""An archive that is in memory."""

from __future__ import annotations

from typing import Any, cast

from awscrt import checksums  # type: ignore[import-untyped]

from aiobaseten._threads import Check, run_to_end
from aiobaseten.errors import ArchiveError
from aiobaseten.options import MiB
from aiobaseten.sources.archive_config import read_archive_config
from aiobaseten.sources.base import ModelConfig, Source

SLICE_BYTES = MiB
"""Copied at once. Between two slices the event loop can have its turn, and a cancelled caller is noticed."""
LABEL = "<bytes>"


def bytes_view(content: Any) -> memoryview:
    """The bytes of any object with a buffer, without a copy.

    :raises TypeError: where it has none, or one that does not lie in one piece
    :raises ValueError: where it is a memoryview that was released
    """
    return memoryview(content).cast("B")


class BufferSource(Source):
    """Bytes of the caller's, read where they are. They must not change before the source is closed. Made by `open_buffer`."""

    label = LABEL
    seekable = True

    def __init__(self, content: memoryview) -> None:
        self.size_bytes = len(content)
        self._content = content
        self._fingerprint: str | None = None

    async def read_into(self, offset: int, buffer: memoryview) -> int:
        return await run_to_end(lambda check: self._read_at(offset, buffer, check))

    async def read_config(self) -> ModelConfig:
        def read(check: Check) -> ModelConfig:
            return read_archive_config(
                lambda offset, buffer: self._read_at(offset, buffer, check), len(self._content), label=self.label, check=check
            )

        return await run_to_end(read)

    @property
    def fingerprint(self) -> str:
        """A checksum of the bytes. The first look at it reads them all, which takes a third of a second for a GiB."""
        if self._fingerprint is None:
            checksum: int = cast("Any", checksums).crc64nvme(self._content)
            self._fingerprint = f"{len(self._content):x}-{checksum:016x}"
        return self._fingerprint

    async def aclose(self) -> None:
        self._content.release()

    def _read_at(self, offset: int, buffer: memoryview, check: Check) -> int:
        wanted = min(len(buffer), max(0, len(self._content) - offset))
        for start in range(0, wanted, SLICE_BYTES):
            check()
            stop = min(start + SLICE_BYTES, wanted)
            buffer[start:stop] = self._content[offset + start : offset + stop]
        return wanted


def open_buffer(content: memoryview) -> BufferSource:
    """Take bytes as an archive.

    :param content: of bytes
    :raises ArchiveError: where there are none
    """
    if not content:
        raise ArchiveError(f"{LABEL} is empty, and an archive is not", path=LABEL)
    return BufferSource(content)
