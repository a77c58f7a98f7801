"""The checksums that S3 verifies for us: one per part, combined into the object's own without reading anything twice."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Literal

import attrs
from awscrt import checksums  # type: ignore[import-untyped]

from aiobaseten import options


@attrs.frozen(kw_only=True)
class Algorithm:
    """A checksum that can be combined, and its names in S3's API.

    :param compute: of a buffer (awscrt's types say bytes only)
    :param combine: of two neighbouring ranges: first value, second value, length of the second in bytes
    """

    name: Literal["CRC64NVME", "CRC32C"]
    size_bytes: int
    compute: Callable[[Any], int]
    combine: Callable[[int, int, int], int]

    @property
    def parameter(self) -> str:
        """The parameter and response member of S3's calls, such as ``ChecksumCRC64NVME``."""
        return f"Checksum{self.name}"

    def encode(self, value: int) -> str:
        """As S3 writes it: big-endian, Base64."""
        return base64.b64encode(value.to_bytes(self.size_bytes, "big")).decode()


ALGORITHMS = {
    "crc64nvme": Algorithm(name="CRC64NVME", size_bytes=8, compute=checksums.crc64nvme, combine=checksums.combine_crc64nvme),
    "crc32c": Algorithm(name="CRC32C", size_bytes=4, compute=checksums.crc32c, combine=checksums.combine_crc32c),
}


def algorithm_for(checksum: options.Checksum | None) -> Algorithm | None:
    return None if checksum is None else ALGORITHMS[checksum]


@attrs.frozen
class Checksums:
    """An algorithm and the value it gave; both None where checksums are off."""

    algorithm: Algorithm | None
    value: int | None

    @property
    def encoded(self) -> str | None:
        return None if self.algorithm is None or self.value is None else self.algorithm.encode(self.value)

    def parameters(self) -> dict[str, str]:
        """What to send along, so that the store verifies it."""
        return {} if self.algorithm is None or self.encoded is None else {self.algorithm.parameter: self.encoded}

    def headers(self) -> dict[str, str]:
        """As `parameters`, in the words of HTTP."""
        return {f"x-amz-checksum-{name.removeprefix('Checksum').lower()}": value for name, value in self.parameters().items()}
