"""Requests over real TLS to servers that behave in every way that servers do."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import attrs
import pytest
import trustme
from support.processes import until
from support.scripted_server import OK, SLOW_DOWN, Peer, connect_proxy, scripted_server

from aiobaseten.errors import ConfigurationError, TransportError, UploadError
from aiobaseten.options import MiB, Options, TimeoutOptions
from aiobaseten.upload.transport import Answer, Request, Transport, checked

pytestmark = pytest.mark.anyio

BODY = b"\x01" * (24 * MiB)
"""More than any kernel takes without somebody who reads."""
HASTY = TimeoutOptions(connect_s=0.3, read_s=0.3)


@dataclass
class Tls:
    """A server's side and a client's side that trust each other."""

    authority: trustme.CA
    server: ssl.SSLContext
    options: Options


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "store.example").configure_cert(context)
    bundle = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    return Tls(authority, context, Options(ca_bundle=bundle))


@asynccontextmanager
async def transport_with(options: Options) -> AsyncIterator[Transport]:
    transport = Transport(options)
    try:
        yield transport
    finally:
        await transport.aclose()


async def put(transport: Transport, url: str, body: bytes | memoryview = b"body", *, ask_first: bool = False) -> Answer:
    request = Request(
        method="PUT", url=url, headers={}, body=body, read_timeout_s=transport._options.timeouts.read_s, ask_first=ask_first
    )
    return await transport.run(lambda flight: transport.exchange(flight, request))


async def test_a_connection_is_used_again(tls: Tls) -> None:
    with scripted_server(Peer.serve, tls=tls.server) as server:
        async with transport_with(tls.options) as transport:
            for _ in range(5):
                assert (await put(transport, server.url())).status == 200
    assert server.connections == 1


async def test_a_connection_that_has_gone_stale_is_replaced(tls: Tls) -> None:
    gone = threading.Event()

    def serve_once(peer: Peer) -> None:
        peer.head(), peer.body(4), peer.send(OK)
        peer.socket.close()
        gone.set()

    with scripted_server(serve_once, Peer.serve, tls=tls.server) as server:
        async with transport_with(tls.options) as transport:
            await put(transport, server.url())
            await anyio.to_thread.run_sync(gone.wait)
            assert (await put(transport, server.url())).status == 200
    assert server.connections == 2


async def test_a_connection_that_the_store_ends_is_not_used_again(tls: Tls) -> None:
    closing = OK.replace(b"ETag", b"Connection: close\r\nETag")
    with scripted_server(lambda peer: peer.serve(closing), tls=tls.server) as server:
        async with transport_with(tls.options) as transport:
            await put(transport, server.url())
            await put(transport, server.url())
    assert server.connections == 2


async def test_a_server_that_is_not_trusted_is_refused_for_good(tls: Tls) -> None:
    with scripted_server(Peer.serve, tls=tls.server) as server:
        async with transport_with(Options()) as transport:
            with pytest.raises(TransportError, match=r"certificate of localhost is not trusted.*Options\.ca_bundle") as caught:
                await put(transport, server.url())
    assert not caught.value.retryable
    assert not caught.value.request_sent


async def test_a_client_certificate_is_shown(tls: Tls, tmp_path: Path) -> None:
    tls.authority.configure_trust(tls.server)
    tls.server.verify_mode = ssl.CERT_REQUIRED
    names: list[object] = []

    def serve(peer: Peer) -> None:
        names.append(peer.socket.getpeercert()["subjectAltName"])  # type: ignore[attr-defined]
        peer.serve()

    certificate = tmp_path / "client.pem"
    tls.authority.issue_cert("uploader.example").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    with scripted_server(serve, tls=tls.server) as server:
        async with transport_with(attrs.evolve(tls.options, client_cert=certificate)) as transport:
            assert (await put(transport, server.url())).status == 200
        async with transport_with(tls.options) as transport:
            with pytest.raises(TransportError, match="broke off"):
                await put(transport, server.url())
    assert names == [(("DNS", "uploader.example"),)]


async def test_a_client_certificate_that_cannot_be_used_is_named(tls: Tls) -> None:
    async with transport_with(Options(client_cert=tls.options.ca_bundle)) as transport:
        with pytest.raises(ConfigurationError, match=r"Options\.client_cert: .*authority\.pem is not"):
            await put(transport, "https://localhost:1/bucket/key")


async def test_a_tunnel_through_the_proxy_of_the_environment(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_server(Peer.serve, tls=tls.server) as server, connect_proxy(server.port) as (port, heads):
        monkeypatch.setenv("https_proxy", f"http://user:word@127.0.0.1:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        async with transport_with(tls.options) as transport:
            assert (await put(transport, "https://store.example/bucket/key")).status == 200
            assert (await put(transport, "https://store.example/bucket/key")).status == 200
    (head,) = heads
    assert head.startswith(b"CONNECT store.example:443 HTTP/1.")
    assert b"Proxy-Authorization: Basic dXNlcjp3b3Jk" in head


async def test_a_proxy_that_refuses_is_named_without_its_password(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    with scripted_server(lambda peer: peer.serve(refusal)) as server:
        monkeypatch.setenv("https_proxy", f"http://user:secret-word@127.0.0.1:{server.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        async with transport_with(tls.options) as transport:
            with pytest.raises(TransportError, match=r"the proxy for store\.example does not let.*407") as caught:
                await put(transport, "https://store.example/bucket/key")
    assert not caught.value.request_sent
    assert "secret-word" not in repr(caught.value.__cause__)


async def test_a_proxy_that_is_not_there(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    async with transport_with(tls.options) as transport:
        with pytest.raises(TransportError, match=r"the proxy for store\.example does not let.*refused") as caught:
            await put(transport, "https://store.example/bucket/key")
    assert not caught.value.request_sent


async def test_an_early_refusal_is_understood_although_the_store_hangs_up(tls: Tls) -> None:
    def refuse_at_once(peer: Peer) -> None:
        peer.head()
        peer.send(SLOW_DOWN)

    with scripted_server(refuse_at_once, refuse_at_once, refuse_at_once, Peer.serve, tls=tls.server) as server:
        async with transport_with(tls.options) as transport:
            for _ in range(3):
                answer = await put(transport, server.url(), BODY)
                assert (answer.status, answer.content) == (503, b"busy")
            assert (await put(transport, server.url())).status == 200
    assert server.connections == 4


async def test_an_early_refusal_is_understood_although_the_store_reads_no_more(tls: Tls) -> None:
    done = threading.Event()

    def refuse_and_wait(peer: Peer) -> None:
        peer.head()
        peer.send(SLOW_DOWN)
        done.wait(60)

    with scripted_server(refuse_and_wait, Peer.serve, tls=tls.server) as server:
        async with transport_with(attrs.evolve(tls.options, timeouts=HASTY)) as transport:
            try:
                assert (await put(transport, server.url(), BODY)).status == 503
                assert (await put(transport, server.url())).status == 200
            finally:
                done.set()
    assert server.connections == 2


async def test_the_store_is_asked_first(tls: Tls) -> None:
    heads: list[bytes] = []

    def go_on(peer: Peer) -> None:
        for _ in range(2):
            heads.append(peer.head())
            peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert peer.body(4) == b"body"
            peer.send(OK)

    with scripted_server(go_on, tls=tls.server) as server:
        async with transport_with(tls.options) as transport:
            assert (await put(transport, server.url(), ask_first=True)).status == 200
            assert (await put(transport, server.url(), ask_first=True)).status == 200
    assert all(b"Expect: 100-continue" in head for head in heads)
    assert server.connections == 1


async def test_a_store_that_is_asked_first_can_refuse(tls: Tls) -> None:
    received: list[bytes] = []

    def refuse(peer: Peer) -> None:
        peer.head()
        peer.send(SLOW_DOWN)
        received.append(peer.rest())

    with scripted_server(refuse, Peer.serve, tls=tls.server) as server:
        async with transport_with(tls.options) as transport:
            answer = await put(transport, server.url(), BODY, ask_first=True)
            assert (answer.status, answer.content) == (503, b"busy")
            assert (await put(transport, server.url())).status == 200
            await until(lambda: received == [b""])


async def test_a_store_that_does_not_know_the_question_gets_the_body(tls: Tls) -> None:
    with scripted_server(Peer.serve, tls=tls.server) as server:
        async with transport_with(tls.options) as transport:
            assert (await put(transport, server.url(), ask_first=True)).status == 200


async def test_a_store_that_does_not_answer_in_time(tls: Tls) -> None:
    with scripted_server(Peer.rest, tls=tls.server) as server:
        async with transport_with(attrs.evolve(tls.options, timeouts=HASTY)) as transport:
            with pytest.raises(TransportError, match="localhost did not answer in time") as caught:
                await put(transport, server.url())
    assert caught.value.request_sent


async def test_a_store_that_reads_no_more(tls: Tls) -> None:
    done = threading.Event()
    with scripted_server(lambda peer: done.wait(60), tls=tls.server) as server:
        async with transport_with(attrs.evolve(tls.options, timeouts=HASTY)) as transport:
            try:
                with pytest.raises(TransportError, match="localhost did not answer in time") as caught:
                    await put(transport, server.url(), BODY)
            finally:
                done.set()
    assert caught.value.request_sent


async def test_a_handshake_that_never_comes(tls: Tls) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://localhost:{silent.getsockname()[1]}/bucket/key"
        async with transport_with(attrs.evolve(tls.options, timeouts=HASTY)) as transport:
            with pytest.raises(TransportError, match="no connection to localhost in time") as caught:
                await put(transport, url)
    assert not caught.value.request_sent


@pytest.mark.parametrize(
    ("url", "words"),
    [("https://localhost:1/key", "cannot connect to localhost.*refused"), ("https://nowhere.invalid/key", "name nowhere.invalid")],
)
async def test_hosts_that_cannot_be_reached(url: str, words: str) -> None:
    async with transport_with(Options()) as transport:
        with pytest.raises(TransportError, match=words) as caught:
            await put(transport, url)
    assert not caught.value.request_sent


@pytest.mark.parametrize("answer", [b"", b"what is this?\r\n\r\n", OK.replace(b"Length: 0", b"Length: 9")])
async def test_answers_that_break_off_or_are_none(tls: Tls, answer: bytes) -> None:
    def serve(peer: Peer) -> None:
        peer.head(), peer.body(4), peer.send(answer)

    with scripted_server(serve, tls=tls.server) as server:
        async with transport_with(tls.options) as transport:
            with pytest.raises(TransportError, match="broke off") as caught:
                await put(transport, server.url())
    assert caught.value.request_sent
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (b'HTTP/1.1 200 OK\r\nETag: "ab', "the answer ended within its head"),
        (b"HTTP/1.1 200 OK\r\nETag: x\r\n", "the answer ended within its head"),
        (b"HTTP/1.1 204 No Content\r\n", "the answer ended within its head"),
        (b"HTTP/1.1 403 Forb", "the answer ended within its head"),
        (b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nETag: "ab', "the answer ended within its head"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n<Complete", ""),
    ],
    ids=["in-a-header", "between-headers", "after-the-status", "in-the-status", "after-an-unasked-100", "in-the-body"],
)
async def test_an_answer_that_is_cut_off_is_none(tls: Tls, cut: bytes, words: str) -> None:
    def serve(peer: Peer) -> None:
        peer.head(), peer.body(4), peer.send(cut)

    with scripted_server(serve, tls=tls.server) as server:
        async with transport_with(tls.options) as transport:
            with pytest.raises(TransportError, match=f"broke off: {words}"):
                await put(transport, server.url())


@pytest.mark.parametrize("cut", [b"HTTP/1.1 403 Forbidden\r\n", b'HTTP/1.1 200 OK\r\nETag: "ab'])
async def test_a_refusal_that_is_cut_off_is_none(tls: Tls, cut: bytes) -> None:
    def refuse(peer: Peer) -> None:
        peer.head(), peer.send(cut)

    with scripted_server(refuse, tls=tls.server) as server:
        async with transport_with(tls.options) as transport:
            with pytest.raises(TransportError, match="broke off"):
                await put(transport, server.url(), ask_first=True)


async def test_an_endless_answer_is_not_read_to_its_end(tls: Tls) -> None:
    def serve(peer: Peer) -> None:
        peer.head(), peer.body(4), peer.send(b"HTTP/1.1 500 Oh\r\n\r\n")
        with suppress(OSError):
            while True:
                peer.send(b"x" * 65536)

    with scripted_server(serve, tls=tls.server) as server:
        async with transport_with(tls.options) as transport:
            assert (await put(transport, server.url())).status == 500


async def test_a_redirect_is_not_followed(tls: Tls) -> None:
    elsewhere = b"HTTP/1.1 307 Go\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\n\r\n"
    with scripted_server(lambda peer: peer.serve(elsewhere), tls=tls.server) as server:
        async with transport_with(tls.options) as transport:
            answer = await put(transport, server.url())
    with pytest.raises(UploadError, match=r"redirects to elsewhere\.example"):
        checked(answer)


@pytest.mark.parametrize("by_asyncio", [False, True])
async def test_cancelled_in_a_write_nothing_of_the_body_is_read_any_more(tls: Tls, by_asyncio: bool) -> None:
    begun, go_on, received = threading.Event(), threading.Event(), []

    def read_late(peer: Peer) -> None:
        peer.head()
        received.append(peer.body(1))
        begun.set()
        go_on.wait(60)
        received.append(peer.rest())

    body = bytearray(BODY)
    with scripted_server(read_late, tls=tls.server) as server:
        async with transport_with(tls.options) as transport, anyio.create_task_group() as tasks:
            call = asyncio.ensure_future(put(transport, server.url(), memoryview(body)))
            await anyio.to_thread.run_sync(begun.wait)
            if by_asyncio:
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            else:
                await transport.aclose()
                with pytest.raises(ConfigurationError, match="closed while it was in use"):
                    await call
            body[:] = b"\x02" * len(body)
            go_on.set()
            await until(lambda: len(received) == 2)
            tasks.cancel_scope.cancel()
    assert 0 < sum(map(len, received)) < len(body)
    assert set(b"".join(received)) == {1}


async def test_cancelled_while_the_store_thinks(tls: Tls) -> None:
    arrived = threading.Event()

    def think(peer: Peer) -> None:
        peer.head(), peer.body(4)
        arrived.set()
        peer.rest()

    with scripted_server(think, tls=tls.server) as server:
        async with transport_with(tls.options) as transport:
            call = asyncio.ensure_future(put(transport, server.url()))
            await anyio.to_thread.run_sync(arrived.wait)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call


async def test_cancelled_while_a_connection_is_opened_it_waits_for_nothing(tls: Tls) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        url = f"https://localhost:{silent.getsockname()[1]}/bucket/key"
        async with transport_with(tls.options) as transport:
            call = asyncio.ensure_future(put(transport, url))
            connection, _ = await anyio.to_thread.run_sync(silent.accept)
            with connection:
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                assert transport._scopes == set()


async def test_a_closed_transport_refuses() -> None:
    transport = Transport(Options())
    await transport.aclose()
    with pytest.raises(ConfigurationError, match="closed"):
        await put(transport, "https://localhost:1/key")
