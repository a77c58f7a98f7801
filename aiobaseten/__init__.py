"""Async, high-throughput model uploads for Baseten."""

from importlib.metadata import version

from aiobaseten import events
from aiobaseten.bulk import BulkReport, Manifest, ManifestEntry, PushOutcome, PushRecord, PushRun, Throughput, load_manifest
from aiobaseten.client import Client
from aiobaseten.errors import (
    ApiError,
    ArchiveError,
    AuthenticationError,
    BasetenError,
    CommitUncertain,
    ConfigurationError,
    CredentialsExpired,
    DeadlineExceeded,
    DeploymentFailed,
    IntegrityError,
    InvalidPush,
    JournalError,
    NotFoundError,
    Problem,
    RateLimited,
    ServerError,
    SourceChanged,
    TransportError,
    UploadDenied,
    UploadError,
)
from aiobaseten.events import Event, Observer
from aiobaseten.models import (
    AWSCredentials,
    CreatedModelDeployment,
    Deployment,
    DeploymentArchivePayload,
    DeploymentArchiveSource,
    Model,
    ModelArchiveSource,
    PrepareModelUploadRequest,
    PrepareModelUploadResponse,
    Team,
    UploadTarget,
)
from aiobaseten.options import Options, RetryOptions, TimeoutOptions, TransferOptions
from aiobaseten.push import CheckResult, Push, PushResult
from aiobaseten.sources import Ignored
from aiobaseten.upload import UploadReceipt, UploadRehearsal

__version__ = version("aiobaseten")

__all__ = [
    "AWSCredentials",
    "ApiError",
    "ArchiveError",
    "AuthenticationError",
    "BasetenError",
    "BulkReport",
    "CheckResult",
    "Client",
    "CommitUncertain",
    "ConfigurationError",
    "CreatedModelDeployment",
    "CredentialsExpired",
    "DeadlineExceeded",
    "Deployment",
    "DeploymentArchivePayload",
    "DeploymentArchiveSource",
    "DeploymentFailed",
    "Event",
    "Ignored",
    "IntegrityError",
    "InvalidPush",
    "JournalError",
    "Manifest",
    "ManifestEntry",
    "Model",
    "ModelArchiveSource",
    "NotFoundError",
    "Observer",
    "Options",
    "PrepareModelUploadRequest",
    "PrepareModelUploadResponse",
    "Problem",
    "Push",
    "PushOutcome",
    "PushRecord",
    "PushResult",
    "PushRun",
    "RateLimited",
    "RetryOptions",
    "ServerError",
    "SourceChanged",
    "Team",
    "Throughput",
    "TimeoutOptions",
    "TransferOptions",
    "TransportError",
    "UploadDenied",
    "UploadError",
    "UploadReceipt",
    "UploadRehearsal",
    "UploadTarget",
    "__version__",
    "events",
    "load_manifest",
]
