"""Pushes whose calls are made to fail, through proxies before the real stack."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from support.faulty import Faulty, faulty_client
from support.meddling_proxy import answer, lose_reply, lose_request, meddling_proxy
from support.model_dirs import model_archive, model_dir, tree_of
from support.processes import until

import aiobaseten as ab
from aiobaseten.events import (
    Committed,
    CredentialsRenewed,
    Event,
    PushFailed,
    Reconciling,
    Retrying,
    StatusChanged,
    UploadRestarted,
)
from aiobaseten.local import LocalStack

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MiB = 1024 * 1024
EXPIRED = answer(400, "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>")
COMMITS = {"new": "/v1/models", "existing": "/deployments", "team": "/v1/teams/"}


@pytest.fixture
async def faulty(local_stack: LocalStack) -> AsyncIterator[Faulty]:
    async with faulty_client(local_stack, ab.Options()) as opened:
        yield opened


@pytest.fixture(autouse=True)
async def no_upload_is_left(local_stack: LocalStack) -> AsyncIterator[None]:
    yield
    assert await local_stack.multipart_uploads() == []


async def prepared_push(faulty: Faulty, path: Path, name: str, kind: str) -> ab.Push:
    """A push that ends in the commit call of that kind."""
    if kind == "existing":
        await faulty.client.push(model_dir(path / "before", name))
        faulty.control.seen.clear()
        faulty.events.clear()
    directory = model_dir(path / "model", name)
    if kind == "team":
        (team,) = await faulty.client.list_teams(name="research")
        return ab.Push(directory, team_id=team.id)
    return ab.Push(directory)


@pytest.mark.parametrize("kind", COMMITS)
@pytest.mark.parametrize(
    "fault",
    [lose_reply, answer(502, "<html>bad gateway</html>", act=True), answer(200, "not json", act=True), answer(200, "{}", act=True)],
    ids=["reply-lost", "502", "garbage", "lacks-fields"],
)
async def test_a_commit_whose_answer_is_lost_is_found_again(
    faulty: Faulty, tmp_path: Path, name: str, kind: str, fault: object
) -> None:
    push = await prepared_push(faulty, tmp_path, name, kind)
    faulty.control.plan("POST", COMMITS[kind], fault)  # type: ignore[arg-type]
    result = await faulty.client.push(push)
    assert faulty.control.count("POST", COMMITS[kind]) == 1
    assert result.deployment.labels == {"aiobaseten-push-id": result.push_id}
    deployments = await faulty.client.list_deployments(result.model.id)
    assert len(deployments) == (2 if kind == "existing" else 1)
    assert len(faulty.told(Reconciling)) == 1
    assert len(faulty.told(Committed)) >= 1


@pytest.mark.parametrize("kind", COMMITS)
async def test_a_commit_that_never_arrived_ends_uncertain(faulty: Faulty, tmp_path: Path, name: str, kind: str) -> None:
    push = await prepared_push(faulty, tmp_path, name, kind)
    faulty.control.plan("POST", COMMITS[kind], lose_request)
    started = faulty.clock.clock.monotonic()
    with pytest.raises(ab.CommitUncertain, match="outcome is unknown") as caught:
        await faulty.client.push(push)
    assert faulty.control.count("POST", COMMITS[kind]) == 1
    assert isinstance(caught.value.__cause__, ab.TransportError)
    assert caught.value.push_id
    assert faulty.clock.clock.monotonic() - started >= 45
    assert len(faulty.told(PushFailed)) == 1


async def test_looking_for_a_lost_commit_survives_passing_failures(faulty: Faulty, tmp_path: Path, name: str) -> None:
    faulty.control.plan("POST", "/v1/models", lose_reply)
    push = ab.Push(model_dir(tmp_path / "model", name))
    await faulty.client.check(push)
    faulty.control.plan("GET", "/deployments", answer(503), times=8)
    result = await faulty.client.push(push)
    assert result.model.name == name


async def test_looking_for_a_lost_commit_where_that_is_refused(faulty: Faulty, tmp_path: Path, name: str) -> None:
    faulty.control.plan("POST", "/v1/models", lose_reply)
    faulty.control.plan("GET", "/deployments", answer(403, '{"message": "no"}'))
    with pytest.raises(ab.CommitUncertain) as caught:
        await faulty.client.push(model_dir(tmp_path / "model", name))
    assert caught.value.__cause__ is not None
    assert "looking for the deployment failed" in caught.value.__cause__.__notes__[0]


@pytest.mark.parametrize("deployment_name", [None, "v1"])
@pytest.mark.parametrize("exists", [True, False])
async def test_without_labels_a_lost_commit_is_found_by_names(
    local_stack: LocalStack, tmp_path: Path, name: str, deployment_name: str | None, exists: bool
) -> None:
    async with faulty_client(local_stack, ab.Options(tag_pushes=False)) as faulty:
        kind = "existing" if exists else "new"
        plain = await prepared_push(faulty, tmp_path, name, kind)
        push = ab.Push.from_directory(str(plain.source), deployment_name=deployment_name)
        faulty.control.plan("POST", COMMITS[kind], lose_reply)
        if deployment_name is None:  # nothing tells this push's deployment from another's
            with pytest.raises(ab.CommitUncertain):
                await faulty.client.push(push)
        else:
            result = await faulty.client.push(push)
            assert result.model.name == name
            assert result.deployment.name == deployment_name
        assert faulty.control.count("POST", COMMITS[kind]) == 1


async def test_a_commit_that_is_rate_limited_is_sent_again(faulty: Faulty, tmp_path: Path, name: str) -> None:
    faulty.control.plan("POST", "/v1/models", answer(429, '{"error": "slow down", "retry_after": 7}'))
    result = await faulty.client.push(model_dir(tmp_path / "model", name))
    assert faulty.control.count("POST", "/v1/models") == 2
    assert len(await faulty.client.list_deployments(result.model.id)) == 1
    assert faulty.told(Reconciling) == []
    assert [event.operation for event in faulty.told(Retrying)] == ["create_model"]  # type: ignore[attr-defined]


async def test_a_refused_commit_is_an_error_at_once(faulty: Faulty, tmp_path: Path, name: str) -> None:
    faulty.control.plan("POST", "/v1/models", answer(422, '{"message": "no such accelerator"}', x_request_id="req-7"))
    with pytest.raises(ab.ApiError, match="no such accelerator") as caught:
        await faulty.client.push(model_dir(tmp_path / "model", name))
    assert (caught.value.status, caught.value.request_id) == (422, "req-7")
    assert faulty.control.count("POST", "/v1/models") == 1
    assert faulty.told(Reconciling) == []


@pytest.mark.parametrize("fault", [lose_request, lose_reply, answer(500), answer(429, '{"error": "x", "retry_after": 3}')])
async def test_prepare_is_repeated(faulty: Faulty, tmp_path: Path, name: str, fault: object) -> None:
    faulty.control.plan("POST", "/v1/prepare_model_upload", fault, times=2)  # type: ignore[arg-type]
    result = await faulty.client.push(model_dir(tmp_path / "model", name))
    assert result.model.name == name
    assert faulty.control.count("POST", "/v1/prepare_model_upload") == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<html>", "JSON"),
        ("[]", "object"),
        ('{"creds": null, "s3_bucket": "b", "s3_key": "k", "s3_region": "r"}', "creds"),
        (
            '{"creds": {"aws_access_key_id": "a", "aws_secret_access_key": "hush-hush", "aws_session_token": 7}}',
            "aws_session_token",
        ),
    ],
)
async def test_an_answer_to_prepare_that_is_none(faulty: Faulty, tmp_path: Path, name: str, body: str, message: str) -> None:
    faulty.control.plan("POST", "/v1/prepare_model_upload", answer(200, body), times=9)
    with pytest.raises(ab.ApiError, match=message) as caught:
        await faulty.client.push(model_dir(tmp_path / "model", name))
    assert "hush-hush" not in str(caught.value)
    assert faulty.s3.seen == []


@pytest.mark.parametrize("rekey", [True, False])
@pytest.mark.parametrize("size", [0, 20 * MiB])
async def test_expired_credentials_are_renewed(tmp_path: Path, name: str, rekey: bool, size: int) -> None:
    async with LocalStack(rekey_on_prepare=rekey) as stack, faulty_client(stack, ab.Options()) as faulty:
        directory = model_dir(tmp_path / "model", name, weights_bytes=size)
        faulty.s3.plan("PUT", "partNumber=2" if size else "/", EXPIRED)
        result = await faulty.client.push(directory)
        assert await faulty.contents(result) == tree_of(directory)
        assert faulty.told(CredentialsRenewed) == [CredentialsRenewed(push_id=result.push_id, same_key=not rekey)]
        assert len(faulty.told(UploadRestarted)) == rekey
        assert faulty.control.count("POST", "/v1/prepare_model_upload") == 2
        assert await stack.multipart_uploads() == []


async def test_a_renewal_that_gives_nothing(faulty: Faulty, tmp_path: Path, name: str) -> None:
    directory = model_dir(tmp_path / "model", name)

    async def then_nothing(request: object, forward: object) -> object:
        faulty.control.plan("POST", "/v1/prepare_model_upload", answer(200, "{}"))
        return await EXPIRED(request, forward)  # type: ignore[arg-type]

    faulty.s3.plan("PUT", "/", then_nothing)  # type: ignore[arg-type]
    with pytest.raises(ab.ApiError, match="no upload target"):
        await faulty.client.push(directory)


async def test_credentials_that_may_only_put(tmp_path: Path, name: str) -> None:
    async with LocalStack(put_only=True) as stack, faulty_client(stack, ab.Options()) as faulty:
        directory = model_dir(tmp_path / "model", name, weights_bytes=20 * MiB)
        assert await faulty.contents(await faulty.client.push(directory)) == tree_of(directory)
        denied = "<Error><Code>AccessDenied</Code><Message>the first cause</Message></Error>"
        faulty.s3.plan("PUT", "partNumber=2", answer(403, denied))
        with pytest.raises(ab.UploadDenied, match="the first cause") as caught:
            await faulty.client.push(directory)
        assert "could not be aborted" in caught.value.__notes__[0]


async def test_a_store_that_redirects_gets_nothing_elsewhere(faulty: Faulty, tmp_path: Path, name: str) -> None:
    async with meddling_proxy(faulty.stack.s3_endpoint_url) as elsewhere:
        faulty.s3.plan("PUT", "/", answer(307, Location=f"{elsewhere.url}/x"))
        with pytest.raises(ab.UploadError, match="redirects"):
            await faulty.client.push(model_dir(tmp_path / "model", name))
        assert elsewhere.seen == []


async def test_a_service_that_redirects_gets_no_key_elsewhere(faulty: Faulty, tmp_path: Path, name: str) -> None:
    async with meddling_proxy(faulty.stack.base_url) as elsewhere:
        faulty.control.plan("POST", "/v1/prepare_model_upload", answer(307, Location=f"{elsewhere.url}/v1/x"))
        with pytest.raises(ab.ApiError, match="redirect"):
            await faulty.client.push(model_dir(tmp_path / "model", name))
        assert elsewhere.seen == []


async def test_waiting(faulty: Faulty, tmp_path: Path, name: str) -> None:
    result = await faulty.client.push(model_dir(tmp_path / "model", name))
    model_id, deployment_id = result.model.id, result.deployment.id
    path = f"/deployments/{deployment_id}"
    faulty.stack.set_status(deployment_id, "BUILDING")
    with pytest.raises(ab.DeadlineExceeded, match="BUILDING") as late:
        await faulty.client.wait_until_active(model_id, deployment_id, timeout_s=100)
    assert late.value.retryable
    for status in ("BUILD_FAILED", "BUILD_STOPPED", "DEPLOY_FAILED", "FAILED"):
        faulty.stack.set_status(deployment_id, status)
        with pytest.raises(ab.DeploymentFailed, match=status) as failed:
            await faulty.client.wait_until_active(model_id, deployment_id, timeout_s=100)
        assert (failed.value.status, failed.value.deployment_id) == (status, deployment_id)
    faulty.stack.set_status(deployment_id, "SOMETHING_NEW")
    with pytest.raises(ab.DeadlineExceeded, match="SOMETHING_NEW"):
        await faulty.client.wait_until_active(model_id, deployment_id, timeout_s=1)
    faulty.stack.set_status(deployment_id, "ACTIVE")
    faulty.events.clear()
    faulty.control.plan("GET", path, answer(404, '{"message": "not yet"}'), times=3)
    active = await faulty.client.wait_until_active(model_id, deployment_id, timeout_s=100)
    assert active.status == "ACTIVE"
    assert faulty.told(StatusChanged) == [StatusChanged(model_id=model_id, deployment_id=deployment_id, status="ACTIVE")]
    faulty.control.plan("GET", path, answer(404, '{"message": "not yet"}'), times=99)
    started = faulty.clock.clock.monotonic()
    with pytest.raises(ab.NotFoundError):
        await faulty.client.wait_until_active(model_id, deployment_id, timeout_s=100)
    assert faulty.clock.clock.monotonic() - started >= 30


async def test_an_observer_that_raises_breaks_nothing(
    local_stack: LocalStack, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    failure = RuntimeError("a bad observer")

    def observer(event: Event) -> None:
        raise failure

    async with local_stack.client(observer=observer) as client:
        result = await client.push(model_dir(tmp_path / "model", name))
    assert result.model.name == name
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [failure]


def own_tasks() -> set[asyncio.Task[object]]:
    """Without those of the local stack's server, which has no need to know at once that its caller is gone."""
    tasks = asyncio.all_tasks()
    return {task for task in tasks if not getattr(task.get_coro(), "__qualname__", "").startswith("RequestHandler.")}


