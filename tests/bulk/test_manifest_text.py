"""The text of a manifest: values in three formats, the lines where they are, and what is refused."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiobaseten.bulk import manifest_text
from aiobaseten.bulk.manifest_lines import Duplicate, Lines, Outline, outline_json, outline_toml
from aiobaseten.bulk.manifest_text import ManifestText, reader_for
from aiobaseten.bulk.manifest_yaml import read_yaml
from aiobaseten.sources import safe_yaml
from aiobaseten.sources.safe_yaml import UnreadableText


@pytest.fixture(params=["with libyaml", "without"])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML is there with and without libyaml, and its two halves do not read quite alike."""
    if request.param == "without":
        monkeypatch.setattr(safe_yaml, "Loader", type("Loader", (safe_yaml._JsonConstructor, yaml.SafeLoader), {}))


def read(name: str, text: str | bytes) -> ManifestText:
    reader = reader_for(name)
    assert reader is not None
    return reader(text.encode() if isinstance(text, str) else text)


def refusal(name: str, text: str | bytes) -> str:
    with pytest.raises(UnreadableText) as caught:
        read(name, text)
    return caught.value.told_of(name)


YAML = """\
# first
defaults:
  labels:
    team: search

models:
- path: a
  labels: {x: 1,
           y: 2}
-
  # second
  name: b
  "quoted": c
- {path: d, name: e}
"""
JSON = """\
{
  "defaults": {
    "labels": {"team": "search"}},
  "models": [{"path": "a", "labels": {"x": 1,
      "y": 2}},
    {
      "name": "b", "quo\\u0074ed": "c: [\\"{"
    }, 3, {"path": "d"},
    []
  ]
}
"""
TOML = """\
# first [models]
[defaults]
environment_name = 'a # [x]'
[defaults.labels]
team = "search"  # = [
[[models]]
path = \"\"\"a
[[models]]
\"\"\"
labels.x = [1,
  2]
labels.y = 2
[[models]]  # second
name = '''
[b]
name = "c"'''
"quoted" = {a = "]", b = 1}
[models.labels]
x = 1
[models.labels.deep]
y = 1
[[models.odd]]
z = 1
[[models.odd]]
z = 2
"""


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "x.yaml",
            YAML,
            {
                ("defaults",): 2,
                ("defaults", "labels"): 3,
                ("defaults", "labels", "team"): 4,
                ("models",): 6,
                ("models", 0): 7,
                ("models", 0, "path"): 7,
                ("models", 0, "labels"): 8,
                ("models", 0, "labels", "y"): 8,
                ("models", 1): 12,
                ("models", 1, "name"): 12,
                ("models", 1, "quoted"): 13,
                ("models", 1, "other"): 12,
                ("models", 2, "name"): 14,
                ("models", 9): 6,
                ("other",): None,
                (): None,
            },
        ),
        (
            "x.json",
            JSON,
            {
                ("defaults",): 2,
                ("defaults", "labels"): 3,
                ("defaults", "labels", "team"): 3,
                ("models",): 4,
                ("models", 0): 4,
                ("models", 0, "labels", "y"): 4,
                ("models", 1): 6,
                ("models", 1, "quoted"): 7,
                ("models", 2): 8,
                ("models", 3, "path"): 8,
                ("models", 4): 9,
            },
        ),
        (
            "x.toml",
            TOML,
            {
                ("defaults",): 2,
                ("defaults", "environment_name"): 3,
                ("defaults", "labels"): 4,
                ("defaults", "labels", "team"): 5,
                ("models", 0): 6,
                ("models", 0, "path"): 7,
                ("models", 0, "labels"): 10,
                ("models", 0, "labels", "y"): 10,
                ("models", 1): 13,
                ("models", 1, "name"): 14,
                ("models", 1, "quoted"): 17,
                ("models", 1, "labels"): 18,
                ("models", 1, "labels", "x"): 18,
                ("models", 1, "odd"): 22,
                ("models", 1, "other"): 13,
            },
        ),
    ],
)
def test_lines(name: str, text: str, expected: dict[Any, int | None]) -> None:
    lines = read(name, text).lines
    assert {path: lines.of(path) for path in expected} == expected


