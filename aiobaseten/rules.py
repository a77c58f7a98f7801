"""What a valid push is: one function, `find_problems`, that names every broken rule with its JSON path.

Pushes, raw requests and the local stack all go through it. The rules are those that Baseten documents for prepare and commit;
what only the service can know (does the environment exist, is the instance type allowed) is left to the service.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from aiobaseten._convert import json_type, type_problems
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

_OBJECT_FIELDS = (
    "config",
    "user_env",
    "labels",
    "autoscaling_settings",
    "autoscaling_schedule_settings",
    "request_backpressure_settings",
    "promotion_settings_override",
)
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
    problems = type_problems(payload)
    if problems:
        return problems
    if isinstance(payload, PrepareModelUploadRequest):
        problems.extend(_identity_problems(payload))
    elif isinstance(payload, ModelArchiveSource) and not payload.name.strip():
        problems.append(Problem("$.name", "must not be empty"))
    problems.extend(_deployment_problems(payload.deployment))
    return problems


def _identity_problems(request: PrepareModelUploadRequest) -> Iterator[Problem]:
    if request.name is None and request.model_id is None:
        yield Problem("$.name", "exactly one of name and model_id is required, and neither is set; a push can take its name from model_name in config.yaml")
    if request.name is not None and request.model_id is not None:
        yield Problem("$.model_id", "exactly one of name and model_id is required, and both are set")
    for field in ("name", "model_id", "team_id"):
        value = getattr(request, field)
        if value is not None and not value.strip():
            yield Problem(f"$.{field}", "must not be empty")
    if request.team_id is not None and request.model_id is not None:
        yield Problem("$.team_id", "must not be set with model_id: an existing model has its team")
    if request.is_development:
        if request.model_id is not None:
            yield Problem("$.is_development", "only with name; with model_id set it inside deployment")
        yield from _development_problems(request.deployment)


def _deployment_problems(deployment: DeploymentArchivePayload) -> Iterator[Problem]:
    at = "$.deployment"
    if deployment.config is None:
        yield Problem(f"{at}.config", "is required: the parsed config.yaml")
    for field in _OBJECT_FIELDS:
        yield from _json_problems(getattr(deployment, field), f"{at}.{field}")
    for field in ("raw_config", "environment_name", "region", "instance_type_id"):
        yield from _json_problems(getattr(deployment, field), f"{at}.{field}")
    if deployment.environment_name is not None and not deployment.environment_name.strip():
        yield Problem(f"{at}.environment_name", "must not be empty; leave it out for no environment")
    minutes = deployment.deploy_timeout_minutes
    if minutes is not None and not MIN_DEPLOY_TIMEOUT_MINUTES <= minutes <= MAX_DEPLOY_TIMEOUT_MINUTES:
        yield Problem(
            f"{at}.deploy_timeout_minutes",
            f"must be from {MIN_DEPLOY_TIMEOUT_MINUTES} to {MAX_DEPLOY_TIMEOUT_MINUTES}, not {minutes}",
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


def _json_problems(value: Any, path: str, depth: int = 0) -> Iterator[Problem]:
    """What JSON cannot carry: other types, keys that are not strings, NaN, half a surrogate pair, endless nesting."""
    if depth > MAX_JSON_DEPTH:
        yield Problem(path[:200], f"is nested deeper than {MAX_JSON_DEPTH} levels")
    elif isinstance(value, str):
        if not _is_unicode(value):
            yield Problem(path, "holds a character that is not valid Unicode (half a surrogate pair)")
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield Problem(path, f"must be a finite number, not {value}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                yield Problem(path, f"has the key {key!r}; keys must be strings")
            else:
                yield from _json_problems(key, f"{path}.{key!r}", depth + 1)
                yield from _json_problems(item, f"{path}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _json_problems(item, f"{path}[{index}]", depth + 1)
    elif not isinstance(value, int | None):
        yield Problem(path, f"must be a JSON value, not {json_type(value)}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
