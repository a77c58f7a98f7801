"""An archive that is a file."""

from __future__ import annotations

import hashlib
import os
import stat

from aiobaseten._threads import Check, run_to_end
from aiobaseten.errors import ArchiveError
from aiobaseten.sources.archive_config import read_archive_config
from aiobaseten.sources.base import ModelConfig, Source
from aiobaseten.sources.files import Stamp, kind_of, open_descriptor, read_unchanged


class FileSource(Source):
    """An archive file, held open: removing or replacing it does not matter, changing it does. Made by `open_file`."""

    seekable = True

    def __init__(self, label: str, path: str, descriptor: int, status: os.stat_result) -> None:
        self.label = label
        self.size_bytes = status.st_size
        self._path = path
        self._descriptor: int | None = descriptor
        self._stamp = Stamp.of(status)
        self._fingerprint = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns} {status.st_ino}".encode()).hexdigest()

    async def read_into(self, offset: int, buffer: memoryview) -> int:
        return await run_to_end(lambda check: self._read_at(offset, buffer, check))

    async def read_config(self) -> ModelConfig:
        def read(check: Check) -> ModelConfig:
            return read_archive_config(
                lambda offset, buffer: self._read_at(offset, buffer, check), self._stamp.size_bytes, label=self.label, check=check
            )

        return await run_to_end(read)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    async def aclose(self) -> None:
        self.close()

    def _read_at(self, offset: int, buffer: memoryview, check: Check) -> int:
        if self._descriptor is None:
            raise ArchiveError(f"{self.label} is closed", path=self._path)
        buffer = buffer[: max(0, self._stamp.size_bytes - offset)]
        read_unchanged(self._descriptor, offset, buffer, self._stamp, self._path, check)
        return len(buffer)


def open_file(path: str, *, label: str) -> FileSource:
    """Open an archive file.

    :raises ArchiveError: where it cannot be read, is empty, or is no regular file
    """
    try:
        descriptor = open_descriptor(path, follow=True)
    except OSError as error:
        raise ArchiveError(f"{label} cannot be read: {error.strerror}", path=path) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        os.close(descriptor)
        what = "is empty, and an archive is not" if stat.S_ISREG(status.st_mode) else f"is {kind_of(status.st_mode)}"
        raise ArchiveError(f"{label} {what}", path=path)
    return FileSource(label, path, descriptor, status)