@pytest.mark.parametrize("delay_ms", [0, 5, 10, 20, 30, 40, 60, 80, 120, 160, 240])
async def test_cancelling_at_any_moment_leaves_nothing_open(
    local_stack: LocalStack, tmp_path: Path, name: str, delay_ms: int
) -> None:
    archive = model_archive(name, weights_bytes=40 * MiB)
    async with local_stack.client() as client:
        await client.push(ab.Push(model_archive(f"{name}-warm")))
        before = own_tasks()
        with anyio.move_on_after(delay_ms / 1000):
            await client.push(ab.Push(archive))
        assert await local_stack.multipart_uploads() == []
        assert own_tasks() <= before
        assert client._open_planes().engine.connections.budget.used_bytes == 0
        assert client._open_planes().engine.connections.for_parts.borrowed_tokens == 0


def open_files() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 - counted, not looked at


def own_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if "AnyIO worker" not in thread.name}


async def test_cancelled_pushes_leave_no_task_thread_socket_or_file(local_stack: LocalStack, tmp_path: Path, name: str) -> None:
    directory = model_dir(tmp_path / "model", name, weights_bytes=30 * MiB)
    moments = random.Random(3)
    async with local_stack.client() as client:
        await client.push(directory)
    files, threads, tasks = open_files(), own_threads(), len(anyio.get_running_tasks())
    for _ in range(10):
        async with local_stack.client() as client:
            for _ in range(3):
                with anyio.move_on_after(moments.uniform(0, 0.4)):
                    await client.push(directory)
        assert await local_stack.multipart_uploads() == []
        assert own_threads() == threads
        assert client._planes is None
        # The stack's end of each connection is in this process too, and closes a moment later.
        await until(lambda: open_files() <= files and len(anyio.get_running_tasks()) <= tasks)


