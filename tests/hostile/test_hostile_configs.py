"""``config.yaml`` as nobody would write it: refused with its path before anything is sent, or pushed as it is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.hostile import NO_SMALL_FILES, little_memory, read_source, refused, refused_source
from support.scripted_api import KEY, answer, scripted_api

import aiobaseten as ab
from aiobaseten.errors import ArchiveError, BasetenError, InvalidPush

pytestmark = pytest.mark.anyio

LAUGHS = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"\n".join(
    b"%c: &%c [%s]" % (name, name, b", ".join([b"*%c" % above] * 9)) for above, name in itertools.pairwise(b"abcdefghijk")
)
MERGES = b"a: &a {x: 1}\n" + b"\n".join(
    b"%c: &%c {<<: [%s]}" % (name, name, b", ".join([b"*%c" % above] * 9)) for above, name in itertools.pairwise(b"abcdefghijk")
)
REFUSED_AS_CONFIG = {
    "laughs": LAUGHS,
    "merged laughs": MERGES,
    "brackets": b"[" * 10_000,
    "closed brackets": b"a: " + b"[" * 10_000 + b"]" * 10_000,
    "braces": b"{a: " * 10_000,
    "dashes": b"- " * 10_000,
    "questions": b"? " * 10_000,
    "an object of Python": b"a: !!python/object/apply:os.system ['true']\n",
    "a module of Python": b"a: !!python/module:os\n",
    "a name of Python": b"a: !!python/name:os.system\n",
    "a tag with a line break": b"a: !!x%0Ay 1\n",
    "a tag that does not print": b"a: !!x%1B%5B2Jy 1\n",
    "a long tag": b"a: !!" + b"x" * 500_000 + b" 1\n",
    "a long alias": b"a: *" + b"x" * 500_000 + b"\n",
    "a long anchor that holds itself": b"a: &" + b"x" * 400_000 + b" [*" + b"x" * 400_000 + b"]\n",
    "a long value of a type": b"a: !!bool " + b"x" * 500_000 + b"\n",
    "a number of Python": b"a: !!int 1e400\n",
    "digits": b"a: " + b"9" * 100_000 + b"\n",
    "hex digits": b"a: 0x" + b"f" * 100_000 + b"\n",
    "a float of digits": b"a: 1." + b"9" * 100_000 + b"\n",
    "groups of sixty": b"a: 1" + b":59" * 100_000 + b"\n",
    "NUL": b"model_name: a\0b\n",
    "a control character": b"model_name: a\x1b[2J\n",
    "Latin-1": "model_name: café\n".encode("latin-1"),
    "UTF-16": "model_name: a\n".encode("utf-16"),
    "UTF-16 without a mark": "model_name: a\n".encode("utf-16-le"),
    "UTF-32": "model_name: a\n".encode("utf-32"),
    "half a surrogate pair": b"model_name: \xed\xa0\x80\n",
    "an escaped half of a surrogate pair": b'model_name: "\\ud800"\n',
    "a key that is half a surrogate pair": b'{"\\udfff": 1}\n',
    "holds itself": b"a: &a [*a]\n",
    "a key that holds itself": b"? &a [*a]\n: 1\n",
    "merges itself": b"a: &a\n  <<: *a\n",
    "a list as key": b"[a, b]: 1\n",
    "a mapping as key": b"{a: b}: 1\n",
    "merges a text": b"<<: text\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "a directive that there is not": b"%YAML 9.9\n---\na: 1\n",
    "only a comment": b"# nothing\n",
    "spaces": b" " * 100_000,
}
REFUSED_AS_PUSH = {
    "not a number": b"model_name: a\nx: .nan\n",
    "infinity": b"model_name: a\nx: [-.inf]\n",
    "a number as key": b"model_name: a\nx: {1: a}\n",
    "null as key": b"model_name: a\nx: {~: a}\n",
    "a thousand digits as key": b"model_name: a\nx: {? " + b"9" * 1000 + b" : a}\n",
    "below a long key": b"model_name: a\n? " + b"k" * 900 + b"\n: {" + b"y" * 500 + b": .nan}\n",
    "below a key of lines": b'model_name: a\n"one\\ntwo\\e[2J": .nan\n',
    "a name of nothing": b'model_name: "\\u200b\\u2028"\nx: .nan\n',
}


def model(path: Path, content: bytes) -> Path:
    (path / "config.yaml").write_bytes(content)
    return path


@pytest.mark.parametrize("kind", REFUSED_AS_CONFIG)
async def test_what_is_no_config(tmp_path: Path, kind: str) -> None:
    with little_memory():
        error = await refused_source(model(tmp_path, REFUSED_AS_CONFIG[kind]), "config.yaml")
    assert isinstance(error, ArchiveError)
    assert error.path == str(tmp_path / "config.yaml")
    assert len(str(error)) < 2000


@pytest.mark.parametrize("kind", REFUSED_AS_PUSH)
async def test_what_cannot_be_sent(tmp_path: Path, kind: str) -> None:
    async with scripted_api(answer({})) as api, ab.Client(KEY, base_url=api.url) as client:
        with refused(InvalidPush, "$.deployment.config"):
            await client.push(model(tmp_path, REFUSED_AS_PUSH[kind]))
        assert api.seen == []


@pytest.mark.parametrize("plant", NO_SMALL_FILES)
async def test_a_config_that_is_no_small_file(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    plant(tmp_path / "config.yaml")
    with little_memory():
        error = await refused_source(tmp_path, "config.yaml")
    assert isinstance(error, ArchiveError)


async def test_100_megabytes(tmp_path: Path) -> None:
    with little_memory(), refused(ArchiveError, "config.yaml", "104,857,600"):
        await read_source(model(tmp_path, b"a: b\n" * 20 * 2**20))


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b"\xef\xbb\xbfmodel_name: a\n", {"model_name": "a"}),
        (b"a: 1\na: 2\n", {"a": 2}),  # as PyYAML has it, and so Truss
        (b"a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n", {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}),
        (b"a: 2024-01-01\nb: 2024-01-01T00:00:00Z\n", {"a": "2024-01-01", "b": "2024-01-01T00:00:00Z"}),
        (b"a: 1e400\nb: 0o7\nc: 1_000\n", {"a": "1e400", "b": "0o7", "c": 1000}),
        (b"a\xc2\xa0b: '\xe2\x80\xae'\n", {"a\xa0b": "\u202e"}),
        (b"__class__: 1\n__proto__: {}\n", {"__class__": 1, "__proto__": {}}),
        (b"a: " + b"[" * 90 + b"]" * 90, {"a": json.loads("[" * 90 + "]" * 90)}),
    ],
)
async def test_what_is_odd_and_is_taken_as_it_is(tmp_path: Path, content: bytes, values: dict[str, Any]) -> None:
    async with await ab.sources.open_source(model(tmp_path, content)) as source:
        config = await source.read_config()
    assert config.config == values
    assert config.raw == content.decode("utf-8-sig")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates() | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers() | st.booleans(), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=12), VALUES, max_size=5))
async def test_any_values_are_sent_as_they_are_or_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    async with scripted_api(answer(status=400)) as api, ab.Client(KEY, base_url=api.url) as client:
        push = ab.Push(model(tmp_path, yaml.dump({**values, "model_name": "a"}).encode()), model_id="m")
        with refused(BasetenError) as caught:
            await client.check(push)
        if isinstance(caught.error, InvalidPush):
            assert api.seen == []
        else:
            sent = api.seen[-1].json["deployment"]["config"]
            assert sent.pop("model_name") == "a"
            assert set(sent) == set(values) - {"external_package_dirs", "model_name"}
