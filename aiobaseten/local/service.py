"""The control plane on aiohttp.web: its routes, who may call them, and how it says no."""

from __future__ import annotations

import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Any, TypeVar

from aiohttp import web

from aiobaseten._convert import Mismatch, from_json
from aiobaseten.errors import Problem
from aiobaseten.local import archive, views
from aiobaseten.local.object_store import REGION, LocalStackError, ObjectStore
from aiobaseten.local.store import ExistingModel, NewModel, Refusal, Store, StoredModel, Target, invalid
from aiobaseten.models import (
    DeploymentArchiveSource,
    ModelArchiveSource,
    PrepareModelUploadRequest,
    PrepareModelUploadResponse,
)
from aiobaseten.rules import Payload, find_problems

logger = logging.getLogger("aiobaseten.local")

MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_LOG_WINDOW_MS = 7 * 24 * 60 * 60 * 1000
DEFAULT_LOG_WINDOW_MS = 30 * 60 * 1000
MAX_LOG_LINES = 1000
DEFAULT_LOG_LINES = 500
REQUEST_ID_HEADER = "X-Request-Id"

_AUTHORIZATION = re.compile(r"(?:Bearer|Api-Key) +(\S+)", re.IGNORECASE)
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

P = TypeVar("P", bound=Payload)


