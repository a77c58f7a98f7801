"""Strategies for the service's payloads: ours, and the same ones as the public `baseten` package models them."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from typing import Any

import attrs
from baseten.client import managementapi as oracle
from hypothesis import strategies as st

from aiobaseten.models import (
    DeploymentArchivePayload,
    DeploymentArchiveSource,
    ModelArchiveSource,
    PrepareModelUploadRequest,
)

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
NAMES = TEXTS.filter(str.strip)
NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False).filter(math.isfinite)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)
JSON_OBJECTS = st.dictionaries(TEXTS, JSON, max_size=5)
OFFSETS = st.integers(-12 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(2099, 1, 1), timezones=OFFSETS)  # noqa: DTZ001 - the bounds are naive

# Values of the settings that the service reads itself: their inside is the service's own business, and the oracle's.
AUTOSCALING = st.fixed_dictionaries({}, optional={"min_replica": st.integers(0, 5), "max_replica": st.integers(5, 9)})
BACKPRESSURE = st.just({"policy": "REJECT_ON_FULL"})
PROMOTION = st.just({"rolling_deploy_config": {"max_surge_percent": 50}})


@st.composite
def deployments(draw: st.DrawFn) -> DeploymentArchivePayload:
    """Any valid deployment payload."""

    def maybe(strategy: st.SearchStrategy[Any]) -> Any:
        return draw(st.none() | strategy)

    payload = DeploymentArchivePayload(
        config=draw(JSON_OBJECTS),
        raw_config=maybe(TEXTS),
        user_env=maybe(JSON_OBJECTS),
        deploy_timeout_minutes=maybe(st.integers(10, 1440)),
        labels=maybe(JSON_OBJECTS),
        region=maybe(TEXTS),
        autoscaling_settings=maybe(AUTOSCALING),
        request_backpressure_settings=maybe(BACKPRESSURE),
        create_environment_if_missing=draw(st.booleans()),
    )
    if draw(st.booleans()):
        return attrs.evolve(payload, is_development=True)
    payload = attrs.evolve(payload, deployment_name=maybe(st.from_regex(r"[0-9a-zA-Z_\-.]{0,20}", fullmatch=True)))
    if draw(st.booleans()):
        payload = attrs.evolve(payload, preserve_env_instance_type=False, instance_type_id=maybe(TEXTS))
    if draw(st.booleans()):
        payload = attrs.evolve(
            payload,
            environment_name=draw(NAMES),
            promotion_settings_override=maybe(PROMOTION),
            autoscaling_schedule_settings=maybe(st.just({})),
        )
    return payload


@st.composite
def prepare_requests(draw: st.DrawFn) -> PrepareModelUploadRequest:
    """Any valid prepare request of the newest generation."""
    target = draw(st.fixed_dictionaries({"model_id": NAMES}) | st.fixed_dictionaries({"name": NAMES}, optional={"team_id": NAMES}))
    return PrepareModelUploadRequest(deployment=draw(deployments()), dry_run=draw(st.booleans()), **target)


def model_sources() -> st.SearchStrategy[ModelArchiveSource]:
    return st.builds(
        ModelArchiveSource,
        name=NAMES,
        deployment=deployments(),
        s3_key=st.none() | NAMES,
        disable_archive_download=st.booleans(),
        kind=st.just("model_archive"),
    )


def deployment_sources() -> st.SearchStrategy[DeploymentArchiveSource]:
    return st.builds(DeploymentArchiveSource, deployment=deployments(), s3_key=st.none() | NAMES, kind=st.just("model_archive"))


def oracle_models() -> st.SearchStrategy[oracle.Model]:
    return st.builds(
        oracle.Model,
        id=TEXTS,
        created_at=MOMENTS,
        name=TEXTS,
        deployments_count=st.integers(0, 10**6),
        production_deployment_id=st.none() | TEXTS,
        development_deployment_id=st.none() | TEXTS,
        instance_type_name=TEXTS,
        team_name=TEXTS,
    )


def oracle_deployments() -> st.SearchStrategy[oracle.Deployment]:
    return st.builds(
        oracle.Deployment,
        id=TEXTS,
        created_at=MOMENTS,
        name=TEXTS,
        model_id=TEXTS,
        is_production=st.booleans(),
        is_development=st.booleans(),
        status=st.sampled_from(["BUILDING", "ACTIVE", "FAILED", "SCALED_TO_ZERO"]) | TEXTS,
        active_replica_count=st.integers(0, 1000),
        autoscaling_settings=st.none()
        | st.builds(
            oracle.AutoscalingSettings,
            **{name: st.integers(0, 9) for name in oracle.AutoscalingSettings.model_fields},
        ),
        instance_type_name=st.none() | TEXTS,
        environment=st.none() | TEXTS,
        labels=st.none() | JSON_OBJECTS,
        region=st.none() | st.builds(oracle.Region, slug=TEXTS, display_name=TEXTS),
        request_backpressure_settings=st.just(oracle.RequestBackpressureSettings.model_construct()),
    )


def oracle_teams() -> st.SearchStrategy[oracle.Team]:
    return st.builds(oracle.Team, id=TEXTS, name=TEXTS, default=st.booleans(), created_at=MOMENTS)


def oracle_prepare_responses() -> st.SearchStrategy[oracle.PrepareModelUploadResponse]:
    full = st.builds(
        oracle.PrepareModelUploadResponse,
        creds=st.builds(oracle.AWSCredentials, aws_access_key_id=NAMES, aws_secret_access_key=NAMES, aws_session_token=NAMES),
        s3_bucket=NAMES,
        s3_key=NAMES,
        s3_region=NAMES,
    )
    return full | st.just(oracle.PrepareModelUploadResponse())
