"""Payloads to JSON and back: nothing lost, nothing bent into another type, each mistake named by its path."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import payloads
from support.scripted_api import CREATED, DEPLOYMENT, MODEL, PREPARED

from aiobaseten._convert import Mismatch, from_json, json_type, to_json, type_problems
from aiobaseten.errors import Problem
from aiobaseten.models import (
    CreatedModelDeployment,
    DeploymentArchivePayload,
    DeploymentArchiveSource,
    Model,
    ModelArchiveSource,
    PrepareModelUploadRequest,
    PrepareModelUploadResponse,
    Team,
)

TEAM = {"id": "t1", "name": "default", "default": True, "created_at": "2026-01-02T03:04:05Z"}
WRONG_VALUES = [None, True, 5, 5.5, "text", [], ["x"], {}, {"x": 1}]


@attrs.frozen(kw_only=True)
class Teams:
    teams: tuple[Team, ...]


@attrs.frozen(kw_only=True)
class Picky:
    """A class whose own check fails."""

    size: int = attrs.field(validator=attrs.validators.lt(10))
    rate: float = 1.0


def read_or_refuse(data: Any, kind: type[Any]) -> tuple[Any, list[Problem]]:
    try:
        return from_json(data, kind), []
    except Mismatch as mismatch:
        return None, mismatch.problems


def problems_of(data: Any, kind: type[Any]) -> list[str]:
    with pytest.raises(Mismatch) as caught:
        from_json(data, kind)
    assert str(caught.value) == "; ".join(map(str, caught.value.problems))
    return [str(problem) for problem in caught.value.problems]


@given(payloads.prepare_requests())
def test_requests_come_back_as_they_were(request: PrepareModelUploadRequest) -> None:
    assert from_json(json.loads(json.dumps(to_json(request))), PrepareModelUploadRequest) == request


@given(payloads.model_sources() | payloads.deployment_sources())
def test_sources_come_back_as_they_were(source: ModelArchiveSource | DeploymentArchiveSource) -> None:
    wire = to_json(source)
    assert wire["kind"] == "model_archive"
    assert from_json(json.loads(json.dumps(wire)), type(source)) == source


@given(payloads.deployments())
def test_defaults_are_left_out(payload: DeploymentArchivePayload) -> None:
    wire = to_json(payload)
    for field in attrs.fields(DeploymentArchivePayload):
        value = getattr(payload, field.name)
        if field.name == "create_environment_if_missing" and payload.environment_name is not None:
            assert wire[field.name] is value
        elif value == field.default:
            assert field.name not in wire
        else:
            assert wire[field.name] == value


def test_smallest_requests() -> None:
    payload = DeploymentArchivePayload(config={})
    assert to_json(PrepareModelUploadRequest(name="x", deployment=payload)) == {"name": "x", "deployment": {"config": {}}}
    assert to_json(ModelArchiveSource(name="x", deployment=payload)) == {
        "kind": "model_archive",
        "name": "x",
        "deployment": {"config": {}},
    }
    assert to_json(DeploymentArchiveSource(deployment=payload)) == {"kind": "model_archive", "deployment": {"config": {}}}


def test_first_generation_request() -> None:
    """Generation 1 had is_development beside the name; a raw request can still say it there."""
    request = PrepareModelUploadRequest(name="x", deployment=DeploymentArchivePayload(config={}), is_development=True)
    assert to_json(request)["is_development"] is True
    assert "is_development" not in to_json(request)["deployment"]


@pytest.mark.parametrize("create", [True, False])
def test_flipping_default_is_said_where_an_environment_is(create: bool) -> None:
    payload = DeploymentArchivePayload(config={}, environment_name="production", create_environment_if_missing=create)
    assert to_json(payload)["create_environment_if_missing"] is create


def test_objects_pass_as_they_are() -> None:
    inner = {"1": [None, {"a": "b"}], "n": 5.5}
    payload = DeploymentArchivePayload(config=MappingProxyType(inner), labels=inner)
    wire = to_json(payload)
    assert wire["config"] == inner
    assert wire["labels"] is inner


def test_unknown_fields_are_ignored_everywhere() -> None:
    extra = {"from_the_future": [1, {"a": None}]}
    wire = {"model": MODEL | extra, "deployment": DEPLOYMENT | extra} | extra
    assert from_json(wire, CreatedModelDeployment) == from_json(CREATED, CreatedModelDeployment)


@pytest.mark.parametrize(
    ("kind", "wire"),
    [
        (Model, MODEL),
        (CreatedModelDeployment, CREATED),
        (PrepareModelUploadResponse, PREPARED),
        (Team, TEAM),
        (Teams, {"teams": [TEAM]}),
        (PrepareModelUploadRequest, {"name": "x", "deployment": {"config": {}}}),
    ],
)
@pytest.mark.parametrize("wrong", WRONG_VALUES, ids=repr)
def test_no_value_is_bent_into_another_type(kind: type[Any], wire: dict[str, Any], wrong: Any) -> None:
    """Each value is read as it is, or refused under its own name."""
    for name in wire:
        value, problems = read_or_refuse(wire | {name: wrong}, kind)
        if problems:
            assert all(problem.path.startswith(f"$.{name}") for problem in problems)
        else:
            value = getattr(value, name)
            assert value is wrong or (name, wrong) in (("teams", []), ("deployment", {}), ("deployment", {"x": 1}))


@pytest.mark.parametrize(
    ("data", "kind", "expected"),
    [
        (None, Model, ["$: must be an object, not null"]),
        ("x", Model, ["$: must be an object, not a string"]),
        ({"teams": None}, Teams, ["$.teams: must be an array, not null"]),
        ({"teams": "abc"}, Teams, ["$.teams: must be an array, not a string"]),
        ({"teams": {"a": TEAM}}, Teams, ["$.teams: must be an array, not an object"]),
        ({}, Teams, ["$.teams: is missing"]),
        (
            {"teams": [TEAM, TEAM | {"name": None}, 5, {key: TEAM[key] for key in ("id", "name", "default")}]},
            Teams,
            [
                "$.teams[1].name: must be a string, not null",
                "$.teams[2]: must be an object, not a number",
                "$.teams[3].created_at: is missing",
            ],
        ),
        (
            CREATED | {"model": MODEL | {"deployments_count": "3"}},
            CreatedModelDeployment,
            ["$.model.deployments_count: must be a whole number, not a string"],
        ),
        (MODEL | {"deployments_count": True}, Model, ["$.deployments_count: must be a whole number, not true"]),
        (MODEL | {"deployments_count": 3.0}, Model, ["$.deployments_count: must be a whole number, not a number"]),
        (TEAM | {"default": "false"}, Team, ["$.default: must be true or false, not a string"]),
        (TEAM | {"default": 0}, Team, ["$.default: must be true or false, not a number"]),
        (TEAM | {"id": None}, Team, ["$.id: must be a string, not null"]),
        (TEAM | {"created_at": 1700000000}, Team, ["$.created_at: must be a date and time in ISO 8601, not a number"]),
        (TEAM | {"created_at": "soon" * 100}, Team, [f"$.created_at: must be a date and time in ISO 8601, not {('soon' * 10)!r}"]),
        (PREPARED | {"creds": {}}, PrepareModelUploadResponse, [f"$.creds.{name}: is missing" for name in PREPARED["creds"]]),
        (
            {"deployment": {"config": []}, "kind": "other"},
            DeploymentArchiveSource,
            ["$.deployment.config: must be an object, not an array", "$.kind: must be 'model_archive'"],
        ),
        ({"deployment": {"config": {}}, "kind": ["model_archive"]}, DeploymentArchiveSource, ["$.kind: must be 'model_archive'"]),
        ({"size": 1, "rate": 1}, Picky, ["$.rate: must be a number, not a number"]),
        ({"size": 11}, Picky, ["$: 'size' must be < 10: 11"]),
    ],
)
def test_each_mistake_is_named(data: Any, kind: type[Any], expected: list[str]) -> None:
    assert problems_of(data, kind) == expected


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.678901+00:00", datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)),
        ("2026-01-02T03:04:05.6-07:30", datetime(2026, 1, 2, 3, 4, 5, 600000, tzinfo=timezone(-timedelta(hours=7, minutes=30)))),
        ("2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
    ],
)
def test_moments_are_aware(text: str, moment: datetime) -> None:
    team = from_json(TEAM | {"created_at": text}, Team)
    assert team.created_at == moment
    assert team.created_at.tzinfo is not None
    assert from_json(to_json(team), Team) == team


@given(payloads.JSON | st.lists(payloads.JSON_OBJECTS) | st.fixed_dictionaries({"teams": payloads.JSON, "model": payloads.JSON}))
def test_any_answer_is_read_or_refused(data: Any) -> None:
    for kind in (Model, CreatedModelDeployment, PrepareModelUploadResponse, Teams):
        value, problems = read_or_refuse(data, kind)
        assert isinstance(value, kind) or problems
        assert all(problem.path.startswith("$") for problem in problems)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": 5}, Problem("$.name", "must be a string, not a number")),
        ({"dry_run": None}, Problem("$.dry_run", "must be true or false, not null")),
        ({"team_id": b"t"}, Problem("$.team_id", "must be a string, not a bytes")),
    ],
)
def test_types_of_a_payload_made_by_hand(changes: dict[str, Any], problem: Problem) -> None:
    request = PrepareModelUploadRequest(name="x", deployment=DeploymentArchivePayload(config={}))
    assert type_problems(request) == []
    assert type_problems(attrs.evolve(request, **changes)) == [problem]


def test_types_of_a_nested_payload() -> None:
    payload = DeploymentArchivePayload(config=[], labels="x", preserve_env_instance_type=1, deploy_timeout_minutes=10.0)  # type: ignore[arg-type]
    assert [str(problem) for problem in type_problems(DeploymentArchiveSource(deployment=payload))] == [
        "$.deployment.config: must be an object, not an array",
        "$.deployment.preserve_env_instance_type: must be true or false, not a number",
        "$.deployment.deploy_timeout_minutes: must be a whole number, not a number",
        "$.deployment.labels: must be an object, not a string",
    ]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        ("", "a string"),
        (0, "a number"),
        (0.5, "a number"),
        ({}, "an object"),
        (MappingProxyType({}), "an object"),
        ([], "an array"),
        ((), "an array"),
        (b"", "a bytes"),
        (datetime.now(UTC), "a datetime"),
    ],
)
def test_names_of_types(value: object, name: str) -> None:
    assert json_type(value) == name
