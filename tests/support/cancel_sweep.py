"""Pushes that are cancelled at each place where they can be: scenarios, the ways to cancel, and what must hold after each.

A run is one push, cancelled at its k-th suspension, counted over all its tasks. A sweep is all runs of one scenario with one way to
cancel and one kind of store, from k = 1 until the push ends before its k-th suspension; that last push must succeed, on the
same client.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

import anyio
import attrs
from aiohttp import web
from support.await_points import Place, Watch, watched_loop
from support.fake_s3 import error, hold
from support.fake_s3 import lose_reply as lose_s3_reply
from support.meddling_proxy import Forward, answer, lose_reply
from support.memory_stack import HASTY, KEY, PART_BYTES, SMALL_PARTS, MemoryStack, memory_stack
from support.model_dirs import model_archive
from support.scripted_api import MODEL

import aiobaseten as ab
from aiobaseten.api.http import MAX_CONNECTIONS
from aiobaseten.events import (
    Committed,
    CredentialsRenewed,
    Event,
    PushFailed,
    Reconciling,
    Retrying,
    UploadAborted,
    UploadRestarted,
)
from aiobaseten.options import KiB, MiB

Style = Literal["scope", "task", "task, again and again"]
Abort = Literal["works", "refused", "silent"]

STYLES: tuple[Style, ...] = ("scope", "task", "task, again and again")
SILENCE_S = 0.1
"""How long a cancelled upload waits for a store that does not answer, in these runs."""
SLACK_S = 4.0
LANES_OF_SILENCE = 4
"""Runs at once where each takes all of `SILENCE_S`."""

NAME = "swept"
SMALL = model_archive(NAME)
EXAMPLE = Path(__file__).parents[2] / "examples" / "hello"
LARGE = model_archive(NAME, weights_bytes=200 * KiB)
CONFIG = ab.DeploymentArchivePayload(config={"model_name": NAME, "python_version": "py311"})
LARGE_CONFIG = ab.DeploymentArchivePayload(config={"model_name": NAME, "description": "x" * 3 * MiB})

with attrs.validators.disabled():
    ONE_PART_IN_MEMORY = attrs.evolve(SMALL_PARTS, memory_budget_bytes=PART_BYTES)
OPTIONS = ab.Options(transfer=SMALL_PARTS, retry=HASTY, requests_per_s=None)


def _expiring_credentials(stack: MemoryStack) -> None:
    stack.s3.faults["UploadPart"] = [error(400, "ExpiredToken")]


def _lost_answer(stack: MemoryStack) -> None:
    """The commit's answer is lost, and the first look at what it has made fails."""
    stack.plan("POST", "/v1/models", lose_reply)
    stack.plan("GET", "/deployments", answer(503), times=HASTY.max_attempts)


def _model_of_two_teams(stack: MemoryStack) -> None:
    for team in stack.store.teams:
        stack.add_model(NAME, team=team)


def _model_that_appears(stack: MemoryStack) -> None:
    """Between prepare and commit, which is refused for it."""

    async def appear(_: web.Request, forward: Forward) -> web.Response:
        stack.add_model(NAME)
        return await forward()

    stack.plan("POST", "/v1/models", appear)


def _lost_completion(stack: MemoryStack) -> None:
    stack.s3.faults["CompleteMultipartUpload"] = [lose_s3_reply]


def _large_answer(stack: MemoryStack) -> None:
    stack.plan("GET", "/v1/models", answer(200, json.dumps({"models": [MODEL] * 2000})))


def _busy(stack: MemoryStack) -> None:
    """Each call fails once in passing."""
    stack.plan("GET", "/v1/models", answer(503))
    stack.plan("POST", "/v1/prepare_model_upload", answer(503))
    stack.plan("POST", "/v1/models", answer(429))
    for operation in ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"):
        stack.s3.faults[operation] = [error(503, "SlowDown")]


async def _chunks() -> AsyncIterator[bytes]:
    for start in range(0, len(LARGE), 50 * KiB):
        await asyncio.sleep(0)
        yield LARGE[start : start + 50 * KiB]


Call = Callable[[ab.Client], Awaitable[Any]]


def pushing(source: bytes | Path, **settings: Any) -> Call:
    return lambda client: client.push(ab.Push(source, **settings))


