"""``~/.trussrc``, manifests and journals as nobody would write them."""

from __future__ import annotations

import contextlib
import fcntl
import glob as globs
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.hostile import NO_SMALL_FILES, a_dangling_link, little_memory, refused
from support.model_dirs import model_dir
from support.scripted_api import KEY, answer, scripted_api

import aiobaseten as ab
from aiobaseten.api.keys import find_api_key
from aiobaseten.bulk import journal_file
from aiobaseten.bulk.manifest_sources import _expand
from aiobaseten.errors import ConfigurationError, InvalidPush, JournalError

pytestmark = pytest.mark.anyio

# ---- ~/.trussrc


def key_in(path: Path | str) -> Any:
    return find_api_key(None, {"USER_TRUSSRC_PATH": str(path)})


ONE = "[baseten]\nremote_provider = baseten\napi_key = key.1\n"
REFUSED_TRUSSRC = {
    "a megabyte": ("; x\n" * 300_000, "must not have more than 32,768 bytes"),
    "binary": (bytes(range(256)), "UTF-8"),
    "UTF-16": (ONE.encode("utf-16"), "UTF-8"),
    "no section": ("api_key = sk-planted-3141592653\n", "line 1"),
    "a section twice": (ONE + ONE, "line 4"),
    "an option twice": (f"{ONE}api_key = sk-planted-3141592653\n", "line 4"),
    "no option": (f"{ONE}sk-planted-3141592653\n", "line 4"),
    "an open bracket": ("[baseten\napi_key = sk-planted-3141592653\n", "line 1"),
    "names of escapes": (ONE.replace("[baseten]", "[\x1b[2J]") + ONE.replace("[baseten]", "[b\x07]"), "several remotes"),
    "an option twice below a long name": (ONE.replace("[baseten]", f"[{'x' * 20_000}]") + "api_key = y\n", "line 4"),
    "a long name": (ONE.replace("[baseten]", f"[{'x' * 20_000}]").replace("key.1", "a key"), "white space"),
    "many remotes": ("".join(ONE.replace("[baseten]", f"[remote-{number}]") for number in range(400)), "several remotes"),
    "a key of two lines": (ONE.replace("key.1", "key\n  sk-planted-3141592653"), "line break"),
    "a key of escapes": (ONE.replace("key.1", "key\x1b[2J"), "control character"),
    "no key": (ONE.replace("key.1", ""), "empty"),
    "a long host": (f"{ONE}remote_url = http://{'x' * 20_000}.com\n", "remote_url"),
    "a host of another": (f"{ONE}remote_url = https://app.baseten.co@evil.example\n", "remote_url"),
    "a host that does not print": (f"{ONE}remote_url = https://app.baseten.co\x00.evil.example\n", "remote_url"),
    "a host in plain text": (f"{ONE}remote_url = http://evil.example\n", "remote_url"),
}


@pytest.mark.parametrize("kind", REFUSED_TRUSSRC)
def test_what_is_no_trussrc(tmp_path: Path, kind: str) -> None:
    content, told = REFUSED_TRUSSRC[kind]
    path = tmp_path / "trussrc"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with little_memory(), refused(ConfigurationError, str(path), told) as caught:
        key_in(path)
    assert len(str(caught.error)) < 1500


