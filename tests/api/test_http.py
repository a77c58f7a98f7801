"""Requests over real sockets: what is sent, and what becomes of each kind of answer."""

from __future__ import annotations

import asyncio
import gzip
import importlib.metadata
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from blockbuster import blockbuster_ctx
from support.clock import FakeClock
from support.scripted_api import KEY, MODEL, PREPARED, answer, control_plane, drop, scripted_api

from aiobaseten._convert import from_json
from aiobaseten.api import http
from aiobaseten.api.http import ControlPlane, user_agent
from aiobaseten.errors import (
    ApiError,
    AuthenticationError,
    ConfigurationError,
    InvalidPush,
    NotFoundError,
    RateLimited,
    ServerError,
    TransportError,
)
from aiobaseten.models import Model
from aiobaseten.options import Options

pytestmark = pytest.mark.anyio


def as_it_is(data: Any) -> Any:
    return data


def read_model(data: Any) -> Model:
    return from_json(data, Model)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("scheme", ["Bearer", "Api-Key"])
async def test_headers_of_a_request(scheme: Any) -> None:
    async with scripted_api(answer({})) as api, control_plane(api.url, auth_scheme=scheme) as plane:
        assert await plane.request("GET", "/v1/teams", as_it_is) == {}
    (seen,) = api.seen
    assert seen.headers["Authorization"] == f"{scheme} {KEY}"
    assert seen.headers["Accept"] == "application/json"
    assert seen.headers["User-Agent"] == user_agent()
    assert seen.headers["User-Agent"].startswith(f"aiobaseten/{importlib.metadata.version('aiobaseten')} python/3.")
    assert "Content-Type" not in seen.headers
    assert seen.body == b""


async def test_body_is_compact_json() -> None:
    body = {
        "a": [1, None, True],
        "text": "\u00e9\u2026\U0001f600",
        "mapping": types.MappingProxyType({"deep": types.MappingProxyType({})}),
    }
    async with scripted_api(answer({})) as api, control_plane(api.url) as plane:
        await plane.request("POST", "/v1/models", as_it_is, body=body)
    (seen,) = api.seen
    assert seen.headers["Content-Type"] == "application/json"
    assert seen.body.decode() == '{"a":[1,null,true],"text":"\u00e9\u2026\U0001f600","mapping":{"deep":{}}}'


@pytest.mark.parametrize("size", [http.WRITE_SLICE_BYTES - 100, http.WRITE_SLICE_BYTES + 100, 5_000_000])
async def test_big_body(size: int) -> None:
    """aiohttp would warn of bytes of more than 1 MiB."""
    body = {"text": "x" * size}
    async with scripted_api(answer({})) as api, control_plane(api.url) as plane:
        await plane.request("POST", "/v1/models", as_it_is, body=body)
        await plane.request("POST", "/v1/models", as_it_is, body=body)
    assert [seen.json == body for seen in api.seen] == [True, True]
    assert all(seen.headers["Content-Type"] == "application/json" for seen in api.seen)
    assert all(seen.headers["Content-Length"] == str(size + len('{"text":""}')) for seen in api.seen)


def endless() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"a": float("nan")}, "float values are not JSON compliant"),
        ({"a": b"bytes"}, "bytes is not a JSON value"),
        ({"a": "\ud800"}, "surrogates not allowed"),
        ({"a": endless()}, "Circular reference"),
    ],
)
async def test_body_that_json_cannot_carry(body: Any, reason: str) -> None:
    async with scripted_api(answer({})) as api, control_plane(api.url) as plane:
        with pytest.raises(InvalidPush, match=f"cannot be sent as JSON: .*{reason}") as caught:
            await plane.request("POST", "/v1/models", as_it_is, body=body)
    assert isinstance(caught.value.__cause__, TypeError | ValueError)
    assert api.seen == []


