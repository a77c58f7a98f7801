from __future__ import annotations

import asyncio
import contextlib
import math
import traceback
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import anyio
import attrs
import pytest
from aiohttp import web
from support.fake_s3 import FakeS3, drop, empty, error, fake_s3, hold, lose_reply, redirect
from support.processes import until
from support.uploads import OBJECT, PATIENT, TARGET, chunks_of, engine_for, random_bytes, renewed, rig, tls_pair

from aiobaseten import Client
from aiobaseten.errors import (
    ArchiveError,
    ConfigurationError,
    CredentialsExpired,
    IntegrityError,
    SourceChanged,
    TransportError,
    UploadDenied,
    UploadError,
)
from aiobaseten.events import (
    CredentialsRenewed,
    Emitter,
    PartUploaded,
    Retrying,
    UploadAborted,
    UploadCompleted,
    UploadRestarted,
    UploadStarted,
)
from aiobaseten.models import UploadTarget
from aiobaseten.options import MiB, Options, RetryOptions, TimeoutOptions, TransferOptions
from aiobaseten.sources import open_source

pytestmark = pytest.mark.anyio

SMALL = random_bytes(50_000)
LARGE = random_bytes(12 * MiB + 345)
OPERATIONS = ["PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"]


def archive_for(operation: str) -> bytes:
    return SMALL if operation == "PutObject" else LARGE


async def test_a_small_archive_goes_up_in_one_request() -> None:
    async with rig() as r:
        receipt = await r.upload(SMALL)
        assert r.server.calls == ["PutObject"]
        assert r.server.objects == {OBJECT: SMALL}
        assert (receipt.size_bytes, receipt.parts, receipt.verified) == (len(SMALL), 1, True)
        assert (receipt.bucket, receipt.key, receipt.checksum_algorithm) == ("bucket", TARGET.key, "CRC64NVME")
        assert [type(event) for event in r.events] == [UploadStarted, PartUploaded, UploadCompleted]


async def test_a_large_archive_goes_up_in_parts() -> None:
    async with rig() as r:
        receipt = await r.upload(LARGE)
        assert r.server.objects == {OBJECT: LARGE}
        assert r.server.calls == ["CreateMultipartUpload", "UploadPart", "UploadPart", "CompleteMultipartUpload"]
        assert (receipt.size_bytes, receipt.parts, receipt.verified) == (len(LARGE), 2, True)
        started = r.told(UploadStarted)
        assert started == [UploadStarted(push_id="push-1", key=TARGET.key, size_bytes=len(LARGE), part_size_bytes=8 * MiB, parts=2)]


@pytest.mark.parametrize("size", [1, 5 * MiB, 8 * MiB - 1, 8 * MiB, 8 * MiB + 1, 16 * MiB, 21 * MiB])
@pytest.mark.parametrize("known", [True, False])
async def test_every_size_arrives_whole(size: int, known: bool) -> None:
    data = random_bytes(size, seed=size)
    async with rig() as r:
        receipt = await r.upload(data if known else chunks_of(data))
        assert r.server.objects == {OBJECT: data}
        assert receipt.size_bytes == size
        assert receipt.verified
        assert r.server.uploads == {}
        assert ("PutObject" in r.server.calls) == (size < 8 * MiB)


async def test_an_empty_stream_is_refused_before_anything_is_sent() -> None:
    async with rig() as r:
        with pytest.raises(ArchiveError, match="empty"):
            await r.upload(chunks_of(b""))
        assert r.server.calls == []


async def test_parts_travel_in_parallel_within_the_bound() -> None:
    options = Options(transfer=TransferOptions(part_size_bytes=5 * MiB, max_connections=3))
    three = asyncio.Barrier(3)

    async def wait_for_two_others(request: object, server: object) -> None:
        await request.read()  # type: ignore[attr-defined]
        await three.wait()

    async with rig(options) as r:
        r.server.faults["UploadPart"] = [wait_for_two_others] * 6  # type: ignore[list-item]
        await r.upload(random_bytes(40 * MiB))
        assert r.server.most_in_flight == 3


async def test_the_budget_bounds_what_is_in_memory() -> None:
    options = Options(transfer=TransferOptions(part_size_bytes=5 * MiB, memory_budget_bytes=10 * MiB, max_connections=8))
    async with rig(options) as r:
        await r.upload(random_bytes(40 * MiB))
        assert r.server.most_in_flight <= 2
        assert r.engine.connections.budget.used_bytes == 0


async def test_requests_declare_checksums_and_sign_the_body_over_plain_http() -> None:
    async with rig() as r:
        await r.upload(LARGE)
        create, part, _, complete = r.server.headers
        assert create["x-amz-checksum-algorithm"] == "CRC64NVME"
        assert create["x-amz-checksum-type"] == "FULL_OBJECT"
        assert "x-amz-checksum-crc64nvme" in part
        assert complete["x-amz-checksum-type"] == "FULL_OBJECT"
        assert "x-amz-checksum-crc64nvme" in complete
        assert len(part["x-amz-content-sha256"]) == 64
        assert "aws-chunked" not in part.get("Content-Encoding", "")


