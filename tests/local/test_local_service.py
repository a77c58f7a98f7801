"""The local control plane's rules, as a client without our library meets them."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.rest import CONFIG, Rest, make_tar, rest, s3_client, upload

from aiobaseten.local import LocalStack, LocalStackError

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


class Hands:
    """A clock that goes when it is told to, and breaks when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.is_broken = False

    def __call__(self) -> float:
        if self.is_broken:
            raise RuntimeError("a broken clock")
        return self.now_s


HANDS = Hands()


@pytest.fixture(scope="module")
async def strange_stack(anyio_backend: str) -> AsyncIterator[LocalStack]:
    """Each option other than its default."""
    async with LocalStack(api_key="strange+key/=", rekey_on_prepare=False, put_only=True, teams=("a", "b"), clock=HANDS) as stack:
        yield stack


@pytest.fixture
def api(local_stack: LocalStack) -> Rest:
    return rest(local_stack)


@pytest.fixture
def name() -> str:
    return f"model-{uuid.uuid4().hex}"


def deployment(**fields: Any) -> dict[str, Any]:
    return {"config": CONFIG, **fields}


async def team_id(api: Rest, team: str) -> str:
    answer = await api.call("GET", "/v1/teams", name=team)
    return answer.body["teams"][0]["id"]


# Who may call


@pytest.mark.parametrize("scheme", ["Bearer", "Api-Key", "bearer", "API-KEY"])
async def test_both_schemes_are_taken(local_stack: LocalStack, scheme: str) -> None:
    answer = await Rest(local_stack, f"{scheme} {local_stack.api_key}").call("GET", "/v1/models")
    assert answer.status == 200


@pytest.mark.parametrize(
    ("authorization", "message"),
    [
        (None, "must be 'Bearer KEY' or 'Api-Key KEY'"),
        ("local-api-key", "must be 'Bearer KEY' or 'Api-Key KEY'"),
        ("Basic local-api-key", "must be 'Bearer KEY' or 'Api-Key KEY'"),
        ("Bearer wrong", "the API key is not valid"),
        ("Bearer local-api-key2", "the API key is not valid"),
        ("Api-Key \xe4\xf6", "the API key is not valid"),
    ],
)
async def test_other_keys_are_refused(local_stack: LocalStack, authorization: str | None, message: str) -> None:
    for path in ("/v1/models", "/v1/nothing"):
        answer = await Rest(local_stack, authorization).call("GET", path)
        assert answer.status == 401
        assert message in answer.message
        assert local_stack.api_key not in answer.message


# What every answer has


async def test_each_answer_has_a_request_id_of_its_own(api: Rest, local_stack: LocalStack) -> None:
    answers = [
        await api.call("GET", "/v1/models"),
        await api.call("GET", "/v1/models/nope"),
        await api.call("GET", "/nothing"),
        await Rest(local_stack).call("GET", "/v1/models"),
    ]
    assert [answer.status for answer in answers] == [200, 404, 404, 401]
    assert len({answer.headers["X-Request-Id"] for answer in answers}) == 4


