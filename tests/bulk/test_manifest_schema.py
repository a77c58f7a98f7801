"""The JSON Schema of manifests says what the loader does, as far as a schema can."""

from __future__ import annotations

import copy
import importlib.resources
import json
from typing import Any, get_type_hints

import attrs
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiobaseten.bulk.manifest import SCHEMA_NAME, manifest_schema
from aiobaseten.bulk.manifest_lines import Lines
from aiobaseten.bulk.manifest_shape import Mistakes, ModelSettings, add_broken_rules, read_shape
from aiobaseten.bulk.manifest_text import ManifestText
from aiobaseten.errors import Problem
from aiobaseten.models import DeploymentArchivePayload, JsonObject
from aiobaseten.push import Push

SCHEMA = manifest_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
MODEL = SCHEMA["$defs"]["model"]["properties"]
DEFAULTS = SCHEMA["properties"]["defaults"]["properties"]

NEEDS_MORE_THAN_ONE_FIELD = ("needs ", "must stay at its default", "must not be set with model_id", "is fixed when a model is made")
"""Rules that a model's fields and the defaults keep or break together."""


def test_it_is_a_schema_of_its_draft() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_it_is_shipped_in_the_package() -> None:
    file = importlib.resources.files("aiobaseten.bulk").joinpath(SCHEMA_NAME)
    assert json.loads(file.read_text(encoding="utf-8")) == SCHEMA
    assert manifest_schema() is not SCHEMA


def test_its_fields_are_the_loaders() -> None:
    fields = {field.name for field in attrs.fields(ModelSettings)}
    assert set(MODEL) == fields
    assert set(DEFAULTS) == fields - {"path", "glob", "name"}
    assert set(SCHEMA["properties"]) == {"defaults", "models"}
    assert set(SCHEMA["$defs"]) == {"model", *fields}


def test_the_loaders_fields_are_those_of_a_push_and_a_deployment() -> None:
    of_push = {field.name for field in attrs.fields(Push)} - {"source", "deployment"}
    of_deployment = {field.name for field in attrs.fields(DeploymentArchivePayload)}
    assert {field.name for field in attrs.fields(ModelSettings)} == of_push | of_deployment | {"path", "glob", "team"}


def test_its_defaults_are_the_loaders() -> None:
    defaults = {field.name: field.default for field in attrs.fields(ModelSettings) if field.default is not None}
    assert {name: rule["default"] for name, rule in SCHEMA["$defs"].items() if "default" in rule} == defaults


def test_every_field_is_described_for_editors() -> None:
    assert [name for name, rule in SCHEMA["$defs"].items() if not rule.get("description", "").endswith(".")] == []
    assert all(rule == {"$ref": f"#/$defs/{name}"} for name, rule in (MODEL | DEFAULTS).items())


def test_nothing_else_is_allowed() -> None:
    for part in (SCHEMA, SCHEMA["properties"]["defaults"], SCHEMA["$defs"]["model"]):
        assert part["additionalProperties"] is False


def problems_without_sources(document: Any) -> list[Problem]:
    """What the loader finds wrong with a manifest before it looks for sources, less what no schema can say."""
    mistakes = Mistakes("m.json")
    defaults, shapes = read_shape(ManifestText(values=document, lines=Lines()), mistakes)
    for shape in shapes:
        add_broken_rules(shape, None, defaults, mistakes, source="")
    return [problem for problem in mistakes.in_order() if not any(rule in problem.rule for rule in NEEDS_MORE_THAN_ONE_FIELD)]