def test_lines_of_models_that_toml_has_inline() -> None:
    text = """\
models = [  # all
  {path = "a", labels = {x = "b,{", y = [1, 2]}, name = "c"},
  {"na.me" = 1, other = [
    1], a.b = 2}
]
[defaults]
x = 1
"""
    tomllib.loads(text)
    lines = read("x.toml", text).lines
    expected = {
        ("models",): 1,
        ("models", 0): 2,
        ("models", 0, "name"): 2,
        ("models", 1): 3,
        ("models", 1, "na.me"): 3,
        ("models", 1, "x"): 3,
        ("models", 1, "a"): 4,
        ("defaults", "x"): 7,
    }
    assert {path: lines.of(path) for path in expected} == expected


def test_the_first_line_of_something_counts() -> None:
    lines = Lines()
    lines.note(("a", "b", "c", "d"), 3)
    lines.note(("a", "x"), 5)
    assert [lines.of(path) for path in [("a",), ("a", "b", "c", "d"), ("a", "x")]] == [3, 3, 5]


DUPLICATES = (
    Duplicate(("models", 0, "path"), 4, 3),
    Duplicate(("models", 0, "labels", "x"), 5, 5),
    Duplicate(("models",), 6, 2),
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.yaml", "\nmodels:\n- path: a\n  path: b\n  labels: {x: 1, 'x': 2, y: {x: 3}}\nmodels: []\n"),
        (
            "x.json",
            '{\n"models": [{\n"path": "a",\n"p\\u0061th": "b",\n"labels": {"x": 1, "x": 2, "y": {"x": 3}}}],\n"models": []}',
        ),
    ],
)
def test_duplicate_keys(name: str, text: str) -> None:
    assert read(name, text).duplicates == DUPLICATES


def test_keys_that_differ_in_type_only_are_two() -> None:
    assert read("x.yaml", "{2: a, '2': b, yes: c, 'yes': d}").duplicates == ()


