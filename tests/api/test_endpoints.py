"""The REST calls one by one, and when each is repeated."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import attrs
import pytest
from support.clock import FakeClock
from support.scripted_api import (
    CREATED,
    DEPLOYMENT,
    KEY,
    MODEL,
    PREPARED,
    Answer,
    ScriptedApi,
    answer,
    control_plane,
    drop,
    scripted_api,
)

from aiobaseten._convert import from_json
from aiobaseten.api import ControlPlane, Endpoints
from aiobaseten.errors import ApiError, InvalidPush, NotFoundError, RateLimited, ServerError, TransportError
from aiobaseten.models import (
    CreatedModelDeployment,
    Deployment,
    DeploymentArchivePayload,
    DeploymentArchiveSource,
    Model,
    ModelArchiveSource,
    PrepareModelUploadRequest,
    PrepareModelUploadResponse,
    Team,
)
from aiobaseten.retry import Clock

pytestmark = pytest.mark.anyio

TEAM = {"id": "t1", "name": "default", "default": True, "created_at": "2026-01-02T03:04:05Z"}
PAYLOAD = DeploymentArchivePayload(config={"model_name": "bert"}, environment_name="production")
WIRE_PAYLOAD = {"config": {"model_name": "bert"}, "environment_name": "production", "create_environment_if_missing": True}
REQUEST = PrepareModelUploadRequest(name="bert", deployment=PAYLOAD)
NEW_MODEL = ModelArchiveSource(name="bert", s3_key="key", deployment=PAYLOAD, disable_archive_download=True)
NEW_DEPLOYMENT = DeploymentArchiveSource(s3_key="key", deployment=PAYLOAD)

Call = Callable[[Endpoints], Awaitable[Any]]

READS: list[tuple[Call, str, Any, Any]] = [
    (lambda api: api.list_models(), "GET /v1/models", {"models": [MODEL, MODEL]}, (from_json(MODEL, Model),) * 2),
    (lambda api: api.list_models(name="a b"), "GET /v1/models?name=a%20b", {"models": []}, ()),
    (lambda api: api.list_models(team_id="t/1"), "GET /v1/teams/t%2F1/models", {"models": []}, ()),
    (lambda api: api.list_models(name="a", team_id="t1"), "GET /v1/teams/t1/models?name=a", {"models": [], "next": None}, ()),
    (lambda api: api.get_model("m1"), "GET /v1/models/m1", MODEL, from_json(MODEL, Model)),
    (
        lambda api: api.list_deployments("m1"),
        "GET /v1/models/m1/deployments",
        {"deployments": [DEPLOYMENT]},
        (from_json(DEPLOYMENT, Deployment),),
    ),
    (lambda api: api.list_deployments("m1", name="d"), "GET /v1/models/m1/deployments?name=d", {"deployments": []}, ()),
    (lambda api: api.get_deployment("m1", "d1"), "GET /v1/models/m1/deployments/d1", DEPLOYMENT, from_json(DEPLOYMENT, Deployment)),
    (lambda api: api.list_teams(), "GET /v1/teams", {"teams": [TEAM]}, (from_json(TEAM, Team),)),
    (lambda api: api.list_teams(name="a&b"), "GET /v1/teams?name=a%26b", {"teams": []}, ()),
]
PREPARE: tuple[Call, str, Any, Any] = (
    lambda api: api.prepare_model_upload(REQUEST),
    "POST /v1/prepare_model_upload",
    PREPARED,
    from_json(PREPARED, PrepareModelUploadResponse),
)
COMMITS: list[tuple[Call, str, Any, Any]] = [
    (lambda api: api.create_model(NEW_MODEL), "POST /v1/models", CREATED, from_json(CREATED, CreatedModelDeployment)),
    (
        lambda api: api.create_model(NEW_MODEL, team_id="t1"),
        "POST /v1/teams/t1/models",
        CREATED,
        from_json(CREATED, CreatedModelDeployment),
    ),
    (
        lambda api: api.create_deployment("m/1", NEW_DEPLOYMENT),
        "POST /v1/models/m%2F1/deployments",
        CREATED,
        from_json(CREATED, CreatedModelDeployment),
    ),
]
REPEATED = [*READS, PREPARE]


@pytest.mark.parametrize(("call", "asked", "answered", "result"), [*REPEATED, *COMMITS])
async def test_each_call(call: Call, asked: str, answered: Any, result: Any) -> None:
    async with scripted_api(answer(answered)) as api, control_plane(api.url) as plane:
        assert await call(Endpoints(plane)) == result
    assert api.paths == [asked]


async def test_bodies() -> None:
    async with scripted_api(answer(PREPARED), answer(CREATED)) as api, control_plane(api.url) as plane:
        endpoints = Endpoints(plane)
        await endpoints.prepare_model_upload(REQUEST)
        await endpoints.create_model(NEW_MODEL)
        await endpoints.create_deployment("m1", NEW_DEPLOYMENT)
    assert [seen.json for seen in api.seen] == [
        {"name": "bert", "deployment": WIRE_PAYLOAD},
        {
            "source": {
                "kind": "model_archive",
                "name": "bert",
                "s3_key": "key",
                "deployment": WIRE_PAYLOAD,
                "disable_archive_download": True,
            }
        },
        {"source": {"kind": "model_archive", "s3_key": "key", "deployment": WIRE_PAYLOAD}},
    ]


@pytest.mark.parametrize(
    "nothing",
    [
        {},
        {"creds": None, "s3_bucket": None, "s3_key": None, "s3_region": None},
        {"creds": None, "s3_bucket": None, "s3_key": None, "s3_region": "us-west-2"},
    ],
)
async def test_no_upload_needed(nothing: Any) -> None:
    async with scripted_api(answer(nothing)) as api, control_plane(api.url) as plane:
        response = await Endpoints(plane).prepare_model_upload(attrs.evolve(REQUEST, dry_run=True))
    assert response.target is None
    assert api.seen[0].json["dry_run"] is True


@pytest.mark.parametrize("missing", ["creds", "s3_bucket", "s3_key", "s3_region"])
@pytest.mark.parametrize("value", [None, "", "left out"])
async def test_half_an_upload_target(missing: str, value: Any) -> None:
    half = PREPARED | {missing: value}
    if value == "left out":
        del half[missing]
    if missing == "creds" and value == "":
        half["creds"] = None
    async with scripted_api(answer(half)) as api, control_plane(api.url) as plane:
        with pytest.raises(ApiError, match=rf"\$\.{missing}: is missing beside the rest") as caught:
            await Endpoints(plane).prepare_model_upload(REQUEST)
    assert "planted" not in str(caught.value).lower()
    assert not caught.value.retryable


@pytest.mark.parametrize("said", [{"error": "InternalError"}, {"message": "try later", "status": 500}])
async def test_an_error_in_a_200_does_not_mean_that_no_upload_is_needed(said: dict[str, Any]) -> None:
    async with scripted_api(answer(said)) as api, control_plane(api.url) as plane:
        with pytest.raises(ApiError, match=r"\$: has none of creds, s3_bucket, s3_key, s3_region"):
            await Endpoints(plane).prepare_model_upload(REQUEST)


@pytest.mark.parametrize("missing", ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"])
async def test_half_the_credentials(missing: str) -> None:
    for value, reason in (
        ("", "is missing beside the rest"),
        (None, "must be a string, not null"),
        (5, "must be a string, not a number"),
    ):
        half = PREPARED | {"creds": PREPARED["creds"] | {missing: value}}  # type: ignore[operator]  # a dict in a dict
        async with scripted_api(answer(half)) as api, control_plane(api.url) as plane:
            with pytest.raises(ApiError, match=rf"\$\.creds\.{missing}: {reason}"):
                await Endpoints(plane).prepare_model_upload(REQUEST)


@pytest.mark.parametrize(
    ("call", "path"),
    [
        (lambda api: api.prepare_model_upload(attrs.evolve(REQUEST, name="\ud800")), "$"),
        (lambda api: api.create_model(NEW_MODEL, team_id=""), "team_id"),
        (lambda api: api.create_deployment("", NEW_DEPLOYMENT), "model_id"),
        (lambda api: api.create_deployment("m1", attrs.evolve(NEW_DEPLOYMENT, s3_key="\ud800")), "$"),
        (lambda api: api.list_models(name=""), "name"),
        (lambda api: api.list_models(team_id=""), "team_id"),
        (lambda api: api.get_model(""), "model_id"),
        (lambda api: api.list_deployments(""), "model_id"),
        (lambda api: api.get_deployment("m1", ""), "deployment_id"),
        (lambda api: api.get_deployment("..", "d1"), "model_id"),
        (lambda api: api.list_teams(name=5), "name"),
    ],
)
async def test_what_is_wrong_is_not_sent(call: Call, path: str) -> None:
    async with scripted_api(answer({})) as api, control_plane(api.url) as plane:
        with pytest.raises(InvalidPush) as caught:
            await call(Endpoints(plane))
    assert [problem.path for problem in caught.value.problems] == [path]
    assert api.seen == []


@pytest.mark.parametrize(("call", "asked", "answered", "result"), REPEATED)
@pytest.mark.parametrize("failing", [answer(status=500), answer(raw=b"<html>", status=502), answer(status=429)])
async def test_reads_and_prepare_are_repeated(call: Call, asked: str, answered: Any, result: Any, failing: Answer) -> None:
    clock = FakeClock()
    async with scripted_api(failing, failing, answer(answered)) as api, control_plane(api.url, clock=clock) as plane:
        assert await call(Endpoints(plane)) == result
    assert api.paths == [asked] * 3
    assert len(clock.sleeps_s) == 2


async def test_prepare_is_repeated_after_its_answer_was_lost() -> None:
    async with scripted_api(drop, answer(PREPARED)) as api, control_plane(api.url) as plane:
        await Endpoints(plane).prepare_model_upload(REQUEST)
    assert len(api.seen) == 2


@pytest.mark.parametrize(("call", "asked", "answered", "result"), REPEATED)
async def test_no_more_tries_than_allowed(call: Call, asked: str, answered: Any, result: Any) -> None:
    async with scripted_api(answer({"message": "still down"}, 503)) as api, control_plane(api.url) as plane:
        with pytest.raises(ServerError, match="still down"):
            await call(Endpoints(plane))
    assert len(api.seen) == 3


@pytest.mark.parametrize(("call", "asked", "answered", "result"), [*REPEATED, *COMMITS])
async def test_refusals_are_not_repeated(call: Call, asked: str, answered: Any, result: Any) -> None:
    async with scripted_api(answer({"message": "gone"}, 404)) as api, control_plane(api.url) as plane:
        with pytest.raises(NotFoundError, match="gone"):
            await call(Endpoints(plane))
    assert len(api.seen) == 1


@pytest.mark.parametrize(("call", "asked", "answered", "result"), COMMITS)
@pytest.mark.parametrize(
    ("failing", "kind"),
    [
        (answer(status=500), ServerError),
        (answer(status=503, Retry_After="1"), ServerError),
        (drop, TransportError),
        (answer({"model": {}}), ApiError),
        (answer(raw=b"<html>"), ApiError),
        (answer(status=409), ApiError),
        (answer(status=302, Location="/elsewhere"), ApiError),
    ],
)
async def test_commit_that_may_have_acted_is_not_repeated(
    call: Call, asked: str, answered: Any, result: Any, failing: Answer, kind: type[Exception]
) -> None:
    async with scripted_api(failing, answer(answered)) as api, control_plane(api.url) as plane:
        with pytest.raises(kind):
            await call(Endpoints(plane))
    assert len(api.seen) == 1


@pytest.mark.parametrize(("call", "asked", "answered", "result"), COMMITS)
async def test_commit_is_repeated_after_429(call: Call, asked: str, answered: Any, result: Any) -> None:
    clock = FakeClock()
    busy = answer({"error": "busy", "retry_after": 37}, 429)
    async with scripted_api(busy, answer(answered)) as api, control_plane(api.url, clock=clock) as plane:
        assert await call(Endpoints(plane)) == result
    assert api.paths == [asked] * 2
    assert clock.slept_s == 37
    assert api.seen[0].body == api.seen[1].body


@pytest.fixture
def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


@pytest.mark.parametrize(("call", "asked", "answered", "result"), COMMITS)
async def test_commit_is_repeated_when_nothing_was_sent(call: Call, asked: str, answered: Any, result: Any, free_port: int) -> None:
    """The port is closed at first, and the service comes up while the call waits to try again."""
    services: list[ScriptedApi] = []
    async with AsyncExitStack() as services_closed:

        async def come_up(_: float) -> None:
            services.append(await services_closed.enter_async_context(scripted_api(answer(answered), port=free_port)))

        plane = ControlPlane(base_url=f"http://127.0.0.1:{free_port}", api_key=KEY, clock=Clock(sleep=come_up))
        async with plane:
            assert await call(Endpoints(plane)) == result
    assert [service.paths for service in services] == [[asked]]


async def test_commit_to_a_closed_port_ends_at_last(free_port: int) -> None:
    told: list[tuple[BaseException, int, float]] = []
    async with control_plane(f"http://127.0.0.1:{free_port}") as plane:
        with pytest.raises(TransportError) as caught:
            await Endpoints(plane).create_model(NEW_MODEL, on_retry=lambda *each: told.append(each))
    assert not caught.value.request_sent
    assert [(type(error), attempt) for error, attempt, _ in told] == [(TransportError, 1), (TransportError, 2)]


async def test_on_retry_is_told_of_each_repetition() -> None:
    told: list[tuple[BaseException, int, float]] = []
    busy = answer({"error": "busy", "retry_after": 2}, 429)
    calls: list[Callable[[Endpoints], Awaitable[Any]]] = [
        lambda api: api.prepare_model_upload(REQUEST, on_retry=lambda *each: told.append(each)),
        lambda api: api.create_model(NEW_MODEL, on_retry=lambda *each: told.append(each)),
        lambda api: api.create_deployment("m1", NEW_DEPLOYMENT, on_retry=lambda *each: told.append(each)),
        lambda api: api.list_models(on_retry=lambda *each: told.append(each)),
        lambda api: api.get_model("m1", on_retry=lambda *each: told.append(each)),
        lambda api: api.list_deployments("m1", on_retry=lambda *each: told.append(each)),
        lambda api: api.get_deployment("m1", "d1", on_retry=lambda *each: told.append(each)),
        lambda api: api.list_teams(on_retry=lambda *each: told.append(each)),
    ]
    for call in calls:
        told.clear()
        async with scripted_api(busy) as api, control_plane(api.url) as plane:
            with pytest.raises(RateLimited):
                await call(Endpoints(plane))
        assert [(type(error), attempt, delay_s) for error, attempt, delay_s in told] == [(RateLimited, 1, 2), (RateLimited, 2, 2)]