# Python's `$` matches before a final line break too, so no text ends in one. JSON Schema takes 10.0 for a whole number, the loader
# does not, so no number has only zeros after its point.
TEXT = st.text("ab-_. /:*é0", max_size=6)
ANYTHING = st.none() | st.booleans() | st.integers(-5, 2000) | st.just(1.5) | TEXT | st.lists(TEXT, max_size=1)
OBJECTS = st.dictionaries(TEXT, ANYTHING, max_size=2)
NOT_EMPTY = TEXT.map(lambda text: f"x{text}")
RIGHT: dict[str, st.SearchStrategy[Any]] = {
    "path": st.just("models/a"),
    "glob": st.just("models/*"),
    "deployment_name": st.none() | st.text("aB0-_.", max_size=4),
    "deploy_timeout_minutes": st.none() | st.integers(10, 1440),
    "existing": st.sampled_from(["deploy", "error"]),
    "symlinks": st.sampled_from(["store", "follow"]),
}
for _name, _type in get_type_hints(ModelSettings).items():
    if _type is bool:
        RIGHT[_name] = st.booleans()
    elif _name not in RIGHT:
        RIGHT[_name] = st.none() | (OBJECTS if _type == JsonObject | None else NOT_EMPTY)
ODD_TEXTS = st.sampled_from(["", " ", "\t", "s3://b/k", "HTTP://x", "a://", "1://", "x" * 200, "a b", "é", "10", "null", "deploy"])
ODD_VALUES = ANYTHING | OBJECTS | ODD_TEXTS | st.sampled_from([9, 10, 1440, 1441])


@st.composite
def right_models(draw: st.DrawFn) -> dict[str, Any]:
    place = draw(st.sampled_from(["path", "glob"]))
    names = draw(st.lists(st.sampled_from(sorted(set(RIGHT) - {"path", "glob"})), max_size=5, unique=True))
    model = {name: draw(RIGHT[name]) for name in [place, *names]}
    for one, other in (("name", "model_id"), ("team", "team_id")):
        if model.get(one) is not None and model.get(other) is not None:
            del model[other]
    return model


@st.composite
def right_manifests(draw: st.DrawFn) -> dict[str, Any]:
    manifest: dict[str, Any] = {"models": draw(st.lists(right_models(), min_size=1, max_size=3))}
    if draw(st.booleans()):
        defaults = {name: value for name, value in draw(right_models()).items() if name not in ("path", "glob", "name")}
        manifest["defaults"] = draw(st.none() | st.just(defaults))
    return manifest


@st.composite
def changed_manifests(draw: st.DrawFn) -> Any:
    """Manifests with something put in, changed or taken away, mostly wrong."""
    manifest = copy.deepcopy(draw(right_manifests()))
    parts: list[Any] = [manifest, *manifest["models"], *([manifest["defaults"]] if manifest.get("defaults") else [])]
    for _ in range(draw(st.integers(1, 2))):
        part = draw(st.sampled_from(parts))
        name = draw(st.sampled_from([*sorted(RIGHT), *part, "lables", "models", "defaults"]))
        if draw(st.booleans()):
            part[name] = draw(ODD_VALUES)
        else:
            part.pop(name, None)
    return draw(st.sampled_from([manifest] * 9 + [manifest.get("models")]))


def assert_agreed(document: Any) -> None:
    told = problems_without_sources(document)
    refused = [error.message for error in VALIDATOR.iter_errors(document)]
    assert bool(told) == bool(refused), (told, refused)


@settings(deadline=None)
@given(right_manifests())
def test_what_is_right_is_accepted_by_both(document: dict[str, Any]) -> None:
    assert problems_without_sources(document) == []
    assert_agreed(document)


@settings(deadline=None, max_examples=500)
@given(changed_manifests())
def test_what_is_changed_is_refused_by_both_or_by_neither(document: Any) -> None:
    assert_agreed(document)


@pytest.mark.parametrize("name", sorted(RIGHT))
@settings(deadline=None, max_examples=50)
@given(value=ODD_VALUES)
def test_each_field_takes_the_same_values(name: str, value: Any) -> None:
    model = {name: value} if name in ("path", "glob") else {"path": "models/a", name: value}
    assert_agreed({"models": [model]})
    if name not in ("path", "glob", "name"):
        assert_agreed({"defaults": {name: value}, "models": [{"path": "models/a"}]})
