"""The public names as users write them. Never run: mypy and pyright check it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, assert_type

import aiobaseten as ab
from aiobaseten.local import LocalStack


async def chunks() -> AsyncIterator[bytes]:
    yield b""


def observe(event: ab.Event) -> None:
    assert_type(event.push_id, str)


class Observing:
    def __call__(self, event: ab.Event, /) -> None:
        del event


options = ab.Options(
    transfer=ab.TransferOptions(
        part_size_bytes=16 * 1024 * 1024,
        max_connections=None,
        memory_budget_bytes=1 << 28,
        checksum="crc32c",
        multipart_threshold_bytes=8 * 1024 * 1024,
    ),
    retry=ab.RetryOptions(max_attempts=3, initial_backoff_s=0.1, max_backoff_s=5),
    timeouts=ab.TimeoutOptions(connect_s=5, read_s=30, abort_s=5),
    requests_per_s=None,
    ca_bundle=Path("authority.pem"),
    tag_pushes=False,
)


async def push_everything() -> None:
    async with ab.Client() as client:
        assert_type(await client.push("./my-model"), ab.PushResult)
        result = await client.push(Path("./my-model"))
        assert_type(result.model, ab.Model)
        assert_type(result.deployment, ab.Deployment)
        assert_type(result.upload, ab.UploadReceipt | None)
        assert_type(result.ignored, tuple[ab.Ignored, ...])
        await client.push(ab.Push(b"archive", name="m", existing="error"))
        await client.push(ab.Push(bytearray(), model_id="abc"))
        await client.push(ab.Push(memoryview(b""), team_id="t", disable_archive_download=True))
        await client.push(ab.Push(chunks(), deployment=ab.DeploymentArchivePayload(config={"model_name": "m"})))
        await client.push(ab.Push.from_directory("./my-model", environment_name="production", symlinks="follow"))
        checked = await client.check(ab.Push("./my-model"))
        assert_type(checked.size_bytes, int | None)
        assert_type(await client.wait_until_active("m", "d", timeout_s=60), ab.Deployment)


async def push_many() -> None:
    async with ab.Client() as client:
        async with client.push_many(["./one", Path("./two"), ab.Push(b"archive", name="m")], journal="deploy.db") as run:
            async for outcome in run:
                assert_type(outcome, ab.PushOutcome)
                assert_type(outcome.push, ab.Push)
                assert_type(outcome.result, ab.PushResult | None)
                assert_type(outcome.error, Exception | None)
                assert_type(outcome.record.state, Literal["committed", "active", "failed", "skipped"])
            run.stop()
        assert_type(run.report, ab.BulkReport)
        assert_type(run.report.failures_by_cause, Counter[str])

        async def endless() -> AsyncIterator[ab.Push]:
            yield ab.Push("./model")

        report = await client.push_all(endless(), fail_fast=True, concurrency=8, max_attempts=1, wait_timeout_s=600)
        assert_type(report, ab.BulkReport)
        manifest = await ab.load_manifest("deploy.yaml")
        await client.push_all((entry.push for entry in manifest.entries), journal=Path("j.db"), journal_credentials=True)


async def call_by_call(auth_scheme: str) -> None:
    client = ab.Client(
        "key",
        base_url="https://api.baseten.co",
        s3_endpoint_url="https://s3.example.com",
        auth_scheme="Api-Key" if auth_scheme == "Api-Key" else "Bearer",
        options=options,
        observer=Observing(),
    )
    async with client as opened:
        deployment = ab.DeploymentArchivePayload(config={"model_name": "m"}, labels={"a": 1}, environment_name="production")
        request = ab.PrepareModelUploadRequest(deployment=deployment, name="m", dry_run=False)
        response = await opened.prepare_model_upload(request)
        assert_type(response, ab.PrepareModelUploadResponse)
        assert_type(response.creds, ab.AWSCredentials | None)
        if response.target is not None:
            assert_type(response.target, ab.UploadTarget)
            receipt = await opened.upload(response.target, "model.tgz")
            assert_type(receipt, ab.UploadReceipt)
            source = ab.ModelArchiveSource(name="m", deployment=deployment, s3_key=receipt.key)
            created = await opened.create_model(source, team_id=None)
            assert_type(created, ab.CreatedModelDeployment)
            await opened.create_deployment("id", ab.DeploymentArchiveSource(deployment=deployment, s3_key=receipt.key))
        assert_type(await opened.list_models(name="m", team_id="t"), tuple[ab.Model, ...])
        assert_type(await opened.list_deployments("m", name="d"), tuple[ab.Deployment, ...])
        assert_type(await opened.get_deployment("m", "d"), ab.Deployment)
        assert_type(await opened.list_teams(name="t"), tuple[ab.Team, ...])


async def handle_errors(client: ab.Client) -> None:
    try:
        await client.push("./my-model")
    except ab.InvalidPush as error:
        assert_type(error.problems, tuple[ab.Problem, ...])
    except ab.ApiError as error:
        assert_type(error.status, int | None)
        assert_type(error.request_id, str | None)
    except ab.UploadError as error:
        assert_type(error.code, str | None)
    except ab.CommitUncertain as error:
        assert_type(error.push_id, str | None)
    except ab.BasetenError as error:
        assert_type(error.retryable, bool)


async def test_locally() -> None:
    async with LocalStack(rekey_on_prepare=False, put_only=True) as stack, stack.client(observer=observe) as client:
        assert_type(client, ab.Client)
        assert_type(stack.base_url, str)
        await client.push("./my-model")
