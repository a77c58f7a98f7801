"""A control plane that costs as little as possible: it believes everything, and answers in the shapes of the service.

It runs as a process of its own (``python control_plane.py --help``), serves on loopback only, and ends with its standard input or
after ``--seconds``. Its first line of output is JSON: its URL and, with ``--tls``, the file of the authority that vouches for it.
From then on it answers each line of input with the CPU seconds it has used, by which a benchmark can see that it was not the
server that was measured.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote_plus

from processes import cpu_s, serve
from sink import tls

CREATED_AT = "2026-01-01T00:00:00+00:00"
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
NAME = re.compile(rb"[?&]name=([^&]*)")
NOT_FOUND = {"message": "not found"}


class Service:
    """What the service remembers: the models that were made, by name and by id."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._by_name: dict[str, dict[str, Any]] = {}
        self._by_id: dict[str, dict[str, Any]] = {}

    def answer(self, method: bytes, target: bytes, body: bytes) -> tuple[bytes, dict[str, Any]]:
        """The status line's end and the JSON of the answer to a request."""
        path = target.partition(b"?")[0]
        match method, path.strip(b"/").split(b"/"):
            case b"POST", [b"v1", b"prepare_model_upload"]:
                return b"200 OK", self._prepared(json.loads(body))
            case b"GET", [b"v1", b"models"] if name := NAME.search(target):
                model = self._by_name.get(unquote_plus(name[1].decode()))
                return b"200 OK", {"models": [] if model is None else [model]}
            case b"GET", [b"v1", b"models"]:
                return b"200 OK", {"models": list(self._by_name.values())}
            case b"GET", [b"v1", b"teams"]:
                return b"200 OK", {"teams": [{"id": "team", "name": "team", "default": True, "created_at": CREATED_AT}]}
            case b"POST", [b"v1", b"models"]:
                source = json.loads(body)["source"]
                return b"200 OK", self._deployed(self._made(source["name"]), source)
            case b"POST", [b"v1", b"models", model_id, b"deployments"] if known := self._by_id.get(model_id.decode()):
                return b"200 OK", self._deployed(known, json.loads(body)["source"])
            case _:
                return b"404 Not Found", NOT_FOUND

    def _prepared(self, request: dict[str, Any]) -> dict[str, Any]:
        if request.get("dry_run"):
            return {"creds": None, "s3_bucket": None, "s3_key": None, "s3_region": None}
        number = next(self._numbers)
        return {
            "creds": {
                "aws_access_key_id": f"ASIABENCHMARK{number:07}",
                "aws_secret_access_key": f"secret-{number:033}",
                "aws_session_token": f"token-{number:0400}",
            },
            "s3_bucket": "baseten-user-models",
            "s3_key": f"organizations/benchmark/models/{number}/model.tgz",
            "s3_region": "us-west-2",
        }

    def _made(self, name: str) -> dict[str, Any]:
        model_id = f"model{next(self._numbers)}"
        model = {
            "id": model_id,
            "created_at": CREATED_AT,
            "name": name,
            "deployments_count": 0,
            "production_deployment_id": None,
            "development_deployment_id": None,
            "instance_type_name": "1x2",
            "team_name": "team",
        }
        self._by_name[name] = self._by_id[model_id] = model
        return model

    def _deployed(self, model: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
        model["deployments_count"] += 1
        deployment = {
            "id": f"deployment{next(self._numbers)}",
            "created_at": CREATED_AT,
            "name": source["deployment"].get("deployment_name") or f"deployment-{model['deployments_count']}",
            "model_id": model["id"],
            "is_production": False,
            "is_development": False,
            "status": "BUILDING",
            "active_replica_count": 0,
            "autoscaling_settings": None,
            "instance_type_name": "1x2",
            "environment": None,
            "labels": source["deployment"].get("labels"),
        }
        return {"model": model, "deployment": deployment}


class Connection(asyncio.Protocol):
    """One kept-alive connection of a client; it reads requests that say their length."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end]
            length = CONTENT_LENGTH.search(head)
            body_end = end + 4 + (int(length[1]) if length else 0)
            if len(self._received) < body_end:
                return
            body, self._received = self._received[end + 4 : body_end], self._received[body_end:]
            method, target, _ = head.split(b" ", 2)
            status, answer = self._service.answer(method, target, body)
            content = json.dumps(answer).encode()
            self._transport.write(
                b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (status, len(content), content)
            )


async def run(directory: Path, *, with_tls: bool, longest_s: float) -> None:
    context, bundle = tls(directory) if with_tls else (None, None)
    service = Service()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(service), "127.0.0.1", 0, ssl=context, backlog=512)
    url = f"{'https' if context else 'http'}://localhost:{server.sockets[0].getsockname()[1]}"

    async def used() -> dict[str, Any]:
        return {"cpu_s": cpu_s()}

    asyncio.get_running_loop().call_later(longest_s, os._exit, 1)
    await serve(used, ready={"url": url, "ca_bundle": bundle and str(bundle)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--seconds", type=float, default=1800.0, help="the longest it runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="control-plane-") as directory:
        asyncio.run(run(Path(directory), with_tls=arguments.tls, longest_s=arguments.seconds))


if __name__ == "__main__":
    main()
