"""What can go wrong with a call, as values for `FaultyStack.inject`.

::

    faulty.inject("UploadPart", faults.slow_down(), part_number=2, times=3)
    faulty.inject("create_model", faults.ReplyLost())

Each fault says whether the service has acted when the caller sees it. `COMMON` names one of each kind, with the calls that it can
happen to. A fault of your own is a class with a `strike`.
"""

from __future__ import annotations

import errno
import html
import json
import math
import os
import socket
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal, Protocol

import attrs

from aiobaseten.errors import ConfigurationError
from aiobaseten.local.calls import CALLS, S3_CALLS, Call

STALL_CHECK_S = 0.02


@attrs.frozen(kw_only=True)
class Reply:
    """An HTTP answer."""

    status: int = 200
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])
    body: bytes = b""


class Exchange(Protocol):
    """A call that is held between the caller and the service, for a fault to do with as it likes."""

    @property
    def call(self) -> Call:
        """What it is called."""
        ...

    @property
    def is_s3(self) -> bool:
        """Whether it goes to the object store."""
        ...

    @property
    def is_gone(self) -> bool:
        """Whether the caller has hung up."""
        ...

    @property
    def asks_first(self) -> bool:
        """Whether the caller waits to be told that its body is wanted (``Expect: 100-continue``)."""
        ...

    async def read_body(self, share: float = 1.0) -> None:
        """Take so much of the caller's body, from 0 to 1, and let the service see none of it. Of a body whose length is not told,
        anything between is its first piece."""
        ...

    async def forward(self, *, flip_bit: bool = False) -> Reply:
        """Let the service act.

        :param flip_bit: damage the body's first bit on the way
        """
        ...

    def reset(self) -> None:
        """Break the connection off, as a process that is killed does."""
        ...

    async def send_raw(
        self, reply: Reply, *, cut_in: Literal["head", "body"] | None = None, bytes_per_s: float | None = None
    ) -> None:
        """Send an answer, or what comes before the middle of its head or body, in that rhythm; then close the connection."""
        ...

    async def answer(self, reply: Reply) -> None:
        """Send an answer as a service does."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        ...


class Fault(Protocol):
    """What happens to a call in place of what should."""

    async def strike(self, exchange: Exchange) -> None:
        """Let it happen."""
        ...


@attrs.frozen
class Refused:
    """No connection: nobody listens. Happens in the clients of `FaultyStack.client` only, before anything is sent."""

    def error(self) -> OSError:
        return ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


@attrs.frozen
class NameUnresolved:
    """No connection: DNS knows no such host. Happens in the clients of `FaultyStack.client` only, before anything is sent."""

    def error(self) -> OSError:
        return socket.gaierror(socket.EAI_NONAME, "Name or service not known")


DialFault = Refused | NameUnresolved
AnyFault = Fault | DialFault


def _at_least(low: float, *, at_most: float = math.inf, above: bool = False) -> Any:
    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= at_most or (above and value == low):
            bound = f"above {low}" if above else f"from {low} to {at_most}" if at_most < math.inf else f"of at least {low}"
            raise ConfigurationError(f"{type(instance).__name__}.{attribute.name} must be a number {bound}, not {value!r}")

    return check


@attrs.frozen(kw_only=True)
class Reset:
    """The connection is reset, and the service never sees the call.

    :param after: how much of the body is taken before that: 0 none, 1 all of it
    """

    after: float = attrs.field(default=1.0, validator=_at_least(0, at_most=1))

    async def strike(self, exchange: Exchange) -> None:
        await exchange.read_body(self.after)
        exchange.reset()


@attrs.frozen
class ReplyLost:
    """The service acts, and the connection is reset before its answer."""

    async def strike(self, exchange: Exchange) -> None:
        await exchange.forward()
        exchange.reset()


@attrs.frozen(kw_only=True)
class Stall:
    """The answer takes long.

    :param delay_s: until it is sent; None: it never is
    :param acts: whether the service acts, at once, or never sees the call, whose body is not taken either
    """

    delay_s: float | None = attrs.field(default=None, validator=attrs.validators.optional(_at_least(0)))
    acts: bool = True

    async def strike(self, exchange: Exchange) -> None:
        reply = await exchange.forward() if self.acts else Reply(status=HTTPStatus.GATEWAY_TIMEOUT)
        waited_s = 0.0
        while not exchange.is_gone and (self.delay_s is None or waited_s < self.delay_s):
            await exchange.sleep(STALL_CHECK_S)
            waited_s += STALL_CHECK_S
        await exchange.answer(reply)


@attrs.frozen(kw_only=True)
class Trickle:
    """The service acts, and its answer comes in small pieces."""

    bytes_per_s: float = attrs.field(default=1000.0, validator=_at_least(0, above=True))

    async def strike(self, exchange: Exchange) -> None:
        await exchange.send_raw(await exchange.forward(), bytes_per_s=self.bytes_per_s)


@attrs.frozen(kw_only=True)
class TruncatedReply:
    """The service acts, and the connection ends in the middle of its answer.

    :param within: its head or its body. Some answers have no body
    """

    within: Literal["head", "body"] = attrs.field(default="body", validator=attrs.validators.in_(("head", "body")))

    async def strike(self, exchange: Exchange) -> None:
        await exchange.send_raw(await exchange.forward(), cut_in=self.within)


@attrs.frozen
class FlippedBit:
    """The body's first bit is another when the service gets it."""

    async def strike(self, exchange: Exchange) -> None:
        await exchange.answer(await exchange.forward(flip_bit=True))


