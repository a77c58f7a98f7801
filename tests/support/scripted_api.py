"""A control plane that answers what a test wrote down and remembers what it was asked; servers that speak no HTTP; a proxy."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import trustme
from aiohttp import web
from support.clock import FakeClock

from aiobaseten.api import ControlPlane
from aiobaseten.options import Options, RetryOptions

KEY = "sk-planted-3141592653"
MODEL = {
    "id": "m1",
    "created_at": "2026-01-02T03:04:05Z",
    "name": "bert",
    "deployments_count": 1,
    "production_deployment_id": None,
    "development_deployment_id": "d1",
    "instance_type_name": "1x2",
    "team_name": "default",
}
DEPLOYMENT = {
    "id": "d1",
    "created_at": "2026-01-02T03:04:05.123456+02:00",
    "name": "deployment-1",
    "model_id": "m1",
    "is_production": False,
    "is_development": True,
    "status": "BUILDING",
    "active_replica_count": 0,
    "autoscaling_settings": None,
    "instance_type_name": None,
    "environment": None,
    "labels": {"a": "b"},
    "request_backpressure_settings": {"policy": "QUEUE"},
}
CREATED = {"model": MODEL, "deployment": DEPLOYMENT}
PREPARED = {
    "creds": {
        "aws_access_key_id": "AKIA-PLANTED",
        "aws_secret_access_key": "aws-secret-planted",
        "aws_session_token": "aws-token-planted",
    },
    "s3_bucket": "bucket",
    "s3_key": "models/1/model.tgz",
    "s3_region": "us-west-2",
}

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answer(
    data: Any = None, status: int = 200, *, raw: bytes | None = None, content_type: str = "application/json", **headers: str
) -> Answer:
    """JSON, or `raw` as it is. Underscores in the headers' names stand for hyphens."""

    async def respond(_: web.Request) -> web.StreamResponse:
        body = json.dumps(data).encode() if raw is None else raw
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=body, content_type=content_type, headers=named)

    return respond


async def drop(request: web.Request) -> web.StreamResponse:
    """Break the connection off after the request has come."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def never(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


@dataclass
class Seen:
    """A request as it came. `path` is not decoded and holds the query."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class ScriptedApi:
    url: str = ""
    answers: deque[Answer] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            body = await request.read()
            self.seen.append(Seen(request.method, request.raw_path, dict(request.headers), body))
            scripted = self.answers.popleft() if len(self.answers) > 1 else self.answers[0]
            return await scripted(request)
        finally:
            self.in_flight -= 1

    @property
    def paths(self) -> list[str]:
        return [f"{seen.method} {seen.path}" for seen in self.seen]


@asynccontextmanager
async def scripted_api(*answers: Answer, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[ScriptedApi]:
    """Gives the answers in their order, the last one again and again."""
    api = ScriptedApi(answers=deque(answers))
    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()
        port = runner.addresses[0][1]
        api.url = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
        yield api
    finally:
        await runner.cleanup()


def server_tls(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_server(talk: Talk) -> AsyncIterator[int]:
    """A TCP server on the port that it yields; each connection is a call of `talk`, cancelled in the end."""
    talks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        try:
            with suppress(OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
                await talk(reader, writer)
        finally:
            writer.transport.abort()
            talks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        await server.wait_closed()


@dataclass
class ForwardProxy:
    """A proxy that opens tunnels: whatever host is asked for, it connects to `target_port` on this machine."""

    target_port: int
    status: int = 200
    url: str = ""
    heads: list[str] = field(default_factory=list)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(f"HTTP/1.1 {self.status} as told\r\nContent-Length: 0\r\n\r\n".encode() if self.status != 200 else b"")
        if self.status != 200:
            return await writer.drain()
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        finally:
            there_writer.transport.abort()
        return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def forward_proxy(target_port: int, *, status: int = 200) -> AsyncIterator[ForwardProxy]:
    proxy = ForwardProxy(target_port, status)
    async with raw_server(proxy.talk) as port:
        proxy.url = f"http://127.0.0.1:{port}"
        yield proxy


def control_plane(url: str, *, clock: FakeClock | None = None, options: Options | None = None, **changes: Any) -> ControlPlane:
    """A control plane with a planted key, on a clock that does not wait."""
    options = options or Options(retry=RetryOptions(max_attempts=3))
    return ControlPlane(base_url=url, api_key=KEY, options=options, clock=(clock or FakeClock()).clock, **changes)
