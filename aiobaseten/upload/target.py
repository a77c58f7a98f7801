"""What may be an upload's target. It comes from the service's answer, and the archive and its credentials go where it says.

The host is made of region and bucket by botocore's rules, which leads to the object store's own hosts for whatever passes here.
"""

from __future__ import annotations

import re

from aiobaseten._text import one_line
from aiobaseten.errors import UploadError
from aiobaseten.models import UploadTarget

MAX_KEY_BYTES = 1024
MAX_SHOWN_CHARACTERS = 80

_REGION = re.compile(r"[a-zA-Z0-9-]{1,63}")
_BUCKET = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,254}")
_IN_HEADER = re.compile(r"[\x21-\x7e]+")
_IN_HEADER_OR_NONE = re.compile(r"[\x21-\x7e]*")
"""Permanent keys come without a session token."""
_SECRET = re.compile(r"[\x20-\x7e]+")
_NOT_FOR_HEADERS = "it is empty, or holds what no header can carry"


def check_target(target: UploadTarget) -> None:
    """Refuse a target that cannot be one, before anything is sent there. No message holds a credential.

    :raises UploadError: which names what cannot be
    """
    if not _REGION.fullmatch(target.region):
        raise UploadError(f"{_shown(target.region)} cannot be a region, such as us-west-2")
    if not _BUCKET.fullmatch(target.bucket):
        raise UploadError(f"{_shown(target.bucket)} cannot be a bucket: one has letters, digits, '.', '-' and '_', at most 255")
    if problem := _key_problem(target.key):
        raise UploadError(f"{_shown(target.key)} cannot be an object's key: {problem}")
    credentials = target.credentials
    if not _is(_IN_HEADER, credentials.aws_access_key_id):
        raise UploadError(f"aws_access_key_id cannot be one: {_NOT_FOR_HEADERS}")
    if not _is(_SECRET, credentials.aws_secret_access_key):
        raise UploadError("aws_secret_access_key cannot be one: it is empty, or holds what is not printable ASCII")
    if not _is(_IN_HEADER_OR_NONE, credentials.aws_session_token):
        raise UploadError("aws_session_token cannot be one: it holds what no header can carry")


def _is(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _key_problem(key: str) -> str | None:
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError:
        return "it holds what is not Unicode"
    if not 0 < size_bytes <= MAX_KEY_BYTES:
        return f"one has 1 to {MAX_KEY_BYTES:,} bytes, and this {size_bytes:,}"
    return None


def _shown(text: str) -> str:
    return repr(one_line(text, max_chars=MAX_SHOWN_CHARACTERS))
