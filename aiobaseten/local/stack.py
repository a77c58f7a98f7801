"""`LocalStack`: Baseten's control plane and S3 on this machine, to develop and test against."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import anyio
import attrs
from aiohttp import web

from aiobaseten._redaction import redacted_logs, takes_secrets
from aiobaseten.errors import ConfigurationError
from aiobaseten.local.object_store import REGION, AdminCredentials, LocalStackError, ObjectStore, UnfinishedUpload
from aiobaseten.local.seaweedfs import LOOPBACK, SeaweedFS
from aiobaseten.local.service import Service
from aiobaseten.local.store import Store

if TYPE_CHECKING:
    from aiobaseten.client import Client

SHUTDOWN_LIMIT_S = 2.0
KEEP_ALIVE_S = 1.0
"""A connection to the store is not kept long: who counts files and sockets while a stack runs counts the stack's too."""


@attrs.frozen(kw_only=True)
class _Running:
    base_url: str
    objects: ObjectStore
    store: Store


class LocalStack:
    """Baseten's upload service on this machine: its REST API, with its rules, over a real S3 (SeaweedFS).

    ::

        async with LocalStack() as stack, stack.client() as client:
            result = await client.push("./my-model")

    Models and deployments are kept in memory, archives in SeaweedFS. Several stacks can run side by side. Everything listens on
    127.0.0.1 only, and ends with the block, or with this process, whichever way that ends.

    :param data_dir: where SeaweedFS keeps archives, from one stack to the next; None is a temporary directory that is removed
    :param api_key: the key that the API takes
    :param rekey_on_prepare: every prepare gives another S3 key; False: the same key again for the same model until it is committed
    :param put_only: the upload credentials do not even allow to abort an upload or to list its parts
    :param may_read: the upload credentials allow to read the object too, or to look at it (HEAD)
    :param teams: names of the organization's teams; the first is its default team
    :param clock: monotonic seconds, by which a deployment goes from BUILDING to ACTIVE within 1.2 s of its commit
    :raises ConfigurationError: for an argument that cannot work, and on entry when SeaweedFS is not installed
    """

    @takes_secrets
    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        api_key: str = "local-api-key",
        rekey_on_prepare: bool = True,
        put_only: bool = False,
        may_read: bool = False,
        teams: Sequence[str] = ("default",),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not _is_text(api_key) or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
            raise ConfigurationError("LocalStack.api_key must be printable ASCII without spaces, and not empty")
        if isinstance(teams, str) or not teams or not all(map(_is_text, teams)) or len(set(teams)) < len(teams):
            raise ConfigurationError(f"LocalStack.teams must be one or more different names, not {teams!r}")
        self.api_key = api_key
        try:
            self._data_dir = Path(data_dir) if data_dir is not None else None
        except TypeError as error:
            raise ConfigurationError(f"LocalStack.data_dir must be a path, not {data_dir!r}") from error
        self._rekey_on_prepare = rekey_on_prepare
        self._put_only = put_only
        self._may_read = may_read
        self._teams = tuple(teams)
        self._clock = clock
        self._resources: AsyncExitStack | None = None
        self._state: _Running | None = None

    async def __aenter__(self) -> Self:
        """Start, which takes some 3 s.

        :raises ConfigurationError: when SeaweedFS is not installed or the directory cannot be used
        :raises LocalStackError: when SeaweedFS does not start
        """
        if self._resources is not None:
            raise LocalStackError("this LocalStack is running already; make another one")
        self._resources = AsyncExitStack()
        try:
            self._state = await self._start(self._resources)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop()

    async def _start(self, resources: AsyncExitStack) -> _Running:
        resources.enter_context(redacted_logs())
        # Objects are read back as they are stored, whatever their content encoding says.
        connector = aiohttp.TCPConnector(keepalive_timeout=KEEP_ALIVE_S)
        session = await resources.enter_async_context(aiohttp.ClientSession(auto_decompress=False, connector=connector))
        seaweedfs = await SeaweedFS.start(self._data_dir, session)
        resources.push_async_callback(seaweedfs.stop)
        store = Store(teams=self._teams, rekey_on_prepare=self._rekey_on_prepare, clock=self._clock)
        service = Service(store, seaweedfs.store, api_key=self.api_key, put_only=self._put_only, may_read=self._may_read)
        runner = web.AppRunner(service.app(), access_log=None, shutdown_timeout=SHUTDOWN_LIMIT_S)
        resources.push_async_callback(runner.cleanup)
        await runner.setup()
        await web.TCPSite(runner, LOOPBACK, 0).start()
        port = runner.addresses[0][1]
        return _Running(base_url=f"http://{LOOPBACK}:{port}", objects=seaweedfs.store, store=store)

    async def _stop(self) -> None:
        resources, self._resources, self._state = self._resources, None, None
        if resources is not None:
            with anyio.CancelScope(shield=True):
                await resources.aclose()

    @property
    def base_url(self) -> str:
        """Where the REST API is, without a slash at the end."""
        return self._running.base_url

    @property
    def s3_endpoint_url(self) -> str:
        """Where the S3 API is, without a slash at the end."""
        return self._running.objects.endpoint_url

    @property
    def bucket(self) -> str:
        """The bucket that archives go to."""
        return self._running.objects.bucket

    @property
    def region(self) -> str:
        """The region that prepare names."""
        return REGION

    @property
    def admin_credentials(self) -> AdminCredentials:
        """S3 credentials that may do everything, to look at what was uploaded."""
        return self._running.objects.credentials

    @takes_secrets
    def client(self, **options: Any) -> Client:
        """A client of this stack; `options` are further arguments of `aiobaseten.Client`, or others in place of the stack's own."""
        from aiobaseten.client import Client  # noqa: PLC0415 - a stack alone does not need the client

        own: dict[str, Any] = {"api_key": self.api_key, "base_url": self.base_url, "s3_endpoint_url": self.s3_endpoint_url}
        return Client(**(own | options))

    def deployment_key(self, deployment_id: str) -> str | None:
        """The S3 key of a deployment's archive; None for a model that is built from its config alone.

        :raises LocalStackError: when there is no such deployment
        """
        deployment = self._running.store.find_deployment(deployment_id)
        if deployment is None:
            raise LocalStackError(f"there is no deployment with the id {deployment_id!r}")
        return deployment.key

    def set_status(self, deployment_id: str, status: str | None) -> None:
        """Hold a deployment at a status, such as ``BUILD_FAILED``, whatever the clock says; None lets it go on by the clock.

        :raises LocalStackError: when there is no such deployment
        """
        deployment = self._running.store.find_deployment(deployment_id)
        if deployment is None:
            raise LocalStackError(f"there is no deployment with the id {deployment_id!r}")
        deployment.status = status

    async def read_object(self, key: str) -> bytes:
        """A whole object, in memory.

        :raises LocalStackError: when there is none
        """
        content = bytearray()
        await self._running.objects.read_through(key, content.extend)
        return bytes(content)

    async def object_digest(self, key: str) -> tuple[int, str]:
        """The size of an object in bytes and its SHA-256 in hexadecimal, read in pieces.

        :raises LocalStackError: when there is none
        """
        size_bytes = 0
        digest = hashlib.sha256()

        def take(chunk: bytes) -> None:
            nonlocal size_bytes
            size_bytes += len(chunk)
            digest.update(chunk)

        await self._running.objects.read_through(key, take)
        return size_bytes, digest.hexdigest()

    async def multipart_uploads(self) -> list[UnfinishedUpload]:
        """The multipart uploads that were neither completed nor aborted, up to 10,000."""
        return await self._running.objects.unfinished_uploads()

    @property
    def _running(self) -> _Running:
        if self._state is None:
            raise LocalStackError("this LocalStack is not running: use it inside `async with LocalStack() as stack`")
        return self._state


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)
