"""What one push has done so far, so that the next attempt goes on from there.

`Ledger` keeps it in memory, for the attempts of one process. The journal of a run (`aiobaseten.bulk.journal`) has one that
writes each step down, for the attempts of the next process too. What is awaited here is safe once it has returned: a
step that could not be repeated without harm is only taken after that.
"""

from __future__ import annotations

import uuid

import attrs

from aiobaseten.models import CreatedModelDeployment, UploadTarget
from aiobaseten.upload import PartialUpload, PutPart, UploadReceipt


@attrs.frozen(kw_only=True)
class Commit:
    """A commit that is about to be sent, in what is needed to find its deployment again.

    :param model_id: of the existing model that gets a deployment; None where a new model is made
    :param name: of the new model
    :param deployment_name: the name that the deployment was given, if any
    :param tagged: whether the deployment carries the push's id as a label
    """

    model_id: str | None
    name: str | None
    team_id: str | None
    deployment_name: str | None
    tagged: bool


@attrs.frozen(kw_only=True)
class SentCommit:
    """A commit that may have been sent. `sent_at_s` is the wall clock's, in seconds since 1970."""

    commit: Commit
    sent_at_s: float


@attrs.define(kw_only=True, eq=False)
class Ledger:
    """The steps of one push.

    :param push_id: the value of the deployment's label ``aiobaseten-push-id``, the same for all attempts
    :ivar fingerprint: of the source and of all that is sent with it; what follows holds only as long as it is the same
    :ivar place: bucket, key and region that the archive goes to
    :ivar target: the same with its credentials, where these are still known
    :ivar partial: a multipart upload that was begun and neither completed nor aborted
    :ivar receipt: the finished upload
    :ivar sent: the last commit that may have been sent, and whose answer was not read
    :ivar created: the answer to the commit
    """

    push_id: str = attrs.field(factory=lambda: uuid.uuid4().hex)
    fingerprint: str | None = None
    place: tuple[str, str, str] | None = None
    target: UploadTarget | None = None
    partial: PartialUpload | None = None
    receipt: UploadReceipt | None = None
    sent: SentCommit | None = None
    created: CreatedModelDeployment | None = None

    async def prepared(self, fingerprint: str | None, target: UploadTarget | None) -> None:
        """Prepare has answered. An upload that was begun counts on only for the same fingerprint and at the same place."""
        place = target.place if target else None
        if fingerprint is None or (fingerprint, place) != (self.fingerprint, self.place):
            self.partial = None
        self.fingerprint, self.place, self.target, self.receipt = fingerprint, place, target, None

    async def upload_created(self, target: UploadTarget, upload_id: str, part_size_bytes: int) -> None:
        """A multipart upload was created. Returns once that is safe: an upload whose id is lost is never cleaned up."""
        self.place, self.target = target.place, target
        self.partial = PartialUpload(upload_id=upload_id, part_size_bytes=part_size_bytes)

    def part_uploaded(self, part: PutPart) -> None:
        """The store has taken a part of the multipart upload."""
        assert self.partial is not None
        self.partial.parts.append(part)

    def upload_gone(self) -> None:
        """The multipart upload was aborted, or does not exist any more."""
        self.partial = None

    async def uploaded(self, receipt: UploadReceipt) -> None:
        """The object is complete."""
        self.receipt, self.partial = receipt, None

    async def committing(self, commit: Commit, now_s: float) -> None:
        """The commit is about to be sent. Returns once that is safe: from then on it may have been."""
        self.sent = SentCommit(commit=commit, sent_at_s=now_s)

    async def not_committed(self) -> None:
        """The commit did nothing for certain."""
        self.sent = None

    async def committed(self, created: CreatedModelDeployment) -> None:
        """The deployment exists. Returns once that is safe."""
        self.created = created
