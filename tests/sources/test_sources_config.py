"""The text of a config.yaml as JSON values, or an error that names the place."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from aiobaseten.errors import ArchiveError
from aiobaseten.sources import config, safe_yaml
from aiobaseten.sources.config import parse_config


@pytest.fixture(autouse=True, params=["with libyaml", "without"])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML is there with and without libyaml, and its two halves do not read quite alike."""
    assert yaml.__with_libyaml__
    if request.param == "without":
        monkeypatch.setattr(safe_yaml, "Loader", type("Loader", (safe_yaml._JsonConstructor, yaml.SafeLoader), {}))


def refusal(content: bytes) -> str:
    with pytest.raises(ArchiveError) as caught:
        parse_config(content, "config.yaml")
    assert caught.value.path == "config.yaml"
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-01-02", "2024-01-02"),
        ("2024-01-02T03:04:05Z", "2024-01-02T03:04:05Z"),
        ("'2024-01-02'", "2024-01-02"),
        ("null", None),
        ("~", None),
        ("yes", True),
        ("12", 12),
        ("0x1F", 31),
        ("1.5", 1.5),
        ("py311", "py311"),
        ("[a, {b: [1]}]", ["a", {"b": [1]}]),
        ("!!str 1", "1"),
        ("|\n  two\n  lines", "two\nlines\n"),
        ("é 🦊", "é 🦊"),
    ],
)
def test_values(text: str, value: object) -> None:
    assert parse_config(f"key: {text}\n".encode(), "config.yaml").values == {"key": value}


def test_anchors_aliases_and_merges() -> None:
    text = b"base: &base {cpu: 1}\nother: *base\nmerged:\n  <<: *base\n  memory: 2\n"
    values = parse_config(text, "config.yaml").values
    assert values == {"base": {"cpu": 1}, "other": {"cpu": 1}, "merged": {"cpu": 1, "memory": 2}}


def test_the_text_is_kept_as_it_is() -> None:
    text = "# why\r\nmodel_name:   x # spaced\r\n"
    parsed = parse_config(b"\xef\xbb\xbf" + text.encode(), "config.yaml")
    assert parsed.text == text
    assert parsed.model_config.raw == text
    assert parsed.model_config.model_name == "x"
    assert "spaced" not in repr(parsed)
    assert "spaced" not in repr(parsed.model_config)


@pytest.mark.parametrize(
    ("text", "name"), [("a: 1", None), ("model_name: 1", None), ("model_name: ' '", None), ("model_name: m", "m")]
)
def test_the_models_name(text: str, name: str | None) -> None:
    assert parse_config(text.encode(), "config.yaml").model_config.model_name == name


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "config.yaml is empty; it must hold a mapping"),
        (b"# only a comment\n", "config.yaml is empty; it must hold a mapping"),
        (b"---\n", "config.yaml is empty; it must hold a mapping"),
        (b"- a\n- b\n", "config.yaml must hold a mapping, not a list"),
        (b"model_name\n", "config.yaml must hold a mapping, not the single value 'model_name'"),
        (b"a: 1\nb: c: d\n", "config.yaml, line 2, column 5: mapping values are not allowed"),
        (b"a: 1\n  b: 2\n", "\n  b: 2"),
        (b"a: [1, 2\n", "config.yaml, line 2, column 1: while parsing a flow sequence"),
        (b"a:\n\t- b\n", "config.yaml, line 2, column 1: while scanning for the next token"),
        (b"a: *nowhere\n", "config.yaml, line 1, column 4: found undefined alias"),
        (b"a: 1\n---\nb: 2\n", "expected a single document"),
        (b"? [1]\n: 2\n", "config.yaml, line 1, column 3: while constructing a mapping: found unhashable key"),
        (b"a: !!binary aGk=\n", "config.yaml, line 1, column 4: !!binary is a type of value that JSON does not have"),
        (b"a: !!set {b}\n", "!!set is a type of value that JSON does not have"),
        (b"a: !!timestamp 2024-01-01\n", "!!timestamp is a type of value that JSON does not have"),
        (b"a: !!python/object/apply:os.system [x]\n", "!!python/object/apply:os.system is a type of value"),
        (b"a: !mine 1\n", "!mine is a type of value that JSON does not have"),
        (b"a: !!int one\n", "config.yaml, line 1, column 4: not a valid !!int: invalid literal"),
        (b"a: !!bool perhaps\n", "config.yaml, line 1, column 4: not a valid !!bool: 'perhaps'"),
        (b"a: !!float ''\n", "config.yaml, line 1, column 4: not a valid !!float"),
        (b"a: " + b"9" * 5000, "config.yaml, line 1, column 4: a number of too many digits"),
        (b"a: 1" + b":1" * 5000, "config.yaml, line 1, column 4: a number of too many digits"),
        (b"a: 1\nb: \xff\n", "config.yaml, line 2: byte 0xff is not UTF-8; the file must be text"),
        ("a: 1".encode("utf-16"), "config.yaml, line 1: byte 0xff is not UTF-8; the file must be text"),
        (b"a: 1\nb: \x07\n", "config.yaml, line 2: holds '\\x07', which is not text"),
        (b"\x7fELF\x02\x01", "config.yaml, line 1: holds '\\x7f', which is not text"),
    ],
)
def test_what_is_no_config(content: bytes, told: str) -> None:
    assert told in refusal(content)


