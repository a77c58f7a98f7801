"""External packages: files from beside the model directory that its archive holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.trees import Link, Tree, contents_of_archive, open_directory_for_all, plant, unprivileged

from aiobaseten.errors import ArchiveError
from aiobaseten.sources import open_source
from aiobaseten.sources.config import parse_config

pytestmark = pytest.mark.anyio


def plant_scattered(tmp_path: Path, model: Tree | None = None, shared: Tree | None = None, config: str = "") -> Path:
    plant(tmp_path / "shared", shared or {"tools/__init__.py": b"", "one.py": b"1"})
    text = f"model_name: scattered\nexternal_package_dirs: [../shared]\n{config}"
    return plant(tmp_path / "model", {"config.yaml": text.encode(), **(model or {})})


async def refusal(path: Path) -> ArchiveError:
    with pytest.raises(ArchiveError) as caught:
        await open_source(path)
    return caught.value


async def test_their_children_lie_in_packages(tmp_path: Path) -> None:
    root = plant_scattered(tmp_path, {"packages/own.py": b"own"})
    contents = await contents_of_archive(root)
    assert contents == {
        "config.yaml": b"model_name: scattered\n",
        "packages/own.py": b"own",
        "packages/tools/__init__.py": b"",
        "packages/one.py": b"1",
    }


async def test_the_field_is_neither_sent_nor_archived_but_the_text_is_kept(tmp_path: Path) -> None:
    root = plant_scattered(tmp_path, config="description: café\nzz: 1\naa: '2024-01-01'\n")
    async with await open_source(root) as source:
        config = await source.read_config()
    assert config.config == {"model_name": "scattered", "description": "café", "zz": 1, "aa": "2024-01-01"}
    assert config.raw == (root / "config.yaml").read_text()
    assert "external_package_dirs" in config.raw
    archived = (await contents_of_archive(root))["config.yaml"]
    assert archived == "model_name: scattered\ndescription: café\nzz: 1\naa: '2024-01-01'\n".encode()


@pytest.mark.parametrize("value", ["[]", "null"])
async def test_without_packages_the_field_goes_too(tmp_path: Path, value: str) -> None:
    plant(tmp_path, {"config.yaml": f"model_name: x\nexternal_package_dirs: {value}\n".encode()})
    assert await contents_of_archive(tmp_path) == {"config.yaml": b"model_name: x\n"}
    async with await open_source(tmp_path) as source:
        assert (await source.read_config()).config == {"model_name": "x"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc-:#'\n é~0", max_size=5), inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None)
@example({"line\x85breaks\u2028of\u2029Unicode": "'\x85"})
@example({"not a number": float("inf"), "same": [1]})
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON, max_size=4))
def test_what_is_archived_means_the_same(values: dict[str, object]) -> None:
    values["external_package_dirs"] = ["../x"]
    config = parse_config(yaml.safe_dump(values).encode(), "config.yaml")
    assert config.values == values
    del values["external_package_dirs"]
    archived = parse_config(config.dump_without_external_packages() or b"{}", "config.yaml")
    assert archived.values == values


async def test_another_directory_for_them(tmp_path: Path) -> None:
    root = plant_scattered(tmp_path, config="bundled_packages_dir: ./code//third-party/\n")
    assert {"code/third-party/one.py", "code/third-party/tools/__init__.py"} < set(await contents_of_archive(root))


async def test_the_root_for_them(tmp_path: Path) -> None:
    root = plant_scattered(tmp_path, config="bundled_packages_dir: .\n")
    assert set(await contents_of_archive(root)) == {"config.yaml", "one.py", "tools/__init__.py"}


async def test_absolute_inner_and_several_directories(tmp_path: Path) -> None:
    plant(tmp_path / "absolute", {"a.py": b"a"})
    config = f"external_package_dirs: [{tmp_path / 'absolute'}, inner]\n".encode()
    root = plant(tmp_path / "model", {"config.yaml": config, "inner/b.py": b"b"})
    contents = await contents_of_archive(root)
    assert contents == {"config.yaml": b"{}\n", "inner/b.py": b"b", "packages/a.py": b"a", "packages/b.py": b"b"}


@pytest.mark.parametrize("where", ["../out", "/abs", "a/../../out", ".."])
async def test_they_stay_inside_the_archive(tmp_path: Path, where: str) -> None:
    root = plant_scattered(tmp_path, config=f"bundled_packages_dir: {where}\n")
    error = await refusal(root)
    assert str(error) == f"{root}/config.yaml: bundled_packages_dir must stay inside the archive, and {where!r} does not"


@pytest.mark.parametrize("value", ["[a]", "1", "null", "''", '"a\\0b"'])
async def test_a_directory_for_them_that_is_no_path(tmp_path: Path, value: str) -> None:
    error = await refusal(plant_scattered(tmp_path, config=f"bundled_packages_dir: {value}\n"))
    assert "bundled_packages_dir must be the path of a directory in the archive" in str(error)


@pytest.mark.parametrize("value", ["../shared", "[1]", "['']", "{a: b}", '["a\\0b"]'])
async def test_a_field_that_is_no_list_of_paths(tmp_path: Path, value: str) -> None:
    plant(tmp_path, {"config.yaml": f"external_package_dirs: {value}\n".encode()})
    error = await refusal(tmp_path)
    assert str(error) == f"{tmp_path}/config.yaml: external_package_dirs must be a list of directories' paths"


async def test_one_that_is_not_there_or_no_directory(tmp_path: Path) -> None:
    root = plant_scattered(tmp_path)
    (tmp_path / "shared").rename(tmp_path / "moved")
    named = f"{root}/config.yaml: external_package_dirs names '{root}/../shared', which "
    assert str(await refusal(root)) == f"{named}cannot be opened: No such file or directory"
    (tmp_path / "shared").write_bytes(b"")
    assert str(await refusal(root)) == f"{named}is a regular file and must be a directory"


async def test_one_behind_a_closed_directory() -> None:
    with open_directory_for_all() as directory:
        plant(directory / "closed", {"shared/one.py": b"1"})
        root = plant(directory / "model", {"config.yaml": b"external_package_dirs: [../closed/shared]\n"})
        (directory / "closed").chmod(0)
        with unprivileged():
            error = await refusal(root)
        (directory / "closed").chmod(0o700)
    assert "which cannot be opened: Permission denied" in str(error)


async def test_two_files_for_one_path(tmp_path: Path) -> None:
    root = plant_scattered(tmp_path, {"packages/one.py": b"another", "packages/tools": b"a file"})
    shared = f"{root}/../shared"
    error = await refusal(root)
    assert [str(problem) for problem in error.problems] == [
        f"packages/one.py: is what '{root}/packages/one.py' and '{shared}/one.py' would both be in the archive",
        f"packages/tools: is a file, '{root}/packages/tools', and the directory of '{shared}/tools/__init__.py' in the archive",
    ]


async def test_a_link_for_the_path_of_a_directory(tmp_path: Path) -> None:
    root = plant_scattered(tmp_path, {"packages": Link("model"), "model/m.py": b""})
    error = await refusal(root)
    assert {problem.path for problem in error.problems} == {"packages"}


async def test_a_second_config(tmp_path: Path) -> None:
    root = plant_scattered(tmp_path, shared={"config.yaml": b"a: 1\n"}, config="bundled_packages_dir: .\n")
    assert "config.yaml: is what" in str(await refusal(root))


async def test_rules_leave_out_of_them_what_truss_does(tmp_path: Path) -> None:
    shared = {
        "lib/x": b"",  # A default for the model directory's rules.
        "top.log": b"",
        "tools/build/x": b"",
        "tools/docs/_build/x": b"",  # A default, seen from the package on.
        "tools/keep/x": b"",
        "docs/_build/x": b"",
    }
    root = plant_scattered(tmp_path, shared=shared)
    assert set(await contents_of_archive(root)) == {"config.yaml", "packages/tools/keep/x", "packages/docs/_build/x"}
    plant(root, {".truss_ignore": b"keep\n"})
    contents = set(await contents_of_archive(root)) - {".truss_ignore"}
    assert contents == {"config.yaml", "packages/lib/x", "packages/top.log", "packages/docs/_build/x"}
    async with await open_source(root) as source:
        assert [(each.path, each.rule, each.is_default) for each in source.ignored] == [
            ("packages/tools/build/", "build/", True),
            ("packages/tools/docs/_build/", "docs/_build/", True),
            ("packages/tools/keep/", "keep", False),
        ]


async def test_a_rule_for_the_directory_they_would_lie_in(tmp_path: Path) -> None:
    root = plant_scattered(tmp_path, {".truss_ignore": b"code/*\n"}, config="bundled_packages_dir: code/packages\n")
    assert set(await contents_of_archive(root)) == {"config.yaml", ".truss_ignore"}
    async with await open_source(root) as source:
        assert [(each.path, each.rule, each.files) for each in source.ignored] == [("code/packages/", "code/*", 2)]


async def test_what_several_leave_out_under_one_path_is_counted_together(tmp_path: Path) -> None:
    config = b"external_package_dirs: [one, two]\n"
    root = plant(tmp_path, {"config.yaml": config, "one/lib/a": b"12", "two/lib/b": b"345", "one/a": b"", "two/b": b""})
    async with await open_source(root) as source:
        packages = [each for each in source.ignored if each.path == "packages/lib/"]
    assert [(each.files, each.size_bytes) for each in packages] == [(2, 5)]


async def test_a_config_that_is_left_out_beside_one_that_is_not(tmp_path: Path) -> None:
    shared = {"config.yaml": b""}
    root = plant_scattered(
        tmp_path, shared={"sub/x": b""}, config="bundled_packages_dir: .\n", model={".truss_ignore": b"config.yaml"}
    )
    plant(tmp_path / "shared", shared)
    assert "the rule 'config.yaml' leaves out config.yaml" in str(await refusal(root))


async def test_links_between_them(tmp_path: Path) -> None:
    root = plant_scattered(
        tmp_path,
        {"to-all": Link("../shared"), "to-one": Link("../shared/one.py"), "own": b""},
        {"one.py": b"1", "same": Link("one.py"), "back": Link("../model/own"), "sub/up": Link("../one.py")},
    )
    contents = await contents_of_archive(root)
    assert {name: text for name, text in contents.items() if isinstance(text, Link)} == {
        "to-all": "packages",
        "to-one": "packages/one.py",
        "packages/same": "one.py",
        "packages/back": "../own",
        "packages/sub/up": "../one.py",
    }


async def test_a_link_in_a_directory_that_is_archived_twice_stays_beside_its_target(tmp_path: Path) -> None:
    config = b"external_package_dirs: [inner]\n"
    root = plant(tmp_path, {"config.yaml": config, "inner/a": b"", "inner/link": Link(str(tmp_path / "inner" / "a"))})
    contents = await contents_of_archive(root)
    assert (contents["inner/link"], contents["packages/link"]) == ("a", "a")


async def test_following_links_in_them(tmp_path: Path) -> None:
    root = plant_scattered(tmp_path, shared={"tools": Link("../real"), "one.py": Link("../real/x.py")})
    plant(tmp_path / "real", {"x.py": b"x", "lib/y": b"y"})
    contents = await contents_of_archive(root, symlinks="follow")
    assert set(contents) == {"config.yaml", "packages/one.py", "packages/tools/x.py"}