@pytest.mark.parametrize("checksum", ["crc32c", None])
async def test_checksums_are_a_choice(checksum: str | None) -> None:
    options = Options(transfer=TransferOptions(checksum=checksum))  # type: ignore[arg-type]
    async with rig(options) as r:
        r.server.answer_checksums = False
        receipt = await r.upload(LARGE)
        assert r.server.objects[OBJECT] == LARGE
        assert not receipt.verified
        sent = {name.lower() for headers in r.server.headers for name in headers}
        assert ("x-amz-checksum-crc32c" in sent) == (checksum == "crc32c")
        assert (receipt.checksum is None) == (checksum is None)
        assert "x-amz-checksum-crc64nvme" not in sent


async def test_an_answer_without_a_checksum_is_unverified_not_an_error() -> None:
    async with rig() as r:
        r.server.answer_checksums = False
        assert not (await r.upload(LARGE)).verified
        assert not (await r.upload(SMALL)).verified


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "fault",
    [
        error(503, "SlowDown"),
        error(500, "InternalError"),
        error(200, "InternalError"),
        error(429, "TooManyRequests"),
        drop,
        empty(),
    ],
    ids=["slow-down", "internal", "200-with-error", "429", "drop", "empty-200"],
)
async def test_passing_failures_are_repeated(operation: str, fault: object) -> None:
    async with rig() as r:
        r.server.faults[operation] = [fault, fault]  # type: ignore[list-item]
        data = archive_for(operation)
        receipt = await r.upload(data)
        assert r.server.objects == {OBJECT: data}
        assert r.server.uploads == {}
        assert receipt.verified
        assert {event.operation for event in r.told(Retrying)} == {operation}  # type: ignore[attr-defined]
        assert len(r.told(Retrying)) == 2


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_failure_that_does_not_pass_is_raised_and_cleaned_up(operation: str) -> None:
    async with rig(Options(retry=RetryOptions(max_attempts=3, initial_backoff_s=0))) as r:
        r.server.faults[operation] = [error(503, "SlowDown", f"try {number}") for number in range(1, 9)]
        with pytest.raises(UploadError, match="SlowDown") as caught:
            await r.upload(archive_for(operation))
        assert caught.value.operation == operation
        assert caught.value.retryable
        assert caught.value.status == 503
        assert r.server.uploads == {}
        assert r.server.objects == {}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_denied_is_not_repeated(operation: str) -> None:
    async with rig() as r:
        r.server.faults[operation] = [error(403, "AccessDenied", "no, thank you")]
        with pytest.raises(UploadDenied, match="no, thank you") as caught:
            await r.upload(archive_for(operation))
        assert not caught.value.retryable
        assert caught.value.code == "AccessDenied"
        assert caught.value.request_id == "REQ1"
        assert r.told(Retrying) == []
        assert r.server.uploads == {}


async def test_the_first_failure_wins_over_those_it_causes() -> None:
    async with rig(Options(transfer=TransferOptions(part_size_bytes=5 * MiB))) as r:
        r.server.faults["UploadPart"] = [error(403, "AccessDenied", "the first")]
        r.server.faults["AbortMultipartUpload"] = [error(403, "AccessDenied", "may not abort")] * 9
        with pytest.raises(UploadDenied, match="the first") as caught:
            await r.upload(random_bytes(40 * MiB))
        assert "could not be aborted" in caught.value.__notes__[0]
        assert "may not abort" in caught.value.__notes__[0]
        (aborted,) = r.told(UploadAborted)
        assert isinstance(aborted, UploadAborted)
        assert aborted.error is not None
        assert aborted.upload_id in r.server.uploads


async def test_clean_up_takes_no_longer_than_allowed() -> None:
    options = Options(timeouts=TimeoutOptions(abort_s=0.1))
    async with rig(options) as r:
        never = asyncio.Event()
        r.server.faults["CompleteMultipartUpload"] = [error(400, "InvalidPart")]
        r.server.faults["AbortMultipartUpload"] = [hold(asyncio.Event(), never)]
        with pytest.raises(UploadError, match="InvalidPart") as caught:
            await r.upload(LARGE)
        assert "no answer in time" in caught.value.__notes__[0]


async def test_a_damaged_part_is_sent_again_and_refused_in_the_end() -> None:
    async with rig(Options(retry=RetryOptions(max_attempts=2, initial_backoff_s=0))) as r:
        r.server.faults["UploadPart"] = [error(400, "BadDigest")]
        assert (await r.upload(LARGE)).verified
        r.server.faults["UploadPart"] = [error(400, "BadDigest")] * 9
        with pytest.raises(IntegrityError, match="BadDigest"):
            await r.upload(LARGE)


