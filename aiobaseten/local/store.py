"""The control plane's memory: teams, models, deployments and prepared uploads, and what the service would refuse.

Nothing here waits: each method checks and changes in one go. Rules that need no memory are in `aiobaseten.rules`.
"""

from __future__ import annotations

import itertools
import secrets
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, cast

import attrs

from aiobaseten.errors import Problem
from aiobaseten.models import (
    DeploymentArchivePayload,
    DeploymentArchiveSource,
    ModelArchiveSource,
    PrepareModelUploadRequest,
    Team,
)

PRODUCTION = "production"
ACTIVE = "ACTIVE"
DEVELOPMENT_NAME = "development"
STATUSES_BY_AGE_S = ((0.0, "BUILDING"), (0.4, "DEPLOYING"), (0.8, "LOADING_MODEL"), (1.2, ACTIVE))

_ABSENT = object()
_ID_LENGTH = 8
_ID_LETTERS = string.ascii_lowercase + string.digits


class Refusal(Exception):
    """The service says no: an HTTP status and the message of its body."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def invalid(problems: Iterable[Problem]) -> Refusal:
    """A 400 that names every problem with its JSON path."""
    return Refusal(HTTPStatus.BAD_REQUEST, "; ".join(map(str, problems)))


@attrs.frozen
class NewModel:
    """The target of a push that makes a model."""

    team_id: str
    name: str


@attrs.frozen
class ExistingModel:
    """The target of a push that adds a deployment."""

    model_id: str


Target = NewModel | ExistingModel


@attrs.define(kw_only=True)
class PreparedUpload:
    """A key that prepare gave out, for one target; `deployment_id` is what became of it."""

    key: str
    target: Target
    deployment: DeploymentArchivePayload
    is_development: bool
    deployment_id: str | None = None


@attrs.define(kw_only=True)
class StoredDeployment:
    """One deployment. `committed_at_s` is on the stack's clock, `status` set only where a test decides it."""

    id: str
    name: str
    model: StoredModel
    created_at: datetime
    committed_at_s: float
    payload: DeploymentArchivePayload
    key: str | None
    is_development: bool
    status: str | None = None


@attrs.define(kw_only=True)
class StoredModel:
    """One model. `environments` maps each environment's name to the id of the deployment that serves it."""

    id: str
    name: str
    team: Team
    created_at: datetime
    disable_archive_download: bool
    environments: dict[str, str | None] = attrs.field(factory=lambda: {PRODUCTION: None})
    deployments: list[StoredDeployment] = attrs.field(factory=list["StoredDeployment"])

    @property
    def development(self) -> StoredDeployment | None:
        return next((deployment for deployment in self.deployments if deployment.is_development), None)


