"""Manifests: the pushes that one makes, and every mistake told at once with file, line and field."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from support.model_dirs import model_dir

from aiobaseten.bulk import manifest_sources
from aiobaseten.bulk.manifest import Manifest, ManifestEntry, load_manifest
from aiobaseten.errors import ConfigurationError, InvalidPush
from aiobaseten.models import DeploymentArchivePayload
from aiobaseten.push import Push

pytestmark = pytest.mark.anyio

Load = Callable[[Any], Awaitable[Manifest]]


def push(path: str, name: str | None, **changes: Any) -> Push:
    """A push with the deployment's settings as plain arguments."""
    names = {field.name for field in attrs.fields(DeploymentArchivePayload)}
    deployment = DeploymentArchivePayload(**{key: value for key, value in changes.items() if key in names})
    others = {key: value for key, value in changes.items() if key not in names}
    given = None if deployment == DeploymentArchivePayload() else deployment
    return Push(str(Path.cwd() / path), name=name, deployment=given, **others)


EXAMPLE = """\
defaults:
  environment_name: production
  labels: {team: search}
models:
  - path: models/a                # a comment
  - glob: models/batch-*
    labels: {batch: "7"}
  - path: archives/x.tgz
    name: my-x
    team: research
"""
EXAMPLE_TOML = """\
[defaults]
environment_name = "production"
labels.team = "search"

[[models]]
path = "models/a"
[[models]]
glob = "models/batch-*"
labels = {batch = "7"}

[[models]]
path = "archives/x.tgz"
name = "my-x"
team = "research"
"""
EXAMPLE_JSON = """\
{
  "defaults": {"environment_name": "production", "labels": {"team": "search"}},
  "models": [{"path": "models/a"},

    {"glob": "models/batch-*", "labels": {"batch": "7"}},
\t{"path": "archives/x.tgz", "name": "my-x", "team": "research"}]
}
"""


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("deploy.yaml", EXAMPLE, [5, 6, 6, 8]),
        ("deploy.YML", EXAMPLE, [5, 6, 6, 8]),
        ("deploy.toml", EXAMPLE_TOML, [5, 7, 7, 11]),
        ("deploy.json", EXAMPLE_JSON, [3, 5, 5, 6]),
    ],
)
async def test_a_manifest_in_each_format(home: Path, name: str, content: str, lines: list[int]) -> None:
    (home / name).write_text(content)
    manifest = await load_manifest(Path(name))
    assert manifest.path == Path(name)
    settings: dict[str, Any] = {"environment_name": "production", "labels": {"team": "search"}}
    batch = {"environment_name": "production", "labels": {"team": "search", "batch": "7"}}
    assert [entry.push for entry in manifest.entries] == [
        push("models/a", "model-a", **settings),
        push("models/batch-10", "model-batch-10", **batch),
        push("models/batch-9", "model-batch-9", **batch),
        push("archives/x.tgz", "my-x", **settings),
    ]
    assert [entry.written for entry in manifest.entries] == ["models/a", "models/batch-10", "models/batch-9", "archives/x.tgz"]
    assert [entry.team for entry in manifest.entries] == [None, None, None, "research"]
    assert [entry.line for entry in manifest.entries] == lines
    assert [entry.size_bytes for entry in manifest.entries] == [10240, 10240, 10240, (home / "archives/x.tgz").stat().st_size]
    assert "4 entries" in repr(manifest)


async def test_every_field_of_a_model(load: Load) -> None:
    deployment = {
        "config": {"model_name": "c", "x": [1.5, None]},
        "raw_config": "model_name: c",
        "user_env": {"python_version": "py311"},
        "environment_name": "staging",
        "preserve_env_instance_type": False,
        "deploy_timeout_minutes": 60,
        "deployment_name": "d-1",
        "labels": {"a": 1},
        "create_environment_if_missing": False,
        "region": "us",
        "instance_type_id": "1x2",
        "autoscaling_settings": {"min_replica": 1},
        "autoscaling_schedule_settings": {},
        "request_backpressure_settings": {},
        "promotion_settings_override": {},
    }
    others = {"name": "n", "team_id": "t", "existing": "error", "disable_archive_download": True, "symlinks": "follow"}
    [entry] = (await load({"models": [{"path": "models/a", **deployment, **others}]})).entries
    assert entry.push == push("models/a", **deployment, **others)
    [entry] = (await load({"models": [{"path": "models/a", "model_id": "m", "is_development": True}]})).entries
    assert entry.push == push("models/a", None, model_id="m", is_development=True)


