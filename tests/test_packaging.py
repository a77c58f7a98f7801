"""What is shipped: the installed package's metadata and files, and the repository's own hygiene."""

from __future__ import annotations

import importlib.resources
import json
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import aiobaseten

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DISTRIBUTION = metadata.distribution("aiobaseten")

# In pieces, so that this file holds none of what it looks for.
UNWANTED = {
    "a package registry's host": "|".join(
        re.escape(".".join(host)) for host in [("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org")]
    ),
    "a path of one machine": "|".join(
        rf"(?<![\w.])/{'/'.join(path)}\b" for path in [("work", "main"), ("work", "shared"), ("root",), ("Users",)]
    ),
    "a note to finish later": rf"\b(?:{'|'.join(word + rest for word, rest in [('TO', 'DO'), ('FIX', 'ME')])})\b",
    "trailing white space": r"[ \t]+$",
    "a line ending that is not a newline": r"\r",
}


def repository_files() -> Iterator[Path]:
    """The files that the repository is made of, without what tools leave in it."""
    for entry in sorted(ROOT.iterdir()):
        if entry.is_dir() and (entry.name == ".ci" or not entry.name.startswith((".", "build", "dist", "htmlcov"))):
            paths = (path for path in sorted(entry.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
            # Inputs for the fuzzer may hold anything.
            yield from (path for path in paths if not path.is_relative_to(ROOT / "tests" / "fuzz" / "seeds"))
        elif entry.is_file() and (entry.name == ".gitignore" or not entry.name.startswith((".", "uv.lock"))):
            yield entry


def test_the_installed_version_is_the_projects_and_the_changelogs() -> None:
    version = PYPROJECT["project"]["version"]
    assert DISTRIBUTION.version == version
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


def test_the_package_under_test_is_the_installed_one() -> None:
    direct_url = json.loads(DISTRIBUTION.read_text("direct_url.json") or "{}")
    home = ROOT if direct_url.get("dir_info", {}).get("editable") else Path(str(DISTRIBUTION.locate_file("")))
    assert aiobaseten.__file__ is not None
    assert Path(aiobaseten.__file__).samefile(home / "aiobaseten" / "__init__.py")


def test_type_checkers_are_told_that_the_package_is_typed() -> None:
    assert importlib.resources.files("aiobaseten").joinpath("py.typed").is_file()


def test_every_module_of_the_checkout_is_installed() -> None:
    installed = Path(str(importlib.resources.files("aiobaseten")))
    modules = {path.relative_to(ROOT / "aiobaseten") for path in (ROOT / "aiobaseten").rglob("*.py")}
    assert modules
    assert {path.relative_to(installed) for path in installed.rglob("*.py")} == modules


def test_the_license_is_shipped() -> None:
    shipped = DISTRIBUTION.metadata.get_all("License-File")
    assert shipped == ["LICENSE"]
    assert DISTRIBUTION.metadata["License-Expression"] == "Apache-2.0"


def test_the_command_is_installed() -> None:
    (command,) = metadata.entry_points(group="console_scripts", name="aiobaseten")
    assert callable(command.load())


def test_every_dependency_has_a_lowest_version() -> None:
    project = PYPROJECT["project"]
    requirements = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    assert [line for line in requirements if not re.fullmatch(r"[A-Za-z0-9_.-]+>=[0-9.]+", line)] == []


def test_lock_files_with_addresses_of_registries_stay_out_of_the_repository() -> None:
    assert "uv.lock" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()


@pytest.mark.parametrize("what", UNWANTED)
def test_no_file_holds(what: str) -> None:
    unwanted = re.compile(UNWANTED[what], re.MULTILINE)
    found = []
    for path in repository_files():
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {match[0]!r}" for match in unwanted.finditer(text)]
    assert found == []


@pytest.mark.parametrize(
    ("what", "example"),
    [
        ("a package registry's host", "https://" + "pypi" + ".org/simple"),
        ("a path of one machine", "see /" + "root/x"),
        ("a note to finish later", "# TO" + "DO: later"),
        ("trailing white space", "a \nb"),
        ("a line ending that is not a newline", "a\r\n"),
    ],
)
def test_what_no_file_holds_would_be_found(what: str, example: str) -> None:
    assert re.search(UNWANTED[what], example, re.MULTILINE)
