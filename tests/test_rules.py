"""What a valid push is: every rule, broken and kept."""

from __future__ import annotations

import json
from datetime import date
from types import MappingProxyType
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import payloads

from aiobaseten import rules
from aiobaseten.errors import InvalidPush
from aiobaseten.models import (
    DeploymentArchivePayload,
    DeploymentArchiveSource,
    ModelArchiveSource,
    PrepareModelUploadRequest,
)

PAYLOAD = DeploymentArchivePayload(config={"model_name": "x"})
REQUEST = PrepareModelUploadRequest(name="x", deployment=PAYLOAD)


def problems(**changes: Any) -> list[str]:
    """What is wrong with a prepare request; `deployment` takes changes of the deployment."""
    deployment = attrs.evolve(PAYLOAD, **changes.pop("deployment", {}))
    return [str(problem) for problem in rules.find_problems(attrs.evolve(REQUEST, deployment=deployment, **changes))]


def deployment_problems(**changes: Any) -> list[str]:
    """What is wrong with a deployment: the same for all three payloads that hold one."""
    deployment = attrs.evolve(PAYLOAD, **changes)
    found = {
        tuple(map(str, rules.find_problems(payload)))
        for payload in (
            PrepareModelUploadRequest(model_id="m", deployment=deployment),
            ModelArchiveSource(name="x", deployment=deployment),
            DeploymentArchiveSource(deployment=deployment),
        )
    }
    assert len(found) == 1
    return list(found.pop())


@given(payloads.prepare_requests() | payloads.model_sources() | payloads.deployment_sources())
def test_valid_payloads(payload: rules.Payload) -> None:
    assert rules.find_problems(payload) == []
    rules.check(payload)


NOT_UNICODE = "holds a character that is not valid Unicode (half a surrogate pair)"
NEITHER = (
    "$.name: exactly one of name and model_id is required, and neither is set;"
    " a push can take its name from model_name in config.yaml"
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": None}, [NEITHER]),
        ({"model_id": "m"}, ["$.model_id: exactly one of name and model_id is required, and both are set"]),
        ({"name": None, "model_id": "m"}, []),
        ({"team_id": "t"}, []),
        (
            {"name": None, "model_id": "m", "team_id": "t"},
            ["$.team_id: must not be set with model_id: an existing model has its team"],
        ),
        ({"name": ""}, ["$.name: must not be empty"]),
        ({"name": " \t"}, ["$.name: must not be empty"]),
        ({"name": None, "model_id": ""}, ["$.model_id: must not be empty"]),
        ({"team_id": " "}, ["$.team_id: must not be empty"]),
        ({"name": "a\ud800"}, [f"$.name: {NOT_UNICODE}"]),
        ({"name": 5}, ["$.name: must be a string, not a number"]),
        ({"dry_run": True}, []),
        ({"dry_run": "yes"}, ["$.dry_run: must be true or false, not a string"]),
        ({"is_development": True}, []),
        (
            {"is_development": True, "name": None, "model_id": "m"},
            ["$.is_development: only with name; with model_id set it inside deployment"],
        ),
        (
            {"is_development": True, "deployment": {"environment_name": "production"}},
            ["$.deployment.environment_name: must stay at its default in a development push"],
        ),
    ],
)
def test_identity(changes: dict[str, Any], expected: list[str]) -> None:
    assert problems(**changes) == expected


