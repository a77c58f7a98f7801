"""The arithmetic of an archive that is never written, against archives that are."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.trees import Link, Tree, extracted_by_tar, members_of, plant, tree_on_disk

from aiobaseten.sources.files import Stamp
from aiobaseten.sources.layout import MTIME_S, Entry, FileEntry, LinkEntry, TarLayout, TextEntry, header

GIB = 1024**3

# Everything that a file name may hold on Linux: bytes that are not UTF-8 come as lone surrogates.
NAME_CHARACTERS = st.one_of(
    st.sampled_from("ab.-_ \n\t'\"\\*?[é漢🦊"),
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]),
    st.integers(0xDC80, 0xDCFF).map(chr),
)
PARTS = st.text(NAME_CHARACTERS, min_size=1, max_size=60).filter(
    lambda part: part not in (".", "..") and len(os.fsencode(part)) <= 255 and os.fsdecode(os.fsencode(part)) == part
)
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
CONTENTS = st.one_of(st.binary(max_size=40), st.integers(0, 3000).map(lambda size: os.urandom(1) * size))


def _without_conflicts(tree: dict[str, bytes]) -> dict[str, bytes]:
    directories = {name[:end] for name in tree for end, character in enumerate(name) if character == "/"}
    return {name: content for name, content in tree.items() if name not in directories}


TREES = st.dictionaries(NAMES, CONTENTS, min_size=1, max_size=8).map(_without_conflicts)


def entries_of(tree: Tree) -> list[Entry]:
    return [
        LinkEntry(name=name, target=content) if isinstance(content, Link) else TextEntry(name=name, content=content)
        for name, content in tree.items()
    ]


def no_files(entry: FileEntry, offset: int, buffer: memoryview) -> None:
    raise AssertionError(entry)


def whole(layout: TarLayout) -> bytes:
    content = bytearray(layout.size_bytes)
    assert layout.read_into(0, memoryview(content), no_files) == len(content)
    return bytes(content)


def written_by_tarfile(tree: Tree) -> bytes:
    """The same archive, made the ordinary way."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        for name in sorted(tree, key=lambda each: each.encode("utf-8", "surrogateescape")):
            info = tarfile.TarInfo(name)
            info.mtime = 315619200
            content = tree[name]
            if isinstance(content, Link):
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, str(content), 0o755
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@settings(deadline=None, max_examples=50)
@given(TREES)
@example({"a" * 100: b"x", "b" * 101: b"y"})
@example({"a": bytes(512), "b": bytes(511), "c": bytes(513), "d": b""})
@example({"n\udcff\n/" + "é" * 120: b"1", "x\n": b"2"})
@example({f"{number}": bytes(700) for number in range(5)})
def test_it_is_the_archive_that_tarfile_writes(tree: dict[str, bytes]) -> None:
    assert whole(TarLayout(entries_of(tree))) == written_by_tarfile(tree)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(PARTS, NAMES.map(Link), min_size=1, max_size=5))
@example({"link": Link("t" * 100), "long": Link("t" * 101), "other": Link("\udcfe\n")})
def test_links_are_those_that_tarfile_writes(tree: dict[str, Link]) -> None:
    archive = whole(TarLayout(entries_of(tree)))
    assert archive == written_by_tarfile(tree)
    assert members_of(archive) == tree


@settings(deadline=None, max_examples=50)
@given(TREES, st.data())
def test_any_range_is_that_part_of_the_whole(tree: dict[str, bytes], data: st.DataObject) -> None:
    layout = TarLayout(entries_of(tree))
    expected = whole(layout)
    start = data.draw(st.integers(0, len(expected)))
    buffer = bytearray(b"\xee" * data.draw(st.integers(0, len(expected) + 600)))
    count = layout.read_into(start, memoryview(buffer), no_files)
    assert buffer[:count] == expected[start : start + len(buffer)]
    assert buffer[count:] == b"\xee" * (len(buffer) - count)


@settings(deadline=None, max_examples=50)
@given(TREES, st.integers(1, 1500))
def test_ranges_side_by_side_make_the_whole(tree: dict[str, bytes], step: int) -> None:
    layout = TarLayout(entries_of(tree))
    content = bytearray()
    while len(content) < layout.size_bytes:
        buffer = bytearray(step)
        count = layout.read_into(len(content), memoryview(buffer), no_files)
        content += buffer[:count]
    assert bytes(content) == whole(layout)


def test_past_the_end_there_is_nothing() -> None:
    layout = TarLayout(entries_of({"a": b"1"}))
    for offset in (layout.size_bytes, layout.size_bytes + 1):
        assert layout.read_into(offset, memoryview(bytearray(10)), no_files) == 0


