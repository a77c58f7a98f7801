"""Baseten's own Python package reads what the local stack answers."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from baseten.client import AsyncManagementClient
from baseten.client import managementapi as api
from pydantic import BaseModel
from support.rest import CONFIG, make_tar, rest, s3_client

from aiobaseten.local import LocalStack

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def assert_same_fields(answer: Any, kind: type[BaseModel]) -> None:
    """The official model takes an answer, and has no field, at any depth, that the answer leaves out."""
    parsed = kind.model_validate(answer)
    spelled_out = parsed.model_dump(mode="json")

    def compare(ours: Any, theirs: Any, path: str) -> None:
        if isinstance(theirs, dict) and "labels" not in path:
            assert isinstance(ours, dict)
            assert set(ours) == set(theirs), path
            for name in theirs:
                compare(ours[name], theirs[name], f"{path}.{name}")
        elif isinstance(theirs, list):
            assert len(ours) == len(theirs), path
            for index, item in enumerate(theirs):
                compare(ours[index], item, f"{path}[{index}]")

    compare(answer, spelled_out, "$")


async def test_each_answer_has_the_fields_of_the_official_models(local_stack: LocalStack) -> None:
    ours = rest(local_stack)
    name = f"oracle-{uuid.uuid4().hex}"
    payload = {
        "config": CONFIG,
        "labels": {"a": 1},
        "environment_name": "production",
        "region": "us",
        "autoscaling_settings": {"min_replica": 1},
        "request_backpressure_settings": {"policy": "QUEUE_ON_FULL"},
    }
    assert_same_fields((await ours.prepare(payload, name=name, dry_run=True)).body, api.PrepareModelUploadResponse)
    assert_same_fields((await ours.prepare(payload, name=name)).body, api.PrepareModelUploadResponse)
    made = (await ours.push(name, payload)).body
    assert_same_fields(made, api.CreatedModelDeployment)
    model_id, deployment_id = made["model"]["id"], made["deployment"]["id"]
    local_stack.set_status(deployment_id, "ACTIVE")
    assert_same_fields((await ours.deploy(model_id)).body, api.CreatedModelDeployment)
    answers = {
        "/v1/models": api.Models,
        f"/v1/models/{model_id}": api.Model,
        f"/v1/models/{model_id}/deployments": api.Deployments,
        f"/v1/models/{model_id}/deployments/{deployment_id}": api.Deployment,
        f"/v1/models/{model_id}/deployments/{deployment_id}/logs": api.GetLogsResponse,
        "/v1/teams": api.Teams,
    }
    for path, kind in answers.items():
        answer = (await ours.call("GET", path)).body
        assert_same_fields(answer, kind)
        assert answer != {"logs": []}


async def test_the_official_client_pushes_to_the_stack(local_stack: LocalStack) -> None:
    name = f"official-{uuid.uuid4().hex}"
    async with AsyncManagementClient(api_key=local_stack.api_key, base_url_override=local_stack.base_url) as client:
        (team,) = (await client.api.get_teams(params=api.GetTeamsParams(name="research"))).teams
        deployment = api.DeploymentArchivePayload(config=CONFIG, labels={"by": "official"})
        prepared = await client.api.post_prepare_model_upload(
            request=api.PrepareModelUploadRequest(name=name, team_id=team.id, deployment=deployment)
        )
        assert prepared.creds is not None
        async with s3_client(local_stack, prepared.creds.model_dump()) as s3:
            await s3.put_object(Bucket=prepared.s3_bucket, Key=prepared.s3_key, Body=make_tar())
        made = await client.api.post_teams_models(
            team_id=team.id,
            request=api.CreateModelRequest(source=api.ModelArchiveSource(name=name, deployment=deployment, s3_key=prepared.s3_key)),
        )
        assert made.deployment.labels == {"by": "official"}
        models = await client.api.get_models(params=api.GetModelsParams(name=name))
        assert [model.id for model in models.models] == [made.model.id]
        in_team = await client.api.get_teams_models(team_id=team.id)
        assert made.model.id in {model.id for model in in_team.models}
        deployments = await client.api.get_models_deployments(model_id=made.model.id)
        assert [deployment.id for deployment in deployments.deployments] == [made.deployment.id]
        logs = await client.api.get_models_deployments_logs(model_id=made.model.id, deployment_id=made.deployment.id)
        assert logs.logs[-1].message.endswith("is BUILDING")
