"""Archives that are a file, bytes in memory, or a stream."""

from __future__ import annotations

import array
import asyncio
import contextlib
import mmap
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest
from blockbuster import blockbuster_ctx
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trees import Link, archive_of, open_directory_for_all, plant_model, read_all, unprivileged

from aiobaseten.errors import ArchiveError, InvalidPush, SourceChanged
from aiobaseten.options import MiB
from aiobaseten.sources import Source, files, open_source
from aiobaseten.sources.buffer import SLICE_BYTES
from aiobaseten.sources.file import FileSource
from aiobaseten.sources.files import read_at

pytestmark = pytest.mark.anyio

MIB = 1024**2
CONTENT = bytes(range(256)) * 1000


def file_of(tmp_path: Path, content: bytes = CONTENT) -> Path:
    path = tmp_path / "model.tar"
    path.write_bytes(content)
    return path


def open_files() -> set[Path]:
    """The files that this process has open."""
    found = set()
    for descriptor in Path("/dev/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(descriptor.resolve(strict=True))
    return found


async def chunks(*parts: object) -> AsyncIterator[bytes]:
    for part in parts:
        yield part  # type: ignore[misc]


# ---- files


async def test_a_file(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    async with await open_source(path) as source:
        assert (source.label, source.size_bytes, source.seekable, source.ignored) == (str(path), len(CONTENT), True, ())
        assert await read_all(source, 70_000) == CONTENT


@settings(deadline=None)
@given(start=st.integers(0, len(CONTENT) + 10), wanted=st.integers(0, 2000))
async def test_any_range_of_a_file_and_of_bytes(start: int, wanted: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    for given_ in (file_of(tmp_path_factory.mktemp("archive")), CONTENT):
        async with await open_source(given_) as source:
            buffer = bytearray(b"\xee" * wanted)
            count = await source.read_into(start, memoryview(buffer))
            assert buffer[:count] == CONTENT[start : start + wanted]
            assert buffer[count:] == b"\xee" * (wanted - count)


async def test_ranges_of_a_file_at_once(tmp_path: Path) -> None:
    content = os.urandom(3 * MIB)
    found = bytearray(len(content))
    async with await open_source(file_of(tmp_path, content)) as source, anyio.create_task_group() as tasks:
        for start in range(0, len(content), 100_000):
            tasks.start_soon(source.read_into, start, memoryview(found)[start : start + 100_000])
    assert found == content


async def test_a_file_over_4_gib(tmp_path: Path) -> None:
    path = tmp_path / "model.tar"
    with path.open("wb") as file:
        file.truncate(5 * 1024 * MIB)
        file.seek(5 * 1024 * MIB - 3)
        file.write(b"end")
    async with await open_source(path) as source:
        assert source.size_bytes == 5 * 1024 * MIB
        buffer = bytearray(10)
        assert await source.read_into(5 * 1024 * MIB - 5, memoryview(buffer)) == 5
        assert buffer[:5] == b"\0\0end"


async def test_an_empty_file(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"")
    with pytest.raises(ArchiveError, match=r"model\.tar is empty, and an archive is not") as caught:
        await open_source(path)
    assert caught.value.path == str(path)


async def test_a_file_that_cannot_be_read() -> None:
    with open_directory_for_all() as root:
        path = file_of(root)
        path.chmod(0)
        with unprivileged(), pytest.raises(ArchiveError, match=r"model\.tar cannot be read: Permission denied") as caught:
            await open_source(path)
    assert isinstance(caught.value.__cause__, PermissionError)


async def test_a_file_that_is_removed_or_replaced_is_still_read(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    async with await open_source(path) as source:
        path.unlink()
        path.write_bytes(b"another")
        assert await read_all(source) == CONTENT


@pytest.mark.parametrize("new_size", [len(CONTENT) - 1, len(CONTENT) + 1, 0])
async def test_a_file_whose_size_changes(tmp_path: Path, new_size: int) -> None:
    path = file_of(tmp_path)
    async with await open_source(path) as source:
        os.truncate(path, new_size)
        with pytest.raises(SourceChanged, match=rf"it had 256,000 bytes and has {new_size:,}$") as caught:
            await read_all(source)
        assert caught.value.path == str(path)
        with pytest.raises(SourceChanged):
            await source.read_config()


async def test_a_file_that_is_written_to(tmp_path: Path) -> None:
    path = file_of(tmp_path)
    async with await open_source(path) as source:
        os.utime(path, (1, 1))
        with pytest.raises(SourceChanged, match="was modified since the push began"):
            await read_all(source)


async def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(tmp_path)

    def meddle(descriptor: int, offset: int, buffer: memoryview) -> int:
        count = read_at(descriptor, offset, buffer[:1000])
        os.utime(path, (1, 1))
        return count

    monkeypatch.setattr(files, "read_at", meddle)
    async with await open_source(path) as source:
        with pytest.raises(SourceChanged, match="was modified since the push began"):
            await source.read_into(0, memoryview(bytearray(5000)))


async def test_a_file_that_ends_before_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "read_at", lambda descriptor, offset, buffer: 0)
    async with await open_source(file_of(tmp_path)) as source:
        with pytest.raises(SourceChanged, match="ended early while it was being read"):
            await read_all(source)


async def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, offset: int, buffer: memoryview) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "read_at", fail)
    async with await open_source(file_of(tmp_path)) as source:
        with pytest.raises(ArchiveError, match=r"model\.tar' cannot be read: Input/output error") as caught:
            await read_all(source)
        assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("read", [files._read_at_once, files._seek_and_read])
def test_both_ways_to_read_a_range(tmp_path: Path, read: type[files.read_at]) -> None:
    with files.opened(str(file_of(tmp_path)), follow=True) as descriptor:
        for start in (300, 0, len(CONTENT) - 5, len(CONTENT) + 1):
            buffer = bytearray(10)
            count = read(descriptor, start, memoryview(buffer))
            assert buffer[:count] == CONTENT[start : start + 10]


@pytest.mark.parametrize("kind", ["file", "directory"])
async def test_after_a_cancelled_read_nothing_writes_into_the_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    reading, release = threading.Event(), threading.Event()
    counts: list[int] = []

    def read_slowly(descriptor: int, offset: int, buffer: memoryview) -> int:
        reading.set()
        assert release.wait(30)
        counts.append(read_at(descriptor, offset, buffer[:1000]))
        return counts[-1]

    path = plant_model(tmp_path, {"model.tar": CONTENT}) / "model.tar"
    async with await open_source(path if kind == "file" else tmp_path) as source:
        monkeypatch.setattr(files, "read_at", read_slowly)
        buffer = bytearray(100_000)
        task = asyncio.ensure_future(source.read_into(2000, memoryview(buffer)))
        assert await asyncio.to_thread(reading.wait, 30)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The one read that had begun has ended, and no other was begun.
        assert counts == [1000]
        assert len(buffer.rstrip(b"\0")) <= 1000


async def test_nothing_blocks_the_event_loop(tmp_path: Path) -> None:
    plant_model(tmp_path, {"model.tar": (await archive_of(plant_model(tmp_path / "inner"))), "link": Link("model.tar")})
    content = (tmp_path / "model.tar").read_bytes()
    with blockbuster_ctx():
        for given_, options in ((tmp_path, {}), (tmp_path, {"symlinks": "follow"}), (tmp_path / "model.tar", {}), (content, {})):
            async with await open_source(given_, **options) as source:
                await read_all(source)
                assert (await source.read_config()).model_name == "tested"
        with pytest.raises(ArchiveError):
            await open_source(tmp_path / "missing")


async def test_closing_a_file_twice_and_reading_it_after(tmp_path: Path) -> None:
    source = await open_source(file_of(tmp_path))
    assert isinstance(source, FileSource)
    descriptor = source._descriptor
    assert descriptor is not None
    await source.aclose()
    await source.aclose()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    with pytest.raises(ArchiveError, match="is closed"):
        await source.read_into(0, memoryview(bytearray(1)))


async def test_a_caller_who_is_cancelled_leaves_no_file_open(tmp_path: Path) -> None:
    path = plant_model(tmp_path, {"model.tar": CONTENT}) / "model.tar"
    for turns in range(60):
        task = asyncio.ensure_future(open_source(path if turns % 3 else tmp_path))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            source = await task
        except asyncio.CancelledError:
            continue
        await source.aclose()
    assert path not in open_files()


async def test_the_fingerprint_of_a_file(tmp_path: Path) -> None:
    async def fingerprint() -> str | None:
        async with await open_source(path) as source:
            return source.fingerprint

    path = file_of(tmp_path)
    seen = [await fingerprint()]
    assert await fingerprint() == seen[0]
    os.utime(path, (1, 1))
    seen.append(await fingerprint())
    os.truncate(path, 5)
    seen.append(await fingerprint())
    assert None not in seen
    assert len(set(seen)) == 3


# ---- bytes


@pytest.mark.parametrize(
    "content",
    [
        CONTENT,
        bytearray(CONTENT),
        memoryview(CONTENT),
        memoryview(CONTENT).cast("i"),
        memoryview(CONTENT).cast("B", (1000, 256)),
        array.array("d", CONTENT),
    ],
    ids=["bytes", "bytearray", "memoryview", "ints", "table", "array"],
)
async def test_bytes(content: bytes) -> None:
    async with await open_source(content) as source:
        assert (source.label, source.size_bytes, source.seekable, source.ignored) == ("<bytes>", len(CONTENT), True, ())
        assert await read_all(source, 70_000) == CONTENT


async def test_a_mapped_file(tmp_path: Path) -> None:
    with file_of(tmp_path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        async with await open_source(mapped) as source:  # type: ignore[arg-type]
            assert await read_all(source) == CONTENT


async def test_bytes_are_not_copied_and_are_let_go_of() -> None:
    content = bytearray(CONTENT)
    async with await open_source(content) as source:
        content[0] = 77
        assert (await read_all(source))[0] == 77
        with pytest.raises(BufferError):
            content.clear()
    content.clear()


async def test_many_bytes() -> None:
    content = os.urandom(3 * SLICE_BYTES + 5)
    async with await open_source(content) as source:
        buffer = bytearray(len(content))
        assert await source.read_into(0, memoryview(buffer)) == len(content)
    assert buffer == content


@pytest.mark.parametrize("content", [b"", bytearray(), memoryview(b"")])
async def test_no_bytes(content: bytes) -> None:
    with pytest.raises(ArchiveError, match="<bytes> is empty, and an archive is not"):
        await open_source(content)


async def test_the_fingerprint_of_bytes() -> None:
    async with await open_source(b"one") as one, await open_source(b"one") as same, await open_source(b"two") as two:
        assert one.fingerprint == same.fingerprint == one.fingerprint
        assert one.fingerprint != two.fingerprint


# ---- streams


async def test_a_stream() -> None:
    async with await open_source(chunks(CONTENT)) as source:
        assert (source.label, source.size_bytes, source.seekable, source.ignored) == ("<stream>", None, False, ())
        assert source.fingerprint is None
        assert await read_all(source, 70_000) == CONTENT


@settings(deadline=None)
@given(parts=st.lists(st.binary(max_size=30), max_size=20).filter(any), buffer_bytes=st.integers(1, 50))
async def test_chunks_of_any_size_in_buffers_of_any_size(parts: list[bytes], buffer_bytes: int) -> None:
    async with await open_source(chunks(*parts)) as source:
        content = b"".join(parts)
        for start in range(0, len(content), buffer_bytes):
            buffer = bytearray(buffer_bytes)
            count = await source.read_into(start, memoryview(buffer))
            assert buffer[:count] == content[start : start + buffer_bytes]
        assert await source.read_into(len(content), memoryview(bytearray(1))) == 0


async def test_one_huge_chunk_leaves_others_their_turn() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    content = os.urandom(5 * MIB)
    async with await open_source(chunks(content)) as source, anyio.create_task_group() as tasks:
        tasks.start_soon(count_turns)
        buffer = bytearray(len(content))
        assert await source.read_into(0, memoryview(buffer)) == len(content)
        tasks.cancel_scope.cancel()
    assert buffer == content
    assert turns >= 4


async def test_chunks_in_a_buffer_that_the_stream_uses_again() -> None:
    async def reused() -> AsyncIterator[bytearray]:
        buffer = bytearray(4)
        for number in range(5):
            buffer[:] = b"%04d" % number
            yield buffer
            buffer.clear()
            buffer += bytes(4)

    async with await open_source(reused()) as source:  # type: ignore[arg-type]
        assert await read_all(source, 3) == b"00000001000200030004"


@pytest.mark.parametrize("chunk", ["text", None, 5, [1], memoryview(b"abcd")[::2]])
async def test_chunks_that_are_not_bytes(chunk: object) -> None:
    async with await open_source(chunks(b"fine", chunk)) as source:
        with pytest.raises(InvalidPush) as caught:
            await read_all(source)
    [problem] = caught.value.problems
    assert str(problem) == f"$.source: must yield bytes; chunk 2 of the stream is a {type(chunk).__name__}"


@pytest.mark.parametrize("parts", [(), (b"",), (b"", b"")])
async def test_a_stream_of_nothing(parts: tuple[bytes, ...]) -> None:
    async with await open_source(chunks(*parts)) as source:
        with pytest.raises(ArchiveError, match="<stream> is empty, and an archive is not"):
            await source.read_into(0, memoryview(bytearray(10)))


async def test_a_stream_is_read_once_and_in_order() -> None:
    async with await open_source(chunks(CONTENT)) as source:
        buffer = memoryview(bytearray(10))
        await source.read_into(0, buffer)
        for offset in (0, 5, 11):
            with pytest.raises(ArchiveError, match=rf"read once, from start to end; byte {offset} was asked for at byte 10"):
                await source.read_into(offset, buffer)
        assert await source.read_into(10, buffer) == 10


async def test_the_config_of_a_stream() -> None:
    async with await open_source(chunks(CONTENT)) as source:
        with pytest.raises(ArchiveError, match="give the push a deployment with its config"):
            await source.read_config()


async def test_an_error_of_the_stream_comes_through() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"1"
        raise LookupError("mine")

    async with await open_source(failing()) as source:
        with pytest.raises(LookupError, match="mine"):
            await read_all(source)


class Stream:
    """An async iterator that knows whether it was closed."""

    def __init__(self, *parts: bytes, failure: Exception | None = None) -> None:
        self._parts = list(parts)
        self._failure = failure
        self.closed = 0

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        if not self._parts:
            raise StopAsyncIteration
        return self._parts.pop(0)

    async def aclose(self) -> None:
        self.closed += 1
        if self._failure:
            raise self._failure


class Reading:
    """An async iterable that is no iterator, and whose iterator cannot be closed."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return Steps()


class Steps(Stream):
    aclose = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(b"a", b"b")


async def test_a_stream_that_cannot_be_closed() -> None:
    async with await open_source(Reading()) as source:
        assert await read_all(source) == b"ab"


@pytest.mark.parametrize("reads", [0, 1, 3])
async def test_a_stream_is_closed_once(reads: int) -> None:
    stream = Stream(b"1", b"2")
    async with await open_source(stream) as source:
        for offset in range(reads):
            await source.read_into(offset, memoryview(bytearray(1)))
        assert not stream.closed
    await source.aclose()
    assert stream.closed == 1


async def test_a_generator_that_is_left_early_is_closed() -> None:
    steps: list[str] = []

    async def generator() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"1"
        finally:
            await anyio.lowlevel.checkpoint()
            steps.append("closed")

    with anyio.CancelScope() as scope:
        async with await open_source(generator()) as source:
            await source.read_into(0, memoryview(bytearray(5)))
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert steps == ["closed"]


async def test_a_failure_to_close_never_hides_the_first_error() -> None:
    with pytest.raises(LookupError, match="first") as caught:
        async with await open_source(Stream(b"1", failure=OSError("second"))):
            raise LookupError("first")
    assert caught.value.__notes__ == ["closing <stream> failed too: OSError('second')"]


async def test_a_failure_to_close_does_not_undo_what_was_done(caplog: pytest.LogCaptureFixture) -> None:
    async with await open_source(Stream(b"1", failure=OSError("late"))) as source:
        await read_all(source)
    assert "closing <stream> failed" in caplog.text
    assert "OSError: late" in caplog.text


async def test_a_stream_that_does_not_end_its_closing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiobaseten.sources.stream.CLOSE_TIMEOUT_S", 0.01)

    class Endless(Stream):
        async def aclose(self) -> None:
            self.closed += 1
            await anyio.sleep_forever()

    stream = Endless(b"1")
    async with await open_source(stream):
        pass
    assert stream.closed == 1


# ---- what is no source at all


def generator() -> Iterator[bytes]:
    yield b"1"


class NotQuiteAStream:
    def __aiter__(self) -> int:
        return 5


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        (None, "not a NoneType"),
        (5, "not a int"),
        ([b"1"], "not a list"),
        (generator(), "not a generator"),
        (memoryview(b"abcd")[::2], "not a memoryview"),
        (NotQuiteAStream(), "and is no valid iterator: "),
    ],
)
async def test_what_is_no_source(given_: object, told: str) -> None:
    with pytest.raises(InvalidPush) as caught:
        await open_source(given_)  # type: ignore[arg-type]
    [problem] = caught.value.problems
    assert problem.path == "$.source"
    assert problem.rule.startswith("must be the path of a model directory or an archive file, bytes, or an async iterator of bytes")
    assert told in problem.rule


async def test_an_open_file_is_no_source(tmp_path: Path) -> None:
    with (
        file_of(tmp_path).open("rb") as file,
        pytest.raises(InvalidPush, match="not a BufferedReader; give its path, or its bytes"),
    ):
        await open_source(file)  # type: ignore[arg-type]


async def test_bytes_that_were_let_go_of() -> None:
    view = memoryview(b"abc")
    view.release()
    with pytest.raises(InvalidPush, match="not a memoryview"):
        await open_source(view)


@pytest.mark.parametrize("symlinks", ["keep", None, True])
async def test_links_are_stored_or_followed(tmp_path: Path, symlinks: object) -> None:
    with pytest.raises(InvalidPush) as caught:
        await open_source(tmp_path, symlinks=symlinks)  # type: ignore[arg-type]
    assert str(caught.value.problems[0]) == f"$.symlinks: must be 'store' or 'follow', not {symlinks!r}"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("", "'' does not exist"),
        ("missing", "'missing' does not exist"),
        ("missing/file", "'missing/file' does not exist"),
        ("/dev/null", "'/dev/null' is a character device, and must be a model directory or an archive file"),
        ("/dev/null/x", "'/dev/null/x' cannot be opened: Not a directory"),
        ("x" * 300, "cannot be opened: File name too long"),
        ("a\0b", "'a\\x00b' cannot be the name of a file: "),
        ("\ud800", "'\\ud800' cannot be the name of a file: "),
        (b"missing", "'missing' does not exist"),
    ],
)
async def test_paths_that_cannot_be_opened(path: str | bytes, told: str) -> None:
    class PathLike:
        def __fspath__(self) -> str | bytes:
            return path

    for given_ in (path, PathLike()) if isinstance(path, str) else (PathLike(),):
        with pytest.raises(ArchiveError) as caught:
            await open_source(given_)  # type: ignore[arg-type]
        assert told in str(caught.value)
        assert caught.value.path == os.fsdecode(path)
        assert caught.value.__cause__ is not None or "device" in told


async def test_a_path_behind_a_closed_directory() -> None:
    with open_directory_for_all() as root:
        (root / "closed").mkdir(mode=0)
        with unprivileged(), pytest.raises(ArchiveError, match="cannot be opened: Permission denied"):
            await open_source(root / "closed" / "model.tar")


async def test_a_path_that_does_not_print(tmp_path: Path) -> None:
    path = tmp_path / "\udcff.tar"
    path.write_bytes(CONTENT)
    async with await open_source(path) as source:
        assert source.label == f"{tmp_path}/\\udcff.tar"


async def test_every_source_is_its_own_context_manager(tmp_path: Path) -> None:
    for given_ in (file_of(tmp_path), CONTENT, chunks(CONTENT)):
        source = await open_source(given_)
        assert isinstance(source, Source)
        async with source as same:
            assert same is source


async def test_large_files_are_read_ahead_of_and_small_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[tuple[int, int]] = []
    monkeypatch.setattr(files, "read_ahead", lambda _, offset, size_bytes: announced.append((offset, size_bytes)))
    file = tmp_path / "archive.bin"
    file.write_bytes(bytes(3 * MiB))
    async with await open_source(file) as source:
        await source.read_into(MiB, memoryview(bytearray(2 * MiB)))
        await source.read_into(0, memoryview(bytearray(1000)))
    assert announced == [(MiB, 2 * MiB + files.READ_AHEAD_BYTES)]


def test_reading_ahead_is_only_a_wish(tmp_path: Path) -> None:
    file = tmp_path / "archive.bin"
    file.write_bytes(bytes(1000))
    with files.opened(str(file), follow=True) as descriptor:
        files._read_ahead(descriptor, 0, 1000)
        files._no_read_ahead(descriptor, 0, 1000)
    files._read_ahead(descriptor, 0, 1000)  # closed
