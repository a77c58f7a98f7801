"""How an archive is cut into parts. Pure: the same sizes and options always give the same plan.

S3's limits, which shape it: parts are numbered 1 to 10,000, each but the last holds 5 MiB to 5 GiB, an object at most 5 TiB
(Amazon S3 user guide, "Multipart upload limits").
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from aiobaseten.errors import ArchiveError
from aiobaseten.options import GiB, MiB, TransferOptions

MAX_PARTS = 10_000
MIN_PART_SIZE_BYTES = 5 * MiB
MAX_PART_SIZE_BYTES = 5 * GiB
MAX_OBJECT_SIZE_BYTES = 5 * 1024 * GiB
DEFAULT_PART_SIZE_BYTES = 8 * MiB
LARGE_ARCHIVE_BYTES, LARGE_PART_SIZE_BYTES = 256 * MiB, 12 * MiB
"""Each part costs some 2 ms of CPU, whatever its size. On slow links that is nothing, and larger parts make for coarser work."""
USUAL_CONNECTIONS = 4

PARTS_PER_SIZE = 900
"""An archive of unknown length doubles its part size after so many parts: 5 MiB parts then reach 5 TiB before part 10,000."""


@attrs.frozen
class Part:
    """A range of the archive. `number` counts from 1."""

    number: int
    offset: int
    size_bytes: int


@attrs.frozen(kw_only=True)
class UploadPlan:
    """The cut of one archive.

    :param size_bytes: of the archive; None when it is not known beforehand
    :param part_size_bytes: of each part but the last; of the first ones where the size is not known
    :param multipart: False for a single PutObject; for an archive of unknown length this is known only once its first part is read
    """

    size_bytes: int | None
    part_size_bytes: int
    multipart: bool

    @property
    def part_count(self) -> int | None:
        """How many parts there will be; None when the size is not known."""
        return None if self.size_bytes is None else -(-self.size_bytes // self.part_size_bytes)

    def parts(self) -> Iterator[Part]:
        """Every part in order. Where the size is not known, the sizes are upper bounds and go on to S3's limit for objects."""
        end = MAX_OBJECT_SIZE_BYTES if self.size_bytes is None else self.size_bytes
        offset = 0
        for number in range(1, MAX_PARTS + 1):
            if offset >= end:
                return
            size = min(self._part_size(number), end - offset)
            yield Part(number, offset, size)
            offset += size

    def _part_size(self, number: int) -> int:
        if self.size_bytes is not None:
            return self.part_size_bytes
        return min(self.part_size_bytes << (number - 1) // PARTS_PER_SIZE, MAX_PART_SIZE_BYTES)


def plan_upload(
    size_bytes: int | None, options: TransferOptions, *, is_fast: bool = False, begun_with_bytes: int | None = None
) -> UploadPlan:
    """Decide on a single PutObject or parts, and on the size of the parts.

    :param is_fast: whether parts were seen to be sent in no time
    :param begun_with_bytes: the size of the parts with which an upload was begun that is gone on with
    :raises ArchiveError: for an empty archive, or one larger than S3 takes
    """
    if begun_with_bytes is not None:
        return UploadPlan(size_bytes=size_bytes, part_size_bytes=begun_with_bytes, multipart=True)
    part_size = options.part_size_bytes or _chosen_part_size(size_bytes, options, is_fast=is_fast)
    if size_bytes is None:
        return UploadPlan(size_bytes=None, part_size_bytes=part_size, multipart=True)
    check_size(size_bytes)
    if size_bytes < options.multipart_threshold_bytes:
        return UploadPlan(size_bytes=size_bytes, part_size_bytes=size_bytes, multipart=False)
    smallest_that_fits = -(-size_bytes // MAX_PARTS)
    if smallest_that_fits > part_size:
        part_size = -(-smallest_that_fits // MiB) * MiB
    return UploadPlan(size_bytes=size_bytes, part_size_bytes=part_size, multipart=True)


def _chosen_part_size(size_bytes: int | None, options: TransferOptions, *, is_fast: bool) -> int:
    connections = options.max_connections or USUAL_CONNECTIONS
    fits = connections * LARGE_PART_SIZE_BYTES <= options.memory_budget_bytes
    is_large = size_bytes is not None and size_bytes >= LARGE_ARCHIVE_BYTES
    return LARGE_PART_SIZE_BYTES if is_fast and is_large and fits else DEFAULT_PART_SIZE_BYTES


def check_size(size_bytes: int) -> None:
    """Refuse what S3 cannot store, and archives without a byte.

    :raises ArchiveError: if `size_bytes` is 0 or above 5 TiB
    """
    if size_bytes <= 0:
        raise ArchiveError("the archive is empty: it needs a config.yaml at least")
    if size_bytes > MAX_OBJECT_SIZE_BYTES:
        raise ArchiveError(
            f"the archive has {size_bytes:,} bytes, and the object store takes at most {MAX_OBJECT_SIZE_BYTES:,} (5 TiB)"
        )
