"""What a valid push is: one function, `find_problems`, that names every broken rule with its JSON path.

Pushes, raw requests and the local stack all go through it. The rules are those that Baseten documents for prepare and commit;
what only the service can know (does the environment exist, is the instance type allowed) is left to the service.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast, get_args

from aiobaseten._convert import json_type, type_problems
from aiobaseten._text import one_line
from aiobaseten.errors import InvalidPush, Problem
from aiobaseten.models import (
    DeploymentArchivePayload,
    DeploymentArchiveSource,
    ModelArchiveSource,
    PrepareModelUploadRequest,
)

DEPLOYMENT_NAME = re.compile(r"[0-9a-zA-Z_\-.]*")
MIN_DEPLOY_TIMEOUT_MINUTES = 10
MAX_DEPLOY_TIMEOUT_MINUTES = 1440
MAX_RAW_CONFIG_BYTES = 100 * 1024
MAX_JSON_DEPTH = 100
MAX_JSON_VALUES = 1_000_000
MAX_INTEGER_BITS = 4096
MAX_SHOWN_CHARACTERS = 100

_TEXT_FIELDS = ("raw_config", "environment_name", "region", "instance_type_id")
_OBJECT_FIELDS = (
    "config",
    "user_env",
    "labels",
    "autoscaling_settings",
    "autoscaling_schedule_settings",
    "request_backpressure_settings",
    "promotion_settings_override",
)
_NOT_UNICODE = "holds a character that is not valid Unicode (half a surrogate pair)"
_NEEDS_ENVIRONMENT = ("autoscaling_schedule_settings", "promotion_settings_override")

Payload = PrepareModelUploadRequest | ModelArchiveSource | DeploymentArchiveSource


def check(payload: Payload) -> None:
    """Refuse a payload that breaks a rule.

    :raises InvalidPush: with every problem found
    """
    if problems := find_problems(payload):
        raise InvalidPush(problems=problems)


def find_problems(payload: Payload) -> list[Problem]:
    """Every rule that a prepare request or a commit breaks; empty when it is valid."""
    if wrong_class := _class_problem(payload):
        return [wrong_class]
    problems = type_problems(payload)
    if problems:
        return problems
    if isinstance(payload, PrepareModelUploadRequest):
        problems.extend(_identity_problems(payload))
    else:
        problems.extend(_source_problems(payload))
    problems.extend(_deployment_problems(payload.deployment))
    return problems


def _class_problem(payload: object) -> Problem | None:
    """A plain dict in place of a payload, or of its deployment, would pass for one with the same fields."""
    if not isinstance(payload, Payload):
        kinds = " or a ".join(kind.__name__ for kind in get_args(Payload))
        return Problem("$", f"must be a {kinds}, not {json_type(payload)}")
    deployment: object = getattr(payload, "deployment")  # noqa: B009 - its declared type is what is in doubt
    if not isinstance(deployment, DeploymentArchivePayload):
        return Problem("$.deployment", f"must be a DeploymentArchivePayload, not {json_type(deployment)}")
    return None


def _identity_problems(request: PrepareModelUploadRequest) -> Iterator[Problem]:
    if request.name is None and request.model_id is None:
        yield Problem(
            "$.name",
            "exactly one of name and model_id is required, and neither is set;"
            " a push can take its name from model_name in config.yaml",
        )
    if request.name is not None and request.model_id is not None:
        yield Problem("$.model_id", "exactly one of name and model_id is required, and both are set")
    for field in ("name", "model_id", "team_id"):
        yield from _text_problems(getattr(request, field), f"$.{field}")
    if request.team_id is not None and request.model_id is not None:
        yield Problem("$.team_id", "must not be set with model_id: an existing model has its team")
    if request.is_development:
        if request.model_id is not None:
            yield Problem("$.is_development", "only with name; with model_id set it inside deployment")
        yield from _development_problems(request.deployment)


def _source_problems(source: ModelArchiveSource | DeploymentArchiveSource) -> Iterator[Problem]:
    if isinstance(source, ModelArchiveSource):
        yield from _text_problems(source.name, "$.name")
    yield from _text_problems(source.s3_key, "$.s3_key")


def _text_problems(text: str | None, path: str) -> Iterator[Problem]:
    if text is not None and not text.strip():
        yield Problem(path, "must not be empty")
    if text is not None and not _is_unicode(text):
        yield Problem(path, _NOT_UNICODE)


def _deployment_problems(deployment: DeploymentArchivePayload) -> Iterator[Problem]:
    at = "$.deployment"
    if deployment.config is None:
        yield Problem(f"{at}.config", "is required: the parsed config.yaml")
    json_values = _JsonValues()
    for field in (*_OBJECT_FIELDS, *_TEXT_FIELDS):
        json_values.check(getattr(deployment, field), (at, field))
    yield from json_values.problems
    if deployment.environment_name is not None and not deployment.environment_name.strip():
        yield Problem(f"{at}.environment_name", "must not be empty; leave it out for no environment")
    minutes = deployment.deploy_timeout_minutes
    if minutes is not None and not MIN_DEPLOY_TIMEOUT_MINUTES <= minutes <= MAX_DEPLOY_TIMEOUT_MINUTES:
        yield Problem(
            f"{at}.deploy_timeout_minutes",
            f"must be from {MIN_DEPLOY_TIMEOUT_MINUTES} to {MAX_DEPLOY_TIMEOUT_MINUTES}",
        )
    name = deployment.deployment_name
    if name is not None and not DEPLOYMENT_NAME.fullmatch(name):
        yield Problem(f"{at}.deployment_name", f"may hold only letters, digits, '_', '-' and '.', not {name[:80]!r}")
    if deployment.instance_type_id is not None and deployment.preserve_env_instance_type:
        yield Problem(f"{at}.instance_type_id", "needs preserve_env_instance_type to be false")
    for field in _NEEDS_ENVIRONMENT:
        if getattr(deployment, field) is not None and deployment.environment_name is None:
            yield Problem(f"{at}.{field}", "needs environment_name")
    if deployment.is_development:
        yield from _development_problems(deployment)


def _development_problems(deployment: DeploymentArchivePayload) -> Iterator[Problem]:
    reason = "must stay at its default in a development push"
    if deployment.environment_name is not None:
        yield Problem("$.deployment.environment_name", reason)
    if not deployment.preserve_env_instance_type:
        yield Problem("$.deployment.preserve_env_instance_type", reason)
    if deployment.deployment_name is not None:
        yield Problem("$.deployment.deployment_name", reason)


class _JsonValues:
    """Finds what JSON cannot carry: other types, keys that are not strings, NaN, half a surrogate pair, endless nesting.

    YAML's aliases let a few lines stand for any number of values: values are counted, and the search ends at a limit.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._values_left = MAX_JSON_VALUES

    def check(self, value: Any, path: tuple[str | int, ...]) -> None:
        self._values_left -= 1
        if self._values_left == 0:
            self._refuse(path, f"is the last of more than {MAX_JSON_VALUES:,} values that are checked; a push holds fewer")
        if self._values_left <= 0 or value is None:
            return
        if isinstance(value, str):
            if not _is_unicode(value):
                self._refuse(path, _NOT_UNICODE)
        elif isinstance(value, int):
            if value.bit_length() > MAX_INTEGER_BITS:
                self._refuse(path, "is a whole number of too many digits")
        elif isinstance(value, float):
            if not math.isfinite(value):
                self._refuse(path, f"must be a finite number, not {value}")
        elif len(path) > MAX_JSON_DEPTH:
            self._refuse(path[:10], f"is nested deeper than {MAX_JSON_DEPTH} levels")
        elif isinstance(value, Mapping):
            self._check_object(cast("Mapping[object, Any]", value), path)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(cast("Sequence[Any]", value)):
                self.check(item, (*path, index))
        else:
            self._refuse(path, f"must be a JSON value, not {json_type(value)}")

    def _check_object(self, value: Mapping[object, Any], path: tuple[str | int, ...]) -> None:
        for key, item in value.items():
            if not isinstance(key, str):
                self._refuse(path, f"has the key {one_line(repr(key), max_chars=MAX_SHOWN_CHARACTERS)}; keys must be strings")
            elif not _is_unicode(key):
                self._refuse(path, f"has a key that {_NOT_UNICODE}: {key[:80]!r}")
            else:
                self.check(item, (*path, key))

    def _refuse(self, path: tuple[str | int, ...], rule: str) -> None:
        steps = "".join(f"[{step}]" if isinstance(step, int) else f".{_shown(step)}" for step in path)
        self.problems.append(Problem(steps[1:], rule))


def _shown(key: str) -> str:
    """A key as a path can hold it: on one line, and not too long."""
    return one_line(key, max_chars=MAX_SHOWN_CHARACTERS) if len(key) > MAX_SHOWN_CHARACTERS or not key.isprintable() else key


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
