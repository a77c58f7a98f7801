"""The config.yaml of an archive that somebody else made."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trees import CONFIG, archive_of, plant_model

from aiobaseten.errors import ArchiveError
from aiobaseten.sources import ModelConfig, archive_config, open_source
from aiobaseten.sources.archive_config import read_archive_config

pytestmark = pytest.mark.anyio

KIB = 1024
Entry = tuple[str, bytes] | tarfile.TarInfo


def info(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def tar_of(*entries: Entry, format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002 - tarfile's own word
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                made = tarfile.TarInfo(entry[0])
                made.size = len(entry[1])
                tar.addfile(made, io.BytesIO(entry[1]))
    return buffer.getvalue()


class Reading:
    """An archive that counts what is read of it."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.bytes_read = 0

    def __call__(self, offset: int, buffer: memoryview) -> int:
        piece = self.content[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        self.bytes_read += len(piece)
        return len(piece)


def config_of(archive: bytes | Reading) -> ModelConfig:
    reading = archive if isinstance(archive, Reading) else Reading(archive)
    return read_archive_config(reading, len(reading.content), label="model.tar", check=lambda: None)


def refusal(archive: bytes) -> str:
    with pytest.raises(ArchiveError) as caught:
        config_of(archive)
    return str(caught.value)


packings = pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
Pack = Callable[[bytes], bytes]


@packings
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["config.yaml", "./config.yaml"])
def test_it_is_found(pack: Pack, format: int, name: str) -> None:  # noqa: A002 - tarfile's own word
    long = "d/" * 45 + "x" * 90
    archive = tar_of(
        ("a/config.yaml", b"- no"), (long, b"1"), info("data", tarfile.DIRTYPE), (name, CONFIG), ("z", b""), format=format
    )
    assert config_of(pack(archive)) == ModelConfig(config={"model_name": "tested"}, raw=CONFIG.decode())


@packings
async def test_in_the_archive_of_a_directory(tmp_path: Path, pack: Pack) -> None:
    content = pack(await archive_of(plant_model(tmp_path / "model", {"Z": b"before config.yaml", "é": b""})))
    (tmp_path / "model.tgz").write_bytes(content)
    for given_ in (content, bytearray(content), tmp_path / "model.tgz", str(tmp_path / "model.tgz")):
        async with await open_source(given_) as source:
            assert (await source.read_config()).config == {"model_name": "tested"}
            assert (await source.read_config()).raw == CONFIG.decode()


def test_of_a_plain_archive_only_headers_are_read() -> None:
    reading = Reading(tar_of(("a", bytes(4000 * KIB)), ("config.yaml", CONFIG), ("z", bytes(4000 * KIB))))
    assert config_of(reading).model_name == "tested"
    assert reading.bytes_read < 500 * KIB


def test_of_a_compressed_archive_nothing_behind_it_is_read() -> None:
    noise = random.Random(1).randbytes(2000 * KIB)
    reading = Reading(gzip.compress(tar_of(("a", noise[: 500 * KIB]), ("config.yaml", CONFIG), ("z", noise))))
    assert config_of(reading).model_name == "tested"
    assert 500 * KIB < reading.bytes_read < 800 * KIB


def test_of_two_in_a_plain_archive_the_later_counts_as_when_it_is_unpacked() -> None:
    archive = tar_of(("config.yaml", b"model_name: old\n"), ("x", b"1"), ("./config.yaml", b"model_name: new\n"))
    assert config_of(archive).model_name == "new"


@packings
@pytest.mark.parametrize(
    "links",
    [
        [info("config.yaml", tarfile.SYMTYPE, "configs/one.yaml"), ("configs/one.yaml", CONFIG)],
        [("configs/one.yaml", CONFIG), info("config.yaml", tarfile.SYMTYPE, "./configs/../configs/one.yaml")],
        [("configs/one.yaml", CONFIG), info("config.yaml", tarfile.LNKTYPE, "configs/one.yaml")],
        [("c", CONFIG), info("a/b", tarfile.SYMTYPE, "../c"), info("config.yaml", tarfile.SYMTYPE, "a/b")],
        [("a/c", CONFIG), info("a/b", tarfile.LNKTYPE, "a/c"), info("config.yaml", tarfile.SYMTYPE, "a/b")],
    ],
)
def test_links_inside_the_archive_are_followed(pack: Pack, links: list[Entry]) -> None:
    assert config_of(pack(tar_of(*links))).model_name == "tested"


@packings
@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([], "model.tar has no config.yaml at its root"),
        ([("model/config.yaml", CONFIG), ("/config.yaml", CONFIG)], "model.tar has no config.yaml at its root"),
        ([info("config.yaml", tarfile.DIRTYPE)], "config.yaml in model.tar must be a regular file"),
        ([info("config.yaml", tarfile.FIFOTYPE)], "config.yaml in model.tar must be a regular file"),
        (
            [info("config.yaml", tarfile.SYMTYPE, "../x")],
            "model.tar has no config.yaml at its root, a link to '../x' that is not there",
        ),
        ([info("config.yaml", tarfile.SYMTYPE, "config.yaml")], "config.yaml in model.tar leads from link to link"),
        ([("config.yaml", b"- list")], "config.yaml in model.tar must hold a mapping, not a list"),
        ([("config.yaml", b"a: 1\nb: c: d")], "config.yaml in model.tar, line 2, column 5: mapping values"),
        ([("config.yaml", b"\x80")], "config.yaml in model.tar, line 1: byte 0x80 is not UTF-8"),
        ([("config.yaml", b"")], "config.yaml in model.tar is empty"),
        (
            [("config.yaml", b" " * (1024 * KIB + 1))],
            "config.yaml in model.tar has 1,048,577 bytes, and must not have more than 1,048,576",
        ),
    ],
)
def test_what_is_refused(pack: Pack, entries: list[Entry], told: str) -> None:
    assert told in refusal(pack(tar_of(*entries)))