class Store:
    """Everything that the control plane knows.

    :param teams: their names; the first is the default team
    :param rekey_on_prepare: each prepare gives a new key; else a repeated one for the same target gives the same
    :param clock: monotonic seconds, by which statuses advance
    """

    def __init__(self, *, teams: Sequence[str], rekey_on_prepare: bool, clock: Callable[[], float]) -> None:
        now = datetime.now(UTC)
        self.teams = [Team(id=_new_id(), name=name, default=index == 0, created_at=now) for index, name in enumerate(teams)]
        self.models: list[StoredModel] = []
        self._rekey_on_prepare = rekey_on_prepare
        self._clock = clock
        self._prepared: dict[str, PreparedUpload] = {}

    def team(self, team_id: str | None) -> Team:
        """A team by its id, or the default one."""
        for team in self.teams:
            if team.id == team_id or (team_id is None and team.default):
                return team
        raise Refusal(HTTPStatus.NOT_FOUND, f"there is no team with the id {team_id!r}")

    def model(self, model_id: str) -> StoredModel:
        for model in self.models:
            if model.id == model_id:
                return model
        raise Refusal(HTTPStatus.NOT_FOUND, f"there is no model with the id {model_id!r}")

    def deployment(self, model_id: str, deployment_id: str) -> StoredDeployment:
        for deployment in self.model(model_id).deployments:
            if deployment.id == deployment_id:
                return deployment
        raise Refusal(HTTPStatus.NOT_FOUND, f"model {model_id!r} has no deployment with the id {deployment_id!r}")

    def find_deployment(self, deployment_id: str) -> StoredDeployment | None:
        """A deployment of any model by its id."""
        deployments = itertools.chain.from_iterable(model.deployments for model in self.models)
        return next((deployment for deployment in deployments if deployment.id == deployment_id), None)

    def age_s(self, deployment: StoredDeployment) -> float:
        """Seconds since the commit, on the stack's clock."""
        return self._clock() - deployment.committed_at_s

    def status(self, deployment: StoredDeployment) -> str:
        if deployment.status is not None:
            return deployment.status
        age_s = self.age_s(deployment)
        return next((status for since_s, status in reversed(STATUSES_BY_AGE_S) if age_s >= since_s), STATUSES_BY_AGE_S[0][1])

    def prepare(self, request: PrepareModelUploadRequest) -> PreparedUpload | None:
        """Check a push and reserve a key for it; None when it needs no upload."""
        if request.model_id is not None:
            target: Target = ExistingModel(request.model_id)
        else:
            target = NewModel(self.team(request.team_id).id, request.name or "")
        is_development = request.is_development or request.deployment.is_development
        self._check_target(target, request.deployment, at="$")
        if request.dry_run or needs_no_archive(request.deployment):
            return None
        prepared = None if self._rekey_on_prepare else self._unused(target)
        if prepared is None:
            prepared = PreparedUpload(
                key=f"{self._team_id(target)}/{secrets.token_hex(16)}/model.tgz",
                target=target,
                deployment=request.deployment,
                is_development=is_development,
            )
            self._prepared[prepared.key] = prepared
        prepared.deployment = request.deployment
        prepared.is_development = is_development
        return prepared

    def check_commit(self, target: Target, source: ModelArchiveSource | DeploymentArchiveSource) -> PreparedUpload | None:
        """Whether a commit may go ahead, as far as it can be told without looking at the archive; None when it needs none."""
        prepared = self._prepared_for(target, source)
        self._check_target(target, source.deployment, at="$.source")
        return prepared

    def commit(self, target: Target, source: ModelArchiveSource | DeploymentArchiveSource) -> StoredDeployment:
        """Make the deployment, and its model where that is new."""
        prepared = self.check_commit(target, source)
        if isinstance(target, ExistingModel):
            model = self.model(target.model_id)
        else:
            model = StoredModel(
                id=_new_id(),
                name=target.name,
                team=self.team(target.team_id),
                created_at=datetime.now(UTC),
                disable_archive_download=isinstance(source, ModelArchiveSource) and source.disable_archive_download,
            )
            self.models.append(model)
        is_development = source.deployment.is_development or (prepared is not None and prepared.is_development)
        deployment = self._deploy(model, source.deployment, prepared.key if prepared else None, is_development=is_development)
        if prepared:
            prepared.deployment_id = deployment.id
        return deployment

    def _deploy(
        self, model: StoredModel, payload: DeploymentArchivePayload, key: str | None, *, is_development: bool
    ) -> StoredDeployment:
        deployment = model.development if is_development else None
        if deployment is None:
            deployment = StoredDeployment(
                id=_new_id(),
                name=payload.deployment_name or (DEVELOPMENT_NAME if is_development else _default_name(model)),
                model=model,
                created_at=datetime.now(UTC),
                committed_at_s=0.0,
                payload=payload,
                key=key,
                is_development=is_development,
            )
            model.deployments.append(deployment)
        deployment.committed_at_s = self._clock()
        deployment.payload = payload
        deployment.key = key
        deployment.status = None
        if payload.environment_name is not None:
            model.environments[payload.environment_name] = deployment.id
        return deployment

    def _check_target(self, target: Target, payload: DeploymentArchivePayload, *, at: str) -> None:
        if isinstance(target, ExistingModel):
            model: StoredModel | None = self.model(target.model_id)
        else:
            model = None
            for each in self.models:
                if each.name == target.name and each.team.id == target.team_id:
                    raise Refusal(
                        HTTPStatus.CONFLICT,
                        f"{at}.name: team {each.team.name!r} has a model named {target.name!r} already, with the id {each.id!r}; "
                        "add a deployment to it instead",
                    )
        if problems := list(_conflicts(model, payload, at=f"{at}.deployment")):
            raise invalid(problems)

    def _prepared_for(self, target: Target, source: ModelArchiveSource | DeploymentArchiveSource) -> PreparedUpload | None:
        at = "$.source.s3_key"
        if needs_no_archive(source.deployment):
            if source.s3_key is not None:
                raise invalid([Problem(at, "must be left out: this model is built from its config alone")])
            return None
        if source.s3_key is None:
            raise invalid([Problem(at, "is required: the s3_key that prepare_model_upload gave")])
        prepared = self._prepared.get(source.s3_key)
        if prepared is None:
            raise invalid([Problem(at, f"was not given out by prepare_model_upload: {source.s3_key!r}")])
        if prepared.deployment_id is not None:
            raise invalid([Problem(at, f"was used already, by deployment {prepared.deployment_id!r}")])
        if prepared.target != target:
            raise invalid([Problem(at, f"was prepared for another push, {prepared.target}, not for {target}")])
        difference = _first_difference(attrs.asdict(prepared.deployment), attrs.asdict(source.deployment), "$.source.deployment")
        if difference is not None:
            raise invalid([Problem(difference, "differs from what prepare_model_upload was sent")])
        return prepared

    def _unused(self, target: Target) -> PreparedUpload | None:
        for prepared in self._prepared.values():
            if prepared.target == target and prepared.deployment_id is None:
                return prepared
        return None

    def _team_id(self, target: Target) -> str:
        return target.team_id if isinstance(target, NewModel) else self.model(target.model_id).team.id


