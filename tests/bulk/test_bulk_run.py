"""Runs of many pushes against the real stack: outcomes, laziness, stopping, retries and look-ups."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.faulty import Faulty, faulty_client
from support.meddling_proxy import answer, hold, lose_request
from support.model_dirs import model_archive, model_dir, tree_of
from support.processes import until

import aiobaseten as ab
from aiobaseten.events import Event, Retrying
from aiobaseten.local import LocalStack

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MiB = 1024 * 1024
NOT_SO_PATIENT = ab.Options(retry=ab.RetryOptions(max_attempts=1))


@pytest.fixture
async def faulty(local_stack: LocalStack) -> AsyncIterator[Faulty]:
    async with faulty_client(local_stack, NOT_SO_PATIENT) as opened:
        yield opened


@pytest.fixture
async def client(local_stack: LocalStack) -> AsyncIterator[ab.Client]:
    async with local_stack.client(options=ab.Options(requests_per_s=None)) as opened:
        yield opened


@pytest.fixture(autouse=True)
async def nothing_is_left(local_stack: LocalStack) -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    assert await local_stack.multipart_uploads() == []
    assert {task for task in asyncio.all_tasks() - before if "PushRun" in repr(task)} == set()


def models(path: Path, name: str, count: int) -> list[Path]:
    return [model_dir(path / f"model-{number}", f"{name}-{number}") for number in range(count)]


async def collect(run: ab.PushRun) -> list[ab.PushOutcome]:
    return [outcome async for outcome in run]


async def test_each_push_ends_in_an_outcome_and_one_failure_disturbs_no_other(
    local_stack: LocalStack, client: ab.Client, tmp_path: Path, name: str
) -> None:
    directories = models(tmp_path, name, 6)
    (directories[2] / "config.yaml").unlink()
    archive = ab.Push(model_archive(f"{name}-bytes"))
    async with client.push_many([*directories, archive]) as run:
        outcomes = await collect(run)
    assert len(outcomes) == 7
    failed = [outcome for outcome in outcomes if not outcome.ok]
    assert [outcome.push.source for outcome in failed] == [directories[2]]
    assert isinstance(failed[0].error, ab.ArchiveError)
    for outcome in outcomes:
        if outcome.result is not None:
            assert outcome.result.upload is not None
            assert local_stack.deployment_key(outcome.result.deployment.id) == outcome.result.upload.key
            assert outcome.name == outcome.result.model.name
    assert {outcome.name for outcome in outcomes} == {str(directories[2]), f"{name}-bytes"} | {
        f"{name}-{number}" for number in (0, 1, 3, 4, 5)
    }
    report = run.report
    assert (report.total, report.succeeded, report.failed, report.skipped, report.interrupted) == (7, 6, 1, 0, 0)
    assert report.failures_by_cause == {"ArchiveError": 1}
    assert report.size_bytes == sum(outcome.result.upload.size_bytes for outcome in outcomes if outcome.result)  # type: ignore[union-attr]
    assert sum(report.throughput.buckets) == report.size_bytes
    assert not report.ok
    assert [record.number for record in sorted(report.records, key=lambda record: record.number)] == [*range(1, 8)]
    done = next(record for record in report.records if record.name == f"{name}-0")
    assert done.began_s <= done.prepared_s <= done.uploaded_s <= done.committed_s <= done.ended_s  # type: ignore[operator]


async def test_push_all_returns_the_report(client: ab.Client, tmp_path: Path, name: str) -> None:
    report = await client.push_all(models(tmp_path, name, 3))
    assert report.ok
    assert report.succeeded == 3
    assert {record.state for record in report.records} == {"committed"}


async def test_a_run_that_waits_ends_with_active_deployments(client: ab.Client, tmp_path: Path, name: str) -> None:
    async with client.push_many(models(tmp_path, name, 3), wait_timeout_s=30) as run:
        outcomes = await collect(run)
    assert [outcome.result.deployment.status for outcome in outcomes if outcome.result] == ["ACTIVE"] * 3
    assert {record.state for record in run.report.records} == {"active"}


async def test_a_deployment_that_fails_is_a_failure_with_a_result(
    local_stack: LocalStack, client: ab.Client, tmp_path: Path, name: str
) -> None:
    def fail_build(event: Event) -> None:
        if isinstance(event, ab.events.Committed):
            local_stack.set_status(event.deployment_id, "BUILD_FAILED")

    async with (
        local_stack.client(observer=fail_build) as watched,
        watched.push_many(models(tmp_path, name, 1), wait_timeout_s=30) as run,
    ):
        (outcome,) = await collect(run)
    assert outcome.result is not None
    assert isinstance(outcome.error, ab.DeploymentFailed)
    assert outcome.record.deployment_id == outcome.result.deployment.id


class Counted:
    """Pushes without end, counted as they are taken."""

    def __init__(self, make: Any) -> None:
        self.make = make
        self.taken = 0
        self.closed = False

    def sync(self) -> Iterator[Any]:
        try:
            for number in range(100_000):
                self.taken += 1
                yield self.make(number)
        finally:
            self.closed = True

    async def asynchronous(self) -> AsyncIterator[Any]:
        try:
            for number in range(100_000):
                self.taken += 1
                yield self.make(number)
        finally:
            self.closed = True


@pytest.mark.parametrize("kind", ["sync", "asynchronous"])
async def test_pushes_are_taken_only_as_there_is_a_place_for_them(client: ab.Client, tmp_path: Path, name: str, kind: str) -> None:
    directory = model_dir(tmp_path / "model", name)
    counted = Counted(lambda number: ab.Push(directory, name=f"{name}-{number}"))
    async with client.push_many(getattr(counted, kind)(), concurrency=4) as run:
        for ended in range(1, 6):
            outcome = await anext(run)
            assert outcome.ok, outcome.error
            assert counted.taken <= ended + 4
        # Nobody takes outcomes any more: the run must come to rest, not go on in memory.
        await until(lambda: counted.taken == 9)
        await anyio.sleep(0.1)
        assert counted.taken == 9
    assert counted.closed
    assert run.report.total <= 9


async def test_leaving_early_stops_everything(local_stack: LocalStack, faulty: Faulty, tmp_path: Path, name: str) -> None:
    arrived, never = anyio.Event(), anyio.Event()
    faulty.s3.plan("PUT", "partNumber=2", hold(arrived, never))
    large = model_dir(tmp_path / "large", name, weights_bytes=20 * MiB)
    async with faulty.client.push_many([large, *models(tmp_path, name, 2)]) as run:
        await arrived.wait()
    assert await local_stack.multipart_uploads() == []
    assert faulty.control.count("POST", "/v1/models") <= 2
    assert all(record.name != name for record in run.report.records)
    with pytest.raises(StopAsyncIteration):
        await anext(run)


async def test_an_error_in_the_block_comes_out_as_it_is(client: ab.Client, tmp_path: Path, name: str) -> None:
    async def fail_in_the_block() -> None:
        async with client.push_many(models(tmp_path, name, 3)) as run:
            await anext(run)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_in_the_block()


@pytest.mark.parametrize("how", ["anyio", "asyncio", "timeout"])
async def test_cancelling_a_run_cleans_up(local_stack: LocalStack, faulty: Faulty, tmp_path: Path, name: str, how: str) -> None:
    arrived, never = anyio.Event(), anyio.Event()
    faulty.s3.plan("PUT", "partNumber=2", hold(arrived, never))
    large = model_dir(tmp_path / "large", name, weights_bytes=20 * MiB)

    async def push() -> None:
        async with faulty.client.push_many([large]) as run:
            async for _ in run:
                pass

    if how == "anyio":
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(push)
            await arrived.wait()
            tasks.cancel_scope.cancel()
    elif how == "asyncio":
        task = asyncio.create_task(push())
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await push()
    assert await local_stack.multipart_uploads() == []


async def test_fail_fast_stops_the_rest(client: ab.Client, tmp_path: Path, name: str) -> None:
    counted = Counted(lambda number: tmp_path / "nowhere" if number == 5 else directories[number % 5])
    directories = models(tmp_path, name, 5)
    async with client.push_many(counted.sync(), fail_fast=True, concurrency=2) as run:
        outcomes = await collect(run)
    assert counted.taken < 10
    assert counted.closed
    assert sum(not outcome.ok for outcome in outcomes) == 1
    report = run.report
    assert isinstance(report.stopped_by, ab.ArchiveError)
    assert not report.ok
    assert report.total + report.interrupted <= counted.taken


async def test_a_refused_key_stops_the_run_at_once(local_stack: LocalStack, tmp_path: Path, name: str) -> None:
    directory = model_dir(tmp_path / "model", name)
    counted = Counted(lambda number: ab.Push(directory, name=f"{name}-{number}"))
    async with local_stack.client(api_key="wrong") as client, client.push_many(counted.sync(), concurrency=4) as run:
        outcomes = await collect(run)
    assert 1 <= len(outcomes) <= 4
    assert counted.taken <= 8
    assert isinstance(run.report.stopped_by, ab.AuthenticationError)


async def test_a_403_stops_the_run_only_before_any_push_was_prepared(faulty: Faulty, tmp_path: Path, name: str) -> None:
    first, second, third = models(tmp_path, name, 3)
    forbidden = answer(403, '{"message": "not your team"}')
    async with faulty.client.push_many([first, second, third], concurrency=1) as run:
        assert (await anext(run)).ok
        faulty.control.plan("POST", "/v1/prepare_model_upload", forbidden)
        outcomes = await collect(run)
    assert sorted(outcome.ok for outcome in outcomes) == [False, True]
    assert run.report.stopped_by is None
    faulty.control.plan("POST", "/v1/prepare_model_upload", forbidden)
    report = await faulty.client.push_all([first, second], concurrency=1)
    assert isinstance(report.stopped_by, ab.AuthenticationError)
    assert report.total == 1


async def test_passing_failures_are_retried_with_a_bound(faulty: Faulty, tmp_path: Path, name: str) -> None:
    directory = model_dir(tmp_path / "model", name)
    faulty.control.plan("POST", "/v1/prepare_model_upload", lose_request, times=2)
    async with faulty.client.push_many([directory], max_attempts=3) as run:
        (outcome,) = await collect(run)
    assert outcome.ok
    assert outcome.record.attempts == 3
    assert [event.operation for event in faulty.told(Retrying)] == ["push", "push"]  # type: ignore[attr-defined]
    faulty.control.plan("POST", "/v1/prepare_model_upload", answer(503), times=3)
    async with faulty.client.push_many([directory], max_attempts=3) as run:
        (outcome,) = await collect(run)
    assert isinstance(outcome.error, ab.ServerError)
    assert outcome.record.attempts == 3
    assert faulty.control.plans == []


async def test_a_retry_does_not_upload_again(faulty: Faulty, tmp_path: Path, name: str) -> None:
    faulty.control.plan("POST", "/v1/models", answer(429))
    async with faulty.client.push_many([model_dir(tmp_path / "model", name)]) as run:
        (outcome,) = await collect(run)
    assert outcome.ok
    assert outcome.record.attempts == 2
    assert faulty.s3.count("PUT", "") == 1
    assert faulty.control.count("POST", "/v1/prepare_model_upload") == 1


async def test_a_stream_is_pushed_once(faulty: Faulty, name: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield model_archive(name)

    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise KeyError("the caller's own")

    deployment = ab.DeploymentArchivePayload(config={"model_name": name})
    faulty.control.plan("POST", "/v1/prepare_model_upload", answer(503))
    pushes = [ab.Push(chunks(), deployment=deployment), ab.Push(broken(), deployment=deployment)]
    async with faulty.client.push_many(pushes, concurrency=1) as run:
        first, second = await collect(run)
    assert isinstance(first.error, ab.ServerError)
    assert first.record.attempts == 1
    assert isinstance(second.error, KeyError)


async def test_names_and_teams_are_looked_up_once(faulty: Faulty, tmp_path: Path, name: str) -> None:
    directories = [model_dir(tmp_path / str(number), name, seed=number) for number in range(8)]
    async with faulty.client.push_many(directories) as run:
        outcomes = await collect(run)
    (model_id,) = {outcome.result.model.id for outcome in outcomes if outcome.result}
    assert len(await faulty.client.list_deployments(model_id)) == 8
    assert faulty.control.count("POST", "/v1/models/") == 7
    assert faulty.control.count("GET", f"/v1/models?name={name}") == 1
    report = await faulty.client.push_all(directories)
    assert report.succeeded == 8
    assert faulty.control.count("GET", f"/v1/models?name={name}") == 2


async def test_teams_are_listed_once_for_names_that_several_have(faulty: Faulty, tmp_path: Path, name: str) -> None:
    (team,) = await faulty.client.list_teams(name="research")
    directories = models(tmp_path, name, 2)
    for directory in directories:
        await faulty.client.push(directory)
        await faulty.client.push(ab.Push(directory, team_id=team.id))
    faulty.control.seen.clear()
    report = await faulty.client.push_all(directories)
    assert report.succeeded == 2
    assert faulty.control.count("GET", "/v1/teams") == 1


async def test_where_the_first_push_to_a_name_fails_the_next_one_makes_the_model(faulty: Faulty, tmp_path: Path, name: str) -> None:
    faulty.control.plan("POST", "/v1/models", answer(422, '{"message": "no"}'))
    directories = [model_dir(tmp_path / str(number), name, seed=number) for number in range(3)]
    async with faulty.client.push_many(directories) as run:
        outcomes = await collect(run)
    assert sorted(outcome.ok for outcome in outcomes) == [False, True, True]
    assert len({outcome.result.model.id for outcome in outcomes if outcome.result}) == 1


async def test_a_model_that_is_gone_is_looked_up_again(faulty: Faulty, tmp_path: Path, name: str) -> None:
    directories = [model_dir(tmp_path / str(number), name, seed=number) for number in range(3)]
    await faulty.client.push(directories[0])
    faulty.control.seen.clear()
    faulty.control.plan("POST", "/v1/prepare_model_upload", answer(404, '{"message": "no such model"}'))
    report = await faulty.client.push_all(directories, concurrency=1)
    assert (report.failed, report.succeeded) == (1, 2)
    assert faulty.control.count("GET", f"/v1/models?name={name}") == 2


async def test_small_pushes_do_not_wait_behind_large_ones(faulty: Faulty, tmp_path: Path, name: str) -> None:
    arrived, go_on = anyio.Event(), anyio.Event()
    for _ in range(20):
        faulty.s3.plan("PUT", "partNumber=", hold(arrived, go_on))
    larges = []
    for number in range(6):
        directory = model_dir(tmp_path / f"large-{number}", f"{name}-large-{number}")
        with (directory / "sparse.bin").open("wb") as file:
            file.truncate(65 * MiB)
        larges.append(directory)
    smalls = models(tmp_path, name, 10)
    async with faulty.client.push_many([*larges, *smalls]) as run:
        early = [await anext(run) for _ in smalls]
        assert all(outcome.ok for outcome in early)
        assert {outcome.push.source for outcome in early} == {*smalls}
        assert faulty.s3.count("POST", "uploads") <= 4
        go_on.set()
        assert all(outcome.ok for outcome in await collect(run))


@pytest.mark.parametrize("fault", ["commit", "upload"])
async def test_stopping_lets_commits_in_flight_end(faulty: Faulty, tmp_path: Path, name: str, fault: str) -> None:
    arrived, go_on = anyio.Event(), anyio.Event()
    plane, method, part = {"commit": (faulty.control, "POST", "/v1/models"), "upload": (faulty.s3, "PUT", "")}[fault]
    plane.plan(method, part, hold(arrived, go_on))
    directory = model_dir(tmp_path / "model", name)
    counted = Counted(lambda number: ab.Push(directory, name=f"{name}-{number}"))
    async with faulty.client.push_many(counted.sync(), concurrency=1) as run:
        await arrived.wait()
        run.stop()
        go_on.set()
        outcomes = await collect(run)
    assert counted.taken == 1
    assert [outcome.ok for outcome in outcomes] == ([True] if fault == "commit" else [])
    assert run.report.interrupted == (0 if fault == "commit" else 1)
    assert len(await faulty.client.list_models(name=f"{name}-0")) == len(outcomes)


async def test_stopping_ends_the_wait_for_a_deployment_and_keeps_its_result(
    local_stack: LocalStack, tmp_path: Path, name: str
) -> None:
    committed = anyio.Event()

    def watch(event: Event) -> None:
        if isinstance(event, ab.events.Committed):
            local_stack.set_status(event.deployment_id, "BUILDING")
        if isinstance(event, ab.events.StatusChanged):
            committed.set()

    async with (
        local_stack.client(observer=watch) as client,
        client.push_many(models(tmp_path, name, 1), wait_timeout_s=600) as run,
    ):
        await committed.wait()
        run.stop()
        (outcome,) = await collect(run)
    assert outcome.ok
    assert outcome.record.state == "committed"


@pytest.mark.parametrize("kind", ["sync", "asynchronous"])
async def test_what_the_iterable_raises_comes_after_the_outcomes(client: ab.Client, tmp_path: Path, name: str, kind: str) -> None:
    directory = model_dir(tmp_path / "model", name)

    def make(number: int) -> Path:
        if number == 2:
            raise LookupError("the caller's own")
        return directory

    async with client.push_many(getattr(Counted(make), kind)()) as run:
        assert [(await anext(run)).ok for _ in range(2)] == [True, True]
        with pytest.raises(LookupError, match="the caller's own"):
            await anext(run)


async def test_what_is_no_push_fails_by_itself(client: ab.Client, tmp_path: Path, name: str) -> None:
    wrong: list[Any] = [42, ab.Push(tmp_path, deployment={"config": {}}), model_dir(tmp_path / "model", name)]  # type: ignore[arg-type]
    async with client.push_many(wrong, journal=tmp_path / "journal.db") as run:
        outcomes = await collect(run)
    assert sorted(type(outcome.error).__name__ for outcome in outcomes) == ["InvalidPush", "InvalidPush", "NoneType"]


@pytest.mark.parametrize("pushes", ["./model", b"bytes", Path("model"), ab.Push("./model"), None, 7])
async def test_what_is_no_iterable_of_pushes_is_refused(client: ab.Client, pushes: Any) -> None:
    with pytest.raises(ab.ConfigurationError, match="pushes must be an iterable"):
        client.push_many(pushes)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"concurrency": 0}, "concurrency must be a whole number from 1"),
        ({"max_attempts": 1.5}, "max_attempts must be a whole number"),
        ({"wait_timeout_s": -1}, "wait_timeout_s must be a finite number"),
        ({"fail_fast": "yes"}, "fail_fast must be"),
    ],
)
async def test_arguments_that_cannot_work_are_refused(client: ab.Client, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ab.ConfigurationError, match=told):
        client.push_many([], **arguments)


async def test_a_run_has_one_block(client: ab.Client, tmp_path: Path) -> None:
    run = client.push_many([])
    with pytest.raises(ab.ConfigurationError, match="has not begun"):
        await anext(run)
    async with run:
        assert await collect(run) == []
        with pytest.raises(ab.ConfigurationError, match="only once"):
            await run.__aenter__()
    assert run.report.ok
    assert run.report.total == 0


async def test_the_directories_are_as_they_were(client: ab.Client, tmp_path: Path, name: str) -> None:
    directory = model_dir(tmp_path / "model", name)
    before = tree_of(directory)
    await client.push_all([directory], journal=tmp_path / "journal.db")
    assert tree_of(directory) == before