@pytest.mark.parametrize("plant", [plant for plant in NO_SMALL_FILES if plant is not a_dangling_link])
def test_a_trussrc_that_is_no_small_file(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    plant(tmp_path / "trussrc")
    with little_memory(), refused(ConfigurationError, str(tmp_path / "trussrc")):
        key_in(tmp_path / "trussrc")


def test_a_trussrc_that_is_not_there(tmp_path: Path) -> None:
    a_dangling_link(tmp_path / "trussrc")
    for path in (tmp_path / "trussrc", tmp_path / ("x" * 300), "a\0b", "x/" * 5000):
        with refused(ConfigurationError):
            key_in(path)


def test_nothing_in_a_trussrc_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "trussrc"
    path.write_text(f"[DEFAULT]\nx = sesame\n{ONE.replace('key.1', '%(x)s${x}$x')}")
    assert key_in(path).value == "%(x)s${x}$x"


# ---- manifests


@pytest.fixture
def home(tmp_path: Path) -> Path:
    model_dir(tmp_path / "models" / "a", "a")
    return tmp_path


YAML_LAUGHS = "a: &a [x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{above}'] * 9)}]\n" for above, name in zip("abcdefghijk", "bcdefghijkl", strict=True)
)
REFUSED_MANIFESTS = {
    "laughs.yaml": YAML_LAUGHS,
    "deep.yaml": "[" * 100_000,
    "deep.json": "[" * 100_000,
    "closed.json": "[" * 100_000 + "]" * 100_000,
    "deep.toml": "a = " + "[" * 100_000,
    "dotted.toml": "a" + ".a" * 100_000 + " = 1",
    "digits.json": '{"models": ' + "9" * 10_000 + "}",
    "digits.toml": "models = " + "9" * 10_000,
    "digits.yaml": "models: " + "9" * 10_000,
    "float.json": '{"models": [{"path": 1e400}]}',
    "nan.json": '{"models": [{"path": NaN}]}',
    "nan.toml": "models = [{path = nan}]",
    "date.toml": "models = [{path = 9999-12-31T23:59:59Z}]",
    "surrogate.json": '{"models": [{"path": "\\ud800"}]}',
    "nul.json": '{"models": [{"path": "\\u0000"}]}',
    "key.json": '{"models": [{"path": "models/a", "\\ud800\\u001b": 1}]}',
    "long-key.json": json.dumps({"models": [{"path": "models/a", "x" * 100_000: 1}]}),
    "long-path.json": json.dumps({"models": [{"path": "x" * 100_000}]}),
    "long-glob.json": json.dumps({"models": [{"glob": "[" * 100_000}]}),
    "long-name.json": json.dumps({"models": [{"path": "models/a", "deployment_name": "!" * 100_000}]}),
    "long-label.json": json.dumps({"models": [{"path": "models/a", "labels": {"x" * 100_000: float("inf")}}]}).replace(
        "Infinity", "1e999"
    ),
    "twice.json": '{"models": [], ' + '"models": [], ' * 10_000 + '"models": []}',
    "many.json": json.dumps({"models": [{}] * 2000}),
    "tag.yaml": "models: !!python/object/apply:os.system [x]\n",
    "alias.yaml": "models: *" + "x" * 100_000,
    "utf-16.yaml": "models: []".encode("utf-16"),
    "binary.json": bytes(range(256)),
    "empty.toml": b"",
    "up.yaml": "models: [{path: ../../../../../../../../../../etc/passwd}]\n",
    "device.yaml": "models: [{path: /dev/zero}]\n",
    "url.yaml": "models: [{path: 'file:///etc/passwd'}]\n",
}


@pytest.mark.parametrize("name", REFUSED_MANIFESTS)
async def test_what_is_no_manifest(home: Path, name: str) -> None:
    content = REFUSED_MANIFESTS[name]
    (home / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with little_memory(), refused(InvalidPush, name):
        await ab.load_manifest(home / name)


@pytest.mark.parametrize("plant", NO_SMALL_FILES)
async def test_a_manifest_that_is_no_small_file(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    plant(tmp_path / "deploy.yaml")
    with little_memory(), refused(InvalidPush, "deploy.yaml"):
        await ab.load_manifest(tmp_path / "deploy.yaml")


@pytest.mark.parametrize(
    "name", ["a\nb.yaml", "a\x1b[2J.yaml", "\udcff.yaml", "x" * 300 + ".yaml", "a\0.yaml", ".yaml", "\ud800.json"]
)
async def test_names_of_manifests(tmp_path: Path, name: str) -> None:
    with refused(InvalidPush):
        await ab.load_manifest(os.fspath(tmp_path) + "/" + name)


@pytest.mark.parametrize("pattern", ["**", "**/" * 12 + "*", "**/a/**/a/**/a/**/a/**/config.yaml/..", "**/" + "*a*" * 30])
async def test_globs_in_a_web_of_links(home: Path, pattern: str) -> None:
    """Each of them would be endless if links were followed, or if each way to a directory were gone."""
    deep = home / "models"
    for _ in range(12):
        deep /= "a"
        deep.mkdir(exist_ok=True)
        for link in ("here", "there"):
            (deep / link).symlink_to(".")
    (home / "deploy.yaml").write_text(json.dumps({"models": [{"glob": f"models/{pattern}", "environment_name": "x"}]}))
    with contextlib.suppress(InvalidPush):
        manifest = await ab.load_manifest(home / "deploy.yaml")
        assert [entry.push.name for entry in manifest.entries][:1] == ["a"]


@pytest.mark.parametrize(
    "pattern",
    ["models/**//*", "models/**//a", "**//", "models//a", "*/**", "models/**", "**/config.yaml", "models/", "**/*"],
)
def test_globs_are_those_of_the_standard_library(home: Path, pattern: str) -> None:
    (home / "models" / "a" / "data").mkdir(parents=True, exist_ok=True)
    (home / "a.tar").write_bytes(b"")
    expected = {name for name in globs.glob(pattern, root_dir=home, recursive=True) if name}  # noqa: PTH207 - what it must be like
    found = _expand(pattern, str(home), lambda: None)
    assert {os.path.normpath(name) for name in found} == {os.path.normpath(name) for name in expected}


MANIFEST_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["path", "glob", "name", "model_id", "team", "team_id", "labels", "config", "environment_name", "symlinks", "x"]
)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(FIELDS, MANIFEST_VALUES | st.just("models/a"), max_size=4), max_size=3))
async def test_any_models_are_loaded_or_refused(home: Path, models: list[dict[str, Any]]) -> None:
    (home / "deploy.json").write_text(json.dumps({"models": models}))
    try:
        with refused(InvalidPush, "deploy.json"):
            manifest = await ab.load_manifest(home / "deploy.json")
            assert len(manifest.entries) >= len(models)
            raise InvalidPush("deploy.json is fine")
    finally:
        (home / "deploy.json").unlink()


