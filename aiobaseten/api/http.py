"""One request to the control plane and its answer.

It sends the key to one host only: no redirect is followed, no cookie kept, nothing but proxies taken from the environment. Every
failure is told as an error of this library. It never repeats a request; that is `endpoints`' decision.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import io
import json
import platform
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast, get_args
from urllib.parse import quote

import aiohttp
import anyio
import anyio.to_thread
import attrs
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from aiobaseten import _network
from aiobaseten._convert import Mismatch
from aiobaseten._redaction import keep_secret, scrubbing, takes_secrets
from aiobaseten._text import one_line
from aiobaseten.api import bodies
from aiobaseten.api.keys import check_api_key, check_base_url
from aiobaseten.api.limiter import TokenBucket
from aiobaseten.errors import (
    ApiError,
    AuthenticationError,
    ConfigurationError,
    InvalidPush,
    NotFoundError,
    Problem,
    RateLimited,
    ServerError,
    TransportError,
)
from aiobaseten.options import KiB, MiB, Options
from aiobaseten.retry import Clock

AuthScheme = Literal["Bearer", "Api-Key"]

MAX_CONNECTIONS = 128
MAX_ANSWER_BYTES = 64 * MiB
MAX_ERROR_BYTES = 64 * KiB
WRITE_SLICE_BYTES = 64 * KiB
CLOSE_TIMEOUT_S = 2.0

_ERRORS = {401: AuthenticationError, 403: AuthenticationError, 404: NotFoundError, 429: RateLimited}
_NO_HEADERS = CIMultiDictProxy(CIMultiDict[str]())

T = TypeVar("T")

BeforeSend = Callable[[], Awaitable[None]]


@attrs.frozen
class _Answer:
    status: int
    headers: Mapping[str, str] = attrs.field(repr=False)
    content: bytes = attrs.field(repr=False)
    whole: bool


class _TimedBody(aiohttp.BytesIOPayload):
    """A body larger than a socket takes at once, each slice of it written within the time limit."""

    def __init__(self, body: bytes, write_timeout_s: float) -> None:
        super().__init__(io.BytesIO(body), content_type="application/json")
        self._body = body
        self._write_timeout_s = write_timeout_s

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        body = self._body[:content_length]
        for start in range(0, len(body), WRITE_SLICE_BYTES):
            async with asyncio.timeout(self._write_timeout_s):
                await writer.write(body[start : start + WRITE_SLICE_BYTES])


class ControlPlane:
    """Sends requests to one host with one key. An async context manager; it belongs to the event loop it is opened on.

    :param base_url: https, or http to this machine; a path prefix is kept
    :param auth_scheme: of the ``Authorization`` header
    :param connector: makes the connections, with the arguments of aiohttp's own
    :raises ConfigurationError: if an argument cannot work; when it is opened, if `Options.ca_bundle` or the environment's proxy
        cannot be used
    """

    @takes_secrets
    def __init__(
        self,
        *,
        base_url: str,
        api_key: str,
        auth_scheme: AuthScheme = "Bearer",
        options: Options = Options(),  # noqa: B008 - frozen
        clock: Clock = Clock(),  # noqa: B008 - frozen
        connector: Callable[..., aiohttp.BaseConnector] = aiohttp.TCPConnector,
    ) -> None:
        if auth_scheme not in get_args(AuthScheme):
            raise ConfigurationError(f"auth_scheme must be 'Bearer' or 'Api-Key', not {auth_scheme!r}")
        self.base_url = check_base_url(base_url)
        self.options = options
        self.clock = clock
        self._connector = connector
        keep_secret(self, check_api_key(api_key, "the argument api_key"))
        # Given with each request: a session's headers aiohttp sends to the proxy too, the key among them.
        self._headers = CIMultiDict(
            {"Authorization": f"{auth_scheme} {api_key}", "Accept": "application/json", "User-Agent": user_agent()}
        )
        self._headers_with_body = CIMultiDict(self._headers, **{"Content-Type": "application/json"})
        self._buckets: dict[tuple[str, str], TokenBucket] = {}
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<ControlPlane {self.base_url}>"

    async def __aenter__(self) -> Self:
        if self._session is not None:
            raise ConfigurationError("the control plane is open already")
        timeouts = self.options.timeouts
        self._proxy = _network.proxy_for(self.base_url)
        tls = await anyio.to_thread.run_sync(_network.tls_context, self.options.ca_bundle, self.options.client_cert)
        self._slots = anyio.Semaphore(MAX_CONNECTIONS, fast_acquire=True)
        self._loop = asyncio.get_running_loop()
        self._session = aiohttp.ClientSession(
            # Slots bound the connections: aiohttp's own limit would count the wait for one into the time limit for connecting.
            connector=self._connector(limit=0, ssl=tls),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=timeouts.connect_s, sock_connect=timeouts.connect_s, sock_read=timeouts.read_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        # Else a GET whose kept-alive connection breaks off is sent once more, unseen by the retries and their waits.
        self._session._retry_connection = False  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        session, self._session = self._session, None
        if session is not None:
            with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await _close(session)

    async def request(
        self,
        method: str,
        route: str,
        read: Callable[[Any], T],
        *,
        path_params: Mapping[str, str] | None = None,
        query: Mapping[str, str | None] | None = None,
        body: Any = None,
        before_send: BeforeSend | None = None,
    ) -> T:
        """Send a request once, within the endpoint's rate, and return what `read` makes of the answer's JSON.

        :param route: the path, with the names of `path_params` in braces; with `method` it names the endpoint
        :param read: raises `Mismatch` for an answer of the wrong shape
        :param query: what is None is left out
        :param body: a JSON value
        :param before_send: awaited when nothing but the network stands before the request any more
        :raises InvalidPush: if a parameter or the body cannot be sent
        :raises ApiError: if the answer is an error, a redirect, or cannot be read
        :raises TransportError: if no answer came
        """
        self._open_session()
        path = _path(route, path_params)
        url = self.base_url + path + _query(query)
        data = None if body is None else _serialise(body)
        bucket = self._buckets.get((method, route))
        if bucket is None:
            bucket = self._buckets[method, route] = TokenBucket(self.options.requests_per_s, self.clock)
        await bucket.acquire()
        answer = await self._send(method, url, data, before_send)
        if 200 <= answer.status < 300:
            return self._read(answer, method, path, read)
        error = self._error(answer, method, path)
        if error.retryable and error.retry_after_s:
            bucket.pause(error.retry_after_s)
        raise error

    async def _send(self, method: str, url: str, data: bytes | None, before_send: BeforeSend | None) -> _Answer:
        payload: bytes | _TimedBody | None = data
        if data is not None and len(data) > WRITE_SLICE_BYTES:
            payload = _TimedBody(data, self.options.timeouts.read_s)
        async with self._slots:
            if before_send is not None:
                await before_send()
            with scrubbing():
                try:
                    return await self._exchange(method, url, payload)
                except (aiohttp.ClientError, OSError) as error:
                    raise self._transport_error(error) from error

    async def _exchange(self, method: str, url: str, payload: bytes | _TimedBody | None) -> _Answer:
        async with self._open_session().request(
            method,
            URL(url, encoded=True),
            data=payload,
            headers=self._headers if payload is None else self._headers_with_body,
            allow_redirects=False,
            proxy=self._proxy.url if self._proxy else None,
            proxy_headers=self._proxy.headers if self._proxy else None,
        ) as response:
            limit_bytes = MAX_ANSWER_BYTES if response.status < 300 else MAX_ERROR_BYTES
            content = await _read_up_to(response, limit_bytes)
            return _Answer(response.status, response.headers, content[:limit_bytes], len(content) <= limit_bytes)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise ConfigurationError("the control plane is not open: use it inside `async with`")
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError("the control plane was opened on another event loop")
        return self._session

    def _read(self, answer: _Answer, method: str, path: str, read: Callable[[Any], T]) -> T:
        # What the answer holds is not shown, nor carried by a chained error or its frames: it may be credentials.
        if not answer.whole:
            raise self._unreadable(answer, method, path, f"is larger than {MAX_ANSWER_BYTES // MiB} MiB")
        value = bodies.parse(answer.content)
        if value is bodies.NOT_JSON:
            kind = one_line(answer.headers.get("Content-Type", "of no type"), max_chars=80)
            error = self._unreadable(answer, method, path, f"is not JSON, but {len(answer.content)} bytes, {kind}")
            error.retryable = True  # A gateway's page, most likely.
            raise error
        try:
            with scrubbing():
                return read(value)
        except Mismatch as mismatch:
            raise self._unreadable(answer, method, path, f"is not what was asked for: {mismatch}") from mismatch
        finally:
            del value

    def _unreadable(self, answer: _Answer, method: str, path: str, reason: str) -> ApiError:
        return ApiError(
            f"the answer {reason}",
            status=answer.status,
            method=method,
            path=path,
            request_id=bodies.request_id(answer.headers),
        )

    def _error(self, answer: _Answer, method: str, path: str) -> ApiError:
        if 300 <= answer.status < 400:
            message = bodies.redirect_message(answer.headers.get("Location", ""))
        else:
            message = bodies.error_message(answer.status, answer.content)
        kind = _ERRORS.get(answer.status) or (ServerError if answer.status >= 500 else ApiError)
        return kind(
            message,
            status=answer.status,
            method=method,
            path=path,
            request_id=bodies.request_id(answer.headers),
            retry_after_s=bodies.retry_after_s(answer.headers, answer.content),
        )

    def _transport_error(self, error: aiohttp.ClientError | OSError) -> TransportError:
        if isinstance(error, aiohttp.ClientResponseError):
            # It carries the request's headers, and so the key, into its repr.
            info = error.request_info
            error.request_info = aiohttp.RequestInfo(info.url, info.method, _NO_HEADERS, info.real_url)
            error.args = (error.request_info, error.history)
        return _network.transport_error(error, self.base_url)


async def _read_up_to(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    """The body, or its beginning and at least one byte more than `limit_bytes`."""
    chunks: list[bytes] = []
    size_bytes = 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size_bytes += len(chunk)
        if size_bytes > limit_bytes:
            break
    return b"".join(chunks)


async def _close(session: aiohttp.ClientSession) -> None:
    """Close a session and let its TLS connections end: aiohttp closes them only in the loop's next rounds."""
    connector = session.connector
    await session.close()
    if connector is not None:
        await asyncio.sleep(0)


