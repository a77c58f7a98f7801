"""The S3 calls an upload makes, each as one try, with their answers checked and their failures told in this library's errors.

One client serves all pushes of a region and endpoint: making one costs far more CPU than a small upload. Credentials belong to
a call, not to the client: each call signs with those in its context. Everything runs on the `IoThread`, the making of clients
too, since botocore reads its models from disk then.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

import aioboto3
import attrs
from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentialResolver, AioCredentials
from aiobotocore.session import AioSession
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES, ConstantProvider
from botocore.credentials import CredentialProvider, ReadOnlyCredentials
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader

from aiobaseten.errors import CredentialsExpired, IntegrityError, UploadDenied, UploadError
from aiobaseten.models import AWSCredentials, UploadTarget
from aiobaseten.options import Options
from aiobaseten.upload.checksum import Algorithm, Checksums
from aiobaseten.upload.io_thread import IoThread
from aiobaseten.upload.transport import PartBody, S3Session

T = TypeVar("T")

REGION = re.compile(r"[a-zA-Z0-9-]+")

EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
DENIED_CODES = frozenset(
    {"AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "403", "401"}
)
DAMAGED_CODES = frozenset(
    {"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "ContentSHA256Mismatch"}
)
PASSING_CODES = frozenset(
    {
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
HINTS = {
    "RequestTimeTooSkewed": "the clock of this machine is off",
    "NoSuchBucket": "the bucket does not exist at this endpoint",
    "AuthorizationHeaderMalformed": "the bucket is in another region than prepare said",
    "EntityTooLarge": "the store takes no object or part of this size",
    "NotImplemented": "the store does not know something that was asked of it; TransferOptions(checksum=None) asks for less",
    "NoSuchUpload": "the multipart upload does not exist any more",
}

_call_credentials: ContextVar[AWSCredentials] = ContextVar("aiobaseten_call_credentials")


@attrs.frozen(kw_only=True)
class PutPart:
    """A part that the store has taken."""

    number: int
    size_bytes: int
    etag: str | None
    checksum: int | None


@attrs.frozen(kw_only=True)
class StoredObject:
    """What the store says of the finished object. `checksum` is None where it said nothing of one."""

    etag: str | None
    checksum: str | None


class S3:
    """The object store, for all uploads of a client. Its connections are closed with the thread they run on."""

    def __init__(self, endpoint_url: str | None, options: Options, io_thread: IoThread) -> None:
        self._endpoint_url = endpoint_url
        self._options = options
        self._io = io_thread
        self._clients: dict[str, Any] = {}
        self._opening = asyncio.Lock()
        self._open_clients = AsyncExitStack()
        io_thread.at_end(self._open_clients.aclose)

    async def put_object(self, target: UploadTarget, body: memoryview, sums: Checksums) -> StoredObject:
        """Store a whole archive in one request."""
        answer = await self._call(target, "PutObject", Body=PartBody(body), **sums.parameters())
        return _stored(answer, "PutObject", sums)

    async def create(self, target: UploadTarget, algorithm: Algorithm | None) -> str:
        """Begin a multipart upload and return its upload id."""
        declared = {} if algorithm is None else {"ChecksumAlgorithm": algorithm.name, "ChecksumType": "FULL_OBJECT"}
        answer = await self._call(target, "CreateMultipartUpload", **declared)
        return _required(answer, "UploadId", "CreateMultipartUpload")

    async def upload_part(self, target: UploadTarget, upload_id: str, number: int, body: memoryview, sums: Checksums) -> PutPart:
        """Store one part. `body` is not read any more once this has returned or raised."""
        answer = await self._call(
            target, "UploadPart", UploadId=upload_id, PartNumber=number, Body=PartBody(body), **sums.parameters()
        )
        _verify(sums, answer, "UploadPart")
        etag = _required(answer, "ETag", "UploadPart")
        return PutPart(number=number, size_bytes=len(body), etag=etag, checksum=sums.value)

    async def complete(self, target: UploadTarget, upload_id: str, parts: list[PutPart], sums: Checksums) -> StoredObject:
        """Make the object from its parts."""
        algorithm = sums.algorithm
        listed = [
            {"PartNumber": part.number, "ETag": part.etag}
            | ({} if algorithm is None or part.checksum is None else {algorithm.parameter: algorithm.encode(part.checksum)})
            for part in parts
        ]
        declared = {} if algorithm is None else {"ChecksumType": "FULL_OBJECT"}
        answer = await self._call(
            target,
            "CompleteMultipartUpload",
            UploadId=upload_id,
            MultipartUpload={"Parts": listed},
            **declared,
            **sums.parameters(),
        )
        return _stored(answer, "CompleteMultipartUpload", sums)

    async def abort(self, target: UploadTarget, upload_id: str) -> None:
        """Give a multipart upload up, so that its parts are not kept and billed."""
        await self._call(target, "AbortMultipartUpload", UploadId=upload_id)

    async def head(self, target: UploadTarget, size_bytes: int, sums: Checksums) -> StoredObject:
        """Compare the object at the key with what should be there.

        :raises IntegrityError: if it is another one
        """
        answer = await self._call(target, "HeadObject", ChecksumMode="ENABLED")
        if answer.get("ContentLength") != size_bytes:
            raise IntegrityError(
                f"the object holds {answer.get('ContentLength')} bytes instead of {size_bytes}", operation="HeadObject"
            )
        return _stored(answer, "HeadObject", sums)

    async def _call(self, target: UploadTarget, operation: str, **parameters: Any) -> dict[str, Any]:
        async def on_io_thread() -> dict[str, Any]:
            _call_credentials.set(target.credentials)
            try:
                client = await self._client(target.region)
                method: Callable[..., Awaitable[dict[str, Any]]] = getattr(client, _METHODS[operation])
                return await method(Bucket=target.bucket, Key=target.key, **parameters)
            except ClientError as error:
                raise _upload_error(error, operation) from error
            except (BotoCoreError, ValueError) as error:  # a region or endpoint that cannot be, for instance
                raise UploadError(str(error), operation=operation) from error
            except UploadError as error:
                error.operation = operation
                raise

        return await self._io.run(on_io_thread)

    async def _client(self, region: str) -> Any:
        if not REGION.fullmatch(region):
            raise UploadError(f"{region!r} cannot be a region, such as us-west-2")
        async with self._opening:
            if region not in self._clients:
                client = await self._open_clients.enter_async_context(_make_client(region, self._endpoint_url, self._options))
                client.meta.events.register_last("before-parameter-build.s3", _stay_in_region)
                self._clients[region] = client
            return self._clients[region]


_METHODS = {
    "PutObject": "put_object",
    "CreateMultipartUpload": "create_multipart_upload",
    "UploadPart": "upload_part",
    "CompleteMultipartUpload": "complete_multipart_upload",
    "AbortMultipartUpload": "abort_multipart_upload",
    "HeadObject": "head_object",
}


def _stored(answer: dict[str, Any], operation: str, sums: Checksums) -> StoredObject:
    etag = _required(answer, "ETag", operation)
    return StoredObject(etag=etag, checksum=_verify(sums, answer, operation))


def _verify(sums: Checksums, answer: dict[str, Any], operation: str) -> str | None:
    """The store's own checksum, if it gave one and it is the same as ours."""
    theirs: str | None = None if sums.algorithm is None else answer.get(sums.algorithm.parameter)
    if sums.algorithm is not None and theirs is not None and theirs != sums.encoded:
        raise IntegrityError(
            f"the store computed the {sums.algorithm.name} {theirs}, and {sums.encoded} was sent", operation=operation
        )
    return theirs