@pytest.mark.parametrize("operation", ["PutObject", "UploadPart"])
async def test_a_store_that_computes_another_checksum_is_found_out(operation: str) -> None:
    async def lie(request: object, server: object) -> object:
        from aiohttp import web

        await request.read()  # type: ignore[attr-defined]
        return web.Response(headers={"ETag": '"x"', "x-amz-checksum-crc64nvme": "AAAAAAAAAAA="})

    async with rig() as r:
        r.server.faults[operation] = [lie] * 9  # type: ignore[list-item]
        with pytest.raises(IntegrityError, match="AAAAAAAAAAA="):
            await r.upload(archive_for(operation))
        assert r.server.uploads == {}


async def test_a_lost_answer_to_complete_is_not_taken_for_a_failure() -> None:
    async with rig() as r:
        r.server.faults["CompleteMultipartUpload"] = [lose_reply]
        receipt = await r.upload(LARGE)
        assert r.server.objects == {OBJECT: LARGE}
        assert receipt.verified
        assert r.server.calls[-1] == "HeadObject"


async def test_a_lost_answer_to_complete_where_looking_is_denied() -> None:
    async with rig() as r:
        r.server.faults["CompleteMultipartUpload"] = [lose_reply]
        r.server.faults["HeadObject"] = [empty(403)]
        receipt = await r.upload(LARGE)
        assert not receipt.verified
        assert r.server.objects == {OBJECT: LARGE}


async def test_an_upload_that_is_gone_and_left_no_object() -> None:
    async with rig() as r:
        r.server.faults["CompleteMultipartUpload"] = [drop, error(404, "NoSuchUpload")]
        with pytest.raises(UploadError, match="NoSuchUpload") as caught:
            await r.upload(LARGE)
        assert caught.value.operation == "CompleteMultipartUpload"
        assert r.server.calls[-2:] == ["HeadObject", "AbortMultipartUpload"]


async def test_another_object_at_the_key_is_not_taken_for_ours() -> None:
    async with rig() as r:
        r.server.objects[OBJECT] = b"somebody else's"
        r.server.faults["CompleteMultipartUpload"] = [drop, error(404, "NoSuchUpload")]
        with pytest.raises(IntegrityError, match="15 bytes"):
            await r.upload(LARGE)


async def test_no_such_upload_at_first_is_an_error() -> None:
    async with rig() as r:
        r.server.faults["CompleteMultipartUpload"] = [error(404, "NoSuchUpload")]
        with pytest.raises(UploadError, match="does not exist any more"):
            await r.upload(LARGE)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_expired_credentials_are_renewed_and_the_upload_goes_on(operation: str) -> None:
    renewals = 0

    async def renew() -> UploadTarget:
        nonlocal renewals
        renewals += 1
        return renewed()

    async with rig() as r:
        r.server.faults[operation] = [error(400, "ExpiredToken")]
        data = archive_for(operation)
        receipt = await r.upload(data, renew=renew)
        assert r.server.objects == {OBJECT: data}
        assert receipt.verified
        assert renewals == 1
        assert r.told(CredentialsRenewed) == [CredentialsRenewed(push_id="push-1", same_key=True)]
        assert r.server.headers[-1]["X-Amz-Security-Token"] == "token-2"
        assert r.server.calls.count("CreateMultipartUpload") <= 1 + (operation == "CreateMultipartUpload")


async def test_workers_share_one_renewal() -> None:
    renewals = 0

    async def renew() -> UploadTarget:
        nonlocal renewals
        renewals += 1
        await anyio.sleep(0.02)
        return renewed()

    async def expired_for_the_first(request: object, server: object) -> object:
        if request.headers["X-Amz-Security-Token"] == "token-1":  # type: ignore[attr-defined]
            return await error(400, "ExpiredToken")(request, server)  # type: ignore[arg-type]
        return None

    async with rig(Options(transfer=TransferOptions(part_size_bytes=5 * MiB))) as r:
        r.server.faults["UploadPart"] = [expired_for_the_first] * 50  # type: ignore[list-item]
        data = random_bytes(40 * MiB)
        await r.upload(data, renew=renew)
        assert renewals == 1
        assert r.server.objects[OBJECT] == data


async def test_a_new_key_makes_the_upload_start_over_there() -> None:
    async def renew() -> UploadTarget:
        return renewed(key="models/two/model.tgz")

    async with rig() as r:
        r.server.faults["UploadPart"] = [error(400, "ExpiredToken")]
        receipt = await r.upload(LARGE, renew=renew)
        assert receipt.key == "models/two/model.tgz"
        assert r.server.objects == {"/bucket/models/two/model.tgz": LARGE}
        assert r.server.uploads == {}
        assert r.told(UploadRestarted) == [UploadRestarted(push_id="push-1", key="models/two/model.tgz")]


async def test_a_new_key_is_no_help_for_a_stream() -> None:
    async def renew() -> UploadTarget:
        return renewed(key="models/two/model.tgz")

    async with rig() as r:
        r.server.faults["UploadPart"] = [error(400, "ExpiredToken")]
        with pytest.raises(CredentialsExpired) as caught:
            await r.upload(chunks_of(LARGE), renew=renew)
        assert "cannot be read again" in caught.value.__notes__[0]
        assert r.server.uploads == {}