# ---- journals


async def run_with(journal: Path) -> None:
    """A run that does nothing but open the journal."""
    async with ab.Client(KEY, base_url="http://127.0.0.1:9") as client, client.push_many([], journal=journal) as run:
        assert [outcome async for outcome in run] == []


def database(path: Path, *statements: str, application_id: int = journal_file.APPLICATION_ID, version: int = 1) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in (f"PRAGMA application_id = {application_id}", f"PRAGMA user_version = {version}", *statements):
            connection.execute(statement)
        connection.commit()


TABLES = [statement for statement in journal_file.SCHEMA.split(";") if statement.strip()]
JOURNALS: dict[str, Callable[[Path], None]] = {
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 100) and None,
    "a truncated database": lambda path: (database(path, *TABLES), os.truncate(path, 5000))[1],
    "half a page": lambda path: (database(path, *TABLES), os.truncate(path, 100))[1],
    "another application's": lambda path: database(path, "CREATE TABLE a (b)", application_id=7),
    "nobody's": lambda path: database(path, "CREATE TABLE a (b)", application_id=0, version=0),
    "of the future": lambda path: database(path, *TABLES, version=99),
    "without tables": database,
    "with other columns": lambda path: database(
        path, "CREATE TABLE meta (a)", "CREATE TABLE pushes (b)", "CREATE TABLE credentials (c)"
    ),
    "with views": lambda path: database(
        path, *TABLES[:1], "CREATE VIEW pushes AS SELECT * FROM nowhere", "CREATE VIEW credentials AS SELECT 1 AS a"
    ),
    "an endless view": lambda path: database(
        path,
        *TABLES[:1],
        "CREATE VIEW pushes AS SELECT * FROM pushes",
        *TABLES[2:],
    ),
    "with a trigger that fails": lambda path: database(
        path, *TABLES, "CREATE TRIGGER t BEFORE INSERT ON meta BEGIN SELECT RAISE(ABORT, 'no'); END"
    ),
}


@pytest.mark.parametrize("kind", JOURNALS)
async def test_what_is_no_journal(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "deploy.db"
    JOURNALS[kind](path)
    before = path.read_bytes()
    with refused(JournalError, "deploy.db"):
        await run_with(path)
    assert path.read_bytes()[:16] == before[:16]


@pytest.mark.parametrize("plant", [plant for plant in NO_SMALL_FILES if plant is not a_dangling_link])
async def test_a_journal_that_is_no_small_file(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    plant(tmp_path / "deploy.db")
    with little_memory(), refused(JournalError, "deploy.db"):
        await run_with(tmp_path / "deploy.db")


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 50_000), st.binary(min_size=1, max_size=30)), min_size=1, max_size=5))
async def test_a_damaged_journal_is_opened_or_refused(tmp_path: Path, damage: list[tuple[int, bytes]]) -> None:
    path = tmp_path / "deploy.db"
    path.unlink(missing_ok=True)
    await run_with(path)
    content = bytearray(path.read_bytes())
    for place, piece in damage:
        content[place % len(content) : place % len(content) + len(piece)] = piece
    path.write_bytes(content)
    with refused(JournalError, "deploy.db"):
        await run_with(path)
        raise JournalError("deploy.db is fine")


@pytest.mark.parametrize(
    "change",
    [
        "created = '{'",
        "created = '[1]'",
        "created = x'00ff'",
        f"created = '{'[' * 50_000}'",
        "sent_commit = '{}'",
        "receipt = 'null' || x'ff'",
        "fingerprint = x'ff'",
        "part_size_bytes = 'many', upload_id = 'u'",
        "updated_at_s = 'never'",
        "push_id = x'00'",
    ],
)
async def test_rows_that_are_none(tmp_path: Path, change: str) -> None:
    path = tmp_path / "deploy.db"
    model = model_dir(tmp_path / "a", "a")
    async with scripted_api(answer(status=400)) as api, ab.Client(KEY, base_url=api.url) as client:
        async with client.push_many([model], journal=path, max_attempts=1) as run:
            [_] = [outcome async for outcome in run]
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute(f"UPDATE pushes SET {change}")
            connection.commit()
        with refused(JournalError, "deploy.db"):
            async with client.push_many([model], journal=path, max_attempts=1) as run:
                outcomes = [outcome async for outcome in run]
                raise outcomes[0].error or AssertionError("it was used")


@pytest.mark.parametrize("holder", ["", "{", "[]", "{}", "7", '{"pid": "\\u001b[2J\\n", "host": "x", "since": ""}', "[" * 50_000])
async def test_a_holder_that_is_none(tmp_path: Path, holder: str) -> None:
    path = tmp_path / "deploy.db"
    await run_with(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('holder', ?)", [holder])
        connection.commit()
    with (tmp_path / "deploy.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with refused(JournalError, "is in use by "):
            await run_with(path)
