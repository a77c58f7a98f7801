"""Error answers of every kind that servers, proxies and load balancers give."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from aiobaseten._redaction import keep_secret
from aiobaseten.api import bodies

SECRET = "sk-planted-3141592653"
keep_secret(bodies, SECRET)

NGINX = b"<html>\r\n<head><title>502 Bad&nbsp;Gateway</title></head>\r\n<body><center>nginx</center></body></html>"

TOO_DEEP = {"error": {"error": {"error": {"error": {"error": {"error": "too deep"}}}}}}


def message(body: Any, status: int = 400) -> str:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return bodies.error_message(status, content)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"message": "no such model"}, "no such model"),
        ({"error": "Too many requests", "retry_after": 37}, "Too many requests"),
        ({"error": {"code": 7, "message": "nested"}}, "nested"),
        ({"error": True, "message": "beside a flag"}, "beside a flag"),
        ({"message": "", "detail": "the other"}, "the other"),
        ({"detail": "Not authenticated"}, "Not authenticated"),
        (
            {"detail": [{"loc": ["body", "name", 0], "msg": "field required", "type": "missing"}, {"msg": "and this"}]},
            "body.name.0: field required; and this",
        ),
        ({"errors": ["one", "two", {"message": "three"}, None]}, "one; two; three"),
        ({"errors": [str(number) for number in range(100)]}, "0; 1; 2; 3; 4"),
        ({"title": "Conflict", "status": 409}, "Conflict"),
        ({"name": ["already exists"]}, '{"name": ["already exists"]}'),
        ("plain JSON string", "plain JSON string"),
        (["in", "a list"], "in; a list"),
        (17, "17"),
        ({}, "Bad Request"),
        ([], "Bad Request"),
        (None, "Bad Request"),
        (b"", "Bad Request"),
        (b" \r\n", "Bad Request"),
        (b"upstream connect error", "upstream connect error"),
        (b"two\r\n\tlines \x1b[31mred\x07", "two lines \ufffd[31mred\ufffd"),
        (b"\xff\xfe\x00", "\ufffd\ufffd\ufffd"),
        (NGINX, "502 Bad Gateway"),
        (b"<html><body>nothing that helps</body></html>", "Bad Request"),
        (b"[" * 100_000, "[" * 500 + "\u2026"),
        (TOO_DEEP, json.dumps(TOO_DEEP)),
        ({"message": f"bad key {SECRET}!"}, "bad key ***!"),
        ({"message": "x" * 490 + SECRET}, "x" * 490 + "***"),
        ({"message": "x" * 1000}, "x" * 500 + "\u2026"),
    ],
)
def test_message(body: Any, expected: str) -> None:
    told = message(body)
    assert told == expected
    assert SECRET not in told
    assert told.isprintable()


@pytest.mark.parametrize(("status", "expected"), [(418, "I'm a Teapot"), (599, "no reason given"), (503, "Service Unavailable")])
def test_message_of_an_empty_answer(status: int, expected: str) -> None:
    assert message(b"", status) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["message", "error", "detail", "errors", "msg", "loc", "title", "retry_after", "x"]), inner, max_size=4
        )
    ),
    max_leaves=20,
)


@given(body=JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200), status=st.integers(100, 999))
def test_any_answer_gives_one_bounded_printable_line(body: bytes, status: int) -> None:
    told = bodies.error_message(status, body)
    assert 0 < len(told) <= bodies.MAX_MESSAGE_CHARS + 1
    assert told.isprintable()


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        ({"retry_after": 37}, {}, 37),
        ({"retry_after": 1.5}, {"Retry-After": "99"}, 1.5),
        ({"retry_after": "12"}, {}, 12),
        ({"retry_after": 0}, {"Retry-After": "99"}, 0),
        ({"retry_after": 86_400}, {}, bodies.MAX_RETRY_AFTER_S),
        (b'{"retry_after": Infinity}', {}, bodies.MAX_RETRY_AFTER_S),
        ({}, {"retry-after": "120"}, 120),
        ([], {"Retry-After": " 2.5 "}, 2.5),
        (b"<html>", {"Retry-After": "3"}, 3),
        ({"retry_after": -1}, {"Retry-After": "4"}, 4),
        (b'{"retry_after": NaN}', {"Retry-After": "5"}, 5),
        ({"retry_after": True}, {"Retry-After": "6"}, 6),
        ({"retry_after": None}, {"Retry-After": "7"}, 7),
        ({"retry_after": [1]}, {}, None),
        ({"retry_after": 10**400}, {}, None),
        ({}, {}, None),
        ({}, {"Retry-After": ""}, None),
        ({}, {"Retry-After": "soon"}, None),
        ({}, {"Retry-After": "nan"}, None),
        ({}, {"Retry-After": "-3"}, None),
        ({}, {"Retry-After": "Wed, 21 Oct 2026 07:28:40 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 40),
        ({}, {"Retry-After": "Wed, 21 Oct 2026 07:28:40 -0000", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 40),
        ({}, {"Retry-After": "Wed, 21 Oct 2026 07:27:00 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0),
        ({}, {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT", "Date": "nonsense"}, bodies.MAX_RETRY_AFTER_S),
        ({}, {"Retry-After": "Wed, 32 Oct 2026 07:28:00 GMT"}, None),
        ({}, {"Retry-After": "Wed, 21 Oct 2026 07:28:40 +9999999999"}, None),
    ],
)
def test_retry_after(body: Any, headers: dict[str, str], expected: float | None) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert bodies.retry_after_s(CIMultiDict(headers), content) == expected


def test_retry_after_date_without_the_servers_own_time() -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    advice_s = bodies.retry_after_s(CIMultiDict({"Retry-After": moment}), b"")
    assert advice_s is not None
    assert 60 < advice_s <= 100


@given(
    advice=st.text(max_size=40)
    | st.from_regex(r"(Wed, )?\d{0,3} [A-Z][a-z]{2} -?\d{0,9} \d{0,3}:\d{0,3}(:\d{0,3})? [A-Z+\-0-9]{0,8}")
)
def test_any_retry_after_is_bounded_or_ignored(advice: str) -> None:
    for headers in ({"Retry-After": advice}, {"Retry-After": "Wed, 21 Oct 2026 07:28:40 GMT", "Date": advice}):
        seconds = bodies.retry_after_s(CIMultiDict(headers), json.dumps({"retry_after": advice}).encode())
        assert seconds is None or 0 <= seconds <= bodies.MAX_RETRY_AFTER_S


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Request-Id": "abc-1"}, "abc-1"),
        ({"x-baseten-request-id": "b"}, "b"),
        ({"x-amzn-RequestId": "c"}, "c"),
        ({"x-amz-request-id": "d"}, "d"),
        ({"X-Request-Id": "", "CF-Ray": "e"}, "e"),
        ({"X-Request-Id": "a\x1bb"}, "a\ufffdb"),
        ({"X-Request-Id": SECRET}, "***"),
        ({"X-Request-Id": "x" * 1000}, "x" * 128 + "\u2026"),
        ({}, None),
    ],
)
def test_request_id(headers: dict[str, str], expected: str | None) -> None:
    assert bodies.request_id(CIMultiDict(headers)) == expected


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://evil.example/v1/models?key=secret#part", "to https://evil.example/v1/models,"),
        ("https://user:secret@evil.example/x", "to https://evil.example/x,"),
        ("/login?next=secret", "to /login,"),
        ("//evil.example/x", "to //evil.example/x,"),
        ("", "to nowhere,"),
        ("https://[broken", "to something that is not a URL,"),
        (f"https://evil.example/{SECRET}", "to https://evil.example/***,"),
        ("https://evil.example/" + "x" * 2000, "\u2026,"),
    ],
)
def test_redirect(location: str, shown: str) -> None:
    told = bodies.redirect_message(location)
    assert shown in told
    assert "secret" not in told
    assert SECRET not in told
    assert "not followed" in told


@given(st.text(max_size=60) | st.from_regex(r"(https?:)?//[a-z@:/.?#\[\]0-9]{0,30}", fullmatch=True))
def test_any_redirect_can_be_told(location: str) -> None:
    assert bodies.redirect_message(location).isprintable()
