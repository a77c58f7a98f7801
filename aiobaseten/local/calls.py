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
]
Call = ControlPlaneCall | S3Call

CONTROL_PLANE_CALLS: tuple[ControlPlaneCall, ...] = get_args(ControlPlaneCall)
S3_CALLS: tuple[S3Call, ...] = get_args(S3Call)

LONGEST_PART_NUMBER = 5

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


def s3_call(method: str, query: Mapping[str, str]) -> S3Call | None:
    """The call that a request to the object store is, of those that uploads make; None for any other."""
    match method:
        case "POST" if "uploads" in query:
            return "CreateMultipartUpload"
        case "POST" if "uploadId" in query:
            return "CompleteMultipartUpload"
        case "PUT":
            return "UploadPart" if "partNumber" in query else "PutObject"
        case "DELETE" if "uploadId" in query:
            return "AbortMultipartUpload"
        case "HEAD":
            return "HeadObject"
        case _:
            return None


def part_number_in(query: Mapping[str, str]) -> int | None:
    """Which part a request to the object store is for."""
    number = query.get("partNumber", "")
    return int(number) if number.isascii() and number.isdecimal() and len(number) <= LONGEST_PART_NUMBER else None
