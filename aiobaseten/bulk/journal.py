"""The journal of a run: what each of its pushes has done, in a file that outlives the process.

A run that is started again with the same journal finds each push where the last one left it, however that ended: done, half
uploaded, or with a commit that may have been sent. `JournalEntry` is the `Ledger` of one push that writes its steps down; the file
is `aiobaseten.bulk.journal_file`, the thread that writes it `aiobaseten.bulk.journal_writer`.
"""

from __future__ import annotations

import json
import os
import uuid
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast

import attrs

from aiobaseten._convert import Mismatch, from_json, to_json
from aiobaseten._text import one_line
from aiobaseten.bulk.journal_file import CredentialsRow, JournalFile, PartRow, PushRow, StoredPush, storable
from aiobaseten.bulk.journal_writer import JournalWriter, Step
from aiobaseten.errors import JournalError
from aiobaseten.ledger import Commit, Ledger, SentCommit
from aiobaseten.models import AWSCredentials, CreatedModelDeployment, Deployment, UploadTarget
from aiobaseten.retry import Clock
from aiobaseten.upload import PartialUpload, PutPart, UploadReceipt

T = TypeVar("T")

PushState = Literal["pending", "prepared", "uploading", "uploaded", "committing", "committed", "active", "failed"]


class Journal:
    """The journal of a run, as an async context manager. While it is open no other run can open it.

    :param path: of the file, which is made if there is none, for its owner's eyes alone
    :param keep_credentials: keep the credentials of uploads that are under way, so that a later run can go on with these, or give
        them up, even where prepare names another key then. They are removed when the upload is complete; a journal that is opened
        without this forgets all that it had
    """

    def __init__(self, path: str | os.PathLike[str], *, keep_credentials: bool = False, clock: Clock = Clock()) -> None:  # noqa: B008 - frozen
        self._path = _path_text(path)
        self._keep_credentials = keep_credentials
        self._clock = clock
        self._writer: JournalWriter | None = None
        self._ids: dict[str, int] = {}
        self._last_id = 0

    async def __aenter__(self) -> Self:
        """Open the file.

        :raises JournalError: if it is in use, damaged, not a journal, of a newer version, or cannot be read and written
        """
        file = JournalFile(self._path, keep_credentials=self._keep_credentials, now_s=self._clock.time)
        writer = JournalWriter(file)
        self._ids = await writer.open()
        self._last_id = max(self._ids.values(), default=0)
        self._writer = writer
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what is still to be written, and close the file.

        :raises JournalError: if something could not be written, unless another error is on its way already
        """
        assert self._writer is not None
        writer, self._writer = self._writer, None
        await writer.close()
        failure = writer.failure
        if failure is None:
            return
        if error is None:
            raise failure
        if not isinstance(error, JournalError):
            error.add_note(failure.message)

    async def entry(self, key: str, *, push_id: str | None = None, name: str, source: str) -> JournalEntry:
        """The entry of a push: as an earlier run left it, or a new one, ``pending``.

        :param key: what makes the push this one among all of the run, the same in each run
        :param push_id: of a new entry; left out, it gets a new one
        :raises JournalError: if the journal cannot be read or written
        """
        writer = self._writer
        if writer is None:
            raise JournalError(f"the journal {self._path} is not open")
        writer.check()
        key = storable(key)
        row_id = self._ids.get(key)
        if row_id is not None:
            return self._restored(writer, await writer.read(row_id))
        self._last_id += 1
        self._ids[key] = self._last_id
        entry = JournalEntry(
            key=key,
            push_id=push_id or uuid.uuid4().hex,
            name=name,
            source=source,
            outlives_cancellation=self._keep_credentials,
            page=_Page(row_id=self._last_id, writer=writer, clock=self._clock, keep_credentials=self._keep_credentials),
        )
        entry.begin()
        return entry

    def _restored(self, writer: JournalWriter, stored: StoredPush) -> JournalEntry:
        row = stored.row
        try:
            created = _read(row.created, CreatedModelDeployment)
            receipt = _read(row.receipt, UploadReceipt)
            commit = _read(row.sent_commit, Commit)
        except (Mismatch, ValueError, RecursionError) as error:
            raise JournalError(
                f"the journal {self._path} is damaged: the row of {row.key!r} cannot be read: {one_line(str(error))}"
            ) from None
        place = None
        if row.bucket is not None and row.object_key is not None and row.region is not None:
            place = (row.bucket, row.object_key, row.region)
        page = _Page(
            row_id=row.id,
            writer=writer,
            clock=self._clock,
            keep_credentials=self._keep_credentials,
            upload_id=row.upload_id,
            sent_at_s=row.sent_at_s,
        )
        target = _target(place, stored.credentials)
        page.kept = target.credentials if target else None
        page.texts = {"receipt": (receipt, row.receipt), "sent": (commit, row.sent_commit), "created": (created, row.created)}
        return JournalEntry(
            key=row.key,
            push_id=row.push_id,
            name=row.name,
            source=row.source,
            state=cast("PushState", row.state),
            error=row.error,
            fingerprint=row.fingerprint,
            place=place,
            target=target,
            partial=_partial(row, stored.parts),
            receipt=receipt,
            sent=None if commit is None or row.sent_at_s is None else SentCommit(commit=commit, sent_at_s=row.sent_at_s),
            created=created,
            is_active=row.state == "active",
            was_sent=row.sent_at_s is not None,
            outlives_cancellation=self._keep_credentials,
            page=page,
        )


@attrs.define(kw_only=True, eq=False)
class _Page:
    """Where an entry is written, and what is written there.

    :ivar upload_id: of the upload whose parts are in the file
    :ivar sent_at_s: when a commit of this push was last sent, whatever became of it
    :ivar kept: the credentials that are in the file
    :ivar texts: JSON of values that stay the same from step to step
    """

    row_id: int
    writer: JournalWriter
    clock: Clock
    keep_credentials: bool
    upload_id: str | None = None
    sent_at_s: float | None = None
    kept: AWSCredentials | None = None
    texts: dict[str, tuple[object, str | None]] = attrs.field(factory=dict[str, "tuple[object, str | None]"])

    def text(self, name: str, value: object) -> str | None:
        known, text = self.texts.get(name, (None, None))
        if known is not value:
            text = json.dumps(to_json(value), separators=(",", ":")) if value is not None else None
            self.texts[name] = (value, text)
        return text


@attrs.define(kw_only=True, eq=False)
class JournalEntry(Ledger):
    """The ledger of one push in a journal. What is awaited here is on the disk once it has returned, but for `prepared`.

    Each step can raise the `JournalError` of one that could not be written, be it this push's or another's.

    :ivar state: the last step that was taken; ``committing`` and ``committed`` also for pushes that failed after them
    :ivar error: why the last attempt failed, in words; None once a later one has come further
    """

    key: str
    name: str
    source: str
    state: PushState = "pending"
    error: str | None = None
    _page: _Page = attrs.field(alias="page", repr=False)

    def begin(self) -> None:
        """Write down that there is such a push."""
        self._page.writer.put(self._step("pending"))

    async def prepared(self, fingerprint: str | None, target: UploadTarget | None) -> None:
        await super().prepared(fingerprint, target)
        self._page.writer.check()
        self._page.writer.put(self._step(self._reached()))

    async def upload_created(self, target: UploadTarget, upload_id: str, part_size_bytes: int) -> None:
        await super().upload_created(target, upload_id, part_size_bytes)
        await self._write(self._reached())

    def part_uploaded(self, part: PutPart) -> None:
        super().part_uploaded(part)
        step = self._step("uploading") if self.state == "failed" else Step(self._page.row_id)
        step.part = PartRow(self._page.row_id, part.number, part.size_bytes, part.etag, _signed(part.checksum))
        self._page.writer.put(step)

    def upload_gone(self) -> None:
        super().upload_gone()
        if self._page.upload_id is not None:
            self._page.writer.put(self._step(self._reached()))

    async def uploaded(self, receipt: UploadReceipt) -> None:
        await super().uploaded(receipt)
        await self._write(self._reached())

    async def committing(self, commit: Commit, now_s: float) -> None:
        await super().committing(commit, now_s)
        await self._write(self._reached())

    async def not_committed(self) -> None:
        await super().not_committed()
        await self._write(self._reached())

    async def upload_lost(self) -> None:
        await super().upload_lost()
        await self._write(self._reached())

    def credentials_renewed(self, target: UploadTarget) -> None:
        super().credentials_renewed(target)
        self._page.writer.put(self._step(self._reached()))

    async def committed(self, created: CreatedModelDeployment) -> None:
        await super().committed(created)
        await self._write(self._reached())

    async def active(self, deployment: Deployment) -> None:
        """The deployment, as it is now, is up. Returns once that is on the disk.

        :raises JournalError: if it could not be written
        """
        await super().active(deployment)
        await self._write("active")

    async def failed(self, error: BaseException) -> None:
        """The push has failed. A commit that may have been sent, or a deployment that is not what failed, stays what counts.

        :raises JournalError: if it could not be written
        """
        push_id = self.push_id
        await super().failed(error)
        if self.push_id != push_id:
            self._page.sent_at_s = None
        reached = self._reached()
        await self._write(reached if reached in ("committing", "committed") else "failed", str(error) or type(error).__name__)

    def _reached(self) -> PushState:
        if self.created is not None:
            return "committed"
        if self.sent is not None:
            return "committing"
        if self.receipt is not None:
            return "uploaded"
        return "prepared" if self.partial is None else "uploading"

    async def _write(self, state: PushState, error: str | None = None) -> None:
        await self._page.writer.write(self._step(state, error))

    def _step(self, state: PushState, error: str | None = None) -> Step:
        """All that is known now, as it goes into the file."""
        self.state, self.error = state, error
        page, partial = self._page, self.partial
        if self.sent is not None:
            page.sent_at_s = self.sent.sent_at_s
        bucket, object_key, region = self.place or (None, None, None)
        row = PushRow(
            id=page.row_id,
            key=self.key,
            state=state,
            push_id=self.push_id,
            name=self.name,
            source=self.source,
            fingerprint=self.fingerprint,
            bucket=bucket,
            object_key=object_key,
            region=region,
            upload_id=partial.upload_id if partial else None,
            part_size_bytes=partial.part_size_bytes if partial else None,
            receipt=page.text("receipt", self.receipt),
            sent_commit=page.text("sent", self.sent.commit if self.sent else None),
            sent_at_s=page.sent_at_s,
            created=page.text("created", self.created),
            error=error,
            updated_at_s=page.clock.time(),
        )
        step = Step(page.row_id, row, page.upload_id not in (None, row.upload_id))
        page.upload_id = row.upload_id
        if page.keep_credentials:
            self._keep_credentials(step)
        return step

    def _keep_credentials(self, step: Step) -> None:
        """Keep the credentials in the file as long as they are of use: until the upload is complete, or given up."""
        page = self._page
        of_use = self.receipt is None and self.created is None and (self.state != "failed" or self.partial is not None)
        wanted = self.target.credentials if self.target is not None and of_use else None
        if wanted is not page.kept:
            page.kept = wanted
            step.credentials = _credentials_row(page.row_id, wanted) if wanted else None


def _path_text(path: Any) -> str:
    text = cast("Any", os.fspath(path)) if hasattr(path, "__fspath__") else path
    if not isinstance(text, str):
        raise JournalError(f"journal must be the path of a file, such as 'deploy.db', not a {type(text).__name__}")
    if not text or "\0" in text:
        raise JournalError(f"journal must be the path of a file, such as 'deploy.db', not {text!r}")
    return text


def _credentials_row(row_id: int, credentials: AWSCredentials) -> CredentialsRow:
    return CredentialsRow(
        push=row_id,
        access_key_id=credentials.aws_access_key_id,
        secret_access_key=credentials.aws_secret_access_key,
        session_token=credentials.aws_session_token,
    )


def _read(text: str | None, kind: type[T]) -> T | None:
    value: Any = None if text is None else json.loads(text)
    return None if value is None else from_json(value, kind)


def _target(place: tuple[str, str, str] | None, credentials: CredentialsRow | None) -> UploadTarget | None:
    if place is None or credentials is None:
        return None
    bucket, key, region = place
    return UploadTarget(
        credentials=AWSCredentials(
            aws_access_key_id=credentials.access_key_id,
            aws_secret_access_key=credentials.secret_access_key,
            aws_session_token=credentials.session_token,
        ),
        bucket=bucket,
        key=key,
        region=region,
    )


def _partial(row: PushRow, parts: list[PartRow]) -> PartialUpload | None:
    if row.upload_id is None or row.part_size_bytes is None:
        return None
    return PartialUpload(
        upload_id=row.upload_id,
        part_size_bytes=row.part_size_bytes,
        parts=[
            PutPart(number=part.number, size_bytes=part.size_bytes, etag=part.etag, checksum=_unsigned(part.checksum))
            for part in parts
        ],
    )


def _signed(checksum: int | None) -> int | None:
    return checksum if checksum is None or checksum < 1 << 63 else checksum - (1 << 64)


def _unsigned(checksum: int | None) -> int | None:
    return checksum if checksum is None else checksum % (1 << 64)
