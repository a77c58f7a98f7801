"""Reads the text of a ``config.yaml`` into values that JSON can carry.

YAML lets a few lines stand for billions of values, nest without end, or refer to themselves: such a file is refused before anything
is built from it. Dates stay text, as JSON has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, cast

import attrs
import yaml
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.error import MarkedYAMLError
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, ScalarEvent
from yaml.nodes import Node
from yaml.reader import Reader
from yaml.resolver import Resolver

from aiobaseten.errors import ArchiveError
from aiobaseten.options import MiB
from aiobaseten.rules import MAX_JSON_DEPTH
from aiobaseten.sources.base import ModelConfig

CONFIG_NAME = "config.yaml"
EXTERNAL_PACKAGE_DIRS = "external_package_dirs"
MAX_CONFIG_BYTES = MiB
MAX_VALUES = 100_000
MAX_NUMBER_CHARACTERS = 1000

_yaml: Any = yaml  # Its types leave most of what is used here unknown.
_TAG = "tag:yaml.org,2002:"
_JSON_TAGS = tuple(_TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map"))
_NUMBER_TAGS = (f"{_TAG}int", f"{_TAG}float")


@attrs.frozen(kw_only=True)
class ConfigFile:
    """A ``config.yaml`` that was read.

    :param label: what messages call it
    :param values: all of it, parsed
    :param text: as the user wrote it
    """

    label: str
    values: dict[str, Any] = attrs.field(repr=False)
    text: str = attrs.field(repr=False)

    @property
    def model_config(self) -> ModelConfig:
        return ModelConfig(config=self._without_external_packages(), raw=self.text)

    @property
    def external_package_dirs(self) -> list[str]:
        """The directories whose children belong into the archive.

        :raises ArchiveError: where the field is not a list of paths
        """
        directories: object = self.values.get(EXTERNAL_PACKAGE_DIRS)
        if directories is None:
            return []
        if not isinstance(directories, list) or not all(map(_is_path, cast("list[object]", directories))):
            raise ArchiveError(f"{self.label}: {EXTERNAL_PACKAGE_DIRS} must be a list of directories' paths", path=self.label)
        return cast("list[str]", directories)

    def dump_without_external_packages(self) -> bytes:
        """The same config as YAML again, less the directories that an archive must not name."""
        values = self._without_external_packages()
        text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
        if _yaml.load(text, Loader=_Loader) != values:
            # PyYAML loses Unicode's own line breaks, unless it may write ASCII only.
            text = yaml.safe_dump(values, sort_keys=False)
        return text.encode()

    def _without_external_packages(self) -> dict[str, Any]:
        return {key: value for key, value in self.values.items() if key != EXTERNAL_PACKAGE_DIRS}


def _is_path(value: object) -> bool:
    return isinstance(value, str) and is_file_name(value)


def is_file_name(text: str) -> bool:
    """Whether the system could have a file of that name: no NUL, and nothing that is not Unicode."""
    try:
        return "\0" not in text and bool(text.encode())
    except UnicodeEncodeError:
        return False


def parse_config(content: bytes, label: str) -> ConfigFile:
    """Read the bytes of a ``config.yaml``.

    :param label: what messages call the file
    :raises ArchiveError: where they are not the YAML, in UTF-8, of a mapping of JSON values; it names line and column
    """
    if len(content) > MAX_CONFIG_BYTES:
        raise ArchiveError(f"{label} has more than {MAX_CONFIG_BYTES:,} bytes", path=label)
    text = _decode(content, label)
    try:
        _check_extent(_yaml.parse(text, Loader=_Loader))
        values: Any = _yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise _refusal(label, text, error) from error
    if values is None:
        raise ArchiveError(f"{label} is empty; it must hold a mapping, such as 'model_name: my-model'", path=label)
    if not isinstance(values, dict):
        raise ArchiveError(f"{label} must hold a mapping, not {_kind_of(values)}", path=label)
    return ConfigFile(label=label, values=cast("dict[str, Any]", values), text=text)


def _kind_of(value: object) -> str:
    return "a list" if isinstance(value, list) else f"the single value {str(value)[:40]!r}"


def _decode(content: bytes, label: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ArchiveError(
            f"{label}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; the file must be text", path=label
        ) from error
    if unprintable := Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, unprintable.start()) + 1
        raise ArchiveError(f"{label}, line {line}: holds {unprintable[0]!r}, which is not text", path=label)
    return text


def _refusal(label: str, text: str, error: yaml.YAMLError) -> ArchiveError:
    """Say what is wrong with the YAML, and show the line."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return ArchiveError(f"{label} is not valid YAML: {error}", path=label)
    mark = error.problem_mark
    what = ": ".join(filter(None, (error.context, error.problem)))
    lines = text.splitlines()
    shown = lines[mark.line].strip() if mark.line < len(lines) else "(the end of the file)"
    return ArchiveError(f"{label}, line {mark.line + 1}, column {mark.column + 1}: {what}\n  {shown[:80]}", path=label)