async def test_unknown_routes_and_methods(api: Rest) -> None:
    unknown = await api.call("GET", "/v1/nothing")
    assert (unknown.status, unknown.message) == (404, "GET /v1/nothing: Not Found")
    wrong_method = await api.call("PUT", "/v1/models")
    assert (wrong_method.status, wrong_method.message) == (405, "PUT /v1/models: Method Not Allowed")


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe\xfd", b"[" * 100_000, b"1" * 5000])
async def test_a_body_that_is_not_json(api: Rest, raw: bytes) -> None:
    for path in ("/v1/prepare_model_upload", "/v1/models"):
        answer = await api.call("POST", path, raw=raw)
        assert answer.status == 400
        assert answer.message.startswith("$: the body is not JSON: ")


async def test_a_body_that_is_too_large(api: Rest) -> None:
    answer = await api.call("POST", "/v1/models", raw=b" " * (16 * 1024 * 1024 + 1))
    assert answer.status == 413
    assert "Too Large" in answer.message


async def test_a_fault_of_its_own_is_a_500_in_the_services_form(
    strange_stack: LocalStack, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = await rest(strange_stack).push(name)
    HANDS.is_broken = True
    try:
        answer = await rest(strange_stack).call("GET", f"/v1/models/{made.body['model']['id']}/deployments")
    finally:
        HANDS.is_broken = False
    assert answer.status == 500
    assert "internal error" in answer.message
    assert answer.headers["X-Request-Id"]
    assert "a broken clock" in caplog.text


# Prepare


async def test_prepare_gives_all_four_fields(api: Rest, local_stack: LocalStack, name: str) -> None:
    answer = await api.prepare(name=name)
    assert answer.status == 200
    assert answer.body["s3_bucket"] == local_stack.bucket
    assert answer.body["s3_region"] == local_stack.region
    assert answer.body["s3_key"].endswith("/model.tgz")
    assert set(answer.body["creds"]) == {"aws_access_key_id", "aws_secret_access_key", "aws_session_token"}
    assert all(answer.body["creds"].values())


NOTHING = {"creds": None, "s3_bucket": None, "s3_key": None, "s3_region": None}


async def test_a_dry_run_gives_nulls_and_makes_nothing(api: Rest, name: str) -> None:
    for _ in range(2):
        answer = await api.prepare(name=name, dry_run=True)
        assert (answer.status, answer.body) == (200, NOTHING)
    assert (await api.call("GET", "/v1/models", name=name)).body == {"models": []}


async def test_a_model_built_from_its_config_alone_needs_no_upload(api: Rest, local_stack: LocalStack, name: str) -> None:
    payload = {"config": {"bis_llm": {"config": {"model": "x"}}}}
    assert (await api.prepare(payload, name=name)).body == NOTHING
    with_key = await api.commit("/v1/models", payload, name=name, s3_key="some/key")
    assert (with_key.status, with_key.message) == (
        400,
        "$.source.s3_key: must be left out: this model is built from its config alone",
    )
    made = await api.commit("/v1/models", payload, name=name)
    assert made.status == 200
    assert local_stack.deployment_key(made.body["deployment"]["id"]) is None
    again = await api.commit(f"/v1/models/{made.body['model']['id']}/deployments", payload)
    assert again.body["model"]["deployments_count"] == 2


@pytest.mark.parametrize(
    ("fields", "paths"),
    [
        ({}, ["$.name: exactly one of name and model_id"]),
        ({"name": "a", "model_id": "b"}, ["$.model_id: exactly one of"]),
        ({"model_id": "b", "team_id": "c"}, ["$.team_id: must not be set with model_id"]),
        ({"name": 3, "dry_run": "yes"}, ["$.name: must be a string", "$.dry_run: must be true or false"]),
        ({"name": "a", "deployment": None}, ["$.deployment: must be an object"]),
        ({"name": "a", "deployment": {}}, ["$.deployment.config: is required"]),
        ({"name": "a", "deployment": {"config": None}}, ["$.deployment.config: is required"]),
        (
            {"name": "a", "deployment": {"config": {}, "deploy_timeout_minutes": 9, "deployment_name": "a b", "region": 4}},
            ["$.deployment.region: must be a string"],
        ),
        (
            {"name": "a", "deployment": {"config": {}, "deploy_timeout_minutes": 9, "deployment_name": "a b"}},
            ["$.deployment.deploy_timeout_minutes: must be from 10 to 1440", "$.deployment.deployment_name: may hold only"],
        ),
        (
            {"name": "a", "is_development": True, "deployment": {"config": {}, "environment_name": "production"}},
            ["$.deployment.environment_name: must stay at its default"],
        ),
        (
            {"name": "a", "deployment": {"config": {}, "environment_name": "staging", "create_environment_if_missing": False}},
            ["$.deployment.environment_name: there is no environment 'staging'"],
        ),
    ],
)
async def test_prepare_names_every_problem(api: Rest, fields: dict[str, Any], paths: list[str]) -> None:
    answer = await api.call("POST", "/v1/prepare_model_upload", {"deployment": deployment(), **fields})
    assert answer.status == 400
    for path in paths:
        assert path in answer.message


@pytest.mark.parametrize("body", [None, [], "text", 3])
async def test_prepare_of_something_else_than_an_object(api: Rest, body: Any) -> None:
    answer = await api.call("POST", "/v1/prepare_model_upload", raw=json.dumps(body).encode())
    assert answer.status == 400
    assert "$: must be an object" in answer.message


async def test_prepare_for_what_is_not_there(api: Rest, name: str) -> None:
    no_model = await api.prepare(model_id="nope")
    assert (no_model.status, no_model.message) == (404, "there is no model with the id 'nope'")
    no_team = await api.prepare(name=name, team_id="nope")
    assert (no_team.status, no_team.message) == (404, "there is no team with the id 'nope'")


async def test_each_prepare_gives_another_key(api: Rest, name: str) -> None:
    first, second = await api.prepare(name=name), await api.prepare(name=name)
    assert first.body["s3_key"] != second.body["s3_key"]


async def test_without_rekey_a_repeated_prepare_gives_the_same_key_until_it_is_used(strange_stack: LocalStack, name: str) -> None:
    api = rest(strange_stack)
    other_team = await team_id(api, "b")
    first, second = await api.prepare(name=name), await api.prepare(deployment(labels={"n": 2}), name=name)
    assert first.body["s3_key"] == second.body["s3_key"]
    assert first.body["creds"] != second.body["creds"]
    assert (await api.prepare(name=name + "2")).body["s3_key"] != first.body["s3_key"]
    assert (await api.prepare(name=name, team_id=other_team)).body["s3_key"] != first.body["s3_key"]

    await upload(strange_stack, first.body)
    stale = await api.commit("/v1/models", name=name, s3_key=first.body["s3_key"])
    assert (stale.status, stale.message) == (400, "$.source.deployment.labels: differs from what prepare_model_upload was sent")
    made = await api.commit("/v1/models", deployment(labels={"n": 2}), name=name, s3_key=first.body["s3_key"])
    assert made.status == 200

    model_id = made.body["model"]["id"]
    third, fourth = await api.prepare(model_id=model_id), await api.prepare(model_id=model_id)
    assert third.body["s3_key"] == fourth.body["s3_key"] != first.body["s3_key"]


# Commit


async def test_a_new_model(api: Rest, local_stack: LocalStack, name: str) -> None:
    labels = {"owner": "me", "aiobaseten-push-id": "p1", "nested": {"a": [1, None]}}
    archive = make_tar()
    made = await api.push(name, deployment(labels=labels, deployment_name="first"), archive=archive)
    assert made.status == 200
    model, made_deployment = made.body["model"], made.body["deployment"]
    assert (model["name"], model["deployments_count"], model["team_name"]) == (name, 1, "default")
    assert model["production_deployment_id"] is model["development_deployment_id"] is None
    assert made_deployment["labels"] == labels
    assert made_deployment["name"] == "first"
    assert made_deployment["model_id"] == model["id"]

    assert (await api.call("GET", f"/v1/models/{model['id']}")).body == model
    found = await api.call("GET", "/v1/models", name=name)
    assert found.body == {"models": [model]}
    listed = await api.call("GET", f"/v1/models/{model['id']}/deployments")
    assert [each["id"] for each in listed.body["deployments"]] == [made_deployment["id"]]
    one = await api.call("GET", f"/v1/models/{model['id']}/deployments/{made_deployment['id']}")
    assert one.body["labels"] == labels

    key = local_stack.deployment_key(made_deployment["id"])
    assert key is not None
    assert await local_stack.read_object(key) == archive


async def test_a_name_that_is_taken(api: Rest, name: str) -> None:
    prepared_before = await api.prepare(name=name)
    await upload(api.stack, prepared_before.body)
    made = await api.push(name)
    reason = f"team 'default' has a model named {name!r} already, with the id {made.body['model']['id']!r}"
    for answer in (
        await api.prepare(name=name),
        await api.prepare(name=name, dry_run=True),
        await api.commit("/v1/models", name=name, s3_key=prepared_before.body["s3_key"]),
    ):
        assert answer.status == 409
        assert reason in answer.message


async def test_names_are_unique_within_a_team_only(api: Rest, name: str) -> None:
    research = await team_id(api, "research")
    first = await api.push(name)
    prepared = await api.prepare(name=name, team_id=research)
    await upload(api.stack, prepared.body)
    key = prepared.body["s3_key"]
    wrong_route = await api.commit("/v1/models", name=f"{name}-x", s3_key=key)
    assert wrong_route.status == 400
    assert "$.source.s3_key: was prepared for another push" in wrong_route.message
    second = await api.commit(f"/v1/teams/{research}/models", name=name, s3_key=key)
    assert second.status == 200
    assert second.body["model"]["team_name"] == "research"

    everywhere = await api.call("GET", "/v1/models", name=name)
    assert [model["id"] for model in everywhere.body["models"]] == [first.body["model"]["id"], second.body["model"]["id"]]
    in_team = await api.call("GET", f"/v1/teams/{research}/models", name=name)
    assert [model["id"] for model in in_team.body["models"]] == [second.body["model"]["id"]]
    assert (await api.call("GET", "/v1/teams/nope/models")).status == 404
    assert (await api.commit("/v1/teams/nope/models", name=name)).status == 404


async def test_the_default_team_may_be_named(api: Rest, name: str) -> None:
    default = await team_id(api, "default")
    prepared = await api.prepare(name=name, team_id=default)
    await upload(api.stack, prepared.body)
    assert (await api.commit("/v1/models", name=name, s3_key=prepared.body["s3_key"])).status == 200


async def test_teams(api: Rest) -> None:
    teams = (await api.call("GET", "/v1/teams")).body["teams"]
    assert [(team["name"], team["default"]) for team in teams] == [("default", True), ("research", False)]
    assert (await api.call("GET", "/v1/teams", name="research")).body == {"teams": teams[1:]}
    assert (await api.call("GET", "/v1/teams", name="nope")).body == {"teams": []}


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"kind": "library_listing"}, "$.source.kind"),
        ({"name": "a"}, "$.source.deployment: is missing"),
        ({"deployment": {"config": {}}}, "$.source.name: is missing"),
        ({"name": " ", "deployment": {"config": {}}}, "$.source.name: must not be empty"),
        ({"name": "a", "deployment": {"config": {}, "labels": []}}, "$.source.deployment.labels: must be an object"),
        ({"name": "a", "deployment": {"config": {}, "deploy_timeout_minutes": 1}}, "$.source.deployment.deploy_timeout_minutes:"),
        ({"name": "a", "deployment": {"config": {}}}, "$.source.s3_key: is required"),
        (
            {"name": "a", "deployment": {"config": {}}, "s3_key": "a/b"},
            "$.source.s3_key: was not given out by prepare_model_upload",
        ),
        ("text", "$.source: must be an object"),
    ],
)
async def test_commit_names_every_problem(api: Rest, source: Any, problem: str) -> None:
    answer = await api.call("POST", "/v1/models", {"source": source})
    assert answer.status == 400
    assert problem in answer.message