async def test_defaults_are_replaced_and_labels_are_merged(load: Load) -> None:
    defaults = {
        "labels": {"a": 1, "b": {"c": 2}},
        "region": "us",
        "team": "research",
        "config": {"model_name": "from-defaults"},
        "environment_name": "production",
        "symlinks": "follow",
    }
    models = [
        {"path": "models/a"},
        {"path": "models/b", "labels": {"b": {"d": 3}}, "region": "eu", "config": {"model_name": "own"}, "symlinks": "store"},
        {"path": "models/b", "labels": None, "environment_name": None, "team_id": "t", "name": "n", "config": None},
    ]
    entries = (await load({"defaults": defaults, "models": models})).entries
    config = {"model_name": "from-defaults"}
    production = {"environment_name": "production"}
    assert [entry.push for entry in entries] == [
        push("models/a", "from-defaults", labels=defaults["labels"], region="us", config=config, symlinks="follow", **production),
        push("models/b", "own", labels={"a": 1, "b": {"d": 3}}, region="eu", config={"model_name": "own"}, **production),
        push("models/b", "n", team_id="t", region="us", symlinks="follow"),
    ]
    assert [entry.team for entry in entries] == ["research", "research", None]


async def test_a_models_own_choice_replaces_the_other_choice_of_defaults(load: Load) -> None:
    models = [{"path": "models/a"}, {"path": "models/a", "name": "n"}]
    entries = (await load({"defaults": {"model_id": "m"}, "models": models})).entries
    assert [(entry.push.model_id, entry.push.name) for entry in entries] == [("m", None), (None, "n")]
    models = [{"path": "models/a"}, {"path": "models/a", "team": "x"}, {"path": "models/b", "team": None}]
    entries = (await load({"defaults": {"team_id": "t"}, "models": models})).entries
    assert [(entry.push.team_id, entry.team) for entry in entries] == [("t", None), (None, "x"), (None, None)]


@pytest.mark.parametrize("empty", ["", "defaults:\n", "defaults: {}\n"])
async def test_a_push_without_settings(load: Load, empty: str) -> None:
    [entry] = (await load(f"{empty}models: [path: models/a]")).entries
    assert entry == ManifestEntry(
        push=push("models/a", "model-a"), written="models/a", line=1 + empty.count("\n"), size_bytes=10240
    )


