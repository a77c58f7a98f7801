"""What a client, its commands and its files show when nothing fails, when it cannot even be made, and when it is cut off."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from support.clock import FakeClock
from support.commands import command
from support.fake_s3 import FakeS3, fake_s3
from support.model_dirs import model_archive, model_dir
from support.processes import until
from support.scripted_api import CREATED, DEPLOYMENT, answer, never, scripted_api
from support.secrecy import KEY, PASSWORD, PREPARED, SECRET, Shown, listening, modes_in, secrets_in

import aiobaseten as ab
from aiobaseten.events import Event
from aiobaseten.local import LocalStack

pytestmark = pytest.mark.anyio

ARCHIVE = model_archive("bert")
PAYLOAD = ab.DeploymentArchivePayload(config={"model_name": "bert"})
PREPARE = ab.PrepareModelUploadRequest(name="bert", deployment=PAYLOAD)


async def respond(request: web.Request) -> web.StreamResponse:
    """A service where everything goes well."""
    if "prepare" in request.path:
        return web.json_response(PREPARED)
    if request.method == "GET" and "deployments/" in request.path:
        return web.json_response(DEPLOYMENT | {"status": "ACTIVE"})
    return web.json_response({"models": []} if request.method == "GET" else CREATED)


async def test_a_run_that_goes_well_shows_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = []
    with listening(every_callback=True) as shown:
        async with scripted_api(respond) as api, fake_s3() as s3:
            client = ab.Client(KEY, base_url=api.url, s3_endpoint_url=s3.url, observer=events.append)
            async with client:
                pushes = [ab.Push(ARCHIVE, deployment=PAYLOAD), ab.Push(bytes(9 << 20), deployment=PAYLOAD)]
                async with client.push_many(pushes, journal=tmp_path / "deploy.db", wait_timeout_s=5) as run:
                    outcomes = [outcome async for outcome in run]
                    shown.add_files(tmp_path, "*")
    assert [outcome.error for outcome in outcomes] == [None, None]
    shown.add(*events, *outcomes, run.report)
    shown.add_files(tmp_path, "*")
    shown.texts += [str(thing) for thing in (client, vars(client), pushes)]
    shown.add(*capfd.readouterr())
    assert {"asyncio", "botocore.auth", "botocore.hooks", "urllib3.connectionpool"} <= shown.log_names
    assert len(s3.objects) == 1
    assert shown.secrets == {}


async def test_what_holds_credentials_shows_none() -> None:
    async with scripted_api(respond) as api, ab.Client(KEY, base_url=api.url) as client:
        prepared = await client.prepare_model_upload(PREPARE)
        held = [client, client._open_planes(), client._api_key, prepared, prepared.creds, prepared.target]
        assert secrets_in("".join(f"{thing!s} {thing!r}" for thing in held)) == set()
    assert prepared.target is not None
    assert pickle.loads(pickle.dumps(prepared)) == prepared


@pytest.mark.parametrize("pickled", [False, True])
async def test_credentials_from_elsewhere_are_masked_from_their_first_use_on(pickled: bool) -> None:
    """Credentials that were not prepared by any client here, but came out of a pickle or were made by hand."""
    credentials = ab.AWSCredentials(
        aws_access_key_id="ASIAELSEWHERE00", aws_secret_access_key="elsewhere-secret", aws_session_token="elsewhere-token"
    )
    target = ab.UploadTarget(credentials=credentials, bucket="bucket", key="k", region="us-west-2")
    if pickled:
        target = pickle.loads(pickle.dumps(target))
    with listening(debug=False) as shown:
        async with (
            scripted_api(respond) as api,
            fake_s3() as s3,
            ab.Client(KEY, base_url=api.url, s3_endpoint_url=s3.url) as client,
        ):
            await client.upload(target, ARCHIVE)
    assert s3.headers[0]["X-Amz-Security-Token"] == "elsewhere-token"
    assert not any("elsewhere-" in text for text in shown.texts)


TRUSSRC = f"[baseten]\nremote_provider = baseten\napi_key = {KEY}\n"


@pytest.mark.parametrize(
    "make",
    [
        lambda: ab.Client(KEY + "\n"),
        lambda: ab.Client(KEY, base_url="ftp://nowhere"),
        lambda: ab.Client(KEY, base_url=f"https://user:{KEY}@api.example"),
        lambda: ab.Client(KEY, s3_endpoint_url=f"https://user:{SECRET}@s3.example"),
        lambda: ab.Client(KEY, auth_scheme="Basic"),  # type: ignore[arg-type]
        lambda: ab.Client(KEY, options=KEY),  # type: ignore[arg-type]
        lambda: ab.Client(KEY.encode()),  # type: ignore[arg-type]
        lambda: LocalStack(api_key=KEY + " x"),
        lambda: LocalStack(api_key=KEY, teams="default"),
    ],
)
async def test_a_client_that_cannot_be_made(make: Callable[[], ab.Client]) -> None:
    shown = Shown()

    async def open_it() -> None:
        async with make():
            pass

    with pytest.raises(ab.ConfigurationError) as caught:
        await open_it()
    shown.add(caught.value)
    assert shown.secrets == {}


@pytest.mark.parametrize(
    ("variable", "value", "trussrc"),
    [
        ("BASETEN_API_KEY", KEY + "\n", ""),
        ("BASETEN_API_KEY", " ", TRUSSRC),
        ("UNRELATED", KEY, TRUSSRC.replace("api_key =", "api_key")),
        ("UNRELATED", KEY, TRUSSRC + f"api_key = {KEY}\n"),
        ("UNRELATED", KEY, TRUSSRC.replace("[baseten]", "")),
        ("UNRELATED", KEY, TRUSSRC + f"remote_url = http://{KEY}.example\n"),
        ("UNRELATED", KEY, TRUSSRC.replace(KEY, f"{KEY} {KEY}")),
        ("UNRELATED", KEY, TRUSSRC.replace("[baseten]", "[one]") + TRUSSRC.replace("[baseten]", "[two]")),
        ("UNRELATED", KEY, ""),
    ],
)
def test_a_key_that_cannot_be_found_or_used(
    variable: str, value: str, trussrc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the environment, too, nothing is among the local variables that an error carries."""
    (tmp_path / ".trussrc").write_text(trussrc)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("BASETEN_API_KEY", raising=False)
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:{PASSWORD}@proxy.example")
    shown = Shown()
    with pytest.raises(ab.ConfigurationError) as caught:
        ab.Client()
    shown.add(caught.value)
    assert shown.secrets == {}


