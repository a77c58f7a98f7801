"""Reads the text of a manifest, whichever its format: values, where they are, and keys that come twice."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, NoReturn, TypeVar

import attrs

from aiobaseten.bulk.manifest_lines import Duplicate, Lines, Outline, outline_json, outline_toml
from aiobaseten.bulk.manifest_yaml import read_yaml
from aiobaseten.options import MiB
from aiobaseten.rules import MAX_JSON_DEPTH
from aiobaseten.sources.safe_yaml import UnreadableText, decode

T = TypeVar("T")

MAX_MANIFEST_BYTES = 64 * MiB
MAX_MANIFEST_VALUES = 5_000_000
"""Fifty for each of a hundred thousand models."""

_TOML_DEEP_KEY = re.compile(
    rf"""(?:^|[\[{{,])[ \t]*+(?:(?>[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*+\.[ \t]*+){{{MAX_JSON_DEPTH}}}""", re.MULTILINE
)
"""For which tomllib takes the square of its length."""
_TOML_PLACE = re.compile(r" \(at line (\d+), column (\d+)\)$")


@attrs.frozen(kw_only=True)
class ManifestText:
    """A manifest as it was parsed, and not checked yet.

    :param values: of whatever type the text is
    """

    values: Any
    lines: Lines
    duplicates: tuple[Duplicate, ...] = ()


def reader_for(path: str) -> Callable[[bytes], ManifestText] | None:
    """What reads the manifest at a path, by its ending; None where the ending is of no format."""
    return READERS.get(PurePath(path).suffix.lower())


def _read_yaml(content: bytes) -> ManifestText:
    outline = Outline()
    values = read_yaml(decode(content), outline, max_values=MAX_MANIFEST_VALUES)
    return ManifestText(values=values, lines=outline.lines, duplicates=tuple(outline.duplicates))


def _read_json(content: bytes) -> ManifestText:
    text = decode(content)
    try:
        values = _parse("JSON", lambda: json.loads(text, parse_constant=_refuse_constant))
    except json.JSONDecodeError as error:
        raise UnreadableText(f"is not valid JSON: {error.msg}", line=error.lineno, column=error.colno) from error
    outline = outline_json(text)
    return ManifestText(values=values, lines=outline.lines, duplicates=tuple(outline.duplicates))


def _read_toml(content: bytes) -> ManifestText:
    text = decode(content).replace("\r\n", "\n")
    if endless := _TOML_DEEP_KEY.search(text):
        raise UnreadableText(f"has a key of more than {MAX_JSON_DEPTH} parts", line=text.count("\n", 0, endless.end()) + 1)
    try:
        values = _parse("TOML", lambda: tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        place = _TOML_PLACE.search(message)
        raise UnreadableText(
            f"is not valid TOML: {_TOML_PLACE.sub('', message)}",
            line=int(place[1]) if place else text.count("\n") + 1,
            column=int(place[2]) if place else None,
        ) from error
    return ManifestText(values=values, lines=outline_toml(text))


def _parse(name: str, parse: Callable[[], T]) -> T:
    """Call a parser whose other failures than wrong syntax have no place."""
    try:
        return parse()
    except (json.JSONDecodeError, tomllib.TOMLDecodeError):
        raise
    except RecursionError as error:
        raise UnreadableText(
            f"is nested much deeper than the {MAX_JSON_DEPTH} levels that JSON values of a push may have"
        ) from error
    except ValueError as error:
        raise UnreadableText(f"is not valid {name}: {error}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON has")


READERS: Mapping[str, Callable[[bytes], ManifestText]] = {
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".toml": _read_toml,
    ".json": _read_json,
}
