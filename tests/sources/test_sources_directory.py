"""A model directory as an archive: what is in it, and what cannot be."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trees import (
    CONFIG,
    Link,
    archive_of,
    contents_of_archive,
    extracted_by_tar,
    members_of,
    open_directory_for_all,
    plant,
    plant_model,
    read_all,
    tree_on_disk,
    unprivileged,
)

from aiobaseten.errors import ArchiveError, SourceChanged
from aiobaseten.sources import Ignored, directory, files, open_source, walk

pytestmark = pytest.mark.anyio

MIB = 1024**2
GIB = 1024**3


async def refusal(path: Path, **options: str) -> ArchiveError:
    with pytest.raises(ArchiveError) as caught:
        await open_source(path, **options)
    return caught.value


async def test_the_archive_holds_the_files_and_links(tmp_path: Path) -> None:
    tree = {
        "model/model.py": b"class Model: ...\n",
        "model/__init__.py": b"",
        "data/weights.bin": bytes(range(256)) * 5000,
        "data/latest": Link("weights.bin"),
        "models": Link("model"),
        "a" * 120 + "/" + "b" * 120: b"long",
        "é/漢": b"not ASCII",
        "bytes-\udcff\udcfe": b"not UTF-8",
        "line\nbreak": b"\n",
    }
    plant_model(tmp_path, tree)
    archive = await archive_of(tmp_path)
    assert members_of(archive) == {"config.yaml": CONFIG, **tree}
    assert list(members_of(archive)) == sorted(["config.yaml", *tree], key=os.fsencode)
    with extracted_by_tar(archive) as root:
        assert tree_on_disk(root) == tree_on_disk(tmp_path)


async def test_two_directories_of_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    tree = {f"{directory}/{name}": name.encode() for directory in "cab" for name in ("z", "a", "é")}
    first = plant_model(tmp_path / "first", tree)
    second = plant_model(tmp_path / "elsewhere" / "second", dict(reversed(tree.items())))
    for file in second.rglob("*"):
        os.utime(file, (1, 1))
    assert await archive_of(first) == await archive_of(second)


@pytest.mark.parametrize(
    ("mode", "archived"), [(0o644, 0o644), (0o600, 0o644), (0o755, 0o755), (0o700, 0o755), (0o4750, 0o755), (0o655, 0o644)]
)
async def test_the_owners_right_to_run_is_kept_and_no_other(tmp_path: Path, mode: int, archived: int) -> None:
    (plant_model(tmp_path, {"run.sh": b"#!/bin/sh\n"}) / "run.sh").chmod(mode)
    with extracted_by_tar(await archive_of(tmp_path)) as root:
        assert stat.S_IMODE((root / "run.sh").stat().st_mode) == archived


async def test_hard_links_are_files(tmp_path: Path) -> None:
    plant_model(tmp_path, {"one": b"same"})
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    assert await contents_of_archive(tmp_path) == {"config.yaml": CONFIG, "one": b"same", "two": b"same"}


async def test_empty_directories_are_not_archived(tmp_path: Path) -> None:
    (plant_model(tmp_path) / "empty" / "more").mkdir(parents=True)
    assert await contents_of_archive(tmp_path) == {"config.yaml": CONFIG}


async def test_any_part_of_a_file_over_8_gib(tmp_path: Path) -> None:
    plant_model(tmp_path)
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(9 * GIB)
        file.seek(8 * GIB + 5)
        file.write(b"here")
    async with await open_source(tmp_path) as source:
        assert source.size_bytes is not None
        assert 9 * GIB < source.size_bytes < 9 * GIB + 20_000
        start_of_file = 512 + 512 + 3 * 512  # config.yaml, then the PAX header that such a size needs
        buffer = bytearray(20)
        assert await source.read_into(start_of_file + 8 * GIB, memoryview(buffer)) == 20
        assert buffer == bytes(5) + b"here" + bytes(11)


async def test_a_buffer_across_many_files(tmp_path: Path) -> None:
    plant_model(tmp_path, {f"{number:04}": b"%d" % number for number in range(2000)})
    async with await open_source(tmp_path) as source:
        buffer = bytearray(3 * MIB)
        count = await source.read_into(0, memoryview(buffer))
    assert count == source.size_bytes
    assert members_of(bytes(buffer[:count]))["1234"] == b"1234"


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(0, 2000), max_size=5), start=st.integers(0, 20_000), wanted=st.integers(0, 3000))
async def test_any_range_is_that_part_of_the_whole(
    sizes: list[int], start: int, wanted: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = plant_model(tmp_path_factory.mktemp("model"), {str(number): os.urandom(size) for number, size in enumerate(sizes)})
    expected = await archive_of(root)
    buffer = bytearray(wanted)
    async with await open_source(root) as source:
        count = await source.read_into(start, memoryview(buffer))
    assert buffer[:count] == expected[start : start + wanted]


# ---- the config


async def test_its_config(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf# a comment\r\nmodel_name: caf\xc3\xa9\r\nreleased: 2024-01-02\r\n"
    plant(tmp_path, {"config.yaml": text})
    async with await open_source(tmp_path) as source:
        config = await source.read_config()
        assert config.config == {"model_name": "café", "released": "2024-01-02"}
        assert config.raw == text.decode("utf-8-sig")
        assert config.model_name == "café"
        assert members_of(await read_all(source)) == {"config.yaml": text}


async def test_no_config(tmp_path: Path) -> None:
    plant(tmp_path, {"model/config.yaml": CONFIG})
    error = await refusal(tmp_path)
    assert str(error) == f"{tmp_path} has no config.yaml, which a model directory must hold at its root"
    assert error.path == str(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a list\n", "must hold a mapping, not a list"),
        (b"", "is empty"),
        (b"a: 1\nb: c: d\n", "line 2, column 5: mapping values are not allowed"),
        (b"\x80PNG", "line 1: byte 0x80 is not UTF-8"),
        (b"a: \0", "line 1: holds '\\x00', which is not text"),
        (b"a: " + b"x" * MIB, "has 1,048,579 bytes, and must not have more than 1,048,576"),
    ],
)
async def test_a_config_that_is_none(tmp_path: Path, content: bytes, message: str) -> None:
    plant(tmp_path, {"config.yaml": content})
    error = await refusal(tmp_path)
    assert message in str(error)
    assert str(tmp_path / "config.yaml") in str(error)


async def test_a_config_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").mkdir()
    assert "config.yaml' is a directory, and must be a regular file" in str(await refusal(tmp_path))
    (tmp_path / "config.yaml").rmdir()
    os.mkfifo(tmp_path / "config.yaml")
    assert "config.yaml' is a named pipe, and must be a regular file" in str(await refusal(tmp_path))
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "config.yaml").symlink_to("config.yaml")
    assert "config.yaml' cannot be read: Too many levels of symbolic links" in str(await refusal(tmp_path))


async def test_a_rule_must_not_leave_out_the_config(tmp_path: Path) -> None:
    plant_model(tmp_path, {".truss_ignore": b"*.yaml\n"})
    assert f"{tmp_path}: the rule '*.yaml' leaves out config.yaml, which an archive must hold" in str(await refusal(tmp_path))


async def test_a_config_that_is_a_link(tmp_path: Path) -> None:
    plant(tmp_path, {"configs/one.yaml": CONFIG, "config.yaml": Link("configs/one.yaml")})
    async with await open_source(tmp_path) as source:
        assert (await source.read_config()).model_name == "tested"
    assert (await contents_of_archive(tmp_path))["config.yaml"] == Link("configs/one.yaml")
    assert (await contents_of_archive(tmp_path, symlinks="follow"))["config.yaml"] == CONFIG


# ---- links


async def test_links_that_stay_inside_are_kept(tmp_path: Path) -> None:
    tree = {
        "a/file": b"1",
        "a/b/deep": b"2",
        "to-file": Link("a/file"),
        "to-directory": Link("a/b"),
        "with-slash": Link("a/b/"),
        "through-a-link": Link("to-directory/deep"),
        "to-a-link": Link("to-file"),
        "odd": Link("./a//b/../file"),
        "a/b/up": Link("../../to-file"),
        "a/b/round": Link("../../to-directory/../file"),
        "a/to-the-root": Link(".."),
    }
    plant_model(tmp_path, tree)
    assert await contents_of_archive(tmp_path) == {"config.yaml": CONFIG, **tree}
    with extracted_by_tar(await archive_of(tmp_path)) as root:
        for name in tree:
            assert (root / name).resolve().relative_to(root.resolve()) == (tmp_path / name).resolve().relative_to(tmp_path)


async def test_links_that_take_another_way_inside_get_the_way_in_the_archive(tmp_path: Path) -> None:
    root = plant_model(tmp_path / "model", {"a/file": b"1", "b/c/x": b""})
    (tmp_path / "other").symlink_to("model")
    (root / "absolute").symlink_to(root / "a" / "file")
    (root / "b" / "c" / "absolute").symlink_to(root / "a")
    (root / "b" / "c" / "root").symlink_to(root)
    (root / "b" / "out-and-in").symlink_to("../../model/a/file")
    (root / "b" / "by-another-name").symlink_to(tmp_path / "other" / "a" / "file")
    contents = await contents_of_archive(root)
    assert {name: text for name, text in contents.items() if isinstance(text, Link)} == {
        "absolute": "a/file",
        "b/c/absolute": "../../a",
        "b/c/root": "../..",
        "b/out-and-in": "../a/file",
        "b/by-another-name": "../a/file",
    }


async def test_a_model_directory_that_is_itself_reached_by_a_link(tmp_path: Path) -> None:
    plant_model(tmp_path / "real", {"a": b"1", "b": Link("a"), "c": Link(str(tmp_path / "link" / "a"))})
    (tmp_path / "link").symlink_to("real")
    assert (await contents_of_archive(tmp_path / "link"))["c"] == Link("a")


@pytest.mark.parametrize(
    ("tree", "name", "reason"),
    [
        ({"bad": Link("/etc")}, "bad", "leads outside the model directory, to '/etc'"),
        ({"bad": Link("../beside")}, "bad", "leads outside the model directory, to '{beside}'"),
        ({"a": Link("../beside"), "bad": Link("a")}, "bad", "leads outside the model directory, to '{beside}'"),
        ({"bad": Link("missing/file")}, "bad", "leads to 'missing/file', but there is no '{root}/missing'"),
        ({"file": b"", "bad": Link("file/x")}, "bad", "leads to 'file/x', but there is no '{root}/file/x'"),
        ({"file": b"", "bad": Link("file/..")}, "bad", "leads to 'file/..', but there is no '{root}/bad'"),
        ({"bad": Link("bad")}, "bad", "leads to 'bad', and from there to itself: a loop of links"),
        ({"bad": Link("b"), "b": Link("bad")}, "bad", "leads to 'b', and from there to itself: a loop of links"),
        ({"x.log": b"", "bad": Link("x.log")}, "bad", "leads to 'x.log', which the rule '*.log' leaves out of the archive"),
        ({"lib/a/x": b"", "bad": Link("lib/a")}, "bad", "leads to 'lib/a', which the rule 'lib/' leaves out of the archive"),
        ({"lib/x": b"", "bad": Link("lib")}, "bad", "leads to 'lib', which the rule 'lib/' leaves out of the archive"),
    ],
)
async def test_links_that_cannot_be_kept(tmp_path: Path, tree: dict[str, bytes | Link], name: str, reason: str) -> None:
    root = plant_model(tmp_path / "model", tree)
    (tmp_path / "beside").write_bytes(b"")
    error = await refusal(root)
    expected = reason.format(root=root, beside=tmp_path / "beside")
    assert expected in [problem.rule for problem in error.problems if problem.path == name]
    assert f"\n  {name}: {expected}" in str(error)
    assert 'symlinks="follow" archives what it leads to' in str(error)
    assert error.path is not None
    assert Path(error.path).parent == root


async def test_a_link_to_a_directory_without_files(tmp_path: Path) -> None:
    (plant_model(tmp_path, {"bad": Link("empty")}) / "empty").mkdir()
    assert "bad: leads to 'empty', which holds no files: an archive has no empty directories" in str(await refusal(tmp_path))


async def test_a_link_to_what_cannot_be_archived(tmp_path: Path) -> None:
    os.mkfifo(plant_model(tmp_path, {"bad": Link("pipe")}) / "pipe")
    error = await refusal(tmp_path)
    assert [problem.path for problem in error.problems] == ["bad", "pipe"]
    assert error.problems[0].rule == "leads to 'pipe', which is not in the archive"


async def test_links_that_rules_leave_out_may_lead_anywhere(tmp_path: Path) -> None:
    plant_model(tmp_path, {".venv": Link("/usr"), "venv": Link("/usr"), "x.log": Link("/nowhere")})
    async with await open_source(tmp_path) as source:
        assert [(ignored.path, ignored.rule, ignored.files, ignored.size_bytes) for ignored in source.ignored] == [
            (".venv", ".venv", 1, 0),
            ("venv", "venv/", 1, 0),
            ("x.log", "*.log", 1, 0),
        ]


async def test_following_links(tmp_path: Path) -> None:
    blobs = plant(tmp_path / "blobs", {"b1": b"weights", "b2": b"more", "tree/x": b"x", "tree/y": Link("../b1")})
    (blobs / "b1").chmod(0o755)
    root = plant_model(
        tmp_path / "model",
        {
            "weights": Link("../blobs/b1"),
            "again": Link("weights"),
            "absolute": Link(str(blobs / "b2")),
            "tree": Link("../blobs/tree"),
            "twice": Link("../blobs/tree"),
        },
    )
    assert await contents_of_archive(root, symlinks="follow") == {
        "config.yaml": CONFIG,
        "weights": b"weights",
        "again": b"weights",
        "absolute": b"more",
        "tree/x": b"x",
        "tree/y": b"weights",
        "twice/x": b"x",
        "twice/y": b"weights",
    }
    with extracted_by_tar(await archive_of(root, symlinks="follow")) as unpacked:
        assert (unpacked / "weights").stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize(
    ("tree", "name", "reason"),
    [
        ({"a/loop": Link("..")}, "a/loop", "leads to '..', which it is in itself: a loop"),
        ({"loop": Link(".")}, "loop", "leads to '.', which it is in itself: a loop"),
        ({"a/x": Link("../b"), "b/y": Link("../a")}, "a/x/y", "leads to '../a', which it is in itself: a loop"),
        ({"bad": Link("bad")}, "bad", "leads to 'bad', and from there to itself: a loop of links"),
        ({"bad": Link("missing")}, "bad", "leads to 'missing', but there is no '{root}/missing'"),
        ({"bad": Link("/dev/null")}, "bad", "is a character device; an archive holds regular files and links only"),
    ],
)
async def test_links_that_cannot_be_followed(tmp_path: Path, tree: dict[str, bytes | Link], name: str, reason: str) -> None:
    plant_model(tmp_path, tree)
    error = await refusal(tmp_path, symlinks="follow")
    assert reason.format(root=tmp_path) in [problem.rule for problem in error.problems if problem.path == name]


# ---- what cannot be archived


async def test_special_files_are_named(tmp_path: Path) -> None:
    plant_model(tmp_path)
    os.mkfifo(tmp_path / "pipe\n\udcff")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(tmp_path)  # A socket's address must be short.
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        error = await refusal(tmp_path)
    assert [str(problem) for problem in error.problems] == [
        "pipe\\n\\udcff: is a named pipe; an archive holds regular files and links only",
        "socket: is a socket; an archive holds regular files and links only",
    ]
    str(error).encode()  # It can be shown on any terminal.


async def test_special_files_that_rules_leave_out_are_no_problem(tmp_path: Path) -> None:
    os.mkfifo(plant_model(tmp_path) / "pipe.tmp")
    async with await open_source(tmp_path) as source:
        assert source.ignored == (Ignored(path="pipe.tmp", rule="*.tmp", is_default=True, files=1, size_bytes=0),)


async def test_all_problems_are_collected_and_the_first_are_told(tmp_path: Path) -> None:
    plant_model(tmp_path, {f"link-{number:02}": Link("/nowhere") for number in range(14)})
    error = await refusal(tmp_path)
    assert len(error.problems) == 14
    assert "link-09" in str(error)
    assert "link-10" not in str(error)
    assert "and 4 more" in str(error)


async def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with open_directory_for_all() as root:
        plant_model(root, {"secret": b"1", "closed/file": b"2", "fine": b"3"})
        (root / "secret").chmod(0)
        (root / "closed").chmod(0)
        with unprivileged():
            error = await refusal(root)
        (root / "closed").chmod(0o700)
    assert [str(problem) for problem in error.problems] == [
        "closed/: cannot be read: Permission denied",
        "secret: cannot be read: Permission denied",
    ]
    assert 'symlinks="follow"' not in str(error)


async def test_a_link_behind_a_closed_directory() -> None:
    with open_directory_for_all() as directory:
        (directory / "closed").mkdir()
        (directory / "closed" / "file").write_bytes(b"")
        root = plant_model(directory / "model", {"link": Link("../closed/file")})
        (directory / "closed").chmod(0)
        with unprivileged():
            error = await refusal(root)
        (directory / "closed").chmod(0o700)
    assert [problem.rule for problem in error.problems] == ["leads to '../closed/file', which cannot be reached: Permission denied"]


async def test_a_config_that_cannot_be_read() -> None:
    with open_directory_for_all() as root:
        (plant_model(root) / "config.yaml").chmod(0)
        with unprivileged():
            error = await refusal(root)
    assert str(error) == f"'{root}/config.yaml' cannot be read: Permission denied"
    assert isinstance(error.__cause__, PermissionError)


def plant_deep(root: Path, levels: int) -> None:
    """Directories in directories, to a depth that no path reaches."""
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(root)
        for _ in range(levels):
            Path("d" * 250).mkdir()
            os.chdir("d" * 250)
    finally:
        os.fchdir(here)
        os.close(here)


async def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    plant_deep(plant_model(tmp_path), 20)
    assert "cannot be read: File name too long" in str(await refusal(tmp_path))


async def test_more_files_than_an_archive_should_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "MAX_ENTRIES", 3)
    plant_model(tmp_path, {"a": b"", "b": b""})
    assert len(await contents_of_archive(tmp_path)) == 3
    plant(tmp_path, {"c": Link("a")})
    assert "holds more than 3 files" in str(await refusal(tmp_path))


# ---- changes meanwhile


def grow(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"more")


def touch(file: Path) -> None:
    os.utime(file, ns=(0, 123))


def replace_by_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def replace_by_link(file: Path) -> None:
    file.rename(file.with_name("moved"))
    file.symlink_to("moved")


def replace_by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def replace_by_socket(file: Path) -> None:
    file.unlink()
    here = Path.cwd()
    os.chdir(file.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(file.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("size", [0, 5000])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (grow, "changed since the push began"),
        (touch, "was modified since the push began"),
        (Path.unlink, "is gone, or was replaced, since the push began: No such file"),
        (replace_by_directory, "was replaced by a directory since the push began"),
        (replace_by_link, "is gone, or was replaced, since the push began"),
        (replace_by_pipe, "was replaced by a named pipe since the push began"),
        (replace_by_socket, "is gone, or was replaced, since the push began"),
    ],
)
async def test_a_file_that_changed(tmp_path: Path, size: int, change: Callable[[Path], None], told: str) -> None:
    file = plant_model(tmp_path, {"data": b"x" * size}) / "data"
    async with await open_source(tmp_path) as source:
        await read_all(source)
        change(file)
        with pytest.raises(SourceChanged) as caught:
            await read_all(source)
    assert told in str(caught.value)
    assert caught.value.path == str(file)
    assert caught.value.retryable


async def test_a_file_that_shrank_says_from_what_to_what(tmp_path: Path) -> None:
    file = plant_model(tmp_path, {"data": b"x" * 5000}) / "data"
    async with await open_source(tmp_path) as source:
        os.truncate(file, 7)
        with pytest.raises(SourceChanged, match=r"it had 5,000 bytes and has 7$"):
            await read_all(source)


async def test_a_file_that_may_no_longer_be_read() -> None:
    with open_directory_for_all() as root:
        file = plant_model(root, {"data": b"x"}) / "data"
        with unprivileged():
            source = await open_source(root)
        file.chmod(0)
        with unprivileged(), pytest.raises(ArchiveError, match="cannot be read: Permission denied") as caught:
            await read_all(source)
        assert caught.value.path == str(file)
        assert isinstance(caught.value.__cause__, PermissionError)


async def test_other_parts_of_a_changed_directory_can_still_be_read(tmp_path: Path) -> None:
    plant_model(tmp_path, {"data": b"x" * 5000})
    async with await open_source(tmp_path) as source:
        (tmp_path / "data").unlink()
        (tmp_path / "new").write_bytes(b"unseen")
        buffer = bytearray(1024)
        assert await source.read_into(0, memoryview(buffer)) == 1024
    assert buffer[512 : 512 + len(CONFIG)] == CONFIG


async def test_a_relative_path_outlives_a_change_of_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_model(tmp_path / "model", {"a": b"1"})
    monkeypatch.chdir(tmp_path)
    async with await open_source("model") as source:
        monkeypatch.chdir("/")
        assert source.label == "model"
        assert members_of(await read_all(source)) == {"config.yaml": CONFIG, "a": b"1"}


def meddle(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[], object]) -> None:
    """Make a change just before a file of that name is opened."""

    @contextmanager
    def opened(path: str, *, follow: bool) -> Iterator[int]:
        if Path(path).name == name:
            change()
        with files.opened(path, follow=follow) as descriptor:
            yield descriptor

    monkeypatch.setattr(walk, "opened", opened)


@pytest.mark.parametrize("change", [Path.unlink, replace_by_link, replace_by_socket])
async def test_a_file_that_goes_while_the_directory_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    file = plant_model(tmp_path, {"data": b"x"}) / "data"
    meddle(monkeypatch, "data", lambda: change(file))
    with pytest.raises(SourceChanged, match="is gone, or was replaced") as caught:
        await open_source(tmp_path)
    assert caught.value.path == str(file)
    assert isinstance(caught.value.__cause__, OSError)


async def test_a_file_that_becomes_a_pipe_while_the_directory_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = plant_model(tmp_path, {"data": b"x"}) / "data"
    meddle(monkeypatch, "data", lambda: replace_by_pipe(file))
    assert "data: is a named pipe" in str(await refusal(tmp_path))


async def test_a_directory_that_goes_while_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant_model(tmp_path / "model", {"a/b": b""})
    meddle(monkeypatch, "config.yaml", lambda: (root / "a").rename(tmp_path / "moved"))
    with pytest.raises(SourceChanged) as caught:
        await open_source(root)
    assert caught.value.path == str(root / "a")


@pytest.mark.parametrize("symlinks", ["store", "follow"])
async def test_packages_that_go_while_the_directory_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, symlinks: str
) -> None:
    (tmp_path / "shared").mkdir()
    root = plant(tmp_path / "model", {"config.yaml": b"external_package_dirs: [../shared]\n"})
    meddle(monkeypatch, "config.yaml", (tmp_path / "shared").rmdir)
    with pytest.raises(SourceChanged) as caught:
        await open_source(root, symlinks=symlinks)
    assert caught.value.path == str(root / "../shared")


@pytest.mark.parametrize("change", [grow, touch, Path.unlink])
async def test_a_config_that_changes_after_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    file = plant_model(tmp_path, {".truss_ignore": b""}) / "config.yaml"

    def read_small_file(path: str, max_bytes: int) -> tuple[bytes, files.Stamp]:
        if path.endswith(".truss_ignore"):
            change(file)
        return files.read_small_file(path, max_bytes)

    monkeypatch.setattr(directory, "read_small_file", read_small_file)
    with pytest.raises(SourceChanged, match=r"config\.yaml' changed while its directory was being read"):
        await open_source(tmp_path)


# ---- the fingerprint


async def fingerprint(path: Path, **options: str) -> str:
    async with await open_source(path, **options) as source:
        assert source.fingerprint is not None
        return source.fingerprint


async def test_its_fingerprint_changes_with_the_archive(tmp_path: Path) -> None:
    plant_model(tmp_path, {"a": b"1", "link": Link("a")})
    seen = [await fingerprint(tmp_path)]
    assert await fingerprint(tmp_path) == seen[0]
    assert len(seen[0]) == 64

    def rename() -> None:
        (tmp_path / "a").rename(tmp_path / "b")

    def link_elsewhere() -> None:
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to("config.yaml")

    def without_a_field() -> None:
        (tmp_path / "config.yaml").write_bytes(CONFIG + b"external_package_dirs: []\n")

    def with_another() -> None:
        (tmp_path / "config.yaml").write_bytes(CONFIG + b"more: 1\nexternal_package_dirs: []\n")

    for change in (
        lambda: touch(tmp_path / "a"),
        lambda: grow(tmp_path / "a"),
        lambda: (tmp_path / "a").chmod(0o755),
        link_elsewhere,
        rename,
        without_a_field,
        with_another,
    ):
        change()
        seen.append(await fingerprint(tmp_path))
    assert len(set(seen)) == len(seen)