@pytest.mark.parametrize(
    "proxy", [f"socks5://user:{PASSWORD}@proxy.example", f"http://user:{PASSWORD}@a..example", f"http://{PASSWORD}"]
)
async def test_a_proxy_that_cannot_be_used(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.delenv("NO_PROXY", raising=False)
    shown = Shown()
    for arguments in (
        {"base_url": "https://api.example"},
        {"base_url": "http://127.0.0.1:1", "s3_endpoint_url": "http://s3.example"},
    ):
        with pytest.raises(ab.ConfigurationError) as caught:
            await ab.Client(KEY, **arguments).__aenter__()
        shown.add(caught.value)
    assert shown.secrets == {}


async def stalls(request: web.Request, _: FakeS3) -> None:
    await request.read()
    await asyncio.Event().wait()


@pytest.mark.parametrize("where", ["service", "PutObject", "CreateMultipartUpload", "UploadPart"])
async def test_cut_off_by_its_caller(where: str) -> None:
    """`asyncio.timeout` leaves the cancellation, with all frames that it went through, as the cause of its error."""
    data = ARCHIVE if where in ("service", "PutObject") else bytes(9 << 20)
    options = ab.Options(timeouts=ab.TimeoutOptions(abort_s=0.2))
    with listening() as shown:
        async with scripted_api(never if where == "service" else respond) as api, fake_s3() as s3:
            s3.faults[where] = [stalls] * 9
            async with ab.Client(KEY, base_url=api.url, s3_endpoint_url=s3.url, options=options) as client:

                async def push() -> None:
                    async with asyncio.timeout(60) as limit, asyncio.TaskGroup() as tasks:
                        pushing = tasks.create_task(client.push(ab.Push(data, deployment=PAYLOAD)))
                        await until(lambda: bool(api.seen if where == "service" else s3.in_flight))
                        limit.reschedule(0)
                        await pushing

                with pytest.raises(TimeoutError) as caught:
                    await push()
    shown.add(caught.value)
    cancelled = caught.value.__cause__
    assert isinstance(cancelled, asyncio.CancelledError)
    assert shown.secrets == {}


@pytest.mark.parametrize("keeps", [False, True])
async def test_a_journal_keeps_credentials_only_by_consent_and_only_while_they_are_of_use(tmp_path: Path, keeps: bool) -> None:
    journal = tmp_path / "deploy.db"
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def hold(request: web.Request, _: FakeS3) -> None:
        await request.read()
        reached.set()
        await go_on.wait()

    async with scripted_api(respond) as api, fake_s3() as s3, ab.Client(KEY, base_url=api.url, s3_endpoint_url=s3.url) as client:
        s3.faults["CompleteMultipartUpload"] = [hold]
        push = ab.Push(bytes(9 << 20), deployment=PAYLOAD)
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                report = await client.push_all([push], journal=journal, journal_credentials=keeps)
                assert report.ok

            tasks.start_soon(run)
            await reached.wait()
            during, modes = Shown(), modes_in(tmp_path)
            during.add_files(tmp_path, "*")
            go_on.set()
    after = Shown()
    after.add_files(tmp_path, "*")
    assert set(during.secrets) == ({"id", "secret", "token"} if keeps else set())
    assert set(modes.values()) == {0o600}
    assert set(modes) >= {"deploy.db", "deploy.db-wal", "deploy.db-shm", "deploy.db.lock"}
    assert after.secrets == {}


CLI_FAILURES = {
    "401": answer({"message": f"no {KEY}"}, 401),
    "500": answer({"message": f"no {KEY}"}, 500),
    "redirect": answer(status=307, Location=f"https://evil.example/{KEY}"),
    "not json": answer(raw=KEY.encode()),
}


@pytest.mark.parametrize("failure", CLI_FAILURES)
@pytest.mark.parametrize("flags", [(), ("--json",)])
async def test_commands_that_fail_print_and_write_nothing(
    failure: str, flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = model_dir(tmp_path / "model", "bert")
    manifest = tmp_path / "deploy.json"
    manifest.write_text(json.dumps({"models": [{"path": str(model)}]}))
    monkeypatch.setenv("BASETEN_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path))
    clock = FakeClock().clock
    monkeypatch.setattr("aiobaseten.client.Clock", lambda: clock)
    previous = os.umask(0)
    shown = Shown()
    try:
        async with scripted_api(CLI_FAILURES[failure]) as api:
            monkeypatch.setenv("AIOBASETEN_BASE_URL", api.url)
            for arguments in (
                ("push", model, "--report", tmp_path / "report.html", "--journal", tmp_path / "run.db", "--journal-credentials"),
                ("push", "--manifest", manifest, "--report", tmp_path / "fleet.html"),
                ("check", model),
                ("wait", "m1", "d1", "--timeout", 0),
            ):
                assert await command(*arguments, *flags) != 0
    finally:
        os.umask(previous)
    shown.add(*capfd.readouterr())
    shown.add_files(tmp_path, "*.*")
    assert shown.secrets == {}
    journals = modes_in(tmp_path, "*.db*")
    assert set(journals) >= {"run.db", "deploy.json.journal.db"}
    assert set(journals.values()) == {0o600}


async def test_no_command_takes_a_key_as_an_argument(capfd: pytest.CaptureFixture[str]) -> None:
    """Other users may read the arguments of every process."""
    for name in ("push", "check", "wait", "local", "bench"):
        assert await command(name, "--api-key", KEY) == 2
    assert secrets_in("".join(capfd.readouterr())) == set()