@functools.cache
def user_agent() -> str:
    """Who is calling: this library, its version, and what it runs on."""
    version = importlib.metadata.version("aiobaseten")
    return f"aiobaseten/{version} python/{platform.python_version()} aiohttp/{aiohttp.__version__} {platform.system().lower()}"


def _path(route: str, path_params: Mapping[str, str] | None) -> str:
    if path_params is None:
        return route
    return route.format_map({name: _segment(name, value) for name, value in path_params.items()})


def _segment(name: str, value: object) -> str:
    if value in (".", ".."):
        raise InvalidPush(problems=[Problem(name, f"must be an id, not {value!r}")])
    return _quoted(name, value)


def _query(query: Mapping[str, str | None] | None) -> str:
    given = [f"{name}={_quoted(name, value)}" for name, value in query.items() if value is not None] if query else []
    return "?" + "&".join(given) if given else ""


def _quoted(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidPush(problems=[Problem(name, f"must be a string that is not empty, not {value!r}")])
    try:
        return quote(value, safe="")
    except UnicodeEncodeError as error:
        raise InvalidPush(problems=[Problem(name, "holds a character that is not valid Unicode")]) from error


def _plain(value: object) -> Any:
    """A mapping that is not a dict, as json wants it."""
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    raise TypeError(f"{type(value).__name__} is not a JSON value")


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode


def _serialise(body: Any) -> bytes:
    try:
        return _encode(body).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPush(problems=[Problem("$", f"cannot be sent as JSON: {error}")]) from error
