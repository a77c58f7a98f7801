"""Baseten's REST calls, one method each, with the retries that are safe.

Reading and preparing are repeated after whatever may pass by itself. A commit makes something, and the service knows no idempotency
key: it is repeated only when it certainly did nothing. What became of a commit whose outcome is unknown, the push has to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs

from aiobaseten._convert import Mismatch, from_json, to_json
from aiobaseten._redaction import keep_secret
from aiobaseten.api.http import BeforeSend, ControlPlane
from aiobaseten.errors import Problem, RateLimited, TransportError
from aiobaseten.models import (
    CreatedModelDeployment,
    Deployment,
    DeploymentArchiveSource,
    Model,
    ModelArchiveSource,
    PrepareModelUploadRequest,
    PrepareModelUploadResponse,
    Team,
)
from aiobaseten.retry import OnRetry, retrying

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class _Models:
    models: tuple[Model, ...]


@attrs.frozen(kw_only=True)
class _Deployments:
    deployments: tuple[Deployment, ...]


@attrs.frozen(kw_only=True)
class _Teams:
    teams: tuple[Team, ...]


class Endpoints:
    """The calls of the control plane.

    A payload is sent as it is: that it breaks no rule, whoever calls has had `rules` check, once for all calls that carry it. Each
    raises `InvalidPush` for what cannot be sent at all, `ApiError` for an answer that is an error or cannot be read, and
    `TransportError` when no answer came. `on_retry` is told the error, the number of tries made and the seconds until the next;
    `before_send` is awaited before each try of a commit, when nothing but the network stands before it any more.
    """

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane

    async def prepare_model_upload(
        self, request: PrepareModelUploadRequest, *, on_retry: OnRetry | None = None
    ) -> PrepareModelUploadResponse:
        """Have the service check a push, and get the right to upload its archive. All None: no upload is needed."""
        body = to_json(request)
        return await self._repeat("POST", "/v1/prepare_model_upload", _read_prepared, body=body, on_retry=on_retry)

    async def create_model(
        self,
        source: ModelArchiveSource,
        *,
        team_id: str | None = None,
        before_send: BeforeSend | None = None,
        on_retry: OnRetry | None = None,
    ) -> CreatedModelDeployment:
        """Commit a new model, in a team or else in the organization's default team."""
        if team_id is None:
            return await self._commit("/v1/models", source, None, before_send, on_retry)
        return await self._commit("/v1/teams/{team_id}/models", source, {"team_id": team_id}, before_send, on_retry)

    async def create_deployment(
        self,
        model_id: str,
        source: DeploymentArchiveSource,
        *,
        before_send: BeforeSend | None = None,
        on_retry: OnRetry | None = None,
    ) -> CreatedModelDeployment:
        """Commit a new deployment of an existing model."""
        return await self._commit("/v1/models/{model_id}/deployments", source, {"model_id": model_id}, before_send, on_retry)

    async def list_models(
        self, *, name: str | None = None, team_id: str | None = None, on_retry: OnRetry | None = None
    ) -> tuple[Model, ...]:
        """The models that the key may see, of one team or of all; with `name`, those of exactly that name."""
        route, path_params = "/v1/models", None
        if team_id is not None:
            route, path_params = "/v1/teams/{team_id}/models", {"team_id": team_id}
        found = await self._repeat("GET", route, _read_models, path_params=path_params, query={"name": name}, on_retry=on_retry)
        return found.models

    async def get_model(self, model_id: str, *, on_retry: OnRetry | None = None) -> Model:
        """:raises NotFoundError: if there is none of that id"""
        return await self._repeat(
            "GET", "/v1/models/{model_id}", _read_model, path_params={"model_id": model_id}, on_retry=on_retry
        )

    async def list_deployments(
        self, model_id: str, *, name: str | None = None, on_retry: OnRetry | None = None
    ) -> tuple[Deployment, ...]:
        """The deployments of a model; with `name`, the one of exactly that name. New ones may be missing for half a minute."""
        route = "/v1/models/{model_id}/deployments"
        found = await self._repeat(
            "GET", route, _read_deployments, path_params={"model_id": model_id}, query={"name": name}, on_retry=on_retry
        )
        return found.deployments

    async def get_deployment(self, model_id: str, deployment_id: str, *, on_retry: OnRetry | None = None) -> Deployment:
        """:raises NotFoundError: if there is none of that id, or it is so new that the service does not show it yet"""
        return await self._repeat(
            "GET",
            "/v1/models/{model_id}/deployments/{deployment_id}",
            _read_deployment,
            path_params={"model_id": model_id, "deployment_id": deployment_id},
            on_retry=on_retry,
        )

    async def list_teams(self, *, name: str | None = None, on_retry: OnRetry | None = None) -> tuple[Team, ...]:
        """The teams of the organization; with `name`, the one of exactly that name."""
        found = await self._repeat("GET", "/v1/teams", _read_teams, query={"name": name}, on_retry=on_retry)
        return found.teams

    async def _repeat(
        self,
        method: str,
        route: str,
        read: Callable[[Any], T],
        *,
        path_params: Mapping[str, str] | None = None,
        query: Mapping[str, str | None] | None = None,
        body: Any = None,
        on_retry: OnRetry | None,
    ) -> T:
        plane = self._control_plane
        return await retrying(
            lambda: plane.request(method, route, read, path_params=path_params, query=query, body=body),
            options=plane.options.retry,
            clock=plane.clock,
            on_retry=on_retry,
        )

    async def _commit(
        self,
        route: str,
        source: ModelArchiveSource | DeploymentArchiveSource,
        path_params: Mapping[str, str] | None,
        before_send: BeforeSend | None,
        on_retry: OnRetry | None,
    ) -> CreatedModelDeployment:
        plane = self._control_plane
        body = {"source": to_json(source)}
        return await retrying(
            lambda: plane.request("POST", route, _read_created, path_params=path_params, body=body, before_send=before_send),
            options=plane.options.retry,
            clock=plane.clock,
            may_repeat=_certainly_did_nothing,
            on_retry=on_retry,
        )