def needs_no_archive(payload: DeploymentArchivePayload) -> bool:
    """Whether a model is built from its config alone: Truss's ``bis_llm`` section is what marks such a config."""
    return payload.config is not None and payload.config.get("bis_llm") is not None


def _conflicts(model: StoredModel | None, payload: DeploymentArchivePayload, *, at: str) -> Iterator[Problem]:
    deployments = model.deployments if model else []
    name = payload.deployment_name
    if name and any(deployment.name == name for deployment in deployments):
        yield Problem(f"{at}.deployment_name", f"the model has a deployment named {name!r} already")
    environment = payload.environment_name
    if environment is not None and not payload.create_environment_if_missing:
        known = model.environments if model else {PRODUCTION: None}
        if environment not in known:
            rule = f"there is no environment {environment!r}, and create_environment_if_missing is false"
            yield Problem(f"{at}.environment_name", rule)


def _default_name(model: StoredModel) -> str:
    taken = {deployment.name for deployment in model.deployments}
    return next(name for name in map("deployment-{}".format, itertools.count(1)) if name not in taken)


def _first_difference(prepared: Any, committed: Any, path: str) -> str | None:
    """The JSON path of the first place where two JSON values differ; None when they are equal."""
    if isinstance(prepared, Mapping) and isinstance(committed, Mapping):
        ours, theirs = cast("Mapping[str, Any]", prepared), cast("Mapping[str, Any]", committed)
        paths = (_first_difference(ours.get(key, _ABSENT), theirs.get(key, _ABSENT), f"{path}.{key}") for key in {**ours, **theirs})
        return next(filter(None, paths), None)
    return None if prepared == committed and isinstance(prepared, bool) == isinstance(committed, bool) else path


def _new_id() -> str:
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