DEVELOPMENT = "must stay at its default in a development push"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"config": None}, ["$.deployment.config: is required: the parsed config.yaml"]),
        ({"config": {}}, []),
        ({"deploy_timeout_minutes": 9}, ["$.deployment.deploy_timeout_minutes: must be from 10 to 1440"]),
        ({"deploy_timeout_minutes": 10}, []),
        ({"deploy_timeout_minutes": 1440}, []),
        ({"deploy_timeout_minutes": 1441}, ["$.deployment.deploy_timeout_minutes: must be from 10 to 1440"]),
        ({"deploy_timeout_minutes": 10**5000}, ["$.deployment.deploy_timeout_minutes: must be from 10 to 1440"]),
        ({"deployment_name": "Az09_-."}, []),
        ({"deployment_name": ""}, []),
        ({"deployment_name": "a b"}, ["$.deployment.deployment_name: may hold only letters, digits, '_', '-' and '.', not 'a b'"]),
        ({"deployment_name": "a\n"}, ["$.deployment.deployment_name: may hold only letters, digits, '_', '-' and '.', not 'a\\n'"]),
        (
            {"deployment_name": "\u00e9"},
            ["$.deployment.deployment_name: may hold only letters, digits, '_', '-' and '.', not '\u00e9'"],
        ),
        ({"environment_name": ""}, ["$.deployment.environment_name: must not be empty; leave it out for no environment"]),
        ({"instance_type_id": "1x2"}, ["$.deployment.instance_type_id: needs preserve_env_instance_type to be false"]),
        ({"instance_type_id": "1x2", "preserve_env_instance_type": False}, []),
        ({"autoscaling_schedule_settings": {}}, ["$.deployment.autoscaling_schedule_settings: needs environment_name"]),
        ({"promotion_settings_override": {}}, ["$.deployment.promotion_settings_override: needs environment_name"]),
        ({"promotion_settings_override": {}, "autoscaling_schedule_settings": {}, "environment_name": "e"}, []),
        ({"autoscaling_settings": {"min_replica": 1}, "request_backpressure_settings": {}}, []),
        ({"is_development": True}, []),
        ({"is_development": True, "environment_name": "production"}, [f"$.deployment.environment_name: {DEVELOPMENT}"]),
        (
            {"is_development": True, "preserve_env_instance_type": False},
            [f"$.deployment.preserve_env_instance_type: {DEVELOPMENT}"],
        ),
        ({"is_development": True, "deployment_name": "d"}, [f"$.deployment.deployment_name: {DEVELOPMENT}"]),
        ({"region": 5}, ["$.deployment.region: must be a string, not a number"]),
        ({"labels": [1]}, ["$.deployment.labels: must be an object, not an array"]),
        ({"is_development": 1}, ["$.deployment.is_development: must be true or false, not a number"]),
    ],
)
def test_deployment(changes: dict[str, Any], expected: list[str]) -> None:
    assert deployment_problems(**changes) == expected


def test_every_problem_is_told_at_once() -> None:
    request = PrepareModelUploadRequest(
        name="x",
        model_id="m",
        team_id="t",
        deployment=DeploymentArchivePayload(
            labels={"a": float("nan")},
            deploy_timeout_minutes=5,
            deployment_name="a b",
            instance_type_id="1x2",
            is_development=True,
        ),
    )
    with pytest.raises(InvalidPush) as caught:
        rules.check(request)
    assert [problem.path for problem in caught.value.problems] == [
        "$.model_id",
        "$.team_id",
        "$.deployment.config",
        "$.deployment.labels.a",
        "$.deployment.deploy_timeout_minutes",
        "$.deployment.deployment_name",
        "$.deployment.instance_type_id",
        "$.deployment.deployment_name",
    ]
    assert str(caught.value) == "; ".join(map(str, caught.value.problems))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (ModelArchiveSource(name="", deployment=PAYLOAD), ["$.name: must not be empty"]),
        (ModelArchiveSource(name="x", s3_key=" ", deployment=PAYLOAD), ["$.s3_key: must not be empty"]),
        (DeploymentArchiveSource(s3_key="", deployment=PAYLOAD), ["$.s3_key: must not be empty"]),
        (DeploymentArchiveSource(kind="other", deployment=PAYLOAD), ["$.kind: must be 'model_archive'"]),  # type: ignore[arg-type]
        (ModelArchiveSource(name=None, deployment=PAYLOAD), ["$.name: must be a string, not null"]),  # type: ignore[arg-type]
    ],
)
def test_commits(source: rules.Payload, expected: list[str]) -> None:
    assert [str(problem) for problem in rules.find_problems(source)] == expected