def _certainly_did_nothing(error: BaseException) -> bool:
    if isinstance(error, TransportError):
        return error.retryable and not error.request_sent
    return isinstance(error, RateLimited)


def _reader(kind: type[T]) -> Callable[[Any], T]:
    return lambda data: from_json(data, kind)


def _read_prepared(data: Any) -> PrepareModelUploadResponse:
    """Read an answer to prepare, which gives all that an upload needs or nothing. A region alone is nothing.

    Something else in place of all of it, an error for instance, is not an answer that no upload is needed.
    """
    response = from_json(data, PrepareModelUploadResponse)
    if data and not _PREPARED_FIELDS & data.keys():
        raise Mismatch([Problem("$", f"has none of {', '.join(sorted(_PREPARED_FIELDS))}")])
    creds = response.creds
    if creds is None and not response.s3_bucket and not response.s3_key:
        return response
    needed = {
        "$.creds": creds,
        "$.creds.aws_access_key_id": creds is None or creds.aws_access_key_id,
        "$.creds.aws_secret_access_key": creds is None or creds.aws_secret_access_key,
        "$.creds.aws_session_token": creds is None or creds.aws_session_token,
        "$.s3_bucket": response.s3_bucket,
        "$.s3_key": response.s3_key,
        "$.s3_region": response.s3_region,
    }
    if missing := [Problem(path, "is missing beside the rest of an upload target") for path, value in needed.items() if not value]:
        raise Mismatch(missing)
    assert creds is not None
    keep_secret(creds, *attrs.astuple(creds))
    return response


_PREPARED_FIELDS = {field.name for field in attrs.fields(PrepareModelUploadResponse)}
_read_models = _reader(_Models)
_read_model = _reader(Model)
_read_deployments = _reader(_Deployments)
_read_deployment = _reader(Deployment)
_read_teams = _reader(_Teams)
_read_created = _reader(CreatedModelDeployment)
