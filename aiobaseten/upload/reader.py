"""Reads the parts of a plan: in parallel from a source that can be read anywhere, else one after the other."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import anyio.to_thread
import attrs

from aiobaseten.errors import SourceChanged
from aiobaseten.sources.base import Source
from aiobaseten.upload.budget import BufferBudget
from aiobaseten.upload.checksum import Algorithm, Checksums
from aiobaseten.upload.plan import Part, UploadPlan


@attrs.frozen(kw_only=True)
class FilledPart:
    """A part in memory, with its checksum. `content` lies in the buffer it was read into."""

    number: int
    content: memoryview
    checksums: Checksums


class PartReader:
    """Lends out the parts of a plan, each read into a buffer of the budget."""

    def __init__(self, source: Source, plan: UploadPlan, algorithm: Algorithm | None, budget: BufferBudget) -> None:
        self._source = source
        self._algorithm = algorithm
        self._budget = budget
        self._parts = plan.parts()
        self._next: Part | None = next(self._parts, None)
        self._in_order = anyio.Lock()

    @property
    def ended(self) -> bool:
        """Whether the last part has been handed out."""
        return self._next is None

    @asynccontextmanager
    async def next_part(self) -> AsyncGenerator[FilledPart | None]:
        """Lend the next part; None when there is none left. Its buffer goes back to the budget when the block ends.

        :raises SourceChanged: when the source ends before the size it said it has
        """
        async with AsyncExitStack() as buffers:
            if self._source.seekable:
                content = await self._read_next(buffers)
            else:
                async with self._in_order:
                    content = await self._read_next(buffers)
            yield await self._with_checksum(*content) if content else None

    async def _read_next(self, buffers: AsyncExitStack) -> tuple[int, memoryview] | None:
        part = self._next
        if part is None:
            return None
        self._next = next(self._parts, None)
        buffer = await buffers.enter_async_context(self._budget.buffer(part.size_bytes))
        size_bytes = await self._source.read_into(part.offset, buffer)
        if size_bytes < part.size_bytes:
            if self._source.size_bytes is not None:
                raise SourceChanged(
                    f"{self._source.label} ended at byte {part.offset + size_bytes:,}"
                    f" and had {self._source.size_bytes:,} when it was opened"
                )
            self._next = None
        return (part.number, buffer[:size_bytes]) if size_bytes else None

    async def _with_checksum(self, number: int, content: memoryview) -> FilledPart:
        value = await anyio.to_thread.run_sync(self._algorithm.compute, content) if self._algorithm else None
        return FilledPart(number=number, content=content, checksums=Checksums(self._algorithm, value))