@settings(max_examples=25, deadline=None)
@given(TREES)
@example({"n\udcff\n/" + "é" * 120: b"1", "x\n": b"2", "empty": b""})
def test_gnu_tar_reads_it_back(tree: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        plant(Path(directory), tree)  # What the file system takes, tar can make too.
    with extracted_by_tar(whole(TarLayout(entries_of(tree)))) as root:
        assert tree_on_disk(root) == tree


def test_the_same_entries_in_another_order_give_the_same_bytes() -> None:
    tree = {"b": b"2", "a/c": b"3", "a-b": b"1", "é": b"4", "z": b"5", "\udcff": b"6"}
    forwards = TarLayout(entries_of(tree))
    backwards = TarLayout(reversed(entries_of(tree)))
    assert whole(forwards) == whole(backwards)
    assert [entry.name for entry in forwards.entries] == ["a-b", "a/c", "b", "z", "é", "\udcff"]


def test_what_a_header_says() -> None:
    plain, executable = TextEntry(name="a", content=b"1"), TextEntry(name="b", content=b"2", executable=True)
    entries = [plain, executable, LinkEntry(name="c", target="a")]
    with tarfile.open(fileobj=io.BytesIO(whole(TarLayout(entries)))) as tar:
        members = tar.getmembers()
    assert [member.mode for member in members] == [0o644, 0o755, 0o755]
    assert {(member.uid, member.gid, member.uname, member.gname, member.mtime) for member in members} == {(0, 0, "", "", MTIME_S)}


@settings(deadline=None)
@given(NAMES, st.one_of(st.integers(0, 10_000), st.integers(0, 20 * GIB)), st.booleans())
@example(name="a" * 100, size_bytes=8 * GIB - 1, executable=True)
@example(name="a" * 101, size_bytes=8 * GIB, executable=False)
def test_each_header_is_the_one_that_tarfile_makes(name: str, size_bytes: int, executable: bool) -> None:
    info = tarfile.TarInfo(name)
    info.mtime, info.size, info.mode = MTIME_S, size_bytes, 0o755 if executable else 0o644
    expected = info.tobuf(format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape")
    assert header(FileEntry(name=name, path="", stamp=Stamp(size_bytes=size_bytes, mtime_ns=0), executable=executable)) == expected


def huge(size_bytes: int) -> FileEntry:
    return FileEntry(name="big", path="/nowhere", stamp=Stamp(size_bytes=size_bytes, mtime_ns=0))


@pytest.mark.parametrize("size_bytes", [8 * GIB - 1, 8 * GIB, 9 * GIB + 7, 5 * 1024 * GIB])
def test_the_size_of_a_huge_file(size_bytes: int) -> None:
    layout = TarLayout([huge(size_bytes)])
    head = bytearray(512 if size_bytes < 8 * GIB else 1536)
    layout.read_into(0, memoryview(head), no_files)
    with tarfile.open(fileobj=io.BytesIO(head)) as tar:
        member = tar.next()
    assert member is not None
    assert (member.name, member.size, member.offset_data) == ("big", size_bytes, len(head))
    assert layout.size_bytes - len(head) - size_bytes in range(1024, 10240 + 512 + 1024)


def test_a_range_of_a_huge_file_asks_for_that_range_only() -> None:
    asked: list[tuple[int, int]] = []

    def read_file(entry: FileEntry, offset: int, buffer: memoryview) -> None:
        asked.append((offset, len(buffer)))
        buffer[:] = b"d" * len(buffer)

    layout = TarLayout([huge(9 * GIB + 7), TextEntry(name="c", content=b"end")])
    buffer = bytearray(4096)
    layout.read_into(1536 + 6 * GIB, memoryview(buffer), read_file)
    assert asked == [(6 * GIB, 4096)]
    assert buffer == b"d" * 4096
    layout.read_into(1536 + 9 * GIB, memoryview(buffer), read_file)
    assert asked[1:] == [(9 * GIB, 7)]
    assert buffer[:512] == b"d" * 7 + bytes(505)
    assert buffer[512:].startswith(b"c\0")


def test_an_empty_file_is_looked_at_too() -> None:
    asked: list[tuple[str, int]] = []

    def read_file(entry: FileEntry, offset: int, buffer: memoryview) -> None:
        asked.append((entry.name, len(buffer)))

    layout = TarLayout([huge(0)])
    layout.read_into(0, memoryview(bytearray(layout.size_bytes)), read_file)
    assert asked == [("big", 0)]