@pytest.mark.parametrize("body", [{}, [], "source", 3])
async def test_commit_without_a_source(api: Rest, body: Any) -> None:
    answer = await api.call("POST", "/v1/models", body)
    assert (answer.status, answer.message) == (400, "$.source: is missing")


async def test_a_key_is_used_once(api: Rest, name: str) -> None:
    prepared = await api.prepare(name=name)
    await upload(api.stack, prepared.body)
    key = prepared.body["s3_key"]
    made = await api.commit("/v1/models", name=name, s3_key=key)
    again = await api.commit("/v1/models", name=name, s3_key=key)
    assert again.status == 400
    assert f"$.source.s3_key: was used already, by deployment {made.body['deployment']['id']!r}" in again.message


async def test_a_key_is_for_its_own_target(api: Rest, name: str) -> None:
    made = await api.push(name)
    other = await api.prepare(name=f"{name}-2")
    await upload(api.stack, other.body)
    answer = await api.commit(f"/v1/models/{made.body['model']['id']}/deployments", s3_key=other.body["s3_key"])
    assert answer.status == 400
    assert "$.source.s3_key: was prepared for another push" in answer.message


@pytest.mark.parametrize(
    ("committed", "path"),
    [
        ({"config": CONFIG, "raw_config": "a: 1", "labels": {"a": {"b": 1}}}, "$.source.deployment.raw_config"),
        ({"config": CONFIG | {"extra": None}}, "$.source.deployment.config.extra"),
        ({"config": CONFIG, "labels": {"a": {"b": True}}}, "$.source.deployment.labels.a.b"),
        ({"config": CONFIG, "labels": {"a": {"b": 1}, "c": 1}}, "$.source.deployment.labels.c"),
        ({"config": CONFIG, "labels": {"a": {}}}, "$.source.deployment.labels.a.b"),
        ({"config": CONFIG}, "$.source.deployment.labels"),
    ],
)
async def test_the_commit_must_carry_what_prepare_was_sent(api: Rest, name: str, committed: dict[str, Any], path: str) -> None:
    sent = deployment(labels={"a": {"b": 1}})
    prepared = await api.prepare(sent, name=name)
    await upload(api.stack, prepared.body)
    answer = await api.commit("/v1/models", committed, name=name, s3_key=prepared.body["s3_key"])
    assert answer.status == 400
    assert answer.message == f"{path}: differs from what prepare_model_upload was sent"
    # A default that is spelled out is no difference, and a refused commit does not use up the key.
    spelled = sent | {"is_development": False, "region": None, "a_field_of_tomorrow": 1}
    assert (await api.commit("/v1/models", spelled, name=name, s3_key=prepared.body["s3_key"])).status == 200


