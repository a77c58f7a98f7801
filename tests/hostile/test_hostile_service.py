"""A control plane that answers what nobody asked for: typed errors only, and credentials that go nowhere of its making."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any
from urllib.parse import urlsplit

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fake_s3 import fake_s3
from support.hostile import little_memory, refused
from support.model_dirs import model_archive
from support.scripted_api import CREATED, DEPLOYMENT, KEY, MODEL, PREPARED, answer, control_plane, raw_server, scripted_api
from support.uploads import TARGET, engine_for

import aiobaseten as ab
from aiobaseten.api.endpoints import Endpoints
from aiobaseten.errors import ApiError, BasetenError, TransportError, UploadError
from aiobaseten.events import Emitter
from aiobaseten.models import PrepareModelUploadRequest, PrepareModelUploadResponse, UploadTarget
from aiobaseten.options import MiB, Options, RetryOptions
from aiobaseten.sources import open_source
from aiobaseten.upload.transport import Answer, Request, Transport

pytestmark = pytest.mark.anyio

ONCE = Options(retry=RetryOptions(max_attempts=1))
PLANTED = [KEY, *(PREPARED["creds"].values())]
CALLS: dict[str, Callable[[Endpoints], Any]] = {
    "prepare": lambda api: api.prepare_model_upload(
        PrepareModelUploadRequest(deployment=ab.DeploymentArchivePayload(config={}), name="a")
    ),
    "models": lambda api: api.list_models(),
    "model": lambda api: api.get_model("m1"),
    "deployments": lambda api: api.list_deployments("m1"),
    "teams": lambda api: api.list_teams(),
}
ANSWERS: dict[str, bytes] = {
    "nothing": b"",
    "garbage": bytes(range(256)),
    "a number without end": b"1e400",
    "digits": b'{"models": ' + b"9" * 5000 + b"}",
    "brackets": b"[" * 1_000_000,
    "closed brackets": b"[" * 100_000 + b"]" * 100_000,
    "as deep as goes": b"[" * 900 + b"]" * 900,
    "not a number": b'{"models": NaN}',
    "wrong items without end": b'{"models": [' + b"1," * 1_000_000 + b'1], "deployments": [' + b"1," * 100 + b'1], "teams": [1]}',
    "wrong fields": json.dumps({"models": [dict.fromkeys(MODEL, 1)] * 1000}).encode(),
    "half a pair": json.dumps({**MODEL, "created_at": "\ud800"}).encode(),
    "a date of no calendar": json.dumps({**MODEL, "created_at": "99999-12-31T23:59:59Z"}).encode(),
    "a long date": json.dumps({**MODEL, "created_at": "2" * 100_000}).encode(),
    "UTF-16": json.dumps({"models": []}).encode("utf-16"),
    "a key twice": b'{"models": [], "models": 7, "deployments": 7, "teams": 7}',
    "another answer": json.dumps(CREATED).encode(),
    "a list": b"[]",
    "a text": b'"models"',
    "null": b"null",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ANSWERS)
async def test_answers_that_are_none(kind: str, call: str) -> None:
    async with scripted_api(answer(raw=ANSWERS[kind])) as api, control_plane(api.url, options=ONCE) as plane:
        with refused(ApiError, "the answer is"):
            found = await CALLS[call](Endpoints(plane))
            # To prepare any object is an answer that gives no target; and JSON may be in UTF-16.
            assert found == PrepareModelUploadResponse() or (kind, found) == ("UTF-16", ())
            raise ApiError("the answer is fine")


async def test_wrong_items_without_end_take_little_memory() -> None:
    async with scripted_api(answer(raw=ANSWERS["wrong items without end"])) as api, control_plane(api.url, options=ONCE) as plane:
        with little_memory(), refused(ApiError, r"$.models[9]: must be an object"):
            await Endpoints(plane).list_models()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["2026-01-01", "m1", "a"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["models", "deployments", "teams", "id", "message", "error", "creds", "s3_key", "s3_bucket", "loc", "detail"]
            )
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=20)
@given(JSON, st.sampled_from([200, 201, 400, 401, 404, 409, 429, 500, 503, 599]), st.sampled_from(sorted(CALLS)))
async def test_any_json(value: Any, status: int, call: str) -> None:
    async with scripted_api(answer(value, status=status)) as api, control_plane(api.url, options=ONCE) as plane:
        with refused(BasetenError):
            await CALLS[call](Endpoints(plane))
            raise ApiError("it was an answer")


@pytest.mark.parametrize("depth", range(800, 1000, 20))
async def test_errors_as_deep_as_the_parser_goes(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    for raw in (nested, b'{"message": "wrong", "loc": ' + nested + b"}", b'{"message": ' + nested + b"}"):
        async with scripted_api(answer(raw=raw, status=400)) as api, control_plane(api.url, options=ONCE) as plane:
            with refused(ApiError, "status 400"):
                await Endpoints(plane).list_models()


CHANGES = st.tuples(st.sampled_from(sorted({*MODEL, *DEPLOYMENT})), JSON)


@settings(deadline=None, max_examples=20)
@given(CHANGES, CHANGES)
async def test_the_right_shape_with_other_values(first: tuple[str, Any], second: tuple[str, Any]) -> None:
    model, deployment = {**MODEL, first[0]: first[1]}, {**DEPLOYMENT, second[0]: second[1]}
    async with (
        scripted_api(answer(model), answer({"deployments": [deployment]})) as api,
        control_plane(api.url, options=ONCE) as plane,
    ):
        for call in ("model", "deployments"):
            with refused(BasetenError):
                await CALLS[call](Endpoints(plane))
                raise ApiError("it was an answer")


@cache
def bomb(encoding: str) -> bytes:
    """Half a GiB of spaces in half a MB."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
    spaces = b" " * 2**20
    return b"".join([*(packer.compress(spaces) for _ in range(512)), packer.flush()])


