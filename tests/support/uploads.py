"""An upload engine to test with, and sources that misbehave on demand."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import attrs
import trustme
from support.fake_s3 import FakeS3, fake_s3

from aiobaseten.events import Emitter, Event
from aiobaseten.models import AWSCredentials, UploadTarget
from aiobaseten.options import Options, RetryOptions
from aiobaseten.retry import Clock
from aiobaseten.sources import open_source
from aiobaseten.upload import S3, Transport, UploadEngine, UploadReceipt
from aiobaseten.upload.engine import Renew

TARGET = UploadTarget(
    credentials=AWSCredentials(aws_access_key_id="AKIA-ONE", aws_secret_access_key="sesame", aws_session_token="token-1"),
    bucket="bucket",
    key="models/one/model.tgz",
    region="us-west-2",
)
OBJECT = "/bucket/models/one/model.tgz"
PATIENT = Options(retry=RetryOptions(initial_backoff_s=0.001, max_backoff_s=0.002))


def renewed(target: UploadTarget = TARGET, **changes: str) -> UploadTarget:
    """The same target with fresh credentials, and other changes."""
    credentials = AWSCredentials(aws_access_key_id="AKIA-TWO", aws_secret_access_key="sesame2", aws_session_token="token-2")
    return attrs.evolve(target, credentials=credentials, **changes)


def random_bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


async def chunks_of(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    """A stream of unknown length."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


@dataclass
class Rig:
    """A fake store, an engine that uploads to it, and the events it told."""

    server: FakeS3
    engine: UploadEngine
    events: list[Event] = field(default_factory=list)

    async def upload(
        self,
        source: str | Path | bytes | AsyncIterator[bytes],
        *,
        target: UploadTarget = TARGET,
        renew: Renew | None = None,
    ) -> UploadReceipt:
        async with await open_source(source) as opened:
            return await self.engine.upload(target, opened, emit=Emitter(self.events.append), push_id="push-1", renew=renew)

    def told(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


@asynccontextmanager
async def engine_for(url: str | None, options: Options = PATIENT, clock: Clock | None = None) -> AsyncIterator[UploadEngine]:
    transport = Transport(options)
    try:
        yield UploadEngine(S3(url, options, transport), options, clock or Clock())
    finally:
        await transport.aclose()


@asynccontextmanager
async def rig(options: Options = PATIENT, tls: ssl.SSLContext | None = None, clock: Clock | None = None) -> AsyncIterator[Rig]:
    async with fake_s3(tls) as server, engine_for(server.url, options, clock) as engine:
        yield Rig(server, engine)


def tls_pair(directory: Path, authority: trustme.CA | None = None) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context for localhost, and the file of the authority that vouches for it."""
    authority = authority or trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    bundle = directory / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    return context, bundle
