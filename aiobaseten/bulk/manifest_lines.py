"""On which lines of a manifest its models and their fields are, and which keys come twice.

The parsers of JSON and TOML give values without places. The scanners here read texts that those parsers have accepted, so they need
not check anything: they only find out where things begin.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator

import attrs

Step = str | int
Path = tuple[Step, ...]
"""The keys and indexes that lead to a value, such as ``("models", 3, "labels")``."""

MAX_DEPTH = 3
"""Of the paths whose lines are kept: those of a model's fields. What is deeper has the line of its field."""

_JSON_WORD = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s"{}\[\],:]+')
_TOML_WORD = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?!")'
    r"|'''.*?'''(?!')"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|\n|[\[\]{}=,.]|[^\s\"'\#\[\]{}=,.]+",
    re.DOTALL,
)


class Lines:
    """Lines of a file, from 1, by the paths of what begins there."""

    def __init__(self) -> None:
        self._tables: dict[Path, dict[Step, int]] = {}

    def note(self, path: Path, line: int) -> None:
        """Something begins on a line, unless it began earlier."""
        for depth in range(1, min(len(path), MAX_DEPTH) + 1):
            self.table(path[: depth - 1]).setdefault(path[depth - 1], line)

    def table(self, path: Path) -> dict[Step, int]:
        """The lines of all that is directly in a value."""
        return self._tables.setdefault(path, {})

    def of(self, path: Path) -> int | None:
        """The line of a value, else of what it is in; None where nothing of that is known."""
        for depth in range(len(path), 0, -1):
            line = self._tables.get(path[: depth - 1], {}).get(path[depth - 1])
            if line is not None:
                return line
        return None


@attrs.frozen
class Duplicate:
    """A key that is there twice."""

    path: Path
    line: int
    first_line: int


@attrs.define(eq=False)
class _Open:
    """A mapping or sequence that is being read: its last key or index, the lines of its keys, and where lines are kept."""

    step: Step
    keys: dict[object, int] | None
    lines: dict[Step, int] | None


class Outline:
    """Notes lines and duplicate keys while a file is read from top to bottom, each value told as it begins."""

    def __init__(self) -> None:
        self.lines = Lines()
        self.duplicates: list[Duplicate] = []
        self._open: list[_Open] = []

    def value(self, line: int) -> None:
        """A value begins."""
        if self._open and (around := self._open[-1]).keys is None:
            assert isinstance(around.step, int)
            around.step += 1
            if around.lines is not None:
                around.lines[around.step] = line

    def begin(self, line: int, *, is_mapping: bool) -> None:
        """A mapping or sequence begins."""
        self.value(line)
        lines = self.lines.table(self._path()) if len(self._open) < MAX_DEPTH else None
        self._open.append(_Open("", {}, lines) if is_mapping else _Open(-1, None, lines))

    def key(self, key: object, line: int) -> None:
        """A key of the innermost mapping, before its value."""
        around = self._open[-1]
        assert around.keys is not None
        around.step = key if isinstance(key, str) else str(key)
        if key in around.keys:
            self.duplicates.append(Duplicate(self._path(), line, around.keys[key]))
            return
        around.keys[key] = line
        if around.lines is not None:
            around.lines[around.step] = line

    def end(self) -> None:
        """The innermost mapping or sequence ends."""
        self._open.pop()

    def _path(self) -> Path:
        return tuple(each.step for each in self._open)


def outline_json(text: str) -> Outline:
    """Lines and duplicate keys of a text that is JSON."""
    outline = Outline()
    line, counted_to, key_is_next = 1, 0, False
    in_mapping: list[bool] = []
    for match in _JSON_WORD.finditer(text):
        word = match[0]
        if word == ":":
            continue
        line, counted_to = line + text.count("\n", counted_to, match.start()), match.start()
        if word in "{[":
            key_is_next = word == "{"
            in_mapping.append(key_is_next)
            outline.begin(line, is_mapping=key_is_next)
        elif word in "}]":
            in_mapping.pop()
            outline.end()
        elif word == ",":
            key_is_next = in_mapping[-1]
        elif key_is_next:
            outline.key(json.loads(word), line)
            key_is_next = False
        else:
            outline.value(line)
    return outline


def outline_toml(text: str) -> Lines:
    """Lines of a text that is TOML, which has no duplicate keys."""
    scanner = _TomlScanner()
    for statement in _toml_statements(text):
        scanner.read(statement)
    return scanner.lines


@attrs.frozen
class _Word:
    text: str
    line: int


def _toml_statements(text: str) -> Iterator[list[_Word]]:
    """The words of each header, and of each key with its value, comments and line ends left out."""
    statement: list[_Word] = []
    line, depth = 1, 0
    for match in _TOML_WORD.finditer(text):
        word = match[0]
        if word == "\n" and depth == 0 and statement:
            yield statement
            statement = []
        elif word != "\n" and not word.startswith("#"):
            statement.append(_Word(word, line))
            depth += (word in "[{") - (word in "]}")
        line += word.count("\n")
    if statement:
        yield statement


class _TomlScanner:
    """Follows the headers and keys of a TOML file."""

    def __init__(self) -> None:
        self.lines = Lines()
        self._table: Path = ()
        self._counts: dict[Path, int] = {}

    def read(self, statement: list[_Word]) -> None:
        first = statement[0]
        if first.text == "[":
            self._read_header([word for word in statement if word.text not in "[]."], statement[1].text == "[")
            self.lines.note(self._table, first.line)
            return
        end = next(index for index, word in enumerate(statement) if word.text == "=")
        path = (*self._table, *(_toml_key(word.text) for word in statement[:end] if word.text != "."))
        self.lines.note(path, first.line)
        if path == ("models",):
            self._read_inline_models(statement[end + 1 :])

    def _read_header(self, keys: list[_Word], is_item: bool) -> None:
        path: Path = ()
        for place, word in enumerate(keys, 1):
            path = (*path, _toml_key(word.text))
            if is_item and place == len(keys):
                self._counts[path] = self._counts.get(path, -1) + 1
            if path in self._counts:
                path = (*path, self._counts[path])
        self._table = path

    def _read_inline_models(self, words: list[_Word]) -> None:
        """``models = [{path = "a"}, {path = "b"}]``, on as many lines as it likes."""
        index, depth, key_is_next = -1, 0, False
        for word in words:
            if word.text in "[{":
                depth += 1
                key_is_next = word.text == "{" and depth == MAX_DEPTH - 1
                if key_is_next:
                    index += 1
                    self.lines.note(("models", index), word.line)
            elif word.text in "]}":
                depth -= 1
            elif word.text == "," and depth == MAX_DEPTH - 1:
                key_is_next = True
            elif key_is_next:
                self.lines.note(("models", index, _toml_key(word.text)), word.line)
                key_is_next = False


def _toml_key(word: str) -> str:
    """A key as it is meant: bare, or in quotes."""
    if word[0] not in "\"'":
        return word
    (value,) = tomllib.loads(f"key = {word}").values()
    return str(value)
