"""What the object store's answers mean: what it has stored, or which of this library's errors its refusal is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from aiobaseten._text import one_line
from aiobaseten.errors import CredentialsExpired, IntegrityError, UploadDenied, UploadError
from aiobaseten.retry import retry_after_header_s
from aiobaseten.upload.checksum import Checksums

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
MAX_CODE_CHARACTERS = 128
MAX_ID_CHARACTERS = 2048
"""Of an ETag or upload id, which the next calls repeat in their URLs and bodies."""
HINTS = {
    "RequestTimeTooSkewed": "the clock of this machine is off",
    "NoSuchBucket": "the bucket does not exist at this endpoint",
    "AuthorizationHeaderMalformed": "the bucket is in another region than prepare said",
    "EntityTooLarge": "the store takes no object or part of this size",
    "NotImplemented": "the store does not know something that was asked of it; TransferOptions(checksum=None) asks for less",
    "NoSuchUpload": "the multipart upload does not exist any more",
}


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


def stored_object(answer: dict[str, Any], operation: str, sums: Checksums) -> StoredObject:
    etag = required(answer, "ETag", operation)
    return StoredObject(etag=etag, checksum=verify(sums, answer, operation))


def verify(sums: Checksums, answer: dict[str, Any], operation: str) -> str | None:
    """The store's own checksum, if it gave one and it is the same as ours."""
    theirs: str | None = None if sums.algorithm is None else answer.get(sums.algorithm.parameter)
    if sums.algorithm is not None and theirs is not None and theirs != sums.encoded:
        raise IntegrityError(
            f"the store computed the {sums.algorithm.name} {_shown(theirs)}, and {sums.encoded} was sent",
            operation=operation,
        )
    return theirs


def required(answer: dict[str, Any], field: Literal["ETag", "UploadId"], operation: str) -> str:
    value = answer.get(field)
    if not value:
        raise UploadError(f"the store's answer has no {field}", operation=operation, status=200, retryable=True)
    text = str(value)
    if len(text) > MAX_ID_CHARACTERS or not text.isprintable():
        raise UploadError(f"the store's answer has no {field} that can be one", operation=operation, status=200, retryable=True)
    return text


def unreadable(error: Exception, operation: str) -> UploadError:
    """What to raise for an answer that botocore cannot parse. Its text, which botocore's error quotes, is left out."""
    reason = one_line(str(error.__context__ or error))
    return UploadError(f"the store's answer cannot be read: {reason}", operation=operation, retryable=True)


def _shown(value: object) -> str:
    """A code, id or checksum of the store's; empty where it has given none."""
    return one_line(str(value or ""), max_chars=MAX_CODE_CHARACTERS)


def upload_error(response: Mapping[str, Any], operation: str) -> UploadError:
    details: Mapping[str, Any] = response.get("Error", {})
    metadata: Mapping[str, Any] = response.get("ResponseMetadata", {})
    headers: Mapping[str, str] = metadata.get("HTTPHeaders", {})
    code = _shown(details.get("Code"))
    status = metadata.get("HTTPStatusCode")
    message = one_line(str(details.get("Message") or "")) or "no message"
    if code in HINTS:
        message = f"{HINTS[code]}: {message}"
    context: dict[str, Any] = {
        "operation": operation,
        "code": code or None,
        "status": status,
        "request_id": _shown(metadata.get("RequestId")) or None,
        "retry_after_s": retry_after_header_s(headers.get("retry-after"), headers.get("date")),
    }
    if code in EXPIRED_CODES:
        return CredentialsExpired(message, **context)
    if code in DENIED_CODES:
        return UploadDenied(message, **context)
    if code in DAMAGED_CODES:
        return IntegrityError(message, retryable=operation in ("PutObject", "UploadPart"), **context)
    passing = code in PASSING_CODES or status == 429 or (isinstance(status, int) and status >= 500 and status != 501)
    return UploadError(message, retryable=passing, **context)
