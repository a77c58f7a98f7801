"""What is wrong with a manifest: every mistake at once, with file, line and field."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.model_dirs import tar_of

from aiobaseten.bulk import manifest as manifest_module
from aiobaseten.bulk import manifest_text
from aiobaseten.bulk.manifest import Manifest, load_manifest
from aiobaseten.errors import InvalidPush

pytestmark = pytest.mark.anyio

Load = Callable[[Any], Awaitable[Manifest]]
Refuse = Callable[[Any], Awaitable[list[str]]]

NO_SOURCES = "none of them a directory that holds a config.yaml or an archive file"
NO_PLACE = "must have exactly one of path and glob, and has neither"
LOCAL = "must be a local path, and"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ["$: is empty; a manifest lists its models, such as models: [{path: models/a}]"]),
        ("- a", ["$: must be an object, not an array; a manifest lists its models, such as models: [{path: models/a}]"]),
        ("{}", ["$: holds no models; list at least one, such as models: [{path: models/a}]"]),
        ("\nmodels: []", ["2: $.models: holds no models; list at least one, such as models: [{path: models/a}]"]),
        ("models:", ["1: $.models: holds no models; list at least one, such as models: [{path: models/a}]"]),
        ("models: {path: a}", ["1: $.models: must be an array of models, not an object"]),
        ("models: [a]", ["1: $.models[0]: must be an object, not a string; such as {path: models/a}"]),
        ("model: []\nmodels: [path: models/a]", ["1: $.model: is not a field here; did you mean 'models'?"]),
        ("x y: 1\nmodels: [path: models/a]", ["1: $.x y: is not a field here; there are defaults, models"]),
        ("defaults: []\nmodels: [path: models/a]", ["1: $.defaults: must be an object, not an array"]),
        ("3: x\nmodels: [path: models/a]", ["$: has the key 3; keys must be strings"]),
        (
            {"defaults": {"path": "models/a", "name": "n"}, "models": [{"path": "models/a", "lables": {}}]},
            [
                "1: $.defaults.name: is for a model to set, and has no defaults",
                "1: $.defaults.path: is for a model to set, and has no defaults",
                "1: $.models[0].lables: is not a field here; did you mean 'labels'?",
            ],
        ),
        ("models: [{1: a, path: models/a}]", ["1: $.models[0]: has the key 1; keys must be strings"]),
        ("models:\n- path: models/a\n  'x\\u2028y': 1", None),
        ("models: [{}]", [f"1: $.models[0]: {NO_PLACE}"]),
        ("models: [{path: null}]", [f"1: $.models[0]: {NO_PLACE}"]),
        ("models: [{path: a, glob: b}]", ["1: $.models[0]: must have exactly one of path and glob, and has both"]),
        ("models: [{path: 1}]", ["1: $.models[0].path: must be a string, not a number"]),
        ("models: [{path: ''}]", ["1: $.models[0].path: must not be empty"]),
        ("models: [{glob: ''}]", ["1: $.models[0].glob: must not be empty"]),
        ("models: [{path: s3://b/k}]", [f"1: $.models[0].path: {LOCAL} 's3://b/k' is a URL: fetch it first"]),
        ("models: [{glob: https://h/*}]", [f"1: $.models[0].glob: {LOCAL} 'https://h/*' is a URL: fetch it first"]),
        ('{"models": [{"path": "a\\u0000"}]}', ["1: $.models[0].path: cannot be the name of a file: 'a\\x00'"]),
        ('models: [{glob: "a\\0*"}]', ["1: $.models[0].glob: cannot be the name of a file: 'a\\x00*'"]),
        ("models: [{glob: none/*}]", ["1: $.models[0].glob: matches nothing: 'none/*'"]),
        (
            "models: [{glob: 'archives/[nd]*'}]",
            [
                f"1: $.models[0].glob: matches 2, {NO_SOURCES}: 'archives/[nd]*'",
            ],
        ),
        (
            "models:\n- glob: models/*\n  name: n",
            ["3: $.models[0].name: names one model, and the glob matches 4; leave it out: each has model_name in its config.yaml"],
        ),
        (
            {"models": [{"path": "models/a", "existing": "x", "symlinks": None, "is_development": 1, "labels": [], "region": 2}]},
            [
                "1: $.models[0].existing: must be 'deploy' or 'error'",
                "1: $.models[0].is_development: must be true or false, not a number",
                "1: $.models[0].labels: must be an object, not an array",
                "1: $.models[0].region: must be a string, not a number",
                "1: $.models[0].symlinks: must be 'store' or 'follow'",
            ],
        ),
        ("models: [{path: models/a, name: n, model_id: m}]", [
            "1: $.models[0].model_id: exactly one of name and model_id is required, and both are set"
        ]),
        ("models: [{path: models/a, team: t, team_id: m}]", [
            "1: $.models[0].team_id: must not be set with team: either says which team it is"
        ]),
        ("defaults: {team: t, team_id: m}\nmodels: [{path: models/a}]", [
            "1: $.defaults.team_id: must not be set with team: either says which team it is"
        ]),
        ("models: [{path: models/a, team: t, model_id: m}]", [
            "1: $.models[0].team: must not be set with model_id: an existing model has its team"
        ]),
        ("models: [{path: models/a, team_id: t, model_id: m}]", [
            "1: $.models[0].team_id: must not be set with model_id: an existing model has its team"
        ]),
        ("models: [{path: models/a, team: ' '}]", ["1: $.models[0].team: must not be empty"]),
        ("models: [{path: models/a, name: ''}]", ["1: $.models[0].name: must not be empty"]),
        ("models: [{path: models/a, disable_archive_download: true, model_id: m}]", [
            "1: $.models[0].disable_archive_download: is fixed when a model is made, and model_id names an existing model"
        ]),
        ("models: [{path: models/a, deploy_timeout_minutes: 9}]", [
            "1: $.models[0].deploy_timeout_minutes: must be from 10 to 1440"
        ]),
        ("models:\n- path: models/a\n  labels:\n    a: .nan", ["3: $.models[0].labels.a: must be a finite number, not nan"]),
        ("models:\n- path: models/a\n  labels:\n    1: a", ["3: $.models[0].labels: has the key 1; keys must be strings"]),
        ("models:\n- path: models/a\n  config: {a: [.inf]}\n  name: n", [
            "3: $.models[0].config.a[0]: must be a finite number, not inf"
        ]),
    ],
)  # fmt: skip
async def test_mistakes(refuse: Refuse, content: Any, expected: list[str] | None) -> None:
    if expected is None:
        [told] = await refuse(content)
        assert told.isprintable()
        return
    assert await refuse(content) == [f"deploy.yaml:{each}" if each[0] != "$" else f"deploy.yaml: {each}" for each in expected]


async def test_mistakes_of_sources(refuse: Refuse, home: Path) -> None:
    for name, files in {
        "empty": {},
        "nameless": {"config.yaml": b"a: 1"},
        "odd": {"config.yaml": b"model_name: o\nx: [.nan]"},
        "broken": {"config.yaml": b"a: b: c"},
        "linked": {"config.yaml": b"model_name: l"},
    }.items():
        (home / name).mkdir()
        for file, content in files.items():
            (home / name / file).write_bytes(content)
    for link in ("one", "two"):
        (home / "linked" / link).symlink_to("/nowhere")
    (home / "no-config.tar").write_bytes(tar_of([("a", b"a")]))
    (home / "not.tar").write_bytes(b"x" * 2000)
    paths = ["missing", "empty", "nameless", "odd", "broken", "linked", "no-config.tar", "not.tar", "/dev/null", "linked"]
    told = await refuse({"models": [{"path": path} for path in paths]})
    problems = [each.removeprefix("deploy.yaml:1: $.models") for each in told]
    assert problems[:4] == [
        f"[0].path: '{home}/missing' does not exist",
        f"[1].path: {home}/empty has no config.yaml, which a model directory must hold at its root",
        "[2]: no name is known for the model in 'nameless': set name or model_id, or model_name in its config.yaml",
        "[3].path: config.yaml of 'odd': $.x[0]: must be a finite number, not nan",
    ]
    assert problems[4] == (
        f"[4].path: {home}/broken/config.yaml, line 1, column 5: mapping values are not allowed in this context; a: b: c"
    )
    assert [each.partition(" ")[0] for each in problems[5:]] == [f"[{index}].path:" for index in (5, 5, 6, 7, 8, 9, 9, 9)]
    assert problems[5].startswith("[5].path: 'linked': one: ")
    assert problems[6].startswith("[5].path: 'linked': two: ")
    assert "no config.yaml at its root" in problems[7]
    assert "not a tar archive" in problems[8]
    assert "is a character device" in problems[9]
    assert problems[-3] == "[9].path: 'linked' goes to the same place as 'linked' of $.models[5] (line 1) already does"


async def test_a_config_of_its_own_needs_none_in_the_archive(load: Load, home: Path) -> None:
    (home / "no-config.tar").write_bytes(tar_of([("a", b"a")]))
    models = [{"path": "no-config.tar", "config": {"model_name": "own"}}, {"path": "no-config.tar", "config": {}, "model_id": "m"}]
    entries = (await load({"models": models})).entries
    assert [entry.push.name for entry in entries] == ["own", None]


async def test_a_name_that_the_config_has_not(load: Load, refuse: Refuse, home: Path) -> None:
    (home / "models" / "a" / "config.yaml").write_text("x: 1")
    assert [entry.push.name for entry in (await load("models: [{path: models/a, name: n}]")).entries] == ["n"]
    assert [entry.push.name for entry in (await load("models: [{path: models/a, model_id: n}]")).entries] == [None]
    told = await refuse("models: [{path: models/a, labels: 1, deploy_timeout_minutes: 1}, {path: models/b, name: 1}]")
    assert len(told) == 4
    assert "no name is known for the model in 'models/a'" in told[0]


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ([{"path": "models/a"}, {"path": "./models/../models/a"}], ["1.path"]),
        ([{"path": "models/a"}, {"path": "link"}, {"path": "models/a/"}], ["1.path", "2.path"]),
        ([{"path": "models/a"}, {"glob": "models/*"}], ["1.glob"]),
        ([{"glob": "models/*"}, {"glob": "models/batch-*"}], ["1.glob", "1.glob"]),
        ([{"path": "models/a"}, {"path": "models/a", "name": "model-a"}], ["1.path"]),
        ([{"path": "models/a"}, {"path": "models/a", "name": "other"}], []),
        ([{"path": "models/a"}, {"path": "models/a", "team": "x"}, {"path": "models/a", "team_id": "x"}], []),
        ([{"path": "models/a", "team": "x"}, {"path": "models/a", "team": "x"}], ["1.path"]),
        ([{"path": "models/a", "model_id": "m"}, {"path": "models/a", "model_id": "m"}], ["1.path"]),
        ([{"path": "models/a", "model_id": "model-a"}, {"path": "models/a"}], []),
        ([{"path": "models/a", "environment_name": "x"}, {"path": "models/a"}], []),
        ([{"path": "models/a", "environment_name": "x"}, {"path": "models/a", "environment_name": "x"}], ["1.path"]),
        ([{"path": "models/a", "deployment_name": "x"}, {"path": "models/a", "deployment_name": "y"}], []),
        ([{"path": "models/a", "deployment_name": ""}, {"path": "models/a"}], ["1.path"]),
        ([{"path": "models/a", "deployment_name": "x"}, {"path": "models/a", "deployment_name": "x"}], ["1.path"]),
        ([{"path": "models/a", "labels": {"a": 1}}, {"path": "models/a", "labels": {"a": 2}}], ["1.path"]),
        (
            [{"path": f"models/{name}", "deployment_name": "x", "model_id": "m"} for name in ("a", "b")],
            ["1.deployment_name"],
        ),
        ([{"path": f"models/{name}", "deployment_name": "x", "name": "m"} for name in ("a", "b")], ["1.deployment_name"]),
        ([{"path": f"models/{name}", "deployment_name": "x"} for name in ("a", "b")], []),
        ([{"path": f"missing/{name}", "deployment_name": "x"} for name in ("a", "b")], ["0.path", "1.path"]),
        ([{"glob": "models/*", "deployment_name": "x", "model_id": "m"}], ["0.deployment_name"]),
        ([{"path": "models/a", "name": 1}, {"path": "models/b", "name": 2, "deployment_name": "x"}], ["0.name", "1.name"]),
    ],
)
async def test_what_is_there_twice(
    load: Load, refuse: Refuse, home: Path, models: list[dict[str, Any]], expected: list[str]
) -> None:
    (home / "link").symlink_to("models/a")
    if not expected:
        assert len((await load({"models": models})).entries) == len(models)
        return
    told = await refuse({"models": models})
    assert [each.removeprefix("deploy.yaml:1: $.models[").partition(": ")[0].replace("]", "") for each in told] == expected


async def test_what_is_there_twice_says_where_the_first_is(refuse: Refuse) -> None:
    content = """\
