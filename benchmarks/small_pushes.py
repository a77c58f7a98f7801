"""Small models to push, and where to: what the benchmarks of many small pushes have in common."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
from processes import Endpoint

import aiobaseten as ab

FILES = 5
MODEL_BYTES = 50 * 1024
CONFIG = """\
model_name: {name}
python_version: py311
model_class_filename: model.py
requirements:
  - torch==2.8.0
  - transformers==4.56.1
resources:
  accelerator: A10G
  cpu: "4"
  memory: 16Gi
secrets:
  hf_access_token: null
environment_variables:
  HF_HUB_ENABLE_HF_TRANSFER: "1"
runtime:
  predict_concurrency: 8
"""


@attrs.frozen(kw_only=True)
class Service:
    """Both planes; `ca_bundle` is the file of the authorities that vouch for them, None over plain http."""

    base_url: str
    s3_url: str
    ca_bundle: str | None


def service(control_plane: Endpoint, store: Endpoint, directory: Path) -> Service:
    """Both planes, with the authorities of both in one new file of the directory."""
    bundles = [Path(plane.ca_bundle) for plane in (control_plane, store) if plane.ca_bundle]
    ca_bundle = directory / "authorities.pem"
    ca_bundle.write_text("".join(bundle.read_text() for bundle in bundles))
    return Service(base_url=control_plane.url, s3_url=store.url, ca_bundle=str(ca_bundle) if bundles else None)


def make_models(root: Path, count: int, *, size_bytes: int = MODEL_BYTES) -> None:
    """Make so many model directories of `FILES` files that hold about `size_bytes` bytes in all."""
    for number in range(count):
        model = root / f"model-{number:04}"
        for folder in ("model", "data"):
            (model / folder).mkdir(parents=True)
        config = CONFIG.format(name=model.name)
        (model / "config.yaml").write_text(config)
        (model / "model" / "__init__.py").write_text("")
        (model / "model" / "model.py").write_text("class Model:\n    def predict(self, model_input):\n        return model_input\n")
        for name in ("tokenizer.json", "weights.safetensors"):
            (model / "data" / name).write_bytes(os.urandom((size_bytes - len(config)) // 2))


@asynccontextmanager
async def open_client(service: Service) -> AsyncGenerator[ab.Client]:
    """Our client as it comes, but for the rate of requests: the service's limit is not what is measured."""
    options = ab.Options(requests_per_s=None, ca_bundle=Path(service.ca_bundle) if service.ca_bundle else None)
    async with ab.Client("benchmark", base_url=service.base_url, s3_endpoint_url=service.s3_url, options=options) as client:
        yield client


async def push_all(client: ab.Client, models: list[Path], count: int, *, prefix: str, at_once: int) -> None:
    """Push so many models, each under a fresh name, by so many tasks; the directories are used in turn."""
    numbers = iter(range(count))

    async def push_in_turn() -> None:
        for number in numbers:
            await client.push(ab.Push(models[number % len(models)], name=f"{prefix}-{number}"))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(push_in_turn())


async def push_in_one_run(
    client: ab.Client, models: list[Path], count: int, *, prefix: str, at_once: int, journal: Path | None
) -> None:
    """As `push_all`, but by one call of `push_many`, with a new journal or with none.

    :raises Exception: of the first push that fails
    """
    pushes = (ab.Push(models[number % len(models)], name=f"{prefix}-{number}") for number in range(count))
    async with client.push_many(pushes, journal=journal, concurrency=at_once) as run:
        async for outcome in run:
            if outcome.error is not None:
                raise outcome.error
