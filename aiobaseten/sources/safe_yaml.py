"""Reads YAML from anywhere into values that JSON can carry, within bounds.

YAML lets a few lines stand for billions of values, nest without end, or refer to themselves: such a text is refused before anything
is built from it. Dates stay text, as JSON has none.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import attrs
import yaml
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.error import MarkedYAMLError
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, ScalarEvent
from yaml.nodes import Node
from yaml.reader import Reader
from yaml.resolver import Resolver

from aiobaseten._text import one_line
from aiobaseten.rules import MAX_JSON_DEPTH

MAX_NUMBER_CHARACTERS = 1000
MAX_SHOWN_CHARACTERS = 80

_yaml: Any = yaml  # Its types leave most of what is used here unknown.
_TAG = "tag:yaml.org,2002:"
_JSON_TAGS = tuple(_TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map"))
_NUMBER_TAGS = (f"{_TAG}int", f"{_TAG}float")


class UnreadableText(Exception):
    """A text that is not what its reader asks for.

    `line` and `column` count from 1 and are None where no place is known; `shown` is the line at fault, shortened.
    """

    def __init__(self, problem: str, *, line: int | None = None, column: int | None = None, shown: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line
        self.column = column
        self.shown = shown

    def told_of(self, label: str) -> str:
        """What is wrong, with the place and the line at fault.

        :param label: what the message calls the file
        """
        if self.line is None:
            return f"{label} {self.problem}"
        place = f"line {self.line}" if self.column is None else f"line {self.line}, column {self.column}"
        shown = "" if self.shown is None else f"\n  {self.shown}"
        return f"{label}, {place}: {self.problem}{shown}"


def decode(content: bytes) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    :raises UnreadableText: where it is not UTF-8, or holds what is not text
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnreadableText(f"byte 0x{content[error.start]:02x} is not UTF-8; the file must be text", line=line) from error
    if unprintable := Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, unprintable.start()) + 1
        raise UnreadableText(f"holds {unprintable[0]!r}, which is not text", line=line)
    return text


def load(text: str, *, max_values: int) -> Any:
    """The one document of a YAML text.

    :param max_values: how many values it may stand for, aliases included
    :raises UnreadableText: where it is not YAML, or stands for what JSON cannot carry
    """
    with readable(text):
        for _ in events(text, max_values=max_values):
            pass
        return _yaml.load(text, Loader=Loader)


@contextmanager
def readable(text: str) -> Generator[None]:
    """Turns PyYAML's errors about `text` into `UnreadableText`."""
    try:
        yield
    except yaml.YAMLError as error:
        raise _refusal(text, error) from error


def _refusal(text: str, error: yaml.YAMLError) -> UnreadableText:
    """Say what is wrong with the YAML, and show the line."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return UnreadableText(f"is not valid YAML: {one_line(str(error))}")
    mark = error.problem_mark
    what = one_line(": ".join(filter(None, (error.context, error.problem))))
    lines = text.splitlines()
    shown = lines[mark.line] if mark.line < len(lines) else "(the end of the file)"
    shown = one_line(shown, max_chars=MAX_SHOWN_CHARACTERS)
    return UnreadableText(what, line=mark.line + 1, column=mark.column + 1, shown=shown)


def events(text: str, *, max_values: int) -> Iterator[Event]:
    """PyYAML's events of a text, up to where it stands for too much.

    :raises ConstructorError: where it nests too deeply, holds itself, or expands to too many values
    """
    extent = _Extent(max_values)
    for event in _yaml.parse(text, Loader=Loader):
        extent.add(event)
        yield event


@attrs.define
class _Collection:
    """A list or mapping that is being read: its anchor, and how many values it stands for so far, aliases included."""

    anchor: str | None
    values: int = 1


class _Extent:
    """How deep a text nests and how many values it stands for, as far as it was read."""

    def __init__(self, max_values: int) -> None:
        self._max_values = max_values
        self._sizes: dict[str | None, int | None] = {}
        self._unfinished = [_Collection(None)]

    def add(self, event: Event) -> None:
        if isinstance(event, ScalarEvent):
            self._count(event, event.anchor, 1)
        elif isinstance(event, CollectionStartEvent):
            self._begin(event)
        elif isinstance(event, CollectionEndEvent):
            collection = self._unfinished.pop()
            self._count(event, collection.anchor, collection.values)
        elif isinstance(event, AliasEvent):
            # An alias without its anchor is refused when the values are built.
            referred = self._sizes.get(event.anchor, 1)
            if referred is None:
                raise value_error(f"the alias {event.anchor!r} stands for what it is in", event.start_mark)
            self._count(event, None, referred)

    def _begin(self, event: CollectionStartEvent) -> None:
        self._unfinished.append(_Collection(event.anchor))
        if event.anchor is not None:
            self._sizes[event.anchor] = None
        if len(self._unfinished) > MAX_JSON_DEPTH:
            raise value_error(f"nested deeper than {MAX_JSON_DEPTH} levels", event.start_mark)

    def _count(self, event: Event, anchor: str | None, values: int) -> None:
        if anchor is not None:
            self._sizes[anchor] = values
        around = self._unfinished[-1]
        around.values += values
        if around.values > self._max_values:
            raise value_error(f"stands for more than {self._max_values:,} values", event.start_mark)


class _JsonConstructor(SafeConstructor):
    """Builds what JSON has, and nothing else; a value that cannot be built is told with its place."""

    yaml_constructors: ClassVar[dict[str | None, Any]] = {tag: SafeConstructor.yaml_constructors[tag] for tag in _JSON_TAGS}
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
        for first, resolvers in Resolver.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        if node.tag in _NUMBER_TAGS and len(node.value) > MAX_NUMBER_CHARACTERS:
            raise value_error("a number of too many digits", node.start_mark)
        try:
            return cast("Any", super()).construct_object(node, deep)
        except (ValueError, LookupError) as error:
            raise value_error(f"not a valid {_short(node.tag)}: {error}", node.start_mark) from error

    def construct_undefined(self, node: Node) -> Any:
        raise value_error(f"{_short(node.tag)} is a type of value that JSON does not have", node.start_mark)


def value_error(problem: str, mark: Any) -> ConstructorError:
    """What to raise for a value that cannot be used, at the place where it is."""
    return ConstructorError(None, None, problem, mark)


def _short(tag: str) -> str:
    return tag.replace(_TAG, "!!")


_JsonConstructor.yaml_constructors[None] = _JsonConstructor.construct_undefined
Loader: Any = type("Loader", (_JsonConstructor, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), {})
