"""The fault layer: what a caller sees of each fault, and whether the service has acted by then. The matrix has the rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
import anyio
import boto3
import pytest
from support.clock import FakeClock
from support.model_dirs import model_archive

import aiobaseten as ab
from aiobaseten.local import FaultyStack, LocalStack, LocalStackError, Struck, faults
from aiobaseten.local.calls import CONTROL_PLANE_CALLS, S3_CALLS, control_plane_call, s3_call
from aiobaseten.local.fault_plan import FaultPlan

MiB = 1024 * 1024


@pytest.mark.parametrize(
    ("method", "path", "call"),
    [
        ("POST", "/v1/prepare_model_upload", "prepare_model_upload"),
        ("POST", "/v1/models", "create_model"),
        ("POST", "/v1/teams/t1/models", "create_model"),
        ("POST", "/v1/models/m1/deployments", "create_deployment"),
        ("GET", "/v1/models", "list_models"),
        ("GET", "/v1/teams/t1/models", "list_models"),
        ("GET", "/v1/models/m1", "get_model"),
        ("GET", "/v1/models/m1/deployments", "list_deployments"),
        ("GET", "/v1/models/m1/deployments/d1", "get_deployment"),
        ("GET", "/v1/teams", "list_teams"),
        ("GET", "/v1/models/m1/deployments/d1/logs", None),
        ("DELETE", "/v1/models/m1", None),
    ],
)
def test_calls_of_the_control_plane_have_the_clients_names(method: str, path: str, call: str | None) -> None:
    assert control_plane_call(method, path) == call


@pytest.mark.parametrize(
    ("method", "path", "query", "call"),
    [
        ("POST", "/b/k", {"uploads": ""}, "CreateMultipartUpload"),
        ("POST", "/b/k", {"uploadId": "u"}, "CompleteMultipartUpload"),
        ("POST", "/b/k", {}, None),
        ("PUT", "/b/k/l", {"uploadId": "u", "partNumber": "3"}, "UploadPart"),
        ("PUT", "/b/k", {}, "PutObject"),
        ("PUT", "/b/k", {"x-id": "PutObject", "X-Amz-Signature": "s"}, "PutObject"),
        ("PUT", "/b/k", {"tagging": ""}, None),
        ("PUT", "/b", {}, None),
        ("PUT", "/b/", {}, None),
        ("DELETE", "/b/k", {"uploadId": "u"}, "AbortMultipartUpload"),
        ("DELETE", "/b/k", {}, None),
        ("HEAD", "/b/k", {}, "HeadObject"),
        ("HEAD", "/b", {}, None),
        ("GET", "/b/k", {}, "GetObject"),
        ("GET", "/b/k", {"acl": ""}, None),
    ],
)
def test_calls_of_the_store_have_s3s_names(method: str, path: str, query: dict[str, str], call: str | None) -> None:
    assert s3_call(method, path, query) == call
    assert s3_call(method, path, query, copies=True) is None


def test_every_call_has_common_faults() -> None:
    for call in (*CONTROL_PLANE_CALLS, *S3_CALLS):
        assert sum(call in kind.calls for kind in faults.COMMON.values()) >= 15


def test_a_plan_goes_by_call_turn_and_part() -> None:
    plan = FaultPlan()
    slow, denied = faults.slow_down(), faults.access_denied()
    plan.inject("UploadPart", slow, part_number=2, times=2)
    plan.inject("UploadPart", denied, skip=1, times=None)
    came = [plan.on_arrival("UploadPart", number) for number in (1, 2, 3, 2, 2, 1)]
    assert came == [None, slow, denied, slow, denied, denied]
    assert plan.on_arrival("PutObject", None) is None
    assert plan.before_connecting("UploadPart", 2) is None
    assert plan.calls == {"UploadPart": 6, "PutObject": 1}
    assert plan.struck[0] == Struck(call="UploadPart", fault=slow, part_number=2)
    plan.inject("PutObject", slow, times=2)
    plan.on_arrival("PutObject", None)
    assert plan.pending == (slow,)
    plan.clear()
    assert plan.pending == ()
    assert plan.on_arrival("UploadPart", 1) is None


def test_a_call_that_cannot_connect_never_arrives() -> None:
    plan = FaultPlan()
    plan.inject("create_model", faults.Refused())
    assert plan.on_arrival("create_model", None) is None
    assert plan.before_connecting("create_model", None) == faults.Refused()
    assert plan.before_connecting("create_model", None) is None
    assert plan.calls == {"create_model": 2}


def drawn(seed: int) -> list[object]:
    plan = FaultPlan()
    plan.inject_randomly(0.2, seed=seed)
    return [plan.before_connecting("PutObject", None) or plan.on_arrival("PutObject", None) for _ in range(2000)]


def test_random_faults_come_at_their_rate_and_from_their_seed() -> None:
    struck = [fault for fault in drawn(1) if fault]
    assert 360 <= len(struck) <= 440
    assert {type(fault) for fault in struck} >= {
        faults.Refused,
        faults.Reset,
        faults.ReplyLost,
        faults.FlippedBit,
        faults.ErrorReply,
    }
    assert drawn(1) == drawn(1) != drawn(2)


def test_random_faults_of_chosen_kinds() -> None:
    plan = FaultPlan()
    plan.inject_randomly(1.0, seed=3, kinds=["503 SlowDown", "BadDigest"])
    assert plan.on_arrival("list_models", None) == faults.slow_down()
    assert {repr(plan.on_arrival("PutObject", None)) for _ in range(50)} == {repr(faults.slow_down()), repr(faults.bad_digest())}
    assert plan.before_connecting("PutObject", None) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"call": "upload", "fault": faults.slow_down()}, "call must be one of prepare_model_upload"),
        ({"call": "PutObject", "fault": "SlowDown"}, "fault must be one of aiobaseten.local.faults"),
        ({"call": "PutObject", "fault": faults.ReplyLost}, "fault must be one of aiobaseten.local.faults"),
        ({"call": "UploadPart", "fault": faults.slow_down(), "part_number": 0}, "part_number must be a whole number of at least 1"),
        ({"call": "PutObject", "fault": faults.slow_down(), "times": 0}, "times must be a whole number of at least 1"),
        ({"call": "PutObject", "fault": faults.slow_down(), "skip": -1}, "skip must be a whole number of at least 0"),
        ({"call": "PutObject", "fault": faults.slow_down(), "part_number": 1}, "part_number goes with the call UploadPart"),
    ],
)
def test_a_fault_that_cannot_be_injected(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ab.ConfigurationError, match=message):
        FaultPlan().inject(**arguments)  # type: ignore[arg-type]


def test_a_rate_or_kind_that_cannot_be() -> None:
    with pytest.raises(ab.ConfigurationError, match="rate must be a number from 0 to 1, not 5"):
        FaultPlan().inject_randomly(5, seed=1)
    with pytest.raises(ab.ConfigurationError, match="kinds must be several names"):
        FaultPlan().inject_randomly(0.5, seed=1, kinds="500")
    with pytest.raises(ab.ConfigurationError, match=r"kinds must be of .*COMMON, which has no SlowUp"):
        FaultPlan().inject_randomly(0.5, seed=1, kinds=["SlowUp"])


def test_a_rate_of_one_strikes_every_call() -> None:
    plan = FaultPlan()
    plan.inject_randomly(1.0, seed=1, kinds=["refused", "500"])
    struck = [plan.before_connecting("PutObject", None) or plan.on_arrival("PutObject", None) for _ in range(100)]
    assert None not in struck
    assert {type(fault) for fault in struck} == {faults.Refused, faults.ErrorReply}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: faults.Reset(after=5), "Reset.after must be a number from 0 to 1, not 5"),
        (lambda: faults.Trickle(bytes_per_s=0), "Trickle.bytes_per_s must be a number above 0, not 0"),
        (lambda: faults.Stall(delay_s=-1), "Stall.delay_s must be a number of at least 0, not -1"),
    ],
)
def test_a_fault_that_cannot_be(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ab.ConfigurationError, match=message):
        make()


async def test_a_stack_that_does_not_run() -> None:
    with pytest.raises(LocalStackError, match="is not running"):
        _ = FaultyStack(LocalStack()).base_url


@pytest.fixture
async def faulty(local_stack: LocalStack) -> AsyncIterator[FaultyStack]:
    async with FaultyStack(local_stack) as opened:
        yield opened


@pytest.fixture
async def client(faulty: FaultyStack) -> AsyncIterator[ab.Client]:
    opened = faulty.client()
    opened._clock = FakeClock().clock
    async with opened:
        yield opened


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


async def post_model(faulty: FaultyStack, session: aiohttp.ClientSession, name: str) -> tuple[int, bytes]:
    """A commit by a client that knows nothing of faults."""
    prepare = {"name": name, "deployment": {"config": {"model_name": name}}}
    headers = {"Authorization": f"Bearer {faulty.stack.api_key}"}
    async with session.post(f"{faulty.base_url}/v1/prepare_model_upload", json=prepare, headers=headers) as response:
        return response.status, await response.read()


pytestmark = pytest.mark.anyio


@pytest.mark.slow
async def test_without_faults_all_passes_as_it_is(faulty: FaultyStack, client: ab.Client, name: str) -> None:
    archive = model_archive(name, weights_bytes=20 * MiB)
    result = await client.push(ab.Push(archive))
    assert result.upload is not None
    assert result.upload.verified
    assert await faulty.stack.read_object(result.upload.key) == archive
    assert faulty.struck == ()
    expected = {
        "UploadPart",
        "CreateMultipartUpload",
        "CompleteMultipartUpload",
        "create_model",
        "prepare_model_upload",
        "list_models",
    }
    assert set(faulty.calls) == expected


@pytest.mark.slow
async def test_a_part_that_was_refused_is_offered_first_the_next_time(faulty: FaultyStack, client: ab.Client, name: str) -> None:
    faulty.inject("UploadPart", faults.slow_down(), part_number=2, times=2)
    archive = model_archive(name, weights_bytes=20 * MiB)
    result = await client.push(ab.Push(archive))
    assert result.upload is not None
    assert await faulty.stack.read_object(result.upload.key) == archive
    assert [(struck.call, struck.part_number) for struck in faulty.struck] == [("UploadPart", 2)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.0, 0.5, 1.0])
async def test_a_reset_is_one(faulty: FaultyStack, session: aiohttp.ClientSession, name: str, after: float) -> None:
    faulty.inject("prepare_model_upload", faults.Reset(after=after))
    with pytest.raises(aiohttp.ClientError):
        await post_model(faulty, session, name)
    assert (await post_model(faulty, session, name))[0] == 200


@pytest.mark.slow
async def test_a_truncated_reply_ends_early(faulty: FaultyStack, session: aiohttp.ClientSession, name: str) -> None:
    faulty.inject("prepare_model_upload", faults.TruncatedReply(within="body"))
    faulty.inject("prepare_model_upload", faults.TruncatedReply(within="head"))
    with pytest.raises(aiohttp.ClientPayloadError):
        await post_model(faulty, session, name)
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await post_model(faulty, session, name)


async def head_of_answer(url: str, sent: bytes) -> bytes:
    """The head of what a server answers to bytes.

    :raises ConnectionResetError: if it resets the connection
    """
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(sent)
        with anyio.fail_after(10):
            return await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.close()


PUT = b"PUT /bucket/key HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100\r\n"


@pytest.mark.slow
async def test_a_reset_before_the_body_does_not_wait_for_it(faulty: FaultyStack) -> None:
    faulty.inject("PutObject", faults.Reset(after=0))
    with pytest.raises(ConnectionResetError):
        await head_of_answer(faulty.s3_endpoint_url, PUT + b"\r\n")


@pytest.mark.slow
async def test_whoever_asks_first_is_refused_without_its_body(faulty: FaultyStack) -> None:
    faulty.inject("PutObject", faults.slow_down())
    answer = await head_of_answer(faulty.s3_endpoint_url, PUT + b"Expect: 100-continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 503")


@pytest.mark.slow
async def test_an_answer_before_the_body(faulty: FaultyStack) -> None:
    faulty.inject("PutObject", faults.slow_down(early=True))
    answer = await head_of_answer(faulty.s3_endpoint_url, PUT + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 503")


@pytest.mark.slow
async def test_other_clients_of_the_store_see_it_as_it_is(faulty: FaultyStack, name: str) -> None:
    admin = faulty.stack.admin_credentials

    def put_and_get() -> tuple[int, bytes]:
        client = boto3.client(
            "s3",
            endpoint_url=faulty.s3_endpoint_url,
            region_name=faulty.stack.region,
            aws_access_key_id=admin.aws_access_key_id,
            aws_secret_access_key=admin.aws_secret_access_key,
        )
        client.put_object(Bucket=faulty.stack.bucket, Key=name, Body=b"content")
        size_bytes = client.head_object(Bucket=faulty.stack.bucket, Key=name)["ContentLength"]
        content = client.get_object(Bucket=faulty.stack.bucket, Key=name)["Body"].read()
        client.delete_object(Bucket=faulty.stack.bucket, Key=name)
        client.close()
        return size_bytes, content

    assert await anyio.to_thread.run_sync(put_and_get) == (7, b"content")
    assert faulty.calls == {"PutObject": 1, "HeadObject": 1, "GetObject": 1}


@pytest.mark.slow
async def test_a_trickle_comes_whole(faulty: FaultyStack, session: aiohttp.ClientSession, name: str) -> None:
    faulty.inject("prepare_model_upload", faults.Trickle(bytes_per_s=5000))
    begun_s = time.monotonic()
    status, body = await post_model(faulty, session, name)
    assert status == 200
    assert b"s3_key" in body
    assert time.monotonic() - begun_s > len(body) / 10_000


@pytest.mark.slow
async def test_a_stall_ends_in_time_or_with_the_caller(faulty: FaultyStack, session: aiohttp.ClientSession, name: str) -> None:
    faulty.inject("prepare_model_upload", faults.Stall(delay_s=0.1))
    faulty.inject("prepare_model_upload", faults.Stall())
    assert (await post_model(faulty, session, name))[0] == 200
    with anyio.move_on_after(0.1) as scope:
        await post_model(faulty, session, name)
    assert scope.cancelled_caught


@pytest.mark.slow
async def test_errors_speak_the_planes_language(faulty: FaultyStack, session: aiohttp.ClientSession, name: str) -> None:
    faulty.inject("prepare_model_upload", faults.rate_limited(7))
    faulty.inject("HeadObject", faults.slow_down())
    faulty.inject("PutObject", faults.slow_down())
    assert await post_model(faulty, session, name) == (
        429,
        b'{"error": "TooManyRequests: injected by the local stack", "retry_after": 7}',
    )
    async with session.head(f"{faulty.s3_endpoint_url}/bucket/key") as response:
        assert (response.status, await response.read()) == (503, b"")
    async with session.put(f"{faulty.s3_endpoint_url}/bucket/key", data=b"x") as response:
        assert response.status == 503
        assert b"<Code>SlowDown</Code>" in await response.read()


@pytest.mark.slow
async def test_a_stack_that_has_gone_is_a_bad_gateway(session: aiohttp.ClientSession) -> None:
    async with LocalStack() as stack:
        faulty = FaultyStack(stack)
        await faulty.__aenter__()
    try:
        async with session.get(f"{faulty.base_url}/v1/models") as response:
            assert response.status == 502
    finally:
        await faulty.__aexit__(None, None, None)


@pytest.mark.slow
async def test_a_fault_of_ones_own(faulty: FaultyStack, session: aiohttp.ClientSession, name: str) -> None:
    class Teapot:
        async def strike(self, exchange: faults.Exchange) -> None:
            await exchange.answer(faults.Reply(status=418, body=exchange.call.encode()))

    faulty.inject("prepare_model_upload", Teapot())
    assert await post_model(faulty, session, name) == (418, b"prepare_model_upload")
