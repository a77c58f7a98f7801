"""Model directories and archives to push."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Iterable
from pathlib import Path

MODEL_PY = """class Model:
    def predict(self, model_input):
        return model_input
"""


def model_dir(path: Path, name: str, *, weights_bytes: int = 0, config: str = "", seed: int = 1) -> Path:
    """A small model directory; with `weights_bytes`, one file of so many random bytes."""
    (path / "model").mkdir(parents=True)
    (path / "config.yaml").write_text(f"model_name: {name}\npython_version: py311\n{config}")
    (path / "model" / "model.py").write_text(MODEL_PY)
    if weights_bytes:
        (path / "data").mkdir()
        (path / "data" / "weights.bin").write_bytes(random.Random(seed).randbytes(weights_bytes))
    return path


def tar_of(files: Iterable[tuple[str, bytes]], *, compressed: bool = False) -> bytes:
    """A tar archive, plain or gzip."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0) if compressed else buffer.getvalue()


def model_archive(name: str, *, weights_bytes: int = 0, compressed: bool = False, seed: int = 1) -> bytes:
    """A model as an archive."""
    files = [("config.yaml", f"model_name: {name}\n".encode()), ("model/model.py", MODEL_PY.encode())]
    if weights_bytes:
        files.append(("data/weights.bin", random.Random(seed).randbytes(weights_bytes)))
    return tar_of(files, compressed=compressed)


def tree_of(path: Path) -> dict[str, bytes]:
    """Every file below a directory, by its relative path."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def contents_of(archive: bytes) -> dict[str, bytes]:
    """Every regular file of a tar archive, by its name."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = [(member, tar.extractfile(member)) for member in tar.getmembers()]
        return {member.name: file.read() for member, file in members if file is not None}
