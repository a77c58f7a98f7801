"""What counts as a model archive, and how little of it is read to tell."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rest import make_tar

from aiobaseten.local import archive


class CountingFile(io.BytesIO):
    """A file that counts the bytes that are read from it."""

    bytes_read = 0

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        count = super().readinto(buffer)
        self.bytes_read += count
        return count


def problem_in(content: bytes) -> str | None:
    return archive.find_problem_in(io.BufferedReader(io.BytesIO(content), 4096))


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    header = tarfile.TarInfo(name)
    header.type = kind
    header.linkname = target
    return header.tobuf(tarfile.PAX_FORMAT)


END = bytes(1024)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("name", ["config.yaml", "./config.yaml", "././config.yaml"])
def test_archives(name: str, tar_format: int, compress: bool) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tar_format) as tar:
        for each in ("a/" + "long" * 22 + "/x", "data/config.yaml", name, "z"):
            header = tarfile.TarInfo(each)
            header.size = 70_000
            tar.addfile(header, io.BytesIO(bytes(70_000)))
    data = content.getvalue()
    assert problem_in(gzip.compress(data) if compress else data) is None


def test_a_link_named_config_yaml_counts_and_a_directory_does_not() -> None:
    assert problem_in(entry("config.yaml", tarfile.SYMTYPE, "other.yaml") + END) is None
    assert problem_in(entry("config.yaml", tarfile.DIRTYPE) + END) == "the archive has no config.yaml at its root"


def test_a_name_that_only_pax_can_hold() -> None:
    name = "\u00e9" * 300
    assert problem_in(make_tar({name: b"1", "config.yaml": b""})) is None
    assert problem_in(make_tar({f"{name}/config.yaml": b""})) == "the archive has no config.yaml at its root"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"hello" * 1000,
        bytes(100),
        gzip.compress(b""),
        gzip.compress(b"hello" * 1000),
        gzip.compress(make_tar({"weights": random.Random(1).randbytes(9000)}))[:5000],
        b"\x1f\x8b" + b"x" * 100,
        b"\x1f\x8b",
        gzip.compress(make_tar())[:40] + b"\xff" * 100,
        entry("weights.bin")[:200],
        b"PK\x03\x04" + bytes(600),
        make_tar({"weights": bytes(50_000)})[:20_000],
    ],
)
def test_what_is_no_archive(content: bytes) -> None:
    problem = problem_in(content)
    assert problem is not None
    assert problem.startswith("the object is not a tar archive that can be read, plain or gzip: ")


def test_an_archive_that_is_empty_or_has_no_config() -> None:
    assert problem_in(END) == "the archive has no config.yaml at its root"
    assert problem_in(make_tar({"model/model.py": b"x"})) == "the archive has no config.yaml at its root"
    assert problem_in(make_tar({"config.yml": b"x", "model/config.yaml": b"x"}, compress=True)) is not None


def test_contents_of_a_plain_tar_are_skipped_over() -> None:
    content = make_tar({"a-weights": bytes(20_000_000), "config.yaml": b""})
    file = CountingFile(content)
    assert archive.find_problem_in(io.BufferedReader(file, 4096)) is None
    assert file.bytes_read < 50_000


def test_one_huge_header_is_refused_before_it_is_in_memory() -> None:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type = tarfile.XHDTYPE
    header.size = archive.MAX_HEADER_BYTES + 512
    for content in (header.tobuf(), gzip.compress(header.tobuf())):
        problem = problem_in(content + bytes(1000) if content[0] != 0x1F else content)
        assert problem is not None
        assert problem.endswith(f": a header of more than {archive.MAX_HEADER_BYTES} bytes")


def test_unpacking_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    content = make_tar({"weights": bytes(3_000_000), "config.yaml": b""})
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 1_000_000)
    assert problem_in(content) is None
    problem = problem_in(gzip.compress(content))
    assert problem is not None
    assert problem.endswith(": no config.yaml within its first 1000000 bytes")


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=120).filter(
    lambda name: name not in (".", "..")
)


@given(st.dictionaries(NAMES, st.binary(max_size=2000), max_size=6), st.booleans(), st.booleans())
def test_any_tar_is_told_by_its_root_config(files: dict[str, bytes], compress: bool, has_config: bool) -> None:
    files.pop("config.yaml", None)
    if has_config:
        files["config.yaml"] = b"a: 1"
    assert (problem_in(make_tar(files, compress=compress)) is None) == has_config


@given(st.binary(max_size=3000), st.booleans())
def test_any_bytes_get_an_answer(content: bytes, with_magic: bool) -> None:
    problem_in(b"\x1f\x8b\x08\x00" + content if with_magic else content)
    problem_in(gzip.compress(content))
    problem_in(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + zlib.compress(content, wbits=-15)[:-1])