def test_toml_refuses_duplicate_keys_by_itself() -> None:
    assert refusal("x.toml", "a = 1\na = 2\n") == "x.toml, line 2, column 6: is not valid TOML: Cannot overwrite a value"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("x.yaml", "a: 1\nb: c: d\n", "x.yaml, line 2, column 5: mapping values are not allowed"),
        ("x.yaml", b"a: 1\nb: \xff\n", "x.yaml, line 2: byte 0xff is not UTF-8; the file must be text"),
        ("x.json", b'{"a": "\xff"}', "x.json, line 1: byte 0xff is not UTF-8"),
        ("x.toml", b"\na = '\xff'", "x.toml, line 2: byte 0xff is not UTF-8"),
        ("x.yaml", "a: 1\n---\nb: 1\n", "x.yaml, line 2, column 1: expected a single document, and found another"),
        ("x.yaml", "a: *b\n", "x.yaml, line 1, column 4: found undefined alias 'b'"),
        ("x.yaml", "a: &a [*a]\n", "the alias 'a' stands for what it is in"),
        ("x.yaml", "? [1]\n: 2\n", "x.yaml, line 1, column 3: found unhashable key"),
        ("x.yaml", "a: &a [1]\n*a : 2\n", "x.yaml, line 2, column 1: found unhashable key"),
        ("x.yaml", "a: !!set {b}\n", "!!set is a type of value that JSON does not have"),
        ("x.yaml", "a: !!omap [b]\n", "!!omap is a type of value that JSON does not have"),
        ("x.yaml", "a: !!binary aGk=\n", "!!binary is a type of value that JSON does not have"),
        ("x.yaml", "a: !!python/object/apply:os.system [x]\n", "is a type of value that JSON does not have"),
        ("x.yaml", "a: !!int one\n", "x.yaml, line 1, column 4: not a valid !!int"),
        ("x.yaml", "a: {<<: 1}\n", "<< takes a mapping, or a list of mappings"),
        ("x.yaml", "a: {<<: [{}, 1]}\n", "<< takes a mapping, or a list of mappings"),
        ("x.yaml", "a: " + "[" * 101 + "]" * 101, "nested deeper than 100 levels"),
        ("x.json", '{"a": 1,\n "b" 2}', "x.json, line 2, column 6: is not valid JSON: Expecting ':' delimiter"),
        ("x.json", "", "x.json, line 1, column 1: is not valid JSON: Expecting value"),
        ("x.json", "{'a': 1}", "x.json, line 1, column 2: is not valid JSON"),
        ("x.json", '{"a": NaN}', "x.json is not valid JSON: NaN is not a number that JSON has"),
        ("x.json", '{"a": -Infinity}', "x.json is not valid JSON: -Infinity is not a number that JSON has"),
        ("x.json", '{"a": ' + "9" * 5000 + "}", "x.json is not valid JSON: Exceeds the limit"),
        ("x.json", "[" * 100_000, "x.json is nested much deeper than the 100 levels"),
        ("x.toml", "a = 1\nb = \n", "x.toml, line 2, column 5: is not valid TOML: Invalid value"),
        (
            "x.toml",
            "a = 1\n\nb",
            "x.toml, line 3: is not valid TOML: Expected '=' after a key in a key/value pair (at end of document)",
        ),
        ("x.toml", "a = " + "[" * 100_000, "x.toml is nested much deeper than the 100 levels"),
        ("x.toml", "a = " + "9" * 5000, "x.toml is not valid TOML: Exceeds the limit"),
    ],
)
@pytest.mark.usefixtures("loader")
def test_what_cannot_be_read(name: str, text: str | bytes, told: str) -> None:
    assert told in refusal(name, text)


@pytest.mark.usefixtures("loader")
def test_a_few_lines_of_yaml_that_stand_for_billions_of_values() -> None:
    lines = ["a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{above}'] * 10)}]" for above, name in zip("abcdefghi", "bcdefghij", strict=True)]
    assert "stands for more than 5,000,000 values" in refusal("x.yaml", "\n".join(lines))


def test_many_values_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_text, "MAX_MANIFEST_VALUES", 100)
    assert "stands for more than 100 values" in refusal("x.yaml", "- 1\n" * 100)


@pytest.mark.parametrize("name", ["x.yaml", "x.YML", "dir.json/x.Yaml", "x.json", "x.toml"])
def test_formats_by_ending(name: str) -> None:
    text = {"yaml": "a: [1]", "yml": "a: [1]", "json": '{"a": [1]}', "toml": "a = [1]"}[name.lower().rpartition(".")[2]]
    assert read(name, f"\ufeff{text}\r\n").values == {"a": [1]}


@pytest.mark.parametrize("name", ["x", "x.txt", "yaml", ".yaml", "x.yaml.bak", "x.yaml/"])
def test_endings_of_no_format(name: str) -> None:
    assert (reader_for(name) is None) == (name != "x.yaml/")


TEXT = st.characters(exclude_categories=["Cs"])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | st.text(TEXT),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(TEXT, max_size=8), inner, max_size=4),
    max_leaves=15,
)


