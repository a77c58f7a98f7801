"""The payload classes against the public `baseten` package, both ways, and what they show of themselves."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from baseten.client import managementapi as oracle
from hypothesis import given
from pydantic import BaseModel
from support import payloads

from aiobaseten import models
from aiobaseten._convert import from_json, to_json
from aiobaseten.models import (
    AWSCredentials,
    CreatedModelDeployment,
    Deployment,
    DeploymentArchivePayload,
    DeploymentArchiveSource,
    Model,
    ModelArchiveSource,
    PrepareModelUploadRequest,
    PrepareModelUploadResponse,
    Team,
    UploadTarget,
    masked,
)

REQUESTS: list[tuple[type, type[BaseModel]]] = [
    (DeploymentArchivePayload, oracle.DeploymentArchivePayload),
    (PrepareModelUploadRequest, oracle.PrepareModelUploadRequest),
    (ModelArchiveSource, oracle.ModelArchiveSource),
    (DeploymentArchiveSource, oracle.DeploymentArchiveSource),
]
RESPONSES: list[tuple[type, type[BaseModel]]] = [
    (AWSCredentials, oracle.AWSCredentials),
    (PrepareModelUploadResponse, oracle.PrepareModelUploadResponse),
    (Model, oracle.Model),
    (Deployment, oracle.Deployment),
    (CreatedModelDeployment, oracle.CreatedModelDeployment),
    (Team, oracle.Team),
]
CREDENTIALS = AWSCredentials(
    aws_access_key_id="AKIA-PLANTED", aws_secret_access_key="secret-planted", aws_session_token="token-planted"
)


def understood(payload: Any, kind: type[BaseModel]) -> bool:
    """Whether the oracle reads every field that we send, and nothing else."""
    wire = json.loads(json.dumps(to_json(payload)))
    parsed = kind.model_validate_json(json.dumps(wire))
    return parsed.model_dump(exclude_unset=True) == wire


def fields_of(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}


@pytest.mark.parametrize(("ours", "theirs"), REQUESTS)
def test_requests_have_every_field_of_the_newest_generation(ours: type, theirs: type[BaseModel]) -> None:
    fields = attrs.fields_dict(ours)
    first_generation_only = {"is_development"} if ours is PrepareModelUploadRequest else set()
    assert set(fields) - first_generation_only == set(theirs.model_fields)
    for name, field in theirs.model_fields.items():
        if not field.is_required():
            assert fields[name].default == field.default, name
    required = {name for name, field in theirs.model_fields.items() if field.is_required()}
    assert {name for name, field in fields.items() if field.default is attrs.NOTHING} == required - {"config"}


@pytest.mark.parametrize(("ours", "theirs"), RESPONSES)
def test_responses_ask_for_no_more_than_is_promised(ours: type, theirs: type[BaseModel]) -> None:
    fields = attrs.fields_dict(ours)
    assert set(fields) <= set(theirs.model_fields)
    for name, field in fields.items():
        if field.default is attrs.NOTHING:
            assert theirs.model_fields[name].is_required(), name


@given(payloads.deployments())
def test_oracle_understands_deployments(payload: DeploymentArchivePayload) -> None:
    assert understood(payload, oracle.DeploymentArchivePayload)


@given(payloads.prepare_requests())
def test_oracle_understands_prepare_requests(request: PrepareModelUploadRequest) -> None:
    assert understood(request, oracle.PrepareModelUploadRequest)


@given(payloads.model_sources())
def test_oracle_understands_new_models(source: ModelArchiveSource) -> None:
    wire = {"source": to_json(source)}
    parsed = oracle.CreateModelRequest.model_validate_json(json.dumps(wire))
    assert isinstance(parsed.source, oracle.ModelArchiveSource)
    assert understood(source, oracle.ModelArchiveSource)


@given(payloads.deployment_sources())
def test_oracle_understands_new_deployments(source: DeploymentArchiveSource) -> None:
    parsed = oracle.CreateModelDeploymentRequest.model_validate_json(json.dumps({"source": to_json(source)}))
    assert isinstance(parsed.source, oracle.DeploymentArchiveSource)
    assert understood(source, oracle.DeploymentArchiveSource)


@given(payloads.prepare_requests())
def test_we_read_the_oracles_requests(request: PrepareModelUploadRequest) -> None:
    """The local stack reads what other clients send: with every default written out."""
    theirs = oracle.PrepareModelUploadRequest.model_validate(to_json(request))
    assert from_json(json.loads(theirs.model_dump_json(exclude_unset=True)), PrepareModelUploadRequest) == request
    written_out = from_json(json.loads(theirs.model_dump_json()), PrepareModelUploadRequest)
    assert attrs.evolve(written_out, deployment=request.deployment) == request


@given(payloads.oracle_models())
def test_we_read_models(theirs: oracle.Model) -> None:
    ours = from_json(json.loads(theirs.model_dump_json()), Model)
    assert fields_of(ours) == dict(theirs)


@given(payloads.oracle_deployments())
def test_we_read_deployments(theirs: oracle.Deployment) -> None:
    ours = from_json(json.loads(theirs.model_dump_json()), Deployment)
    known = theirs.model_dump(include=set(attrs.fields_dict(Deployment)))
    assert fields_of(ours) == known


@given(payloads.oracle_teams())
def test_we_read_teams(theirs: oracle.Team) -> None:
    assert fields_of(from_json(json.loads(theirs.model_dump_json()), Team)) == dict(theirs)


@given(payloads.oracle_prepare_responses())
def test_we_read_prepare_responses(theirs: oracle.PrepareModelUploadResponse) -> None:
    for exclude_unset in (False, True):
        ours = from_json(json.loads(theirs.model_dump_json(exclude_unset=exclude_unset)), PrepareModelUploadResponse)
        assert attrs.asdict(ours) == theirs.model_dump()
        assert (ours.target is None) == (theirs.creds is None)


@given(payloads.oracle_models(), payloads.oracle_deployments())
def test_we_read_commits(model: oracle.Model, deployment: oracle.Deployment) -> None:
    theirs = oracle.CreatedModelDeployment(model=model, deployment=deployment)
    ours = from_json(json.loads(theirs.model_dump_json()), CreatedModelDeployment)
    assert (ours.model.id, ours.deployment.id, ours.deployment.labels) == (model.id, deployment.id, deployment.labels)


@given(payloads.oracle_deployments())
def test_oracle_reads_what_we_write_of_a_deployment(theirs: oracle.Deployment) -> None:
    """The local stack answers with our classes' JSON and what is beside it."""
    wire = json.loads(theirs.model_dump_json())
    ours = from_json(wire, Deployment)
    read_back = oracle.Deployment.model_validate(wire | json.loads(json.dumps(to_json(ours))))
    assert read_back == theirs