async def test_the_archive_must_be_there_and_be_one(api: Rest, name: str) -> None:
    prepared = await api.prepare(name=name)
    key = prepared.body["s3_key"]
    wrong = {
        "no object was uploaded to this key": None,
        "not a tar archive": b"hello" * 200,
        "has no config.yaml at its root": make_tar({"model/config.yaml": b""}),
    }
    for problem, archive in wrong.items():
        if archive is not None:
            await upload(api.stack, prepared.body, archive)
        answer = await api.commit("/v1/models", name=name, s3_key=key)
        assert answer.status == 400
        assert answer.message.startswith("$.source.s3_key: ")
        assert problem in answer.message
    await upload(api.stack, prepared.body, make_tar(compress=True))
    assert (await api.commit("/v1/models", name=name, s3_key=key)).status == 200


# Deployments


async def test_deployments_of_an_existing_model(api: Rest, name: str) -> None:
    model_id = (await api.push(name)).body["model"]["id"]
    second = await api.deploy(model_id, deployment(deployment_name="deployment-2"))
    third = await api.deploy(model_id)
    assert third.body["model"]["deployments_count"] == 3
    listed = (await api.call("GET", f"/v1/models/{model_id}/deployments")).body["deployments"]
    assert [each["name"] for each in listed] == ["deployment-1", "deployment-2", "deployment-3"]
    named = await api.call("GET", f"/v1/models/{model_id}/deployments", name="deployment-2")
    assert [each["id"] for each in named.body["deployments"]] == [second.body["deployment"]["id"]]
    taken = await api.prepare(deployment(deployment_name="deployment-2"), model_id=model_id)
    assert taken.status == 400
    assert "$.deployment.deployment_name: the model has a deployment named 'deployment-2' already" in taken.message


