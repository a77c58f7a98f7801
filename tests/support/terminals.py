"""Commands that have a terminal as well as a pipe to write to."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import Any

import anyio
import anyio.to_thread


async def output_and_terminal(process: subprocess.Popen[Any], terminal: int) -> tuple[Any, bytes]:
    """All that a command writes to its standard output, and to the other end of `terminal`, which is closed then."""
    shown: list[bytes] = []

    def drain() -> None:
        with contextlib.suppress(OSError):  # how Linux tells that the other end has closed
            while piece := os.read(terminal, 4096):
                shown.append(piece)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, drain)
        assert process.stdout is not None
        out = await anyio.to_thread.run_sync(process.stdout.read)
    os.close(terminal)
    return out, b"".join(shown)
