"""Files, links and streams as nobody would have them: archived byte for byte, or refused by name; never waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.hostile import (
    NO_SMALL_FILES,
    a_dangling_link,
    a_directory,
    a_link_to_itself,
    a_terabyte,
    little_memory,
    refused,
    refused_source,
)
from support.trees import CONFIG, Link, archive_of, contents_of_archive, extracted_by_tar, plant, plant_model, tree_on_disk
from support.uploads import PATIENT, rig

from aiobaseten.errors import ArchiveError, InvalidPush, SourceChanged
from aiobaseten.options import GiB, KiB, MiB
from aiobaseten.sources import files, open_source, walk

pytestmark = pytest.mark.anyio

ODD_NAMES = [
    b"a\nb",
    b"a\rb",
    b"a\tb",
    b"a\x1b[2J",
    b"\x01",
    b"\x7f",
    b"\xff\xfe",
    b"caf\xe9",
    b"\xed\xa0\x80",
    b"x" * 255,
    ("é" * 127).encode(),
    b" ",
    b" a ",
    b"a.",
    b"...",
    b"..a",
    b"~",
    b"-rf",
    b"a\\b",
    b"a:b",
    b"CON",
    b"*",
    b"'\"`$(x)",
    "\u202efdp.exe".encode(),
    "\u2028".encode(),
    "\ufeffa".encode(),
    b"config.yaml ",
    b"PaxHeader",
    b"@LongLink",
]


def plant_bytes(root: Path, names: list[bytes]) -> dict[str, bytes]:
    """A model directory with files of those names, each holding its name, and as many in a directory of the name."""
    found: dict[str, bytes] = {"config.yaml": CONFIG, ".truss_ignore": b""}
    for name in map(os.fsdecode, names):
        found |= dict.fromkeys((name, f"in-{name[:60]}/{name}"), os.fsencode(name))
    plant(root, found)
    return found


async def test_names_are_archived_byte_for_byte(tmp_path: Path) -> None:
    expected = plant_bytes(tmp_path, ODD_NAMES)
    archive = await archive_of(tmp_path)
    assert await contents_of_archive(tmp_path) == expected
    with extracted_by_tar(archive) as unpacked:
        assert tree_on_disk(unpacked) == expected


NAME = (
    st.binary(min_size=1, max_size=20)
    .map(lambda name: name.replace(b"/", b"").replace(b"\0", b""))
    .filter(lambda name: name not in (b"", b".", b"..", b"config.yaml"))
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NAME, max_size=6, unique=True))
async def test_any_names(tmp_path_factory: pytest.TempPathFactory, names: list[bytes]) -> None:
    root = tmp_path_factory.mktemp("model")
    expected = plant_bytes(root, names)
    assert await contents_of_archive(root) == expected


@pytest.mark.parametrize(
    "pair", [("README", "readme"), ("é", unicodedata.normalize("NFD", "é")), ("\u017f", "s"), ("\u2163", "IV")]
)
async def test_names_that_only_some_systems_tell_apart(tmp_path: Path, pair: tuple[str, str]) -> None:
    tree = {name: name.encode() for name in pair}
    assert await contents_of_archive(plant_model(tmp_path, tree)) == {"config.yaml": CONFIG, **tree}
    (tmp_path / pair[0]).unlink()
    (tmp_path / pair[1]).unlink()
    (tmp_path / "packages").mkdir()
    packages = plant(tmp_path / "more", {pair[0]: b"1"})
    plant(tmp_path, {f"packages/{pair[1]}": b"2", "config.yaml": f"external_package_dirs: [{packages}]\n".encode()})
    assert {f"packages/{name}" for name in pair} <= set(await contents_of_archive(tmp_path))


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("plant_it", [plant for plant in NO_SMALL_FILES if plant not in (a_directory, a_terabyte)])
async def test_what_cannot_be_archived_is_named(tmp_path: Path, name: bytes, plant_it: Callable[[Path], None]) -> None:
    path = plant_model(tmp_path, {".truss_ignore": b""}) / os.fsdecode(name)
    plant_it(path)
    error = await refused_source(tmp_path, files.printable(os.fsdecode(name)))
    assert isinstance(error, ArchiveError)
    assert error.path == str(path)
    if plant_it in (a_dangling_link, a_link_to_itself):
        await refused_source(tmp_path, files.printable(os.fsdecode(name)), symlinks="follow")


@pytest.mark.parametrize(
    "target", ["/", "/dev", "/dev/zero", "/proc/self/mem", "/proc/self/fd", "..", "../..", ".", "./.", "a/../.."]
)
async def test_links_that_lead_out(tmp_path: Path, target: str) -> None:
    root = plant_model(tmp_path / "model", {"a/b": b"", "link": Link(target)})
    stays_inside = target in (".", "./.")
    if stays_inside:
        assert (await contents_of_archive(root))["link"] == Link(target)
    else:
        await refused_source(root, "link")


@pytest.mark.parametrize("symlinks", ["store", "follow"])
async def test_webs_of_links(tmp_path: Path, symlinks: str) -> None:
    """Two that lead upwards are endless; a chain of forty is more than systems follow."""
    chain = {f"chain-{number}": Link(f"chain-{number + 1}") for number in range(60)}
    ring = {"ring/a": Link("b"), "ring/b": Link("c"), "ring/c": Link("a")}
    up = {"up/one": Link("."), "up/two": Link("../up"), "up/file": b""}
    root = plant_model(tmp_path / "model", {**chain, "chain-60": b"", **ring, **up})
    error = await refused_source(root, "chain-0", symlinks=symlinks)
    assert isinstance(error, ArchiveError)
    rules = {str(problem.path): problem.rule for problem in error.problems}
    assert all("loop" in rules[name] for name in ring)
    assert ("up/one" in rules) == (symlinks == "follow")


async def test_following_many_links_to_one_directory_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant_model(tmp_path / "model")
    shared = plant(tmp_path / "level-0", {"file": b""})
    for number in range(1, 40):
        level = tmp_path / f"level-{number}"
        level.mkdir()
        for name in ("a", "b"):
            (level / name).symlink_to(shared)
        shared = level
    (root / "all").symlink_to(shared)
    monkeypatch.setattr(walk, "MAX_FOLLOWED", 500)
    await refused_source(root, "leads through more than 500 links to directories", symlinks="follow")


@pytest.mark.parametrize("plant_it", NO_SMALL_FILES)
async def test_a_source_that_is_none(tmp_path: Path, plant_it: Callable[[Path], None]) -> None:
    plant_it(tmp_path / "model")
    with little_memory():
        error = await refused_source(tmp_path / "model", "model")
    assert isinstance(error, ArchiveError)


async def test_a_directory_that_becomes_a_link_while_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files would come from anywhere."""
    plant(tmp_path / "elsewhere", {"secret": b"x"})
    root = plant_model(tmp_path / "model", {"a/b": b""})
    scandir = os.scandir

    def swap(path: str) -> Any:
        if path == str(root / "a") and not (root / "a").is_symlink():
            (root / "a").rename(tmp_path / "moved")
            (root / "a").symlink_to(tmp_path / "elsewhere")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", swap)
    error = await refused_source(root, "was replaced by a link since the push began")
    assert isinstance(error, SourceChanged)
    assert error.path == str(root / "a")


