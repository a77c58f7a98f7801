"""Ways to carry parts to the store, cut down to what differs: ``python transports.py [--quick]``. It chose what aiobaseten does.

Each reads the same file part by part into reused buffers, takes the CRC64NVME of each, and sends as many parts at once as the
others. What differs is who signs, and where the bytes are written: aiobotocore's client over aiohttp on the caller's loop, the
same on an event loop in a thread of its own, the same client over botocore's own urllib3 session in threads, and requests that are
put together without the client and signed by botocore's signer, over aiohttp and over urllib3.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import ssl
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Self

import attrs
from processes import exit_on_sigterm, run_script, sink
from report import MIB, Cell, Result, Table, arguments, finish

PART_BYTES = 8 * MIB
SLICE_BYTES = 256 * 1024
CONNECTIONS = 4
WARM_PARTS = 8
ACCESS_KEY, SECRET_KEY, TOKEN, REGION = "AKIABENCHMARK", "benchmark-secret", "benchmark-token", "us-west-2"


@attrs.frozen(kw_only=True)
class Settings:
    """Where to, and what."""

    url: str
    ca_bundle: str
    file: str


Put = Callable[[int, memoryview, str], Awaitable[None]]
"""Sends one part: its number, its bytes, its checksum as S3 writes it."""


class Body(io.RawIOBase):
    """A part's buffer as the file that botocore wants."""

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
        self._position = start + offset
        return self._position

    def readinto(self, target: Any) -> int:
        piece = self.buffer[self._position : self._position + len(target)]
        target[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


async def client_over(session_class: type, settings: Settings) -> Put:
    """aioboto3's client, over a session of ours."""
    import aioboto3
    from aiobotocore.config import AioConfig

    session: Any = aioboto3.Session(ACCESS_KEY, SECRET_KEY, TOKEN, REGION)
    config = AioConfig(
        http_session_cls=session_class,
        request_checksum_calculation="when_required",
        s3={"payload_signing_enabled": False, "addressing_style": "path"},
    )
    client = await session.client("s3", endpoint_url=settings.url, config=config).__aenter__()

    async def put(number: int, part: memoryview, checksum: str) -> None:
        await client.upload_part(
            Bucket="bucket", Key="key", UploadId="1", PartNumber=number, Body=Body(part), ChecksumCRC64NVME=checksum
        )

    return put


class Read:
    """An answer's body, which is empty."""

    async def read(self) -> bytes:
        return b""


def slices_payload() -> type:
    """Writes the buffer itself, in slices, where aiohttp's own payload would read and copy it in pieces of 64 KiB."""
    import aiohttp

    class Slices(aiohttp.Payload):
        _autoclose = True

        def __init__(self, buffer: memoryview) -> None:
            super().__init__(buffer)
            self._size = len(buffer)

        def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
            raise NotImplementedError

        async def write(self, writer: Any) -> None:
            for start in range(0, len(self._value), SLICE_BYTES):
                await writer.write(self._value[start : start + SLICE_BYTES])

        async def write_with_length(self, writer: Any, content_length: int | None) -> None:  # noqa: ARG002 - it is ours
            await self.write(writer)

    return Slices


def aiohttp_session(settings: Settings) -> type:
    """As aiobotocore's own, but for how it writes the body."""
    import aiohttp
    from aiobotocore.awsrequest import AioAWSResponse
    from aiobotocore.httpsession import AIOHTTPSession
    from yarl import URL

    slices = slices_payload()

    class Session(AIOHTTPSession):
        async def __aenter__(self) -> Self:
            tls = ssl.create_default_context(cafile=settings.ca_bundle)
            self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=tls))
            return self

        async def send(self, request: Any) -> Any:
            del request.headers["Expect"]
            headers = {name: value.decode() if isinstance(value, bytes) else value for name, value in request.headers.items()}
            url = URL(request.url, encoded=True)
            async with self.session.put(url, headers=headers, data=slices(request.body.buffer)) as response:
                await response.read()
            return AioAWSResponse(request.url, response.status, response.headers, Read())

    return Session