async def test_path_parameters_and_query_are_encoded() -> None:
    async with scripted_api(answer({})) as api, control_plane(api.url + "/prefix/") as plane:
        route = "/v1/models/{model_id}/deployments/{deployment_id}"
        odd = {"model_id": "a/../b?c#d%20 e", "deployment_id": "\u00fc...{x}"}
        await plane.request("GET", route, as_it_is, path_params=odd, query={"name": "a&b=c/\u00fc+ d", "none": None})
        await plane.request("GET", "/v1/models", as_it_is, query={"name": None})
    assert api.paths == [
        "GET /prefix/v1/models/a%2F..%2Fb%3Fc%23d%2520%20e/deployments/%C3%BC...%7Bx%7D?name=a%26b%3Dc%2F%C3%BC%2B%20d",
        "GET /prefix/v1/models",
    ]


@pytest.mark.parametrize("value", ["", ".", "..", None, 5, b"x", "\ud800"])
async def test_bad_path_parameter(value: Any) -> None:
    async with scripted_api(answer({})) as api, control_plane(api.url) as plane:
        with pytest.raises(InvalidPush, match=r"^model_id: ") as caught:
            await plane.request("GET", "/v1/models/{model_id}", as_it_is, path_params={"model_id": value})
    assert caught.value.problems[0].path == "model_id"
    assert api.seen == []


@pytest.mark.parametrize("value", ["", 5, "\ud800"])
async def test_bad_query_parameter(value: Any) -> None:
    async with scripted_api(answer({})) as api, control_plane(api.url) as plane:
        with pytest.raises(InvalidPush, match=r"^name: "):
            await plane.request("GET", "/v1/models", as_it_is, query={"name": value})
    assert api.seen == []


async def test_no_cookie_is_kept() -> None:
    async with scripted_api(answer({}, Set_Cookie="session=1; Path=/")) as api, control_plane(api.url) as plane:
        await plane.request("GET", "/v1/teams", as_it_is)
        await plane.request("GET", "/v1/teams", as_it_is)
    assert "Cookie" not in api.seen[1].headers


async def test_netrc_has_no_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with scripted_api(answer({})) as api, control_plane(api.url) as plane:
        await plane.request("GET", "/v1/teams", as_it_is)
    assert api.seen[0].headers["Authorization"] == f"Bearer {KEY}"


async def test_compressed_answer() -> None:
    packed = gzip.compress(json.dumps(MODEL).encode())
    async with scripted_api(answer(raw=packed, Content_Encoding="gzip")) as api, control_plane(api.url) as plane:
        assert (await plane.request("GET", "/v1/models/m1", read_model)).id == "m1"


async def test_other_good_statuses() -> None:
    async with scripted_api(answer(MODEL, 201)) as api, control_plane(api.url) as plane:
        assert (await plane.request("POST", "/v1/models", read_model, body={})).name == "bert"


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (400, ApiError, False),
        (401, AuthenticationError, False),
        (403, AuthenticationError, False),
        (404, NotFoundError, False),
        (409, ApiError, False),
        (422, ApiError, False),
        (429, RateLimited, True),
        (500, ServerError, True),
        (502, ServerError, True),
        (503, ServerError, True),
        (599, ServerError, True),
    ],
)
async def test_error_statuses(status: int, kind: type[ApiError], retryable: bool) -> None:
    failing = answer({"message": "as told"}, status, X_Request_Id="req-7")
    async with scripted_api(failing) as api, control_plane(api.url) as plane:
        with pytest.raises(ApiError) as caught:
            await plane.request("GET", "/v1/models/{model_id}", as_it_is, path_params={"model_id": "a b"}, query={"name": "x"})
    error = caught.value
    assert type(error) is kind
    assert error.retryable is retryable
    assert (error.status, error.method, error.path, error.request_id) == (status, "GET", "/v1/models/a%20b", "req-7")
    assert error.message == "as told"
    assert str(error) == f"GET /v1/models/a%20b: as told (status {status}, request id req-7)"
    assert len(api.seen) == 1