def paths_in(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every path to a value, as deep as lines are kept."""
    steps: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        steps = list(value.items())
    elif isinstance(value, list):
        steps = list(enumerate(value))
    below = [paths_in(inner, (*path, step)) for step, inner in steps] if len(path) < 3 else []
    return [path, *(each for paths in below for each in paths)]


@given(JSON_VALUES, st.sampled_from([None, 1]))
def test_every_value_of_json_has_a_line(values: Any, indent: int | None) -> None:
    text = json.dumps(values, indent=indent)
    outline = outline_json(text)
    assert outline.duplicates == []
    for path in paths_in(values)[1:]:
        line = outline.lines.table(path[:-1])[path[-1]]
        if isinstance(path[-1], str):
            assert json.dumps(path[-1]) in text.split("\n")[line - 1]


@settings(deadline=None)
@given(st.dictionaries(st.text(TEXT), JSON_VALUES))
def test_every_value_of_yaml_has_a_line_and_is_the_same(values: dict[str, Any]) -> None:
    outline = Outline()
    text = yaml.safe_dump(values)
    assert read_yaml(text, outline, max_values=1000) == values
    assert outline.duplicates == []
    assert all(path[-1] in outline.lines.table(path[:-1]) for path in paths_in(values)[1:])


@settings(deadline=None, max_examples=500)
@example("{<<: [{a: 1}, {a: 2, b: 3}], c: 4}")
@example("{<<: {a: 1}, a: 2, <<: {a: 3, b: 4}}")
@example("- &x {a: 1}\n- &y {<<: *x, b: 2}\n- {b: 3, <<: *y}\n- {<<: [*x, *y]}\n- *y\n")
@example("? &a b\n: *a\n*a : c")
@example("? !!str 1\n: ! 1\n? '<<'\n: ''\n? \n: \n")
@example("[!!map {}, !!seq [], ! {}, ! [], !!str , !!null '']")
@example("!!map []")
@example("!!seq {}")
@example("--- a\n...\n--- b\n")
@example("&a a: &a b\nc: *a")
@example("&a [&a b]")
@given(st.text("abxy:-[]{}&*!|>'\"#%@`?,<= \n0123.~", max_size=40))
def test_yaml_is_read_as_by_pyyaml(text: str) -> None:
    try:
        expected = safe_yaml.load(text, max_values=1000)
    except UnreadableText:
        with pytest.raises(UnreadableText):
            read_yaml(text, Outline(), max_values=1000)
    else:
        assert repr(read_yaml(text, Outline(), max_values=1000)) == repr(expected)


BARE = st.text("abcXYZ019_-", min_size=1, max_size=5)
BASIC = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5).map(lambda text: json.dumps(text, ensure_ascii=False))
TOML_KEYS = BARE | BASIC | st.text('ab .#=[]"', max_size=5).map(lambda text: f"'{text}'")
TOML_VALUES = st.sampled_from(
    [
        *("1", "1.5e3", "true", "1979-05-27T07:32:00Z", "-inf", "0xff"),
        *('"a # \\" ["', "'] # ='", '"""\n[x]\na = "1"""""', "'''\n''[[models]]\n'''"),
        *("[\n1, # ]\n2,\n]", "{a = 1, b.c = [{d = '}'}]}", "[{a = 1}, {}]"),
    ]
)


@settings(deadline=None)
@given(
    st.dictionaries(TOML_KEYS, TOML_VALUES, max_size=4),
    st.lists(st.dictionaries(TOML_KEYS, TOML_VALUES, max_size=4), max_size=4),
    st.sampled_from(["", "# [[models]]\n", "\n"]),
)
def test_every_key_of_toml_has_its_line(defaults: dict[str, str], models: list[dict[str, str]], between: str) -> None:
    lines, expected = ["[defaults]"], {("defaults",): 1}

    def add(path: tuple[str | int, ...], table: dict[str, str]) -> None:
        for key, value in table.items():
            lines.extend(f"{between}{key} = {value}".split("\n"))
            expected[(*path, next(iter(tomllib.loads(f"{key} = 1"))))] = len(lines) - value.count("\n")

    add(("defaults",), defaults)
    for index, model in enumerate(models):
        lines.append("[[ models ]]")
        expected[("models", index)] = len(lines)
        add(("models", index), model)
    text = "\n".join(lines)
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # Two keys that are one.
        return
    found = outline_toml(text)
    assert {path: found.of(path) for path in expected} == expected
