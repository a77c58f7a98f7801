"""Fixtures for every test."""

from __future__ import annotations

import re
import secrets
import signal
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from aiobaseten.local import LocalStack


def pytest_configure() -> None:
    """A shell that starts this run in the background has it, and every command that it tests, ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
async def local_stack(anyio_backend: str) -> AsyncIterator[LocalStack]:
    """One local stack for the whole run, with a second team; each test pushes under names of its own."""
    from aiobaseten.local import LocalStack

    async with LocalStack(teams=("default", "research")) as stack:
        yield stack


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model name of the test's own: the stack is shared."""
    return f"{re.sub('[^a-z0-9]+', '-', request.node.name)[:60]}-{secrets.token_hex(4)}"
