"""What a request is called: as the client's method on the control plane, by S3's own name at the object store."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, get_args

ControlPlaneCall = Literal[
    "prepare_model_upload",
    "create_model",
    "create_deployment",
    "list_models",
    "get_model",
    "list_deployments",
    "get_deployment",
    "list_teams",
]
S3Call = Literal[
    "CreateMultipartUpload",
    "UploadPart",
    "PutObject",
    "CompleteMultipartUpload",
    "AbortMultipartUpload",
    "HeadObject",
    "GetObject",
]
Call = ControlPlaneCall | S3Call

CONTROL_PLANE_CALLS: tuple[ControlPlaneCall, ...] = get_args(ControlPlaneCall)
S3_CALLS: tuple[S3Call, ...] = get_args(S3Call)
CALLS: tuple[Call, ...] = (*CONTROL_PLANE_CALLS, *S3_CALLS)

LONGEST_PART_NUMBER = 5

_S3_REQUESTS: Mapping[tuple[str, frozenset[str]], S3Call] = {
    ("POST", frozenset({"uploads"})): "CreateMultipartUpload",
    ("POST", frozenset({"uploadId"})): "CompleteMultipartUpload",
    ("PUT", frozenset({"partNumber", "uploadId"})): "UploadPart",
    ("PUT", frozenset()): "PutObject",
    ("DELETE", frozenset({"uploadId"})): "AbortMultipartUpload",
    ("HEAD", frozenset()): "HeadObject",
    ("GET", frozenset()): "GetObject",
}
_ROUTES: tuple[tuple[str, re.Pattern[str], ControlPlaneCall], ...] = (
    ("POST", re.compile(r"/v1/prepare_model_upload"), "prepare_model_upload"),
    ("POST", re.compile(r"/v1/(teams/[^/]+/)?models"), "create_model"),
    ("POST", re.compile(r"/v1/models/[^/]+/deployments"), "create_deployment"),
    ("GET", re.compile(r"/v1/(teams/[^/]+/)?models"), "list_models"),
    ("GET", re.compile(r"/v1/models/[^/]+"), "get_model"),
    ("GET", re.compile(r"/v1/models/[^/]+/deployments"), "list_deployments"),
    ("GET", re.compile(r"/v1/models/[^/]+/deployments/[^/]+"), "get_deployment"),
    ("GET", re.compile(r"/v1/teams"), "list_teams"),
)


def control_plane_call(method: str, path: str) -> ControlPlaneCall | None:
    """The call that a request to the control plane is; None for any other."""
    for route_method, route, call in _ROUTES:
        if method == route_method and route.fullmatch(path):
            return call
    return None


def s3_call(method: str, path: str, query: Mapping[str, str], *, copies: bool = False) -> S3Call | None:
    """The call that a request to the object store is; None for any that is not about one object's bytes.

    :param path: with the bucket and the key
    :param copies: whether it names another object to copy from
    """
    _, _, key = path.removeprefix("/").partition("/")
    if not key or copies:
        return None
    asked = {name for name in query if not name.lower().startswith("x-")}
    return _S3_REQUESTS.get((method, frozenset(asked)))


def part_number_in(query: Mapping[str, str]) -> int | None:
    """Which part a request to the object store is for."""
    number = query.get("partNumber", "")
    return int(number) if number.isascii() and number.isdecimal() and len(number) <= LONGEST_PART_NUMBER else None