async def test_huge_error_body_is_read_in_part() -> None:
    huge = answer(raw=b"y" * 10_000_000, status=500, content_type="text/plain")
    async with scripted_api(huge) as api, control_plane(api.url) as plane:
        with pytest.raises(ServerError) as caught:
            await plane.request("GET", "/v1/teams", as_it_is)
    assert caught.value.message == "y" * 500 + "\u2026"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_no_redirect_is_followed(status: int, method: str) -> None:
    async with (
        scripted_api(answer({})) as elsewhere,
        scripted_api(answer(status=status, Location=f"{elsewhere.url}/v1/models?key=secret")) as api,
        control_plane(api.url) as plane,
    ):
        with pytest.raises(ApiError, match="redirected to") as caught:
            await plane.request(method, "/v1/models", as_it_is, body={} if method == "POST" else None)
    assert type(caught.value) is ApiError
    assert caught.value.status == status
    assert f"{elsewhere.url}/v1/models, which is not followed" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert elsewhere.seen == []
    assert len(api.seen) == 1


@pytest.mark.parametrize(
    ("respond", "message"),
    [
        (answer(raw=b"<html>Welcome", content_type="text/html"), r"the answer is not JSON, but 13 bytes, text/html"),
        (answer(raw=b""), "the answer is not JSON, but 0 bytes"),
        (answer(raw=b'{"id": "m1"'), "the answer is not JSON, but 11 bytes, application/json"),
        (answer(raw=b"\xff\xff"), "the answer is not JSON"),
        (answer(raw=b"[" * 200_000), "the answer is not JSON"),
        (answer(None), r"\$: must be an object, not null"),
        (answer([]), r"\$: must be an object, not an array"),
        (answer(MODEL | {"id": None}), r"\$\.id: must be a string, not null"),
        (answer({key: value for key, value in MODEL.items() if key != "name"}), r"\$\.name: is missing"),
        (answer(MODEL | {"created_at": "yesterday"}), r"\$\.created_at: must be a date and time in ISO 8601, not 'yesterday'"),
        (answer({"error": "none of it"}), r"\$\.id: is missing; \$\.created_at: is missing"),
    ],
)
async def test_good_status_and_unreadable_answer(respond: Any, message: str) -> None:
    async with scripted_api(respond) as api, control_plane(api.url) as plane:
        with pytest.raises(ApiError, match=message) as caught:
            await plane.request("GET", "/v1/models/m1", read_model)
    assert type(caught.value) is ApiError
    assert caught.value.retryable is ("is not JSON" in message)
    assert caught.value.status == 200
    if "is not JSON" not in message:
        assert caught.value.__cause__ is not None


async def test_unreadable_answer_shows_no_credentials() -> None:
    cut_short = json.dumps(PREPARED).encode()[:-3]
    async with scripted_api(answer(raw=cut_short)) as api, control_plane(api.url) as plane:
        with pytest.raises(ApiError) as caught:
            await plane.request("POST", "/v1/prepare_model_upload", as_it_is, body={})
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "planted" not in str(caught.value).lower()


async def test_answer_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_ANSWER_BYTES", 2**20)
    sent = 0

    async def pour(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)
            sent += 65536

    async with scripted_api(pour) as api, control_plane(api.url) as plane:
        with pytest.raises(ApiError, match="the answer is larger than 1 MiB"):
            await plane.request("GET", "/v1/models", as_it_is)
    assert sent < 2**26


async def test_zip_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_ANSWER_BYTES", 2**20)
    bomb = gzip.compress(b" " * 2**24)
    async with scripted_api(answer(raw=bomb, Content_Encoding="gzip")) as api, control_plane(api.url) as plane:
        with pytest.raises(ApiError, match="the answer is larger than 1 MiB"):
            await plane.request("GET", "/v1/models", as_it_is)


