"""How requests reach the object store: over urllib3, in worker threads.

A thread that blocks in a TLS write keeps nothing from the caller's event loop, and a part's buffer goes to the socket as it is. No
redirect is followed, nothing is repeated, no setting is taken from the environment but proxies, and every single read and write has
a time limit.
"""

from __future__ import annotations

import math
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, TypeVar

import anyio
import attrs
import urllib3
from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.httpsession import AIOHTTPSession
from botocore.awsrequest import AWSPreparedRequest
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError, ProxyError
from yarl import URL

from aiobaseten import _network
from aiobaseten._text import one_line
from aiobaseten._threads import Check, run_to_end
from aiobaseten.errors import ConfigurationError, TransportError, UploadError
from aiobaseten.options import KiB, Options
from aiobaseten.upload.bandwidth import LARGEST_SLICE_BYTES, BandwidthLimit
from aiobaseten.upload.flight import POOL_CLASSES, Flight, current_flight

T = TypeVar("T")

MAX_IDLE_CONNECTIONS = 1024
LARGEST_FAST_SLICE_BYTES, FAST_SLICE_S = 2048 * KiB, 0.005
"""Slices grow while they leave at once: each one more is a turn at the interpreter's lock."""
MAX_ANSWER_BYTES = 1024 * KiB
MAX_HOST_CHARACTERS = 255
_NOT_S3S = re.compile(rb"<!(?:DOCTYPE|ENTITY)|\0", re.IGNORECASE)
"""Of a document type, or of an encoding such as UTF-16 that would hide one."""

CLOSED = "the Client was closed while it was in use"


@attrs.frozen(kw_only=True)
class Request:
    """An HTTP request, signed.

    :param read_timeout_s: how long to wait for each byte of the answer
    :param ask_first: send the body when the store has said that it wants it (``Expect: 100-continue``)
    """

    method: str
    url: str
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: memoryview | bytes = attrs.field(repr=False)
    read_timeout_s: float
    ask_first: bool = False


@attrs.frozen(kw_only=True)
class Answer:
    """An HTTP answer, read. `headers` have lower-case names."""

    status: int
    headers: Mapping[str, str] = attrs.field(repr=False)
    content: bytes = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Sent:
    """What was sent, and what that cost.

    :param size_bytes: bytes of bodies that the system has taken
    :param cpu_s: CPU seconds of the threads that sent them, counted as each request ends
    """

    size_bytes: int
    cpu_s: float