async def test_without_renewal_expiry_is_an_error() -> None:
    async with rig() as r:
        r.server.faults["PutObject"] = [error(400, "ExpiredToken")]
        with pytest.raises(CredentialsExpired):
            await r.upload(SMALL)


@pytest.mark.parametrize("key", [TARGET.key, "models/two/model.tgz"])
async def test_credentials_that_never_work_are_not_renewed_for_ever(key: str) -> None:
    renewals = 0

    async def renew() -> UploadTarget:
        nonlocal renewals
        renewals += 1
        return renewed(key=key)

    async with rig() as r:
        r.server.faults["CreateMultipartUpload"] = [error(400, "ExpiredToken")] * 99
        with pytest.raises(CredentialsExpired):
            await r.upload(LARGE, renew=renew)
        assert renewals == 1


async def test_keys_that_change_for_ever_end_in_an_error() -> None:
    renewals = 0

    async def renew() -> UploadTarget:
        nonlocal renewals
        renewals += 1
        return renewed(key=f"models/{renewals}/model.tgz")

    async with rig(Options(retry=RetryOptions(max_attempts=3, initial_backoff_s=0))) as r:
        r.server.faults["CompleteMultipartUpload"] = [error(400, "ExpiredToken")] * 99
        with pytest.raises(CredentialsExpired):
            await r.upload(LARGE, renew=renew)
        assert renewals == 3
        assert r.server.uploads == {}


async def test_a_renewal_that_fails_is_the_error() -> None:
    async def renew() -> UploadTarget:
        raise TransportError("the control plane is gone")

    async with rig() as r:
        r.server.faults["UploadPart"] = [error(400, "ExpiredToken")]
        with pytest.raises(TransportError, match="control plane is gone"):
            await r.upload(LARGE, renew=renew)
        assert r.server.uploads == {}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_no_redirect_is_followed(operation: str, status: int) -> None:
    async with rig() as r, rig() as elsewhere:
        r.server.faults[operation] = [redirect(f"{elsewhere.server.url}/bucket/x", status)] * 9
        with pytest.raises(UploadError, match=r"redirects to 127\.0\.0\.1") as caught:
            await r.upload(archive_for(operation))
        assert not caught.value.retryable
        assert caught.value.operation == operation
        assert elsewhere.server.calls == []


async def test_an_answer_that_names_another_region_is_not_followed() -> None:
    wrong_region = "<Region>eu-north-1</Region>"

    async def malformed(request: object, server: object) -> object:
        from aiohttp import web

        await request.read()  # type: ignore[attr-defined]
        text = f"<Error><Code>AuthorizationHeaderMalformed</Code><Message>wrong region</Message>{wrong_region}</Error>"
        return web.Response(status=400, text=text, headers={"x-amz-bucket-region": "eu-north-1"})

    async with rig() as r:
        r.server.faults["PutObject"] = [malformed] * 9  # type: ignore[list-item]
        with pytest.raises(UploadError, match="another region than prepare said"):
            await r.upload(SMALL)
        assert r.server.calls == ["PutObject"]


@pytest.mark.parametrize(
    ("code", "hint"), [("RequestTimeTooSkewed", "clock of this machine"), ("NoSuchBucket", "bucket does not exist")]
)
async def test_errors_say_what_is_wrong(code: str, hint: str) -> None:
    async with rig() as r:
        r.server.faults["PutObject"] = [error(400, code)] * 9
        with pytest.raises(UploadError, match=hint):
            await r.upload(SMALL)


async def garbage(request: web.Request, _: FakeS3) -> web.Response:
    await request.read()
    return web.Response(text="<<<not xml, but AWS4-HMAC-PLANTED")


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ("PutObject", "the store's answer cannot be read: not well-formed"),
        ("UploadPart", "the store's answer cannot be read: not well-formed"),
        ("CreateMultipartUpload", "Internal Server Error"),  # botocore's reading of a 200 that is not XML
        ("CompleteMultipartUpload", "Internal Server Error"),
    ],
)
async def test_an_answer_that_cannot_be_read_may_be_a_passing_one(operation: str, message: str) -> None:
    async with rig() as r:
        content = SMALL if operation == "PutObject" else LARGE
        r.server.faults[operation] = [garbage, garbage]
        await r.upload(content)
        r.server.faults[operation] = [garbage] * 99
        with pytest.raises(UploadError, match=f"{operation}: {message}") as caught:
            await r.upload(content)
        assert caught.value.retryable
        assert "PLANTED" not in "".join(traceback.format_exception(caught.value))


