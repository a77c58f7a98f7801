"""Fixtures for manifests."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.model_dirs import model_archive, model_dir

from aiobaseten.bulk.manifest import Manifest, load_manifest
from aiobaseten.errors import InvalidPush

Load = Callable[[Any], Awaitable[Manifest]]
Refuse = Callable[[Any], Awaitable[list[str]]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with models, where the tests are; it is the user's home too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a", "b", "batch-10", "batch-9"):
        model_dir(tmp_path / "models" / name, f"model-{name}")
    archives = tmp_path / "archives"
    archives.mkdir()
    (archives / "x.tgz").write_bytes(model_archive("model-x", compressed=True))
    (archives / "y.tar").write_bytes(model_archive("model-y"))
    (archives / "z.tar.gz").write_bytes(model_archive("model-z", compressed=True))
    (archives / "notes.txt").write_text("no archive")
    (archives / "deep.tar").mkdir()
    return tmp_path


@pytest.fixture
def load(home: Path) -> Load:
    """Loads a manifest given as YAML, or as values."""

    async def load(content: Any, name: str = "deploy.yaml") -> Manifest:
        (home / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return await load_manifest(name)

    return load


@pytest.fixture
def refuse(load: Load) -> Refuse:
    """What is wrong with a manifest."""

    async def refuse(content: Any) -> list[str]:
        with pytest.raises(InvalidPush) as caught:
            await load(content)
        return list(map(str, caught.value.problems))

    return refuse