async def test_what_is_not_there(api: Rest, name: str) -> None:
    model_id = (await api.push(name)).body["model"]["id"]
    for path in (
        "/v1/models/nope",
        "/v1/models/nope/deployments",
        "/v1/models/nope/deployments/x",
        f"/v1/models/{model_id}/deployments/nope",
        f"/v1/models/{model_id}/deployments/nope/logs",
    ):
        assert (await api.call("GET", path)).status == 404
    assert (await api.commit("/v1/models/nope/deployments")).status == 404


async def test_environments(api: Rest, name: str) -> None:
    made = await api.push(name, deployment(environment_name="production", create_environment_if_missing=False))
    model_id, first = made.body["model"]["id"], made.body["deployment"]["id"]
    assert made.body["deployment"]["is_production"] is True
    assert made.body["deployment"]["environment"] == "production"
    assert made.body["model"]["production_deployment_id"] == first

    staging = deployment(environment_name="staging", create_environment_if_missing=False)
    refused = await api.prepare(staging, model_id=model_id)
    assert refused.status == 400
    assert "$.deployment.environment_name: there is no environment 'staging'" in refused.message
    created = await api.deploy(model_id, deployment(environment_name="staging", create_environment_if_missing=True))
    assert created.body["deployment"]["environment"] == "staging"
    assert created.body["model"]["production_deployment_id"] == first
    assert (await api.prepare(staging, model_id=model_id)).status == 200

    second = (await api.deploy(model_id, deployment(environment_name="production"))).body
    assert second["model"]["production_deployment_id"] == second["deployment"]["id"] != first
    before = await api.call("GET", f"/v1/models/{model_id}/deployments/{first}")
    assert (before.body["is_production"], before.body["environment"]) == (False, None)


