"""The `Client`: opens and closes both planes, and offers every call."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
import anyio
import attrs

from aiobaseten import rules
from aiobaseten._network import parse_url, proxy_for
from aiobaseten._redaction import redacted_logs, takes_secrets
from aiobaseten.api import ControlPlane, Endpoints, check_base_url, find_api_key
from aiobaseten.bulk import BulkReport, Journal, Pushes, PushRun
from aiobaseten.errors import ConfigurationError, InvalidPush, Problem
from aiobaseten.events import Emitter, Observer
from aiobaseten.lookup import SharedLookup
from aiobaseten.models import (
    CreatedModelDeployment,
    Deployment,
    DeploymentArchiveSource,
    Model,
    ModelArchiveSource,
    PrepareModelUploadRequest,
    PrepareModelUploadResponse,
    Team,
    UploadTarget,
)
from aiobaseten.options import Options, RunOptions
from aiobaseten.push import CheckResult, Push, Pusher, PushResult
from aiobaseten.retry import Clock
from aiobaseten.sources import SourceLike, open_source
from aiobaseten.upload import POOL_CLASSES, S3, Transport, UploadEngine, UploadReceipt, UploadRehearsal
from aiobaseten.wait import check_timeout_s, wait_until_active

DEFAULT_BASE_URL = "https://api.baseten.co"


class Client:
    """An async client for Baseten's model uploads. An async context manager; it belongs to the event loop it is opened on.

    :param api_key: left out, the environment's ``BASETEN_API_KEY``, else the key in ``~/.trussrc``
    :param base_url: of the control plane; left out, ``AIOBASETEN_BASE_URL``, else the remote in ``~/.trussrc`` that gave the
        key, else ``https://api.baseten.co``. Plain http only for loopback addresses
    :param s3_endpoint_url: of another S3-compatible store than AWS; left out, ``AIOBASETEN_S3_ENDPOINT_URL``, else AWS
    :param auth_scheme: of the ``Authorization`` header: ``"Bearer"`` or ``"Api-Key"``
    :param options: transfer, retries, time limits, rate and trust
    :param observer: called with every event of every push
    :raises ConfigurationError: if no key is found, or an argument cannot work
    """

    @takes_secrets
    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        s3_endpoint_url: str | None = None,
        auth_scheme: Literal["Bearer", "Api-Key"] = "Bearer",
        options: Options = Options(),  # noqa: B008 - frozen
        observer: Observer | None = None,
    ) -> None:
        if not isinstance(options, Options):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without type checks
            raise ConfigurationError(f"options must be an Options, not a {type(options).__name__}")
        key = find_api_key(api_key, os.environ)
        self._base_url = check_base_url(base_url or os.environ.get("AIOBASETEN_BASE_URL") or key.base_url or DEFAULT_BASE_URL)
        self._s3_endpoint_url = _check_s3_endpoint_url(s3_endpoint_url or os.environ.get("AIOBASETEN_S3_ENDPOINT_URL"))
        self._api_key = key
        self._auth_scheme: Literal["Bearer", "Api-Key"] = auth_scheme
        self._options = options
        self._clock = Clock()
        self._connector: Callable[..., aiohttp.BaseConnector] = aiohttp.TCPConnector
        self._pools: Mapping[str, Any] = POOL_CLASSES
        self._emit = Emitter(observer)
        self._planes: _Planes | None = None
        self._closing = AsyncExitStack()
        self._was_opened = False

    def __repr__(self) -> str:
        return f"<Client {self._base_url}>"

    async def __aenter__(self) -> Self:
        """Open the client. Connections come with the first call that needs them.

        :raises ConfigurationError: if it was opened before, or `Options.ca_bundle` or the environment's proxy cannot be used
        """
        if self._was_opened:
            raise ConfigurationError("a Client can be opened only once: make another one")
        self._was_opened = True
        async with AsyncExitStack() as resources:
            resources.enter_context(redacted_logs())
            if self._s3_endpoint_url is not None:
                proxy_for(self._s3_endpoint_url)  # What is wrong with it is told before anything is sent.
            control_plane = await resources.enter_async_context(
                ControlPlane(
                    base_url=self._base_url,
                    api_key=self._api_key.value,
                    auth_scheme=self._auth_scheme,
                    options=self._options,
                    clock=self._clock,
                    connector=self._connector,
                )
            )
            transport = Transport(self._options, self._pools)
            resources.push_async_callback(transport.aclose)
            self._closing = resources.pop_all()
        s3 = S3(self._s3_endpoint_url, self._options, transport)
        api = Endpoints(control_plane)
        engine = UploadEngine(s3, self._options, self._clock)
        pusher = Pusher(api, engine, self._options, self._clock, self._emit)
        self._planes = _Planes(loop=asyncio.get_running_loop(), api=api, engine=engine, pusher=pusher)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. A call that is still under way ends with an error."""
        self._planes = None
        with anyio.CancelScope(shield=True):
            await self._closing.aclose()

    async def push(self, push: Push | str | os.PathLike[str]) -> PushResult:
        """Make a deployment of a model: prepare, upload, commit.

        :param push: what and where to, or just the path of a model directory or archive
        :raises InvalidPush: before anything is sent, with every problem found; `ArchiveError` for its files, `SourceChanged`
            where they change meanwhile
        :raises ApiError: if the service refuses; its subclasses say why
        :raises UploadError: if the object store does not take the archive; its subclasses say why
        :raises TransportError: if one of them cannot be reached
        :raises CommitUncertain: if the commit was sent and its outcome cannot be found out
        :raises DeadlineExceeded: if it takes longer than `TimeoutOptions.push_s` and no commit was sent
        """
        return await self._open_planes().pusher.push(_as_push(push))

    def push_many(
        self,
        pushes: Pushes,
        *,
        journal: str | os.PathLike[str] | None = None,
        fail_fast: bool = False,
        concurrency: int = 64,
        max_attempts: int = 3,
        wait_timeout_s: float | None = None,
        journal_credentials: bool = False,
    ) -> PushRun:
        """Push many models in one run: an async context manager, and within it an async iterator of `PushOutcome`.

        ::

            async with client.push_many(pushes, journal="deploy.db") as run:
                async for outcome in run:
                    print(outcome.name, outcome.result or outcome.error)
            print(run.report.failed)

        A failure is an outcome and disturbs no other push, but for a refused key, which ends the run: all others would fail too.

        :param pushes: pushes or paths, read lazily: each when there is a place for it
        :param journal: a file that outlives the process. A run with the same journal goes on: what is committed is skipped, and
            uncertain commits are looked for before anything is sent again. One process at a time may use it
        :param fail_fast: the first failure stops the rest; commits that were sent are seen through to their answers
        :param concurrency: pushes under way at once
        :param max_attempts: how often a push is begun in all where its failure may pass, on top of the retries of each call
        :param wait_timeout_s: also wait until each deployment is active, for at most so many seconds each
        :param journal_credentials: keep the temporary credentials of unfinished uploads in the journal, readable by its owner only:
            the next run can then go on with their parts, or abort them; so uploads that are cancelled stay at the store. They are
            removed when an upload ends
        :raises ConfigurationError: if an argument cannot work
        """
        planes = self._open_planes()
        options = RunOptions(fail_fast=fail_fast, concurrency=concurrency, max_attempts=max_attempts, wait_timeout_s=wait_timeout_s)

        async def wait(result: PushResult, timeout_s: float) -> Deployment:
            return await self.wait_until_active(result.model.id, result.deployment.id, timeout_s=timeout_s)

        def make_pusher(emit: Emitter, large: anyio.Semaphore) -> Pusher:
            lookup = SharedLookup(planes.api, emit)
            return Pusher(planes.api, planes.engine, self._options, self._clock, emit, lookup=lookup, large=large)

        return PushRun(
            pushes,
            make_pusher=make_pusher,
            wait=wait,
            options=options,
            retry=attrs.evolve(self._options.retry, max_attempts=options.max_attempts),
            journal=None if journal is None else Journal(journal, keep_credentials=journal_credentials, clock=self._clock),
            clock=self._clock,
            emit=self._emit,
        )

    async def push_all(
        self,
        pushes: Pushes,
        *,
        journal: str | os.PathLike[str] | None = None,
        fail_fast: bool = False,
        concurrency: int = 64,
        max_attempts: int = 3,
        wait_timeout_s: float | None = None,
        journal_credentials: bool = False,
    ) -> BulkReport:
        """Push many models, and return what became of them. The arguments are those of `push_many`.

        :raises ConfigurationError: if an argument cannot work
        :raises JournalError: if the journal cannot be used
        """
        async with self.push_many(
            pushes,
            journal=journal,
            fail_fast=fail_fast,
            concurrency=concurrency,
            max_attempts=max_attempts,
            wait_timeout_s=wait_timeout_s,
            journal_credentials=journal_credentials,
        ) as run:
            async for _ in run:
                pass
        return run.report

    async def check(self, push: Push | str | os.PathLike[str]) -> CheckResult:
        """Dry-run a push: read the source's layout, check every rule here and then at the service. Sends no bytes, makes nothing.

        :raises InvalidPush: with every problem found here
        :raises ApiError: if the service would refuse
        :raises TransportError: if it cannot be reached
        """
        return await self._open_planes().pusher.check(_as_push(push))

    async def upload(self, target: UploadTarget | None, source: SourceLike) -> UploadReceipt:
        """Upload an archive to the target that prepare gave.

        :param target: `PrepareModelUploadResponse.target`
        :param source: a model directory, an archive file, bytes, or an async iterator of bytes
        :raises InvalidPush: if there is no target, or the source cannot be used
        :raises UploadError: if the object store does not take it; `CredentialsExpired` means: prepare again
        :raises TransportError: if the store cannot be reached
        """
        engine = self._open_planes().engine
        target = _as_target(target)
        async with await open_source(source) as opened:
            return await engine.upload(target, opened, emit=self._emit)

    async def rehearse_upload(
        self, target: UploadTarget | None, source: SourceLike, *, max_duration_s: float | None = None
    ) -> UploadRehearsal:
        """Upload an archive's parts, then give the upload up: shows how fast uploads are, and leaves nothing at the store.

        :param target: `PrepareModelUploadResponse.target`
        :param source: a model directory, an archive file, bytes, or an async iterator of bytes
        :param max_duration_s: after so many seconds no further part is begun; those under way are waited for
        :raises ConfigurationError: if `max_duration_s` is not a finite number of at least 0
        :raises InvalidPush: if there is no target, or the source cannot be used
        :raises UploadError: if the object store does not take a part, or keeps the parts
        :raises TransportError: if the store cannot be reached
        """
        engine = self._open_planes().engine
        target = _as_target(target)
        bound_s = math.inf if max_duration_s is None else check_timeout_s("max_duration_s", max_duration_s)
        async with await open_source(source) as opened:
            return await engine.rehearse(target, opened, max_duration_s=bound_s, emit=self._emit)

    async def wait_until_active(self, model_id: str, deployment_id: str, *, timeout_s: float = 1800.0) -> Deployment:
        """Wait until a deployment is up: ``ACTIVE``, or ``SCALED_TO_ZERO``.

        :raises ConfigurationError: if `timeout_s` is not a finite number of at least 0
        :raises DeploymentFailed: if it ends in a failed status
        :raises DeadlineExceeded: if it is not up after `timeout_s` seconds
        :raises NotFoundError: if there is no such deployment, and has not been for half a minute
        """
        return await wait_until_active(
            self._open_planes().api,
            model_id,
            deployment_id,
            timeout_s=timeout_s,
            not_found_grace_s=self._options.timeouts.not_found_grace_s,
            clock=self._clock,
            emit=self._emit,
        )

    async def prepare_model_upload(self, request: PrepareModelUploadRequest) -> PrepareModelUploadResponse:
        """``POST /v1/prepare_model_upload``: have the service check a push, and get the right to upload its archive.

        :raises InvalidPush: before it is sent, with every rule that it breaks
        """
        api = self._open_planes().api
        rules.check(request)
        return await api.prepare_model_upload(request)

    async def create_model(self, source: ModelArchiveSource, *, team_id: str | None = None) -> CreatedModelDeployment:
        """``POST /v1/models``, or ``/v1/teams/{team_id}/models``: commit a new model. Sent again only if it did nothing.

        :raises InvalidPush: before it is sent, with every rule that it breaks
        """
        api = self._open_planes().api
        rules.check(source)
        return await api.create_model(source, team_id=team_id)

    async def create_deployment(self, model_id: str, source: DeploymentArchiveSource) -> CreatedModelDeployment:
        """``POST /v1/models/{model_id}/deployments``: commit a new deployment. Sent again only where it certainly did nothing.

        :raises InvalidPush: before it is sent, with every rule that it breaks
        """
        api = self._open_planes().api
        rules.check(source)
        return await api.create_deployment(model_id, source)

    async def list_models(self, *, name: str | None = None, team_id: str | None = None) -> tuple[Model, ...]:
        """``GET /v1/models``, or ``/v1/teams/{team_id}/models``: all models, or those of exactly that name."""
        return await self._open_planes().api.list_models(name=name, team_id=team_id)

    async def list_deployments(self, model_id: str, *, name: str | None = None) -> tuple[Deployment, ...]:
        """``GET /v1/models/{model_id}/deployments``. New ones may be missing for half a minute."""
        return await self._open_planes().api.list_deployments(model_id, name=name)

    async def get_deployment(self, model_id: str, deployment_id: str) -> Deployment:
        """``GET /v1/models/{model_id}/deployments/{deployment_id}``. A new one may be missing for half a minute.

        :raises NotFoundError: if there is none
        """
        return await self._open_planes().api.get_deployment(model_id, deployment_id)

    async def list_teams(self, *, name: str | None = None) -> tuple[Team, ...]:
        """``GET /v1/teams``: all teams, or the one of exactly that name."""
        return await self._open_planes().api.list_teams(name=name)

    def _open_planes(self) -> _Planes:
        if self._planes is None:
            raise ConfigurationError("the Client is not open: use it inside `async with`")
        if asyncio.get_running_loop() is not self._planes.loop:
            raise ConfigurationError("the Client was opened on another event loop: make one for each")
        return self._planes


