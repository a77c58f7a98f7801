"""What a push is known by from one run of a journal to the next."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import AsyncIterable

from aiobaseten._threads import run_to_end
from aiobaseten.errors import InvalidPush, Problem
from aiobaseten.options import KiB
from aiobaseten.push import Push, given_push_id
from aiobaseten.sources import SourceLike, model_name_in

QUICKLY_HASHED_BYTES = 256 * KiB
STREAM = "<stream>"


class Identities:
    """The keys of the pushes of one run.

    A push is known by its own id, if its labels give it one; else by what it pushes where: its source, model, team, environment and
    deployment name. Its other settings may change from run to run. The same push twice in a run is told apart by the order.
    """

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    async def key(self, push: Push) -> str:
        """The key of the next push of the run.

        :raises InvalidPush: if another push of the run has the same id of its own, or a stream has neither an id nor a model
        """
        if (given := given_push_id(push)) is not None:
            self._seen[given] += 1
            if self._seen[given] > 1:
                problem = f"another push of the run has the id {given!r} too"
                raise InvalidPush(problems=[Problem("$.deployment.labels.aiobaseten-push-id", problem)])
            return given
        of_deployment = ("environment_name", "deployment_name", "is_development")
        source = push.source
        identity = identity_of(source) if _is_quickly_identified(source) else await run_to_end(lambda _: identity_of(source))
        name = push.name
        if identity == STREAM and name is None and push.model_id is None:
            name = model_name_in(getattr(push.deployment, "config", None))
            if name is None:
                raise InvalidPush(problems=[Problem("$.name", "is needed with a journal: a stream is known by its model")])
        what = [
            identity,
            name,
            push.model_id,
            push.team_id,
            *(getattr(push.deployment, field, None) or None for field in of_deployment),
        ]
        digest = hashlib.blake2b(json.dumps(what, default=repr).encode(), digest_size=16).hexdigest()
        self._seen[digest] += 1
        return f"{digest}-{self._seen[digest]}"


def identity_of(source: SourceLike) -> str:
    """A path as an absolute one, bytes as their digest. Streams are all alike."""
    match source:
        case str() | os.PathLike():
            return os.path.abspath(os.fsdecode(source))  # noqa: PTH100 - pathlib would resolve links
        case bytes() | bytearray() | memoryview():
            return hashlib.blake2b(source, digest_size=16).hexdigest()
        case _:
            return STREAM


def _is_quickly_identified(source: SourceLike) -> bool:
    """Whether a turn of a worker thread would take longer, which a run of many small pushes would notice."""
    match source:
        case str() | os.PathLike():
            return os.path.isabs(source)  # noqa: PTH117 - no Path is made of it
        case bytes() | bytearray() | memoryview():
            return memoryview(source).nbytes <= QUICKLY_HASHED_BYTES
        case _:
            return True


def label_of(push: Push) -> str:
    """What a push's source is called, whatever it is."""
    try:
        match push.source:
            case str() | os.PathLike():
                return os.fsdecode(push.source)
            case bytes() | bytearray() | memoryview():
                return f"<{memoryview(push.source).nbytes} bytes>"
            case AsyncIterable():
                return STREAM
            case _:  # pyright: ignore[reportUnnecessaryComparison]  # callers without type checks
                return repr(push.source)[:80]
    except Exception:  # noqa: BLE001 - whatever it is: the push itself will say what is wrong with it
        return f"<{type(push.source).__name__}>"
