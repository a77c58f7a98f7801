"""The one cattrs converter between payload classes and JSON values.

cattrs is lenient by itself: it would turn null into ``"None"``, ``"false"`` into True and a string into an array of its characters.
Here every type refuses a value of another type, and each mistake is told with its JSON path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from aiobaseten import models
from aiobaseten.errors import Problem

T = TypeVar("T")
Structure = Callable[[Any, Any], Any]

MAX_WRONG_ITEMS = 10
_ItemNote: Any = cattrs.IterableValidationNote
_WrongItems: Any = cattrs.IterableValidationError


class Mismatch(ValueError):
    """A JSON value does not have the shape of the class it was read as."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class _WrongType(ValueError):
    pass


_JSON_NAMES = {str: "a string", int: "a whole number", bool: "true or false", float: "a number"}


def _primitive(kind: type[Any]) -> Structure:
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
    return cast("Mapping[str, Any]", value)


def _structure_literal(value: Any, kind: Any) -> Any:
    choices = get_args(kind)
    if value not in choices:
        raise _WrongType("must be " + " or ".join(map(repr, choices)))
    return value


def _array_hook(kind: Any) -> Structure:
    """Reads arrays as cattrs does, but gives up after some wrong items: there may be millions of them."""
    item_kind: Any = get_args(kind)[0]
    structure: Structure = _converter.get_structure_hook(item_kind)

    def structure_array(value: Any, _: object) -> Any:
        if not isinstance(value, list | tuple):
            raise _WrongType(f"must be an array, not {json_type(value)}")
        items: list[Any] = []
        errors: list[Exception] = []
        for index, item in enumerate(cast("Sequence[Any]", value)):
            try:
                items.append(structure(item, item_kind))
            except Exception as error:  # noqa: BLE001 - told with the others
                error.add_note(_ItemNote("", index, item_kind))
                errors.append(error)
                if len(errors) == MAX_WRONG_ITEMS:
                    break
        if errors:
            raise _WrongItems("", errors, kind)
        return tuple(items)

    return structure_array


def _class_hook(kind: Any) -> Structure:
    structure = make_dict_structure_fn(kind, _converter)

    def structure_class(value: Any, _: object) -> Any:
        return structure(_structure_object(value, kind), kind)

    return structure_class


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


def _unstructure_deployment(payload: models.DeploymentArchivePayload) -> dict[str, Any]:
    """Name ``create_environment_if_missing`` whenever an environment is named: the service's default for it will change."""
    data: dict[str, Any] = _unstructure_payload(payload)
    if payload.environment_name is not None:
        data["create_environment_if_missing"] = payload.create_environment_if_missing
    return data


def _as_it_is(value: Any) -> Any:
    return value


def _is_json_object(kind: object) -> bool:
    return bool(kind == models.JsonObject)


def _is_literal(kind: Any) -> bool:
    origin: object = get_origin(kind)
    return origin is Literal


def _is_tuple(kind: Any) -> bool:
    origin: object = get_origin(kind)
    return origin is tuple


_converter = cattrs.Converter(omit_if_default=True, detailed_validation=True)
for _kind in _JSON_NAMES:
    _converter.register_structure_hook(_kind, _primitive(_kind))
_converter.register_structure_hook(datetime, _structure_datetime)
_converter.register_structure_hook_func(_is_json_object, _structure_object)
_converter.register_structure_hook_func(_is_literal, _structure_literal)
_converter.register_structure_hook_factory(_is_tuple, _array_hook)
_converter.register_structure_hook_factory(attrs.has, _class_hook)
_converter.register_unstructure_hook(datetime, datetime.isoformat)
_converter.register_unstructure_hook_func(_is_json_object, _as_it_is)
_unstructure_payload = make_dict_unstructure_fn(models.DeploymentArchivePayload, _converter, _cattrs_omit_if_default=True)
_converter.register_unstructure_hook(models.DeploymentArchivePayload, _unstructure_deployment)
for _source in (models.ModelArchiveSource, models.DeploymentArchiveSource):
    _converter.register_unstructure_hook(
        _source,
        make_dict_unstructure_fn(_source, _converter, _cattrs_omit_if_default=True, kind=override(omit_if_default=False)),
    )


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


def type_problems(payload: object) -> list[Problem]:
    """The fields of a payload object whose values are not of their declared types."""
    try:
        from_json(_as_fields(payload), type(payload))
    except Mismatch as mismatch:
        return mismatch.problems
    return []


def _as_fields(value: object) -> object:
    kind = type(value)
    if not attrs.has(kind):
        return value
    return {field.name: _as_fields(getattr(value, field.name)) for field in attrs.fields(kind)}


def _problems_in(error: BaseException, path: str) -> list[Problem]:
    if isinstance(error, cattrs.IterableValidationError):
        items, _ = error.group_exceptions()
        return [problem for inner, note in items for problem in _problems_in(inner, f"{path}[{note.index}]")]
    if isinstance(error, cattrs.ClassValidationError):
        fields, others = error.group_exceptions()
        located = [problem for inner, note in fields for problem in _problems_in(inner, f"{path}.{note.name}")]
        return located + [Problem(path, str(other)) for other in others]
    if isinstance(error, KeyError):
        return [Problem(path, "is missing")]
    return [Problem(path, str(error))]
