"""What the local stack takes for a model archive, and how little of it is read to tell."""

from __future__ import annotations

import gzip
from typing import cast

import pytest
from support.rest import make_tar

from aiobaseten.local import archive
from aiobaseten.local.object_store import ObjectMissing, ObjectStore

pytestmark = pytest.mark.anyio


class Objects:
    """One object in memory, with the reads that the search makes."""

    def __init__(self, content: bytes | None) -> None:
        self.content = content
        self.bytes_read = 0

    async def size_bytes(self, key: str) -> int:
        if self.content is None:
            raise ObjectMissing(key)
        return len(self.content)

    async def read_range(self, key: str, start: int, stop: int) -> bytes:
        assert self.content is not None
        assert 0 <= start < stop <= len(self.content)
        self.bytes_read += stop - start
        return self.content[start:stop]


async def problem_in(content: bytes | None) -> str | None:
    return await archive.find_problem(cast("ObjectStore", Objects(content)), "key")


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["config.yaml", "./config.yaml"])
async def test_archives(name: str, compress: bool) -> None:
    assert await problem_in(make_tar({"data/config.yaml": b"", name: b"", "z": bytes(70_000)}, compress=compress)) is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no object was uploaded"),
        (b"", "is not a tar archive that can be read"),
        (b"hello" * 1000, "is not a tar archive that can be read"),
        (gzip.compress(b"hello" * 1000, mtime=0), "is not a tar archive that can be read"),
        (make_tar({"weights": bytes(50_000)})[:20_000], "is not a tar archive that can be read"),
        (make_tar({"model/config.yaml": b"x"}), "no config.yaml at its root"),
        (make_tar({"config.yml": b"x"}, compress=True), "no config.yaml at its root"),
    ],
)
async def test_what_is_no_archive(content: bytes | None, problem: str) -> None:
    found = await problem_in(content)
    assert found is not None
    assert problem in found


async def test_contents_of_a_plain_tar_are_skipped_over() -> None:
    objects = Objects(make_tar({"a-weights": bytes(20_000_000), "config.yaml": b""}))
    assert await archive.find_problem(cast("ObjectStore", objects), "key") is None
    assert objects.bytes_read < 300_000