@pytest.mark.parametrize("where", ["deployment", "request"])
async def test_the_one_development_slot_is_overwritten_in_place(api: Rest, name: str, where: str) -> None:
    in_deployment = {"is_development": True} if where == "deployment" else {}
    payload = deployment(labels={"n": 1}, **in_deployment)
    prepared = await api.prepare(payload, name=name, **({"is_development": True} if where == "request" else {}))
    await upload(api.stack, prepared.body)
    made = await api.commit("/v1/models", payload, name=name, s3_key=prepared.body["s3_key"])
    model_id, first = made.body["model"]["id"], made.body["deployment"]
    assert first["is_development"] is True
    assert made.body["model"]["development_deployment_id"] == first["id"]
    assert api.stack.deployment_key(first["id"]) == prepared.body["s3_key"]

    second = (await api.deploy(model_id, deployment(labels={"n": 2}, is_development=True))).body["deployment"]
    assert (second["id"], second["name"], second["created_at"]) == (first["id"], first["name"], first["created_at"])
    assert second["labels"] == {"n": 2}
    assert api.stack.deployment_key(first["id"]) != prepared.body["s3_key"]
    published = (await api.deploy(model_id)).body
    assert published["deployment"]["id"] != first["id"]
    assert published["deployment"]["is_development"] is False
    assert published["model"]["deployments_count"] == 2


