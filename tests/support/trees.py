"""Model directories as dicts, the archives made of them, and readers that know nothing of how those were made."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from aiobaseten.sources import Source, open_source

NOBODY = 65534
CONFIG = b"model_name: tested\n"


class Link(str):
    """The text of a symbolic link."""

    __slots__ = ()


Tree = Mapping[str, bytes | Link]


def plant(root: Path, tree: Tree) -> Path:
    """Make the files and links of a tree, in its order."""
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
    return root


def plant_model(root: Path, tree: Tree | None = None) -> Path:
    """The same, with a small config.yaml."""
    return plant(root, {"config.yaml": CONFIG, **(tree or {})})


async def read_all(source: Source, buffer_bytes: int = 1 << 20) -> bytes:
    """The whole of a source, a buffer at a time."""
    content = bytearray()
    buffer = memoryview(bytearray(buffer_bytes))
    while count := await source.read_into(len(content), buffer):
        content += buffer[:count]
    return bytes(content)


async def archive_of(path: Path, **options: str) -> bytes:
    """The archive of a model directory."""
    async with await open_source(path, **options) as source:
        content = await read_all(source)
        assert len(content) == source.size_bytes
        return content


def members_of(archive: bytes) -> dict[str, bytes | Link]:
    """The files and links of a tar archive, as Python's tarfile reads it, in its order."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        found: dict[str, bytes | Link] = {}
        for member in tar:
            assert member.name not in found
            if member.issym():
                found[member.name] = Link(member.linkname)
            else:
                assert member.isreg(), member.name
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
        return found


async def contents_of_archive(path: Path, **options: str) -> dict[str, bytes | Link]:
    return members_of(await archive_of(path, **options))


@contextmanager
def extracted_by_tar(archive: bytes) -> Iterator[Path]:
    """A directory that GNU tar unpacked an archive to."""
    tar = shutil.which("gtar") or shutil.which("tar")
    assert tar is not None
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(
            [tar, "--extract", "--no-same-owner", "--file=-"],
            cwd=directory,
            input=archive,
            env={"LC_ALL": "C", "PATH": os.defpath},
            check=True,
            capture_output=True,
        )
        yield Path(directory)


def tree_on_disk(root: Path) -> dict[str, bytes | Link]:
    """The files and links below a directory."""
    found: dict[str, bytes | Link] = {}
    for directory, directories, names in os.walk(root):
        for name in [*names, *(each for each in directories if Path(directory, each).is_symlink())]:
            path = Path(directory, name)
            found[os.path.relpath(path, root)] = Link(path.readlink()) if path.is_symlink() else path.read_bytes()
    return found


@contextmanager
def unprivileged() -> Iterator[None]:
    """Let permissions count, also where the tests are run by root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def open_directory_for_all() -> Iterator[Path]:
    """A temporary directory that is reached without being root, as pytest's own is not."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)
