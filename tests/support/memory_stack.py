"""The local control plane over a store in memory: whole pushes in milliseconds, with faults on both planes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import anyio
import attrs
from aiohttp import web
from support.clock import FakeClock
from support.fake_s3 import FakeS3, fake_s3
from support.meddling_proxy import Meddling
from support.processes import until

import aiobaseten as ab
from aiobaseten.events import Event
from aiobaseten.local.object_store import ObjectMissing
from aiobaseten.local.service import Service
from aiobaseten.local.store import Store, StoredDeployment, StoredModel
from aiobaseten.models import AWSCredentials, Team
from aiobaseten.options import KiB
from aiobaseten.retry import Clock

KEY = "local-api-key"
BEFORE = "before"
"""The id of deployments that there were before."""
PART_BYTES = 64 * KiB
HASTY = ab.RetryOptions(initial_backoff_s=0.001, max_backoff_s=0.002)

with attrs.validators.disabled():
    SMALL_PARTS = ab.TransferOptions(part_size_bytes=PART_BYTES, multipart_threshold_bytes=PART_BYTES, max_connections=2)
"""Parts as S3 would not take them, so that a push in parts takes no longer than any other."""


@dataclass
class _Objects:
    """What the service asks of its store."""

    s3: FakeS3
    bucket: str = "models"

    async def scoped_credentials(self, key: str, *, put_only: bool, may_read: bool) -> AWSCredentials:
        return AWSCredentials(aws_access_key_id="AKIA-MEMORY", aws_secret_access_key="planted", aws_session_token=key)

    async def size_bytes(self, key: str) -> int:
        return len(self._content(key))

    async def read_range(self, key: str, start: int, stop: int) -> bytes:
        return self._content(key)[start:stop]

    def _content(self, key: str) -> bytes:
        try:
            return self.s3.objects[f"/{self.bucket}/{key}"]
        except KeyError:
            raise ObjectMissing(key) from None


@dataclass
class MemoryStack(Meddling):
    """Both planes on loopback, in this process.

    :ivar commits: how many commits have reached the service
    """

    s3: FakeS3
    store: Store
    url: str = ""
    in_flight: int = 0
    commits: int = 0

    def client(self, options: ab.Options, events: list[Event] | None = None, *, clock: Clock | None = None) -> ab.Client:
        """A client whose waits between tries take no time, unless it is given a clock."""
        observer = None if events is None else events.append
        client = ab.Client(KEY, base_url=self.url, s3_endpoint_url=self.s3.url, options=options, observer=observer)
        client._clock = clock or FakeClock().clock
        return client

    def reset(self) -> None:
        """Forget all that was pushed, and all faults."""
        for kept in (self.s3.objects, self.s3.uploads, self.s3.faults, self.s3.calls, self.s3.headers, self.store.models):
            kept.clear()
        self.plans.clear()
        self.seen.clear()
        self.commits = 0

    async def at_rest(self) -> None:
        """Wait until no request is being answered any more, and none is on its way."""
        await anyio.sleep(0.003)
        await until(lambda: self.in_flight == 0 and self.s3.in_flight == 0)

    @property
    def deployments(self) -> list[StoredDeployment]:
        """All that were pushed."""
        return [deployment for model in self.store.models for deployment in model.deployments if deployment.id != BEFORE]

    def add_model(self, name: str, *, team: Team | None = None) -> None:
        """A model with a deployment, both made before anything was pushed."""
        now = datetime.now(UTC)
        team = team or self.store.teams[0]
        model = StoredModel(id=BEFORE + team.id, name=name, team=team, created_at=now, disable_archive_download=False)
        payload = ab.DeploymentArchivePayload(config={"model_name": name})
        deployment = StoredDeployment(
            id=BEFORE, name="v0", model=model, created_at=now, committed_at_s=0, payload=payload, key=None, is_development=False
        )
        model.deployments.append(deployment)
        self.store.models.append(model)

    async def handle(self, request: web.Request, handler: Callable[[web.Request], Awaitable[Any]]) -> web.StreamResponse:
        self.in_flight += 1

        def act() -> Awaitable[Any]:
            self.commits += request.method == "POST" and request.path.endswith(("/models", "/deployments"))
            return handler(request)

        try:
            await request.read()  # so that what acts later does not need the caller any more
            return await self.meddle(request, act)
        finally:
            self.in_flight -= 1


@asynccontextmanager
async def memory_stack(*, rekey_on_prepare: bool = True, teams: Sequence[str] = ("default",)) -> AsyncIterator[MemoryStack]:
    """Serve on loopback until the block ends."""
    clock = FakeClock()
    async with fake_s3() as s3:
        stack = MemoryStack(s3, Store(teams=teams, rekey_on_prepare=rekey_on_prepare, clock=lambda: clock.now_s))

        @web.middleware
        async def meddle(request: web.Request, handler: Callable[[web.Request], Awaitable[Any]]) -> web.StreamResponse:
            return await stack.handle(request, handler)

        objects: Any = _Objects(s3)
        app = Service(stack.store, objects, api_key=KEY, put_only=False).app()
        app.middlewares.insert(0, meddle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            stack.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield stack
        finally:
            await runner.cleanup()
