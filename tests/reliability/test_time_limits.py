"""Every public call with a time limit of the caller's around it, against servers that take what is sent and never answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import anyio
import attrs
import pytest
from support.await_points import Watch, watched_loop
from support.cancel_sweep import LARGE, OPTIONS, SMALL, check_whole, open_files
from support.fake_s3 import hold
from support.memory_stack import KEY, memory_stack
from support.processes import until
from support.scripted_api import raw_server
from support.uploads import TARGET

import aiobaseten as ab
from aiobaseten.models import DeploymentArchiveSource, ModelArchiveSource

pytestmark = pytest.mark.anyio

LIMIT_S = 0.05
PATIENT_S = 10.0
"""Far more than any of these calls may take to come back."""
CONFIG = ab.DeploymentArchivePayload(config={"model_name": "m"})


async def push_many(client: ab.Client) -> None:
    async with client.push_many([ab.Push(SMALL), ab.Push(LARGE, name="other")]) as run:
        async for _ in run:
            pass


CALLS: dict[str, Callable[[ab.Client], Awaitable[Any]]] = {
    "push": lambda client: client.push(ab.Push(SMALL)),
    "push_all": lambda client: client.push_all([ab.Push(SMALL), ab.Push(LARGE)]),
    "push_many": push_many,
    "check": lambda client: client.check(ab.Push(SMALL)),
    "upload": lambda client: client.upload(TARGET, SMALL),
    "upload in parts": lambda client: client.upload(TARGET, LARGE),
    "rehearse_upload": lambda client: client.rehearse_upload(TARGET, LARGE),
    "wait_until_active": lambda client: client.wait_until_active("m", "d"),
    "prepare_model_upload": lambda client: client.prepare_model_upload(ab.PrepareModelUploadRequest(name="m", deployment=CONFIG)),
    "create_model": lambda client: client.create_model(ModelArchiveSource(name="m", deployment=CONFIG, s3_key="k")),
    "create_deployment": lambda client: client.create_deployment("m", DeploymentArchiveSource(deployment=CONFIG, s3_key="k")),
    "list_models": lambda client: client.list_models(),
    "list_deployments": lambda client: client.list_deployments("m"),
    "get_deployment": lambda client: client.get_deployment("m", "d"),
    "list_teams": lambda client: client.list_teams(),
}


async def fail_after(call: Awaitable[Any]) -> None:
    with pytest.raises(TimeoutError), anyio.fail_after(LIMIT_S):
        await call


async def move_on_after(call: Awaitable[Any]) -> None:
    with anyio.move_on_after(LIMIT_S) as scope:
        await call
    assert scope.cancelled_caught


async def asyncio_timeout(call: Awaitable[Any]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(LIMIT_S):
            await call


async def task_cancel(call: Awaitable[Any]) -> None:
    task = asyncio.ensure_future(call)
    await asyncio.sleep(LIMIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def cancelled_before_it_began(call: Awaitable[Any]) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await call
    assert scope.cancelled_caught


def client_of(port: int, options: ab.Options = OPTIONS) -> ab.Client:
    url = f"http://127.0.0.1:{port}"
    return ab.Client(KEY, base_url=url, s3_endpoint_url=url, options=options)


async def listen(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    while await reader.read(1 << 16):
        pass


@pytest.fixture(scope="module")
async def client(anyio_backend: str) -> AsyncIterator[ab.Client]:
    """Whose store is known already, since making that takes longer than the limit."""
    options = attrs.evolve(OPTIONS, timeouts=ab.TimeoutOptions(abort_s=0.1))
    async with raw_server(listen) as port, client_of(port, options) as opened:
        s3 = opened._open_planes().engine.s3
        await s3._object_url(await s3._client(TARGET.region), TARGET)
        yield opened


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "limit", [fail_after, move_on_after, asyncio_timeout, task_cancel, cancelled_before_it_began], ids=lambda limit: limit.__name__
)
async def test_a_limit_ends_the_call_and_leaves_nothing(
    client: ab.Client, name: str, limit: Callable[[Awaitable[Any]], Coroutine[Any, Any, None]]
) -> None:
    watch = Watch()
    began_s = time.monotonic()
    with watched_loop():
        await watch.start(limit(CALLS[name](client)))
    assert time.monotonic() - began_s < PATIENT_S
    assert all(task.done() for task in watch.tasks)
    check_whole(client, name)


async def test_a_limit_while_a_client_opens() -> None:
    before = open_files()
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with client_of(1):
            raise AssertionError("unreachable")
    assert scope.cancelled_caught
    assert open_files() <= before


async def test_a_limit_while_a_client_closes() -> None:
    """It waits for an upload that is under way; no connection is left open, neither used nor idle."""
    async with memory_stack() as stack:
        client = stack.client(OPTIONS)
        await client.__aenter__()
        await client.push(ab.Push(SMALL))
        transport = client._open_planes().engine.s3._transport
        stack.s3.faults["PutObject"] = [hold(asyncio.Event(), asyncio.Event())]
        upload = asyncio.create_task(client.push(ab.Push(SMALL)))
        await until(lambda: stack.s3.in_flight > 0)
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert [route.pool.pool for route in transport._routes.values()] == [None]
        with pytest.raises(ab.ConfigurationError, match="closed while it was in use"):
            await upload
