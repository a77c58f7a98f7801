"""What stays out of an archive, and how that is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.trees import CONFIG, Link, contents_of_archive, open_directory_for_all, plant_model, unprivileged

from aiobaseten.errors import ArchiveError
from aiobaseten.sources import Ignored, open_source, walk
from aiobaseten.sources.ignore import DEFAULT_RULES, DEFAULTS, parse_rules

pytestmark = pytest.mark.anyio


async def ignored_in(path: Path) -> list[Ignored]:
    async with await open_source(path) as source:
        return list(source.ignored)


async def test_the_defaults(tmp_path: Path) -> None:
    kept = {
        "model/model.py": b"",
        "data/weights.bin": b"",
        "library/x": b"",
        "requirements.txt": b"",
        "packages/p/__init__.py": b"",
    }
    left_out = {
        ".git/objects/ab/cd": b"12345",
        "model/__pycache__/model.cpython-311.pyc": b"123",
        "native/kernel.so": b"1",
        "data/run.log": b"12",
        "lib/a": b"1",
        "lib/b/c": b"22",
        "deep/down/build/x": b"",
        "docs/_build/y": b"4444",
    }
    plant_model(tmp_path, {**kept, **left_out})
    assert await contents_of_archive(tmp_path) == {"config.yaml": CONFIG, **kept}
    assert await ignored_in(tmp_path) == [
        Ignored(path=".git/", rule=".git", is_default=True, files=1, size_bytes=5),
        Ignored(path="data/run.log", rule="*.log", is_default=True, files=1, size_bytes=2),
        Ignored(path="deep/down/build/", rule="build/", is_default=True, files=1, size_bytes=0),
        Ignored(path="docs/_build/", rule="docs/_build/", is_default=True, files=1, size_bytes=4),
        Ignored(path="lib/", rule="lib/", is_default=True, files=2, size_bytes=3),
        Ignored(path="model/__pycache__/", rule="__pycache__/", is_default=True, files=1, size_bytes=3),
        Ignored(path="native/kernel.so", rule="*.so", is_default=True, files=1, size_bytes=1),
    ]


async def test_a_file_of_rules_takes_the_place_of_the_defaults(tmp_path: Path) -> None:
    rules = b"# what we do not need\n\n   *.ckpt   \r\n/data/raw/\n!data/raw\n!keep.ckpt\n"
    kept = {".truss_ignore": rules, "lib/x.so": b"", "run.log": b"", "keep.ckpt": b"", "other/data/raw/x": b""}
    plant_model(tmp_path, {**kept, "a.ckpt": b"123", "b/c.ckpt": b""})
    assert await contents_of_archive(tmp_path) == {"config.yaml": CONFIG, **kept}
    assert await ignored_in(tmp_path) == [
        Ignored(path="a.ckpt", rule="*.ckpt", is_default=False, files=1, size_bytes=3),
        Ignored(path="b/c.ckpt", rule="*.ckpt", is_default=False, files=1, size_bytes=0),
    ]


async def test_an_empty_file_of_rules_leaves_nothing_out(tmp_path: Path) -> None:
    plant_model(tmp_path, {".truss_ignore": b"", ".git/HEAD": b"", "lib/x": b""})
    assert set(await contents_of_archive(tmp_path)) == {"config.yaml", ".truss_ignore", ".git/HEAD", "lib/x"}
    assert await ignored_in(tmp_path) == []


async def test_a_file_of_rules_may_leave_itself_out(tmp_path: Path) -> None:
    plant_model(tmp_path, {".truss_ignore": b"\xef\xbb\xbf.truss_ignore\n"})
    assert await contents_of_archive(tmp_path) == {"config.yaml": CONFIG}


async def test_rules_are_only_those_at_the_root(tmp_path: Path) -> None:
    plant_model(tmp_path, {"model/.truss_ignore": b"*\n", "model/model.py": b""})
    assert set(await contents_of_archive(tmp_path)) == {"config.yaml", "model/.truss_ignore", "model/model.py"}


@pytest.mark.parametrize(
    ("rules", "left_out"),
    [
        ("*", {"a", "b/c", "b/d/e"}),
        ("b", {"b/c", "b/d/e"}),
        ("b/", {"b/c", "b/d/e"}),
        ("a/", set()),
        ("/c", set()),
        ("c", {"b/c"}),
        ("b/*", {"b/c", "b/d/e"}),
        ("b/**", {"b/c", "b/d/e"}),
        ("**/e", {"b/d/e"}),
        ("b/d", {"b/d/e"}),
        ("[ac]", {"a", "b/c"}),
        ("b\n!b/c", {"b/c", "b/d/e"}),
        ("b/*\n!b/c", {"b/d/e"}),
        ("*\n!a", {"b/c", "b/d/e"}),
        ("!a\n*", {"a", "b/c", "b/d/e"}),
        ("\\a", {"a"}),
        ("#a", set()),
        ("\\#a", set()),
    ],
)
async def test_what_rules_mean(tmp_path: Path, rules: str, left_out: set[str]) -> None:
    plant_model(
        tmp_path, {"a": b"", "b/c": b"", "b/d/e": b"", ".truss_ignore": f"{rules}\n!config.yaml\n!.truss_ignore\n".encode()}
    )
    assert set(await contents_of_archive(tmp_path)) == {"config.yaml", ".truss_ignore", "a", "b/c", "b/d/e"} - left_out


@pytest.mark.parametrize("rule", ["!", "[z-a]", "a\\", "/"])
async def test_a_rule_that_is_none(tmp_path: Path, rule: str) -> None:
    plant_model(tmp_path, {".truss_ignore": f"*.log\n\n{rule}\n".encode()})
    with pytest.raises(ArchiveError) as caught:
        await open_source(tmp_path)
    path = tmp_path / ".truss_ignore"
    assert f"{path}, line 3: {rule!r} is not a valid rule: " in str(caught.value)
    assert caught.value.path == str(path)


async def test_rules_that_are_not_text(tmp_path: Path) -> None:
    plant_model(tmp_path, {".truss_ignore": b"*.log\ncaf\xe9\n"})
    with pytest.raises(ArchiveError, match=r"\.truss_ignore, line 2: byte 0xe9 is not UTF-8") as caught:
        await open_source(tmp_path)
    assert caught.value.path == str(tmp_path / ".truss_ignore")


async def test_rules_that_are_no_file(tmp_path: Path) -> None:
    (plant_model(tmp_path) / ".truss_ignore").mkdir()
    with pytest.raises(ArchiveError, match=r"\.truss_ignore' is a directory, and must be a regular file"):
        await open_source(tmp_path)


async def test_names_that_do_not_print_are_told_escaped(tmp_path: Path) -> None:
    plant_model(tmp_path, {"\udcff\n.log": b""})
    [ignored] = await ignored_in(tmp_path)
    assert ignored.path == "\\udcff\\n.log"


async def test_what_is_left_out_need_not_be_readable() -> None:
    with open_directory_for_all() as root:
        plant_model(root, {"lib/open": b"1", "lib/closed/x": b"2", "secret.log": b"3"})
        (root / "lib" / "closed").chmod(0)
        (root / "secret.log").chmod(0)
        with unprivileged():
            ignored = await ignored_in(root)
        (root / "lib" / "closed").chmod(0o700)
    assert [(each.path, each.files) for each in ignored] == [("lib/", 1), ("secret.log", 1)]


async def test_links_below_what_is_left_out_are_not_followed_to_count(tmp_path: Path) -> None:
    plant_model(tmp_path, {"lib/a": b"123", "lib/b": Link("a"), "lib/up": Link(".."), "lib/usr": Link("/usr")})
    [ignored] = await ignored_in(tmp_path)
    assert (ignored.files, ignored.size_bytes) == (4, 3)


async def test_counting_ends_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "MAX_COUNTED", 10)
    plant_model(tmp_path, {f"{directory}/{number}": b"1" for directory in ("build", "dist", "lib") for number in range(8)})
    assert sum(each.files for each in await ignored_in(tmp_path)) == 16


def test_the_last_rule_that_matches_is_the_one_that_is_told() -> None:
    rules = parse_rules(b"*.bin\na*\n!aa\nab.bin\n", "rules")
    assert not rules.is_default
    assert rules.match("a.bin", is_directory=False) == "a*"
    assert rules.match("x/b.bin", is_directory=False) == "*.bin"
    assert rules.match("ab.bin", is_directory=False) == "ab.bin"
    assert rules.match("aa", is_directory=False) is None
    assert rules.match("c", is_directory=True) is None


def test_every_default_leaves_something_out() -> None:
    assert DEFAULTS.is_default
    assert len(set(DEFAULT_RULES)) == len(DEFAULT_RULES)
    for rule in DEFAULT_RULES:
        example = rule.rstrip("/").replace("*", "x").replace("[cod]", "c")
        assert DEFAULTS.match(example, is_directory=True) is not None, rule


def test_reading_rules_warns_of_nothing() -> None:
    code = "import aiobaseten.sources.ignore as ignore; ignore.parse_rules(b'*.log', 'rules')"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