@attrs.frozen(kw_only=True)
class WrongReply:
    """Another answer than the service's own.

    :param acts: whether the service acts all the same
    :param early: answer without having taken the body. Whoever asks first whether it is wanted is always answered so
    """

    reply: Reply
    acts: bool = False
    early: bool = False

    async def strike(self, exchange: Exchange) -> None:
        if self.acts:
            await exchange.forward()
        elif not (self.early or exchange.asks_first):
            await exchange.read_body()
        await exchange.answer(self.reply)


@attrs.frozen(kw_only=True)
class ErrorReply:
    """An error in the words of whichever plane is called: JSON from the control plane, XML from S3.

    :param status: 200 for an error that only the body tells
    :param code: S3's name for it
    :param acts: whether the service acts all the same
    :param early: as `WrongReply.early`
    """

    status: int
    code: str
    message: str = "injected by the local stack"
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])
    retry_after_s: float | None = None
    acts: bool = False
    early: bool = False

    async def strike(self, exchange: Exchange) -> None:
        reply = self._xml() if exchange.is_s3 else self._json()
        await WrongReply(reply=reply, acts=self.acts, early=self.early).strike(exchange)

    def _xml(self) -> Reply:
        told = f"<Code>{html.escape(self.code)}</Code><Message>{html.escape(self.message)}</Message>"
        body = f'<?xml version="1.0"?><Error>{told}</Error>'
        return Reply(status=self.status, headers={"Content-Type": "application/xml", **self.headers}, body=body.encode())

    def _json(self) -> Reply:
        said = {"error": f"{self.code}: {self.message}"} | (
            {} if self.retry_after_s is None else {"retry_after": self.retry_after_s}
        )
        return Reply(
            status=self.status, headers={"Content-Type": "application/json", **self.headers}, body=json.dumps(said).encode()
        )


def rate_limited(retry_after_s: float = 1.0) -> ErrorReply:
    """429, with the seconds to wait in the body and in the header ``Retry-After``."""
    headers = {"Retry-After": f"{retry_after_s:g}"}
    return ErrorReply(status=429, code="TooManyRequests", headers=headers, retry_after_s=retry_after_s)


def internal_error(*, acts: bool = False) -> ErrorReply:
    """500."""
    return ErrorReply(status=500, code="InternalError", acts=acts)


def bad_gateway(*, acts: bool = False) -> WrongReply:
    """502 and a page of HTML, as load balancers write it."""
    page = b"<html><head><title>502 Bad Gateway</title></head></html>"
    return WrongReply(reply=Reply(status=502, headers={"Content-Type": "text/html"}, body=page), acts=acts)


def slow_down(*, early: bool = False) -> ErrorReply:
    """503 SlowDown: fewer requests, please."""
    return ErrorReply(status=503, code="SlowDown", early=early)


def error_in_200(code: str = "InternalError", *, acts: bool = False) -> ErrorReply:
    """200, and the body tells of an error, as S3's Complete may."""
    return ErrorReply(status=200, code=code, acts=acts)


def expired_token() -> ErrorReply:
    """400 ExpiredToken: the scoped credentials have run out."""
    return ErrorReply(status=400, code="ExpiredToken")


