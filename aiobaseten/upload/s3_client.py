"""How an aioboto3 client is made that serves every push of a region, and that the user's own AWS settings have no say in."""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import Any

import aioboto3
import attrs
from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.config import AioConfig
from aiobotocore.credentials import AioCredentialResolver, AioCredentials
from aiobotocore.session import AioSession
from botocore.awsrequest import AWSPreparedRequest
from botocore.compat import HTTPHeaders
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES, ConstantProvider
from botocore.credentials import CredentialProvider, ReadOnlyCredentials
from botocore.loaders import Loader

from aiobaseten._redaction import keep_secret
from aiobaseten.models import AWSCredentials
from aiobaseten.options import Options
from aiobaseten.upload.transport import ReadContent, S3Session, Transport

call_credentials: ContextVar[AWSCredentials] = ContextVar("aiobaseten_call_credentials")
"""What the client's calls are signed with."""


class _SigningKeys(ReadOnlyCredentials):
    """What botocore signs with, in a shape that shows none of it."""

    def __repr__(self) -> str:
        return "<signing keys>"


def signing_keys(credentials: AWSCredentials) -> ReadOnlyCredentials:
    """Credentials as botocore takes them. They are masked from now on, wherever they came from."""
    keys = attrs.astuple(credentials)
    keep_secret(credentials, *keys)
    return _SigningKeys(*keys)


class _CallCredentials(AioCredentials):
    """Stands in the shared client for the credentials of whichever call is being signed."""

    def __init__(self) -> None:
        super().__init__("per-call", "per-call")

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:  # type: ignore[override]  # aiobotocore awaits what botocore calls
        return signing_keys(call_credentials.get())


class _CallCredentialsProvider(CredentialProvider):
    METHOD = "aiobaseten"
    CANONICAL_NAME = "aiobaseten"

    async def load(self) -> AioCredentials:
        return _CallCredentials()


async def make_client(region: str, endpoint_url: str | None, options: Options, transport: Transport) -> Any:
    """An S3 client, which needs no closing: its connections are the transport's. Takes some 100 ms of CPU."""
    session = AioSession()
    _ignore_user_settings(session)
    builtin_models = Loader(extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)
    session.register_component("data_loader", builtin_models)  # the default one looks into ~/.aws/models first
    session.register_component("credential_provider", AioCredentialResolver([_CallCredentialsProvider()]))
    config = AioConfig(
        http_session_cls=S3Session.over(transport, options),
        retries={"mode": "standard", "total_max_attempts": 1},
        signature_version="s3v4",
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        ignore_configured_endpoint_urls=True,
        s3={"us_east_1_regional_endpoint": "regional"},
    )
    aws: Any = aioboto3.Session(botocore_session=session)  # its type is an overload of every AWS service
    client = await aws.client("s3", region_name=region, endpoint_url=endpoint_url, verify=True, config=config).__aenter__()
    client.meta.events.register_last("before-parameter-build.s3", _stay_in_region)
    return client


async def bucket_url(client: Any, bucket: str) -> str:
    """Where botocore's rules say that a bucket's objects are, with a ``/`` at the end. Nothing is sent.

    :raises botocore.exceptions.BotoCoreError: if it cannot be a bucket
    """
    found: list[str] = []

    def answer_instead(request: AWSPreparedRequest, **_: Any) -> AioAWSResponse:
        found.append(request.url)
        return AioAWSResponse(request.url, 200, HTTPHeaders(), ReadContent(b""))

    client.meta.events.register("before-send.s3.HeadBucket", answer_instead)
    try:
        await client.head_bucket(Bucket=bucket)
    finally:
        client.meta.events.unregister("before-send.s3.HeadBucket", answer_instead)
    return found[0].rstrip("/") + "/"


def _stay_in_region(context: dict[str, Any], **_: Any) -> None:
    """Tell botocore's region redirector that it has had its turn: it would take the credentials to a host of its own finding."""
    context["s3_redirect"]["redirected"] = True


def _ignore_user_settings(session: AioSession) -> None:
    """Make botocore's own defaults the only settings: no environment variable and no file under ``~/.aws`` has a say."""
    settings = session.get_component("config_store")
    for name, (_, _, default, _) in BOTOCORE_DEFAUT_SESSION_VARIABLES.items():
        settings.set_config_provider(name, ConstantProvider(value=default))
    for section in ("s3", "proxies_config"):
        settings.set_config_provider(section, ConstantProvider(value=None))
    for file in ("config_file", "credentials_file"):
        settings.set_config_provider(file, ConstantProvider(value=os.devnull))
