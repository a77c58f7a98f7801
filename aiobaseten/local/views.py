"""The control plane's answers as JSON: every field of the API's newest generation, null where there is nothing to say."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from aiobaseten.local.store import ACTIVE, PRODUCTION, STATUSES_BY_AGE_S, Store, StoredDeployment, StoredModel
from aiobaseten.models import DeploymentArchivePayload, PrepareModelUploadResponse, Team

DEFAULT_INSTANCE_TYPE = "1x2"
DEFAULT_AUTOSCALING = {
    "min_replica": 0,
    "max_replica": 1,
    "autoscaling_window": 60,
    "scale_down_delay": 900,
    "concurrency_target": 1,
    "target_utilization_percentage": 70,
    "target_in_flight_tokens": None,
    "max_scale_down_rate": None,
}


def team_json(team: Team) -> dict[str, Any]:
    return {"id": team.id, "name": team.name, "default": team.default, "created_at": _time(team.created_at)}


def model_json(model: StoredModel) -> dict[str, Any]:
    production_id = model.environments[PRODUCTION]
    shown = next((each for each in model.deployments if each.id == production_id), model.deployments[-1])
    return {
        "id": model.id,
        "created_at": _time(model.created_at),
        "name": model.name,
        "deployments_count": len(model.deployments),
        "production_deployment_id": production_id,
        "development_deployment_id": model.development.id if model.development else None,
        "instance_type_name": _instance_type(shown.payload),
        "team_name": model.team.name,
    }


def deployment_json(deployment: StoredDeployment, store: Store) -> dict[str, Any]:
    payload = deployment.payload
    status = store.status(deployment)
    is_active = status == ACTIVE
    serves = [name for name, deployment_id in deployment.model.environments.items() if deployment_id == deployment.id]
    return {
        "id": deployment.id,
        "created_at": _time(deployment.created_at),
        "name": deployment.name,
        "model_id": deployment.model.id,
        "is_production": PRODUCTION in serves,
        "is_development": deployment.is_development,
        "status": status,
        "active_replica_count": 1 if is_active else 0,
        "autoscaling_settings": {**DEFAULT_AUTOSCALING, **(payload.autoscaling_settings or {})} if is_active else None,
        "instance_type_name": _instance_type(payload),
        "environment": serves[0] if serves else None,
        "labels": payload.labels,
        "region": {"slug": payload.region, "display_name": payload.region} if payload.region else None,
        "request_backpressure_settings": {"policy": (payload.request_backpressure_settings or {}).get("policy")},
    }


def prepared_json(response: PrepareModelUploadResponse) -> dict[str, Any]:
    creds = response.creds
    return {
        "creds": creds
        and {
            "aws_access_key_id": creds.aws_access_key_id,
            "aws_secret_access_key": creds.aws_secret_access_key,
            "aws_session_token": creds.aws_session_token,
        },
        "s3_bucket": response.s3_bucket,
        "s3_key": response.s3_key,
        "s3_region": response.s3_region,
    }


def log_lines(deployment: StoredDeployment, store: Store) -> list[dict[str, Any]]:
    """One line for each status that the deployment has reached, oldest first."""
    created_ns = round(deployment.created_at.timestamp() * 1000) * 1_000_000
    return [
        {
            "timestamp": str(created_ns + round(since_s * 1e9)),
            "message": f"Deployment {deployment.name} is {status}",
            "replica": None,
            "request_id": None,
            "level": "INFO",
        }
        for since_s, status in STATUSES_BY_AGE_S
        if since_s <= store.age_s(deployment)
    ]


def _instance_type(payload: DeploymentArchivePayload) -> str:
    match payload.config:
        case _ if payload.instance_type_id:
            return payload.instance_type_id
        case {"resources": {"instance_type": str(named)}}:
            return named
        case _:
            return DEFAULT_INSTANCE_TYPE


def _time(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