def _required(answer: dict[str, Any], field: Literal["ETag", "UploadId"], operation: str) -> str:
    value = answer.get(field)
    if not value:
        raise UploadError(f"the store's answer has no {field}", operation=operation, status=200, retryable=True)
    return str(value)


def _upload_error(error: ClientError, operation: str) -> UploadError:
    details: Mapping[str, Any] = error.response.get("Error", {})
    metadata: Mapping[str, Any] = error.response.get("ResponseMetadata", {})
    code = str(details.get("Code", ""))
    status = metadata.get("HTTPStatusCode")
    message = str(details.get("Message") or "no message")[:500]
    if code in HINTS:
        message = f"{HINTS[code]}: {message}"
    context: dict[str, Any] = {
        "operation": operation,
        "code": code or None,
        "status": status,
        "request_id": metadata.get("RequestId"),
    }
    if code in EXPIRED_CODES:
        return CredentialsExpired(message, **context)
    if code in DENIED_CODES:
        return UploadDenied(message, **context)
    if code in DAMAGED_CODES:
        return IntegrityError(message, retryable=operation in ("PutObject", "UploadPart"), **context)
    passing = code in PASSING_CODES or status == 429 or (isinstance(status, int) and status >= 500 and status != 501)
    return UploadError(message, retryable=passing, **context)


class _CallCredentials(AioCredentials):
    """Stands in the shared client for the credentials of whichever call is being signed."""

    def __init__(self) -> None:
        super().__init__("per-call", "per-call")

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:  # type: ignore[override]  # aiobotocore awaits what botocore calls
        current = _call_credentials.get()
        return ReadOnlyCredentials(current.aws_access_key_id, current.aws_secret_access_key, current.aws_session_token)


class _CallCredentialsProvider(CredentialProvider):
    METHOD = "aiobaseten"
    CANONICAL_NAME = "aiobaseten"

    async def load(self) -> AioCredentials:
        return _CallCredentials()


def _make_client(region: str, endpoint_url: str | None, options: Options) -> Any:
    session = AioSession()
    _ignore_user_settings(session)
    builtin_models = Loader(extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)
    session.register_component("data_loader", builtin_models)  # the default one looks into ~/.aws/models first
    session.register_component("credential_provider", AioCredentialResolver([_CallCredentialsProvider()]))
    timeouts = options.timeouts
    plain_http = endpoint_url is not None and endpoint_url.startswith("http:")
    config = AioConfig(
        http_session_cls=S3Session.for_options(options),
        connect_timeout=timeouts.connect_s,
        read_timeout=timeouts.read_s,
        retries={"mode": "standard", "total_max_attempts": 1},
        signature_version="s3v4",
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        ignore_configured_endpoint_urls=True,
        s3={"payload_signing_enabled": plain_http, "us_east_1_regional_endpoint": "regional"},
    )
    aws: Any = aioboto3.Session(botocore_session=session)  # its type is an overload of every AWS service
    return aws.client("s3", region_name=region, endpoint_url=endpoint_url, verify=True, config=config)


def _stay_in_region(context: dict[str, Any], **_: Any) -> None:
    """Tell botocore's region redirector that it has had its turn: it would take the credentials to a host of its own finding."""
    context["s3_redirect"]["redirected"] = True


def _ignore_user_settings(session: AioSession) -> None:
    """Make botocore's own defaults the only settings: no environment variable and no file under ``~/.aws`` has a say."""
    settings = session.get_component("config_store")
    for name, (_, _, default, _) in BOTOCORE_DEFAUT_SESSION_VARIABLES.items():
        settings.set_config_provider(name, ConstantProvider(value=default))
    for section in ("s3", "proxies_config"):
        settings.set_config_provider(section, ConstantProvider(value=None))
    for file in ("config_file", "credentials_file"):
        settings.set_config_provider(file, ConstantProvider(value=os.devnull))
