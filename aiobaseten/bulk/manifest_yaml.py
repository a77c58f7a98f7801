"""Builds the values of a manifest from YAML's events, one after the other.

PyYAML itself first makes a tree of nodes of the whole text, which for a hundred thousand models takes half a gigabyte, and four
times as long. What comes out here is the same, and duplicate keys are found on the way.
"""

from __future__ import annotations

import sys
from typing import Any, cast

import attrs
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    ScalarEvent,
)
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from aiobaseten.bulk.manifest_lines import Outline
from aiobaseten.sources import safe_yaml

_MERGE_TAG = "tag:yaml.org,2002:merge"
_MAPPING_TAGS = (None, "!", "tag:yaml.org,2002:map")
_SEQUENCE_TAGS = (None, "!", "tag:yaml.org,2002:seq")


def read_yaml(text: str, outline: Outline, *, max_values: int) -> Any:
    """The one document of a YAML text; None where it is empty.

    :param outline: is told where each value begins
    :param max_values: how many values the text may stand for, aliases included
    :raises UnreadableText: where it is not YAML, or stands for what JSON cannot carry
    """
    builder = _Builder(outline)
    with safe_yaml.readable(text):
        for event in safe_yaml.events(text, max_values=max_values):
            builder.add(event)
    return builder.root


@attrs.frozen
class _NoKey:
    """In place of the key of a mapping whose next value is a key."""


@attrs.frozen
class _Merge:
    """In place of the key ``<<``."""


_NO_KEY, _MERGE = _NoKey(), _Merge()


@attrs.define(eq=False)
class _Open:
    """A mapping or sequence that is being built."""

    anchor: str | None
    values: dict[Any, Any] | list[Any]
    key: Any = _NO_KEY
    merged: dict[Any, Any] | None = None


class _Builder:
    def __init__(self, outline: Outline) -> None:
        self.root: Any = None
        self._outline = outline
        self._open: list[_Open] = []
        self._anchors: dict[str | None, Any] = {}
        self._anchor_names: set[str] = set()
        self._documents = 0
        self._loader: Any = safe_yaml.Loader("")  # Builds single values.

    def add(self, event: Event) -> None:
        if isinstance(event, ScalarEvent):
            self._name(event, event.anchor)
            self._add_scalar(event)
        elif isinstance(event, CollectionStartEvent):
            self._name(event, event.anchor)
            self._begin(event)
        elif isinstance(event, CollectionEndEvent):
            self._end(event)
        elif isinstance(event, AliasEvent):
            self._add_alias(event)
        elif isinstance(event, DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise safe_yaml.value_error("expected a single document, and found another", event.start_mark)

    def _name(self, event: Event, anchor: str | None) -> None:
        if anchor is None:
            return
        if anchor in self._anchor_names:
            raise safe_yaml.value_error(f"found duplicate anchor {anchor!r}", event.start_mark)
        self._anchor_names.add(anchor)

    def _add_scalar(self, event: ScalarEvent) -> None:
        is_key = self._key_is_next
        node = self._node_of(event)
        if is_key and node is not None and node.tag == _MERGE_TAG:
            self._outline.key("<<", _line(event))
            self._open[-1].key = _MERGE
            return
        value = event.value if node is None else self._loader.construct_document(node)
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        self._put(event, value)

    def _node_of(self, event: ScalarEvent) -> Node | None:
        """What a value is built of; None where it is its own text."""
        tag: str | None = event.tag
        text: str = event.value
        if tag is None or tag == "!":
            if event.implicit[1] or (text and text[0] not in self._loader.yaml_implicit_resolvers):
                return None
            tag = cast("str", self._loader.resolve(ScalarNode, text, event.implicit))
        return _node(ScalarNode, tag, text, event)

    def _add_alias(self, event: AliasEvent) -> None:
        if event.anchor not in self._anchors:
            raise safe_yaml.value_error(f"found undefined alias {event.anchor!r}", event.start_mark)
        self._put(event, self._anchors[event.anchor])

    def _begin(self, event: CollectionStartEvent) -> None:
        is_mapping = isinstance(event, MappingStartEvent)
        if event.tag not in (_MAPPING_TAGS if is_mapping else _SEQUENCE_TAGS):
            self._loader.construct_undefined(_node(MappingNode if is_mapping else SequenceNode, event.tag, [], event))
        if self._key_is_next:
            raise _not_a_key(event)
        self._outline.begin(_line(event), is_mapping=is_mapping)
        self._open.append(_Open(event.anchor, {} if is_mapping else []))

    def _end(self, event: CollectionEndEvent) -> None:
        self._outline.end()
        ended = self._open.pop()
        values: Any = ended.values
        if ended.merged is not None:
            values = {**ended.merged, **values}
        if ended.anchor is not None:
            self._anchors[ended.anchor] = values
        self._hold(event, values)

    @property
    def _key_is_next(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1].values, dict) and self._open[-1].key is _NO_KEY

    def _put(self, event: Event, value: Any) -> None:
        """A scalar, or what an alias stands for: a key or a value."""
        line = _line(event)
        if not self._key_is_next:
            self._outline.value(line)
            self._hold(event, value)
        elif isinstance(value, dict | list):
            raise _not_a_key(event)
        else:
            self._outline.key(value, line)
            self._open[-1].key = sys.intern(value) if isinstance(value, str) else value

    def _hold(self, event: Event, value: Any) -> None:
        """Put a finished value into what it is in."""
        if not self._open:
            self.root = value
            return
        around = self._open[-1]
        if isinstance(around.values, list):
            around.values.append(value)
            return
        if around.key is _MERGE:
            around.merged = {**(around.merged or {}), **_merged(event, value)}
        else:
            around.values[around.key] = value
        around.key = _NO_KEY


def _merged(event: Event, value: Any) -> dict[Any, Any]:
    """What ``<<`` brings in: of several mappings, the first counts."""
    mappings = cast("list[object]", value) if isinstance(value, list) else [value]
    merged: dict[Any, Any] = {}
    for mapping in reversed(mappings):
        if not isinstance(mapping, dict):
            raise safe_yaml.value_error("<< takes a mapping, or a list of mappings", event.start_mark)
        merged.update(cast("dict[object, Any]", mapping))
    return merged


def _line(event: Any) -> int:
    """Where an event begins, from 1."""
    line: int = event.start_mark.line
    return line + 1


def _node(kind: type[Node], tag: str | None, value: Any, event: Any) -> Node:
    make: Any = kind
    node: Node = make(tag, value, event.start_mark, event.end_mark)
    return node


def _not_a_key(event: Event) -> Exception:
    return safe_yaml.value_error("found unhashable key: a key must be a string", event.start_mark)