async def test_a_source_that_shrank_is_found_out_and_cleaned_up(tmp_path: Path) -> None:
    archive = tmp_path / "model.tar"
    archive.write_bytes(LARGE)
    async with rig() as r:
        reached, go_on = asyncio.Event(), asyncio.Event()
        r.server.faults["CreateMultipartUpload"] = [hold(reached, go_on)]
        r.server.faults["UploadPart"] = [error(503, "SlowDown")]

        async def shrink() -> None:
            await reached.wait()
            archive.write_bytes(LARGE[: 9 * MiB])
            go_on.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shrink)
            with pytest.raises(SourceChanged):
                await r.upload(archive)
        assert r.server.objects == {}
        assert r.server.uploads == {}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_cancelling_during_any_call_leaves_nothing_behind(operation: str) -> None:
    async with rig() as r:
        reached, go_on = asyncio.Event(), asyncio.Event()
        r.server.faults[operation] = [hold(reached, go_on)]
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(r.upload, archive_for(operation))
                await reached.wait()
                scope.cancel()
                go_on.set()
        assert scope.cancelled_caught
        assert r.server.uploads == {}
        assert r.engine.connections.budget.used_bytes == 0
        assert r.engine.connections.for_parts.borrowed_tokens == 0
        assert r.told(Retrying) == []


async def test_a_cancelled_create_is_not_waited_for_for_ever() -> None:
    options = Options(timeouts=TimeoutOptions(abort_s=0.1))
    async with rig(options) as r:
        reached, never = asyncio.Event(), asyncio.Event()
        r.server.faults["CreateMultipartUpload"] = [hold(reached, never)]
        with anyio.fail_after(5), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(r.upload, LARGE)
                await reached.wait()
                scope.cancel()
        assert scope.cancelled_caught
        assert r.server.uploads == {}


@pytest.mark.parametrize("delay_ms", range(0, 40, 4))
async def test_cancelling_at_any_moment_leaves_no_upload(delay_ms: int) -> None:
    async with rig(Options(transfer=TransferOptions(part_size_bytes=5 * MiB))) as r:
        await r.upload(SMALL)
        with anyio.move_on_after(delay_ms / 1000):
            await r.upload(random_bytes(30 * MiB))
        assert r.server.uploads == {}
        assert r.engine.connections.budget.used_bytes == 0