def urllib3_session(settings: Settings) -> type:
    """botocore's own session for blocking calls, in threads, with larger blocks than urllib3's 16 KiB."""
    from aiobotocore.awsrequest import AioAWSResponse
    from aiobotocore.httpsession import AIOHTTPSession
    from botocore.httpsession import URLLib3Session

    class LargeBlocks(URLLib3Session):
        def _get_pool_manager_kwargs(self, **extra: Any) -> dict[str, Any]:
            return super()._get_pool_manager_kwargs(blocksize=SLICE_BYTES, **extra)

    blocking = LargeBlocks(verify=settings.ca_bundle, max_pool_connections=CONNECTIONS)

    class Session(AIOHTTPSession):
        async def send(self, request: Any) -> Any:
            request.headers.pop("Expect", None)
            response = await asyncio.to_thread(blocking.send, request)
            return AioAWSResponse(request.url, response.status_code, response.headers, Read())

    return Session


async def on_the_callers_loop(settings: Settings) -> Put:
    return await client_over(aiohttp_session(settings), settings)


async def elsewhere(start: Callable[[], Awaitable[Put]]) -> Put:
    """What `start` gives, on an event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    starting: Any = start()
    there = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(starting, loop))

    async def put(number: int, part: memoryview, checksum: str) -> None:
        sending: Any = there(number, part, checksum)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(sending, loop))

    return put


async def on_a_loop_of_its_own(settings: Settings) -> Put:
    return await elsewhere(lambda: on_the_callers_loop(settings))


async def on_a_loop_without_the_client(settings: Settings) -> Put:
    return await elsewhere(lambda: without_the_client(settings))


async def in_threads_of_botocore(settings: Settings) -> Put:
    return await client_over(urllib3_session(settings), settings)


def signed_headers(url: str, part: memoryview, checksum: str) -> dict[str, str]:
    """What botocore's signer makes of a request."""
    from botocore.auth import UNSIGNED_PAYLOAD, S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import ReadOnlyCredentials

    class Signer(S3SigV4Auth):
        def payload(self, request: AWSRequest) -> str:  # noqa: ARG002 - as botocore calls it
            return UNSIGNED_PAYLOAD

    request = AWSRequest("PUT", url, headers={"x-amz-checksum-crc64nvme": checksum})
    Signer(ReadOnlyCredentials(ACCESS_KEY, SECRET_KEY, TOKEN), "s3", REGION).add_auth(request)
    return {**dict(request.headers.items()), "Content-Length": str(len(part))}


def part_url(settings: Settings, number: int) -> str:
    return f"{settings.url}/bucket/key?partNumber={number}&uploadId=1"


async def without_the_client(settings: Settings) -> Put:
    import aiohttp
    from yarl import URL

    slices = slices_payload()
    tls = ssl.create_default_context(cafile=settings.ca_bundle)
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=tls))

    async def put(number: int, part: memoryview, checksum: str) -> None:
        url = part_url(settings, number)
        headers = signed_headers(url, part, checksum)
        async with session.put(URL(url, encoded=True), headers=headers, data=slices(part)) as response:
            assert response.status == 200

    return put


async def in_threads_without_the_client(settings: Settings) -> Put:
    import urllib3

    pool = urllib3.PoolManager(maxsize=CONNECTIONS, ssl_context=ssl.create_default_context(cafile=settings.ca_bundle))

    def send(number: int, part: memoryview, checksum: str) -> None:
        url = part_url(settings, number)
        headers = signed_headers(url, part, checksum)
        slices: Any = (part[start : start + SLICE_BYTES] for start in range(0, len(part), SLICE_BYTES))
        assert pool.urlopen("PUT", url, body=slices, headers=headers, retries=False).status == 200

    return partial(asyncio.to_thread, send)


