"""One upload, from plan to receipt.

Workers take parts from the plan. Each waits for memory, has the source read the part into it, computes its checksum and sends it. A
source that can be read only in order has one reader, which hands its parts to senders. The first failure stops all. Then the
upload is completed, or, on any failure or cancellation, aborted. Credentials that expire on the way are renewed once for all
workers, and the upload goes on, or starts over where the renewed credentials are for another key. An upload that an earlier
attempt has left half done goes on with the parts that are missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus

import anyio
import anyio.lowlevel
import attrs

from aiobaseten.errors import CredentialsExpired, IntegrityError, TransportError, UploadError
from aiobaseten.events import (
    Emitter,
    PartUploaded,
    UploadAborted,
    UploadCompleted,
    UploadRestarted,
    UploadResumed,
    UploadStarted,
)
from aiobaseten.models import UploadTarget
from aiobaseten.options import Options
from aiobaseten.retry import Clock, OnRetry, retrying
from aiobaseten.sources.base import Source
from aiobaseten.upload.calls import Calls, KeyChanged, Renew
from aiobaseten.upload.checksum import Checksums, algorithm_for
from aiobaseten.upload.connections import LOOK_EVERY_S, Connections
from aiobaseten.upload.crew import Work, crew
from aiobaseten.upload.log import UploadLog
from aiobaseten.upload.plan import check_size, plan_upload
from aiobaseten.upload.reader import FilledPart, PartReader
from aiobaseten.upload.s3 import S3
from aiobaseten.upload.s3_answers import PutPart, StoredObject


@attrs.frozen(kw_only=True)
class UploadReceipt:
    """A finished upload.

    :param size_bytes: bytes of the archive
    :param parts: how many requests carried it
    :param etag: the store's entity tag of the object
    :param checksum: of the whole object, in S3's notation (Base64); None with checksums off
    :param checksum_algorithm: ``CRC64NVME`` or ``CRC32C``; None with checksums off
    :param verified: whether the store confirmed the object's checksum; a store that says nothing of checksums leaves it False
    """

    bucket: str
    key: str
    size_bytes: int
    parts: int
    etag: str | None
    checksum: str | None
    checksum_algorithm: str | None
    verified: bool


@attrs.frozen(kw_only=True)
class UploadRehearsal:
    """An upload whose parts the store took, and that was then given up.

    :param size_bytes: what the store took
    :param parts: how many requests carried it
    :param duration_s: from the request that began the upload to the last part's answer
    """

    size_bytes: int
    parts: int
    duration_s: float

    @property
    def bytes_per_s(self) -> float:
        return self.size_bytes / self.duration_s


class UploadEngine:
    """Runs uploads over one S3 client, within one bound on connections and memory."""

    def __init__(self, s3: S3, options: Options, clock: Clock) -> None:
        self.s3 = s3
        self.options = options
        self.clock = clock
        self.connections = Connections(options.transfer, clock, s3.sent)

    async def upload(
        self,
        target: UploadTarget,
        source: Source,
        *,
        emit: Emitter,
        push_id: str = "",
        renew: Renew | None = None,
        log: UploadLog | None = None,
    ) -> UploadReceipt:
        """Upload a source to a target.

        :param renew: called when the credentials have expired; without it that is an error
        :param log: told of each step; what it holds of an earlier attempt at this target is gone on with
        :raises UploadError: when the store did not take it; its subclasses say when the credentials or the content are to blame
        :raises TransportError: when the store could not be reached
        :raises SourceChanged: when the source changed while it was read
        """
        log = log or UploadLog()
        restarts_left = self.options.retry.max_attempts - 1
        upload = _Upload(self, target, source, emit, push_id, renew, log)
        while True:
            try:
                return await upload.run()
            except KeyChanged as change:
                if restarts_left == 0:
                    raise change.expired from None
                restarts_left -= 1
                target = change.target
                log.upload_gone()
            except UploadError as gone:
                if not upload.was_resumed or gone.code != "NoSuchUpload":
                    raise
                target = upload.target
                log.upload_gone()
            emit(UploadRestarted(push_id=push_id, key=target.key))
            upload = _Upload(self, target, source, emit, push_id, renew, log, renewed=target is not upload.target)

    async def abort(self, target: UploadTarget, upload_id: str, *, on_retry: OnRetry | None = None) -> None:
        """Give up what an upload has left at a target. Passing failures are repeated; one that is gone already is given up.

        :raises UploadError: if the credentials do not allow it
        :raises TransportError: if the store could not be reached
        """
        try:
            await retrying(
                lambda: self.s3.abort(target, upload_id), options=self.options.retry, clock=self.clock, on_retry=on_retry
            )
        except UploadError as error:
            if error.code != "NoSuchUpload":
                raise

    async def rehearse(self, target: UploadTarget, source: Source, *, max_duration_s: float, emit: Emitter) -> UploadRehearsal:
        """Upload a source's parts, and give the upload up where `upload` would complete it.

        :param max_duration_s: after which no further part is begun
        :raises UploadError: as `upload`, and where the parts could not be removed again
        """
        return await _Upload(self, target, source, emit, "", None, UploadLog()).rehearse(max_duration_s)


class _Upload:
    """One attempt at one key."""

    def __init__(
        self,
        engine: UploadEngine,
        target: UploadTarget,
        source: Source,
        emit: Emitter,
        push_id: str,
        renew: Renew | None,
        log: UploadLog,
        *,
        renewed: bool = False,
    ) -> None:
        self._engine = engine
        self._s3 = engine.s3
        self._source = source
        self._emit = emit
        self._push_id = push_id
        self._log = log
        self._gives_up_at: float | None = None
        self._resumed = log.partial
        self._upload_id = self._resumed.upload_id if self._resumed else None
        self._put: list[PutPart] = [*self._resumed.parts] if self._resumed else []
        self._is_rehearsal = False
        self._time_is_up: Callable[[], bool] = lambda: False
        self._whole: StoredObject | None = None
        self._algorithm = algorithm_for(engine.options.transfer.checksum)
        self._connections = engine.connections
        self._calls = Calls(
            target,
            source,
            options=engine.options,
            clock=engine.clock,
            connections=self._connections,
            emit=emit,
            push_id=push_id,
            log=log,
            renew=renew,
            renewed=renewed,
        )
        self._plan = plan_upload(
            source.size_bytes,
            engine.options.transfer,
            is_fast=self._connections.are_fast,
            begun_with_bytes=self._resumed.part_size_bytes if self._resumed else None,
        )
        done = frozenset(part.number for part in self._put)
        self._reader = PartReader(source, self._plan, self._algorithm, self._connections.budget, done=done)
        self._workers = 0
        self._all_sent = anyio.Event()

    @property
    def target(self) -> UploadTarget:
        """Where it goes, with the credentials that hold now."""
        return self._calls.target

    @property
    def was_resumed(self) -> bool:
        """Whether it went on with what an earlier attempt had left."""
        return self._resumed is not None

    async def run(self) -> UploadReceipt:
        async with self._aborted_on_failure():
            await self._send_all()
            stored = self._whole or await self._complete()
        receipt = UploadReceipt(
            bucket=self.target.bucket,
            key=self.target.key,
            size_bytes=self._size_bytes,
            parts=len(self._put),
            etag=stored.etag,
            checksum=self._checksums.encoded,
            checksum_algorithm=self._algorithm.name if self._algorithm else None,
            verified=stored.checksum is not None,
        )
        self._emit(
            UploadCompleted(
                push_id=self._push_id,
                key=receipt.key,
                size_bytes=receipt.size_bytes,
                parts=receipt.parts,
                verified=receipt.verified,
            )
        )
        return receipt

    async def rehearse(self, max_duration_s: float) -> UploadRehearsal:
        clock = self._engine.clock
        started_s = clock.monotonic()
        self._is_rehearsal = True
        self._time_is_up = lambda: clock.monotonic() - started_s >= max_duration_s
        async with self._aborted_on_failure():
            await self._send_all()
            duration_s = clock.monotonic() - started_s
        problem = await self._abort()
        await anyio.lowlevel.checkpoint_if_cancelled()
        if problem is not None:
            raise UploadError(f"all went well, but the parts are still there: {problem}", operation="AbortMultipartUpload")
        return UploadRehearsal(size_bytes=self._size_bytes, parts=len(self._put), duration_s=duration_s)

    @asynccontextmanager
    async def _aborted_on_failure(self) -> AsyncGenerator[None]:
        """Around all of an upload. Nothing of it is left when the block fails, but what the next attempt is to go on with."""
        self._emit(
            UploadStarted(
                push_id=self._push_id,
                key=self.target.key,
                size_bytes=self._plan.size_bytes,
                part_size_bytes=self._plan.part_size_bytes if self._plan.multipart else None,
                parts=self._plan.part_count,
            )
        )
        try:
            yield
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self._log.outlives_cancellation and self._log.partial is not None:
                raise
            await self._abort(error)
            raise
        finally:
            self._reader.release_all()

    @property
    def _size_bytes(self) -> int:
        return sum(part.size_bytes for part in self._put)

    @property
    def _checksums(self) -> Checksums:
        """The whole object's checksum, out of its parts'."""
        if self._algorithm is None:
            return Checksums(None, None)
        value = 0
        for part in sorted(self._put, key=lambda part: part.number):
            assert part.checksum is not None
            value = self._algorithm.combine(value, part.checksum, part.size_bytes)
        return Checksums(self._algorithm, value)

    async def _send_all(self) -> None:
        async with crew() as start:
            start(lambda: self._lead(start))

    async def _lead(self, start: Callable[[Work], None]) -> None:
        """The first worker. Its part decides between a single PutObject and a multipart upload, which it then creates."""
        if self._resumed is not None:
            size_bytes = self._size_bytes
            self._emit(UploadResumed(push_id=self._push_id, key=self.target.key, parts=len(self._put), size_bytes=size_bytes))
            await self._send_side_by_side(start, None)
            return
        first = await self._reader.read_next()
        check_size(len(first.content) if first else 0)
        assert first is not None
        small = len(first.content) < self._engine.options.transfer.multipart_threshold_bytes
        if self._reader.ended and small and not self._is_rehearsal:
            await self._send_whole(first)
            return
        await self._calls.make("CreateMultipartUpload", self._create)
        if self._source.seekable:
            await self._send_side_by_side(start, first)
        else:
            self._connections.expect_parts_of(self._plan.part_size_bytes)
            start(partial(self._send_part, first))
            start(lambda: self._employ(start))
            await self._hand_out_remaining(start)
            self._all_sent.set()

    async def _send_side_by_side(self, start: Callable[[Work], None], first: FilledPart | None) -> None:
        self._connections.expect_parts_of(self._plan.part_size_bytes)
        self._workers += 1
        start(lambda: self._send_remaining(first))
        await self._employ(start)

    async def _employ(self, start: Callable[[Work], None]) -> None:
        """Watch the connections while parts are sent, with a worker for each that may be used."""
        while not self._all_sent.is_set():
            if self._source.seekable and not self._reader.ended and self._workers < self._connections.limit:
                self._workers += 1
                start(self._send_remaining)
                continue
            with anyio.move_on_after(LOOK_EVERY_S):
                await self._all_sent.wait()
            self._connections.look(wanted=not self._reader.ended)

    async def _send_remaining(self, first: FilledPart | None = None) -> None:
        """Work until no part is left. The last worker to leave says that all is sent."""
        if first is not None:
            await self._send_part(first)
        while not self._time_is_up() and (part := await self._reader.read_next()) is not None:
            await self._send_part(part)
        self._workers -= 1
        if self._workers == 0:
            self._all_sent.set()

    async def _hand_out_remaining(self, start: Callable[[Work], None]) -> None:
        """Read in this one task: an async iterator may hold a cancel scope or a task group open, which belong to one task."""
        while not self._time_is_up() and (part := await self._reader.read_next()) is not None:
            start(partial(self._send_part, part))

    async def _send_whole(self, part: FilledPart) -> None:
        with part:
            async with self._connections.for_archives:
                self._whole = await self._calls.make("PutObject", lambda target: self._s3.put_object(target, part))
            checksum = part.checksums().value
            self._count(PutPart(number=1, size_bytes=len(part.content), etag=self._whole.etag, checksum=checksum))

    async def _send_part(self, part: FilledPart) -> None:
        upload_id = self._upload_id
        assert upload_id is not None
        with part:
            async with self._connections.for_parts:
                begun_s = self._engine.clock.monotonic()
                put = await self._calls.make("UploadPart", lambda target: self._s3.upload_part(target, upload_id, part))
                self._connections.part_sent(self._engine.clock.monotonic() - begun_s)
        self._log.part_uploaded(put)
        self._count(put)

    def _count(self, put: PutPart) -> None:
        self._put.append(put)
        self._emit(PartUploaded(push_id=self._push_id, part_number=put.number, size_bytes=put.size_bytes))

    async def _create(self, target: UploadTarget) -> None:
        """Create the multipart upload.

        Once sent it is waited for even when cancelled, though not for long: an upload whose id is lost is never cleaned up.
        """
        ended = anyio.Event()
        shield = anyio.CancelScope(shield=True)

        async def create() -> None:
            try:
                with shield:
                    self._upload_id = await self._s3.create(target, self._algorithm)
                    await self._log.upload_created(target, self._upload_id, self._plan.part_size_bytes)
            finally:
                ended.set()

        async with crew() as start:
            start(create)
            try:
                await ended.wait()
            except BaseException:
                if not ended.is_set():
                    shield.deadline = self._clean_up_deadline()
                raise

    def _clean_up_deadline(self) -> float:
        """Give up: from now on nothing is repeated, and all clean-up together has `abort_s` seconds."""
        self._calls.giving_up = True
        if self._gives_up_at is None:
            self._gives_up_at = anyio.current_time() + self._engine.options.timeouts.abort_s
        return self._gives_up_at

    async def _complete(self) -> StoredObject:
        upload_id = self._upload_id
        assert upload_id is not None
        check_size(self._size_bytes)
        if not self._reader.ended or len(self._put) != self._reader.parts_read:
            raise UploadError(
                f"only {len(self._put)} of {self._reader.parts_read} parts were sent", operation="CompleteMultipartUpload"
            )
        sums = self._checksums
        parts = sorted(self._put, key=lambda part: part.number)
        maybe_done = False

        async def complete(target: UploadTarget) -> StoredObject:
            nonlocal maybe_done
            try:
                return await self._s3.complete(target, upload_id, parts, sums)
            except UploadError as error:
                if error.code == "NoSuchUpload" and maybe_done:
                    return await self._look_for_object(error, sums)
                maybe_done = maybe_done or error.retryable
                raise
            except TransportError as error:
                maybe_done = maybe_done or error.request_sent
                raise

        return await self._calls.make("CompleteMultipartUpload", complete)

    async def _look_for_object(self, no_such_upload: UploadError, sums: Checksums) -> StoredObject:
        """After a Complete whose answer was lost, an upload that is gone was most likely completed: look, if that can be done."""
        try:
            return await self._s3.head(self.target, self._size_bytes, sums)
        except (CredentialsExpired, IntegrityError):
            raise
        except UploadError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                raise no_such_upload from error
            if error.retryable:
                raise
            return StoredObject(etag=None, checksum=None)

    async def _abort(self, cause: BaseException | None = None) -> str | None:
        """Clean up in what time is left for it. Returns what went wrong, in words, and adds it as a note to what led here."""
        deadline = self._clean_up_deadline()
        upload_id = self._upload_id
        if upload_id is None:
            return None
        problem: str | None = None

        async def abort() -> None:
            nonlocal problem
            error: str | None = "no answer in time"

            def failed(failure: BaseException, _attempt: int, _delay_s: float) -> None:
                nonlocal error
                error = _in_words(failure)

            with anyio.CancelScope(shield=True, deadline=deadline):
                try:
                    await self._engine.abort(self.target, upload_id, on_retry=failed)
                    error = None
                except Exception as failure:  # noqa: BLE001 - whatever it is, the error that led here is the one to raise
                    error = _in_words(failure)
            if error is None:
                self._log.upload_gone()
            else:
                problem = f"the multipart upload {upload_id} could not be aborted: {error}"
                if cause is not None:
                    cause.add_note(problem)
            self._emit(UploadAborted(push_id=self._push_id, key=self.target.key, upload_id=upload_id, error=error))

        # In a task of its own, which a further cancellation by asyncio itself does not reach; that of scopes is kept out here.
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(abort)
        return problem


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
