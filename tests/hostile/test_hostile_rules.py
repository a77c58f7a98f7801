"""``.truss_ignore`` as nobody would write it: matched in bounded time, or refused with file and line."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern
from support.hostile import NO_SMALL_FILES, a_dangling_link, a_link_to_itself, little_memory, read_source, refused_source
from support.trees import contents_of_archive, plant_model

from aiobaseten.errors import ArchiveError
from aiobaseten.sources.ignore import MAX_RULES, parse_rules

pytestmark = pytest.mark.anyio

CATASTROPHES = [
    ("a*" * 30 + "b", "a" * 255),
    ("*a" * 30 + "*b", "a" * 255),
    ("a*" * 2000 + "b", "a" * 4095),
    ("*?" * 100 + "b", "a" * 255),
    ("*[a-z]" * 100 + "0", "a" * 255),
    ("a" + "*" * 4000 + "b", "a" * 255),
    ("**/" * 100 + "b", "a/" * 2000 + "a"),
    ("/**/".join("a" * 100) + "/b", "a/" * 2000 + "a"),
    ("**/a*/**/a*/**/a*/**/b", "aa/" * 1000 + "a"),
    ("**/" + "/**/".join(["a*a*a*a"] * 100) + "/b", "aaaaaa/" * 500 + "a"),
    ("**/" + "*/**/*" * 100 + "/b", "aaaaaa/" * 500 + "a"),
    ("?" * 1000 + "*" + "?" * 1000 + "*b", "a" * 4000),
    ("!" + "a*" * 30 + "b", "a" * 255),
]


@pytest.mark.parametrize(("rule", "path"), CATASTROPHES, ids=range(len(CATASTROPHES)))
def test_rules_that_would_try_for_ever(rule: str, path: str) -> None:
    rules = parse_rules(rule.encode(), ".truss_ignore")
    for _ in range(20):
        assert rules.match(path, is_directory=True) is None
    for end in ("b", "/b", "0"):
        rules.match(path + end, is_directory=False)


async def test_a_directory_with_such_rules(tmp_path: Path) -> None:
    names = [("ab" * 127)[:250] + str(number) for number in range(200)]
    plant_model(
        tmp_path, {f"{'a/' * 50}{name}": b"" for name in names} | {".truss_ignore": b"*a*b*a*b*a*b*a*b*c\n**/a/**/a/**/a/**/c\n"}
    )
    assert len(await contents_of_archive(tmp_path)) == 202


SEGMENT = st.lists(
    st.sampled_from(["a", "b", "*", "*", "?", "[ab]", ".", "\\*", "[]a]", "(", "+", "é"]), min_size=1, max_size=7
).map("".join)
RULE = st.lists(SEGMENT | st.just("**"), min_size=1, max_size=6).map("/".join)
PATH = st.lists(st.text("aab.*(é", min_size=1, max_size=6), min_size=1, max_size=7).map("/".join)


@settings(deadline=None, max_examples=250)
@given(RULE, st.sampled_from(["", "/", "!", "!/"]), st.sampled_from(["", "/"]), st.lists(PATH, min_size=1, max_size=8))
def test_rules_mean_what_they_mean_to_pathspec(rule: str, before: str, behind: str, paths: list[str]) -> None:
    line = f"{before}{rule}{behind}"
    theirs = GitIgnoreSpecPattern(line)
    try:
        [ours] = parse_rules(line.encode(), "x")._rules
    except ArchiveError:
        assert theirs.include is None
        return
    for path in paths:
        for spelling in (path, f"{path}/"):
            assert bool(ours.expression.search(spelling)) == bool(theirs.regex.search(spelling)), spelling


@pytest.mark.parametrize("rule", ["[[]x", "[a[-z]x", "[&&]x", "[a||b]x", "[~~]x", "[\\[]x", "[^[]x"])
def test_classes_that_python_warns_of(rule: str) -> None:
    """Warnings are errors here."""
    assert parse_rules(rule.encode(), "x").match("[x" if "^" not in rule else "cx", is_directory=False) in (rule, None)


REFUSED = {
    "a set that Python may read otherwise some day": b"*.log\n[a--b]\n",
    "no range": b"*.log\n[z-a]\n",
    "a range that does not print": b"*.log\n[z-\x01]\n",
    "a backslash at the end": b"*.log\na\\\n",
    "nothing but a negation": b"*.log\n!\n",
    "the root": b"*.log\n/\n",
    "a long line": b"*.log\n" + b"x" * 5000,
    "a long line that is no rule": b"*.log\n" + b"[z-a]" * 800,
    "not UTF-8": b"*.log\n\xff\n",
    "half a surrogate pair": b"*.log\n\xed\xa0\x80\n",
    "UTF-16": "*.log\n".encode("utf-16"),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_what_is_no_rule(tmp_path: Path, kind: str) -> None:
    plant_model(tmp_path, {".truss_ignore": REFUSED[kind]})
    error = await refused_source(tmp_path, ".truss_ignore, line ")
    assert isinstance(error, ArchiveError)
    assert error.path == str(tmp_path / ".truss_ignore")
    assert len(str(error)) < 1500


@pytest.mark.parametrize("plant", [plant for plant in NO_SMALL_FILES if plant is not a_dangling_link])
async def test_rules_that_are_no_small_file(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    plant(plant_model(tmp_path) / ".truss_ignore")
    with little_memory():
        await refused_source(tmp_path, ".truss_ignore")


async def test_rules_that_are_a_dangling_link(tmp_path: Path) -> None:
    """The link is what cannot be archived; there are no rules."""
    a_dangling_link(plant_model(tmp_path) / ".truss_ignore")
    await refused_source(tmp_path, ".truss_ignore: leads to 'nowhere'")
    (tmp_path / ".truss_ignore").unlink()
    a_link_to_itself(tmp_path / ".truss_ignore")
    await refused_source(tmp_path, ".truss_ignore", symlinks="follow")


async def test_10_megabytes_of_rules(tmp_path: Path) -> None:
    plant_model(tmp_path, {".truss_ignore": b"*.log\n" * 1_700_000})
    with little_memory():
        await refused_source(tmp_path, ".truss_ignore", "10,200,000")


async def test_as_many_rules_as_there_may_be(tmp_path: Path) -> None:
    lines = [f"{random.Random(number).choice(['*', '/', 'a/*b*', ''])}x{number}" for number in range(MAX_RULES)]
    plant_model(tmp_path, {"a/b/x": b"", "x1": b"", ".truss_ignore": "\n".join(lines).encode()})
    await read_source(tmp_path)
    plant_model(tmp_path, {".truss_ignore": "\n".join([*lines, "y"]).encode()})
    await refused_source(tmp_path, "line 10001: there are more than 10,000 rules")
