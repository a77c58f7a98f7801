"""What a run does where things go wrong in an unlucky moment. Each of these was a defect once."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from support.faulty import Faulty, faulty_client
from support.meddling_proxy import Forward, answer, hold, lose_request
from support.model_dirs import model_archive, model_dir, tree_of
from support.rest import s3_client

import aiobaseten as ab
from aiobaseten.events import Committed, Event, UploadResumed
from aiobaseten.local import LocalStack

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MiB = 1024 * 1024
OPTIONS = ab.Options(retry=ab.RetryOptions(max_attempts=1))


@pytest.fixture
async def faulty(local_stack: LocalStack) -> AsyncIterator[Faulty]:
    async with faulty_client(local_stack, OPTIONS) as opened:
        yield opened


@pytest.fixture(autouse=True)
async def no_upload_is_left(local_stack: LocalStack) -> AsyncIterator[None]:
    yield
    assert await local_stack.multipart_uploads() == []


async def run(
    client: ab.Client, pushes: Any, journal: Path | None = None, **options: Any
) -> tuple[list[ab.PushOutcome], ab.BulkReport]:
    async with client.push_many(pushes, journal=journal, **options) as started:
        outcomes = [outcome async for outcome in started]
    return outcomes, started.report


def large(path: Path, name: str) -> Path:
    directory = model_dir(path, name)
    with (directory / "sparse.bin").open("wb") as file:
        file.truncate(65 * MiB)
    return directory


async def cancelled_by_someone() -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


async def test_an_iterable_that_is_cancelled_by_itself_is_an_error(faulty: Faulty, tmp_path: Path, name: str) -> None:
    async def pushes() -> AsyncIterator[Path]:
        yield model_dir(tmp_path / "model", name)
        await cancelled_by_someone()

    outcomes = []
    async with faulty.client.push_many(pushes()) as started:
        outcomes.append(await anext(started))
        with pytest.raises(ab.BasetenError, match="CancelledError came from the iterable") as caught:
            await anext(started)
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert outcomes[0].ok


async def test_what_the_iterable_raised_does_not_stop_the_pushes_under_way(faulty: Faulty, tmp_path: Path, name: str) -> None:
    arrived, go_on = anyio.Event(), anyio.Event()
    good, bad = model_dir(tmp_path / "good", name), model_dir(tmp_path / "bad", f"{name}-bad")

    async def pushes() -> AsyncIterator[Path]:
        faulty.control.plan("POST", "/v1/prepare", hold(arrived, go_on))
        yield good
        await arrived.wait()
        faulty.control.plan("POST", "/v1/prepare", answer(422))
        yield bad
        raise KeyError("database") from OSError("its cause")

    async with faulty.client.push_many(pushes()) as started:
        failed = await anext(started)
        go_on.set()
        done = await anext(started)
        with pytest.raises(KeyError) as caught:
            await anext(started)
    assert (failed.ok, done.ok) == (False, True)
    assert isinstance(caught.value.__cause__, OSError)


async def test_a_push_that_was_just_taken_is_stopped_too(faulty: Faulty, tmp_path: Path, name: str) -> None:
    async def pushes() -> AsyncIterator[Path]:
        asyncio.get_running_loop().call_soon(started.stop)
        yield model_dir(tmp_path / "model", name)

    started = faulty.client.push_many(pushes())
    async with started:
        assert [outcome async for outcome in started] == []
    assert started.report.interrupted == 1
    assert faulty.control.count("POST", "") == 0


async def test_a_commit_that_did_nothing_is_not_tried_again_after_a_stop(
    local_stack: LocalStack, tmp_path: Path, name: str
) -> None:
    async with faulty_client(local_stack, ab.Options()) as faulty:

        async def stop(request: web.Request, forward: Forward) -> web.Response:
            started.stop()
            return web.Response(status=429, text='{"error": "later", "retry_after": 600}')

        faulty.control.plan("POST", "/v1/models", stop)
        async with faulty.client.push_many([model_dir(tmp_path / "model", name)]) as started:
            assert [outcome async for outcome in started] == []
        assert faulty.control.count("POST", "/v1/models") == 1
    assert started.report.interrupted == 1


async def test_a_stop_while_an_earlier_commit_is_looked_for(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name)
    faulty.control.plan("POST", "/v1/models", lose_request)
    await run(faulty.client, [directory], journal)
    (directory / "more.txt").write_text("so that it would have to be uploaded again")
    uploads = faulty.s3.count("PUT", "")
    arrived, go_on = anyio.Event(), anyio.Event()
    faulty.control.plan("GET", "/v1/models?name", hold(arrived, go_on))
    async with faulty.client.push_many([directory], journal=journal) as started:
        await arrived.wait()
        started.stop()
        go_on.set()
        assert [outcome async for outcome in started] == []
    assert faulty.s3.count("PUT", "") == uploads
    assert faulty.control.count("POST", "/v1/models") == 1


async def test_leaving_early_counts_what_was_not_ended(faulty: Faulty, tmp_path: Path, name: str) -> None:
    arrived, never = anyio.Event(), anyio.Event()
    faulty.control.plan("POST", "/v1/models", hold(arrived, never))
    async with faulty.client.push_many([model_dir(tmp_path / "model", name)]) as started:
        await arrived.wait()
    assert started.report.interrupted == 1
    assert not started.report.ok


async def test_uploads_that_are_stopped_stay_for_the_next_run_if_it_has_their_credentials(
    local_stack: LocalStack, tmp_path: Path, name: str
) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name, weights_bytes=60 * MiB)
    options = ab.Options(retry=OPTIONS.retry, transfer=ab.TransferOptions(max_connections=1))
    async with faulty_client(local_stack, options) as faulty:
        arrived, never = anyio.Event(), anyio.Event()
        faulty.s3.plan("PUT", "partNumber=3", hold(arrived, never))
        async with faulty.client.push_many([directory], journal=journal, journal_credentials=True) as started:
            await arrived.wait()
            started.stop()
            assert [outcome async for outcome in started] == []
        assert len(await local_stack.multipart_uploads()) == 1
        (outcome,), _ = await run(faulty.client, [directory], journal, journal_credentials=True)
        assert outcome.result is not None
        assert await faulty.contents(outcome.result) == tree_of(directory)
        (resumed,) = faulty.told(UploadResumed)
        assert isinstance(resumed, UploadResumed)
        assert resumed.parts == 2


async def test_a_deployment_that_failed_is_made_again_by_the_next_run(local_stack: LocalStack, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name)

    def fail_build(event: Event) -> None:
        if isinstance(event, Committed):
            local_stack.set_status(event.deployment_id, "BUILD_FAILED")

    async with local_stack.client(observer=fail_build) as client:
        (failed,), _ = await run(client, [directory], journal, wait_timeout_s=30)
    assert isinstance(failed.error, ab.DeploymentFailed)
    assert failed.record.deployment_id is not None
    (directory / "model" / "model.py").write_text("mended = True\n")
    async with local_stack.client() as client:
        (mended,), _ = await run(client, [directory], journal, wait_timeout_s=30)
        assert mended.ok, mended.error
        assert not mended.skipped
        assert mended.record.push_id != failed.record.push_id
        assert len(await client.list_deployments(mended.record.model_id or "")) == 2
        (again,), _ = await run(client, [directory], journal, wait_timeout_s=30)
    assert again.skipped


async def test_what_was_seen_active_is_not_waited_for_again(local_stack: LocalStack, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name)
    async with local_stack.client() as client:
        (first,), _ = await run(client, [directory], journal, wait_timeout_s=30)
        assert first.record.deployment_id is not None
        local_stack.set_status(first.record.deployment_id, "INACTIVE")
        (again,), _ = await run(client, [directory], journal, wait_timeout_s=0)
    assert again.ok
    assert again.skipped


async def test_a_finished_upload_that_the_store_has_lost_is_made_again(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name)
    faulty.control.plan("POST", "/v1/models", answer(422))
    await run(faulty.client, [directory], journal)
    admin = faulty.stack.admin_credentials
    keys = {"aws_access_key_id": admin.aws_access_key_id, "aws_secret_access_key": admin.aws_secret_access_key}
    async with s3_client(faulty.stack, keys) as s3:
        _, uploaded = next(seen for seen in faulty.s3.seen if seen[0] == "PUT")
        await s3.delete_object(Bucket=faulty.stack.bucket, Key=uploaded.removeprefix(f"/{faulty.stack.bucket}/"))
    (outcome,), report = await run(faulty.client, [directory], journal)
    assert outcome.result is not None
    assert await faulty.contents(outcome.result) == tree_of(directory)
    assert report.size_bytes == sum(report.throughput.buckets)


async def test_bytes_of_an_earlier_run_are_not_counted_as_uploaded(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name)
    faulty.control.plan("POST", "/v1/models", answer(422))
    await run(faulty.client, [directory], journal)
    (outcome,), report = await run(faulty.client, [directory], journal)
    assert outcome.ok
    assert report.size_bytes == sum(report.throughput.buckets) == 0


@pytest.mark.parametrize("status", [409, None], ids=["conflict", "as-the-stack-says"])
async def test_a_commit_that_lands_late_is_not_doubled(faulty: Faulty, tmp_path: Path, name: str, status: int | None) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name)
    late: list[Callable[[], Awaitable[web.Response]]] = []

    async def act_later(request: web.Request, forward: Forward) -> None:
        late.append(forward)
        await lose_request(request, forward)

    async def first_the_late_one(request: web.Request, forward: Forward) -> web.Response:
        await late[0]()
        return await forward() if status is None else web.Response(status=status, text='{"message": "exists"}')

    faulty.control.plan("POST", "/v1/models", act_later)
    (uncertain,), _ = await run(faulty.client, [directory], journal)
    assert isinstance(uncertain.error, ab.CommitUncertain)
    faulty.control.plan("POST", "/v1/models", first_the_late_one)
    await run(faulty.client, [directory], journal)
    (outcome,), _ = await run(faulty.client, [directory], journal)
    assert outcome.result is not None
    assert len(await faulty.client.list_deployments(outcome.result.model.id)) == 1


async def test_a_refused_key_stops_a_run_that_looks_for_earlier_commits(
    local_stack: LocalStack, faulty: Faulty, tmp_path: Path, name: str
) -> None:
    journal = tmp_path / "journal.db"
    directories = [model_dir(tmp_path / str(number), f"{name}-{number}") for number in range(6)]
    faulty.control.plan("POST", "/v1/models", lose_request, times=6)
    await run(faulty.client, directories, journal)
    async with local_stack.client(api_key="wrong") as client:
        outcomes, report = await run(client, directories, journal, concurrency=1)
    assert len(outcomes) == 1
    assert isinstance(outcomes[0].error, ab.CommitUncertain)
    assert "looking for its deployment failed" in str(outcomes[0].error)
    assert report.stopped_by is outcomes[0].error


async def test_a_model_that_an_earlier_run_has_made_is_known(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal = tmp_path / "journal.db"
    first, second = (model_dir(tmp_path / str(number), name, seed=number) for number in range(2))
    await run(faulty.client, [first], journal)
    faulty.control.plan("GET", "/v1/models?name", answer(200, '{"models": []}'), times=5)  # too new to be shown
    outcomes, _ = await run(faulty.client, [first, second], journal, concurrency=1)
    assert [outcome.ok for outcome in outcomes] == [True, True]


async def test_streams_are_known_by_their_models(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal = tmp_path / "journal.db"

    def stream(model: str | None) -> ab.Push:
        async def chunks() -> AsyncIterator[bytes]:
            yield model_archive(name)

        return ab.Push(chunks(), deployment=ab.DeploymentArchivePayload(config={"model_name": model} if model else {}))

    await run(faulty.client, [stream(f"{name}-a")], journal)
    (other,), _ = await run(faulty.client, [stream(f"{name}-b")], journal)
    assert not other.skipped
    assert other.name == f"{name}-b"
    (nameless,), _ = await run(faulty.client, [stream(None)], journal)
    assert isinstance(nameless.error, ab.InvalidPush)
    assert "a stream is known by its model" in str(nameless.error)


async def test_one_id_for_two_pushes_is_refused(faulty: Faulty, tmp_path: Path, name: str) -> None:
    push = ab.Push.from_directory(model_dir(tmp_path / "model", name), labels={"aiobaseten-push-id": name})
    outcomes, _ = await run(faulty.client, [push, push], tmp_path / "journal.db")
    assert sorted(outcome.ok for outcome in outcomes) == [False, True]
    assert any("another push of the run has the id" in str(outcome.error) for outcome in outcomes)


class Unfriendly:
    def __fspath__(self) -> str:
        raise RuntimeError("no path")

    def __repr__(self) -> str:
        raise RuntimeError("no name either")


@pytest.mark.parametrize("with_journal", [False, True])
async def test_a_source_that_breaks_whatever_touches_it_fails_alone(
    faulty: Faulty, tmp_path: Path, name: str, with_journal: bool
) -> None:
    journal = tmp_path / "journal.db" if with_journal else None
    outcomes, _ = await run(faulty.client, [Unfriendly(), model_dir(tmp_path / "model", name)], journal)
    assert sorted(outcome.ok for outcome in outcomes) == [False, True]


@pytest.mark.parametrize("same_name", [True, False], ids=["for-a-name", "for-a-turn"])
async def test_pushes_that_wait_for_others_leave_their_places_free(
    faulty: Faulty, tmp_path: Path, name: str, same_name: bool
) -> None:
    arrived, go_on = anyio.Event(), anyio.Event()
    faulty.s3.plan("PUT", "partNumber=", hold(arrived, go_on), times=60)
    larges = [large(tmp_path / f"large-{number}", name if same_name else f"{name}-{number}") for number in range(8)]

    def pushes() -> Iterator[Path]:
        yield from larges
        yield model_dir(tmp_path / "small", f"{name}-small")

    async with faulty.client.push_many(pushes(), concurrency=8) as started:
        with anyio.fail_after(20):
            outcome = await anext(started)
        assert outcome.name == f"{name}-small"
        go_on.set()
        assert [outcome.ok async for outcome in started] == [True] * 8


async def test_a_wait_for_another_push_can_be_cancelled(faulty: Faulty, tmp_path: Path, name: str) -> None:
    arrived, never = anyio.Event(), anyio.Event()
    faulty.s3.plan("PUT", "partNumber=", hold(arrived, never), times=60)
    larges = [large(tmp_path / f"large-{number}", name) for number in range(3)]
    async with faulty.client.push_many(larges) as started:
        await arrived.wait()
        started.stop()
        assert [outcome async for outcome in started] == []
    assert started.report.interrupted == 3


async def test_credentials_that_were_renewed_are_the_ones_that_are_kept(tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name, weights_bytes=40 * MiB)
    options = ab.Options(retry=OPTIONS.retry, transfer=ab.TransferOptions(max_connections=1))
    expired = answer(400, "<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>")
    async with LocalStack(rekey_on_prepare=False) as stack, faulty_client(stack, options) as faulty:
        keys: list[str] = []

        async def remember(request: web.Request, forward: Forward) -> web.Response:
            given = await forward()
            keys.append(json.loads(given.text or "")["creds"]["aws_access_key_id"])
            return given

        arrived, never = anyio.Event(), anyio.Event()
        faulty.control.plan("POST", "/v1/prepare", remember, times=2)
        faulty.s3.plan("PUT", "partNumber=2", expired)
        faulty.s3.plan("PUT", "partNumber=4", hold(arrived, never))
        async with faulty.client.push_many([directory], journal=journal, journal_credentials=True):
            await arrived.wait()
        with sqlite3.connect(journal) as database:
            kept = database.execute("SELECT access_key_id FROM credentials").fetchall()
        assert len(keys) == 2
        assert kept == [(keys[1],)]