async def test_a_lost_commit_is_looked_for_although_new_things_are_not_visible_yet(
    faulty: Faulty, tmp_path: Path, name: str
) -> None:
    faulty.control.plan("POST", "/v1/models", lose_reply)
    push = ab.Push(model_dir(tmp_path / "model", name))
    faulty.control.plan("GET", "/deployments", answer(404, '{"message": "not yet"}'), times=2)
    faulty.control.plan("GET", "/deployments", answer(200, "not json"))
    result = await faulty.client.push(push)
    assert result.model.name == name
    assert faulty.control.count("GET", "/deployments") == 4


async def test_two_pushes_of_one_new_model_make_two_deployments_of_it(faulty: Faulty, tmp_path: Path, name: str) -> None:
    directory = model_dir(tmp_path / "model", name)
    results: list[ab.PushResult] = []

    async def push() -> None:
        results.append(await faulty.client.push(directory))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(push)
        tasks.start_soon(push)
    assert len({result.model.id for result in results}) == 1
    deployments = await faulty.client.list_deployments(results[0].model.id)
    assert {deployment.id for deployment in deployments} == {result.deployment.id for result in results}
    assert len(deployments) == 2


async def test_a_conflict_that_stays_is_told(faulty: Faulty, tmp_path: Path, name: str) -> None:
    faulty.control.plan("POST", "/v1/models", answer(409, '{"message": "taken"}'), times=9)
    with pytest.raises(ab.ApiError, match="taken"):
        await faulty.client.push(model_dir(tmp_path / "model", name))
    assert faulty.control.count("POST", "/v1/models") == 2


