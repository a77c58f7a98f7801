"""No answer: every way in which a connection can fail, through proxies and TLS too, and that nothing of it shows a secret."""

from __future__ import annotations

import asyncio
import base64
import gc
import logging
import socket
import ssl
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from support.scripted_api import (
    KEY,
    PREPARED,
    Talk,
    answer,
    control_plane,
    drop,
    forward_proxy,
    never,
    raw_server,
    scripted_api,
    server_tls,
)

from aiobaseten.api import ControlPlane
from aiobaseten.errors import BasetenError, ConfigurationError, TransportError
from aiobaseten.options import Options, TimeoutOptions

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_proxies")]

PATIENT_S = 30.0
NAME = "api.baseten.example"


def hasty(**seconds: float) -> Options:
    return Options(timeouts=TimeoutOptions(**{"connect_s": PATIENT_S, "read_s": PATIENT_S} | seconds))


def as_it_is(data: Any) -> Any:
    return data


async def failed(plane: ControlPlane, method: str = "GET", body: Any = None) -> TransportError:
    async with plane:
        with pytest.raises(TransportError) as caught:
            await plane.request(method, "/v1/models", as_it_is, body=body)
    assert caught.value.__cause__ is not None
    return caught.value


@pytest.fixture
def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


def talk(*steps: bytes) -> Talk:
    """A server that reads a request before each step, whose bytes it sends. After the last it hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for step in steps:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"content-length: 2\r\n" in head.lower():
                await reader.readexactly(2)
            writer.write(step)
            await writer.drain()

    return serve


async def test_refused(free_port: int) -> None:
    error = await failed(control_plane(f"http://127.0.0.1:{free_port}"))
    assert str(error).startswith("cannot connect to 127.0.0.1: ")
    assert (error.request_sent, error.retryable) == (False, True)


async def test_unknown_host() -> None:
    error = await failed(control_plane("https://no-such-host.invalid"))
    assert str(error).startswith("the host name no-such-host.invalid cannot be resolved: ")
    assert (error.request_sent, error.retryable) == (False, True)


async def test_connection_not_made_in_time() -> None:
    """A server that takes the connection and never says a word of TLS."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await anyio.sleep_forever()

    async with raw_server(silent) as port:
        error = await failed(control_plane(f"https://127.0.0.1:{port}", options=hasty(connect_s=0.05)))
    assert str(error) == "no connection to 127.0.0.1 in time"
    assert (error.request_sent, error.retryable) == (False, True)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_no_answer_in_time(method: str) -> None:
    async with scripted_api(never) as api:
        body = {} if method == "POST" else None
        error = await failed(control_plane(api.url, options=hasty(read_s=0.05)), method, body)
    assert str(error) == "127.0.0.1 did not answer in time"
    assert (error.request_sent, error.retryable) == (True, True)


async def test_answer_that_stops_half_way() -> None:
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"
    async with raw_server(talk(half, b"")) as port:
        error = await failed(control_plane(f"http://127.0.0.1:{port}", options=hasty(read_s=0.05)))
    assert str(error) == "127.0.0.1 did not answer in time"
    assert error.request_sent


