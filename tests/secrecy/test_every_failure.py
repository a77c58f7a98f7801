"""Every public call, failing in every way: nothing that is shown, written down or passed on holds a secret."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from support.clock import FakeClock
from support.fake_s3 import FakeS3, Fault, fake_s3
from support.model_dirs import model_archive
from support.scripted_api import CREATED, DEPLOYMENT, MODEL, answer, drop, never, scripted_api
from support.scripted_server import Peer, scripted_server
from support.secrecy import ACCESS_KEY_ID, KEY, PREPARED, SECRET, TOKEN, Shown, listening

import aiobaseten as ab
from aiobaseten.events import Event
from aiobaseten.options import MiB

pytestmark = pytest.mark.anyio

OPTIONS = ab.Options(
    retry=ab.RetryOptions(max_attempts=2),
    timeouts=ab.TimeoutOptions(connect_s=5, read_s=0.1, complete_s=0.1, abort_s=1, reconcile_s=1),
    transfer=ab.TransferOptions(multipart_threshold_bytes=5 * MiB, part_size_bytes=5 * MiB),
)
PAYLOAD = ab.DeploymentArchivePayload(config={"model_name": "bert"})
ECHO = f"key {KEY}, id {ACCESS_KEY_ID}, secret {SECRET}, token {TOKEN}"
SMALL = model_archive("bert")

CALLS: dict[str, Callable[[ab.Client], Awaitable[object]]] = {
    "prepare": lambda client: client.prepare_model_upload(ab.PrepareModelUploadRequest(name="bert", deployment=PAYLOAD)),
    "create_model": lambda client: client.create_model(ab.ModelArchiveSource(name="bert", deployment=PAYLOAD, s3_key="k")),
    "create_deployment": lambda client: client.create_deployment("m1", ab.DeploymentArchiveSource(deployment=PAYLOAD, s3_key="k")),
    "list_models": lambda client: client.list_models(name="bert"),
    "list_deployments": lambda client: client.list_deployments("m1"),
    "get_deployment": lambda client: client.get_deployment("m1", "d1"),
    "list_teams": lambda client: client.list_teams(),
    "wait": lambda client: client.wait_until_active("m1", "d1", timeout_s=3),
    "check": lambda client: client.check(ab.Push(SMALL, deployment=PAYLOAD)),
    "push": lambda client: client.push(ab.Push(SMALL, deployment=PAYLOAD)),
}


@asynccontextmanager
async def loud_client(url: str, s3_url: str, shown: Shown) -> AsyncIterator[ab.Client]:
    """A client that cannot wait, and whose every event is shown."""
    events: list[Event] = []
    client = ab.Client(KEY, base_url=url, s3_endpoint_url=s3_url, options=OPTIONS, observer=events.append)
    client._clock = FakeClock().clock
    async with client:
        yield client
    shown.add(*events, client.__repr__())


async def run_all(client: ab.Client, journal: Path, shown: Shown) -> None:
    """Make each call; each must fail."""
    for call in CALLS.values():
        with pytest.raises(ab.BasetenError) as caught:
            await call(client)
        shown.add(caught.value)
    async with client.push_many([ab.Push(SMALL, deployment=PAYLOAD)], journal=journal) as run:
        outcomes = [outcome async for outcome in run]
    assert [outcome.ok for outcome in outcomes] == [False]
    shown.add(*outcomes, *(outcome.error for outcome in outcomes), run.report)
    shown.add_files(journal.parent, f"{journal.name}*")


WRONG_SHAPE = PREPARED | {"creds": PREPARED["creds"] | {"aws_session_token": [TOKEN]}, "models": KEY} | CREATED  # type: ignore[operator]
ANSWERS = {
    "401": answer({"message": ECHO, "x": KEY}, 401, X_Request_Id=KEY),
    "403 as html": answer(raw=f"<title>{ECHO}</title>".encode(), status=403, content_type="text/html"),
    "404 as text": answer(raw=ECHO.encode(), status=404, content_type="text/plain"),
    "400, long": answer({"detail": [{"loc": [KEY], "msg": "x" * 450 + TOKEN}]}, 400),
    "429": answer({"error": {"message": ECHO}}, 429, Retry_After=KEY),
    "500": answer({"errors": [ECHO, KEY]}, 500, Request_Id=KEY),
    "redirect": answer(status=307, Location=f"https://{ACCESS_KEY_ID}@evil.example/{KEY}/?t={SECRET}"),
    "not json": answer(raw=ECHO.encode(), content_type=f"text/{ACCESS_KEY_ID}"),
    "wrong shape": answer(WRONG_SHAPE | {"model": MODEL | {"created_at": SECRET}, "deployment": DEPLOYMENT, "created_at": KEY}),
    "dropped": drop,
    "no answer": never,
}


@pytest.mark.parametrize("failure", ANSWERS)
async def test_the_service_answers_with_what_it_was_told(failure: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with listening() as shown:
        async with (
            scripted_api(answer(PREPARED), ANSWERS[failure]) as api,
            loud_client(api.url, "http://127.0.0.1:1", shown) as client,
        ):
            prepared = await CALLS["prepare"](client)
            assert "***" in repr(prepared)
            await run_all(client, tmp_path / "deploy.db", shown)
    assert all(seen.headers["Authorization"] == f"Bearer {KEY}" for seen in api.seen)
    shown.add(*capfd.readouterr())
    assert shown.secrets == {}


CUT_SHORT = json.dumps(PREPARED | {"echo": ECHO}).encode()
RAW = {
    "cut short": b"HTTP/1.1 200 OK\r\nX: %s\r\nContent-Length: 99999\r\n\r\n%s" % (KEY.encode(), CUT_SHORT),
    "bad status line": f"HTTP/1.1 {KEY}\r\n\r\n".encode(),
    "bad header": f"HTTP/1.1 200 OK\r\n{KEY} \r\n\r\n".encode(),
    "bad chunk": f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{KEY}\r\n".encode(),
    "bad compression": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s" % (len(ECHO), ECHO.encode()),
}


@pytest.mark.parametrize("failure", RAW)
async def test_the_service_speaks_no_http(failure: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def serve(peer: Peer) -> None:
        peer.head()
        peer.send(RAW[failure])

    with listening() as shown, scripted_server(serve) as server:
        async with loud_client(f"http://127.0.0.1:{server.port}", "http://127.0.0.1:1", shown) as client:
            await run_all(client, tmp_path / "deploy.db", shown)
    shown.add(*capfd.readouterr())
    assert shown.secrets == {}


async def test_the_service_is_not_there(tmp_path: Path) -> None:
    with listening() as shown:
        async with loud_client("http://127.0.0.1:1", "http://127.0.0.1:1", shown) as client:
            await run_all(client, tmp_path / "deploy.db", shown)
    assert shown.secrets == {}


def refusal(status: int, code: str, *, told: bool = True) -> Fault:
    """S3's refusal as S3 writes it, with all that it was told."""

    async def fault(request: web.Request, _: FakeS3) -> web.StreamResponse:
        await request.read()
        signed = request.headers["Authorization"]
        signature = signed.rpartition("=")[2]
        canonical = f"{request.method}\n{request.path}\nx-amz-security-token:{request.headers['X-Amz-Security-Token']}\n"
        document = (
            f"<Error><Code>{code}</Code><Message>{ECHO if told else 'no'}</Message><AWSAccessKeyId>{ACCESS_KEY_ID}</AWSAccessKeyId>"
            f"<StringToSign>{signed}</StringToSign><SignatureProvided>{signature}</SignatureProvided>"
            f"<CanonicalRequest>{canonical}</CanonicalRequest><Token-0>{TOKEN}</Token-0><RequestId>{TOKEN}</RequestId></Error>"
        )
        return web.Response(
            status=status, text=document.replace("&", "&amp;"), headers={"x-amz-request-id": SECRET, "x-amz-id-2": KEY}
        )

    return fault