async def _push_stream(client: ab.Client) -> ab.PushResult:
    return await client.push(ab.Push(_chunks(), deployment=CONFIG))


async def _push_to_team(client: ab.Client) -> ab.PushResult:
    return await client.push(ab.Push(SMALL, team_id=(await client.list_teams(name="default"))[0].id))


async def _rehearse(client: ab.Client) -> None:
    request = ab.PrepareModelUploadRequest(name=NAME, deployment=CONFIG)
    await client.rehearse_upload((await client.prepare_model_upload(request)).target, LARGE)


async def _open_push_close(client: ab.Client) -> None:
    async with ab.Client(KEY, base_url=client._base_url, s3_endpoint_url=client._s3_endpoint_url, options=OPTIONS) as another:
        await another.push(ab.Push(SMALL))


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A call, and the faults that it meets.

    :ivar proof: an event that tells that the call has met what the scenario is about
    :ivar fails: what it ends with where it is not cancelled; the first of both is what must come out
    """

    name: str
    call: Call
    arrange: Callable[[MemoryStack], None] = lambda stack: None
    proof: type[Event] | None = Committed
    fails: type[ab.BasetenError] | None = None
    in_parts: bool = True
    is_push: bool = True
    rekey_on_prepare: bool = False
    options: ab.Options = OPTIONS


SCENARIOS = (
    Scenario(name="one request", call=pushing(SMALL), in_parts=False),
    Scenario(name="parts", call=pushing(LARGE)),
    Scenario(name="stream", call=_push_stream),
    Scenario(name="renewed credentials", call=pushing(LARGE), arrange=_expiring_credentials, proof=CredentialsRenewed),
    Scenario(
        name="renewed credentials for another key",
        call=pushing(LARGE),
        arrange=_expiring_credentials,
        proof=UploadRestarted,
        rekey_on_prepare=True,
    ),
    Scenario(name="lost answer to the commit", call=pushing(SMALL), arrange=_lost_answer, proof=Reconciling, in_parts=False),
    Scenario(name="existing model", call=pushing(SMALL), arrange=lambda stack: stack.add_model(NAME), in_parts=False),
    Scenario(name="busy service", call=pushing(LARGE), arrange=_busy, proof=Retrying),
    Scenario(name="lost answer to Complete", call=pushing(LARGE), arrange=_lost_completion, proof=Retrying),
    Scenario(
        name="refused part",
        call=pushing(LARGE),
        arrange=lambda stack: stack.s3.faults.update(UploadPart=[error(403, "AccessDenied")]),
        proof=PushFailed,
        fails=ab.UploadDenied,
    ),
    Scenario(name="memory for one part", call=pushing(LARGE), options=attrs.evolve(OPTIONS, transfer=ONE_PART_IN_MEMORY)),
    Scenario(name="model that appears meanwhile", call=pushing(SMALL), arrange=_model_that_appears, in_parts=False),
    Scenario(name="model of two teams", call=pushing(SMALL), arrange=_model_of_two_teams, in_parts=False),
    Scenario(name="team", call=_push_to_team, in_parts=False),
    Scenario(name="large bodies", call=pushing(SMALL, deployment=LARGE_CONFIG), arrange=_large_answer, in_parts=False),
    Scenario(
        name="rate", call=pushing(SMALL), arrange=_lost_answer, in_parts=False, options=attrs.evolve(OPTIONS, requests_per_s=1)
    ),
    Scenario(name="directory", call=pushing(EXAMPLE), in_parts=False, proof=Committed),
    Scenario(name="client, from opening to closing", call=_open_push_close, proof=None, in_parts=False, is_push=False),
    Scenario(name="check", call=lambda client: client.check(ab.Push(SMALL)), proof=None, in_parts=False, is_push=False),
    Scenario(name="rehearsal", call=_rehearse, proof=UploadAborted, is_push=False),
)


def sweeps() -> list[tuple[Scenario, Style, Abort]]:
    """All combinations that differ: how the store takes an abort matters only where there is one."""
    every: list[tuple[Scenario, Style, Abort]] = []
    for scenario in SCENARIOS:
        aborts: tuple[Abort, ...] = ("works", "refused", "silent") if scenario.in_parts and scenario.is_push else ("works",)
        every.extend((scenario, style, abort) for style in STYLES for abort in aborts)
    return every


@dataclass
class Sweep:
    """What a sweep has seen.

    :ivar places: all places of the package at which a push was suspended when it was cancelled
    """

    runs: int = 0
    places: set[Place] = field(default_factory=set)
    longest_cleanup_s: float = 0.0

    def join(self, other: Sweep) -> None:
        self.runs += other.runs
        self.places |= other.places
        self.longest_cleanup_s = max(self.longest_cleanup_s, other.longest_cleanup_s)

    def add(self, ended: Ended) -> None:
        self.runs += 1
        self.places.update(ended.reached or ())
        self.longest_cleanup_s = max(self.longest_cleanup_s, ended.cleanup_s)


async def sweep(scenario: Scenario, style: Style, abort: Abort, *, share: tuple[int, int] = (0, 1)) -> Sweep:
    """Run a sweep.

    :param share: ``(n, m)`` runs each k that leaves n when divided by m
    """
    result = Sweep()
    before = open_files()
    ks = count(1 + share[0], share[1])
    with watched_loop():
        async with anyio.create_task_group() as tasks:
            for _ in range(LANES_OF_SILENCE if abort == "silent" else 1):
                tasks.start_soon(_lane, scenario, style, abort, ks, result)
    await anyio.sleep(0.01)
    assert open_files() <= before, "a file or socket was left open"
    return result


async def _lane(scenario: Scenario, style: Style, abort: Abort, ks: Iterator[int], result: Sweep) -> None:
    timeouts = ab.TimeoutOptions(abort_s=SILENCE_S) if abort == "silent" else ab.TimeoutOptions()
    options = attrs.evolve(scenario.options, timeouts=timeouts)
    events: list[Event] = []
    async with (
        memory_stack(rekey_on_prepare=scenario.rekey_on_prepare, teams=("default", "research")) as stack,
        stack.client(options, events) as client,
    ):
        await client.push(ab.Push(SMALL))  # What a client makes once is the subject of a scenario of its own.
        run = _Run(scenario, style, abort, stack, client, events)
        for k in ks:
            if not await run.cancelled_at(k, result):
                return


@dataclass
class _Run:
    scenario: Scenario
    style: Style
    abort: Abort
    stack: MemoryStack
    client: ab.Client
    events: list[Event]
    label: str = ""

    async def cancelled_at(self, k: int, result: Sweep) -> bool:
        """Make the call, and cancel it at its k-th suspension. Returns whether there was one."""
        self.label = f"{self.scenario.name}, {self.style}, abort {self.abort}, k={k}"
        self.stack.reset()
        self.events.clear()
        self.scenario.arrange(self.stack)
        speaks = asyncio.Event()
        faults = {"works": [], "refused": [error(403, "AccessDenied")] * 4, "silent": [hold(asyncio.Event(), speaks)] * 4}
        self.stack.s3.faults["AbortMultipartUpload"] = faults[self.abort]
        ended = await cancel_at(k, self.style, lambda: self.scenario.call(self.client))
        if ended.reached is None:
            self._check_end(ended)
            return False
        self.label += f" ({' < '.join(map(str, reversed(ended.reached)))})"
        result.add(ended)
        bound_s = SLACK_S + (SILENCE_S if self.abort == "silent" else 0)
        assert ended.cleanup_s < bound_s, (self.label, ended.cleanup_s)
        is_first = self.scenario.fails is not None and isinstance(ended.error, self.scenario.fails)
        assert ended.was_cancelled or ended.was_closing or is_first, (self.label, ended.error)
        self._check_told(ended.reached)
        if self.abort != "silent":  # Else others are under way.
            self._check_threads()
        speaks.set()
        await self.stack.at_rest()
        self._check_nothing_is_left(ended)
        return True

    def _check_nothing_is_left(self, ended: Ended) -> None:
        assert all(task.done() for task in ended.tasks), (self.label, [task for task in ended.tasks if not task.done()])
        check_whole(self.client, self.label)
        assert self.stack.commits <= 1 + (self.scenario.name == "model that appears meanwhile"), (self.label, self.stack.seen)
        assert len(self.stack.deployments) <= 1, self.label

    def _check_threads(self) -> None:
        """No thread sends any more."""
        for frame in sys._current_frames().values():
            inner: Any = frame
            while inner is not None:
                assert inner.f_code.co_name != "_slices", self.label
                inner = inner.f_back

    def _check_told(self, reached: tuple[Place, ...]) -> None:
        failed = [event for event in self.events if isinstance(event, PushFailed)]
        begun = any(place.file == "push.py" and place.function == "Pusher.push" for place in reached) or bool(self.events)
        assert len(failed) <= 1, (self.label, self.events)
        assert failed or not self.scenario.is_push or not begun, (self.label, self.events)
        given_up = [event for event in self.events if isinstance(event, UploadAborted)]
        left = self.stack.s3.uploads
        if self.abort == "works":
            assert not left, (self.label, sorted(left), given_up)
            assert all(event.error is None for event in given_up), (self.label, given_up)
            return
        assert all(event.error is not None for event in given_up), (self.label, given_up)
        untold = set(left) - {event.upload_id for event in given_up}
        # A Create that is not answered while there is time for cleaning up is all that may be lost.
        creating = any(place.function.startswith("_Upload._create") for place in reached)
        assert not untold or (self.abort == "silent" and creating), (self.label, sorted(left), given_up)
        assert len(left) <= (2 if self.scenario.rekey_on_prepare else 1), self.label

    def _check_end(self, ended: Ended) -> None:
        """Of a call that was not cancelled."""
        proof, fails, result = self.scenario.proof, self.scenario.fails, ended.result
        assert type(ended.error) is (fails or type(None)), (self.label, ended.error)
        assert proof is None or any(isinstance(event, proof) for event in self.events), (self.label, self.events)
        if fails or not self.scenario.is_push:
            return
        assert [deployment.id for deployment in self.stack.deployments] == [result.deployment.id], self.label
        stored = self.stack.s3.objects[f"/models/{result.upload.key}"]
        assert stored in (SMALL, LARGE) or self.scenario.name == "directory", self.label


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a call ended that was to be cancelled at its k-th suspension.

    :ivar reached: the places of the package that waited then, outermost first; None where it had ended before
    :ivar was_cancelled: whether the cancellation came out of it, as itself
    """

    reached: tuple[Place, ...] | None
    was_cancelled: bool
    result: Any
    error: ab.BasetenError | None
    cleanup_s: float
    tasks: list[asyncio.Task[Any]]

    @property
    def was_closing(self) -> bool:
        """Whether all was done and only closing was left, which is shielded from scopes, and after which nothing is awaited."""
        return any(place.function in ("Client.aclose", "PushRun.__aexit__") for place in self.reached or ())