async def test_paths_are_relative_to_the_manifest(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["models:", "- path: a", "- path: ../archives/y.tar", "- path: ~/models/b", "- glob: ~/arch*/[xz]*"]
    (home / "models" / "m.yaml").write_text("\n".join(lines))
    (home / "models" / "n.yaml").write_text(f"models: [{{path: {home}/models/a}}, {{glob: '{home}/models/batch-[0-9]'}}]")
    monkeypatch.chdir(home / "archives")
    manifest = await load_manifest("../models/m.yaml")
    expected = ["models/a", "archives/y.tar", "models/b"]
    with_glob = [*expected, "archives/x.tgz", "archives/z.tar.gz"]
    assert manifest.path == Path("../models/m.yaml")
    assert [entry.push.source for entry in manifest.entries] == [str(home / path) for path in with_glob]
    assert [entry.written for entry in manifest.entries][:3] == ["a", "../archives/y.tar", "~/models/b"]
    entries = (await load_manifest(home / "models" / "n.yaml")).entries
    assert [entry.push.source for entry in entries] == [str(home / "models" / name) for name in ("a", "batch-9")]


async def test_what_a_glob_matches(load: Load, home: Path) -> None:
    model_dir(home / "models" / "deep" / "er" / "c", "c")
    model_dir(home / "models" / ".hidden", "hidden")
    (home / "models" / "no-model").mkdir()
    found = {}
    for pattern in ["models/*", "./models/*/", "models/**", "*/[ab]", "archives/*", "archives/x*", "models/../archives/?.t*"]:
        found[pattern] = [entry.written for entry in (await load({"models": [{"glob": pattern}]})).entries]
    models = [f"models/{name}" for name in ("a", "b", "batch-10", "batch-9")]
    archives = [f"archives/{name}" for name in ("x.tgz", "y.tar", "z.tar.gz")]
    assert found == {
        "models/*": models,
        "./models/*/": models,
        "models/**": [*models, "models/deep/er/c"],
        "*/[ab]": models[:2],
        "archives/*": archives,
        "archives/x*": archives[:1],
        "models/../archives/?.t*": archives,
    }


async def test_names_that_would_be_patterns(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = home / "a[b]*"
    model_dir(odd / "models" / "a", "a")
    (odd / "m.yaml").write_text("models: [{glob: models/*}, {glob: ~/models/*, environment_name: x}]")
    monkeypatch.setenv("HOME", str(odd))
    entries = (await load_manifest(odd / "m.yaml")).entries
    assert [entry.push.source for entry in entries] == [str(odd / "models" / "a")] * 2
    assert [entry.written for entry in entries] == ["models/a", str(odd / "models" / "a")]


async def test_select(load: Load) -> None:
    manifest = await load(EXAMPLE)
    chosen = {
        patterns: [entry.written for entry in manifest.select(patterns).entries]
        for patterns in [(), ("*",), ("model-a",), ("models/a",), ("my-x", "models/batch-9"), ("model-batch-?", "*[19]*"), ("*-x",)]
    }
    written = [entry.written for entry in manifest.entries]
    assert chosen == {
        (): written,
        ("*",): written,
        ("model-a",): ["models/a"],
        ("models/a",): ["models/a"],
        ("my-x", "models/batch-9"): ["models/batch-9", "archives/x.tgz"],
        ("model-batch-?", "*[19]*"): ["models/batch-10", "models/batch-9"],
        ("*-x",): ["archives/x.tgz"],
    }
    assert [entry.written for entry in manifest.select(limit=2).entries] == written[:2]
    assert manifest.select(["models/*"], limit=99).entries == manifest.entries[:3]
    assert manifest.select().path == manifest.path


async def test_select_refuses_what_matches_nothing(load: Load) -> None:
    manifest = await load("models: [{path: models/a, model_id: m}]")
    with pytest.raises(InvalidPush) as caught:
        manifest.select(["nothing-*", "models/*", "MODELS/A"])
    assert list(map(str, caught.value.problems)) == [
        "deploy.yaml: no model's name or path matches 'nothing-*'",
        "deploy.yaml: no model's name or path matches 'MODELS/A'",
    ]


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
async def test_select_refuses_other_limits(load: Load, limit: Any) -> None:
    manifest = await load("models: [path: models/a]")
    with pytest.raises(ConfigurationError, match="limit must be a whole number of at least 1"):
        manifest.select(limit=limit)


TEAMS = """\
defaults:
  team: search
models:
- path: models/a
- glob: models/b*
- path: archives/x.tgz
  team: research
- path: archives/y.tar
  team_id: t
- path: archives/z.tar.gz
  team: search
"""


async def test_teams_by_name(load: Load) -> None:
    manifest = await load(TEAMS)
    asked: list[str] = []

    async def find(name: str) -> str | None:
        asked.append(name)
        return f"id-of-{name}"

    found = await manifest.with_teams(find)
    assert asked == ["search", "research"]
    ids = ["id-of-search"] * 4 + ["id-of-research", "t", "id-of-search"]
    assert [entry.push.team_id for entry in found.entries] == ids
    assert {entry.team for entry in found.entries} == {None}
    assert [attrs.evolve(entry.push, team_id=None) for entry in found.entries] == [
        attrs.evolve(entry.push, team_id=None) for entry in manifest.entries
    ]
    assert await found.with_teams(find) == found
    assert len(asked) == 2


async def test_teams_that_there_are_not(load: Load) -> None:
    manifest = await load(TEAMS)

    async def find(name: str) -> str | None:
        return None

    with pytest.raises(InvalidPush) as caught:
        await manifest.with_teams(find)
    assert list(map(str, caught.value.problems)) == [
        "deploy.yaml:2: $.defaults.team: there is no team named 'search'",
        "deploy.yaml:7: $.models[2].team: there is no team named 'research'",
        "deploy.yaml:11: $.models[4].team: there is no team named 'search'",
    ]
    assert str(caught.value).startswith("deploy.yaml has 3 mistakes; nothing was sent\n")


@pytest.mark.parametrize("named_first", [True, False])
async def test_one_team_by_name_and_by_id(load: Load, named_first: bool) -> None:
    lines = ["- {path: models/a, team: research}", "- {path: models/a, team_id: t}"]
    manifest = await load("\n".join(["models:", *(lines if named_first else reversed(lines)), "- path: models/b"]))

    async def find(name: str) -> str | None:
        return "t"

    with pytest.raises(InvalidPush) as caught:
        await manifest.with_teams(find)
    place = "deploy.yaml:2: $.models[0].team" if named_first else "deploy.yaml:3: $.models[1].team"
    assert list(map(str, caught.value.problems)) == [
        f"{place}: 'models/a' goes to the same place twice: lines 2 and 3 mean the same team"
    ]


async def test_each_source_is_opened_once_and_few_at_the_same_time(load: Load, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(30):
        model_dir(home / "many" / f"m-{index:02}", f"m-{index}")
    opened: list[object] = []
    now_open = most_open = 0
    real = manifest_sources.open_source

    async def open_source(path: Any, *, symlinks: Any) -> Any:
        nonlocal now_open, most_open
        opened.append((path, symlinks))
        now_open += 1
        most_open = max(most_open, now_open)
        try:
            return await real(path, symlinks=symlinks)
        finally:
            now_open -= 1

    monkeypatch.setattr(manifest_sources, "open_source", open_source)
    models = [{"glob": "many/*", "environment_name": name} for name in ("one", "two")]
    entries = (await load({"models": [*models, {"path": "many/m-00", "symlinks": "follow"}]})).entries
    assert len(entries) == 61
    assert len(opened) == len(set(opened)) == 31
    assert 1 < most_open <= manifest_sources.MAX_OPEN


async def test_no_source_is_left_open(load: Load) -> None:
    def descriptors() -> list[str]:
        return os.listdir("/dev/fd")  # noqa: PTH208 - of this process, by number

    await load(EXAMPLE)
    before = descriptors()
    await load({"models": [{"glob": "archives/*"}]})
    assert descriptors() == before


async def test_loading_can_be_cancelled(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    async def open_source(path: Any, *, symlinks: Any) -> Any:
        scope.cancel()
        await anyio.sleep_forever()

    monkeypatch.setattr(manifest_sources, "open_source", open_source)
    with anyio.CancelScope() as scope:
        await load(EXAMPLE)
    assert scope.cancelled_caught