async def test_server_that_takes_no_more_of_a_big_body() -> None:
    async def take_a_little(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await anyio.sleep_forever()

    async with raw_server(take_a_little) as port:
        plane = control_plane(f"http://127.0.0.1:{port}", options=hasty(read_s=0.2))
        error = await failed(plane, "POST", {"text": "x" * 40_000_000})
    assert str(error) == "127.0.0.1 did not answer in time"
    assert error.request_sent


@pytest.mark.parametrize(
    "steps",
    [
        (b"",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nplain",),
        (b"SSH-2.0-OpenSSH_9.6\r\n",),
        (b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n",),
    ],
    ids=["hangs up", "body cut short", "bad chunk", "bad gzip", "no HTTP", "endless header"],
)
async def test_connection_breaks_off(steps: tuple[bytes, ...]) -> None:
    async with raw_server(talk(*steps)) as port:
        error = await failed(control_plane(f"http://127.0.0.1:{port}"), "POST", {})
    assert str(error).startswith("the connection to 127.0.0.1 broke off: ")
    assert (error.request_sent, error.retryable) == (True, True)
    assert KEY not in everything_said(error)


async def test_a_post_on_a_dead_connection_is_sent_once() -> None:
    async with scripted_api(answer({}), drop) as api, control_plane(api.url) as plane:
        await plane.request("POST", "/v1/models", as_it_is, body={"number": 1})
        with pytest.raises(TransportError) as caught:
            await plane.request("POST", "/v1/models", as_it_is, body={"number": 2})
    assert caught.value.request_sent
    assert [seen.json["number"] for seen in api.seen] == [1, 2]


async def test_a_big_post_on_a_dead_connection_is_sent_once() -> None:
    async with scripted_api(answer({}), drop) as api, control_plane(api.url) as plane:
        await plane.request("POST", "/v1/models", as_it_is, body={"number": 1})
        with pytest.raises(TransportError):
            await plane.request("POST", "/v1/models", as_it_is, body={"number": 2, "text": "x" * 500_000})
    assert [seen.json["number"] for seen in api.seen] == [1, 2]


async def test_a_get_on_a_dead_connection_is_not_repeated_unseen() -> None:
    async with scripted_api(answer({}), drop, answer({"second": True})) as api, control_plane(api.url) as plane:
        await plane.request("GET", "/v1/models", as_it_is)
        with pytest.raises(TransportError, match="broke off"):
            await plane.request("GET", "/v1/models", as_it_is)
        assert await plane.request("GET", "/v1/models", as_it_is) == {"second": True}
    assert len(api.seen) == 3


async def test_certificate_of_an_unknown_authority(authority: trustme.CA) -> None:
    async with scripted_api(answer({}), tls=server_tls(authority, "localhost")) as api:
        error = await failed(control_plane(api.url), "POST", {})
        assert api.seen == []
    assert "the certificate of localhost is not trusted" in str(error)
    assert "Options.ca_bundle" in str(error)
    assert (error.request_sent, error.retryable) == (False, False)


async def test_certificate_of_another_host(authority: trustme.CA, bundle: Path) -> None:
    async with scripted_api(answer({}), tls=server_tls(authority, "other.example")) as api:
        error = await failed(control_plane(api.url, options=Options(ca_bundle=bundle)))
    assert "the certificate of localhost is not trusted" in str(error)
    assert (error.request_sent, error.retryable) == (False, False)


async def test_https_to_a_plain_http_port() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with raw_server(refuse) as port:
        error = await failed(control_plane(f"https://127.0.0.1:{port}"))
    assert "cannot connect to 127.0.0.1" in str(error)
    assert (error.request_sent, error.retryable) == (False, True)


async def test_ca_bundle_is_trusted_and_nothing_stays_open(authority: trustme.CA, bundle: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with scripted_api(answer(PREPARED), tls=server_tls(authority, "localhost")) as api:
            async with control_plane(api.url, options=Options(ca_bundle=bundle)) as plane, anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(plane.request, "GET", "/v1/models", as_it_is)
            del plane
            gc.collect()
        assert len(api.seen) == 5


@pytest.mark.parametrize(
    "content", [None, "", "not a certificate", "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"]
)
async def test_unusable_ca_bundle(tmp_path: Path, content: str | None) -> None:
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_text(content)
    with pytest.raises(ConfigurationError, match=r"Options\.ca_bundle: .*ca\.pem is not a readable PEM file") as caught:
        await control_plane("https://localhost", options=Options(ca_bundle=bundle)).__aenter__()
    assert isinstance(caught.value.__cause__, OSError | ssl.SSLError)


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
async def test_proxy_of_the_environment(
    authority: trustme.CA, bundle: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """The name is never looked up here: the proxy is asked for a tunnel to it, and TLS goes through."""
    async with scripted_api(answer({}), tls=server_tls(authority, NAME)) as api, forward_proxy(int(api.url[-5:])) as proxy:
        monkeypatch.setenv(variable, proxy.url.removeprefix("http://") if variable == "ALL_PROXY" else proxy.url)
        async with control_plane(f"https://{NAME}:8443", options=Options(ca_bundle=bundle)) as plane:
            await plane.request("GET", "/v1/models", as_it_is)
            await plane.request("POST", "/v1/models", as_it_is, body={})
    assert len(proxy.heads) == 1
    assert proxy.heads[0].startswith(f"CONNECT {NAME}:8443 HTTP/1.1\r\n")
    assert "authorization" not in proxy.heads[0].lower()
    assert KEY not in proxy.heads[0]
    assert [seen.headers["Authorization"] for seen in api.seen] == [f"Bearer {KEY}"] * 2
    assert [seen.headers["Host"] for seen in api.seen] == [f"{NAME}:8443"] * 2
    assert not any("Proxy-Authorization" in seen.headers for seen in api.seen)


async def test_proxy_with_a_login(authority: trustme.CA, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted_api(answer({}), tls=server_tls(authority, NAME)) as api, forward_proxy(int(api.url[-5:])) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("http://", "http://m%C3%A9:p%40ss@"))
        async with control_plane(f"https://{NAME}", options=Options(ca_bundle=bundle)) as plane:
            await plane.request("GET", "/v1/models", as_it_is)
    login = base64.b64encode("m\u00e9:p@ss".encode()).decode()
    assert f"Proxy-Authorization: Basic {login}\r\n" in proxy.heads[0]
    assert "Proxy-Authorization" not in api.seen[0].headers


@pytest.mark.parametrize("status", [403, 407, 502])
async def test_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    async with forward_proxy(1, status=status) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("http://", "http://me:proxy-planted@"))
        error = await failed(control_plane(f"https://{NAME}"), "POST", {})
    assert str(error).startswith(f"the proxy for {NAME} does not let the connection through: {status}")
    assert not error.request_sent
    for secret in (KEY, "proxy-planted", base64.b64encode(b"me:proxy-planted").decode()):
        assert secret not in everything_said(error)


async def test_proxy_that_is_down(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:proxy-planted@127.0.0.1:{free_port}")
    error = await failed(control_plane(f"https://{NAME}"), "POST", {})
    assert str(error).startswith(f"the proxy for {NAME} does not let the connection through")
    assert (error.request_sent, error.retryable) == (False, True)
    assert "proxy-planted" not in everything_said(error)


async def test_proxy_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await anyio.sleep_forever()

    async with raw_server(silent) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        error = await failed(control_plane(f"https://{NAME}", options=hasty(connect_s=0.05)), "POST", {})
    assert str(error) == f"no connection to {NAME} in time"
    assert (error.request_sent, error.retryable) == (False, True)


async def test_no_proxy_and_loopback_go_straight(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port}")
    async with scripted_api(answer({})) as api, control_plane(api.url) as plane:
        assert await plane.request("GET", "/v1/models", as_it_is) == {}
    monkeypatch.setenv("NO_PROXY", "other.example,.invalid")
    error = await failed(control_plane("https://no-such-host.invalid"))
    assert "cannot be resolved" in str(error)


@pytest.mark.parametrize(
    "proxy", ["socks5://me:proxy-planted@127.0.0.1:1080", "http://me:proxy-planted", "http://", "http://a..example:8080"]
)
async def test_unusable_proxy(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(ConfigurationError, match=f"the proxy that the environment names for {NAME} must be") as caught:
        await control_plane(f"https://{NAME}").__aenter__()
    assert "proxy-planted" not in everything_said(caught.value)


def everything_said(error: BaseException) -> str:
    """All text that an error and those behind it could show."""
    said: list[str] = []
    known: BaseException | None = error
    while known is not None:
        said += [str(known), repr(known), repr(known.args), repr(vars(known)), *traceback.format_exception(known)]
        known = known.__cause__ or known.__context__
    return "\n".join(said)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        yield caplog


@pytest.mark.parametrize(
    "respond",
    [
        answer({"message": f"the key {KEY} is wrong", "x": KEY}, 401, X_Request_Id=KEY),
        answer(raw=f"<title>{KEY}</title>".encode(), status=502, content_type="text/html"),
        answer({KEY: KEY}, 400),
        answer(status=302, Location=f"https://{KEY}@evil.example/{KEY}?{KEY}"),
        answer(raw=KEY.encode(), content_type="text/plain"),
        answer({"key": KEY}, 429, Retry_After=KEY),
        drop,
    ],
)
async def test_the_key_shows_up_nowhere(respond: Any, logged: pytest.LogCaptureFixture) -> None:
    async with scripted_api(respond) as api, control_plane(api.url) as plane:
        with pytest.raises(BasetenError) as caught:
            await plane.request(
                "POST", "/v1/models/{model_id}", lambda data: data["never"], path_params={"model_id": "m1"}, body={}
            )
    assert KEY not in everything_said(caught.value)
    assert KEY not in logged.text
    assert any(KEY in value for value in api.seen[0].headers.values())