async def test_over_tls_with_an_authority_of_ones_own(tmp_path: Path) -> None:
    context, bundle = tls_pair(tmp_path)
    async with rig(Options(ca_bundle=bundle), tls=context) as r:
        receipt = await r.upload(LARGE)
        assert receipt.verified
        assert r.server.objects == {OBJECT: LARGE}
        assert r.server.headers[1]["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        off = Options(ca_bundle=bundle, transfer=TransferOptions(checksum=None))
        async with engine_for(r.server.url, off) as engine, await open_source(LARGE) as source:
            await engine.upload(TARGET, source, emit=Emitter(None))
        assert r.server.headers[-2]["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"


async def test_an_unknown_authority_is_refused_at_once(tmp_path: Path) -> None:
    context, _ = tls_pair(tmp_path)
    async with rig(tls=context) as r:
        with pytest.raises(TransportError, match=r"not trusted.*ca_bundle") as caught:
            await r.upload(SMALL)
        assert not caught.value.retryable
        assert r.server.calls == []


async def test_a_bundle_that_is_none_is_named(tmp_path: Path) -> None:
    bundle = tmp_path / "not-a.pem"
    bundle.write_text("nothing")
    async with rig(Options(ca_bundle=bundle)) as r:
        with pytest.raises(ConfigurationError, match=r"not-a\.pem"):
            await r.upload(SMALL)


async def test_an_unreachable_store() -> None:
    options = Options(retry=RetryOptions(max_attempts=2, initial_backoff_s=0))
    async with engine_for("http://127.0.0.1:9", options) as engine, await open_source(SMALL) as source:
        with pytest.raises(TransportError, match=r"cannot connect to 127\.0\.0\.1") as caught:
            await engine.upload(TARGET, source, emit=Emitter(None))
        assert caught.value.__cause__ is not None


async def test_a_store_that_stalls_times_out() -> None:
    options = Options(timeouts=TimeoutOptions(read_s=0.1), retry=RetryOptions(max_attempts=1))
    async with rig(options) as r:
        r.server.faults["PutObject"] = [hold(asyncio.Event(), asyncio.Event())]
        with pytest.raises(TransportError, match="did not answer in time"):
            await r.upload(SMALL)


async def test_a_store_that_stops_reading_times_out() -> None:
    """Nothing is read from the socket: the write itself must give up."""
    release = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await release.wait()
        writer.transport.abort()

    server = await asyncio.start_server(deaf, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    options = Options(timeouts=TimeoutOptions(read_s=0.2), retry=RetryOptions(max_attempts=1))
    try:
        async with engine_for(f"http://127.0.0.1:{port}", options) as engine, await open_source(random_bytes(7 * MiB)) as source:
            with pytest.raises(TransportError):
                await engine.upload(TARGET, source, emit=Emitter(None))
    finally:
        release.set()
        server.close()
        await server.wait_closed()


async def test_the_users_aws_settings_have_no_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("[default]\nregion = nowhere\nendpoint_url = http://127.0.0.1:9\ns3 =\n  use_accelerate_endpoint = true\n")
    from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES, DEFAULT_S3_CONFIG_VARS

    for _, names, _, _ in [*BOTOCORE_DEFAUT_SESSION_VARIABLES.values(), *DEFAULT_S3_CONFIG_VARS.values()]:
        for name in [names] if isinstance(names, str) else names or []:
            monkeypatch.setenv(name, str(nonsense) if name.endswith("_FILE") else "nonsense")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_EC2_METADATA_SERVICE_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, "nonsense")
    context, bundle = tls_pair(tmp_path)
    async with rig(Options(ca_bundle=bundle), tls=context) as r:
        await r.upload(LARGE)
        assert r.server.objects == {OBJECT: LARGE}
        assert all(headers["X-Amz-Security-Token"] == "token-1" for headers in r.server.headers)
        assert all("AKIA-ONE/" in headers["Authorization"] for headers in r.server.headers)
        assert all("/us-west-2/s3/" in headers["Authorization"] for headers in r.server.headers)


async def test_uploads_at_once_sign_with_their_own_credentials() -> None:
    async with rig() as r:
        targets = [renewed(key=f"models/{n}/model.tgz") for n in range(8)] + [TARGET]
        async with anyio.create_task_group() as tasks:
            for target in targets:

                async def upload(target: UploadTarget = target) -> None:
                    await r.upload(SMALL, target=target)

                tasks.start_soon(upload)
        tokens = sorted(headers["X-Amz-Security-Token"] for headers in r.server.headers)
        assert tokens == ["token-1"] + ["token-2"] * 8


async def test_regions_have_clients_of_their_own() -> None:
    async with rig() as r:
        await r.upload(SMALL)
        await r.upload(SMALL, target=renewed(region="eu-west-1"))
        assert ["/us-west-2/s3/" in headers["Authorization"] for headers in r.server.headers] == [True, False]


async def test_patience_has_the_documented_number_of_tries() -> None:
    async with rig() as r:
        r.server.faults["PutObject"] = [error(503, "SlowDown")] * 99
        with pytest.raises(UploadError):
            await r.upload(SMALL)
        assert r.server.calls == ["PutObject"] * PATIENT.retry.max_attempts


async def test_an_iterator_whose_own_task_was_cancelled_is_a_failure() -> None:
    """A CancelledError that nobody here caused must not look like the end of the stream."""

    async def never() -> None:
        await asyncio.sleep(60)

    async def chunks() -> AsyncIterator[bytes]:
        producer = asyncio.ensure_future(never())
        yield random_bytes(20 * MiB)
        producer.cancel()
        await producer

    async with rig() as r:
        with pytest.raises(UploadError, match="nothing had been cancelled"):
            await r.upload(chunks())
        assert r.server.objects == {}
        assert r.server.uploads == {}
        assert r.engine.connections.budget.used_bytes == 0


async def test_an_iterator_may_hold_a_task_group_and_a_time_limit_open() -> None:
    data = random_bytes(40 * MiB)

    async def chunks() -> AsyncIterator[bytes]:
        async with anyio.create_task_group():
            with anyio.fail_after(60):
                async with asyncio.timeout(60):
                    for start in range(0, len(data), 3_000_000):
                        yield data[start : start + 3_000_000]

    async with rig() as r:
        await r.upload(chunks())
        assert r.server.objects == {OBJECT: data}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_broken_connections_over_tls(tmp_path: Path, operation: str) -> None:
    context, bundle = tls_pair(tmp_path)
    options = attrs.evolve(PATIENT, ca_bundle=bundle)
    async with rig(options, tls=context) as r:
        for _ in range(5):
            r.server.faults[operation] = [drop, drop]
            data = archive_for(operation)
            assert (await r.upload(data)).verified
        assert len(r.told(Retrying)) == 10
        r.server.faults[operation] = [drop] * 99
        with pytest.raises(TransportError, match="broke off"):
            await r.upload(data)
        r.server.faults[operation].clear()
        assert r.server.uploads == {}


async def test_an_abort_that_fails_oddly_does_not_hide_the_first_cause() -> None:
    async with rig() as r:
        r.server.faults["CompleteMultipartUpload"] = [error(403, "AccessDenied", "the first cause")]
        r.server.faults["AbortMultipartUpload"] = [redirect("http://[bad")]
        with pytest.raises(UploadDenied, match="the first cause") as caught:
            await r.upload(LARGE)
        assert "could not be aborted" in caught.value.__notes__[0]
        r.server.faults["PutObject"] = [redirect("http://[bad")]
        with pytest.raises(UploadError, match="redirects to another place"):
            await r.upload(SMALL)


async def test_a_second_cancellation_does_not_lose_the_upload() -> None:
    async with rig() as r:
        reached, aborting, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
        r.server.faults["UploadPart"] = [hold(reached, asyncio.Event())]
        r.server.faults["AbortMultipartUpload"] = [hold(aborting, go_on)]
        task = asyncio.ensure_future(r.upload(LARGE))
        await reached.wait()
        task.cancel()
        await aborting.wait()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert r.server.uploads == {}
        assert r.server.calls.count("AbortMultipartUpload") == 1


@pytest.mark.parametrize("way", ["scope", "task", "task, twice"])
async def test_an_abort_that_is_refused_is_told_however_the_upload_was_cancelled(way: str) -> None:
    async with rig() as r:
        reached = asyncio.Event()
        r.server.faults["UploadPart"] = [hold(reached, asyncio.Event())] * 2
        r.server.faults["AbortMultipartUpload"] = [error(403, "AccessDenied")]
        scope = anyio.CancelScope()
        errors: list[BaseException] = []

        async def upload() -> None:
            with scope:
                try:
                    await r.upload(LARGE)
                except asyncio.CancelledError as cancelled:
                    errors.append(cancelled)
                    raise

        task = asyncio.create_task(upload())
        await reached.wait()
        scope.cancel() if way == "scope" else task.cancel()
        if way == "task, twice":
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() == (way != "scope")
        assert scope.cancelled_caught == (way == "scope")
        (told,) = r.told(UploadAborted)
        assert isinstance(told, UploadAborted)
        assert "AccessDenied" in str(told.error)
        assert way == "task, twice" or "could not be aborted" in errors[0].__notes__[0]


async def test_cancelling_while_create_waits_to_be_repeated_creates_nothing() -> None:
    async with rig(Options(retry=RetryOptions(initial_backoff_s=1000, max_backoff_s=1000))) as r:
        r.server.faults["CreateMultipartUpload"] = [error(503, "SlowDown")]
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(r.upload, LARGE)
                await until(lambda: len(r.told(Retrying)) == 1)
                scope.cancel()
        assert r.server.calls == ["CreateMultipartUpload"]


async def test_a_part_that_waits_to_be_repeated_ends_when_cancelled() -> None:
    async with rig(Options(retry=RetryOptions(initial_backoff_s=1000, max_backoff_s=1000))) as r:
        r.server.faults["UploadPart"] = [error(503, "SlowDown")] * 2
        with anyio.CancelScope() as scope, anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(r.upload, LARGE)
                await until(lambda: len(r.told(Retrying)) == 2)
                scope.cancel()
        assert r.server.uploads == {}


async def test_plain_http_never_goes_through_a_proxy_which_would_read_the_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_s3() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("http://", "http://user:hush-hush@"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        async with engine_for("http://store.example") as engine:
            for data in (SMALL, LARGE):
                async with await open_source(data) as source:
                    with pytest.raises(ConfigurationError, match=r"use https, or put store\.example into NO_PROXY") as caught:
                        await engine.upload(TARGET, source, emit=Emitter(None))
                assert "hush-hush" not in repr(caught.value)
        with pytest.raises(ConfigurationError, match=r"use https, or put store\.example into NO_PROXY"):
            await Client("key", s3_endpoint_url="http://store.example").__aenter__()
    assert proxy.calls == []


async def test_models_in_the_users_home_have_no_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    models = tmp_path / ".aws" / "models" / "s3" / "2006-03-01"
    models.mkdir(parents=True)
    for name in ("service-2.json", "endpoint-rule-set-1.json"):
        (models / name).write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("botocore.loaders.Loader.CUSTOMER_DATA_PATH", str(tmp_path / ".aws" / "models"))
    async with rig() as r:
        assert (await r.upload(SMALL)).verified


@pytest.mark.parametrize("region", ["us west 2", "", "evil.example/"])
async def test_a_region_that_cannot_be_one(region: str) -> None:
    async with rig() as r:
        with pytest.raises(UploadError):
            await r.upload(SMALL, target=attrs.evolve(TARGET, region=region))
        assert r.server.calls == []


async def test_an_endpoint_that_botocore_refuses() -> None:
    async with engine_for("http://under_score:9000") as engine, await open_source(SMALL) as source:
        with pytest.raises(UploadError, match="under_score"):
            await engine.upload(TARGET, source, emit=Emitter(None))


async def test_what_cannot_pass_is_not_repeated() -> None:
    async with rig() as r:
        r.server.faults["PutObject"] = [error(501, "NotImplemented")]
        with pytest.raises(UploadError, match="checksum=None") as caught:
            await r.upload(SMALL)
        assert not caught.value.retryable
        r.server.faults["CompleteMultipartUpload"] = [error(400, "BadDigest")]
        with pytest.raises(IntegrityError):
            await r.upload(LARGE)
        assert r.told(Retrying) == []


@pytest.mark.parametrize(("status", "code"), [(400, "RequestTimeout"), (409, "OperationAborted"), (400, "SlowDown")])
async def test_passing_failures_that_come_as_4xx(status: int, code: str) -> None:
    async with rig() as r:
        r.server.faults["PutObject"] = [error(status, code)]
        assert (await r.upload(SMALL)).verified


async def test_only_complete_may_take_minutes() -> None:
    options = Options(timeouts=TimeoutOptions(read_s=0.1, complete_s=60), retry=RetryOptions(max_attempts=1))

    async def slow(request: object, server: object) -> None:
        await request.read()  # type: ignore[attr-defined]
        await asyncio.sleep(0.3)

    async with rig(options) as r:
        r.server.faults["CompleteMultipartUpload"] = [slow]  # type: ignore[list-item]
        assert (await r.upload(LARGE)).verified
        r.server.faults["CreateMultipartUpload"] = [slow]  # type: ignore[list-item]
        with pytest.raises(TransportError, match="did not answer in time"):
            await r.upload(LARGE)


async def test_closing_ends_what_is_under_way_and_starts_nothing_new() -> None:
    async with rig() as r:
        reached = asyncio.Event()
        r.server.faults["PutObject"] = [hold(reached, asyncio.Event())]
        async with engine_for(r.server.url) as engine, await open_source(SMALL) as source:
            task = asyncio.ensure_future(engine.upload(TARGET, source, emit=Emitter(None)))
            await reached.wait()
        with pytest.raises(ConfigurationError, match="closed"):
            await task
        async with await open_source(SMALL) as source:
            with pytest.raises(ConfigurationError, match="closed"):
                await engine.upload(TARGET, source, emit=Emitter(None))


async def test_a_cancelled_upload_sends_no_more_bytes() -> None:
    """The store stops reading, so the body waits in buffers; after the cancellation what is left of it never arrives."""
    size = 7 * MiB
    begun, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    received = 0

    async def slow_reader(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        received = len(await reader.read(1000))
        begun.set()
        await go_on.wait()
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(1 << 16):
                received += len(chunk)
        writer.close()
        ended.set()

    server = await asyncio.start_server(slow_reader, "127.0.0.1", 0, limit=1 << 16)
    port = server.sockets[0].getsockname()[1]
    try:
        async with engine_for(f"http://127.0.0.1:{port}") as engine, await open_source(random_bytes(size)) as source:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(partial(engine.upload, TARGET, source, emit=Emitter(None)))
                    await begun.wait()
                    await anyio.sleep(0.05)  # for the buffers to fill
                    scope.cancel()
            go_on.set()
            with anyio.fail_after(10):
                await ended.wait()
            assert received < size
            assert engine.connections.budget.used_bytes == 0
    finally:
        server.close()
        await server.wait_closed()


async def test_a_rehearsal_sends_the_parts_and_leaves_nothing() -> None:
    async with rig() as r, await open_source(LARGE) as source:
        rehearsal = await r.engine.rehearse(TARGET, source, max_duration_s=math.inf, emit=Emitter(r.events.append))
        assert (rehearsal.size_bytes, rehearsal.parts) == (len(LARGE), 2)
        assert rehearsal.bytes_per_s == rehearsal.size_bytes / rehearsal.duration_s
        assert r.server.calls[0] == "CreateMultipartUpload"
        assert r.server.calls[-1] == "AbortMultipartUpload"
        assert r.server.uploads == r.server.objects == {}
        assert [type(event) for event in r.events] == [UploadStarted, PartUploaded, PartUploaded, UploadAborted]


async def test_a_rehearsal_that_is_cancelled_while_it_ends_is_cancelled() -> None:
    async with rig() as r, await open_source(SMALL) as source:
        aborting, go_on = asyncio.Event(), asyncio.Event()
        r.server.faults["AbortMultipartUpload"] = [hold(aborting, go_on)]
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(r.engine.rehearse, TARGET, source, max_duration_s=math.inf, emit=Emitter(None)))
                await aborting.wait()
                scope.cancel()
                go_on.set()
        assert scope.cancelled_caught
        assert r.server.uploads == {}


async def test_a_small_rehearsal_makes_no_object_either() -> None:
    async with rig() as r, await open_source(SMALL) as source:
        rehearsal = await r.engine.rehearse(TARGET, source, max_duration_s=math.inf, emit=Emitter(None))
        assert rehearsal.parts == 1
        assert r.server.calls == ["CreateMultipartUpload", "UploadPart", "AbortMultipartUpload"]


@pytest.mark.parametrize("as_stream", [False, True])
async def test_a_rehearsal_whose_time_is_up_begins_no_further_part(as_stream: bool) -> None:
    async with rig() as r, await open_source(chunks_of(LARGE) if as_stream else LARGE) as source:
        rehearsal = await r.engine.rehearse(TARGET, source, max_duration_s=0, emit=Emitter(None))
        assert rehearsal.parts == 1
        assert r.server.uploads == {}


async def test_a_rehearsal_whose_parts_stay_behind_says_so() -> None:
    async with rig() as r, await open_source(SMALL) as source:
        r.server.faults["AbortMultipartUpload"] = [error(403, "AccessDenied")]
        with pytest.raises(UploadError, match=r"parts are still there.*upload-0 could not be aborted.*AccessDenied"):
            await r.engine.rehearse(TARGET, source, max_duration_s=math.inf, emit=Emitter(None))


async def test_a_rehearsal_that_fails_cleans_up() -> None:
    async with rig() as r, await open_source(LARGE) as source:
        r.server.faults["UploadPart"] = [error(403, "AccessDenied", "no")]
        with pytest.raises(UploadDenied, match="no"):
            await r.engine.rehearse(TARGET, source, max_duration_s=math.inf, emit=Emitter(None))
        assert r.server.uploads == {}