async def test_rate_is_kept_per_endpoint() -> None:
    clock = FakeClock()
    options = Options(requests_per_s=2)
    async with scripted_api(answer({})) as api, control_plane(api.url, clock=clock, options=options) as plane:
        for model_id in ("a", "b"):
            await plane.request("GET", "/v1/models/{model_id}", as_it_is, path_params={"model_id": model_id})
        await plane.request("GET", "/v1/models", as_it_is)
        await plane.request("POST", "/v1/models", as_it_is, body={})
        assert clock.sleeps_s == []
        await plane.request("GET", "/v1/models/{model_id}", as_it_is, path_params={"model_id": "c"})
    assert clock.sleeps_s == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("respond", "pause_s"),
    [
        (answer({"error": "slow down", "retry_after": 37}, 429), 37),
        (answer({"message": "slow down"}, 429, Retry_After="12"), 12),
        (answer(raw=b"", status=503, Retry_After="5"), 5),
        (answer({"retry_after": 37}, 404), 0),
        (answer({"message": "slow down"}, 429), 0),
    ],
)
async def test_advice_to_wait_holds_for_everyone_at_that_endpoint(respond: Any, pause_s: float) -> None:
    clock = FakeClock()
    async with scripted_api(respond, answer({})) as api, control_plane(api.url, clock=clock) as plane:
        with pytest.raises(ApiError) as caught:
            await plane.request("GET", "/v1/teams", as_it_is)
        await plane.request("GET", "/v1/models", as_it_is)
        assert clock.slept_s == 0
        await plane.request("GET", "/v1/teams", as_it_is)
    assert clock.slept_s == pause_s
    if pause_s:
        assert caught.value.retry_after_s == pause_s


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 3)

    async def slowly(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.01)
        return web.json_response({})

    async with (
        scripted_api(slowly) as api,
        control_plane(api.url, options=Options(requests_per_s=None)) as plane,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(20):
            tasks.start_soon(plane.request, "GET", "/v1/models", as_it_is)
    assert len(api.seen) == 20
    assert api.most_in_flight == 3


async def test_cancelled_requests_free_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 1)
    arrived = anyio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        arrived.set()
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async with scripted_api(hang, answer({})) as api, control_plane(api.url) as plane:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(plane.request, "GET", "/v1/models", as_it_is)
            await arrived.wait()
            tasks.cancel_scope.cancel()
        assert await plane.request("GET", "/v1/models", as_it_is) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auth_scheme": "Basic"}, "auth_scheme must be 'Bearer' or 'Api-Key', not 'Basic'"),
        ({"auth_scheme": "bearer"}, "auth_scheme must be"),
        ({"auth_scheme": None}, "auth_scheme must be"),
        ({"base_url": "http://api.baseten.co"}, "must begin with https"),
        ({"base_url": "https://u:p@api.baseten.co"}, "user name or password"),
        ({"api_key": "a\nb"}, "is a line break"),
        ({"api_key": ""}, "is empty"),
    ],
)
def test_what_a_control_plane_cannot_be_made_of(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ControlPlane(**({"base_url": "https://api.baseten.co", "api_key": KEY} | changes))


def test_repr_hides_the_key() -> None:
    assert repr(control_plane("https://api.baseten.co/")) == "<ControlPlane https://api.baseten.co>"


async def test_only_open_on_its_own_loop() -> None:
    async with scripted_api(answer({})) as api:
        plane = control_plane(api.url)
        with pytest.raises(ConfigurationError, match="not open"):
            await plane.request("GET", "/v1/models", as_it_is)
        async with plane:
            with pytest.raises(ConfigurationError, match="open already"):
                await plane.__aenter__()
            with pytest.raises(ConfigurationError, match="another event loop"):
                await anyio.to_thread.run_sync(lambda: asyncio.run(plane.request("GET", "/v1/models", as_it_is)))
            await plane.request("GET", "/v1/models", as_it_is)
        with pytest.raises(ConfigurationError, match="not open"):
            await plane.request("GET", "/v1/models", as_it_is)
        await plane.__aexit__(None, None, None)
    assert len(api.seen) == 1


async def test_can_be_opened_again() -> None:
    async with scripted_api(answer({})) as api:
        plane = control_plane(api.url)
        for _ in range(2):
            async with plane:
                assert await plane.request("GET", "/v1/models", as_it_is) == {}


@pytest.fixture
def blocking_calls_fail() -> Iterator[None]:
    with blockbuster_ctx():
        yield


async def test_nothing_blocks_the_loop(blocking_calls_fail: None) -> None:
    async with scripted_api(answer({}), drop, answer({})) as api, control_plane(api.url) as plane:
        await plane.request("POST", "/v1/models", as_it_is, body={"x": "y" * 200_000})
        with pytest.raises(TransportError, match="broke off"):
            await plane.request("GET", "/v1/models", as_it_is)
        await plane.request("GET", "/v1/models", as_it_is)
