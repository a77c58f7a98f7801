"""How requests of the S3 client travel: an HTTP session for aiobotocore that sends part buffers without a copy.

It differs from aiobotocore's own in what it refuses: no redirect is followed, no setting is taken from the environment but proxies,
a stalled write times out, and when `send` is over, nothing reads from the body's buffer any more.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from typing import Any, Self

import aiohttp
import attrs
from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.httpsession import AIOHTTPSession
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict
from yarl import URL

from aiobaseten import _network
from aiobaseten.errors import UploadError
from aiobaseten.options import KiB, Options

SLICE_BYTES = 256 * KiB
KEEPALIVE_S = 15.0
MAX_ANSWER_BYTES = 1024 * KiB


class PartBody(io.RawIOBase):
    """A part's buffer as the file that botocore wants: it refuses memoryviews."""

    def __init__(self, buffer: memoryview) -> None:
        self.buffer = buffer
        self._position = 0

    def __len__(self) -> int:
        return len(self.buffer)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self.buffer)}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, target: Any) -> int:
        piece = self.buffer[self._position : self._position + len(target)]
        target[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


class _BufferPayload(aiohttp.Payload):
    """Writes a buffer slice by slice, each within the time limit."""

    _autoclose = True

    def __init__(self, buffer: memoryview, write_timeout_s: float) -> None:
        super().__init__(buffer, content_type="application/octet-stream")
        self._buffer = buffer
        self._size = len(buffer)
        self._write_timeout_s = write_timeout_s
        self._transport: asyncio.WriteTransport | None = None

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._buffer).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        if self._transport is not None:  # aiohttp repeats a broken PUT by itself, unseen by our retries
            raise aiohttp.ClientConnectionError("the connection broke off")
        self._transport = getattr(writer, "transport", None)
        for piece in self._slices():
            async with asyncio.timeout(self._write_timeout_s):
                await writer.write(piece)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:  # noqa: ARG002 - it is ours
        await self.write(writer)

    def let_go(self) -> None:
        """Drop the connection if it still holds slices of the buffer: it must not send them once the buffer has another use."""
        transport = self._transport
        if transport is not None and (transport.is_closing() or transport.get_write_buffer_size()):
            transport.abort()

    def _slices(self) -> Iterator[memoryview]:
        for start in range(0, len(self._buffer), SLICE_BYTES):
            yield self._buffer[start : start + SLICE_BYTES]


@attrs.frozen
class _ReadContent:
    """An answer's body, already read, as aiobotocore asks for it."""

    content: bytes

    async def read(self) -> bytes:
        return self.content


class S3Session(AIOHTTPSession):
    """The session class that `for_options` hands to the S3 client."""

    options: Options

    def __init__(self, **_: Any) -> None:
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def for_options(cls, options: Options) -> type[S3Session]:
        """The class that aiobotocore makes its session from, with these options bound."""
        return type("BoundS3Session", (cls,), {"options": options})

    async def __aenter__(self) -> Self:
        timeouts = self.options.timeouts
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, ssl=_network.tls_context(self.options.ca_bundle), keepalive_timeout=KEEPALIVE_S
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s, sock_read=timeouts.read_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers={"Content-Type"},
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await _network.close_session(self._session)
            self._session = None

    async def send(  # pyright: ignore[reportIncompatibleMethodOverride]  # the stubs say requests.Response, which it never was
        self, request: Any
    ) -> AioAWSResponse:
        """Send a prepared request once.

        :raises TransportError: when no answer came back
        :raises UploadError: when the answer is a redirect
        """
        assert self._session is not None, "the S3 client was closed"
        timeouts = self.options.timeouts
        body = request.body
        payload = _BufferPayload(body.buffer, timeouts.read_s) if isinstance(body, PartBody) else None
        headers = CIMultiDict(_text_items(request.headers))
        headers.pop("Expect", None)
        headers["Accept-Encoding"] = "identity"
        proxy = _network.proxy_for(request.url)
        if proxy is not None and proxy.headers and request.url.startswith("http:"):
            headers.update(proxy.headers)  # aiohttp sends its proxy_headers only to open a tunnel
        completes = request.method == "POST" and "uploadId=" in request.url
        read_s = timeouts.complete_s if completes else timeouts.read_s
        try:
            async with self._session.request(
                request.method,
                URL(request.url, encoded=True),
                headers=headers,
                data=payload or body or None,
                proxy=proxy.url if proxy else None,
                proxy_headers=proxy.headers if proxy else None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s, sock_read=read_s),
            ) as response:
                content = await _network.read_up_to(response, MAX_ANSWER_BYTES)
        except (aiohttp.ClientError, OSError) as error:
            raise _network.transport_error(error, request.url) from error
        finally:
            if payload is not None:
                payload.let_go()
        if 300 <= response.status < 400:
            raise _redirect_error(response)
        return AioAWSResponse(
            str(response.url),
            response.status,
            {name.decode().lower(): value.decode("latin-1") for name, value in response.raw_headers},  # type: ignore[arg-type]  # a mapping will do
            _ReadContent(content),
        )


def _text_items(headers: Any) -> Iterator[tuple[str, str]]:
    for name, value in headers.items():
        yield name, value.decode() if isinstance(value, bytes) else str(value)


def _redirect_error(response: aiohttp.ClientResponse) -> UploadError:
    location = response.headers.get("Location", "")
    parsed = _network.parse_url(location)
    where = (parsed and parsed.host) or response.headers.get("x-amz-bucket-region")
    return UploadError(
        f"the store redirects to {where or 'another place'}, which is not followed with the push's credentials;"
        " the bucket may be in another region than prepare said",
        code="Redirect",
        status=response.status,
    )
