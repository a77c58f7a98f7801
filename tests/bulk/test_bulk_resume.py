"""Runs that go on where an earlier one ended, over one journal and the real stack."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from support.faulty import Faulty, faulty_client
from support.meddling_proxy import answer, hold, lose_reply, lose_request
from support.model_dirs import model_archive, model_dir, tree_of
from support.rest import s3_client

import aiobaseten as ab
from aiobaseten.bulk.journal_file import JournalFile
from aiobaseten.events import Prepared, Reconciling, UploadAborted, UploadResumed
from aiobaseten.local import LocalStack

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MiB = 1024 * 1024
OPTIONS = ab.Options(retry=ab.RetryOptions(max_attempts=1), transfer=ab.TransferOptions(max_connections=1))
DENIED = answer(403, "<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
NO_DISK = answer(400, "<Error><Code>InvalidRequest</Code><Message>no</Message></Error>")


@pytest.fixture
async def faulty(local_stack: LocalStack) -> AsyncIterator[Faulty]:
    async with faulty_client(local_stack, OPTIONS) as opened:
        yield opened


@pytest.fixture(autouse=True)
async def no_upload_stays(local_stack: LocalStack) -> AsyncIterator[None]:
    yield
    await abort_all(local_stack)


async def run(client: ab.Client, pushes: list[ab.Push | Path], journal: Path, **options: object) -> list[ab.PushOutcome]:
    async with client.push_many(pushes, journal=journal, **options) as started:  # type: ignore[arg-type]
        return [outcome async for outcome in started]


async def run_one(client: ab.Client, push: ab.Push | Path, journal: Path, **options: object) -> ab.PushOutcome:
    (outcome,) = await run(client, [push], journal, **options)
    return outcome


def states(journal: Path) -> dict[str, str]:
    with sqlite3.connect(journal) as database:
        return dict(database.execute("SELECT name, state FROM pushes"))


async def test_what_is_committed_is_skipped_with_its_result(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal = tmp_path / "journal.db"
    directories: list[ab.Push | Path] = [model_dir(tmp_path / str(number), f"{name}-{number}") for number in range(3)]
    first = {outcome.name: outcome for outcome in await run(faulty.client, directories, journal)}
    faulty.control.seen.clear()
    faulty.s3.seen.clear()
    second = await run(faulty.client, directories, journal)
    assert faulty.control.seen == faulty.s3.seen == []
    for outcome in second:
        assert outcome.skipped
        assert outcome.ok
        assert outcome.record.state == "skipped"
        before = first[outcome.name]
        assert before.result is not None
        assert outcome.result is not None
        assert (outcome.result.model, outcome.result.deployment) == (before.result.model, before.result.deployment)
        assert (outcome.result.push_id, outcome.result.upload) == (before.result.push_id, before.result.upload)
    assert set(states(journal).values()) == {"committed"}


async def test_a_later_run_can_wait_for_what_an_earlier_one_committed(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name)
    await run_one(faulty.client, directory, journal)
    async with faulty.stack.client() as client:
        outcome = await run_one(client, directory, journal, wait_timeout_s=30)
    assert outcome.skipped
    assert outcome.result is not None
    assert outcome.result.deployment.status == "ACTIVE"
    assert set(states(journal).values()) == {"active"}


async def test_the_same_push_twice_is_two_pushes(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name)
    archive = model_archive(name)
    first = await run(faulty.client, [directory, directory, ab.Push(archive)], journal)
    assert len({outcome.result.deployment.id for outcome in first if outcome.result}) == 3
    second = await run(faulty.client, [directory, directory, directory, ab.Push(bytearray(archive))], journal)
    assert sorted(outcome.skipped for outcome in second) == [False, True, True, True]
    other_target = await run_one(faulty.client, ab.Push.from_directory(directory, deployment_name="v2"), journal)
    assert not other_target.skipped


async def test_an_id_of_its_own_names_a_push(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal = tmp_path / "journal.db"
    labels = {"aiobaseten-push-id": f"{name}-7"}
    first = await run_one(faulty.client, ab.Push.from_directory(model_dir(tmp_path / "one", name), labels=labels), journal)
    assert first.record.push_id == f"{name}-7"
    again = await run_one(faulty.client, ab.Push.from_directory(model_dir(tmp_path / "two", name), labels=labels), journal)
    assert again.skipped


async def test_failed_pushes_are_begun_again(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name)
    faulty.control.plan("POST", "/v1/prepare_model_upload", answer(422, '{"message": "no"}'))
    failed = await run_one(faulty.client, directory, journal)
    assert isinstance(failed.error, ab.ApiError)
    assert set(states(journal).values()) == {"failed"}
    outcome = await run_one(faulty.client, directory, journal)
    assert outcome.ok
    assert not outcome.skipped
    assert outcome.record.push_id == failed.record.push_id


async def abort_all(stack: LocalStack) -> None:
    admin = stack.admin_credentials
    keys = {"aws_access_key_id": admin.aws_access_key_id, "aws_secret_access_key": admin.aws_secret_access_key}
    async with s3_client(stack, keys) as s3:
        for left in await stack.multipart_uploads():
            await s3.abort_multipart_upload(Bucket=stack.bucket, Key=left.key, UploadId=left.upload_id)


async def half_uploaded(faulty: Faulty, directory: Path, journal: Path, *, keep: bool) -> None:
    """A run that ends with parts at the store that it could not remove."""
    faulty.s3.plan("PUT", "partNumber=3", NO_DISK)
    faulty.s3.plan("DELETE", "uploadId", DENIED)
    outcome = await run_one(faulty.client, directory, journal, journal_credentials=keep)
    assert isinstance(outcome.error, ab.UploadError)
    assert len(await faulty.stack.multipart_uploads()) == 1
    faulty.events.clear()
    faulty.s3.seen.clear()


async def test_a_multipart_upload_goes_on_with_the_parts_that_are_missing(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name, weights_bytes=60 * MiB)
    await half_uploaded(faulty, directory, journal, keep=True)
    outcome = await run_one(faulty.client, directory, journal, journal_credentials=True)
    assert outcome.result is not None
    (resumed,) = faulty.told(UploadResumed)
    assert isinstance(resumed, UploadResumed)
    assert resumed.parts == 2
    assert faulty.told(Prepared) == []
    assert faulty.s3.count("POST", "uploads") == 0
    assert faulty.s3.count("PUT", "partNumber") == 6
    assert outcome.result.upload is not None
    assert outcome.result.upload.verified
    assert await faulty.contents(outcome.result) == tree_of(directory)
    assert await faulty.stack.multipart_uploads() == []


async def test_an_upload_to_the_same_key_goes_on_without_kept_credentials(tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name, weights_bytes=60 * MiB)
    async with LocalStack(rekey_on_prepare=False) as stack, faulty_client(stack, OPTIONS) as faulty:
        await half_uploaded(faulty, directory, journal, keep=False)
        outcome = await run_one(faulty.client, directory, journal)
        assert outcome.result is not None
        assert len(faulty.told(UploadResumed)) == len(faulty.told(Prepared)) == 1
        assert await faulty.contents(outcome.result) == tree_of(directory)
        assert await stack.multipart_uploads() == []


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "not-kept"])
async def test_an_upload_whose_source_changed_starts_over_and_the_old_one_is_aborted_if_it_may_be(
    local_stack: LocalStack, faulty: Faulty, tmp_path: Path, name: str, keep: bool
) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name, weights_bytes=60 * MiB)
    await half_uploaded(faulty, directory, journal, keep=keep)
    (left,) = await local_stack.multipart_uploads()
    (directory / "more.txt").write_text("more")
    outcome = await run_one(faulty.client, directory, journal, journal_credentials=keep)
    assert outcome.result is not None
    assert faulty.told(UploadResumed) == []
    (aborted,) = faulty.told(UploadAborted)
    assert isinstance(aborted, UploadAborted)
    assert (aborted.upload_id, aborted.error is None) == (left.upload_id, keep)
    assert await faulty.contents(outcome.result) == tree_of(directory)
    remaining = await local_stack.multipart_uploads()
    assert remaining == ([] if keep else [left])


async def test_kept_credentials_that_are_refused_give_way_to_new_ones(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name, weights_bytes=60 * MiB)
    await half_uploaded(faulty, directory, journal, keep=True)
    faulty.s3.plan("PUT", "partNumber", DENIED)
    outcome = await run_one(faulty.client, directory, journal, journal_credentials=True)
    assert outcome.result is not None
    assert len(faulty.told(Prepared)) == 1
    assert await faulty.contents(outcome.result) == tree_of(directory)


async def test_an_upload_that_is_gone_starts_over(local_stack: LocalStack, faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name, weights_bytes=60 * MiB)
    await half_uploaded(faulty, directory, journal, keep=True)
    await abort_all(local_stack)
    outcome = await run_one(faulty.client, directory, journal, journal_credentials=True)
    assert outcome.result is not None
    assert await faulty.contents(outcome.result) == tree_of(directory)
    assert await local_stack.multipart_uploads() == []


async def test_a_finished_upload_is_not_made_again(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name)
    faulty.control.plan("POST", "/v1/models", answer(422, '{"message": "not now"}'))
    assert not (await run_one(faulty.client, directory, journal)).ok
    faulty.s3.seen.clear()
    outcome = await run_one(faulty.client, directory, journal)
    assert outcome.result is not None
    assert faulty.s3.seen == []
    assert faulty.control.count("POST", "/v1/prepare_model_upload") == 1
    assert await faulty.contents(outcome.result) == tree_of(directory)


async def test_a_finished_upload_is_made_again_for_other_settings(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name)
    faulty.control.plan("POST", "/v1/models", answer(422, '{"message": "not now"}'))
    assert not (await run_one(faulty.client, directory, journal)).ok
    outcome = await run_one(faulty.client, ab.Push.from_directory(directory, labels={"a": "b"}), journal)
    assert outcome.result is not None
    assert faulty.control.count("POST", "/v1/prepare_model_upload") == 2
    assert outcome.result.deployment.labels == {"a": "b", "aiobaseten-push-id": outcome.record.push_id}


@pytest.mark.parametrize("acted", [True, False], ids=["acted", "never-arrived"])
@pytest.mark.parametrize("kind", ["new", "existing", "team"])
async def test_an_uncertain_commit_is_looked_for_before_it_is_sent_again(
    faulty: Faulty, tmp_path: Path, name: str, kind: str, acted: bool
) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name)
    commits = {"new": "/v1/models", "existing": "/deployments", "team": "/v1/teams/"}[kind]
    push = ab.Push(directory)
    if kind == "existing":
        await faulty.client.push(directory)
    if kind == "team":
        (team,) = await faulty.client.list_teams(name="research")
        push = ab.Push(directory, team_id=team.id)
    before = faulty.control.count("POST", commits)
    arrived, never = anyio.Event(), anyio.Event()

    async def killed(request: object, forward: object) -> None:
        if acted:
            await forward()  # type: ignore[operator]
        arrived.set()
        await never.wait()

    faulty.control.plan("POST", commits, killed)  # type: ignore[arg-type]
    async with faulty.client.push_many([push], journal=journal):
        await arrived.wait()
    assert set(states(journal).values()) == {"committing"}
    faulty.events.clear()
    outcome = await run_one(faulty.client, push, journal)
    assert outcome.result is not None
    assert len(faulty.told(Reconciling)) == 1
    assert faulty.control.count("POST", commits) - before == (1 if acted else 2)
    assert (faulty.clock.slept_s >= 40) is not acted
    assert faulty.s3.count("PUT", "") == (1 if kind != "existing" else 2)
    deployments = await faulty.client.list_deployments(outcome.result.model.id)
    assert len(deployments) == (2 if kind == "existing" else 1)


async def test_the_window_counts_from_the_attempt_that_the_journal_dated(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name)
    arrived, never = anyio.Event(), anyio.Event()
    faulty.control.plan("POST", "/v1/models", answer(429, '{"error": "later", "retry_after": 100}'))
    faulty.control.plan("POST", "/v1/models", hold(arrived, never))
    async with faulty.client.push_many([directory], journal=journal):
        await arrived.wait()
    faulty.clock.now_s += 30
    slept_s = faulty.clock.slept_s
    assert (await run_one(faulty.client, directory, journal)).ok
    assert 15 <= faulty.clock.slept_s - slept_s < 16


async def test_a_window_that_has_passed_is_not_waited_for(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name)
    faulty.control.plan("POST", "/v1/models", lose_request)
    uncertain = await run_one(faulty.client, directory, journal)
    assert isinstance(uncertain.error, ab.CommitUncertain)
    assert set(states(journal).values()) == {"committing"}
    slept_s = faulty.clock.slept_s
    outcome = await run_one(faulty.client, directory, journal)
    assert outcome.ok
    assert faulty.clock.slept_s == slept_s
    assert faulty.control.count("POST", "/v1/models") == 2


async def test_where_the_look_fails_nothing_is_sent(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name)
    faulty.control.plan("POST", "/v1/models", lose_reply)
    faulty.control.plan("GET", "/deployments", answer(503), times=99)
    uncertain = await run_one(faulty.client, directory, journal)
    assert isinstance(uncertain.error, ab.CommitUncertain)
    again = await run_one(faulty.client, directory, journal)
    assert isinstance(again.error, ab.CommitUncertain)
    assert isinstance(again.error.__cause__, ab.ServerError)
    faulty.control.plans.clear()
    outcome = await run_one(faulty.client, directory, journal)
    assert outcome.result is not None
    assert faulty.control.count("POST", "/v1/models") == 1
    assert len(await faulty.client.list_deployments(outcome.result.model.id)) == 1


@pytest.mark.parametrize("deployment_name", [None, "v1"])
async def test_without_labels_a_commit_is_sent_again_only_if_its_name_could_be_found(
    local_stack: LocalStack, tmp_path: Path, name: str, deployment_name: str | None
) -> None:
    journal = tmp_path / "journal.db"
    push = ab.Push.from_directory(model_dir(tmp_path / "model", name), deployment_name=deployment_name)
    async with faulty_client(local_stack, ab.Options(tag_pushes=False, retry=OPTIONS.retry)) as faulty:
        faulty.control.plan("POST", "/v1/models", lose_request)
        assert isinstance((await run_one(faulty.client, push, journal)).error, ab.CommitUncertain)
        outcome = await run_one(faulty.client, push, journal)
        assert outcome.ok is (deployment_name is not None)
        assert faulty.control.count("POST", "/v1/models") == (1 if deployment_name is None else 2)
        if not outcome.ok:
            assert isinstance(outcome.error, ab.CommitUncertain)
            assert "no label and no name" in str(outcome.error)


async def test_a_run_that_was_stopped_goes_on(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal = tmp_path / "journal.db"
    arrived, never = anyio.Event(), anyio.Event()
    large = model_dir(tmp_path / "large", f"{name}-large", weights_bytes=20 * MiB)
    smalls: list[ab.Push | Path] = [model_dir(tmp_path / str(number), f"{name}-{number}") for number in range(3)]
    faulty.s3.plan("PUT", "partNumber=2", hold(arrived, never))
    async with faulty.client.push_many([large, *smalls], journal=journal) as started:
        for _ in smalls:
            assert (await anext(started)).ok
        await arrived.wait()
        started.stop()
        assert [outcome async for outcome in started] == []
    assert await faulty.stack.multipart_uploads() == []
    outcomes = await run(faulty.client, [large, *smalls], journal)
    assert sorted(outcome.skipped for outcome in outcomes) == [False, True, True, True]
    assert all(outcome.ok for outcome in outcomes)
    deployed = [await faulty.client.list_models(name=outcome.name) for outcome in outcomes]
    assert [len(found) for found in deployed] == [1] * 4


def contents_on_disk(journal: Path) -> bytes:
    return b"".join(file.read_bytes() for file in journal.parent.glob(f"{journal.name}*"))


def full_disk(*_: object) -> None:
    raise sqlite3.OperationalError("database or disk is full")


async def test_a_journal_that_fails_ends_the_run_with_its_error(
    faulty: Faulty, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "journal.db"
    directories: list[ab.Push | Path] = [model_dir(tmp_path / str(number), f"{name}-{number}") for number in range(6)]

    async with faulty.client.push_many(directories, journal=journal, concurrency=1) as started:
        outcomes = [await anext(started)]
        monkeypatch.setattr(JournalFile, "write", full_disk)
        with pytest.raises(ab.JournalError, match="full"):
            outcomes.extend([outcome async for outcome in started])
    monkeypatch.undo()
    assert outcomes[0].ok
    again = await run(faulty.client, directories, journal)
    assert all(outcome.ok for outcome in again)
    assert sum(outcome.skipped for outcome in again) >= 1
    for outcome in again:
        assert outcome.result is not None
        assert len(await faulty.client.list_deployments(outcome.result.model.id)) == 1


async def test_a_journal_in_use_is_refused_before_anything_is_sent(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name)
    async with faulty.client.push_many([], journal=journal):
        with pytest.raises(ab.JournalError, match="in use"):
            await faulty.client.push_all([directory], journal=journal)
    assert faulty.control.seen == []
    assert (await faulty.client.push_all([directory], journal=journal)).ok


async def test_no_secret_is_in_the_journal_unasked(faulty: Faulty, tmp_path: Path, name: str) -> None:
    journal, directory = tmp_path / "journal.db", model_dir(tmp_path / "model", name, weights_bytes=60 * MiB)
    secrets: list[str] = []

    async def remember(request: object, forward: Callable[[], Awaitable[web.Response]]) -> web.Response:
        given = await forward()
        assert isinstance(given.body, bytes)
        secrets.extend(json.loads(given.body)["creds"].values())
        return given

    faulty.control.plan("POST", "/v1/prepare_model_upload", remember)
    await half_uploaded(faulty, directory, journal, keep=False)
    content = contents_on_disk(journal)
    assert faulty.stack.api_key.encode() not in content
    assert secrets
    assert not any(secret.encode() in content for secret in secrets)
