"""Reads the parts of a plan, each into memory of the budget."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from aiobaseten.errors import SourceChanged
from aiobaseten.sources.base import Source
from aiobaseten.upload.budget import Buffer, BufferBudget
from aiobaseten.upload.checksum import Algorithm, Checksums
from aiobaseten.upload.plan import Part, UploadPlan


class FilledPart:
    """A part in memory. As a context manager it gives its memory back at the end of the block."""

    def __init__(self, number: int, content: memoryview, buffer: Buffer, algorithm: Algorithm | None) -> None:
        self.number = number
        self.content = content
        self._buffer = buffer
        self._algorithm = algorithm
        self._checksums: Checksums | None = None
        self.was_refused = False
        """Whether the store has once not taken it."""

    def checksums(self) -> Checksums:
        """The part's checksum. The first call takes it, and belongs into a worker thread, just before the bytes are sent."""
        if self._checksums is None:
            self._checksums = Checksums(self._algorithm, self._algorithm.compute(self.content) if self._algorithm else None)
        return self._checksums

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._buffer.release()


class PartReader:
    """Hands out the parts of a plan. Several tasks may ask at once if the source is seekable, else one.

    :param done: the numbers of the parts that the store has already
    :ivar parts_read: how many parts were read, those included that the store had already
    """

    def __init__(
        self,
        source: Source,
        plan: UploadPlan,
        algorithm: Algorithm | None,
        budget: BufferBudget,
        *,
        done: frozenset[int] = frozenset(),
    ) -> None:
        self._source = source
        self._algorithm = algorithm
        self._budget = budget
        self._parts = (part for part in plan.parts() if part.number not in done)
        self._next: Part | None = next(self._parts, None)
        self._lent: list[Buffer] = []
        self.parts_read = len(done)

    @property
    def ended(self) -> bool:
        """Whether the last part has been taken."""
        return self._next is None

    async def read_next(self) -> FilledPart | None:
        """Read the next part; None when there is none left.

        :raises SourceChanged: when the source ends before the size it said it has
        """
        part = self._next
        if part is None:
            return None
        self._next = next(self._parts, None)
        buffer = await self._budget.lend(part.size_bytes)
        self._lent.append(buffer)
        size_bytes = await self._source.read_into(part.offset, buffer.content)
        if size_bytes < part.size_bytes:
            self._end_at(part.offset + size_bytes)
        if size_bytes == 0:
            buffer.release()
            return None
        self.parts_read += 1
        content = buffer.content[:size_bytes]
        return FilledPart(part.number, content, buffer, self._algorithm)

    def release_all(self) -> None:
        """Give back the memory of parts that nobody came to send. Nothing may be reading or sending any more."""
        for buffer in self._lent:
            buffer.release()

    def _end_at(self, offset: int) -> None:
        if self._source.size_bytes is not None:
            raise SourceChanged(
                f"{self._source.label} ended at byte {offset:,} and had {self._source.size_bytes:,} when it was opened"
            )
        self._next = None
