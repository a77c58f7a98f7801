"""The command ``aiobaseten``, run in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from aiobaseten.cli.app import run
from aiobaseten.local import LocalStack


def point_at(stack: LocalStack, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Have commands go to this stack, and read no settings of the user's."""
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("BASETEN_API_KEY", stack.api_key)
    monkeypatch.setenv("AIOBASETEN_BASE_URL", stack.base_url)
    monkeypatch.setenv("AIOBASETEN_S3_ENDPOINT_URL", stack.s3_endpoint_url)


async def command(*arguments: object) -> int:
    """Run a command in a thread, as it has an event loop of its own, and return its exit code."""
    return await anyio.to_thread.run_sync(run, [str(argument) for argument in arguments])


def records(text: str) -> list[dict[str, Any]]:
    """What ``--json`` printed."""
    return [json.loads(line) for line in text.splitlines()]