@attrs.define
class _Collection:
    """A list or mapping that is being read: its anchor, and how many values it stands for so far, aliases included."""

    anchor: str | None
    values: int = 1


def _check_extent(events: Iterable[Event]) -> None:
    """Refuse YAML that stands for too much, before any of it is built.

    :raises ConstructorError: where it nests too deeply, holds itself, or expands to too many values
    """
    sizes: dict[str | None, int | None] = {}
    unfinished = [_Collection(None)]
    for event in events:
        if isinstance(event, CollectionStartEvent):
            unfinished.append(_Collection(event.anchor))
            if event.anchor is not None:
                sizes[event.anchor] = None
            if len(unfinished) > MAX_JSON_DEPTH:
                raise _error(f"nested deeper than {MAX_JSON_DEPTH} levels", event.start_mark)
            continue
        if isinstance(event, CollectionEndEvent):
            collection = unfinished.pop()
            anchor, values = collection.anchor, collection.values
        elif isinstance(event, ScalarEvent):
            anchor, values = event.anchor, 1
        elif isinstance(event, AliasEvent):
            # An alias without its anchor is refused when the values are built.
            referred = sizes.get(event.anchor, 1)
            if referred is None:
                raise _error(f"the alias {event.anchor!r} stands for what it is in", event.start_mark)
            anchor, values = None, referred
        else:
            continue
        if anchor is not None:
            sizes[anchor] = values
        unfinished[-1].values += values
        if unfinished[-1].values > MAX_VALUES:
            raise _error(f"stands for more than {MAX_VALUES:,} values", event.start_mark)


class _JsonConstructor(SafeConstructor):
    """Builds what JSON has, and nothing else; a value that cannot be built is told with its place."""

    yaml_constructors: ClassVar[dict[str | None, Any]] = {tag: SafeConstructor.yaml_constructors[tag] for tag in _JSON_TAGS}
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
        for first, resolvers in Resolver.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        if node.tag in _NUMBER_TAGS and len(node.value) > MAX_NUMBER_CHARACTERS:
            raise _error("a number of too many digits", node.start_mark)
        try:
            return cast("Any", super()).construct_object(node, deep)
        except (ValueError, LookupError) as error:
            raise _error(f"not a valid {_short(node.tag)}: {error}", node.start_mark) from error

    def construct_undefined(self, node: Node) -> Any:
        raise _error(f"{_short(node.tag)} is a type of value that JSON does not have", node.start_mark)


def _error(problem: str, mark: Any) -> ConstructorError:
    return ConstructorError(None, None, problem, mark)


def _short(tag: str) -> str:
    return tag.replace(_TAG, "!!")


_JsonConstructor.yaml_constructors[None] = _JsonConstructor.construct_undefined
_Loader: Any = type("_Loader", (_JsonConstructor, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), {})
