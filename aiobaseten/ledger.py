"""What one push has done so far, so that the next attempt goes on from there.

`Ledger` keeps it in memory, for the attempts of one process. The journal of a run (`aiobaseten.bulk.journal`) has one that
writes each step down, for the attempts of the next process too. What is awaited here is safe once it has returned: a
step that could not be repeated without harm is only taken after that.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

import attrs

from aiobaseten.errors import DeploymentFailed
from aiobaseten.models import CreatedModelDeployment, Deployment, UploadTarget
from aiobaseten.upload import UploadLog, UploadReceipt


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


def _nothing() -> None:
    pass


@attrs.define(kw_only=True, eq=False)
class Ledger(UploadLog):
    """The steps of one push, those of its upload among them.

    :param push_id: the value of the deployment's label ``aiobaseten-push-id``, the same for all attempts
    :ivar fingerprint: of the source and of all that is sent with it; an upload counts only as long as it is the same
    :ivar receipt: the finished upload
    :ivar sent: the last commit that may have been sent, and whose answer was not read
    :ivar created: the answer to the commit
    :ivar is_active: whether its deployment was seen to be up
    :ivar was_sent: whether an earlier run has sent a commit, which may land late although no trace of it was found
    :ivar tried_commit: whether an attempt of this process has tried to commit; the next one looks first for what that may have made
    :ivar on_unsent: called whenever it is certain that no commit is under way any more
    """

    push_id: str = attrs.field(factory=lambda: uuid.uuid4().hex)
    fingerprint: str | None = None
    receipt: UploadReceipt | None = None
    sent: SentCommit | None = None
    created: CreatedModelDeployment | None = None
    is_active: bool = False
    was_sent: bool = False
    tried_commit: bool = False
    on_unsent: Callable[[], None] = _nothing

    async def prepared(self, fingerprint: str | None, target: UploadTarget | None) -> None:
        """Prepare has answered. An upload that was begun counts on only for the same fingerprint and at the same place."""
        place = target.place if target else None
        if fingerprint is None or (fingerprint, place) != (self.fingerprint, self.place):
            self.partial = None
        self.fingerprint, self.place, self.target, self.receipt = fingerprint, place, target, None

    async def uploaded(self, receipt: UploadReceipt) -> None:
        """The object is complete."""
        self.receipt, self.partial = receipt, None

    async def committing(self, commit: Commit, now_s: float) -> None:
        """The commit is about to be sent. Returns once that is safe: from then on it may have been."""
        self.sent = SentCommit(commit=commit, sent_at_s=now_s)

    def unsent(self) -> None:
        """The last try of the commit did nothing for certain. Another may follow."""
        self.sent = None
        self.on_unsent()

    async def not_committed(self) -> None:
        """The commit did nothing for certain, and is not tried again now."""
        self.unsent()

    async def upload_lost(self) -> None:
        """The service does not know the finished upload any more."""
        self.fingerprint = self.receipt = None

    async def committed(self, created: CreatedModelDeployment) -> None:
        """The deployment exists. Returns once that is safe."""
        self.created = created

    async def active(self, deployment: Deployment) -> None:
        """The deployment is up."""
        assert self.created is not None
        self.created, self.is_active = attrs.evolve(self.created, deployment=deployment), True

    async def failed(self, error: BaseException) -> None:
        """The last attempt of this run has ended with an error. Where the deployment has failed, the next run makes another."""
        if isinstance(error, DeploymentFailed):
            self.push_id = uuid.uuid4().hex
            self.fingerprint = self.place = self.target = self.partial = self.receipt = self.sent = self.created = None
