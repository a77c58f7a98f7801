"""A client of the real stack whose calls a test makes fail, through a proxy before each plane."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from support.clock import FakeClock
from support.meddling_proxy import MeddlingProxy, meddling_proxy
from support.model_dirs import contents_of

import aiobaseten as ab
from aiobaseten.events import Event
from aiobaseten.local import LocalStack


@dataclass
class Faulty:
    """A client whose two planes go through proxies, with a clock that never waits."""

    client: ab.Client
    stack: LocalStack
    control: MeddlingProxy
    s3: MeddlingProxy
    clock: FakeClock
    events: list[Event] = field(default_factory=list)

    def told(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    async def contents(self, result: ab.PushResult) -> dict[str, bytes]:
        assert result.upload is not None
        return contents_of(await self.stack.read_object(result.upload.key))


@asynccontextmanager
async def faulty_client(stack: LocalStack, options: ab.Options) -> AsyncIterator[Faulty]:
    events: list[Event] = []
    clock = FakeClock()
    async with meddling_proxy(stack.base_url) as control, meddling_proxy(stack.s3_endpoint_url) as s3:
        client = stack.client(base_url=control.url, s3_endpoint_url=s3.url, observer=events.append, options=options)
        client._clock = clock.clock
        async with client:
            yield Faulty(client, stack, control, s3, clock, events)
