"""Making sense of answers that are errors, whatever wrote them: the service, a proxy or a load balancer.

Nothing here raises: what cannot be read is described by its status. What is shown of an answer is one bounded line of printable
text.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, cast

from yarl import URL

from aiobaseten._text import MAX_CHARS, one_line
from aiobaseten.retry import MAX_RETRY_AFTER_S, retry_after_header_s, seconds

NOT_JSON = object()
MAX_MESSAGE_CHARS = MAX_CHARS
MAX_REQUEST_ID_CHARS = 128
MAX_SEARCHED_CHARS = 8192
"""Of a page, for its title: the search takes the square of its length."""

_MESSAGE_FIELDS = ("message", "error", "detail", "errors", "msg", "title")
_MAX_MESSAGE_DEPTH = 4
_MAX_MESSAGE_ITEMS = 5
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_REQUEST_ID_HEADERS = ("x-request-id", "x-baseten-request-id", "x-amzn-requestid", "x-amz-request-id", "request-id", "cf-ray")


def parse(content: bytes) -> Any:
    """The JSON value of an answer's body, or `NOT_JSON`."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return NOT_JSON


def error_message(status: int, content: bytes) -> str:
    """What an answer with an error status says."""
    try:
        found = _said(content)
    except (ValueError, RecursionError):  # of a number of thousands of digits, or of what is nested as deeply as the parser goes
        found = ""
    return one_line(found) or phrase(status)


def _said(content: bytes) -> str:
    """The message in an error's body; empty where there is none."""
    body = parse(content)
    if (found := _message_in(body)) is not None:
        return found
    if body is not NOT_JSON:
        return json.dumps(body) if body else ""
    text = content.decode(errors="replace")
    if title := _TITLE.search(text, 0, MAX_SEARCHED_CHARS):
        return html.unescape(title.group(1))
    return "" if "<" in text else text


def phrase(status: int) -> str:
    """HTTP's own words for a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no reason given"


def request_id(headers: Mapping[str, str]) -> str | None:
    """The service's own id for a call, from whichever header has it."""
    for name in _REQUEST_ID_HEADERS:
        if value := headers.get(name):
            return one_line(value, max_chars=MAX_REQUEST_ID_CHARS)
    return None


def retry_after_s(headers: Mapping[str, str], content: bytes) -> float | None:
    """How many seconds the service asks to wait: the body's ``retry_after``, else the header ``Retry-After``.

    Never more than `MAX_RETRY_AFTER_S`; None where neither makes sense.
    """
    body = parse(content)
    advice = seconds(cast("Mapping[str, Any]", body).get("retry_after")) if isinstance(body, Mapping) else None
    if advice is None:
        return retry_after_header_s(headers.get("Retry-After"), headers.get("Date"))
    return min(advice, MAX_RETRY_AFTER_S)


def redirect_message(location: str) -> str:
    """Where an answer that is a redirect points to, without what could be secret there."""
    try:
        url = URL(location).with_query(None).with_fragment(None)
        target = str(url.with_user(None) if url.absolute else url) or "nowhere"
    except ValueError:
        target = "something that is not a URL"
    return f"is redirected to {one_line(target)}, which is not followed: the key stays with the base URL's host"


def _message_in(body: Any, depth: int = 0) -> str | None:
    if depth > _MAX_MESSAGE_DEPTH:
        return None
    if isinstance(body, str):
        return body.strip() or None
    if isinstance(body, list):
        messages = [_message_in(item, depth + 1) for item in cast("Sequence[Any]", body)[:_MAX_MESSAGE_ITEMS]]
        return "; ".join(message for message in messages if message) or None
    if not isinstance(body, Mapping):
        return None
    fields = cast("Mapping[str, Any]", body)
    for name in _MESSAGE_FIELDS:
        if message := _message_in(fields.get(name), depth + 1):
            place = fields.get("loc")
            return f"{'.'.join(map(str, cast('Sequence[Any]', place)))}: {message}" if isinstance(place, list) else message
    return None