def test_packages_that_the_archive_should_hold() -> None:
    told = refusal(tar_of(("config.yaml", b"external_package_dirs: [../shared]\n")))
    assert "config.yaml in model.tar names external_package_dirs" in told
    assert "push the model directory instead" in told
    config = config_of(tar_of(("config.yaml", b"a: 1\nexternal_package_dirs: []\n")))
    assert config.config == {"a": 1}
    assert config.raw == "a: 1\nexternal_package_dirs: []\n"


def cut(archive: bytes) -> bytes:
    return archive[: len(archive) // 2]


ARCHIVE = tar_of(("a", random.Random(2).randbytes(50_000)), ("config.yaml", CONFIG))


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04" + bytes(2000),
        b"BZh91AY&SY" + bytes(2000),
        b"just text",
        b"x" * 5000,
        cut(ARCHIVE),
        cut(gzip.compress(ARCHIVE)),
        gzip.compress(cut(ARCHIVE)),
        b"\x1f\x8b" + bytes(100),
        gzip.compress(ARCHIVE)[:-40_000] + b"\xff" * 40_000,
        ARCHIVE[:124] + b"\xff" * 12 + ARCHIVE[136:],
        ARCHIVE[: 512 + 50_176] + b"x" * 600,
    ],
    ids=["zip", "bzip2", "text", "no-header", "cut", "gzip-cut", "cut-gzip", "no-gzip", "bad-gzip", "bad-size", "bad-header"],
)
def test_what_is_no_archive(content: bytes) -> None:
    with pytest.raises(ArchiveError, match=r"model\.tar is not a tar archive that can be read, plain or gzip: ") as caught:
        config_of(content)
    assert caught.value.path == "model.tar"
    assert caught.value.__cause__ is not None


def header(name: bytes, kind: bytes, size: int) -> bytes:
    block = bytearray(512)
    struct.pack_into(
        "100s8s8s8s12s12s8s1s", block, 0, name, b"0000644", b"0000000", b"0000000", b"%011o" % size, b"0" * 11, b" " * 8, kind
    )
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_what_is_behind_the_end_of_an_archive_does_not_matter() -> None:
    assert config_of(ARCHIVE + b"x" * 600).model_name == "tested"


def test_a_damaged_header_is_no_end() -> None:
    place = ARCHIVE.index(b"config.yaml")
    assert f"the header at byte {place:,} is damaged" in refusal(ARCHIVE[:place] + b"C" + ARCHIVE[place + 1 :])
    last = tar_of(("config.yaml", CONFIG), ("z", b"1"))
    place = last.index(b"z\0")
    assert f"the header at byte {place:,} is damaged" in refusal(last[:place] + b"Z" + last[place + 1 :])


@packings
def test_a_header_of_gigabytes(pack: Pack) -> None:
    assert "a header of more than 16,777,216 bytes" in refusal(pack(header(b"a", tarfile.XHDTYPE, 7 * 1024**3) + bytes(10_000)))


@packings
def test_headers_of_headers_of_headers(pack: Pack) -> None:
    chain = (header(b"long", tarfile.GNUTYPE_LONGNAME, 4) + b"name" + bytes(508)) * 3000
    assert "is not a tar archive that can be read" in refusal(pack(chain))


def test_unpacking_ends_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_config, "MAX_UNPACKED_BYTES", 100_000)
    assert config_of(gzip.compress(tar_of(("a", bytes(50_000)), ("config.yaml", CONFIG)))).model_name == "tested"
    told = refusal(gzip.compress(tar_of(("a", bytes(200_000)), ("config.yaml", CONFIG))))
    assert "no config.yaml within its first 100,000 bytes" in told


@settings(deadline=None, max_examples=200)
@given(
    damage=st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=20)), max_size=4),
    length=st.integers(1, 12_000),
    packed=st.booleans(),
)
def test_a_damaged_archive_is_read_or_refused(damage: list[tuple[int, bytes]], length: int, packed: bool) -> None:
    entries = ("é" * 70, b"1" * 300), info("link", tarfile.SYMTYPE, "t" * 120), ("config.yaml", CONFIG)
    content = bytearray(tar_of(*entries)[:length])
    for start, replacement in damage:
        content[start : start + len(replacement)] = replacement
    try:
        config = config_of(gzip.compress(content) if packed else bytes(content))
    except ArchiveError:
        return
    assert config.config


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_anything_else_is_refused(content: bytes) -> None:
    refusal(content)
    refusal(b"\x1f\x8b\x08\x00" + content)
