"""Calls of prepare per second, and their CPU, beside the official SDK's async client: ``python prepare.py [--quick]``.

Both clients are up and warm before the first measurement, keep their defaults (ours without its limit of requests per second) and
send the same body to one control plane. For each number of calls at once they take turns, round after round.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import report
from processes import Endpoint, Talk, client, control_plane, cpu_s, exit_on_sigterm, serve

AT_ONCE = (1, 16, 64)
TRANSPORTS = {"https": ("--tls",), "http": ()}
WARM_UP_S = 0.2
CONFIG = {
    "model_name": "benchmark",
    "python_version": "py311",
    "requirements": ["torch==2.8.0", "transformers==4.56.1"],
    "resources": {"accelerator": "A10G", "cpu": "4", "memory": "16Gi"},
    "secrets": {"hf_access_token": None},
    "environment_variables": {"HF_HUB_ENABLE_HF_TRANSFER": "1"},
    "runtime": {"predict_concurrency": 8},
}

Call = Callable[[], Awaitable[object]]


@asynccontextmanager
async def aiobaseten(service: Endpoint) -> AsyncGenerator[Call]:
    import aiobaseten as ab

    request = ab.PrepareModelUploadRequest(name="benchmark", deployment=ab.DeploymentArchivePayload(config=CONFIG))
    options = ab.Options(requests_per_s=None, ca_bundle=Path(service.ca_bundle) if service.ca_bundle else None)
    async with ab.Client("benchmark", base_url=service.url, options=options) as client:
        yield lambda: client.prepare_model_upload(request)


@asynccontextmanager
async def official_sdk(service: Endpoint) -> AsyncGenerator[Call]:
    if service.ca_bundle:
        os.environ["SSL_CERT_FILE"] = service.ca_bundle
    from baseten.client import AsyncManagementClient, managementapi

    request = managementapi.PrepareModelUploadRequest(
        name="benchmark", deployment=managementapi.DeploymentArchivePayload(config=CONFIG)
    )
    async with AsyncManagementClient(api_key="benchmark", base_url_override=service.url) as client:
        yield lambda: client.api.post_prepare_model_upload(request=request)


CLIENTS = {"aiobaseten": aiobaseten, "official SDK": official_sdk}


async def measure(call: Call, *, at_once: int, seconds: float) -> dict[str, Any]:
    """Make calls for so long, so many at once."""
    calls = 0
    started, cpu_before_s = time.perf_counter(), cpu_s()

    async def repeat() -> None:
        nonlocal calls
        while time.perf_counter() < started + seconds:
            await call()
            calls += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(repeat())
    return {"calls": calls, "wall_s": time.perf_counter() - started, "cpu_s": cpu_s() - cpu_before_s}


async def be_client(name: str, service: Endpoint) -> None:
    async with CLIENTS[name](service) as call:

        async def answer(*, at_once: int, seconds: float) -> dict[str, Any]:
            await measure(call, at_once=at_once, seconds=WARM_UP_S)
            return await measure(call, at_once=at_once, seconds=seconds)

        await serve(answer)


def run(transport: str, *, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Every measurement over http or https."""
    measured: list[dict[str, Any]] = []
    with ExitStack() as stack:
        service, server = stack.enter_context(control_plane(*TRANSPORTS[transport]))
        settings = json.dumps(attrs.asdict(service))
        clients = {name: stack.enter_context(client("prepare.py", "client", name, settings, timeout_s=600)) for name in CLIENTS}
        for number in range(rounds):
            for at_once in AT_ONCE:
                names = list(CLIENTS) if number % 2 else list(reversed(CLIENTS))
                for name in names:
                    what = {"transport": transport, "at_once": at_once, "round": number, "client": name}
                    measured.append(what | measure_beside(server, clients[name], at_once=at_once, seconds=seconds))
    return measured


def measure_beside(server: Talk, measured: Talk, **request: Any) -> dict[str, Any]:
    """One measurement, with the CPU that the control plane used meanwhile (for the warm-up too)."""
    before_s = server.ask()["cpu_s"]
    result = measured.ask(**request)
    return result | {"server_cpu_s": server.ask()["cpu_s"] - before_s}


def row(measured: list[dict[str, Any]], transport: str, at_once: int) -> list[report.Cell]:
    ours, theirs = (
        [one for one in measured if (one["transport"], one["at_once"], one["client"]) == (transport, at_once, name)]
        for name in CLIENTS
    )
    pairs = list(zip(ours, theirs, strict=True))
    return [
        f"{transport}, {at_once} at once",
        *(median(map(calls_per_s, one)) for one in (ours, theirs)),
        median(calls_per_s(our) / calls_per_s(their) for our, their in pairs),
        *(median(map(cpu_ms, one)) for one in (ours, theirs)),
        median(cpu_ms(their) / cpu_ms(our) for our, their in pairs),
    ]


def calls_per_s(one: dict[str, Any]) -> float:
    return float(one["calls"] / one["wall_s"])


def cpu_ms(one: dict[str, Any]) -> float:
    return float(one["cpu_s"] * 1000 / one["calls"])


def main() -> None:
    arguments = report.arguments(__doc__).parse_args()
    exit_on_sigterm()
    rounds, seconds, transports = (2, 0.4, ["https"]) if arguments.quick else (7, 3.0, list(TRANSPORTS))
    measured = [one for transport in transports for one in run(transport, rounds=rounds, seconds=seconds)]
    busiest = max(one["server_cpu_s"] / (one["wall_s"] + WARM_UP_S) for one in measured)
    columns = ["calls", "ours/s", "SDK's/s", "ours over the SDK's", "our CPU ms", "SDK's CPU ms", "SDK's CPU over ours"]
    table = report.Table(
        title="Prepare calls, beside the official SDK's async client",
        columns=columns,
        rows=[row(measured, transport, at_once) for transport in transports for at_once in AT_ONCE],
        notes=[
            f"Medians of {rounds} rounds of {seconds:g} s each; ratios are taken within a round. CPU is per call.",
            "Defaults on both sides, ours without its limit of requests per second; one control plane on loopback, one body.",
            f"The control plane was busy for at most {busiest:.0%} of the time on a core of its own.",
        ],
        chart=report.Chart(column="ours over the SDK's", unit="times"),
    )
    settings = {"rounds": rounds, "seconds": seconds, "at_once": list(AT_ONCE)}
    result = report.Result(
        benchmark="prepare", title="Prepare calls", settings=settings, tables=[table], raw={"measurements": measured}
    )
    report.finish(result, arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["client"]:
        asyncio.run(be_client(sys.argv[2], Endpoint(**json.loads(sys.argv[3]))))
    else:
        main()