def test_target_holds_all_that_an_upload_needs() -> None:
    response = PrepareModelUploadResponse(creds=CREDENTIALS, s3_bucket="b", s3_key="k", s3_region="r")
    assert response.target == UploadTarget(credentials=CREDENTIALS, bucket="b", key="k", region="r")
    for field in ("creds", "s3_bucket", "s3_key", "s3_region"):
        assert attrs.evolve(response, **{field: None}).target is None


def test_no_secret_in_any_repr() -> None:
    response = PrepareModelUploadResponse(creds=CREDENTIALS, s3_bucket="b", s3_key="k", s3_region="r")
    payload = DeploymentArchivePayload(config={}, raw_config="planted: true")
    for value in (CREDENTIALS, response, response.target, payload, [PrepareModelUploadRequest(name="x", deployment=payload)]):
        for text in (repr(value), str(value), f"{value}"):
            assert "planted" not in text.lower()
    assert repr(CREDENTIALS).count("'***'") == 3
    assert masked(None) == "None"


@pytest.mark.parametrize(
    ("status", "is_up", "has_failed"),
    [
        ("ACTIVE", True, False),
        ("SCALED_TO_ZERO", True, False),
        *[(status, False, False) for status in sorted(models.IN_PROGRESS_STATUSES)],
        *[(status, False, False) for status in ("WAKING_UP", "INACTIVE", "DEACTIVATING", "UNHEALTHY", "SOMETHING_NEW", "")],
        *[(status, False, True) for status in ("BUILD_FAILED", "BUILD_STOPPED", "DEPLOY_FAILED", "FAILED")],
    ],
)
def test_statuses(status: str, is_up: bool, has_failed: bool) -> None:
    wire = {
        "id": "d",
        "created_at": "2026-01-02T03:04:05Z",
        "name": "n",
        "model_id": "m",
        "is_production": False,
        "is_development": False,
        "status": status,
        "active_replica_count": 0,
    }
    deployment = from_json(wire, Deployment)
    assert (deployment.is_up, deployment.has_failed) == (is_up, has_failed)


def test_every_documented_status_is_sorted_into_one_kind() -> None:
    assert not models.IN_PROGRESS_STATUSES & models.FAILED_STATUSES
    assert not models.UP_STATUSES & (models.IN_PROGRESS_STATUSES | models.FAILED_STATUSES)