async def test_settings_come_back(api: Rest, name: str) -> None:
    payload = {
        "config": {"resources": {"instance_type": "H100"}},
        "region": "us",
        "request_backpressure_settings": {"policy": "REJECT_ON_FULL"},
        "autoscaling_settings": {"max_replica": 7},
    }
    made = (await api.push(name, payload)).body
    deployed = made["deployment"]
    assert deployed["region"] == {"slug": "us", "display_name": "us"}
    assert deployed["request_backpressure_settings"] == {"policy": "REJECT_ON_FULL"}
    assert deployed["instance_type_name"] == made["model"]["instance_type_name"] == "H100"
    by_id = {"config": {}, "instance_type_id": "A10G:4x16", "preserve_env_instance_type": False}
    second = await api.deploy(made["model"]["id"], by_id)
    assert second.body["deployment"]["instance_type_name"] == "A10G:4x16"
    api.stack.set_status(deployed["id"], "ACTIVE")
    active = await api.call("GET", f"/v1/models/{made['model']['id']}/deployments/{deployed['id']}")
    assert active.body["autoscaling_settings"]["max_replica"] == 7
    assert active.body["autoscaling_settings"]["min_replica"] == 0


# Time


async def test_a_deployment_becomes_active_by_the_clock(strange_stack: LocalStack, name: str) -> None:
    api = rest(strange_stack)
    made = (await api.push(name)).body
    path = f"/v1/models/{made['model']['id']}/deployments/{made['deployment']['id']}"
    seen = []
    start_s = HANDS.now_s
    for age_s in (0, 0.5, 1, 1.5, 1e6, -1):
        HANDS.now_s = start_s + age_s
        state = (await api.call("GET", path)).body
        seen.append((state["status"], state["active_replica_count"], state["autoscaling_settings"] is None))
    HANDS.now_s = start_s
    assert seen == [
        ("BUILDING", 0, True),
        ("DEPLOYING", 0, True),
        ("LOADING_MODEL", 0, True),
        ("ACTIVE", 1, False),
        ("ACTIVE", 1, False),
        ("BUILDING", 0, True),
    ]


async def test_a_status_can_be_held(strange_stack: LocalStack, name: str) -> None:
    api = rest(strange_stack)
    made = (await api.push(name)).body
    deployment_id = made["deployment"]["id"]
    path = f"/v1/models/{made['model']['id']}/deployments/{deployment_id}"
    strange_stack.set_status(deployment_id, "BUILD_FAILED")
    assert (await api.call("GET", path)).body["status"] == "BUILD_FAILED"
    strange_stack.set_status(deployment_id, None)
    assert (await api.call("GET", path)).body["status"] == "BUILDING"
    for unknown in (strange_stack.deployment_key, lambda id_: strange_stack.set_status(id_, "ACTIVE")):
        with pytest.raises(LocalStackError, match="there is no deployment with the id 'nope'"):
            unknown("nope")


async def test_logs(strange_stack: LocalStack, name: str) -> None:
    api = rest(strange_stack)
    made = (await api.push(name)).body
    HANDS.now_s += 1.0
    path = f"/v1/models/{made['model']['id']}/deployments/{made['deployment']['id']}/logs"
    newest_first = (await api.call("GET", path)).body["logs"]
    # The last line's time is after now on the real clock, which the default window ends with.
    first_ms = int(newest_first[-1]["timestamp"]) // 1_000_000
    window = {"start_epoch_millis": first_ms, "end_epoch_millis": first_ms + 10_000}
    lines = (await api.call("GET", path, direction="asc", **window)).body["logs"]
    assert [line["message"].split()[-1] for line in lines] == ["BUILDING", "DEPLOYING", "LOADING_MODEL"]
    assert (await api.call("GET", path, **window)).body["logs"] == lines[::-1]
    assert (await api.call("GET", path, limit=1, **window)).body["logs"] == lines[-1:]
    later = {"start_epoch_millis": first_ms + 1, "end_epoch_millis": first_ms + 10_000}
    assert (await api.call("GET", path, direction="asc", **later)).body["logs"] == lines[1:]
    assert (await api.call("GET", path, min_level="WARNING", **window)).body["logs"] == []
    week_ms = 7 * 24 * 60 * 60 * 1000
    assert (await api.call("GET", path, start_epoch_millis=0, end_epoch_millis=week_ms)).status == 200


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ({"start_epoch_millis": 0, "end_epoch_millis": 7 * 24 * 60 * 60 * 1000 + 1}, "start_epoch_millis: must not be"),
        ({"start_epoch_millis": 2, "end_epoch_millis": 1}, "start_epoch_millis: must not be after"),
        ({"start_epoch_millis": "yesterday"}, "start_epoch_millis: must be a whole number, not 'yesterday'"),
        ({"limit": 0}, "limit: must be from 1 to 1000"),
        ({"limit": 1001, "direction": "up"}, "limit: must be from 1 to 1000; direction: must be asc or desc"),
        ({"min_level": "LOUD"}, "min_level: must be one of DEBUG, INFO, WARNING, ERROR"),
    ],
)
async def test_bad_log_queries(api: Rest, name: str, query: dict[str, Any], problem: str) -> None:
    made = (await api.push(name)).body
    path = f"/v1/models/{made['model']['id']}/deployments/{made['deployment']['id']}/logs"
    answer = await api.call("GET", path, **query)
    assert answer.status == 400
    assert problem in answer.message


