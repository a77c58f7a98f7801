"""One push: prepare, upload, commit.

The source is opened and checked before anything is sent. A name is looked up: one that exists gets a new deployment. Prepare
gives the right to upload to one key; the upload renews it by preparing again. The commit is sent once; if its answer is lost,
the deployment is looked for by the push's id, and never made a second time.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Literal

import attrs

from aiobaseten import rules
from aiobaseten.api.endpoints import Endpoints
from aiobaseten.commit import PUSH_ID_LABEL, Committer
from aiobaseten.errors import ApiError, InvalidPush, Problem
from aiobaseten.events import Emitter, Prepared, PushFailed, PushStarted, retry_reporter
from aiobaseten.models import Deployment, DeploymentArchivePayload, Model, PrepareModelUploadRequest, UploadTarget
from aiobaseten.options import Options
from aiobaseten.retry import Clock, OnRetry
from aiobaseten.sources import Ignored, Source, SourceLike, model_name_in, open_source
from aiobaseten.upload import UploadEngine, UploadReceipt


def _describe(source: SourceLike) -> str:
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    return repr(source)


@attrs.frozen(kw_only=True)
class Push:
    """What to push, and where to.

    :param source: a model directory, an archive file (tar, plain or gzip), the bytes of an archive, or an async iterator of them
    :param name: of the model; left out, ``model_name`` in config.yaml. A model that exists gets a new deployment
    :param model_id: of an existing model, in place of a name
    :param team_id: of the team that owns a named model; left out, the only team with a model of that name, else the default team
    :param deployment: the deployment's settings. Its `config` may be None, or the whole be left out, if the source holds a
        config.yaml at its root; a stream's must be given
    :param existing: what to do about a named model that exists: ``"deploy"`` to it, or ``"error"``
    :param disable_archive_download: for a new model only: its archives cannot be downloaded later
    :param symlinks: links in a model directory: ``"store"`` keeps those that stay inside it and refuses others, ``"follow"``
        archives what they point to
    """

    source: SourceLike = attrs.field(kw_only=False, repr=_describe)
    name: str | None = None
    model_id: str | None = None
    team_id: str | None = None
    deployment: DeploymentArchivePayload | None = None
    existing: Literal["deploy", "error"] = "deploy"
    disable_archive_download: bool = False
    symlinks: Literal["store", "follow"] = "store"

    @classmethod
    def from_directory(
        cls,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        model_id: str | None = None,
        team_id: str | None = None,
        existing: Literal["deploy", "error"] = "deploy",
        disable_archive_download: bool = False,
        symlinks: Literal["store", "follow"] = "store",
        **deployment: Any,
    ) -> Push:
        """A push of a model directory, with the settings of its deployment as plain arguments.

        :param deployment: fields of `DeploymentArchivePayload`, such as ``environment_name``, ``deployment_name``, ``labels`` or
            ``is_development``
        :raises InvalidPush: for an argument that is none of them
        """
        known = {field.name for field in attrs.fields(DeploymentArchivePayload)}
        if unknown := sorted(deployment.keys() - known):
            raise InvalidPush(
                problems=[
                    Problem(f"$.deployment.{field}", f"is not a field; there are {', '.join(sorted(known))}") for field in unknown
                ]
            )
        return cls(
            path,
            name=name,
            model_id=model_id,
            team_id=team_id,
            deployment=DeploymentArchivePayload(**deployment),
            existing=existing,
            disable_archive_download=disable_archive_download,
            symlinks=symlinks,
        )


@attrs.frozen(kw_only=True)
class PushResult:
    """A push that became a deployment.

    :param push_id: the value of the deployment's label ``aiobaseten-push-id``
    :param upload: None for a model that needs no archive
    :param ignored: what the model directory holds and the archive does not
    """

    push_id: str
    model: Model
    deployment: Deployment
    upload: UploadReceipt | None
    ignored: tuple[Ignored, ...] = attrs.field(default=(), repr=False)


@attrs.frozen(kw_only=True)
class CheckResult:
    """A push that the service would take.

    :param model_id: of the model that would get a new deployment; None where a new model would be made
    :param size_bytes: of the archive; None for a stream
    :param ignored: what the model directory holds and the archive would not
    """

    name: str | None
    model_id: str | None
    team_id: str | None
    deployment: DeploymentArchivePayload
    size_bytes: int | None
    ignored: tuple[Ignored, ...] = attrs.field(default=(), repr=False)


class Pusher:
    """Carries pushes out over one control plane and one upload engine."""

    def __init__(self, api: Endpoints, engine: UploadEngine, options: Options, clock: Clock, emit: Emitter) -> None:
        self._api = api
        self._engine = engine
        self._options = options
        self._clock = clock
        self._emit = emit
        self._committer = Committer(api, options, clock, emit)

    async def push(self, push: Push) -> PushResult:
        """Carry out a push to the end of its commit."""
        push_id = _push_id(_deployment_of(push))
        try:
            async with await open_source(push.source, symlinks=push.symlinks) as source:
                try:
                    return await self._push(push, push_id, source)
                except ApiError as conflict:
                    if conflict.status != HTTPStatus.CONFLICT or push.model_id is not None or not source.seekable:
                        raise
                    # Another push has made the model meanwhile, and this one made nothing: it finds the model now.
                    return await self._push(push, push_id, source)
        except BaseException as error:
            self._emit(PushFailed(push_id=push_id, error=str(error) or type(error).__name__))
            raise

    async def check(self, push: Push) -> CheckResult:
        """Do all of a push that sends no bytes of the archive and makes nothing."""
        push_id = _push_id(_deployment_of(push))
        async with await open_source(push.source, symlinks=push.symlinks) as source:
            request = attrs.evolve(await self._ready(push, push_id, source), dry_run=True)
            await self._prepare(request, push_id)
            return CheckResult(
                name=request.name,
                model_id=request.model_id,
                team_id=request.team_id,
                deployment=request.deployment,
                size_bytes=source.size_bytes,
                ignored=source.ignored,
            )

    async def _push(self, push: Push, push_id: str, source: Source) -> PushResult:
        request = await self._ready(push, push_id, source)
        self._emit(
            PushStarted(
                push_id=push_id,
                name=push.name or model_name_in(request.deployment.config) or source.label,
                size_bytes=source.size_bytes,
            )
        )
        target = await self._prepare(request, push_id)
        self._emit(Prepared(push_id=push_id, bucket=target.bucket if target else None, key=target.key if target else None))
        receipt = None
        if target is not None:
            receipt = await self._engine.upload(
                target, source, emit=self._emit, push_id=push_id, renew=lambda: self._renew(request, push_id)
            )
        created = await self._committer.commit(
            push_id, request, receipt.key if receipt else None, disable_archive_download=push.disable_archive_download
        )
        return PushResult(
            push_id=push_id,
            model=created.model,
            deployment=created.deployment,
            upload=receipt,
            ignored=source.ignored,
        )

    async def _ready(self, push: Push, push_id: str, source: Source) -> PrepareModelUploadRequest:
        """The prepare request of a push, with every rule checked and its model looked up."""
        deployment = await self._with_config(_deployment_of(push), source)
        name = push.name
        if name is None and push.model_id is None:
            name = model_name_in(deployment.config)
        request = PrepareModelUploadRequest(deployment=deployment, name=name, model_id=push.model_id, team_id=push.team_id)
        if problems := [*_push_problems(push), *rules.find_problems(request)]:
            raise InvalidPush(problems=problems)
        if name is not None:
            request = await self._routed(push, push_id, request, name)
        return self._tagged(push_id, request)

    async def _with_config(self, deployment: DeploymentArchivePayload, source: Source) -> DeploymentArchivePayload:
        if deployment.config is not None:
            return deployment
        found = await source.read_config()
        raw_config = deployment.raw_config
        if raw_config is None and len(found.raw.encode()) <= rules.MAX_RAW_CONFIG_BYTES:
            raw_config = found.raw
        return attrs.evolve(deployment, config=found.config, raw_config=raw_config)

    async def _routed(self, push: Push, push_id: str, request: PrepareModelUploadRequest, name: str) -> PrepareModelUploadRequest:
        """Turn a push to a name that exists into one to that model."""
        model = await self._find_model(push_id, name, push.team_id)
        if model is None:
            return request
        if push.existing == "error":
            raise InvalidPush(problems=[Problem("$.name", f"the model {name!r} exists already, with the id {model.id}")])
        if push.disable_archive_download:
            raise InvalidPush(problems=[Problem("$.disable_archive_download", _only_for_new(f"the model {name!r} exists"))])
        return attrs.evolve(request, name=None, team_id=None, model_id=model.id)

    async def _find_model(self, push_id: str, name: str, team_id: str | None) -> Model | None:
        """The model of that name in the team, or in the default team; the only one there is, where no team is named."""
        found = await self._api.list_models(name=name, team_id=team_id, on_retry=self._on_retry(push_id, "list_models"))
        models = [model for model in found if model.name == name]
        if len(models) <= 1:
            return models[0] if models else None
        teams = await self._api.list_teams(on_retry=self._on_retry(push_id, "list_teams"))
        default_teams = {team.name for team in teams if team.default}
        in_default_team = [model for model in models if model.team_name in default_teams]
        if len(in_default_team) == 1:
            return in_default_team[0]
        owners = ", ".join(sorted(model.team_name for model in models))
        raise InvalidPush(problems=[Problem("$.team_id", f"is needed: the teams {owners} each have a model named {name!r}")])

    def _tagged(self, push_id: str, request: PrepareModelUploadRequest) -> PrepareModelUploadRequest:
        if not self._options.tag_pushes:
            return request
        labels = {**(request.deployment.labels or {}), PUSH_ID_LABEL: push_id}
        return attrs.evolve(request, deployment=attrs.evolve(request.deployment, labels=labels))

    async def _prepare(self, request: PrepareModelUploadRequest, push_id: str) -> UploadTarget | None:
        response = await self._api.prepare_model_upload(request, on_retry=self._on_retry(push_id, "prepare_model_upload"))
        return response.target

    async def _renew(self, request: PrepareModelUploadRequest, push_id: str) -> UploadTarget:
        target = await self._prepare(request, push_id)
        if target is None:
            raise ApiError("gave no upload target when asked to renew one", method="POST", path="/v1/prepare_model_upload")
        return target

    def _on_retry(self, push_id: str, operation: str) -> OnRetry:
        return retry_reporter(self._emit, push_id, operation)


def _deployment_of(push: Push) -> DeploymentArchivePayload:
    deployment = push.deployment
    if deployment is None:
        return DeploymentArchivePayload()
    if not isinstance(deployment, DeploymentArchivePayload):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without type checks
        problem = f"must be a DeploymentArchivePayload, not a {type(deployment).__name__}"
        raise InvalidPush(problems=[Problem("$.deployment", problem)])
    return deployment


def _push_id(deployment: DeploymentArchivePayload) -> str:
    """The id that the deployment's own labels give it, else a new one."""
    given = deployment.labels.get(PUSH_ID_LABEL) if isinstance(deployment.labels, Mapping) else None
    return given if isinstance(given, str) and given else uuid.uuid4().hex


def _push_problems(push: Push) -> Iterator[Problem]:
    if push.existing not in ("deploy", "error"):
        yield Problem("$.existing", f"must be 'deploy' or 'error', not {push.existing!r}")
    if not isinstance(push.disable_archive_download, bool):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without type checks
        yield Problem("$.disable_archive_download", "must be true or false")
    elif push.disable_archive_download and push.model_id is not None:
        yield Problem("$.disable_archive_download", _only_for_new("model_id names an existing model"))


def _only_for_new(reason: str) -> str:
    return f"is fixed when a model is made, and {reason}"
