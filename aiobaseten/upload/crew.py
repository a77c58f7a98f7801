"""Tasks that work on one thing together, and stop together."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from aiobaseten.errors import UploadError

Work = Callable[[], Awaitable[object]]


@asynccontextmanager
async def crew() -> AsyncGenerator[Callable[[Work], None]]:
    """A task group that ends with the first failure of its tasks as it is: not wrapped in a group, and not hidden by those that the
    failure caused in the others. Yields what starts a task.
    """
    failures: list[Exception] = []
    async with anyio.create_task_group() as tasks:

        def fail(error: Exception) -> None:
            failures.append(error)
            tasks.cancel_scope.cancel()

        async def guarded(work: Work) -> None:
            try:
                await work()
            except asyncio.CancelledError as error:
                if tasks.cancel_scope.cancel_called or anyio.current_effective_deadline() == -math.inf:
                    raise
                stray = UploadError("a CancelledError came from where nothing had been cancelled, such as an iterator's own task")
                stray.__cause__ = error
                fail(stray)
            except Exception as error:  # noqa: BLE001 - raised below
                fail(error)

        def start(work: Work) -> None:
            tasks.start_soon(guarded, work)

        yield start
    if failures:
        raise failures[0]