async def cancel_at(k: int, style: Style, call: Callable[[], Awaitable[Any]]) -> Ended:
    """Make a call, and cancel it at its k-th suspension. The loop must be watched."""
    watch = Watch(stop_at=k, again=5 if style == "task, again and again" else 0)
    scope = anyio.CancelScope()
    stopped_s: list[float] = []

    async def in_scope() -> Any:
        with scope:
            return await call()

    async def alone() -> Any:
        return await call()

    def stop() -> None:
        stopped_s.append(time.monotonic())
        if style == "scope":
            scope.cancel()
        else:
            task.cancel()

    watch.stop = stop
    task = watch.start(in_scope() if style == "scope" else alone())
    result, cancelled, failure = None, False, None
    try:
        result = await task
    except asyncio.CancelledError:
        cancelled = True
    except ab.BasetenError as caught:
        failure = caught
    ended_s = time.monotonic()
    return Ended(
        reached=watch.reached,
        was_cancelled=cancelled or scope.cancelled_caught,
        result=result,
        error=failure,
        cleanup_s=ended_s - stopped_s[0] if stopped_s else 0.0,
        tasks=watch.tasks,
    )


def check_whole(client: ab.Client, label: str) -> None:
    """Memory and connections have all come back."""
    planes = client._open_planes()
    connections = planes.engine.connections
    assert connections.budget.used_bytes == 0, label
    assert connections.for_parts.borrowed_tokens == 0, label
    assert connections.for_archives.borrowed_tokens == 0, label
    assert planes.api._control_plane._slots.value == MAX_CONNECTIONS, label
    assert not planes.engine.s3._transport._scopes, label


def open_files() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 - counted, not looked at