def test_an_error_without_a_place() -> None:
    with pytest.raises(safe_yaml.UnreadableText) as caught, safe_yaml.readable("a: 1"):
        raise yaml.YAMLError("odd")
    assert caught.value.told_of("config.yaml") == "config.yaml is not valid YAML: odd"


@pytest.mark.parametrize(("text", "is_one"), [("a", True), ("é/ü", True), ("a\0", False), ("\ud800", False), ("", False)])
def test_what_can_be_the_name_of_a_file(text: str, is_one: bool) -> None:
    assert config.is_file_name(text) == is_one


def test_the_line_at_fault_is_shown_shortened() -> None:
    line = f"  broken: 'x' {'y' * 200}"
    assert refusal(f"a: 1\nb:\n{line}\n".encode()).endswith(f"\n  {line.strip()[:80]}\N{HORIZONTAL ELLIPSIS}")


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "? &a [*a]\n: 1", "a: &a {<<: *a}", "a: &x [[[1, *x]]]"])
def test_what_holds_itself(text: str) -> None:
    assert "stands for what it is in" in refusal(text.encode())


def levels(line: str, first: str) -> bytes:
    """Each level ten times the one above it."""
    names = "abcdefghijkl"
    lines = [f"{names[0]}: &{names[0]} {first}"]
    for above, name in itertools.pairwise(names):
        lines.append(f"{name}: &{name} {line.format(', '.join([f'*{above}'] * 10))}")
    return "\n".join(lines).encode()


@pytest.mark.parametrize("line", ["[{}]", "{{x: [{}]}}", "{{<<: [{}]}}"])
def test_a_few_lines_that_stand_for_billions_of_values(line: str) -> None:
    assert "stands for more than 100,000 values" in refusal(levels(line, "{v: 1, w: 2}"))


def test_many_values_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "MAX_VALUES", 100)
    assert len(parse_config(b"a:\n" + b"- 1\n" * 96, "config.yaml").values["a"]) == 96  # and the two collections, the key, the root
    assert "stands for more than 100 values" in refusal(b"a:\n" + b"- 1\n" * 97)


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "a: " + "[" * 101 + "]" * 101])
def test_nesting_without_end(text: str) -> None:
    told = refusal(text.encode())
    assert "nested deeper than 100 levels" in told or "exceeded maximum nesting depth" in told  # the latter is newer libyaml's


def test_nesting_to_a_depth() -> None:
    value: Any = parse_config(f"a: {'[' * 98}{']' * 98}".encode(), "config.yaml").values["a"]
    for _ in range(97):
        [value] = value
    assert value == []


def test_more_than_a_config_may_hold() -> None:
    assert refusal(b"a: " + b"x" * 1024 * 1024) == "config.yaml has more than 1,048,576 bytes"


TEXT = st.characters(exclude_categories=["Cs"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | st.text(TEXT),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(TEXT, max_size=8), inner, max_size=4),
    max_leaves=15,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(TEXT), JSON))
def test_json_values_come_through(values: dict[str, Any]) -> None:
    assert parse_config(yaml.safe_dump(values).encode(), "config.yaml").values == values


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60) | st.text("ab:-[]{}&*!|>'\"#%@`?,<= \n\t0", max_size=60).map(str.encode))
def test_anything_else_is_read_or_refused(content: bytes) -> None:
    try:
        values = parse_config(content, "config.yaml").values
    except ArchiveError:
        return
    assert isinstance(values, dict)
    json.dumps([list(values), list(values.values())], default=str)