async def test_the_only_team_with_a_model_of_the_name(faulty: Faulty, tmp_path: Path, name: str) -> None:
    (team,) = await faulty.client.list_teams(name="research")
    directory = model_dir(tmp_path / "model", name)
    first = await faulty.client.push(ab.Push(directory, team_id=team.id))
    assert (await faulty.client.push(directory)).model.id == first.model.id


async def test_waiting_outlasts_an_outage_and_keeps_its_limit(faulty: Faulty, tmp_path: Path, name: str) -> None:
    result = await faulty.client.push(model_dir(tmp_path / "model", name))
    ids = (result.model.id, result.deployment.id)
    path = f"/deployments/{ids[1]}"
    faulty.stack.set_status(ids[1], "ACTIVE")
    faulty.control.plan("GET", path, answer(503), times=20)
    assert (await faulty.client.wait_until_active(*ids, timeout_s=1800)).status == "ACTIVE"
    faulty.control.plan("GET", path, answer(503), times=999)
    with pytest.raises(ab.DeadlineExceeded, match="503"):
        await faulty.client.wait_until_active(*ids, timeout_s=300)
    faulty.control.plans.clear()
    faulty.control.plan("GET", path, answer(403, '{"message": "no"}'))
    with pytest.raises(ab.AuthenticationError):
        await faulty.client.wait_until_active(*ids, timeout_s=300)
    for timeout_s in (float("nan"), float("inf"), -5, "5"):
        with pytest.raises(ab.ConfigurationError, match="timeout_s"):
            await faulty.client.wait_until_active(*ids, timeout_s=timeout_s)  # type: ignore[arg-type]


async def test_every_failed_push_is_told(faulty: Faulty, name: str) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 100
        raise ZeroDivisionError("the stream's own error")

    deployment = ab.DeploymentArchivePayload(config={"model_name": name})
    with pytest.raises(ZeroDivisionError):
        await faulty.client.push(ab.Push(broken(), deployment=deployment))
    assert [event.error for event in faulty.told(PushFailed)] == ["the stream's own error"]  # type: ignore[attr-defined]
    faulty.events.clear()

    async def endless() -> AsyncIterator[bytes]:
        await anyio.sleep_forever()
        yield b""

    with anyio.move_on_after(0.05):
        await faulty.client.push(ab.Push(endless(), deployment=deployment))
    assert len(faulty.told(PushFailed)) == 1


async def test_upload_wants_a_target(faulty: Faulty, name: str) -> None:
    request = ab.PrepareModelUploadRequest(name=name, deployment=ab.DeploymentArchivePayload(config={}))
    response = await faulty.client.prepare_model_upload(request)
    with pytest.raises(ab.InvalidPush, match=r"response\.target"):
        await faulty.client.upload(response, b"archive")  # type: ignore[arg-type]
