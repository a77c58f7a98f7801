"""What the local stack itself asks of its S3: buckets, reading back, and scoped credentials.

Requests are signed by botocore and sent by aiohttp: no AWS client, so no AWS setting of the environment is read.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any
from xml.etree import ElementTree

import aiohttp
import attrs
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from yarl import URL

from aiobaseten._redaction import keep_secret
from aiobaseten.errors import BasetenError
from aiobaseten.models import AWSCredentials, masked

REGION = "us-west-2"
CHUNK_BYTES = 256 * 1024
CREDENTIALS_LIFETIME_S = 3600
FEDERATED_NAME = "model-upload"
READY_KEY = ".ready"

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60)
_MULTIPART_EXTRAS = ("s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")


class LocalStackError(BasetenError):
    """The local stack, or the SeaweedFS under it, failed or was used while it was not running."""


class ObjectMissing(LocalStackError):
    """There is no object at the key."""


@attrs.frozen(kw_only=True)
class AdminCredentials:
    """Long-lived credentials that may do everything in the local S3. There is no session token."""

    aws_access_key_id: str = attrs.field(repr=masked)
    aws_secret_access_key: str = attrs.field(repr=masked)
    aws_session_token: None = None


@attrs.frozen(kw_only=True)
class UnfinishedUpload:
    """A multipart upload that was neither completed nor aborted."""

    key: str
    upload_id: str


@attrs.frozen(kw_only=True)
class ObjectStore:
    """One bucket of the local S3, with the administrator's rights."""

    endpoint_url: str
    bucket: str
    credentials: AdminCredentials
    session: aiohttp.ClientSession

    async def is_ready(self) -> bool:
        """Make the bucket, unless it exists, and try to write into it. An open port alone does not mean that either works."""
        try:
            async with self._send("PUT", expected=(HTTPStatus.OK, HTTPStatus.CONFLICT)):
                pass
            async with self._send("PUT", READY_KEY, body=b"ready"):
                pass
            async with self._send("DELETE", READY_KEY, expected=(HTTPStatus.NO_CONTENT,)):
                pass
        except LocalStackError:
            return False
        return True

    async def size_bytes(self, key: str) -> int:
        """The size of an object.

        :raises ObjectMissing: when there is none
        """
        async with self._send("HEAD", key) as response:
            return int(response.headers["Content-Length"])

    async def read_range(self, key: str, start: int, stop: int) -> bytes:
        """The bytes from `start` up to, not including, `stop`."""
        wanted = {"Range": f"bytes={start}-{stop - 1}"}
        async with self._send("GET", key, headers=wanted, expected=(HTTPStatus.PARTIAL_CONTENT,)) as response:
            return await response.read()

    async def read_through(self, key: str, sink: Callable[[bytes], object]) -> None:
        """Call `sink` with each piece of an object, in order; memory stays bounded.

        :raises ObjectMissing: when there is none
        """
        async with self._send("GET", key) as response:
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                sink(chunk)

    async def unfinished_uploads(self) -> list[UnfinishedUpload]:
        """The multipart uploads that were neither completed nor aborted, up to 10,000 (SeaweedFS lists no more at once)."""
        async with self._send("GET", query="uploads=") as response:
            tree = _parse(await response.text())
        return [
            UnfinishedUpload(key=upload.findtext("{*}Key", ""), upload_id=upload.findtext("{*}UploadId", ""))
            for upload in tree.iterfind("{*}Upload")
        ]

    async def scoped_credentials(self, key: str, *, put_only: bool, may_read: bool = False) -> AWSCredentials:
        """Credentials that can upload to `key`, at once or in parts, and nothing else.

        :param put_only: not even abort the upload or list its parts
        :param may_read: but also read it
        """
        form = {
            "Action": "GetFederationToken",
            "Version": "2011-06-15",
            "Name": FEDERATED_NAME,
            "Policy": json.dumps(_upload_policy(self.bucket, key, put_only=put_only, may_read=may_read)),
            "DurationSeconds": CREDENTIALS_LIFETIME_S,
        }
        async with self._send(
            "POST",
            bucket="",
            body=urllib.parse.urlencode(form).encode(),
            headers={"Content-Type": "application/x-www-form-urlencoded"},
            signer=SigV4Auth(self._signing_credentials, "sts", REGION),
        ) as response:
            tree = _parse(await response.text())
        credentials = AWSCredentials(
            aws_access_key_id=tree.findtext(".//{*}AccessKeyId", ""),
            aws_secret_access_key=tree.findtext(".//{*}SecretAccessKey", ""),
            aws_session_token=tree.findtext(".//{*}SessionToken", ""),
        )
        keep_secret(credentials, *attrs.astuple(credentials))
        return credentials

    @property
    def _signing_credentials(self) -> Credentials:
        return Credentials(self.credentials.aws_access_key_id, self.credentials.aws_secret_access_key)

    @asynccontextmanager
    async def _send(
        self,
        method: str,
        key: str = "",
        *,
        bucket: str | None = None,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        expected: tuple[HTTPStatus, ...] = (HTTPStatus.OK,),
        signer: SigV4Auth | None = None,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        path = "/".join(filter(None, (self.bucket if bucket is None else bucket, key)))
        url = f"{self.endpoint_url}/{urllib.parse.quote(path, safe='/~')}" + (f"?{query}" if query else "")
        signed = AWSRequest(method, url, data=body, headers=headers)
        (signer or S3SigV4Auth(self._signing_credentials, "s3", REGION)).add_auth(signed)
        try:
            async with self.session.request(
                method,
                URL(url, encoded=True),
                data=body or None,
                headers=dict(signed.headers.items()),
                allow_redirects=False,
                timeout=_TIMEOUT,
            ) as response:
                if response.status == HTTPStatus.NOT_FOUND:
                    raise ObjectMissing(f"there is no {path!r} in the local S3")
                if response.status not in expected:
                    answer = await response.text(errors="replace")
                    raise LocalStackError(f"the local S3 answered {method} {path!r} with {response.status}: {answer[:500]}")
                yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise LocalStackError(f"the local S3 did not answer {method} {path!r}: {error!r}") from error


def _parse(xml: str) -> ElementTree.Element:
    return ElementTree.fromstring(xml)  # nosec B314  # noqa: S314 - written by the SeaweedFS that this stack started


def _upload_policy(bucket: str, key: str, *, put_only: bool, may_read: bool) -> dict[str, Any]:
    """A session policy. SeaweedFS counts abort and list-parts as parts of PutObject, so they are denied by name."""
    resource = [f"arn:aws:s3:::{bucket}/{key}"]
    statements = [{"Effect": "Allow", "Action": ["s3:PutObject"], "Resource": resource}]
    statements.append({"Effect": "Deny" if put_only else "Allow", "Action": list(_MULTIPART_EXTRAS), "Resource": resource})
    if may_read:
        statements.append({"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": resource})
    return {"Version": "2012-10-17", "Statement": statements}
