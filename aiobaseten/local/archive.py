"""Whether an uploaded object is a model archive: a tar, plain or gzip, with a ``config.yaml`` at its root.

The search is the one that a push makes in an archive it is given, over ranged requests to the store.
"""

from __future__ import annotations

import anyio.from_thread
import anyio.to_thread

from aiobaseten.errors import ArchiveError
from aiobaseten.local.object_store import ObjectMissing, ObjectStore
from aiobaseten.sources.archive_config import find_config


async def find_problem(store: ObjectStore, key: str) -> str | None:
    """What is wrong with the archive at `key`; None when it is one."""
    try:
        size_bytes = await store.size_bytes(key)
    except ObjectMissing:
        return "no object was uploaded to this key"

    def read_at(offset: int, buffer: memoryview) -> int:
        content = anyio.from_thread.run(store.read_range, key, offset, min(offset + len(buffer), size_bytes))
        buffer[: len(content)] = content
        return len(content)

    def search() -> None:
        find_config(read_at, size_bytes, label="the object", check=anyio.from_thread.check_cancelled)

    try:
        await anyio.to_thread.run_sync(search)
    except ArchiveError as error:
        return str(error)
    return None
