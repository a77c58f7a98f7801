"""Who gets to see what is sent: no proxy, no redirect's target, and no server that the trusted authorities do not vouch for."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
import trustme
from aiohttp import web
from support.fake_s3 import FakeS3, fake_s3, redirect
from support.model_dirs import model_archive
from support.scripted_api import CREATED, ScriptedApi, answer, forward_proxy, raw_server, scripted_api, server_tls
from support.secrecy import KEY, LOGIN, PASSWORD, PREPARED, SECRET, TOKEN, listening, secrets_in

import aiobaseten as ab
from aiobaseten._network import tls_context

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_proxies")]

ARCHIVE = model_archive("bert")
PAYLOAD = ab.DeploymentArchivePayload(config={"model_name": "bert"})
RETRY = ab.RetryOptions(max_attempts=1)
TARGET = ab.PrepareModelUploadResponse(
    creds=ab.AWSCredentials(**PREPARED["creds"]),  # type: ignore[arg-type]
    s3_bucket="bucket",
    s3_key="models/1/model.tgz",
    s3_region="us-west-2",
).target

SWITCHES = {
    "AWS_CA_BUNDLE": "",
    "CURL_CA_BUNDLE": "",
    "CURL_SSL_BACKEND": "none",
    "GIT_SSL_NO_VERIFY": "1",
    "NODE_TLS_REJECT_UNAUTHORIZED": "0",
    "PYTHONHTTPSVERIFY": "0",
    "REQUESTS_CA_BUNDLE": "",
    "SSL_NO_VERIFY": "1",
    "SSL_VERIFY": "false",
    "AIOBASETEN_VERIFY": "0",
}


@asynccontextmanager
async def both_planes(authority: trustme.CA) -> AsyncIterator[tuple[ScriptedApi, FakeS3]]:
    tls = server_tls(authority, "localhost", "api.example", "store.example")

    async def respond(request: web.Request) -> web.StreamResponse:
        what = PREPARED if "prepare" in request.path else {"models": []} if request.method == "GET" else CREATED
        return web.json_response(what)

    async with scripted_api(respond, tls=tls) as api, fake_s3(tls) as s3:
        yield api, s3


async def refused_by_both(api: ScriptedApi, s3: FakeS3) -> None:
    """Neither plane sends a thing to a server that nobody vouches for."""
    async with ab.Client(KEY, base_url=api.url, s3_endpoint_url=s3.url, options=ab.Options(retry=RETRY)) as client:
        for call in (client.list_teams(), client.upload(TARGET, ARCHIVE), client.upload(TARGET, bytes(6 << 20))):
            with pytest.raises(ab.TransportError, match="certificate of localhost is not trusted") as caught:
                await call
            assert not caught.value.retryable
    assert api.seen == []
    assert s3.calls == []


async def test_no_variable_and_no_file_turns_verification_off(
    authority: trustme.CA, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SWITCHES.items():
        monkeypatch.setenv(name, value or str(bundle))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(f"[default]\nverify_ssl = false\nca_bundle = {bundle}\n")
    (tmp_path / ".trussrc").write_text("[baseten]\nremote_provider = baseten\napi_key = x\nverify_ssl = false\nverify = 0\n")
    (tmp_path / ".condarc").write_text("ssl_verify: false\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / ".aws" / "config"))
    async with both_planes(authority) as (api, s3):
        await refused_by_both(api, s3)


async def test_an_authority_that_is_named_is_trusted_and_no_other(authority: trustme.CA, bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    async with both_planes(authority) as (api, s3):
        options = ab.Options(retry=RETRY, ca_bundle=bundle)
        async with ab.Client(KEY, base_url=api.url, s3_endpoint_url=s3.url, options=options) as client:
            assert (await client.push(ab.Push(ARCHIVE, deployment=PAYLOAD))).upload is not None
        options = ab.Options(retry=RETRY, ca_bundle=other)
        async with ab.Client(KEY, base_url=api.url, s3_endpoint_url=s3.url, options=options) as client:
            with pytest.raises(ab.TransportError, match="not trusted"):
                await client.list_teams()
            with pytest.raises(ab.TransportError, match="not trusted"):
                await client.upload(TARGET, ARCHIVE)


async def test_another_name_than_the_certificates_is_refused(bundle: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(bundle)
    tls = server_tls(authority, "elsewhere.example")
    async with scripted_api(answer({}), tls=tls) as api, fake_s3(tls) as s3:
        options = ab.Options(retry=RETRY, ca_bundle=bundle)
        async with ab.Client(KEY, base_url=api.url, s3_endpoint_url=s3.url, options=options) as client:
            with pytest.raises(ab.TransportError, match="not trusted"):
                await client.list_teams()
            with pytest.raises(ab.TransportError, match="not trusted"):
                await client.upload(TARGET, ARCHIVE)
    assert api.seen == []
    assert s3.calls == []


async def test_openssls_own_variables_name_authorities_and_turn_nothing_off(
    authority: trustme.CA, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "missing"))
    async with both_planes(authority) as (api, s3):
        await refused_by_both(api, s3)
        monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
        async with ab.Client(KEY, base_url=api.url, s3_endpoint_url=s3.url) as client:
            assert (await client.push(ab.Push(ARCHIVE, deployment=PAYLOAD))).upload is not None


async def test_session_keys_are_not_written_down(
    authority: trustme.CA, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(keys))
    context = tls_context(bundle, None)
    assert context.keylog_filename is None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    async with both_planes(authority) as (api, s3):
        options = ab.Options(ca_bundle=bundle)
        async with ab.Client(KEY, base_url=api.url, s3_endpoint_url=s3.url, options=options) as client:
            await client.push(ab.Push(ARCHIVE, deployment=PAYLOAD))
    assert "TRAFFIC_SECRET" not in await anyio.Path(keys).read_text()


async def test_a_proxy_gets_its_own_login_and_nothing_else(
    authority: trustme.CA, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with both_planes(authority) as (api, s3):
        for url, host in ((api.url, "api.example"), (s3.url, "store.example")):
            async with forward_proxy(int(url.rpartition(":")[2])) as proxy:
                named = proxy.url.replace(
                    "http://", f"http://user:{PASSWORD.replace('&', '%26').replace('+', '%2B').replace(':', '%3A')}@"
                )
                monkeypatch.setenv("HTTPS_PROXY", named)
                options = ab.Options(retry=RETRY, ca_bundle=bundle)
                client = ab.Client(KEY, base_url="https://api.example", s3_endpoint_url="https://store.example", options=options)
                async with client:
                    if host == "api.example":
                        await client.prepare_model_upload(ab.PrepareModelUploadRequest(name="bert", deployment=PAYLOAD))
                    else:
                        await client.upload(TARGET, ARCHIVE)
            head = proxy.heads[0]
            assert head.startswith(f"CONNECT {host}:443 HTTP/1.")
            assert f"Proxy-Authorization: Basic {LOGIN}" in head
            names = {line.partition(":")[0].lower() for line in head.splitlines()[1:] if line}
            assert names <= {"host", "proxy-authorization", "user-agent", "accept", "accept-encoding"}
            assert secrets_in(head) == {"login"}
    assert s3.headers[0]["X-Amz-Security-Token"] == TOKEN
    assert not any("Proxy-Authorization" in headers for headers in [*s3.headers, *(seen.headers for seen in api.seen)])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 403, 407, 502])
async def test_a_proxy_that_answers_itself_learns_and_tells_nothing(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its redirects are not followed either, and what it echoes is not told."""
    heads: list[str] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        heads.append(head)
        location = f"Location: http://127.0.0.1:1/{KEY}\r\nRefresh: 0; url=http://127.0.0.1:1/\r\n"
        body = f"{PASSWORD} {LOGIN} {KEY}"
        told = f"HTTP/1.1 {status} {LOGIN} {PASSWORD}\r\n{location}Echo: {LOGIN}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        writer.write(told.encode())
        await writer.drain()

    with listening() as shown:
        async with raw_server(refuse) as port:
            monkeypatch.setenv("HTTPS_PROXY", f"http://user:{PASSWORD.replace(':', '%3A').replace('+', '%2B')}@127.0.0.1:{port}")
            options = ab.Options(retry=RETRY)
            client = ab.Client(KEY, base_url="https://api.example", s3_endpoint_url="https://store.example", options=options)
            async with client:
                for call in (client.list_teams(), client.upload(TARGET, ARCHIVE), client.upload(TARGET, bytes(6 << 20))):
                    with pytest.raises(ab.TransportError, match=r"proxy for .* does not let the connection through") as caught:
                        await call
                    shown.add(caught.value)
    assert all(secrets_in(head) == {"login"} for head in heads)
    assert len(heads) == 3
    assert shown.secrets == {}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("size", [1, 6 << 20])