models:
- glob: models/*
- path: archives/x.tgz
- path: models/a
- path: models/b
  name: model-x
  deployment_name: d
- {path: models/a, name: model-x, deployment_name: d}
"""
    first = "'models/b' of $.models[3] (line 5)"
    assert await refuse(content) == [
        "deploy.yaml:4: $.models[2].path: 'models/a' goes to the same place as 'models/a' of $.models[0] (line 2) already does",
        f"deploy.yaml:8: $.models[4].deployment_name: 'd' is already the deployment of {first}, to the same model",
    ]


async def test_duplicate_keys(refuse: Refuse) -> None:
    told = await refuse("models:\n- path: models/a\n  path: models/b\nmodels:\n- {path: models/a, labels: {x: 1, x: 2}}\n")
    assert told == [
        "deploy.yaml:1: $.models: is given twice, on lines 1 and 4",
        "deploy.yaml:2: $.models[0].path: is given twice, on lines 2 and 3",
        "deploy.yaml:5: $.models[0].labels.x: is given twice, on lines 5 and 5",
    ]


async def test_what_defaults_break_is_told_once(refuse: Refuse) -> None:
    content = """\
defaults:
  deploy_timeout_minutes: 5
  instance_type_id: x
  environment_name: 7
  labels: {ok: 1, bad: .nan, worse: .inf}
  label: 1
models:
- glob: models/*
- path: archives/x.tgz
  deploy_timeout_minutes: 6
- path: archives/y.tar
  preserve_env_instance_type: false
  labels: {bad: .nan}
- {}
"""
    assert await refuse(content) == [
        "deploy.yaml:2: $.defaults.deploy_timeout_minutes: must be from 10 to 1440",
        "deploy.yaml:3: $.defaults.instance_type_id: needs preserve_env_instance_type to be false",
        "deploy.yaml:4: $.defaults.environment_name: must be a string, not a number",
        "deploy.yaml:5: $.defaults.labels.bad: must be a finite number, not nan",
        "deploy.yaml:5: $.defaults.labels.worse: must be a finite number, not inf",
        "deploy.yaml:6: $.defaults.label: is not a field here; did you mean 'labels'?",
        "deploy.yaml:10: $.models[1].deploy_timeout_minutes: must be from 10 to 1440",
        "deploy.yaml:13: $.models[2].labels.bad: must be a finite number, not nan",
        f"deploy.yaml:14: $.models[3]: {NO_PLACE}",
    ]


async def test_what_defaults_break_only_with_a_model_is_told_of_the_model(load: Load, refuse: Refuse) -> None:
    content = "defaults: {environment_name: x, instance_type_id: i, preserve_env_instance_type: false}\nmodels:\n- path: models/a\n"
    await load(content)
    reason = "must stay at its default in a development push"
    assert await refuse(content + "- path: models/b\n  is_development: true\n  preserve_env_instance_type: true\n") == [
        f"deploy.yaml:4: $.models[1]: environment_name, which defaults set, {reason}",
        "deploy.yaml:4: $.models[1]: instance_type_id, which defaults set, needs preserve_env_instance_type to be false",
    ]


async def test_rules_that_one_model_can_still_keep_are_no_mistakes_of_defaults(load: Load) -> None:
    defaults = {"autoscaling_schedule_settings": {}, "promotion_settings_override": {}, "instance_type_id": "i"}
    model = {"path": "models/a", "environment_name": "e", "preserve_env_instance_type": False}
    assert len((await load({"defaults": defaults, "models": [model]})).entries) == 1


async def test_a_text_of_the_wrong_type_counts_as_given(refuse: Refuse) -> None:
    models = [
        {"path": "models/a", "environment_name": 1, "promotion_settings_override": {}},
        {"path": "models/b", "model_id": 1, "name": "n"},
    ]
    assert await refuse({"models": models}) == [
        "deploy.yaml:1: $.models[0].environment_name: must be a string, not a number",
        "deploy.yaml:1: $.models[1].model_id: exactly one of name and model_id is required, and both are set",
        "deploy.yaml:1: $.models[1].model_id: must be a string, not a number",
    ]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("m.txt", b"", "m.txt: a manifest's name must end in .yaml, .yml, .toml, .json"),
        ("m", b"", "m: a manifest's name must end in .yaml, .yml, .toml, .json"),
        ("missing.yaml", None, "missing.yaml: does not exist"),
        ("a\0.yaml", None, "a\\x00.yaml: cannot be the name of a file"),
        ("models/a/.yaml", None, "models/a/.yaml: a manifest's name must end in .yaml, .yml, .toml, .json"),
        ("m.yaml", b"a: 1\nb: c: d", "m.yaml:2: column 5: mapping values are not allowed in this context (b: c: d)"),
        ("m.json", b'{\n"a" 1}', "m.json:2: column 5: is not valid JSON: Expecting ':' delimiter"),
        ("m.toml", b"\n\na", "m.toml:3: is not valid TOML: Expected '=' after a key in a key/value pair (at end of document)"),
        ("m.yaml", b"\n\n\xff", "m.yaml:3: byte 0xff is not UTF-8; the file must be text"),
        ("m.json", b"[" * 100_000, "m.json: is nested much deeper than the 100 levels that JSON values of a push may have"),
    ],
)
async def test_what_is_no_manifest(home: Path, name: str, content: bytes | None, told: str) -> None:
    if content is not None:
        (home / name).write_bytes(content)
    assert await refused(name) == told


async def test_a_directory_is_no_manifest(home: Path) -> None:
    (home / "models.yaml").mkdir()
    assert await refused("models.yaml") == "models.yaml: 'models.yaml' is a directory, and must be a regular file"


async def test_a_manifest_that_is_too_large(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert manifest_text.MAX_MANIFEST_BYTES == 64 * 1024 * 1024
    monkeypatch.setattr(manifest_module, "MAX_MANIFEST_BYTES", 100)
    (home / "m.json").write_bytes(b" " * 101)
    assert await refused("m.json") == "m.json: 'm.json' has 101 bytes, and must not have more than 100"


async def refused(name: str) -> str:
    """The only mistake of a manifest."""
    with pytest.raises(InvalidPush) as caught:
        await load_manifest(name)
    [problem] = caught.value.problems
    header, told = str(caught.value).splitlines()
    assert header.endswith(" has a mistake; nothing was sent")
    assert told == str(problem)
    return told


async def test_the_text_of_the_error_is_bounded_and_its_problems_are_not(load: Load) -> None:
    for count, more in [(100, None), (101, "... and 1 more"), (2100, "... and 2,000 more")]:
        with pytest.raises(InvalidPush) as caught:
            await load({"models": [{"path": f"missing/{index}"} for index in range(count)]})
        header, *lines = str(caught.value).splitlines()
        assert header == f"deploy.yaml has {count:,} mistakes; nothing was sent"
        assert lines == [*map(str, caught.value.problems[:100]), *([more] if more else [])]
        assert len(caught.value.problems) == count
        places = [f"deploy.yaml:1: $.models[{index}].path" for index in range(count)]
        assert [problem.path for problem in caught.value.problems] == places
