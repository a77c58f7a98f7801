"""A service's event loop while it uploads: nothing on it blocks."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx
from support.uploads import TARGET

import aiobaseten as ab

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SINK = Path(__file__).parents[2] / "benchmarks" / "sink.py"
GiB = 1024**3


@pytest.fixture
def sink() -> Iterator[dict[str, str]]:
    """A server over TLS that drops what it gets."""
    with subprocess.Popen(
        [sys.executable, str(SINK), "--tls"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(30)


async def test_three_gib_leave_it_free(sink: dict[str, str], tmp_path: Path) -> None:
    archive = tmp_path / "archive.bin"
    with archive.open("wb") as file:
        file.truncate(3 * GiB)  # sparse: it takes no room
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    options = ab.Options(ca_bundle=sink["ca_bundle"])  # type: ignore[arg-type]  # a path as text
    async with ab.Client("key", s3_endpoint_url=sink["url"], options=options) as client:
        await client.upload(TARGET, bytes(20 * 1024 * 1024))
        with blockbuster_ctx():
            ticker = asyncio.ensure_future(tick())
            receipt = await client.upload(TARGET, archive)
            ticker.cancel()
    assert receipt.size_bytes == 3 * GiB
    assert ticks > 0
