"""The local stack as a whole: its parts on their own are tested beside it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import socket
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import attrs
import pytest
from support.processes import command_lines, names_in, processes_of, until
from support.rest import CONFIG, make_tar, rest, s3_client, upload

from aiobaseten.errors import AuthenticationError, ConfigurationError
from aiobaseten.local import AdminCredentials, LocalStack, LocalStackError, UnfinishedUpload
from aiobaseten.models import DeploymentArchivePayload, PrepareModelUploadRequest

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def is_open(url: str) -> bool:
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname, address.port)) == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"api_key": ""}, "LocalStack.api_key must be printable ASCII"),
        ({"api_key": "two words"}, "LocalStack.api_key must be printable ASCII"),
        ({"api_key": "line\n"}, "LocalStack.api_key must be printable ASCII"),
        ({"api_key": "schl\xfcssel"}, "LocalStack.api_key must be printable ASCII"),
        ({"api_key": 3}, "LocalStack.api_key must be printable ASCII"),
        ({"data_dir": 3}, "LocalStack.data_dir must be a path, not 3"),
        ({"teams": ("a", 1)}, "LocalStack.teams must be one or more different names"),
        ({"teams": ()}, "LocalStack.teams must be one or more different names"),
        ({"teams": "default"}, "LocalStack.teams must be one or more different names"),
        ({"teams": ("a", "a")}, "LocalStack.teams must be one or more different names"),
        ({"teams": ("a", "")}, "LocalStack.teams must be one or more different names"),
    ],
)
def test_arguments_that_cannot_work(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        LocalStack(**arguments)


async def test_nothing_is_there_before_and_after() -> None:
    stack = LocalStack()
    for attribute in ("base_url", "s3_endpoint_url", "bucket", "admin_credentials"):
        with pytest.raises(LocalStackError, match="is not running"):
            getattr(stack, attribute)
    with pytest.raises(LocalStackError, match="is not running"):
        await stack.multipart_uploads()

    urls = []
    # One stack can be used again, and is then as new.
    for _ in range(2):
        async with stack as entered:
            assert entered is stack
            urls += [stack.base_url, stack.s3_endpoint_url]
            assert all(map(is_open, urls[-2:]))
            made = await rest(stack).push("only-in-memory")
            assert made.status == 200
            with pytest.raises(LocalStackError, match="running already"):
                await stack.__aenter__()
            assert all(map(is_open, urls[-2:]))
        assert not any(map(is_open, urls))
        with pytest.raises(LocalStackError, match="is not running"):
            _ = stack.base_url


async def test_secrets_are_not_shown(local_stack: LocalStack) -> None:
    credentials = local_stack.admin_credentials
    assert credentials.aws_session_token is None
    for secret in (credentials.aws_access_key_id, credentials.aws_secret_access_key):
        assert len(secret) > 16
        assert secret not in repr(credentials)


async def test_the_administrator_sees_what_was_uploaded(local_stack: LocalStack) -> None:
    content = random.Random(1).randbytes(12 * 1024 * 1024 + 17)
    credentials = local_stack.admin_credentials
    keys = {
        "aws_access_key_id": credentials.aws_access_key_id,
        "aws_secret_access_key": credentials.aws_secret_access_key,
        "aws_session_token": credentials.aws_session_token,
    }
    key = f"test/{uuid.uuid4().hex}/sp ace+\u00e9~%41?.bin"
    async with s3_client(local_stack, keys) as s3:
        await s3.put_object(Bucket=local_stack.bucket, Key=key, Body=content, ContentEncoding="gzip")
        upload_id = (await s3.create_multipart_upload(Bucket=local_stack.bucket, Key=key))["UploadId"]
        assert UnfinishedUpload(key=key, upload_id=upload_id) in await local_stack.multipart_uploads()
        await s3.abort_multipart_upload(Bucket=local_stack.bucket, Key=key, UploadId=upload_id)
    assert UnfinishedUpload(key=key, upload_id=upload_id) not in await local_stack.multipart_uploads()
    assert await local_stack.read_object(key) == content
    assert await local_stack.object_digest(key) == (len(content), hashlib.sha256(content).hexdigest())
    for missing in (local_stack.read_object, local_stack.object_digest):
        with pytest.raises(LocalStackError, match=r"there is no '.*/nothing' in the local S3"):
            await missing("test/nothing")


async def test_the_client_is_wired_to_the_stack(local_stack: LocalStack) -> None:
    request = PrepareModelUploadRequest(name=f"wired-{uuid.uuid4().hex}", deployment=DeploymentArchivePayload(config=CONFIG))
    async with local_stack.client() as client:
        prepared = await client.prepare_model_upload(request)
        assert prepared.s3_bucket == local_stack.bucket
        assert [team.name for team in await client.list_teams()] == ["default", "research"]
    async with local_stack.client(auth_scheme="Api-Key") as client:
        assert len(await client.list_models(name="nothing")) == 0
    async with local_stack.client(api_key="another") as client:
        with pytest.raises(AuthenticationError, match="the API key is not valid"):
            await client.list_teams()


async def test_a_large_archive_is_told_by_its_headers(local_stack: LocalStack) -> None:
    api = rest(local_stack)
    weights = random.Random(2).randbytes(3_000_000)
    for compress in (False, True):
        archive = make_tar({"a/weights": weights, "b/weights": weights, "config.yaml": b"a: 1"}, compress=compress)
        made = await api.push(f"large-{uuid.uuid4().hex}", archive=archive)
        assert made.status == 200
        key = local_stack.deployment_key(made.body["deployment"]["id"])
        assert key is not None
        assert await local_stack.object_digest(key) == (len(archive), hashlib.sha256(archive).hexdigest())


async def test_what_the_store_refuses_is_told(local_stack: LocalStack) -> None:
    assert local_stack._state is not None
    wrong = AdminCredentials(aws_access_key_id="ADMINNOBODY", aws_secret_access_key="wrong")
    objects = attrs.evolve(local_stack._state.objects, credentials=wrong)
    with pytest.raises(LocalStackError, match=r"answered GET 'model-archives' with 403: (?s:.*)InvalidAccessKeyId"):
        await objects.unfinished_uploads()
    assert not await objects.is_ready()


async def test_entering_and_leaving_in_different_tasks() -> None:
    stack = LocalStack()
    await asyncio.create_task(stack.__aenter__())
    assert (await rest(stack).call("GET", "/v1/models")).status == 200
    url = stack.s3_endpoint_url
    await asyncio.create_task(stack.__aexit__(None, None, None))
    assert not is_open(url)
    await stack.__aexit__(None, None, None)


async def test_two_stacks_side_by_side_know_nothing_of_each_other(local_stack: LocalStack) -> None:
    name = f"side-{uuid.uuid4().hex}"
    async with LocalStack() as other:
        prepared = (await rest(other).prepare(name=name)).body
        await upload(other, prepared)
        assert (await rest(local_stack).prepare(name=name)).status == 200
        foreign = await rest(local_stack).commit("/v1/models", name=name, s3_key=prepared["s3_key"])
        assert foreign.status == 400
        with pytest.raises(LocalStackError, match="there is no"):
            await local_stack.read_object(prepared["s3_key"])
        with pytest.raises(Exception, match=r"InvalidAccessKeyId|AccessDenied|InvalidToken|Forbidden"):
            await upload(local_stack, prepared)
        assert await other.read_object(prepared["s3_key"]) == make_tar()


async def test_the_environment_has_no_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nonsense = {
        "AWS_ACCESS_KEY_ID": "nonsense",
        "AWS_SECRET_ACCESS_KEY": "nonsense",
        "AWS_SESSION_TOKEN": "nonsense",
        "AWS_PROFILE": "no-such-profile",
        "AWS_CONFIG_FILE": str(tmp_path),
        "AWS_REGION": "mars-1",
        "AWS_DEFAULT_REGION": "mars-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_CA_BUNDLE": "/nowhere",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "HOME": "/nowhere",
        "WEED_LEVELDB2_ENABLED": "false",
        "WEED_MASTER_MAINTENANCE_SCRIPTS": "nonsense",
        "S3_EXTERNAL_URL": "http://example.invalid",
    }
    for name, value in nonsense.items():
        monkeypatch.setenv(name, value)
    async with LocalStack() as stack:
        monkeypatch.undo()
        assert (await rest(stack).push("model")).status == 200


async def test_it_ends_with_a_body_that_raises() -> None:
    urls: list[str] = []

    async def run() -> None:
        async with LocalStack() as stack:
            urls.append(stack.s3_endpoint_url)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run()
    assert len(urls) == 1
    assert not is_open(urls[0])


async def test_it_ends_when_it_is_cancelled() -> None:
    urls: list[str] = []
    with anyio.CancelScope() as scope:
        async with LocalStack() as stack:
            urls += [stack.base_url, stack.s3_endpoint_url]
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert len(urls) == 2
    assert not any(map(is_open, urls))


@pytest.mark.parametrize("after_s", [0, 0.02, 0.3, 1.0, 1.8])
async def test_cancellation_while_it_starts_leaves_nothing(after_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stack = LocalStack()
    with anyio.move_on_after(after_s) as scope:
        async with stack:
            pytest.fail("started sooner than it can")
    assert scope.cancelled_caught
    assert names_in(tmp_path) == []
    assert not any(str(tmp_path) in command for command in command_lines().values())
    with pytest.raises(LocalStackError, match="is not running"):
        _ = stack.base_url


async def test_a_seaweedfs_that_is_gone_is_told_as_503() -> None:
    async with LocalStack() as stack:
        api = rest(stack)
        prepared = (await api.prepare(name="model")).body
        await upload(stack, prepared)
        os.kill(processes_of(stack.s3_endpoint_url)["weed"], signal.SIGKILL)
        url = stack.s3_endpoint_url
        await until(lambda: not is_open(url))
        answers = [
            await api.prepare(name="model"),
            await api.commit("/v1/models", name="model", s3_key=prepared["s3_key"]),
        ]
        for answer in answers:
            assert answer.status == 503
            assert "the local S3 did not answer" in answer.message
        assert (await api.call("GET", "/v1/models")).status == 200
        with pytest.raises(LocalStackError, match="did not answer") as raised:
            await stack.multipart_uploads()
        assert raised.value.__cause__ is not None