@pytest.mark.parametrize(("status", "encoding"), [(200, "gzip"), (500, "gzip"), (200, "deflate")])
async def test_bombs(status: int, encoding: str) -> None:
    respond = answer(raw=bomb(encoding), status=status, Content_Encoding=encoding)
    async with scripted_api(respond) as api, control_plane(api.url, options=ONCE) as plane:
        with little_memory(), refused(ApiError):
            await Endpoints(plane).list_models()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "nonsense", "gzip, gzip", "\xff"])
async def test_answers_that_are_not_compressed_as_they_say(encoding: str) -> None:
    for raw in (b"{}", gzip.compress(b'{"models": []}')[:-9], b"\x1f\x8b" + bytes(100)):

        async def talk(reader: Any, writer: Any, raw: bytes = raw) -> None:
            await reader.readuntil(b"\r\n\r\n")
            head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(raw)}\r\n\r\n"
            writer.write(head.encode("latin-1") + raw)
            await writer.drain()

        async with raw_server(talk) as port, control_plane(f"http://127.0.0.1:{port}", options=ONCE) as plane:
            with refused(BasetenError):
                assert await Endpoints(plane).list_models() == ()
                raise ApiError("what there was of it was enough")


HEADS = {
    "a header of 100 kB": b"HTTP/1.1 500 No\r\nX: " + b"x" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "headers without end": b"HTTP/1.1 500 No\r\n" + b"".join(b"X%d: y\r\n" % number for number in range(50_000)) + b"\r\n",
    "a reason of 100 kB": b"HTTP/1.1 500 " + b"x" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "escapes": b"HTTP/1.1 500 \x1b[2J\r\nX: \x1b[2J\r\nContent-Length: 0\r\n\r\n",
    "no status": b"HTTP/1.1\r\n\r\n",
    "a status of digits": b"HTTP/1.1 " + b"9" * 5000 + b" X\r\n\r\n",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "a length of digits": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "a length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a chunk of digits": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 5000 + b"\r\n",
    "no HTTP": bytes(range(256)) * 10,
    "waits": b"HTTP/1.1 429 Slow\r\nRetry-After: -1\r\nContent-Length: 25\r\n\r\n" + b'{"retry_after": Infinity}',
    "waits for years": b"HTTP/1.1 429 Slow\r\nRetry-After: Fri, 31 Dec 99999 23:59:59 GMT\r\nContent-Length: 0\r\n\r\n",
    "a redirect to nowhere": b"HTTP/1.1 302 Go\r\nLocation: http://[::1\x1b[2J\r\nContent-Length: 0\r\n\r\n",
    "a redirect of 8 kB": b"HTTP/1.1 302 Go\r\nLocation: https://" + b"x" * 8000 + b"/\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("kind", HEADS)
async def test_heads_that_are_none(kind: str) -> None:
    async def talk(reader: Any, writer: Any) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEADS[kind])
        await writer.drain()
        writer.close()

    async with raw_server(talk) as port, control_plane(f"http://127.0.0.1:{port}", options=ONCE) as plane:
        with little_memory(), refused((ApiError, TransportError)) as caught:
            await Endpoints(plane).list_models()
    assert 0 <= (getattr(caught.error, "retry_after_s", None) or 0) <= 900
    assert KEY not in str(caught.error)
    assert len(str(caught.error)) < 1500


# ---- upload targets


@attrs.define
class Sends:
    """What would have been sent to the object store."""

    urls: list[str] = attrs.field(factory=list)
    headers: list[Any] = attrs.field(factory=list)


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch) -> Sends:
    """Nothing leaves this machine: where it would have gone is noted."""
    sends = Sends()

    def exchange(self: Transport, flight: object, request: Request) -> Answer:
        sends.urls.append(request.url)
        sends.headers.append(dict(request.headers))
        return Answer(status=403, headers={}, content=b"")

    monkeypatch.setattr(Transport, "exchange", exchange)
    return sends