def grow(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"more")


def shrink(file: Path) -> None:
    os.truncate(file, 100)


def replace(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(bytes(20 * MiB))
    other.replace(file)


def become_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def go(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("change", [grow, shrink, replace, become_a_pipe, go])
async def test_a_file_that_changes_between_two_reads(tmp_path: Path, change: Callable[[Path], None]) -> None:
    root = plant_model(tmp_path, {"data": bytes(20 * MiB), "other-data": b"x"})
    async with await open_source(root) as source:
        buffer = memoryview(bytearray(8 * MiB))
        assert await source.read_into(0, buffer) == 8 * MiB
        change(root / "data")
        with refused(SourceChanged, str(root / "data")):
            await source.read_into(8 * MiB, buffer)


async def test_a_file_that_grows_without_end_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant_model(tmp_path, {"data": bytes(20 * MiB)})
    read_at = files.read_at

    def growing(descriptor: int, offset: int, buffer: memoryview) -> int:
        count = read_at(descriptor, offset, buffer)
        grow(root / "data")
        return count

    async with await open_source(root) as source:
        monkeypatch.setattr(files, "read_at", growing)
        buffer = memoryview(bytearray(20 * MiB))
        with refused(SourceChanged, str(root / "data")):
            await source.read_into(0, buffer)


async def test_a_terabyte_of_nothing(tmp_path: Path) -> None:
    """Its size is known and any range of it is there, in the memory that the range takes."""
    a_terabyte(plant_model(tmp_path) / "data")
    with little_memory(64 * MiB):
        async with await open_source(tmp_path) as source:
            assert source.size_bytes is not None
            assert source.size_bytes > 1024 * GiB
            buffer = memoryview(bytearray(MiB))
            for offset in (0, 500 * GiB, source.size_bytes - MiB):
                assert await source.read_into(offset, buffer) == MiB
            assert await source.read_into(source.size_bytes, buffer) == 0


async def test_more_than_an_object_may_have(tmp_path: Path) -> None:
    for number in range(6):
        a_terabyte(plant_model(tmp_path) / f"data-{number}")
    async with rig() as store:
        with refused(ArchiveError, "5 TiB"):
            await store.upload(tmp_path)
        assert store.server.calls == []


# ---- streams


async def endless(chunk: Any) -> AsyncIterator[Any]:
    while True:
        yield chunk
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("chunk", ["text", 7, None, [b"x"], b"x".hex, memoryview(bytes(100))[::2], {}])
async def test_a_stream_of_something_else(chunk: Any) -> None:
    async def stream() -> AsyncIterator[Any]:
        yield b"x" * 100
        yield chunk

    async with rig() as store:
        with refused(InvalidPush, "$.source", "chunk 2"):
            await store.upload(stream())
        assert store.server.objects == {}
        assert store.server.uploads == {}


@pytest.mark.parametrize("chunk", [b"", b"x" * 700 * KiB])
async def test_a_stream_without_end_can_be_left(chunk: bytes) -> None:
    """It takes the memory of its budget, and nothing is left of it at the store."""
    async with rig(PATIENT) as store:
        with anyio.move_on_after(1) as scope:
            await store.upload(endless(chunk))
        assert scope.cancelled_caught
        assert store.server.uploads == {}
        assert store.server.objects == {}


async def test_a_chunk_larger_than_all_buffers() -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield bytes(100 * MiB)

    async with rig() as store:
        assert (await store.upload(stream())).size_bytes == 100 * MiB


@pytest.mark.parametrize("given_", [object(), 7, None, [], {}, iter([b"x"]), (byte for byte in b"x"), "", "\0", "x" * 100_000, b""])
async def test_what_is_no_source(given_: Any) -> None:
    with refused(InvalidPush) as caught:
        await open_source(given_)
    assert len(str(caught.error)) < 6000


# ---- many


@pytest.mark.slow
def test_100_000_files(tmp_path: Path) -> None:
    """In a process of its own, whose memory is then known."""
    root = plant_model(tmp_path)
    for number in range(100):
        directory = root / f"{number:03}"
        directory.mkdir()
        first = directory / "first"
        first.touch()
        for other in range(999):
            os.link(first, directory / f"a-name-of-some-length-{other:04}.bin")
    script = f"""
import anyio, resource
from aiobaseten.sources import open_source
async def main():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with await open_source({str(root)!r}) as source:
        buffer = memoryview(bytearray(1 << 20))
        for offset in range(0, source.size_bytes, source.size_bytes // 20):
            await source.read_into(offset, buffer)
    print(source.size_bytes, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
anyio.run(main)
"""
    ended = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=100)
    size_bytes, memory_mib = map(int, ended.stdout.split())
    assert size_bytes > 100_000 * 512
    assert memory_mib < 200
