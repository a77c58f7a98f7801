"""An HTTP server before each plane of a local stack, through which calls pass to be hindered."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

import aiohttp
import anyio
from aiohttp import hdrs, web
from multidict import CIMultiDict
from yarl import URL

from aiobaseten._network import NO_LINGER
from aiobaseten.local.calls import Call, control_plane_call, part_number_in, s3_call
from aiobaseten.local.fault_plan import FaultPlan
from aiobaseten.local.faults import Reply
from aiobaseten.local.seaweedfs import LOOPBACK

TRICKLE_S = 0.01
MAX_HEADER_BYTES = 64 * 1024
SHUTDOWN_LIMIT_S = 0.1

_OF_ONE_CONNECTION = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "proxy-connection", "upgrade", "te", "trailer"}
)


@asynccontextmanager
async def fault_proxy(upstream: str, plan: FaultPlan, *, is_s3: bool) -> AsyncGenerator[str]:
    """Serve until the block ends. Yields the URL to use in place of `upstream`."""
    async with aiohttp.ClientSession(
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
    ) as session:

        async def handle(request: web.Request) -> web.StreamResponse:
            return await _pass_on(request, session, upstream, plan, is_s3=is_s3)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle, expect_handler=_let_wait)
        runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=SHUTDOWN_LIMIT_S,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, LOOPBACK, 0, backlog=1024).start()
            yield f"http://{LOOPBACK}:{runner.addresses[0][1]}"
        finally:
            with anyio.CancelScope(shield=True):
                await runner.cleanup()


async def _let_wait(_: web.Request) -> None:
    """Whoever asks first whether its body is wanted is told so when it is."""


async def _pass_on(
    request: web.Request, session: aiohttp.ClientSession, upstream: str, plan: FaultPlan, *, is_s3: bool
) -> web.StreamResponse:
    if is_s3:
        call: Call | None = s3_call(request.method, request.path, request.query, copies="x-amz-copy-source" in request.headers)
    else:
        call = control_plane_call(request.method, request.path)
    held = HeldExchange(request, session, upstream, call, is_s3=is_s3)
    fault = None if call is None else plan.on_arrival(call, part_number_in(request.query))
    with suppress(ConnectionError, web.RequestPayloadError):  # The caller has hung up.
        if fault is None:
            await held.answer(await held.forward())
        else:
            await fault.strike(held)
    return held.response


class HeldExchange:
    """A request that has come, as `aiobaseten.local.faults.Exchange`."""

    def __init__(
        self, request: web.Request, session: aiohttp.ClientSession, upstream: str, call: Call | None, *, is_s3: bool
    ) -> None:
        self.is_s3 = is_s3
        self.response: web.StreamResponse = web.Response()
        self._call: Call | None = call
        self._request = request
        self._session = session
        self._upstream = upstream
        self._asks_first = request.headers.get(hdrs.EXPECT, "").lower() == "100-continue"

    @property
    def call(self) -> Call:
        assert self._call is not None
        return self._call

    @property
    def is_gone(self) -> bool:
        transport = self._request.transport
        return transport is None or transport.is_closing()

    @property
    def asks_first(self) -> bool:
        return self._asks_first

    async def read_body(self, share: float = 1.0) -> None:
        if share <= 0:
            return
        wanted_bytes = int((self._request.content_length or 0) * share)
        async for piece in self._body():
            wanted_bytes -= len(piece)
            if wanted_bytes <= 0 and share < 1:
                return

    async def forward(self, *, flip_bit: bool = False) -> Reply:
        request = self._request
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _OF_ONE_CONNECTION]
        length = request.headers.get(hdrs.CONTENT_LENGTH)
        if length is not None:
            headers.append((hdrs.CONTENT_LENGTH, length))
        body = self._body()
        try:
            async with self._session.request(
                request.method,
                URL(self._upstream + request.raw_path, encoded=True),
                headers=headers,
                data=(_damaged(body) if flip_bit else body) if request.body_exists else None,
                allow_redirects=False,
                skip_auto_headers=(hdrs.CONTENT_TYPE, hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING),
            ) as response:
                told = CIMultiDict(
                    (name, value) for name, value in response.headers.items() if name.lower() not in _OF_ONE_CONNECTION
                )
                if request.method == hdrs.METH_HEAD and hdrs.CONTENT_LENGTH in response.headers:
                    told[hdrs.CONTENT_LENGTH] = response.headers[hdrs.CONTENT_LENGTH]
                return Reply(status=response.status, headers=told, body=await response.read())
        except (aiohttp.ClientError, ConnectionError) as error:
            return Reply(status=502, headers={"Content-Type": "text/plain"}, body=f"{self._upstream}: {error!r}".encode())

    def reset(self) -> None:
        transport = self._request.transport
        if transport is not None:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            transport.abort()

    async def send_raw(
        self, reply: Reply, *, cut_in: Literal["head", "body"] | None = None, bytes_per_s: float | None = None
    ) -> None:
        lines = [f"HTTP/1.1 {reply.status} {web.Response(status=reply.status).reason}"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        if hdrs.CONTENT_LENGTH not in reply.headers:
            lines.append(f"Content-Length: {len(reply.body)}")
        head = "\r\n".join([*lines, "Connection: close", "", ""]).encode()
        body = b"" if self._request.method == hdrs.METH_HEAD else reply.body
        if cut_in == "head":
            head, body = head[: len(head) // 2], b""
        elif cut_in == "body":
            body = body[: len(body) // 2]
        raw = head + body
        step = len(raw) if bytes_per_s is None else math.ceil(bytes_per_s * TRICKLE_S)
        for start in range(0, len(raw), step):
            if self._request.transport is None or self.is_gone:
                return
            self._request.transport.write(raw[start : start + step])
            if bytes_per_s is not None:
                await self.sleep(step / bytes_per_s)
        if self._request.transport is not None:
            self._request.transport.close()

    async def answer(self, reply: Reply) -> None:
        self.response = web.Response(status=reply.status, headers=reply.headers, body=reply.body or None)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def _body(self) -> AsyncIterator[bytes]:
        if self._asks_first and self._request.transport is not None:
            self._asks_first = False
            self._request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        async for piece in self._request.content.iter_any():
            yield piece


async def _damaged(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    first = True
    async for piece in body:
        yield bytes([piece[0] ^ 0x80]) + piece[1:] if first else piece
        first = False
