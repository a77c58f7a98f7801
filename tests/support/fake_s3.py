"""An S3-shaped server in memory that fails on demand, for what a real store cannot be made to do.

It speaks just enough of S3 for uploads, keeps what arrives, and lets a test put faults before each call.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from xml.etree import ElementTree

from aiohttp import web
from awscrt import checksums

Fault = Callable[[web.Request, "FakeS3"], Awaitable[web.StreamResponse | None]]


def error(status: int, code: str, message: str = "as told") -> Fault:
    """Answer with an S3 error instead of doing anything."""

    async def fault(request: web.Request, _: FakeS3) -> web.StreamResponse:
        await request.read()
        return _xml(f"<Error><Code>{code}</Code><Message>{message}</Message></Error>", status)

    return fault


def empty(status: int = 200) -> Fault:
    """Answer with an empty body instead of doing anything."""

    async def fault(request: web.Request, _: FakeS3) -> web.StreamResponse:
        await request.read()
        return web.Response(status=status)

    return fault


def redirect(location: str, status: int = 307) -> Fault:
    async def fault(request: web.Request, _: FakeS3) -> web.StreamResponse:
        await request.read()
        return web.Response(status=status, headers={"Location": location})

    return fault


async def drop(request: web.Request, _: FakeS3) -> None:
    """Break the connection off without reading the body."""
    assert request.transport is not None
    request.transport.abort()


async def lose_reply(request: web.Request, server: FakeS3) -> None:
    """Do what was asked, then break the connection off."""
    await server.act(request)
    assert request.transport is not None
    request.transport.abort()


def hold(reached: asyncio.Event, go_on: asyncio.Event) -> Fault:
    """Say that the call has come and wait before doing it."""

    async def fault(request: web.Request, server: FakeS3) -> web.StreamResponse | None:
        await request.read()
        reached.set()
        await go_on.wait()
        return None

    return fault


@dataclass
class Upload:
    key: str
    parts: dict[int, bytes] = field(default_factory=dict)
    checksum_type: str | None = None


@dataclass
class FakeS3:
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    answer_checksums: bool = True
    url: str = ""
    in_flight: int = 0
    most_in_flight: int = 0
    _ids: itertools.count[int] = field(default_factory=itertools.count)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        operation = _operation(request)
        self.calls.append(operation)
        self.headers.append(request.headers)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.faults[operation]:
                answer = await self.faults[operation].pop(0)(request, self)
                if answer is not None or request.transport is None or request.transport.is_closing():
                    return answer or web.Response()
            return await self.act(request)
        finally:
            self.in_flight -= 1

    async def act(self, request: web.Request) -> web.StreamResponse:
        operation = _operation(request)
        key = request.path
        body = await request.read()
        declared = request.headers.get("x-amz-checksum-crc64nvme")
        if operation in ("PutObject", "UploadPart") and declared not in (None, crc64nvme(body)):
            return _xml("<Error><Code>BadDigest</Code><Message>differs</Message></Error>", 400)
        upload_id = request.query.get("uploadId", "")
        if operation == "CreateMultipartUpload":
            upload_id = f"upload-{next(self._ids)}"
            self.uploads[upload_id] = Upload(key, checksum_type=request.headers.get("x-amz-checksum-type"))
            return _xml(f"<InitiateMultipartUploadResult><UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>")
        if operation == "PutObject":
            self.objects[key] = body
            return web.Response(headers=self._stored_headers(body))
        if operation == "HeadObject":
            stored = self.objects.get(key)
            if stored is None:
                return web.Response(status=404)
            return web.Response(body=stored, headers=self._stored_headers(stored))
        upload = self.uploads.get(upload_id)
        if upload is None:
            return _xml("<Error><Code>NoSuchUpload</Code><Message>gone</Message></Error>", 404)
        if operation == "UploadPart":
            upload.parts[int(request.query["partNumber"])] = body
            return web.Response(headers=self._stored_headers(body))
        if operation == "AbortMultipartUpload":
            del self.uploads[upload_id]
            return web.Response(status=204)
        listed = [int(node.text or "") for node in ElementTree.fromstring(body).findall(".//{*}PartNumber")]
        whole = b"".join(upload.parts[number] for number in listed)
        if declared not in (None, crc64nvme(whole)):
            return _xml("<Error><Code>BadDigest</Code><Message>the object differs</Message></Error>", 400)
        self.objects[key] = whole
        del self.uploads[upload_id]
        said = f"<ChecksumCRC64NVME>{crc64nvme(whole)}</ChecksumCRC64NVME>" if self.answer_checksums else ""
        return _xml(f"<CompleteMultipartUploadResult><ETag>whole</ETag>{said}</CompleteMultipartUploadResult>")

    def _stored_headers(self, body: bytes) -> dict[str, str]:
        headers = {"ETag": f'"{len(body)}"'}
        if self.answer_checksums:
            headers["x-amz-checksum-crc64nvme"] = crc64nvme(body)
        return headers


def crc64nvme(data: bytes) -> str:
    return base64.b64encode(int(checksums.crc64nvme(data)).to_bytes(8, "big")).decode()


def _operation(request: web.Request) -> str:
    query = request.query
    match request.method:
        case "POST":
            return "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload"
        case "PUT":
            return "UploadPart" if "partNumber" in query else "PutObject"
        case "DELETE":
            return "AbortMultipartUpload"
        case _:
            return "HeadObject"


def _xml(body: str, status: int = 200) -> web.Response:
    text = f'<?xml version="1.0"?>{body}'
    return web.Response(text=text, status=status, content_type="application/xml", headers={"x-amz-request-id": "REQ1"})


@asynccontextmanager
async def fake_s3(tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeS3]:
    """Serve on loopback until the block ends."""
    server = FakeS3()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    host, port = runner.addresses[0][:2]
    server.url = f"{'https' if tls else 'http'}://{'localhost' if tls else host}:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()
