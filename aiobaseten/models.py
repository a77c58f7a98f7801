"""The service's payloads, under the API's own names without their version suffix.

Requests go out with defaults left out, so that an older server never meets a field it does not know; answers come in with
unknown fields ignored. `aiobaseten._convert` does both. What makes a request valid beyond its types is in `aiobaseten.rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import attrs

JsonObject = Mapping[str, Any]

IN_PROGRESS_STATUSES = frozenset({"BUILDING", "DEPLOYING", "LOADING_MODEL", "UPDATING"})
FAILED_STATUSES = frozenset({"BUILD_FAILED", "BUILD_STOPPED", "DEPLOY_FAILED", "FAILED"})
UP_STATUSES = frozenset({"ACTIVE", "SCALED_TO_ZERO"})


def masked(secret: object) -> str:
    """What stands for a secret in a ``repr``."""
    return "'***'" if secret is not None else "None"


@attrs.frozen(kw_only=True)
class DeploymentArchivePayload:
    """One deployment, as sent with prepare and again, the same, with the commit.

    :param config: the parsed ``config.yaml``. In a `Push` it may be None: then the source's own ``config.yaml`` is taken
    :param raw_config: the text of ``config.yaml``, kept by the service as it is
    :param user_env: metadata about the client's environment; none is sent by default
    :param environment_name: the environment to deploy to, such as ``production``
    :param preserve_env_instance_type: keep the environment's instance type rather than the one in `config`
    :param deploy_timeout_minutes: 10 to 1440
    :param deployment_name: letters, digits, ``_``, ``-`` and ``.``; unique within the model
    :param labels: key-value labels, returned on the deployment
    :param is_development: deploy to the model's one development slot
    :param create_environment_if_missing: sent whenever `environment_name` is, since the service's default will change
    :param instance_type_id: needs ``preserve_env_instance_type=False``
    :param autoscaling_schedule_settings: needs `environment_name`
    :param promotion_settings_override: needs `environment_name`
    """

    config: JsonObject | None = None
    raw_config: str | None = attrs.field(default=None, repr=False)
    user_env: JsonObject | None = None
    environment_name: str | None = None
    preserve_env_instance_type: bool = True
    deploy_timeout_minutes: int | None = None
    deployment_name: str | None = None
    labels: JsonObject | None = None
    is_development: bool = False
    create_environment_if_missing: bool = True
    region: str | None = None
    instance_type_id: str | None = None
    autoscaling_settings: JsonObject | None = None
    autoscaling_schedule_settings: JsonObject | None = None
    request_backpressure_settings: JsonObject | None = None
    promotion_settings_override: JsonObject | None = None


@attrs.frozen(kw_only=True)
class PrepareModelUploadRequest:
    """``POST /v1/prepare_model_upload``: validates a push and asks for the right to upload its archive.

    :param name: for a new model; exactly one of `name` and `model_id`
    :param model_id: for a new deployment of an existing model
    :param team_id: the new model's team; only with `name`
    :param dry_run: validate only; the answer then holds no target
    :param is_development: the API's first generation had it here, only with `name`; later ones take it in `deployment`
    """

    deployment: DeploymentArchivePayload
    name: str | None = None
    model_id: str | None = None
    team_id: str | None = None
    dry_run: bool = False
    is_development: bool = False


@attrs.frozen(kw_only=True)
class AWSCredentials:
    """Temporary credentials, scoped to one object key. The service does not say when they expire."""

    aws_access_key_id: str = attrs.field(repr=masked)
    aws_secret_access_key: str = attrs.field(repr=masked)
    aws_session_token: str = attrs.field(repr=masked)


@attrs.frozen(kw_only=True)
class UploadTarget:
    """Where an archive goes, and the right to put it there."""

    credentials: AWSCredentials
    bucket: str
    key: str
    region: str

    @property
    def place(self) -> tuple[str, str, str]:
        """Bucket, key and region: where an upload that was begun with other credentials goes on."""
        return self.bucket, self.key, self.region


@attrs.frozen(kw_only=True)
class PrepareModelUploadResponse:
    """The answer to prepare. All four fields are None when no upload is needed."""

    creds: AWSCredentials | None = None
    s3_bucket: str | None = None
    s3_key: str | None = None
    s3_region: str | None = None

    @property
    def target(self) -> UploadTarget | None:
        """Where to upload to; None when no upload is needed: on a dry run, or for a model built from its config alone."""
        if self.creds is None or self.s3_bucket is None or self.s3_key is None or self.s3_region is None:
            return None
        return UploadTarget(credentials=self.creds, bucket=self.s3_bucket, key=self.s3_key, region=self.s3_region)


@attrs.frozen(kw_only=True)
class ModelArchiveSource:
    """The commit of a new model: ``POST /v1/models`` or ``POST /v1/teams/{team_id}/models``.

    :param s3_key: the key from prepare, once the upload is complete; None when prepare gave no target
    :param disable_archive_download: the archive cannot be downloaded later; fixed when the model is made
    """

    name: str
    deployment: DeploymentArchivePayload
    s3_key: str | None = None
    disable_archive_download: bool = False
    kind: Literal["model_archive"] = "model_archive"


@attrs.frozen(kw_only=True)
class DeploymentArchiveSource:
    """The commit of a new deployment of an existing model: ``POST /v1/models/{model_id}/deployments``.

    :param s3_key: the key from prepare, once the upload is complete; None when prepare gave no target
    """

    deployment: DeploymentArchivePayload
    s3_key: str | None = None
    kind: Literal["model_archive"] = "model_archive"


@attrs.frozen(kw_only=True)
class Model:
    """A model, as the service lists it."""

    id: str
    created_at: datetime
    name: str
    deployments_count: int
    production_deployment_id: str | None = None
    development_deployment_id: str | None = None
    instance_type_name: str
    team_name: str


@attrs.frozen(kw_only=True)
class Deployment:
    """A deployment of a model. `status` is an open set: new values may appear at any time."""

    id: str
    created_at: datetime
    name: str
    model_id: str
    is_production: bool
    is_development: bool
    status: str
    active_replica_count: int
    autoscaling_settings: JsonObject | None = None
    instance_type_name: str | None = None
    environment: str | None = None
    labels: JsonObject | None = None

    @property
    def is_up(self) -> bool:
        """Whether it serves requests: ``ACTIVE``, or ``SCALED_TO_ZERO``, from which the next request wakes it."""
        return self.status in UP_STATUSES

    @property
    def has_failed(self) -> bool:
        return self.status in FAILED_STATUSES


@attrs.frozen(kw_only=True)
class CreatedModelDeployment:
    """The answer to a commit."""

    model: Model
    deployment: Deployment


@attrs.frozen(kw_only=True)
class Team:
    """A team of the organization. Model names are unique only within a team."""

    id: str
    name: str
    default: bool
    created_at: datetime
