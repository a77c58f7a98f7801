"""Calls to a local stack without the library's client: plain REST, uploads with botocore's own idea of S3, and small archives."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig

from aiobaseten.local import LocalStack

CONFIG = {"model_name": "small", "python_version": "py311"}


@dataclass
class Answer:
    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def message(self) -> str:
        assert list(self.body) == ["message"]
        return self.body["message"]


@dataclass
class Rest:
    """A stack's REST API. `authorization` None sends no such header."""

    stack: LocalStack
    authorization: str | None = None

    async def call(self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, **query: Any) -> Answer:
        headers = {"Authorization": self.authorization} if self.authorization else {}
        url = f"{self.stack.base_url}{path}"
        content = {"data": io.BytesIO(raw)} if raw is not None else {"json": body}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, url, params=query, **content) as response,
        ):
            return Answer(response.status, await response.json(), response.headers)

    async def prepare(self, deployment: Mapping[str, Any] | None = None, **fields: Any) -> Answer:
        return await self.call("POST", "/v1/prepare_model_upload", {"deployment": deployment or {"config": CONFIG}, **fields})

    async def commit(self, path: str, deployment: Mapping[str, Any] | None = None, **fields: Any) -> Answer:
        source = {"kind": "model_archive", "deployment": deployment or {"config": CONFIG}, **fields}
        return await self.call("POST", path, {"source": source})

    async def push(self, name: str, deployment: Mapping[str, Any] | None = None, *, archive: bytes | None = None) -> Answer:
        """Make a model from a small archive."""
        prepared = await self.prepare(deployment, name=name)
        assert prepared.status == 200, prepared
        await upload(self.stack, prepared.body, archive)
        return await self.commit("/v1/models", deployment, name=name, s3_key=prepared.body["s3_key"])

    async def deploy(self, model_id: str, deployment: Mapping[str, Any] | None = None) -> Answer:
        """Add a deployment from a small archive."""
        prepared = await self.prepare(deployment, model_id=model_id)
        assert prepared.status == 200, prepared
        await upload(self.stack, prepared.body)
        return await self.commit(f"/v1/models/{model_id}/deployments", deployment, s3_key=prepared.body["s3_key"])


def rest(stack: LocalStack) -> Rest:
    return Rest(stack, f"Bearer {stack.api_key}")


@asynccontextmanager
async def s3_client(stack: LocalStack, credentials: Mapping[str, str | None]) -> AsyncIterator[Any]:
    async with aioboto3.Session().client(
        "s3",
        endpoint_url=stack.s3_endpoint_url,
        region_name=stack.region,
        config=AioConfig(request_checksum_calculation="when_required", retries={"total_max_attempts": 1}),
        **credentials,
    ) as s3:
        yield s3


async def upload(stack: LocalStack, prepared: Mapping[str, Any], archive: bytes | None = None) -> None:
    """Upload with the credentials that prepare gave; a small archive unless another is given."""
    async with s3_client(stack, prepared["creds"]) as s3:
        await s3.put_object(Bucket=prepared["s3_bucket"], Key=prepared["s3_key"], Body=make_tar() if archive is None else archive)


def make_tar(files: Mapping[str, bytes] | None = None, *, compress: bool = False) -> bytes:
    """A tar in memory; by default one with a config.yaml at its root."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in ({"config.yaml": b"model_name: small\n"} if files is None else files).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return gzip.compress(content.getvalue()) if compress else content.getvalue()