class Transport:
    """Connections to the object store, and the threads that use them.

    :param pools: the class of connection pools for each scheme
    """

    def __init__(self, options: Options, pools: Mapping[str, Any] = POOL_CLASSES) -> None:
        self._options = options
        self._pools = pools
        self._routes: dict[str, _Route] = {}
        self._making_route = threading.Lock()
        limit = options.transfer.bandwidth_limit_bytes_per_s
        self._bandwidth = None if limit is None else BandwidthLimit(limit)
        self._counting = threading.Lock()
        self._sent = Sent(size_bytes=0, cpu_s=0.0)
        self._threads = anyio.CapacityLimiter(math.inf)
        self._scopes: set[anyio.CancelScope] = set()
        self._idle = anyio.Event()
        self._closed = False

    async def run(self, work: Callable[[Flight], T]) -> T:
        """Call `work(flight)`, which calls `exchange`, in a thread.

        A cancelled call comes back when nothing of its request's body is read any more.
        """
        if self._closed:
            raise ConfigurationError(CLOSED)
        flight = Flight(self._options.timeouts.read_s)

        def fly(_: Check) -> T:
            current_flight.set(flight)
            begun_s = time.thread_time()
            try:
                return work(flight)
            finally:
                self._count(cpu_s=time.thread_time() - begun_s)

        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                return await run_to_end(fly, interrupt=flight.call_back, limiter=self._threads)
            finally:
                self._scopes.discard(scope)
                if self._closed and not self._scopes:
                    self._idle.set()
        raise ConfigurationError(CLOSED)

    def exchange(self, flight: Flight, request: Request) -> Answer:
        """Send a request and read its answer, whatever it says. Blocks: for use in `run`.

        :raises TransportError: if there is no answer
        """
        flight.check()
        origin, target = _split(request.url)
        route = self._route_to(origin)
        headers: dict[str, Any] = {**request.headers, "Content-Length": str(len(request.body))}
        if request.ask_first:
            headers["Expect"] = b"100-continue"  # as bytes, which botocore's connections look for
        slices: Any = self._slices(flight, request.body)  # urllib3's types know no memoryview, its sockets do
        try:
            response = route.pool.urlopen(
                request.method,
                target,
                body=slices,
                headers=headers,
                retries=False,
                redirect=False,
                timeout=urllib3.Timeout(connect=self._options.timeouts.connect_s, read=request.read_timeout_s),
                assert_same_host=False,
                preload_content=False,
                decode_content=False,
            )
            content = _read(response)
        except (HTTPError, OSError) as error:
            flight.check()
            raise _transport_error(error, flight, origin) from (flight.send_error or error)
        told = {name.lower(): value for name, value in response.headers.items()}
        return Answer(status=response.status, headers=told, content=content)

    @property
    def sent(self) -> Sent:
        """All that was sent so far."""
        return self._sent

    async def aclose(self) -> None:
        """End what is under way, and close all connections."""
        self._closed = True
        for scope in self._scopes:
            scope.cancel()
        try:
            if self._scopes:
                await self._idle.wait()
        finally:
            for route in self._routes.values():
                route.pool.close()

    def _slices(self, flight: Flight, body: memoryview | bytes) -> Iterator[memoryview]:
        view = memoryview(body)
        if self._bandwidth is not None:
            yield from self._paced_slices(flight, view, self._bandwidth)
            return
        start, slice_bytes = 0, LARGEST_SLICE_BYTES
        while start < len(view):
            flight.check()
            piece = view[start : start + slice_bytes]
            start += slice_bytes
            begun_s = time.monotonic()
            yield piece
            self._count(size_bytes=len(piece))
            is_fast = time.monotonic() - begun_s < FAST_SLICE_S
            slice_bytes = min(2 * slice_bytes, LARGEST_FAST_SLICE_BYTES) if is_fast else LARGEST_SLICE_BYTES

    def _paced_slices(self, flight: Flight, view: memoryview, bandwidth: BandwidthLimit) -> Iterator[memoryview]:
        for start in range(0, len(view), bandwidth.slice_bytes):
            piece = view[start : start + bandwidth.slice_bytes]
            flight.wait(bandwidth.reserve(len(piece)))
            yield piece
            self._count(size_bytes=len(piece))

    def _count(self, *, size_bytes: int = 0, cpu_s: float = 0.0) -> None:
        with self._counting:
            self._sent = Sent(size_bytes=self._sent.size_bytes + size_bytes, cpu_s=self._sent.cpu_s + cpu_s)

    def _route_to(self, origin: str) -> _Route:
        with self._making_route:
            if origin not in self._routes:
                self._routes[origin] = _make_route(origin, self._options, self._pools)
            return self._routes[origin]


@attrs.frozen(kw_only=True)
class _Route:
    """The way to a host, through a proxy's tunnel if there is one."""

    pool: urllib3.HTTPConnectionPool
    proxy: _network.Proxy | None


def _make_route(origin: str, options: Options, pools: Mapping[str, Any]) -> _Route:
    tls = _network.tls_context(options.ca_bundle, options.client_cert)
    proxy = _network.proxy_for(origin)
    if proxy is None:
        manager = urllib3.PoolManager(maxsize=MAX_IDLE_CONNECTIONS, ssl_context=tls)
    else:
        manager = urllib3.ProxyManager(
            str(proxy.url), maxsize=MAX_IDLE_CONNECTIONS, ssl_context=tls, proxy_ssl_context=tls, proxy_headers=proxy.headers
        )
    manager.pool_classes_by_scheme = dict(pools)
    return _Route(pool=manager.connection_from_url(origin), proxy=proxy)


def _split(url: str) -> tuple[str, str]:
    """A URL's scheme and host, and the rest as it stands: what was signed must not be tidied up."""
    scheme, _, rest = url.partition("://")
    host, slash, target = rest.partition("/")
    return f"{scheme}://{host}", slash + target or "/"


def _read(response: urllib3.BaseHTTPResponse) -> bytes:
    """The body, or its first `MAX_ANSWER_BYTES`.

    :raises HTTPError: if it ends early
    """
    content = bytearray()
    while piece := response.read(MAX_ANSWER_BYTES - len(content), decode_content=False):  # only an empty read tells of an early end
        content += piece
        if len(content) == MAX_ANSWER_BYTES:
            response.close()
            return bytes(content)
    response.release_conn()
    return bytes(content)


