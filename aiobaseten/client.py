"""The `Client`: opens and closes both planes, and offers every call."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from yarl import URL

from aiobaseten.api import ControlPlane, Endpoints, check_base_url, find_api_key
from aiobaseten.errors import ConfigurationError, InvalidPush, Problem
from aiobaseten.events import Emitter, Observer
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
from aiobaseten.options import Options
from aiobaseten.push import CheckResult, Push, Pusher, PushResult, SourceLike
from aiobaseten.retry import Clock
from aiobaseten.sources import open_source
from aiobaseten.upload import S3, IoThread, UploadEngine, UploadReceipt
from aiobaseten.wait import wait_until_active

DEFAULT_BASE_URL = "https://api.baseten.co"


class Client:
    """An async client for Baseten's model uploads. Use it as an async context manager; it belongs to the event loop it is opened on.

    :param api_key: left out, the environment's ``BASETEN_API_KEY``, else the key in ``~/.trussrc``
    :param base_url: of the control plane; left out, ``AIOBASETEN_BASE_URL``, else the remote in ``~/.trussrc`` that gave the key, else
        ``https://api.baseten.co``. Plain http only for loopback addresses
    :param s3_endpoint_url: of another S3-compatible store than AWS; left out, ``AIOBASETEN_S3_ENDPOINT_URL``, else AWS
    :param auth_scheme: of the ``Authorization`` header: ``"Bearer"`` or ``"Api-Key"``
    :param observer: called with every event of every push
    :raises ConfigurationError: if no key is found, or an argument cannot work
    """

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
        key = find_api_key(api_key, os.environ)
        self._base_url = check_base_url(base_url or os.environ.get("AIOBASETEN_BASE_URL") or key.base_url or DEFAULT_BASE_URL)
        self._s3_endpoint_url = check_s3_endpoint_url(s3_endpoint_url or os.environ.get("AIOBASETEN_S3_ENDPOINT_URL"))
        self._options = options
        self._clock = Clock()
        self._emit = Emitter(observer)
        self._control_plane = ControlPlane(
            base_url=self._base_url, api_key=key.value, auth_scheme=auth_scheme, options=options, clock=self._clock
        )
        self._io_thread = IoThread("aiobaseten-io")
        self._s3 = S3(self._s3_endpoint_url, options, self._io_thread)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = AsyncExitStack()
