"""A client whose calls the fault plan of a `FaultyStack` can keep from connecting."""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

import aiohttp
from urllib3.exceptions import NameResolutionError, NewConnectionError
from yarl import URL

from aiobaseten.client import Client
from aiobaseten.local.calls import control_plane_call, part_number_in, s3_call
from aiobaseten.local.fault_plan import FaultPlan
from aiobaseten.upload import POOL_CLASSES


class FaultyClient(Client):
    """A client that asks the plan before it connects."""

    def __init__(self, plan: FaultPlan, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._connector = partial(_FaultyConnector, plan)
        self._pools = {scheme: _faulty_pool(pool, plan) for scheme, pool in POOL_CLASSES.items()}


class _FaultyConnector(aiohttp.TCPConnector):
    """Raises what aiohttp raises where there is no connection."""

    def __init__(self, plan: FaultPlan, **arguments: Any) -> None:
        super().__init__(**arguments)  # pyright: ignore[reportUnknownMemberType]
        self._plan = plan

    async def connect(self, req: aiohttp.ClientRequest, *arguments: Any, **named: Any) -> Any:
        call = control_plane_call(req.method, req.url.path)
        fault = call and self._plan.before_connecting(call, None)
        if fault:
            error = fault.error()
            is_name = isinstance(error, socket.gaierror)
            kind = aiohttp.ClientConnectorDNSError if is_name else aiohttp.ClientConnectorError
            raise kind(req.connection_key, error) from error
        return await super().connect(req, *arguments, **named)


def _faulty_pool(pool: Any, plan: FaultPlan) -> Any:
    """A pool that raises what urllib3 raises where there is no connection."""

    class FaultyPool(pool):  # type: ignore[misc]  # pyright: ignore[reportUntypedBaseClass]
        def urlopen(self, method: str, url: str, *arguments: Any, **named: Any) -> Any:
            asked = URL(url, encoded=True)
            query = asked.query
            call = s3_call(method, asked.path, query)
            fault = call and plan.before_connecting(call, part_number_in(query))
            if fault:
                error = fault.error()
                if isinstance(error, socket.gaierror):
                    raise NameResolutionError(self.host, self._new_conn(), error) from error
                raise NewConnectionError(self._new_conn(), f"Failed to establish a new connection: {error}") from error
            return super().urlopen(method, url, *arguments, **named)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    return FaultyPool