def _transport_error(error: HTTPError | OSError, flight: Flight, origin: str) -> TransportError:
    """Say in words why a request got no answer."""
    host = URL(origin).host
    root = _root_of(error)
    match error:
        case _ if isinstance(root, ssl.SSLCertVerificationError):
            return _network.untrusted(host, root)
        case ProxyError():
            return TransportError(f"the proxy for {host} does not let the connection through: {_words(root)}", request_sent=False)
        case NameResolutionError():
            return TransportError(f"the host name {host} cannot be resolved: {_words(root)}", request_sent=False)
        case NewConnectionError():
            return TransportError(f"cannot connect to {host}: {_words(root)}", request_sent=False)
        case _ if not flight.request_sent and isinstance(root, TimeoutError):
            return TransportError(f"no connection to {host} in time", request_sent=False)
        case _ if isinstance(root, TimeoutError):
            return TransportError(f"{host} did not answer in time")
        case _:
            words = _words(flight.send_error or root)
            return TransportError(f"the connection to {host} broke off: {words}", request_sent=flight.request_sent)


def _root_of(error: BaseException) -> BaseException:
    """The first cause: urllib3 passes it on as the error's cause, or as its last argument."""
    while True:
        inner = error.__cause__ or (error.args[-1] if error.args else None)
        if not isinstance(inner, BaseException):
            return error
        error = inner


def _words(error: BaseException) -> str:
    return getattr(error, "strerror", None) or one_line(str(error)) or type(error).__name__


@attrs.frozen
class ReadContent:
    """An answer's body, already read, as aiobotocore asks for it."""

    content: bytes

    async def read(self) -> bytes:
        return self.content


class S3Session(AIOHTTPSession):
    """What aiobotocore sends the requests of its clients with. Its base class is for the types only."""

    transport: Transport
    options: Options

    def __init__(self, **_: Any) -> None:
        pass

    @classmethod
    def over(cls, transport: Transport, options: Options) -> type[S3Session]:
        """The class for aiobotocore to make its session from."""
        return type("BoundS3Session", (cls,), {"transport": transport, "options": options})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """The transport is its owner's to close."""

    async def close(self) -> None:
        """As `__aexit__`."""

    async def _send(self, request: AWSPreparedRequest) -> AioAWSResponse:
        """Make one exchange.

        :raises TransportError: if there is no answer
        :raises UploadError: if the answer is a redirect, or none of S3's
        """
        timeouts = self.options.timeouts
        completes = request.method == "POST" and "uploadId=" in request.url
        body: Any = request.body or b""
        wanted = Request(
            method=request.method,
            url=request.url,
            headers=dict(_text_items(request.headers)),
            body=body,
            read_timeout_s=timeouts.complete_s if completes else timeouts.read_s,
        )
        answer = await self.transport.run(lambda flight: self.transport.exchange(flight, wanted))
        answer = checked(answer)
        headers: Any = answer.headers
        return AioAWSResponse(request.url, answer.status, headers, ReadContent(answer.content))

    send: Any = _send  # The stubs have it take and return what requests does, which it never did.


def _text_items(headers: Any) -> Iterator[tuple[str, str]]:
    for name, value in headers.items():
        yield name, value.decode() if isinstance(value, bytes) else str(value)


def checked(answer: Answer) -> Answer:
    """An answer that may be parsed: S3's have no document type, whose entities could stand for gigabytes.

    :raises UploadError: if it has one, or if the store sends the push's credentials elsewhere
    """
    _refuse_redirect(answer)
    if not _NOT_S3S.search(answer.content):
        return answer
    if answer.status < 300:
        raise UploadError("the store's answer is not XML as S3 writes it", status=answer.status, retryable=True)
    return attrs.evolve(answer, content=b"")  # Then its status says it, as of a proxy's page.


def _refuse_redirect(answer: Answer) -> None:
    if not 300 <= answer.status < 400:
        return
    parsed = _network.parse_url(answer.headers.get("location", ""))
    host = parsed.host if parsed is not None else None
    where = one_line(host or answer.headers.get("x-amz-bucket-region") or "", max_chars=MAX_HOST_CHARACTERS)
    raise UploadError(
        f"the store redirects to {where or 'another place'}, which is not followed with the push's credentials;"
        " the bucket may be in another region than prepare said",
        code="Redirect",
        status=answer.status,
    )