class Service:
    """The control plane of one stack.

    :param put_only: credentials allow no more than s3:PutObject
    :param may_read: they allow s3:GetObject too
    """

    def __init__(self, store: Store, objects: ObjectStore, *, api_key: str, put_only: bool, may_read: bool = False) -> None:
        self._store = store
        self._objects = objects
        self._api_key = api_key
        self._put_only = put_only
        self._may_read = may_read

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._answer], client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.post("/v1/prepare_model_upload", self._prepare),
                web.post("/v1/models", self._create_model),
                web.get("/v1/models", self._list_models),
                web.post("/v1/teams/{team_id}/models", self._create_model),
                web.get("/v1/teams/{team_id}/models", self._list_models),
                web.get("/v1/teams", self._list_teams),
                web.get("/v1/models/{model_id}", self._get_model),
                web.post("/v1/models/{model_id}/deployments", self._create_deployment),
                web.get("/v1/models/{model_id}/deployments", self._list_deployments),
                web.get("/v1/models/{model_id}/deployments/{deployment_id}", self._get_deployment),
                web.get("/v1/models/{model_id}/deployments/{deployment_id}/logs", self._get_logs),
            ]
        )
        return app

    @web.middleware
    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            self._authorize(request)
            response = await handler(request)
        except Refusal as refusal:
            response = _error(refusal.status, refusal.message)
        except web.HTTPException as error:
            response = _error(error.status, f"{request.method} {request.path}: {error.reason}")
        except LocalStackError as error:
            response = _error(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except Exception:
            logger.exception("The local control plane failed in %s %s", request.method, request.path)
            response = _error(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; its traceback is in the log of the local stack")
        response.headers[REQUEST_ID_HEADER] = secrets.token_hex(16)
        return response

    def _authorize(self, request: web.Request) -> None:
        given = _AUTHORIZATION.fullmatch(request.headers.get("Authorization", ""))
        if given is None:
            message = "the header Authorization must be 'Bearer KEY' or 'Api-Key KEY'"
        elif not hmac.compare_digest(given[1].encode(errors="surrogateescape"), self._api_key.encode()):
            message = "the API key is not valid"
        else:
            return
        raise Refusal(HTTPStatus.UNAUTHORIZED, message)

    async def _prepare(self, request: web.Request) -> web.Response:
        payload = _read(await _json_body(request), PrepareModelUploadRequest, at="$")
        prepared = self._store.prepare(payload)
        response = PrepareModelUploadResponse()
        if prepared is not None:
            response = PrepareModelUploadResponse(
                creds=await self._objects.scoped_credentials(prepared.key, put_only=self._put_only, may_read=self._may_read),
                s3_bucket=self._objects.bucket,
                s3_key=prepared.key,
                s3_region=REGION,
            )
        return web.json_response(views.prepared_json(response))

    async def _create_model(self, request: web.Request) -> web.Response:
        team = self._store.team(request.match_info.get("team_id"))
        source = _read(_source(await _json_body(request)), ModelArchiveSource, at="$.source")
        return await self._commit(NewModel(team.id, source.name), source)

    async def _create_deployment(self, request: web.Request) -> web.Response:
        model = self._model(request)
        source = _read(_source(await _json_body(request)), DeploymentArchiveSource, at="$.source")
        return await self._commit(ExistingModel(model.id), source)

    async def _commit(self, target: Target, source: ModelArchiveSource | DeploymentArchiveSource) -> web.Response:
        prepared = self._store.check_commit(target, source)
        if prepared and (problem := await archive.find_problem(self._objects, prepared.key)):
            raise invalid([Problem("$.source.s3_key", problem)])
        deployment = self._store.commit(target, source)
        return web.json_response(
            {
                "model": views.model_json(deployment.model),
                "deployment": views.deployment_json(deployment, self._store),
            }
        )

    async def _list_models(self, request: web.Request) -> web.Response:
        team_id = request.match_info.get("team_id")
        models: Iterable[StoredModel] = self._store.models
        if team_id is not None:
            team = self._store.team(team_id)
            models = [model for model in models if model.team is team]
        return web.json_response({"models": [views.model_json(model) for model in _named(request, models)]})

    async def _list_teams(self, request: web.Request) -> web.Response:
        return web.json_response({"teams": [views.team_json(team) for team in _named(request, self._store.teams)]})

    async def _get_model(self, request: web.Request) -> web.Response:
        return web.json_response(views.model_json(self._model(request)))

    async def _list_deployments(self, request: web.Request) -> web.Response:
        deployments = _named(request, self._model(request).deployments)
        return web.json_response({"deployments": [views.deployment_json(each, self._store) for each in deployments]})

    async def _get_deployment(self, request: web.Request) -> web.Response:
        deployment = self._store.deployment(request.match_info["model_id"], request.match_info["deployment_id"])
        return web.json_response(views.deployment_json(deployment, self._store))

    async def _get_logs(self, request: web.Request) -> web.Response:
        deployment = self._store.deployment(request.match_info["model_id"], request.match_info["deployment_id"])
        end_ms = _whole_number(request, "end_epoch_millis", round(time.time() * 1000))
        start_ms = _whole_number(request, "start_epoch_millis", end_ms - DEFAULT_LOG_WINDOW_MS)
        limit = _whole_number(request, "limit", DEFAULT_LOG_LINES)
        direction = request.query.get("direction", "desc")
        min_level = request.query.get("min_level", _LOG_LEVELS[0])
        problems: list[Problem] = []
        if not 0 <= end_ms - start_ms <= MAX_LOG_WINDOW_MS:
            problems.append(Problem("start_epoch_millis", "must not be after end_epoch_millis, nor more than 7 days before it"))
        if not 1 <= limit <= MAX_LOG_LINES:
            problems.append(Problem("limit", f"must be from 1 to {MAX_LOG_LINES}"))
        if direction not in ("asc", "desc"):
            problems.append(Problem("direction", "must be asc or desc"))
        if min_level not in _LOG_LEVELS:
            problems.append(Problem("min_level", f"must be one of {', '.join(_LOG_LEVELS)}"))
        if problems:
            raise invalid(problems)
        lines = [
            line
            for line in views.log_lines(deployment, self._store)
            if start_ms <= int(line["timestamp"]) // 1_000_000 <= end_ms
            and _LOG_LEVELS.index(line["level"]) >= _LOG_LEVELS.index(min_level)
        ]
        if direction == "desc":
            lines.reverse()
        return web.json_response({"logs": lines[:limit]})

    def _model(self, request: web.Request) -> StoredModel:
        return self._store.model(request.match_info["model_id"])


async def _json_body(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise invalid([Problem("$", f"the body is not JSON: {error}")]) from error


def _source(body: Any) -> Any:
    try:
        return body["source"]
    except (KeyError, TypeError, IndexError):
        raise invalid([Problem("$.source", "is missing")]) from None


def _read(data: Any, kind: type[P], *, at: str) -> P:
    try:
        payload = from_json(data, kind)
    except Mismatch as mismatch:
        problems = mismatch.problems
    else:
        problems = find_problems(payload)
        if not problems:
            return payload
    raise invalid(Problem(at + problem.path.removeprefix("$"), problem.rule) for problem in problems)


N = TypeVar("N")


def _named(request: web.Request, things: Iterable[N]) -> list[N]:
    """The things whose name is exactly the one asked for; all of them when none is."""
    name = request.query.get("name")
    return [thing for thing in things if name is None or getattr(thing, "name", None) == name]


def _whole_number(request: web.Request, parameter: str, default: int) -> int:
    text = request.query.get(parameter)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise invalid([Problem(parameter, f"must be a whole number, not {text[:40]!r}")]) from None


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"message": message}, status=status)
