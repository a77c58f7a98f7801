"""The commit of a push: sent once, and looked for when its answer was lost.

The service knows no idempotency key, so a commit that may have arrived is never sent again. Each push carries an id in its
deployment's labels; by it the deployment is found, if the commit made one. New things may be invisible for a while, so the
search goes on for the whole of `TimeoutOptions.reconcile_s` before it gives up with `CommitUncertain`.
"""

from __future__ import annotations

from aiobaseten.api.endpoints import Endpoints
from aiobaseten.errors import ApiError, BasetenError, CommitUncertain, NotFoundError, ServerError, TransportError
from aiobaseten.events import CommitStarted, Committed, Emitter, Reconciling, retry_reporter
from aiobaseten.models import (
    CreatedModelDeployment,
    Deployment,
    DeploymentArchiveSource,
    ModelArchiveSource,
    PrepareModelUploadRequest,
)
from aiobaseten.options import Options
from aiobaseten.retry import Clock, poll_intervals_s

PUSH_ID_LABEL = "aiobaseten-push-id"


class Committer:
    """Makes deployments, each exactly once."""

    def __init__(self, api: Endpoints, options: Options, clock: Clock, emit: Emitter) -> None:
        self._api = api
        self._options = options
        self._clock = clock
        self._emit = emit

    async def commit(
        self, push_id: str, request: PrepareModelUploadRequest, s3_key: str | None, *, disable_archive_download: bool
    ) -> CreatedModelDeployment:
        """Make the deployment that `request` prepared.

        :raises CommitUncertain: when it was sent, and neither an answer nor the deployment could be found
        :raises ApiError: when the service refused it
        :raises TransportError: when it certainly was not sent
        """
        self._emit(CommitStarted(push_id=push_id, model_id=request.model_id, name=request.name))
        try:
            created = await self._send(push_id, request, s3_key, disable_archive_download=disable_archive_download)
        except BasetenError as error:
            if not _may_have_acted(error):
                raise
            created = await self._reconcile(push_id, request, error)
        self._emit(Committed(push_id=push_id, model_id=created.model.id, deployment_id=created.deployment.id))
        return created

    async def _send(
        self, push_id: str, request: PrepareModelUploadRequest, s3_key: str | None, *, disable_archive_download: bool
    ) -> CreatedModelDeployment:
        if request.model_id is not None:
            return await self._api.create_deployment(
                request.model_id,
                DeploymentArchiveSource(deployment=request.deployment, s3_key=s3_key),
                on_retry=retry_reporter(self._emit, push_id, "create_deployment"),
            )
        assert request.name is not None
        return await self._api.create_model(
            ModelArchiveSource(
                name=request.name,
                deployment=request.deployment,
                s3_key=s3_key,
                disable_archive_download=disable_archive_download,
            ),
            team_id=request.team_id,
            on_retry=retry_reporter(self._emit, push_id, "create_model"),
        )

    async def _reconcile(self, push_id: str, request: PrepareModelUploadRequest, lost: BasetenError) -> CreatedModelDeployment:
        """Look for the deployment until the window has passed. Not being found yet, and passing failures, mean: look again."""
        self._emit(Reconciling(push_id=push_id, error=str(lost)))
        started = self._clock.monotonic()
        window_s = self._options.timeouts.reconcile_s
        for interval_s in poll_intervals_s():
            try:
                found = await self._find(push_id, request)
            except BasetenError as error:
                if not (error.retryable or isinstance(error, NotFoundError) or _is_unreadable(error)):
                    lost.add_note(f"looking for the deployment failed: {error}")
                    break
                found = None
            if found is not None:
                return found
            left_s = started + window_s - self._clock.monotonic()
            if left_s <= 0:
                break
            await self._clock.sleep(min(interval_s, left_s))
        raise CommitUncertain(
            f"the commit of push {push_id} was sent, its outcome is unknown ({lost}),"
            f" and no deployment of it was found in {self._clock.monotonic() - started:.0f} s",
            push_id=push_id,
        ) from lost

    async def _find(self, push_id: str, request: PrepareModelUploadRequest) -> CreatedModelDeployment | None:
        if request.model_id is not None:
            deployment = await self._own_deployment(push_id, request, request.model_id)
            if deployment is None:
                return None
            return CreatedModelDeployment(model=await self._api.get_model(request.model_id), deployment=deployment)
        for model in await self._api.list_models(name=request.name, team_id=request.team_id):
            if model.name == request.name and (deployment := await self._own_deployment(push_id, request, model.id)):
                return CreatedModelDeployment(model=model, deployment=deployment)
        return None

    async def _own_deployment(self, push_id: str, request: PrepareModelUploadRequest, model_id: str) -> Deployment | None:
        """The push's deployment: by its id, or, without ids, by the name it was given, which is unique within a model."""
        name = request.deployment.deployment_name
        for deployment in await self._api.list_deployments(model_id):
            if self._options.tag_pushes:
                if (deployment.labels or {}).get(PUSH_ID_LABEL) == push_id:
                    return deployment
            elif name and deployment.name == name:
                return deployment
        return None


def _may_have_acted(error: BasetenError) -> bool:
    """Whether the service may have made the deployment although the call failed: no answer, 5xx, or one that cannot be read."""
    if isinstance(error, TransportError):
        return error.request_sent
    return isinstance(error, ServerError) or _is_unreadable(error)


def _is_unreadable(error: BasetenError) -> bool:
    return isinstance(error, ApiError) and error.status is not None and error.status < 300
