"""What an upload has left at the store, so that the next attempt can go on with it."""

from __future__ import annotations

import attrs

from aiobaseten.models import UploadTarget
from aiobaseten.upload.s3_answers import PutPart


@attrs.define(kw_only=True)
class PartialUpload:
    """A multipart upload that was begun, and the parts that the store has taken so far."""

    upload_id: str
    part_size_bytes: int
    parts: list[PutPart] = attrs.field(factory=list[PutPart])


@attrs.define(kw_only=True, eq=False)
class UploadLog:
    """Told of each step of an upload, and keeps it in memory.

    :ivar place: bucket, key and region that the archive goes to
    :ivar target: the same with its credentials, where these are still known
    :ivar partial: a multipart upload that was neither completed nor aborted
    :ivar outlives_cancellation: whether a cancelled upload is left at the store, for the next attempt to go on with
    """

    place: tuple[str, str, str] | None = None
    target: UploadTarget | None = None
    partial: PartialUpload | None = None
    outlives_cancellation: bool = False

    async def upload_created(self, target: UploadTarget, upload_id: str, part_size_bytes: int) -> None:
        """A multipart upload was created. Returns once that is safe: an upload whose id is lost is never cleaned up."""
        self.place, self.target = target.place, target
        self.partial = PartialUpload(upload_id=upload_id, part_size_bytes=part_size_bytes)

    def credentials_renewed(self, target: UploadTarget) -> None:
        """The upload goes on at the same place with other credentials."""
        self.target = target

    def part_uploaded(self, part: PutPart) -> None:
        """The store has taken a part of the multipart upload."""
        assert self.partial is not None
        self.partial.parts.append(part)

    def upload_gone(self) -> None:
        """The multipart upload was aborted, or does not exist any more."""
        self.partial = None
