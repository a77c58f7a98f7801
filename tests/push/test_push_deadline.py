"""The time limit of a push: what is raised when it passes, and what is left then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import attrs
import pytest
from support.cancel_sweep import LARGE, NAME, OPTIONS, SMALL, check_whole
from support.fake_s3 import error, hold
from support.ledgers import CREATED
from support.meddling_proxy import Meddler, answer, lose_reply
from support.meddling_proxy import hold as hold_call
from support.memory_stack import MemoryStack, memory_stack
from support.processes import until

import aiobaseten as ab
from aiobaseten.deadline import Deadline
from aiobaseten.events import Event, PushFailed, Reconciling, Retrying, UploadAborted
from aiobaseten.ledger import Ledger
from aiobaseten.retry import Clock
from aiobaseten.seat import OwnSeat

pytestmark = pytest.mark.anyio

LIMIT_S = 1.0
LATE = attrs.evolve(OPTIONS, timeouts=ab.TimeoutOptions(push_s=LIMIT_S, abort_s=0.5))


def stalls() -> Meddler:
    return hold_call(anyio.Event(), anyio.Event())


@dataclass
class Rig:
    """A client on the real clock, whose store is known already, so that little but the stalling takes time."""

    stack: MemoryStack
    client: ab.Client
    events: list[Event]

    def limit(self, options: ab.Options = LATE) -> None:
        """From now on its pushes go by these options."""
        planes = self.client._open_planes()
        self.client._options = planes.pusher._options = options
        planes.engine.options = planes.api._control_plane.options = options


@pytest.fixture(scope="module")
async def warm(anyio_backend: str) -> AsyncIterator[Rig]:
    events: list[Event] = []
    async with memory_stack() as stack, stack.client(OPTIONS, events, clock=Clock()) as client:
        await client.push(ab.Push(SMALL))
        yield Rig(stack, client, events)


@pytest.fixture
async def rig(warm: Rig) -> AsyncIterator[Rig]:
    warm.stack.reset()
    warm.events.clear()
    warm.limit()
    yield warm
    warm.limit(OPTIONS)
    check_whole(warm.client, "after the test")


@pytest.mark.parametrize(
    ("call", "doing"),
    [
        (("GET", "/v1/models"), "looking its model up"),
        (("POST", "/v1/prepare"), "preparing its upload"),
        ("PutObject", "uploading its archive"),
        ("CreateMultipartUpload", "uploading its archive"),
        ("UploadPart", "uploading its archive"),
        ("CompleteMultipartUpload", "uploading its archive"),
    ],
)
async def test_a_push_that_takes_too_long_is_given_up(rig: Rig, call: str | tuple[str, str], doing: str) -> None:
    stack, client, events = rig.stack, rig.client, rig.events
    if isinstance(call, str):
        stack.s3.faults[call] = [hold(asyncio.Event(), asyncio.Event())]
    else:
        stack.plan(*call, stalls())
    with anyio.fail_after(10), pytest.raises(ab.DeadlineExceeded) as late:
        await client.push(ab.Push(SMALL if call == "PutObject" else LARGE))
    assert str(late.value) == f"the push's {LIMIT_S:g} s (TimeoutOptions.push_s) passed while {doing}"
    assert late.value.__cause__ is None
    assert late.value.retryable
    assert [(event.push_id, event.error) for event in events if isinstance(event, PushFailed)] == [
        (late.value.push_id, str(late.value))
    ]
    assert stack.s3.uploads == {}
    assert stack.deployments == []
    rig.limit(OPTIONS)
    result = await client.push(ab.Push(LARGE))
    assert [deployment.id for deployment in stack.deployments] == [result.deployment.id]


async def test_reading_the_source_counts_too(rig: Rig) -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield b"begun"
        await anyio.sleep_forever()

    config = ab.DeploymentArchivePayload(config={"model_name": NAME})
    with pytest.raises(ab.DeadlineExceeded, match="while uploading"):
        await rig.client.push(ab.Push(stuck(), deployment=config))


async def test_what_was_being_repeated_is_the_cause(rig: Rig) -> None:
    patient = attrs.evolve(LATE, retry=ab.RetryOptions(initial_backoff_s=1000, max_backoff_s=1000))
    stack, client, events = rig.stack, rig.client, rig.events
    rig.limit(patient)
    stack.plan("POST", "/v1/prepare", answer(503))
    with pytest.raises(ab.DeadlineExceeded, match=r"while preparing its upload; the last failure: .*503") as late:
        await client.push(ab.Push(SMALL))
    assert isinstance(late.value.__cause__, ab.ServerError)
    assert any(isinstance(event, Retrying) for event in events)
    stack.s3.faults["UploadPart"] = [error(503, "SlowDown")]
    with pytest.raises(ab.DeadlineExceeded, match=r"while uploading its archive; the last failure: .*SlowDown") as late:
        await client.push(ab.Push(LARGE))
    assert isinstance(late.value.__cause__, ab.UploadError)


async def test_a_failure_that_is_over_is_not_the_cause(rig: Rig) -> None:
    stack, client, events = rig.stack, rig.client, rig.events
    rig.limit(attrs.evolve(LATE, timeouts=attrs.evolve(LATE.timeouts, push_s=2.0)))  # time for all that comes before
    stack.plan("POST", "/v1/prepare", answer(503))
    stack.s3.faults["UploadPart"] = [error(503, "SlowDown")]
    stack.s3.faults["CompleteMultipartUpload"] = [hold(asyncio.Event(), asyncio.Event())]
    with pytest.raises(ab.DeadlineExceeded, match=r"while uploading its archive$") as late:
        await client.push(ab.Push(LARGE))
    assert late.value.__cause__ is None
    assert len([event for event in events if isinstance(event, Retrying)]) == 2


async def test_an_upload_that_cannot_be_aborted_is_told(rig: Rig) -> None:
    stack, client, events = rig.stack, rig.client, rig.events
    stack.s3.faults["UploadPart"] = [hold(asyncio.Event(), asyncio.Event())] * 2
    stack.s3.faults["AbortMultipartUpload"] = [error(403, "AccessDenied")]
    with pytest.raises(ab.DeadlineExceeded) as late:
        await client.push(ab.Push(LARGE))
    (note,) = late.value.__notes__
    assert "could not be aborted: UploadDenied" in note
    assert [event.error is not None for event in events if isinstance(event, UploadAborted)] == [True]


async def test_a_commit_that_is_under_way_may_have_been_made(rig: Rig) -> None:
    stack, client, events = rig.stack, rig.client, rig.events
    stack.plan("POST", "/v1/models", stalls())
    with pytest.raises(ab.CommitUncertain, match=r"may have been made.*passed while committing") as uncertain:
        await client.push(ab.Push(SMALL))
    assert isinstance(uncertain.value.__cause__, ab.DeadlineExceeded)
    assert not uncertain.value.retryable
    assert uncertain.value.push_id == uncertain.value.__cause__.push_id == events[-1].push_id


async def test_a_lost_commit_that_is_looked_for_too_long(rig: Rig) -> None:
    stack, client, events = rig.stack, rig.client, rig.events
    stack.plan("POST", "/v1/models", lose_reply)
    stack.plan("GET", "/deployments", stalls())
    with pytest.raises(ab.CommitUncertain, match=r"the last failure: .*broke off") as uncertain:
        await client.push(ab.Push(SMALL))
    assert isinstance(uncertain.value.__cause__, ab.DeadlineExceeded)
    assert isinstance(uncertain.value.__cause__.__cause__, ab.TransportError)
    assert any(isinstance(event, Reconciling) for event in events)


async def test_a_commit_that_was_refused_for_the_moment_made_nothing(rig: Rig) -> None:
    patient = attrs.evolve(LATE, retry=ab.RetryOptions(initial_backoff_s=1000, max_backoff_s=1000))
    stack, client = rig.stack, rig.client
    rig.limit(patient)
    stack.plan("POST", "/v1/models", answer(429))
    with pytest.raises(ab.DeadlineExceeded, match="while committing") as late:
        await client.push(ab.Push(SMALL))
    assert isinstance(late.value.__cause__, ab.RateLimited)
    assert stack.commits == 0


async def test_a_run_begins_a_late_push_again(rig: Rig, tmp_path: Path) -> None:
    stack, client = rig.stack, rig.client
    stack.plan("POST", "/v1/prepare", stalls())
    report = await client.push_all([ab.Push(SMALL)], journal=tmp_path / "journal.db", max_attempts=2)
    assert [(record.attempts, record.error) for record in report.records] == [(2, None)]
    assert len(stack.deployments) == 1


async def test_a_late_commit_is_found_by_the_next_run(rig: Rig, tmp_path: Path) -> None:
    arrived, go_on = anyio.Event(), anyio.Event()
    stack, client = rig.stack, rig.client
    stack.plan("POST", "/v1/models", hold_call(arrived, go_on))
    report = await client.push_all([ab.Push(SMALL)], journal=tmp_path / "journal.db")
    assert [record.attempts for record in report.records] == [1]
    assert "may have been made" in str(report.records[0].error)
    go_on.set()
    await until(lambda: len(stack.deployments) == 1)
    rig.limit(OPTIONS)
    report = await client.push_all([ab.Push(SMALL)], journal=tmp_path / "journal.db")
    assert [record.error for record in report.records] == [None]
    assert len(stack.deployments) == stack.commits == 1


@pytest.mark.parametrize("first", ["the limit", "the caller"])
async def test_the_callers_own_cancellation_wins(first: str) -> None:
    deadline = Deadline(1000, Ledger(), OwnSeat())
    waiting = asyncio.Event()

    async def push() -> None:
        with deadline.kept():
            waiting.set()
            await anyio.sleep_forever()

    task = asyncio.create_task(push())
    await waiting.wait()
    for act in (deadline._scope.cancel, task.cancel) if first == "the limit" else (task.cancel, deadline._scope.cancel):
        act()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_cancelling_while_a_late_push_cleans_up(rig: Rig) -> None:
    stack, client = rig.stack, rig.client
    aborting, go_on = asyncio.Event(), asyncio.Event()
    stack.s3.faults["UploadPart"] = [hold(asyncio.Event(), asyncio.Event())] * 2
    stack.s3.faults["AbortMultipartUpload"] = [hold(aborting, go_on)]
    task = asyncio.create_task(client.push(ab.Push(LARGE)))
    await aborting.wait()
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stack.s3.uploads == {}


async def test_a_scope_around_it_that_ends_with_it_wins(rig: Rig) -> None:
    stack, client = rig.stack, rig.client
    aborting, go_on = asyncio.Event(), asyncio.Event()
    stack.s3.faults["UploadPart"] = [hold(asyncio.Event(), asyncio.Event())] * 2
    stack.s3.faults["AbortMultipartUpload"] = [hold(aborting, go_on)]
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.push, ab.Push(LARGE))
            await aborting.wait()
            scope.cancel()
            go_on.set()
    assert scope.cancelled_caught


async def test_a_commit_whose_answer_came_is_a_success_however_late() -> None:
    ledger = Ledger()
    with Deadline(0.01, ledger, OwnSeat()).kept():
        ledger.created = CREATED
        await anyio.sleep_forever()


async def test_waiting_for_other_pushes_does_not_count() -> None:
    class Crowded:
        @asynccontextmanager
        async def given_away(self) -> AsyncIterator[None]:
            await anyio.sleep(0.1)
            yield
            await anyio.sleep(0.1)

    deadline = Deadline(0.15, Ledger(), Crowded())
    with deadline.kept():
        async with deadline.given_away():
            await anyio.sleep(0.1)
    with pytest.raises(ab.DeadlineExceeded), deadline.kept():
        await anyio.sleep_forever()


async def test_a_late_push_is_not_made_twice_where_its_commit_was_refused_for_itself(rig: Rig) -> None:
    """Something on the way has sent the commit twice; the answer to the second is a conflict with the first."""
    stack, client = rig.stack, rig.client
    stack.plan("POST", "/v1/models", answer(409, act=True))
    stack.plan("GET", "/deployments", stalls())
    report = await client.push_all([ab.Push(SMALL)], max_attempts=2)
    assert [(record.attempts, record.error) for record in report.records] == [(2, None)]
    assert len(stack.deployments) == stack.commits == 1