STORES = ("amazonaws.com", "amazonaws.com.cn", "amazonaws.eu", "c2s.ic.gov", "sc2s.sgov.gov", "cloud.adc-e.uk", "csp.hci.ic.gov")


def check_hosts(sends: Sends) -> None:
    for url in sends.urls:
        parts = urlsplit(url)
        assert parts.scheme == "https"
        assert parts.username is None
        assert parts.port is None
        assert parts.hostname is not None
        assert any(parts.hostname.endswith(f".{store}") for store in STORES), url
        assert url.isascii()
        assert url.isprintable()
        assert " " not in url


EVIL = [
    {"s3_region": "us-west-2.evil.example/"},
    {"s3_region": "us-west-2@evil.example"},
    {"s3_region": "us-west-2\r\nHost: evil.example"},
    {"s3_region": "us-west-2\n"},
    {"s3_region": "#"},
    {"s3_region": "\u0660"},
    {"s3_region": "a" * 100_000},
    {"s3_bucket": "@evil.example"},
    {"s3_bucket": "evil.example/"},
    {"s3_bucket": "evil.example#"},
    {"s3_bucket": "evil.example:443\\"},
    {"s3_bucket": ".."},
    {"s3_bucket": "a b"},
    {"s3_bucket": "a\r\nX: y"},
    {"s3_bucket": "b" * 100_000},
    {"s3_bucket": "\ud800"},
    {"s3_bucket": "arn:aws:s3:us-west-2:123456789012:accesspoint/evil"},
    {"s3_bucket": "arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-1/accesspoint/evil"},
    {"s3_key": "k" * 100_000},
    {"s3_key": "\ud800"},
]


@pytest.mark.parametrize("change", EVIL, ids=lambda change: repr(change)[:40])
async def test_targets_that_are_none(sends: Sends, change: dict[str, str]) -> None:
    answers = [answer({"models": []}), answer({**PREPARED, **change})]
    async with scripted_api(*answers) as api, ab.Client(KEY, base_url=api.url, options=ONCE) as client:
        with refused(UploadError, "cannot be") as caught:
            await client.push(ab.Push(model_archive("a")))
    assert sends.urls == []
    assert len(str(caught.error)) < 500


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *product(
            ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"],
            ["a\r\nX-Evil: y", "a\nb", "\x00", "ü", "\ud800", "x" * 10 + "\x7f"],
        ),
        ("aws_access_key_id", ""),
        ("aws_access_key_id", " "),
        ("aws_session_token", " "),
        ("aws_secret_access_key", ""),
    ],
)
async def test_credentials_that_no_header_carries(sends: Sends, name: str, value: str) -> None:
    secret = f"sesame{value}" if value else ""
    target = attrs.evolve(TARGET, credentials=attrs.evolve(TARGET.credentials, **{name: secret}))
    async with engine_for(None, ONCE) as engine:
        for content in (b"x", bytes(9 * MiB)):
            with refused(UploadError, name) as caught:
                async with await open_source(content) as source:
                    await engine.upload(target, source, emit=Emitter(None))
            assert "sesame" not in str(caught.error)
    assert sends.urls == []


async def test_permanent_keys_have_no_session_token() -> None:
    credentials = attrs.evolve(TARGET.credentials, aws_session_token="", aws_secret_access_key="se same/+=")
    async with fake_s3() as server, engine_for(server.url, ONCE) as engine:
        async with await open_source(b"x") as source:
            await engine.upload(attrs.evolve(TARGET, credentials=credentials), source, emit=Emitter(None))
        assert server.objects != {}


LABEL = st.text("abz019-._@:/#?%\\ \r\n\x00é", max_size=12)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    region=st.sampled_from(["us-west-2", "cn-north-1", "us-gov-west-1", "eu-isoe-west-1", "evil", "-"]) | LABEL,
    bucket=st.sampled_from(["bucket", "a.b", "B_c", "x--usw2-az1--x-s3", "169.254.169.254"]) | LABEL,
    key=st.text(min_size=1, max_size=20)
    | st.sampled_from(["../../a", "//evil.example/a", "?uploads", "a\r\nX: y", "@evil.example"]),
)
async def test_any_target_is_an_object_of_the_store_or_refused(sends: Sends, region: str, bucket: str, key: str) -> None:
    sends.urls.clear()
    target: UploadTarget = attrs.evolve(TARGET, region=region, bucket=bucket, key=key)
    async with engine_for(None, ONCE) as engine:
        for operation in (engine.s3.create(target, None), engine.abort(target, "upload-1")):
            with refused(UploadError):
                await operation
    check_hosts(sends)
