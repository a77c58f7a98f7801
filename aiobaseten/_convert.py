"""The one cattrs converter between payload classes and JSON values.

cattrs is lenient by itself: it would turn null into ``"None"`` and ``"false"`` into True. Here every primitive refuses a value of another
type, and each mistake is told with its JSON path.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from aiobaseten import models
from aiobaseten.errors import Problem

T = TypeVar("T")


class Mismatch(ValueError):
    """A JSON value does not have the shape of the class it was read as."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class _WrongType(ValueError):
    pass


_JSON_NAMES = {str: "a string", int: "a whole number", bool: "true or false", float: "a number"}


def _primitive(kind: type[Any]) -> Any:
    def structure(value: Any, _: object) -> Any:
        if type(value) is not kind:
            raise _WrongType(f"must be {_JSON_NAMES[kind]}, not {json_type(value)}")
        return value

    return structure


def _structure_datetime(value: Any, _: object) -> datetime:
    if not isinstance(value, str):
        raise _WrongType(f"must be a date and time in ISO 8601, not {json_type(value)}")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise _WrongType(f"must be a date and time in ISO 8601, not {value[:40]!r}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _structure_object(value: Any, _: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _WrongType(f"must be an object, not {json_type(value)}")
    return value


def json_type(value: object) -> str:
    """The name of a value's type, in JSON's words where it has one."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return "a string"
        case int() | float():
            return "a number"
        case Mapping():
            return "an object"
        case list() | tuple():
            return "an array"
        case _:
            return f"a {type(value).__name__}"


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(omit_if_default=True, detailed_validation=True)
    for kind in _JSON_NAMES:
        converter.register_structure_hook(kind, _primitive(kind))
    converter.register_structure_hook(datetime, _structure_datetime)
    converter.register_unstructure_hook(datetime, datetime.isoformat)
    converter.register_structure_hook_func(_is_json_object, _structure_object)
    converter.register_unstructure_hook_func(_is_json_object, lambda value: value)

    @converter.register_structure_hook_factory(attrs.has)
    def structure_class(kind: type[Any]) -> Any:
        structure = make_dict_structure_fn(kind, converter)
        return lambda value, _: structure(_structure_object(value, _), kind)

    payload = make_dict_unstructure_fn(models.DeploymentArchivePayload, converter, _cattrs_omit_if_default=True)
    converter.register_unstructure_hook(
        models.DeploymentArchivePayload, lambda value: _with_flipping_default(value, payload(value))
    )
    for source in (models.ModelArchiveSource, models.DeploymentArchiveSource):
        kind_always = make_dict_unstructure_fn(
            source, converter, _cattrs_omit_if_default=True, kind=override(omit_if_default=False)
        )
        converter.register_unstructure_hook(source, kind_always)
    return converter


def _is_json_object(kind: object) -> bool:
    return bool(kind == models.JsonObject)


def _with_flipping_default(payload: models.DeploymentArchivePayload, data: dict[str, Any]) -> dict[str, Any]:
    """Name ``create_environment_if_missing`` whenever an environment is named: the service's default for it will change."""
    if payload.environment_name is not None:
        data["create_environment_if_missing"] = payload.create_environment_if_missing
    return data


_converter = _make_converter()


def to_json(payload: Any) -> dict[str, Any]:
    """The JSON object of a payload, with fields at their defaults left out."""
    data: dict[str, Any] = _converter.unstructure(payload)
    return data


def from_json(data: Any, kind: type[T]) -> T:
    """Read a JSON value as a payload class; unknown fields are ignored.

    :raises Mismatch: with one problem per wrong or missing field
    """
    try:
        return _converter.structure(data, kind)
    except (cattrs.BaseValidationError, _WrongType) as error:
        raise Mismatch(_problems_in(error, "$")) from None


def type_problems(payload: Any) -> list[Problem]:
    """The fields of a payload object whose values are not of their declared types."""
    try:
        from_json(_as_fields(payload), type(payload))
    except Mismatch as mismatch:
        return mismatch.problems
    return []


def _as_fields(value: Any) -> Any:
    if not attrs.has(type(value)):
        return value
    return {field.name: _as_fields(getattr(value, field.name)) for field in attrs.fields(type(value))}


def _problems_in(error: BaseException, path: str) -> list[Problem]:
    if isinstance(error, cattrs.IterableValidationError):
        located, other = error.group_exceptions()
        return [
            problem for inner, note in located for problem in _problems_in(inner, f"{path}[{note.index}]")
        ] + [problem for inner in other for problem in _problems_in(inner, path)]
    if isinstance(error, cattrs.ClassValidationError):
        fields, other = error.group_exceptions()
        return [
            problem for inner, note in fields for problem in _problems_in(inner, f"{path}.{note.name}")
        ] + [problem for inner in other for problem in _problems_in(inner, path)]
    if isinstance(error, KeyError):
        return [Problem(path, "is missing")]
    return [Problem(path, str(error))]
