"""What the steps of a push are told: made-up values, and strategies for any."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import strategies as st
from support.payloads import JSON_OBJECTS, MOMENTS, NAMES, TEXTS

from aiobaseten.ledger import Commit
from aiobaseten.models import AWSCredentials, CreatedModelDeployment, Deployment, Model, UploadTarget
from aiobaseten.upload import PutPart, UploadReceipt

NOW = datetime(2026, 5, 1, 12, 0, 30, tzinfo=UTC)

CREDENTIALS = AWSCredentials(
    aws_access_key_id="ASIA-planted-id", aws_secret_access_key="planted-secret", aws_session_token="planted-token"
)
SECRETS = (b"ASIA-planted-id", b"planted-secret", b"planted-token")
TARGET = UploadTarget(credentials=CREDENTIALS, bucket="bucket", key="a/model.tgz", region="us-west-2")
RECEIPT = UploadReceipt(
    bucket="bucket",
    key="a/model.tgz",
    size_bytes=1234,
    parts=1,
    etag="etag",
    checksum="AAAAAAAAAAA=",
    checksum_algorithm="CRC64NVME",
    verified=True,
)
COMMIT = Commit(model_id=None, name="iris", team_id="team", deployment_name=None, tagged=True)
DEPLOYMENT = Deployment(
    id="dep",
    created_at=NOW,
    name="deployment-1",
    model_id="mod",
    is_production=True,
    is_development=False,
    status="BUILDING",
    active_replica_count=0,
    labels={"aiobaseten-push-id": "p"},
)
CREATED = CreatedModelDeployment(
    model=Model(id="mod", created_at=NOW, name="iris", deployments_count=1, instance_type_name="1x2", team_name="default"),
    deployment=DEPLOYMENT,
)


def part(number: int, checksum: int | None = 7) -> PutPart:
    return PutPart(number=number, size_bytes=8_000_000, etag=f"etag-{number}", checksum=checksum)


def targets() -> st.SearchStrategy[UploadTarget]:
    credentials = st.builds(AWSCredentials, aws_access_key_id=NAMES, aws_secret_access_key=NAMES, aws_session_token=NAMES)
    keys = st.sampled_from(["one/model.tgz", "two/model.tgz"])
    return st.builds(UploadTarget, credentials=credentials, bucket=st.just("bucket"), key=keys, region=st.just("us-west-2"))


def parts() -> st.SearchStrategy[PutPart]:
    return st.builds(
        PutPart,
        number=st.integers(1, 4),
        size_bytes=st.integers(1, 5 << 30),
        etag=st.none() | TEXTS,
        checksum=st.none() | st.integers(0, (1 << 64) - 1),
    )


def receipts() -> st.SearchStrategy[UploadReceipt]:
    return st.builds(
        UploadReceipt,
        bucket=TEXTS,
        key=TEXTS,
        size_bytes=st.integers(0, 5 << 40),
        parts=st.integers(1, 10_000),
        etag=st.none() | TEXTS,
        checksum=st.none() | TEXTS,
        checksum_algorithm=st.sampled_from([None, "CRC64NVME", "CRC32C"]),
        verified=st.booleans(),
    )


def commits() -> st.SearchStrategy[Commit]:
    maybe = st.none() | TEXTS
    return st.builds(Commit, model_id=maybe, name=maybe, team_id=maybe, deployment_name=maybe, tagged=st.booleans())


def model_deployments() -> st.SearchStrategy[Deployment]:
    return st.builds(
        Deployment,
        id=TEXTS,
        created_at=MOMENTS,
        name=TEXTS,
        model_id=TEXTS,
        is_production=st.booleans(),
        is_development=st.booleans(),
        status=TEXTS,
        active_replica_count=st.integers(0, 100),
        autoscaling_settings=st.none() | JSON_OBJECTS,
        instance_type_name=st.none() | TEXTS,
        environment=st.none() | TEXTS,
        labels=st.none() | JSON_OBJECTS,
    )


def created() -> st.SearchStrategy[CreatedModelDeployment]:
    models = st.builds(
        Model,
        id=TEXTS,
        created_at=MOMENTS,
        name=TEXTS,
        deployments_count=st.integers(0, 1000),
        production_deployment_id=st.none() | TEXTS,
        development_deployment_id=st.none() | TEXTS,
        instance_type_name=TEXTS,
        team_name=TEXTS,
    )
    return st.builds(CreatedModelDeployment, model=models, deployment=model_deployments())