async def test_the_stores_redirects_take_nothing_along(status: int, size: int) -> None:
    """To another port, and so to another origin: nothing is asked there."""
    async with fake_s3() as elsewhere, fake_s3() as s3, scripted_api(answer({})) as api:
        s3.faults["PutObject"] = s3.faults["CreateMultipartUpload"] = [redirect(f"{elsewhere.url}/x?{TOKEN}", status)] * 9
        async with ab.Client(KEY, base_url=api.url, s3_endpoint_url=s3.url, options=ab.Options(retry=RETRY)) as client:
            with pytest.raises(ab.UploadError, match="redirects to") as caught:
                await client.upload(TARGET, bytes(size))
    assert secrets_in(str(caught.value)) == set()
    assert elsewhere.calls == []
    assert len(s3.calls) == 1


async def test_the_service_can_link_and_refresh_in_vain() -> None:
    async with scripted_api(answer({})) as elsewhere:
        told = answer(
            {"teams": []}, Refresh=f"0; url={elsewhere.url}", Link=f"<{elsewhere.url}>; rel=next", Content_Location=elsewhere.url
        )
        async with scripted_api(told) as api, ab.Client(KEY, base_url=api.url) as client:
            assert await client.list_teams() == ()
            with anyio.move_on_after(0.05):
                await anyio.sleep_forever()
    assert elsewhere.seen == []
    assert len(api.seen) == 1
    assert SECRET not in str(api.seen)
