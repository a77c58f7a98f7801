"""The S3 calls an upload makes, each as one try, with their answers checked and their failures told in this library's errors.

aioboto3 makes the calls, all but those that carry bytes: PutObject and UploadPart. What it repeats for each call (endpoint rules,
validation, serialising) costs as much as a small archive's whole upload, and needs the caller's event loop. Those two are
built here once, signed by botocore's signer and sent from one worker thread, together with their checksum.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import anyio.to_thread
from botocore.auth import UNSIGNED_PAYLOAD, S3SigV4Auth
from botocore.awsrequest import AWSRequest, HeadersDict
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError, create_parser
from botocore.utils import percent_encode

from aiobaseten._redaction import cover_new_loggers, scrubbed
from aiobaseten._text import one_line
from aiobaseten.errors import IntegrityError, UploadError
from aiobaseten.models import UploadTarget
from aiobaseten.options import MiB, Options
from aiobaseten.upload.checksum import Algorithm, Checksums
from aiobaseten.upload.flight import Flight
from aiobaseten.upload.reader import FilledPart
from aiobaseten.upload.s3_answers import PutPart, StoredObject, required, stored_object, unreadable, upload_error, verify
from aiobaseten.upload.s3_client import bucket_url, call_credentials, make_client, signing_keys
from aiobaseten.upload.target import check_target
from aiobaseten.upload.transport import Answer, Request, Sent, Transport, checked

WORTH_ASKING_BYTES = MiB

UNREADABLE = (ResponseParserError, RecursionError, TypeError, LookupError, AttributeError)
"""How botocore fails at an answer that is no XML, nests without end, or has elements where S3 has text."""

_PARSER = create_parser("rest-xml")


class S3:
    """The object store, for all uploads of a client."""

    def __init__(self, endpoint_url: str | None, options: Options, transport: Transport) -> None:
        self._endpoint_url = endpoint_url
        self._options = options
        self._transport = transport
        self._clients: dict[str, Any] = {}
        self._bucket_urls: dict[tuple[str, str], str] = {}
        self._opening = asyncio.Lock()

    def sent(self) -> Sent:
        """What was sent so far."""
        return self._transport.sent

    @scrubbed
    async def put_object(self, target: UploadTarget, part: FilledPart) -> StoredObject:
        """Store a whole archive in one request."""
        answer = await self._put(target, part, "PutObject", "")
        return stored_object(answer, "PutObject", part.checksums())

    @scrubbed
    async def upload_part(self, target: UploadTarget, upload_id: str, part: FilledPart) -> PutPart:
        """Store one part. Its memory is not read any more once this has returned or raised."""
        query = f"?partNumber={part.number}&uploadId={percent_encode(upload_id, safe='-_.~')}"
        answer = await self._put(target, part, "UploadPart", query)
        sums = part.checksums()
        verify(sums, answer, "UploadPart")
        etag = required(answer, "ETag", "UploadPart")
        return PutPart(number=part.number, size_bytes=len(part.content), etag=etag, checksum=sums.value)

    @scrubbed
    async def create(self, target: UploadTarget, algorithm: Algorithm | None) -> str:
        """Begin a multipart upload and return its upload id."""
        declared = {} if algorithm is None else {"ChecksumAlgorithm": algorithm.name, "ChecksumType": "FULL_OBJECT"}
        answer = await self._call(target, "CreateMultipartUpload", **declared)
        return required(answer, "UploadId", "CreateMultipartUpload")

    @scrubbed
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
        return stored_object(answer, "CompleteMultipartUpload", sums)

    @scrubbed
    async def abort(self, target: UploadTarget, upload_id: str) -> None:
        """Give a multipart upload up, so that its parts are not kept and billed."""
        await self._call(target, "AbortMultipartUpload", UploadId=upload_id)

    @scrubbed
    async def head(self, target: UploadTarget, size_bytes: int, sums: Checksums) -> StoredObject:
        """Compare the object at the key with what should be there.

        :raises IntegrityError: if it is another one
        """
        answer = await self._call(target, "HeadObject", ChecksumMode="ENABLED")
        stored_bytes = answer.get("ContentLength", size_bytes)
        if stored_bytes != size_bytes:
            raise IntegrityError(f"the object holds {stored_bytes} bytes instead of {size_bytes}", operation="HeadObject")
        return stored_object(answer, "HeadObject", sums)

    async def _call(self, target: UploadTarget, operation: str, **parameters: Any) -> dict[str, Any]:
        call_credentials.set(target.credentials)
        try:
            check_target(target)
            client = await self._client(target.region)
            method: Callable[..., Awaitable[dict[str, Any]]] = getattr(client, _METHODS[operation])
            return await method(Bucket=target.bucket, Key=target.key, **parameters)
        except ClientError as error:
            raise upload_error(error.response, operation) from error
        except UNREADABLE as error:
            raise unreadable(error, operation) from error.__context__ or error
        except (BotoCoreError, ValueError) as error:  # an endpoint that cannot be, or a header that is no number, for instance
            raise UploadError(one_line(str(error)), operation=operation) from error
        except UploadError as error:
            error.operation = operation
            raise

    async def _put(self, target: UploadTarget, part: FilledPart, operation: str, query: str) -> dict[str, Any]:
        """Send a part. One that the store has refused before is sent only when the store has said that it wants it now."""
        try:
            check_target(target)
            client = await self._client(target.region)
            url = await self._object_url(client, target) + query
        except (BotoCoreError, ValueError) as error:
            raise UploadError(one_line(str(error)), operation=operation) from error
        except UploadError as error:
            error.operation = operation
            raise
        shape = client.meta.service_model.operation_model(operation).output_shape

        def put(flight: Flight) -> dict[str, Any]:
            request = Request(
                method="PUT",
                url=url,
                headers=_signed_headers(url, part, target),
                body=part.content,
                read_timeout_s=self._options.timeouts.read_s,
                ask_first=part.was_refused and len(part.content) >= WORTH_ASKING_BYTES,
            )
            part.was_refused = True
            answer = self._transport.exchange(flight, request)
            part.was_refused = answer.status >= 300
            return parse_answer(answer, shape, operation)

        try:
            return await self._transport.run(put)
        except UploadError as error:
            error.operation = operation
            raise

    async def _client(self, region: str) -> Any:
        async with self._opening:
            if region not in self._clients:

                def make() -> Any:
                    return asyncio.run(make_client(region, self._endpoint_url, self._options, self._transport))

                self._clients[region] = await anyio.to_thread.run_sync(make)
                cover_new_loggers()
            return self._clients[region]

    async def _object_url(self, client: Any, target: UploadTarget) -> str:
        place = (target.region, target.bucket)
        async with self._opening:
            if place not in self._bucket_urls:
                call_credentials.set(target.credentials)
                self._bucket_urls[place] = await bucket_url(client, target.bucket)
        return f"{self._bucket_urls[place]}{percent_encode(target.key, safe='/~')}"


def parse_answer(answer: Answer, shape: Any, operation: str) -> dict[str, Any]:
    """What an answer says.

    :param shape: botocore's, of what the operation returns
    :raises UploadError: if that is a refusal, or nothing that can be read
    """
    answer = checked(answer)
    raw = {"status_code": answer.status, "headers": HeadersDict(answer.headers), "body": answer.content}
    try:
        parsed: dict[str, Any] = _PARSER.parse(raw, shape)
    except (*UNREADABLE, ValueError) as error:
        raise unreadable(error, operation) from error.__context__ or error
    if answer.status >= 300:
        raise upload_error(parsed, operation)
    return parsed


_METHODS = {
    "CreateMultipartUpload": "create_multipart_upload",
    "CompleteMultipartUpload": "complete_multipart_upload",
    "AbortMultipartUpload": "abort_multipart_upload",
    "HeadObject": "head_object",
}


class _Signer(S3SigV4Auth):
    """Takes the body's digest as it was made: botocore knows no memoryviews."""

    def payload(self, request: AWSRequest) -> str:
        return str(request.context["content_sha256"])


def _signed_headers(url: str, part: FilledPart, target: UploadTarget) -> dict[str, str]:
    request = AWSRequest(method="PUT", url=url, headers=part.checksums().headers())
    request.context["content_sha256"] = UNSIGNED_PAYLOAD if url.startswith("https:") else hashlib.sha256(part.content).hexdigest()
    _Signer(signing_keys(target.credentials), "s3", target.region).add_auth(request)
    return {name: str(value) for name, value in request.headers.items()}
