"""Fixtures for every test."""

from __future__ import annotations

import re
import secrets
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

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
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names none."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """One that no system trusts."""
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> Path:
    """The file by which it is trusted."""
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model name of the test's own: the stack is shared."""
    return f"{re.sub('[^a-z0-9]+', '-', request.node.name)[:60]}-{secrets.token_hex(4)}"