def access_denied() -> ErrorReply:
    """403 AccessDenied."""
    return ErrorReply(status=403, code="AccessDenied")


def time_too_skewed() -> ErrorReply:
    """403 RequestTimeTooSkewed: this machine's clock is off."""
    return ErrorReply(status=403, code="RequestTimeTooSkewed")


def bad_digest() -> ErrorReply:
    """400 BadDigest: the body is not the one that the checksum was made of."""
    return ErrorReply(status=400, code="BadDigest")


def garbage(*, acts: bool = False) -> WrongReply:
    """200, and a body that is neither JSON nor XML."""
    body = b"\x00\xff<garbage \xfe{"
    return WrongReply(reply=Reply(headers={"Content-Type": "application/octet-stream"}, body=body), acts=acts)


def redirect(url: str = "https://elsewhere.example/") -> WrongReply:
    """307 to another host."""
    return WrongReply(reply=Reply(status=307, headers={"Location": url}))


def wrong_region(region: str = "eu-west-1") -> ErrorReply:
    """301 PermanentRedirect: the bucket is in another region."""
    return ErrorReply(status=301, code="PermanentRedirect", headers={"x-amz-bucket-region": region})


_ALL = frozenset(CALLS)
_OF_S3 = frozenset[Call](S3_CALLS)
_WITH_DATA = frozenset[Call](("PutObject", "UploadPart"))
_COMMITS = frozenset[Call](("create_model", "create_deployment"))
_WITH_BODY = _WITH_DATA | _COMMITS | frozenset[Call](("prepare_model_upload", "CompleteMultipartUpload"))
_CHECKED = _WITH_DATA | frozenset[Call](("CompleteMultipartUpload",))
_HEAD = frozenset[Call](("HeadObject",))
_ANSWERED_WITH_BODY = _ALL - _WITH_DATA - _HEAD - frozenset[Call](("AbortMultipartUpload",))
_MAKERS = _COMMITS | _WITH_DATA | frozenset[Call](("CreateMultipartUpload", "CompleteMultipartUpload", "AbortMultipartUpload"))


@attrs.frozen(kw_only=True)
class Common:
    """A kind of fault, and the calls that it can happen to."""

    fault: AnyFault
    calls: frozenset[Call] = _ALL


COMMON: Mapping[str, Common] = {
    "refused": Common(fault=Refused()),
    "name unresolved": Common(fault=NameUnresolved()),
    "reset before the body": Common(fault=Reset(after=0.0)),
    "reset in the body": Common(fault=Reset(after=0.5), calls=_WITH_BODY),
    "reset after the body": Common(fault=Reset(after=1.0), calls=_WITH_BODY),
    "reply lost": Common(fault=ReplyLost()),
    "stall": Common(fault=Stall()),
    "stall before acting": Common(fault=Stall(acts=False)),
    "trickle": Common(fault=Trickle()),
    "reply cut in its head": Common(fault=TruncatedReply(within="head")),
    "reply cut in its body": Common(fault=TruncatedReply(within="body"), calls=_ANSWERED_WITH_BODY),
    "429": Common(fault=rate_limited()),
    "500": Common(fault=internal_error()),
    "500 after acting": Common(fault=internal_error(acts=True)),
    "502": Common(fault=bad_gateway()),
    "502 after acting": Common(fault=bad_gateway(acts=True)),
    "503 SlowDown": Common(fault=slow_down()),
    "503 before the body": Common(fault=slow_down(early=True), calls=_WITH_BODY),
    "error in a 200": Common(fault=error_in_200(), calls=_ALL - _HEAD),
    "error in a 200 after acting": Common(fault=error_in_200(acts=True), calls=_MAKERS),
    "ExpiredToken": Common(fault=expired_token(), calls=_OF_S3),
    "AccessDenied": Common(fault=access_denied()),
    "RequestTimeTooSkewed": Common(fault=time_too_skewed(), calls=_OF_S3),
    "BadDigest": Common(fault=bad_digest(), calls=_CHECKED),
    "flipped bit": Common(fault=FlippedBit(), calls=_WITH_DATA),
    "garbage": Common(fault=garbage(), calls=_ALL - _HEAD),
    "garbage after acting": Common(fault=garbage(acts=True), calls=_MAKERS),
    "redirect": Common(fault=redirect()),
    "another region": Common(fault=wrong_region(), calls=_OF_S3),
}
"""One fault of each kind, by its name."""
