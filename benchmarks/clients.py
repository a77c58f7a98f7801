"""The clients that the benchmarks compare, each in a process of its own: ``python clients.py NAME SETTINGS``.

Each imports, connects and uploads a small object first. Then every line of standard input starts one upload of the file, and a
line of JSON tells how long it took and what it cost: wall seconds, CPU seconds of this process and its children, peak memory,
and for clients on an event loop how late the loop's other work was.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs

KEYS = {"access": "AKIABENCHMARK", "secret": "benchmark-secret", "token": "benchmark-token"}
BUCKET, KEY, REGION = "bucket", "models/benchmark/model.tgz", "us-west-2"
TICK_S = 0.001

Upload = Callable[[Path], Awaitable[object]]


@attrs.frozen(kw_only=True)
class Settings:
    url: str
    ca_bundle: str
    file: str
    directory: str


@asynccontextmanager
async def aiobaseten(settings: Settings, *, checksum: Any = "crc64nvme") -> AsyncGenerator[Upload]:
    import aiobaseten as ab

    options = ab.Options(ca_bundle=Path(settings.ca_bundle), transfer=ab.TransferOptions(checksum=checksum))
    credentials = ab.AWSCredentials(
        aws_access_key_id=KEYS["access"], aws_secret_access_key=KEYS["secret"], aws_session_token=KEYS["token"]
    )
    target = ab.UploadTarget(credentials=credentials, bucket=BUCKET, key=KEY, region=REGION)
    async with ab.Client("benchmark", s3_endpoint_url=settings.url, options=options) as client:
        yield lambda path: client.upload(target, path)


def aiobaseten_unchecked(settings: Settings) -> Any:
    return aiobaseten(settings, checksum=None)


@asynccontextmanager
async def aiobaseten_directory(settings: Settings) -> AsyncGenerator[Upload]:
    async with aiobaseten(settings) as upload:
        yield lambda path: upload(Path(settings.directory) if path == Path(settings.file) else path)


@asynccontextmanager
async def boto3(settings: Settings) -> AsyncGenerator[Upload]:
    """As ``truss push`` uploads: `upload_file` with ten threads."""
    from boto3 import Session
    from boto3.s3.transfer import TransferConfig

    client: Any = Session(KEYS["access"], KEYS["secret"], KEYS["token"], REGION).client(
        "s3", endpoint_url=settings.url, verify=settings.ca_bundle
    )
    config = TransferConfig(max_concurrency=10, use_threads=True)
    yield lambda path: asyncio.to_thread(client.upload_file, str(path), BUCKET, KEY, Config=config)


@asynccontextmanager
async def aioboto3(settings: Settings) -> AsyncGenerator[Upload]:
    from aioboto3 import Session

    session: Any = Session(KEYS["access"], KEYS["secret"], KEYS["token"], REGION)
    async with session.client("s3", endpoint_url=settings.url, verify=settings.ca_bundle) as client:
        yield lambda path: client.upload_file(str(path), BUCKET, KEY)


@asynccontextmanager
async def obstore(settings: Settings) -> AsyncGenerator[Upload]:
    os.environ["SSL_CERT_FILE"] = settings.ca_bundle
    import obstore as obs
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=settings.url,
        region=REGION,
        access_key_id=KEYS["access"],
        secret_access_key=KEYS["secret"],
        session_token=KEYS["token"],
    )
    yield lambda path: obs.put_async(store, KEY, path)


CLIENTS: dict[str, Callable[[Settings], Any]] = {
    "aiobaseten": aiobaseten,
    "aiobaseten, no checksum": aiobaseten_unchecked,
    "aiobaseten, directory": aiobaseten_directory,
    "boto3, 10 threads": boto3,
    "aioboto3 upload_file": aioboto3,
    "obstore": obstore,
}


def cpu_s() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


async def measure(upload: Upload, path: Path) -> dict[str, float]:
    lags_s: list[float] = []

    async def tick() -> None:
        while True:
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            lags_s.append(time.perf_counter() - due)

    ticker = asyncio.ensure_future(tick())
    cpu_before_s, started = cpu_s(), time.perf_counter()
    await upload(path)
    wall_s, used_s = time.perf_counter() - started, cpu_s() - cpu_before_s
    ticker.cancel()
    lags_s.sort()
    return {
        "wall_s": wall_s,
        "cpu_s": used_s,
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "lag_p99_ms": lags_s[int(len(lags_s) * 0.99)] * 1000 if lags_s else 0.0,
    }


async def main(name: str, settings: Settings) -> None:
    small = Path(settings.file).with_name("small.bin")
    async with CLIENTS[name](settings) as upload:
        await upload(small)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while await asyncio.to_thread(sys.stdin.readline):
            sys.stdout.write(json.dumps(await measure(upload, Path(settings.file))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Settings(**json.loads(sys.argv[2]))))