CANDIDATES: dict[str, Callable[[Settings], Awaitable[Put]]] = {
    "aioboto3's client, aiohttp on the caller's loop": on_the_callers_loop,
    "aioboto3's client, aiohttp on a loop of its own": on_a_loop_of_its_own,
    "aioboto3's client, botocore's urllib3 session in threads": in_threads_of_botocore,
    "signed without the client, aiohttp on a loop of its own": on_a_loop_without_the_client,
    "signed without the client, urllib3 in threads": in_threads_without_the_client,
}


async def upload(put: Put, file: str, parts: int) -> None:
    """Send the file's parts, so many in turn, `CONNECTIONS` at once."""
    from awscrt import checksums

    numbers = iter(range(parts))
    descriptor = os.open(file, os.O_RDONLY)
    executor = ThreadPoolExecutor(CONNECTIONS)

    def fill(number: int, buffer: memoryview) -> str:
        os.preadv(descriptor, [buffer], number * PART_BYTES)
        crc: int = checksums.crc64nvme(buffer)
        return base64.b64encode(crc.to_bytes(8, "big")).decode()

    async def work() -> None:
        buffer = memoryview(bytearray(PART_BYTES))
        for number in numbers:
            checksum = await asyncio.get_running_loop().run_in_executor(executor, fill, number, buffer)
            await put(number + 1, buffer, checksum)

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    os.close(descriptor)


async def measure(name: str, settings: Settings) -> dict[str, float]:
    from clients import Client, measure

    put = await CANDIDATES[name](settings)
    await upload(put, settings.file, WARM_PARTS)
    parts = os.stat(settings.file).st_size // PART_BYTES  # noqa: PTH116 - nothing else runs yet
    return await measure(Client(upload=lambda model: upload(put, str(model), parts)), Path(settings.file))


def run(size_mib: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in CANDIDATES}
    names = list(CANDIDATES)
    with tempfile.TemporaryDirectory(prefix="aiobaseten-bench-") as directory, sink("--tls") as endpoint:
        file = Path(directory) / "archive.bin"
        with file.open("wb") as content:
            for _ in range(size_mib):
                content.write(os.urandom(MIB))
        settings = json.dumps({"url": endpoint.url, "ca_bundle": endpoint.ca_bundle, "file": str(file)})
        for number in range(rounds):
            first = number % len(names)
            for name in (*names[first:], *names[:first]):
                output = run_script("transports.py", "--candidate", name, settings, timeout_s=60 + size_mib / 20)
                measured[name].append(json.loads(output))
            sys.stderr.write(f"round {number + 1} of {rounds}\n")
    return measured


def row(name: str, measured: list[dict[str, float]], size_mib: int) -> list[Cell]:
    def middle(measure: str) -> float:
        return median(each[measure] for each in measured)

    cpu_s_per_gib = middle("cpu_s") * 1024 / size_mib
    return [name, size_mib / middle("wall_s"), cpu_s_per_gib, middle("rss_mib"), middle("lag_p50_ms"), middle("lag_p99_ms")]


def main() -> None:
    if sys.argv[1:2] == ["--candidate"]:
        answer = asyncio.run(measure(sys.argv[2], Settings(**json.loads(sys.argv[3]))))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        os._exit(0)  # The candidates' threads and sessions need no tidy end.
    exit_on_sigterm()
    asked = arguments(__doc__).parse_args()
    size_mib, rounds = (256, 2) if asked.quick else (1024, 5)
    measured = run(size_mib, rounds)
    table = Table(
        title=f"{size_mib} MiB over TLS, {CONNECTIONS} parts of 8 MiB at once",
        columns=["transport", "MiB/s", "CPU s/GiB", "peak RSS MiB", "loop lag p50 ms", "loop lag p99 ms"],
        rows=[row(name, each, size_mib) for name, each in measured.items()],
        notes=["The bare ways, without plan, retries, time limits and cancellation; all take the CRC64NVME of each part."],
    )
    result = Result(
        benchmark="transports",
        title="Ways to carry parts",
        settings={"size_mib": size_mib, "rounds": rounds},
        tables=[table],
        raw=measured,
    )
    finish(result, asked)


if __name__ == "__main__":
    main()
