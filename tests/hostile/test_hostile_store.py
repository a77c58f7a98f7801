"""An object store that answers what S3 never would."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from typing import Any
from xml.etree import ElementTree

import anyio
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fake_s3 import FakeS3, Fault
from support.hostile import little_memory, refused
from support.scripted_server import Peer, scripted_server
from support.uploads import OBJECT, TARGET, Rig, engine_for, rig

import aiobaseten as ab
from aiobaseten.errors import BasetenError, IntegrityError, TransportError, UploadDenied, UploadError
from aiobaseten.events import Emitter
from aiobaseten.options import MiB, Options, RetryOptions
from aiobaseten.sources import open_source

pytestmark = pytest.mark.anyio

TWICE = Options(retry=RetryOptions(max_attempts=2, initial_backoff_s=0.001, max_backoff_s=0.001))
PARTS = bytes(9 * MiB)
XML = '<?xml version="1.0" encoding="UTF-8"?>'


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Rig]:
    """One for all, since making the client of a region takes longer than most tests here."""
    async with rig(TWICE) as store:
        yield store


@pytest.fixture
def store(shared: Rig) -> Rig:
    server = shared.server
    for things in (server.calls, server.faults, server.objects, server.uploads):
        things.clear()
    return shared


def says(body: str | bytes, status: int = 200, **headers: str) -> Fault:
    """Answer with a body instead of doing anything."""

    async def fault(request: web.Request, _: FakeS3) -> web.StreamResponse:
        await request.read()
        content = body if isinstance(body, bytes) else body.encode()
        return web.Response(body=content, status=status, content_type="application/xml", headers=headers)

    return fault


def created(upload_id: str) -> str:
    return f"{XML}<InitiateMultipartUploadResult><UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>"


LAUGHS = "".join(f'<!ENTITY a{level} "{f"&a{level - 1};" * 10 if level else "ha" * 10}">' for level in range(12))
BODIES: dict[str, str | bytes] = {
    "laughs": f"{XML}<!DOCTYPE a [{LAUGHS}]><a><UploadId>&a11;</UploadId><ETag>&a11;</ETag></a>",
    "one long entity": f'<!DOCTYPE a [<!ENTITY b "{"b" * 50_000}">]><a><ETag>{"&b;" * 50_000}</ETag></a>',
    "few laughs": f'<!DOCTYPE a [<!ENTITY b "bb">]>{created("&b;")}'.replace(XML, ""),
    "laughs in UTF-16": f"<!DOCTYPE a [{LAUGHS}]><a><UploadId>&a11;</UploadId></a>".encode("utf-16"),
    "a file of this machine": '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a><UploadId>&b;</UploadId><ETag>&b;</ETag></a>',
    "a definition elsewhere": '<!DOCTYPE a SYSTEM "http://169.254.169.254/"><a><UploadId>1</UploadId></a>',
    "deep": "<a>" * 20_000 + "</a>" * 20_000,
    "deep and open": "<a>" * 20_000,
    "a deep error": "<Error>" + "<a>" * 20_000 + "</a>" * 20_000 + "</Error>",
    "a deep id": "<a><UploadId>" + "<a>" * 20_000 + "</a>" * 20_000 + "</UploadId></a>",
    "no XML": "not XML",
    "a page": "<html><body>Welcome<br></body></html>",
    "garbage": bytes(range(256)),
    "another encoding": b'<?xml version="1.0" encoding="latin-1"?><a><UploadId>\xff\x85</UploadId></a>',
    "an encoding that there is not": '<?xml version="1.0" encoding="nonsense"?><b><a></b>',
    "attributes": "<a " + " ".join(f'a{number}="b"' for number in range(5000)) + "/>",
    "an attribute twice": '<a b="1" b="2"/>',
    "ten megabytes": b"<a><UploadId>" + b"x" * 10 * MiB + b"</UploadId></a>",
    "an id of 100 kB": created("u" * 100_000),
    "an id of lines": created("u&#10;X-Evil: y"),
    "an id of escapes": created("u\u009b2J"),
    "no id": created(""),
    "a namespace": '<a xmlns="' + "x" * 100_000 + '"/>',
}


LARGE = ("laughs", "one long entity", "ten megabytes")


@pytest.mark.parametrize("kind", BODIES)
async def test_a_multipart_upload_that_is_not_created(kind: str, store: Rig) -> None:
    store.server.faults["CreateMultipartUpload"] = [says(BODIES[kind])] * 2
    with little_memory() if kind in LARGE else nullcontext(), refused(UploadError, "CreateMultipartUpload") as caught:
        await store.upload(PARTS)
    assert len(str(caught.error)) < 1500
    assert store.server.calls == ["CreateMultipartUpload"] * 2


@pytest.mark.parametrize("kind", sorted(set(BODIES) - {"an id of 100 kB", "an id of lines", "an id of escapes"}))
async def test_a_complete_that_is_none(kind: str, store: Rig) -> None:
    store.server.faults["CompleteMultipartUpload"] = [says(BODIES[kind])] * 2
    with refused(UploadError, "CompleteMultipartUpload") as caught:
        await store.upload(PARTS)
    assert len(str(caught.error)) < 1500
    assert store.server.calls[-1] == "AbortMultipartUpload"


@pytest.mark.parametrize("kind", BODIES)
async def test_refusals_that_are_none(kind: str, store: Rig) -> None:
    for status in (400, 403, 500):
        store.server.faults["PutObject"] = [says(BODIES[kind], status)] * 2
        with refused(UploadError, "PutObject") as caught:
            await store.upload(b"x")
        assert len(str(caught.error)) < 1500
    store.server.faults["CreateMultipartUpload"] = [says(BODIES[kind], 403)] * 2
    with refused(UploadError, "CreateMultipartUpload"):
        await store.upload(PARTS)


async def test_a_proxys_page_is_told_by_its_status(store: Rig) -> None:
    page = "<!DOCTYPE html><html><body>403 Forbidden</body></html>"
    store.server.faults["PutObject"] = [says(page, 403)]
    with refused(UploadDenied, "status 403"):
        await store.upload(b"x")
    store.server.faults["PutObject"] = [says(page, 502)]
    assert (await store.upload(b"x")).verified


ERRORS = {
    "long": ("C" * 50_000, "m" * 50_000, "r" * 50_000),
    "escapes": ("C\u009b2J", "m\u009b2J\u202e", "r\u2028"),
    "lines": ("C&#10;D", "m&#13;&#10;n&#9;", "r&#10;s"),
    "nested": ("<a/>", "<b><c>d</c></b>", "<e/>"),
    "nothing": ("", "", ""),
}


@pytest.mark.parametrize("kind", ERRORS)
async def test_what_an_error_says_is_shown_on_one_line(kind: str, store: Rig) -> None:
    code, message, request_id = ERRORS[kind]
    body = f"{XML}<Error><Code>{code}</Code><Message>{message}</Message><RequestId>{request_id}</RequestId></Error>"
    for operation, content in (("PutObject", b"x"), ("CreateMultipartUpload", PARTS)):
        store.server.faults[operation] = [says(body, 400)] * 2  # what cannot be read is asked for once more
        with refused(UploadError, operation) as caught:
            await store.upload(content)
        assert "\n" not in str(caught.error)
        assert len(str(caught.error)) < 1500


ETAGS = ['"a&b<c>\'d"', '"]]>"', '"&amp;#10;"', "é", '"' + "x" * 2000 + '"', "&<>\"'"]


@pytest.mark.parametrize("etag", ETAGS)
async def test_etags_come_back_as_they_were(etag: str, store: Rig) -> None:
    """In the XML of Complete, which nothing in them may end or extend."""
    seen: list[str] = []

    async def give(request: web.Request, server: FakeS3) -> web.StreamResponse:
        answer = await server.act(request)
        answer.headers["ETag"] = etag
        return answer

    async def look(request: web.Request, server: FakeS3) -> None:
        tree = ElementTree.fromstring(await request.read())
        seen.extend(node.text or "" for node in tree.findall(".//{*}ETag"))

    store.server.faults["UploadPart"] = [give, give]
    store.server.faults["CompleteMultipartUpload"] = [look]
    await store.upload(PARTS)
    assert [text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in seen] != []
    assert len(seen) == 2
    assert seen == [etag] * 2 or not etag.isascii()


@pytest.mark.parametrize("upload_id", ["a&partNumber=9", "a/../b", "a?b#c", "a%26b", "é", "a b", "a+b", "x" * 2000])
async def test_upload_ids_come_back_as_they_were(upload_id: str, store: Rig) -> None:
    escaped = upload_id.replace("&", "&amp;")

    async def create(request: web.Request, server: FakeS3) -> web.StreamResponse:
        answer = await server.act(request)
        server.uploads[upload_id] = server.uploads.pop(next(reversed(server.uploads)))
        return web.Response(body=created(escaped).encode(), status=answer.status)

    store.server.faults["CreateMultipartUpload"] = [create]
    await store.upload(PARTS)
    assert store.server.objects[OBJECT] == PARTS
    assert store.server.calls.count("UploadPart") == 2


@pytest.mark.parametrize("operation", ["PutObject", "UploadPart", "CompleteMultipartUpload"])
async def test_a_checksum_that_is_none(operation: str, store: Rig) -> None:
    etag = "<CompleteMultipartUploadResult><ETag>e</ETag><ChecksumCRC64NVME>{}</ChecksumCRC64NVME></CompleteMultipartUploadResult>"
    for checksum in ("x" * 5000, "AAAA", "é"):
        fault = says(etag.format(checksum), ETag="e", **{"x-amz-checksum-crc64nvme": checksum})
        store.server.faults[operation] = [fault] * 4
        with refused(IntegrityError, operation) as caught:
            await store.upload(b"x" if operation == "PutObject" else PARTS)
        assert len(str(caught.error)) < 500


def head(*lines: str, body: bytes = b"") -> bytes:
    text = "".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", *lines, f"Content-Length: {len(body)}"))
    return text.encode("latin-1") + b"\r\n" + body


ANSWERS = {
    "an ETag of 60 kB": head("ETag: " + "x" * 60_000),
    "an ETag of 100 kB": head("ETag: " + "x" * 100_000),
    "an ETag of escapes": head("ETag: a\x1b[2J"),
    "no ETag": head("ETag: "),
    "headers without end": head(*(f"X{number}: y" for number in range(1000))),
    "a size of words": head("ETag: e", "x-amz-object-size: many"),
    "a size of digits": head("ETag: e", "x-amz-object-size: " + "9" * 5000),
    "a date of words": head("ETag: e", "x-amz-expiration: never", "x-amz-server-side-encryption-bucket-key-enabled: perhaps"),
    "an answer that is compressed": head("Content-Encoding: gzip", body=gzip.compress(b"<a/>" * 1000)),
    "a status of digits": b"HTTP/1.1 " + b"9" * 5000 + b" OK\r\n\r\n",
    "a status that does not print": b"HTTP/9.9 \x1b[2J\r\n\r\n",
    "a length of digits": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    "a chunk of digits": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 5000 + b"\r\n",
    "a chunk of no size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\x1b[2J\r\n",
    "a redirect of escapes": b"HTTP/1.1 307 Go\r\nLocation: http://evil\x1b[2J/\r\nContent-Length: 0\r\n\r\n",
    "a redirect to a region of escapes": b"HTTP/1.1 301 Go\r\nx-amz-bucket-region: \x1b[2J"
    + b"x" * 5000
    + b"\r\nContent-Length: 0\r\n\r\n",
    "no HTTP": bytes(range(256)) * 10,
}


@pytest.mark.parametrize("kind", ANSWERS)
async def test_heads_that_are_none(kind: str) -> None:
    def serve(peer: Peer) -> None:
        """Answer once and go: what an answer's length is not known of, ends there."""
        for line in peer.head().lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                peer.body(int(line.partition(b":")[2]))
        peer.send(ANSWERS[kind])

    with scripted_server(serve) as server:
        async with engine_for(f"http://127.0.0.1:{server.port}", TWICE) as engine:
            for content in (b"x" * 100, PARTS):
                with refused((UploadError, TransportError)) as caught:
                    async with await open_source(content) as source:
                        await engine.upload(TARGET, source, emit=Emitter(None))
                        raise UploadError("it was good enough")
                assert len(str(caught.error)) < 1500


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=300) | st.text(max_size=200).map(str.encode), st.sampled_from([200, 204, 206, 400, 403, 404, 412, 500, 503])
)
async def test_any_answer(store: Rig, body: bytes, status: int) -> None:
    store.server.faults["CreateMultipartUpload"] = [says(body, status)] * 2
    store.server.faults["PutObject"] = [says(body, status)] * 2
    for content in (b"x", PARTS):
        with refused(BasetenError):
            await store.upload(content)
            raise ab.UploadError("it was answered")


async def test_a_gigabyte_of_an_answer(store: Rig) -> None:
    """It is read as far as an answer of S3's could go."""
    sent = 0

    async def pour(request: web.Request, _: FakeS3) -> web.StreamResponse:
        nonlocal sent
        await request.read()
        response = web.StreamResponse(headers={"Content-Length": str(1 << 30)})
        await response.prepare(request)
        with anyio.move_on_after(5):
            while sent < 1 << 30:
                await response.write(b"<a>" * 20_000)
                sent += 60_000
        return response

    faults: list[Callable[..., Any]] = [pour] * 2
    store.server.faults["CreateMultipartUpload"] = faults
    with refused(UploadError):
        await store.upload(PARTS)
    assert sent < 64 * MiB
