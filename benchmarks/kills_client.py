"""The client that `kills.py` kills: ``python kills_client.py SETTINGS``. It tells each event and each outcome as a line of JSON."""

from __future__ import annotations

import asyncio
import io
import json
import math
import random
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

import aiobaseten as ab
from aiobaseten.events import Event

KIB, MIB = 1024, 1024 * 1024
SMALLEST_BYTES, SMALL_BYTES, LARGE_BYTES = 10 * KIB, 2 * MIB, 8 * MIB
LARGE_EVERY, SHARED_NAME_EVERY = 4, 8
AT_ONCE = 12
PART_BYTES = 5 * MIB

Kind = Literal["directory", "archive", "bytes"]
KINDS: Sequence[Kind] = ("directory", "archive", "directory", "bytes", "directory")


@attrs.frozen(kw_only=True)
class Planned:
    """A push of the run, the same in each process.

    :param path: a model directory, or an archive file
    """

    name: str
    kind: Kind
    path: str

    def push(self) -> ab.Push:
        return ab.Push(Path(self.path).read_bytes() if self.kind == "bytes" else self.path, name=self.name)

    def is_held_by(self, content: bytes) -> bool:
        """Whether an archive is this push's: the file's very bytes, or each file of the directory and nothing else."""
        path = Path(self.path)
        if self.kind != "directory":
            return content == path.read_bytes()
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            read = {member.name: archive.extractfile(member) for member in archive.getmembers()}
            held = {name: file and file.read() for name, file in read.items()}
        return held == {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@attrs.frozen(kw_only=True)
class Settings:
    """What a process of the run does, and where.

    :param plan: a file with the pushes, as JSON
    :param reconcile_s: how long a commit that may have been sent is looked for
    """

    base_url: str
    s3_endpoint_url: str
    api_key: str
    plan: str
    journal: str
    keep_credentials: bool
    reconcile_s: float


def make_plan(directory: Path, count: int, largest_bytes: int, chance: random.Random) -> list[Planned]:
    """Make so many models: directories, archive files and bytes, every fourth large, every eighth of its predecessor's name."""
    plan: list[Planned] = []
    for number in range(count):
        if number % LARGE_EVERY == LARGE_EVERY - 1:
            size_bytes = chance.randint(min(LARGE_BYTES, largest_bytes), largest_bytes)
        else:
            size_bytes = round(math.exp(chance.uniform(math.log(SMALLEST_BYTES), math.log(SMALL_BYTES))))
        shares = number % SHARED_NAME_EVERY == SHARED_NAME_EVERY - 1
        name, kind = f"killed-{number - shares:04}", KINDS[number % len(KINDS)]
        path = _make_model(directory / f"model-{number:04}", name, size_bytes, chance)
        if kind != "directory":
            path = _packed(path)
        plan.append(Planned(name=name, kind=kind, path=str(path)))
    return plan


def _make_model(path: Path, name: str, size_bytes: int, chance: random.Random) -> Path:
    for folder in ("model", "data"):
        (path / folder).mkdir(parents=True)
    (path / "config.yaml").write_text(f"model_name: {name}\npython_version: py311\n")
    (path / "model" / "model.py").write_text("class Model:\n    def predict(self, model_input):\n        return model_input\n")
    (path / "data" / "weights.bin").write_bytes(chance.randbytes(size_bytes))
    return path


def _packed(model: Path) -> Path:
    archive = model.with_suffix(".tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(model, arcname=".")
    return archive


def _tell(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _tell_event(event: Event) -> None:
    _tell({"event": type(event).__name__} | attrs.asdict(event))


async def push_all(settings: Settings, plan: Sequence[Planned]) -> None:
    """Push all of the plan with the journal, as far as this process lives."""
    options = ab.Options(
        requests_per_s=None,
        transfer=ab.TransferOptions(part_size_bytes=PART_BYTES),
        timeouts=ab.TimeoutOptions(reconcile_s=settings.reconcile_s),
    )
    async with ab.Client(
        settings.api_key,
        base_url=settings.base_url,
        s3_endpoint_url=settings.s3_endpoint_url,
        options=options,
        observer=_tell_event,
    ) as client:
        pushes = (planned.push() for planned in plan)
        async with client.push_many(
            pushes, journal=settings.journal, journal_credentials=settings.keep_credentials, concurrency=AT_ONCE
        ) as run:
            async for outcome in run:
                record = outcome.record
                _tell(
                    {
                        "outcome": record.number,
                        "push_id": record.push_id,
                        "deployment_id": record.deployment_id,
                        "skipped": outcome.skipped,
                        "error": record.error,
                    }
                )


def main() -> None:
    settings = Settings(**json.loads(sys.argv[1]))
    plan = [Planned(**planned) for planned in json.loads(Path(settings.plan).read_text())]
    asyncio.run(push_all(settings, plan))


if __name__ == "__main__":
    main()
