"""Waiting for a deployment to come up."""

from __future__ import annotations

import anyio

from aiobaseten.api.endpoints import Endpoints
from aiobaseten.errors import BasetenError, ConfigurationError, DeadlineExceeded, DeploymentFailed, NotFoundError
from aiobaseten.events import Emitter, StatusChanged
from aiobaseten.models import Deployment
from aiobaseten.options import is_finite_number
from aiobaseten.retry import Clock, poll_intervals_s

MIN_LOOK_S = 1.0
"""The last look has this long, however little of the time limit is left."""


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
    """Look at a deployment until it is up. A new one may answer 404 for `not_found_grace_s`; passing failures mean: look again."""
    check_timeout_s("timeout_s", timeout_s)
    started = clock.monotonic()
    last_seen = "not found yet"
    for interval_s in poll_intervals_s():
        left_s = max(0.0, started + timeout_s - clock.monotonic())
        with anyio.move_on_after(max(left_s, MIN_LOOK_S)):
            try:
                deployment = await api.get_deployment(model_id, deployment_id)
            except NotFoundError:
                if clock.monotonic() - started >= not_found_grace_s:
                    raise
            except BasetenError as error:
                if not error.retryable:
                    raise
                last_seen = f"not to be had: {error}"
            else:
                if deployment.status != last_seen:
                    last_seen = deployment.status
                    emit(StatusChanged(model_id=model_id, deployment_id=deployment_id, status=last_seen))
                if deployment.has_failed:
                    raise DeploymentFailed(
                        f"deployment {deployment_id} of model {model_id} ended as {last_seen}",
                        model_id=model_id,
                        deployment_id=deployment_id,
                        status=last_seen,
                    )
                if deployment.is_up:
                    return deployment
        left_s = started + timeout_s - clock.monotonic()
        if left_s <= 0:
            break
        await clock.sleep(min(interval_s, left_s))
    raise DeadlineExceeded(
        f"deployment {deployment_id} of model {model_id} is not active after {timeout_s:g} s; its last status: {last_seen}"
    )


def check_timeout_s(name: str, timeout_s: object) -> float:
    """Return a time limit that can be one.

    :raises ConfigurationError: if it is not a finite number of at least 0; it calls it `name`
    """
    if not is_finite_number(timeout_s) or timeout_s < 0:
        raise ConfigurationError(f"{name} must be a finite number of at least 0, not {timeout_s!r}")
    return timeout_s
