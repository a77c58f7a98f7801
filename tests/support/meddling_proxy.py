"""An HTTP proxy before a real service, through which a test makes chosen calls fail."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import anyio
from aiohttp import web

Forward = Callable[[], Awaitable[web.Response]]
Meddler = Callable[[web.Request, Forward], Awaitable[web.StreamResponse | None]]

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding"}


async def lose_reply(request: web.Request, forward: Forward) -> None:
    """Let the service act, and break off before its answer."""
    await forward()
    await lose_request(request, forward)


async def lose_request(request: web.Request, forward: Forward) -> None:
    """Break off, and let the service know nothing."""
    if request.transport is not None:  # else the caller has gone already
        request.transport.abort()


def answer(status: int, text: str = "{}", *, act: bool = False, **headers: str) -> Meddler:
    """Answer something else, after the service acted or without it."""

    async def meddle(request: web.Request, forward: Forward) -> web.StreamResponse:
        if act:
            await forward()
        return web.Response(status=status, text=text, headers={name.replace("_", "-"): value for name, value in headers.items()})

    return meddle


def hold(arrived: anyio.Event, go_on: anyio.Event) -> Meddler:
    """Let the service act only when the test says so."""

    async def meddle(request: web.Request, forward: Forward) -> web.StreamResponse:
        arrived.set()
        await go_on.wait()
        return await forward()

    return meddle


@dataclass(kw_only=True)
class Meddling:
    """`plans` are tried in order: the first whose method and part of the path (query included) fit is used up."""

    plans: list[tuple[str, str, Meddler]] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)

    def plan(self, method: str, path_part: str, meddler: Meddler, *, times: int = 1) -> None:
        self.plans.extend([(method, path_part, meddler)] * times)

    def count(self, method: str, path_part: str) -> int:
        return sum(1 for seen_method, path in self.seen if seen_method == method and path_part in path)

    async def meddle(self, request: web.Request, act: Forward) -> web.StreamResponse:
        """Let the service act, or what is planned happen."""
        self.seen.append((request.method, request.raw_path))
        for index, (method, path_part, meddler) in enumerate(self.plans):
            if method == request.method and path_part in request.raw_path:
                del self.plans[index]
                return await meddler(request, act) or web.Response(status=500)
        return await act()


@dataclass
class MeddlingProxy(Meddling):
    """Stands before the service at `upstream`."""

    upstream: str
    url: str = ""

    async def handle(self, request: web.Request, session: aiohttp.ClientSession) -> web.StreamResponse:
        body = await request.read()

        async def forward() -> web.Response:
            headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
            async with session.request(
                request.method,
                self.upstream + request.raw_path,
                headers=headers,
                data=io.BytesIO(body),
                allow_redirects=False,
                skip_auto_headers=("Content-Type", "User-Agent", "Accept", "Accept-Encoding"),
            ) as response:
                kept = [(name, value) for name, value in response.headers.items() if name.lower() not in HOP_BY_HOP]
                return web.Response(status=response.status, body=await response.read(), headers=dict(kept))

        return await self.meddle(request, forward)


@asynccontextmanager
async def meddling_proxy(upstream: str) -> AsyncIterator[MeddlingProxy]:
    """Serve on loopback until the block ends."""
    proxy = MeddlingProxy(upstream)
    async with aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()) as session:
        app = web.Application(client_max_size=1 << 30)

        async def handle(request: web.Request) -> web.StreamResponse:
            return await proxy.handle(request, session)

        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        proxy.url = f"http://{host}:{port}"
        try:
            yield proxy
        finally:
            await runner.cleanup()
