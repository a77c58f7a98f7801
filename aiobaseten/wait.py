"""Waiting for a deployment to come up."""

from __future__ import annotations

from aiobaseten.api.endpoints import Endpoints
from aiobaseten.errors import DeadlineExceeded, DeploymentFailed, NotFoundError
from aiobaseten.events import Emitter, StatusChanged
from aiobaseten.models import Deployment
from aiobaseten.retry import Clock, poll_intervals_s


async def wait_until_active(
    api: Endpoints,
    model_id: str,
    deployment_id: str,
    *,
    timeout_s: float,
    not_found_grace_s: float,
    clock: Clock,
    emit: Emitter,
) -> Deployment:
    """Look at a deployment until it is up. A new one may answer 404 for `not_found_grace_s`."""
    started = clock.monotonic()
    status: str | None = None
    for interval_s in poll_intervals_s():
        waited_s = clock.monotonic() - started
        try:
            deployment = await api.get_deployment(model_id, deployment_id)
        except NotFoundError:
            if waited_s >= not_found_grace_s:
                raise
        else:
            if deployment.status != status:
                status = deployment.status
                emit(StatusChanged(model_id=model_id, deployment_id=deployment_id, status=status))
            if deployment.has_failed:
                raise DeploymentFailed(
                    f"deployment {deployment_id} of model {model_id} ended as {status}",
                    model_id=model_id,
                    deployment_id=deployment_id,
                    status=status,
                )
            if deployment.is_up:
                return deployment
        left_s = started + timeout_s - clock.monotonic()
        if left_s <= 0:
            break
        await clock.sleep(min(interval_s, left_s))
    raise DeadlineExceeded(
        f"deployment {deployment_id} of model {model_id} is not active after {timeout_s:g} s;"
        f" its last status: {status or 'not found yet'}"
    )
