"""Options that all commands share: how to reach the service, and how to upload."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import attrs
from cyclopts import Parameter

from aiobaseten.client import Client
from aiobaseten.events import Observer
from aiobaseten.options import MiB, Options, TimeoutOptions, TransferOptions


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Transfer:
    """How archives are uploaded. What is left out is chosen for you."""

    part_size_mib: Annotated[int | None, Parameter(help="Size of each part in MiB, 5 to 5120.")] = None
    max_connections: Annotated[int | None, Parameter(help="Parts in flight at once.")] = None
    memory_budget_mib: Annotated[int | None, Parameter(help="The most archive bytes in memory at once, in MiB.")] = None
    checksum: Annotated[Literal["crc64nvme", "crc32c", "off"], Parameter(help="Verified by the store.")] = "crc64nvme"

    def options(self) -> TransferOptions:
        """The library's options.

        :raises ConfigurationError: for a value that cannot work
        """
        chosen = TransferOptions(
            part_size_bytes=None if self.part_size_mib is None else self.part_size_mib * MiB,
            max_connections=self.max_connections,
            checksum=None if self.checksum == "off" else self.checksum,
        )
        if self.memory_budget_mib is None:
            return chosen
        return attrs.evolve(chosen, memory_budget_bytes=self.memory_budget_mib * MiB)


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Connection:
    """How to reach the service. The key comes from BASETEN_API_KEY or ~/.trussrc, never from an argument that others could see."""

    base_url: Annotated[str | None, Parameter(help="Of the control plane; by default AIOBASETEN_BASE_URL, else Baseten's.")] = None
    s3_endpoint_url: Annotated[
        str | None, Parameter(help="Of another S3-compatible store; by default AIOBASETEN_S3_ENDPOINT_URL, else AWS.")
    ] = None
    auth_scheme: Annotated[Literal["Bearer", "Api-Key"], Parameter(help="Of the Authorization header.")] = "Bearer"
    ca_bundle: Annotated[Path | None, Parameter(help="PEM file of authorities to trust, in place of the system's.")] = None

    def client(self, transfer: TransferOptions, *, push_s: float | None = None, observer: Observer | None = None) -> Client:
        """A client with these settings.

        :param push_s: the time limit of each push

        :raises ConfigurationError: for a value that cannot work, or where no key is found
        """
        return Client(
            base_url=self.base_url,
            s3_endpoint_url=self.s3_endpoint_url,
            auth_scheme=self.auth_scheme,
            options=Options(transfer=transfer, timeouts=TimeoutOptions(push_s=push_s), ca_bundle=self.ca_bundle),
            observer=observer,
        )