# Credentials


async def multipart(s3: Any, target: dict[str, str]) -> str:
    upload_id = (await s3.create_multipart_upload(**target))["UploadId"]
    part = await s3.upload_part(**target, UploadId=upload_id, PartNumber=1, Body=make_tar())
    await s3.complete_multipart_upload(
        **target, UploadId=upload_id, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    )
    return (await s3.create_multipart_upload(**target))["UploadId"]


async def denied(call: Any) -> bool:
    try:
        await call
    except Exception as error:  # noqa: BLE001 - botocore makes its error classes at run time
        return "AccessDenied" in str(error) or "403" in str(error)
    return False


async def test_credentials_fit_their_key_only(api: Rest, local_stack: LocalStack, name: str) -> None:
    mine, other = (await api.prepare(name=name)).body, (await api.prepare(name=name)).body
    target = {"Bucket": mine["s3_bucket"], "Key": mine["s3_key"]}
    elsewhere = {"Bucket": mine["s3_bucket"], "Key": other["s3_key"]}
    async with s3_client(local_stack, mine["creds"]) as s3:
        await s3.put_object(**target, Body=b"x")
        upload_id = await multipart(s3, target)
        assert await denied(s3.put_object(**elsewhere, Body=b"x"))
        assert await denied(s3.create_multipart_upload(**elsewhere))
        assert await denied(s3.get_object(**target))
        assert await denied(s3.head_object(**target))
        assert await denied(s3.delete_object(**target))
        assert await denied(s3.list_objects_v2(Bucket=mine["s3_bucket"]))
        assert await denied(s3.create_bucket(Bucket="another", CreateBucketConfiguration={"LocationConstraint": "us-west-2"}))
        assert (await s3.list_parts(**target, UploadId=upload_id))["UploadId"] == upload_id
        await s3.abort_multipart_upload(**target, UploadId=upload_id)
    assert mine["s3_key"] not in {each.key for each in await local_stack.multipart_uploads()}


async def test_put_only_credentials_can_upload_and_nothing_else(strange_stack: LocalStack, name: str) -> None:
    prepared = (await rest(strange_stack).prepare(name=name)).body
    target = {"Bucket": prepared["s3_bucket"], "Key": prepared["s3_key"]}
    async with s3_client(strange_stack, prepared["creds"]) as s3:
        await s3.put_object(**target, Body=b"x")
        upload_id = await multipart(s3, target)
        assert await denied(s3.list_parts(**target, UploadId=upload_id))
        assert await denied(s3.abort_multipart_upload(**target, UploadId=upload_id))
    unfinished = [each for each in await strange_stack.multipart_uploads() if each.key == prepared["s3_key"]]
    assert [each.upload_id for each in unfinished] == [upload_id]