@pytest.mark.parametrize("payload", [None, "x", {"name": "x", "deployment": {"config": {}}}, PAYLOAD])
def test_what_is_no_payload_at_all(payload: Any) -> None:
    (problem,) = rules.find_problems(payload)
    assert problem.path == "$"
    assert problem.rule.startswith("must be a PrepareModelUploadRequest or a ModelArchiveSource or a DeploymentArchiveSource, not ")


@pytest.mark.parametrize("deployment", [None, "x", {"config": {}}, REQUEST])
def test_what_is_no_deployment(deployment: Any) -> None:
    (problem,) = rules.find_problems(PrepareModelUploadRequest(name="x", deployment=deployment))
    assert problem.path == "$.deployment"
    assert problem.rule.startswith("must be a DeploymentArchivePayload, not ")


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def doubled(times: int) -> list[Any]:
    """What a few lines of YAML with aliases stand for: 2**times values."""
    value: list[Any] = []
    for _ in range(times):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, {"b": "c"}], "d": None, "e": 1.5, "f": True, "g": (1, 2)}, []),
        (MappingProxyType({"a": MappingProxyType({})}), []),
        ({"a": [{"b": float("nan")}]}, ["$.deployment.config.a[0].b: must be a finite number, not nan"]),
        ({"a": -float("inf")}, ["$.deployment.config.a: must be a finite number, not -inf"]),
        ({"a": "\udcff"}, [f"$.deployment.config.a: {NOT_UNICODE}"]),
        (
            {"a": {"\udcff": 1}},
            [f"$.deployment.config.a: has a key that {NOT_UNICODE}: '\\udcff'"],
        ),
        ({"a": {5: 1}}, ["$.deployment.config.a: has the key 5; keys must be strings"]),
        ({True: 1}, ["$.deployment.config: has the key True; keys must be strings"]),
        ({"a": date(2026, 1, 2)}, ["$.deployment.config.a: must be a JSON value, not a date"]),
        ({"a": b"x"}, ["$.deployment.config.a: must be a JSON value, not a bytes"]),
        ({"a": {1, 2}}, ["$.deployment.config.a: must be a JSON value, not a set"]),
        ({"a": 2**4096}, ["$.deployment.config.a: is a whole number of too many digits"]),
        ({"a": 2**4095}, []),
        (nested(90), []),
        (nested(200), ["$.deployment.config" + ".a" * 8 + ": is nested deeper than 100 levels"]),
        (
            {"a": [float("nan"), b"x"]},
            [
                "$.deployment.config.a[0]: must be a finite number, not nan",
                "$.deployment.config.a[1]: must be a JSON value, not a bytes",
            ],
        ),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_json_cannot_carry(value: Any, expected: list[str]) -> None:
    assert deployment_problems(config=value) == expected


def test_a_value_that_holds_itself() -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    (problem,) = deployment_problems(labels=loop)
    assert "is nested deeper than 100 levels" in problem


def test_values_without_end_are_not_counted_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_JSON_VALUES", 1000)
    (problem,) = deployment_problems(config={"a": doubled(60)})
    assert problem.startswith("$.deployment.config.a[0]")
    assert problem.endswith("is the last of more than 1,000 values that are checked; a push holds fewer")
    assert deployment_problems(config={"a": [0] * 900}) == []


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=3) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.booleans(), inner, max_size=3)
        | st.sets(st.integers(), max_size=2)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=3), ANYTHING, max_size=4))
def test_what_passes_is_json_and_what_does_not_is_told(config: dict[str, Any]) -> None:
    found = deployment_problems(config=config)
    try:
        json.dumps(config, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        assert found
    else:
        assert bool(found) == _has_other_keys(config)


def _has_other_keys(value: Any) -> bool:
    if isinstance(value, dict):
        return any(not isinstance(key, str) or _has_other_keys(item) for key, item in value.items())
    return isinstance(value, list | tuple) and any(map(_has_other_keys, value))