@attrs.frozen(kw_only=True)
class _Planes:
    """What an open client works with."""

    loop: asyncio.AbstractEventLoop
    api: Endpoints
    engine: UploadEngine
    pusher: Pusher


def _as_target(target: UploadTarget | None) -> UploadTarget:
    if target is None:
        raise InvalidPush("target is None: prepare said that this model needs no upload")
    if not isinstance(target, UploadTarget):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without type checks
        raise InvalidPush(f"target must be an UploadTarget, such as response.target, not a {type(target).__name__}")
    return target


def _as_push(push: Push | str | os.PathLike[str]) -> Push:
    if isinstance(push, Push):
        return push
    if isinstance(push, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without type checks
        return Push(push)
    raise InvalidPush(problems=[Problem("$", f"must be a Push or the path of a model, not a {type(push).__name__}")])


def _check_s3_endpoint_url(url: str | None) -> str | None:
    """Return `url` without a trailing slash, if it can be an endpoint."""
    if not url:
        return None
    parsed = parse_url(url)
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host or parsed.query_string or parsed.fragment:
        raise ConfigurationError("the S3 endpoint must be an http or https URL with a host, such as https://s3.example.com")
    if parsed.user is not None:
        raise ConfigurationError(f"the S3 endpoint at {parsed.host} must not hold a user name or password")
    return url.rstrip("/")