def reply(status: int = 200, text: str = ECHO, **headers: str) -> Fault:
    async def fault(request: web.Request, _: FakeS3) -> web.StreamResponse:
        await request.read()
        return web.Response(status=status, text=text, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return fault


async def lost(request: web.Request, _: FakeS3) -> None:
    assert request.transport is not None
    request.transport.abort()


async def silent(request: web.Request, _: FakeS3) -> None:
    await request.read()
    await asyncio.Event().wait()


FAULTS = {
    "SignatureDoesNotMatch": refusal(403, "SignatureDoesNotMatch"),
    "ExpiredToken": refusal(400, "ExpiredToken"),
    "InvalidToken": refusal(400, f"InvalidToken{TOKEN}"),
    "SlowDown": refusal(503, "SlowDown", told=False),
    "not xml": reply(500),
    "not xml, and fine": reply(200),
    "redirect": reply(307, Location=f"https://{ACCESS_KEY_ID}.evil.example/{TOKEN}"),
    "another checksum": reply(200, "", x_amz_checksum_crc64nvme=TOKEN, ETag="x"),
    "lost": lost,
    "silent": silent,
}


async def upload_all(client: ab.Client, operation: str, large: Path, journal: Path) -> list[object]:
    """Upload in each way, with an operation that always fails, and return what became of each."""
    prepared = await client.prepare_model_upload(ab.PrepareModelUploadRequest(name="bert", deployment=PAYLOAD))
    data: bytes | Path = SMALL if operation == "PutObject" else large
    uploads: list[Callable[[], Awaitable[object]]] = [
        lambda: client.upload(prepared.target, data),
        lambda: client.push_all([ab.Push(data, deployment=PAYLOAD)], journal=journal),
    ]
    if operation == "UploadPart":
        uploads.append(lambda: client.rehearse_upload(prepared.target, data))
    became: list[object] = []
    for upload in uploads:
        try:
            became.append(await upload())
        except ab.BasetenError as error:
            became.append(error)
    return became


OPERATIONS = ["PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"]


@pytest.mark.parametrize("failure", FAULTS)
async def test_the_store_answers_with_what_it_was_told(failure: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def respond(request: web.Request) -> web.StreamResponse:
        what = PREPARED if "prepare" in request.path else {"models": []} if request.method == "GET" else CREATED
        return web.json_response(what)

    large = tmp_path / "large.tar"
    await anyio.Path(large).write_bytes(bytes(6 * MiB))
    with listening(debug=False) as shown:
        async with fake_s3() as s3, scripted_api(respond) as api, loud_client(api.url, s3.url, shown) as client:
            for operation in OPERATIONS:
                s3.faults[operation] = [FAULTS[failure]] * 50
                became = await upload_all(client, operation, large, tmp_path / f"{operation}.db")
                s3.faults.clear()
                assert any(isinstance(each, ab.BasetenError) for each in became), operation
                shown.add(*became)
    shown.add_files(tmp_path, "*.db*")
    assert all(headers["X-Amz-Security-Token"] == TOKEN for headers in s3.headers)
    assert {"botocore.hooks", "botocore.auth", "botocore.parsers"} <= shown.log_names
    shown.add(*capfd.readouterr())
    assert shown.secrets == {}
