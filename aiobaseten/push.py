"""One push: prepare, upload, commit.

The source is opened and checked before anything is sent. A name is looked up: one that exists gets a new deployment. Prepare
gives the right to upload to one key; the upload renews it by preparing again. The commit is sent once; if its answer is lost,
the deployment is looked for by the push's id, and never made a second time. What was done is told to a ledger, from which another
attempt goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Literal, cast

import anyio
import attrs

from aiobaseten import rules
from aiobaseten._convert import to_json
from aiobaseten._threads import run_to_end
from aiobaseten.api.endpoints import Endpoints
from aiobaseten.commit import PUSH_ID_LABEL, Committer
from aiobaseten.deadline import Deadline
from aiobaseten.errors import ApiError, BasetenError, InvalidPush, Problem, UploadDenied
from aiobaseten.events import Emitter, Prepared, PushFailed, PushStarted, UploadAborted, retry_reporter
from aiobaseten.ledger import Ledger
from aiobaseten.lookup import ModelLookup, NamedModel
from aiobaseten.models import (
    CreatedModelDeployment,
    Deployment,
    DeploymentArchivePayload,
    Model,
    PrepareModelUploadRequest,
    UploadTarget,
)
from aiobaseten.options import MiB, Options
from aiobaseten.retry import Clock
from aiobaseten.seat import OwnSeat, Seat, acquire
from aiobaseten.sources import Ignored, Source, SourceLike, model_name_in, open_source
from aiobaseten.upload import UploadEngine, UploadReceipt

LARGE_BYTES = 64 * MiB
QUICKLY_CHECKED_BYTES = 4 * MiB
_REFUSALS_OF_THE_ARCHIVE = (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.GONE, HTTPStatus.UNPROCESSABLE_ENTITY)


def _describe(source: SourceLike) -> str:
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    return repr(source)


@attrs.frozen(kw_only=True)
class Push:
    """What to push, and where to.

    :param source: a model directory, an archive file (tar, plain or gzip), the bytes of an archive, or an async iterator of them
    :param name: of the model; left out, ``model_name`` in config.yaml. A model that exists gets a new deployment
    :param model_id: of an existing model, in place of a name
    :param team_id: of the team that owns a named model; left out, the only team with a model of that name, else the default team
    :param deployment: the deployment's settings. Its `config` may be None, or the whole be left out, if the source holds a
        config.yaml at its root; a stream's must be given
    :param existing: what to do about a named model that exists: ``"deploy"`` to it, or ``"error"``
    :param disable_archive_download: for a new model only: its archives cannot be downloaded later
    :param symlinks: links in a model directory: ``"store"`` keeps those that stay inside it and refuses others, ``"follow"``
        archives what they point to
    """

    source: SourceLike = attrs.field(kw_only=False, repr=_describe)
    name: str | None = None
    model_id: str | None = None
    team_id: str | None = None
    deployment: DeploymentArchivePayload | None = None
    existing: Literal["deploy", "error"] = "deploy"
    disable_archive_download: bool = False
    symlinks: Literal["store", "follow"] = "store"

    @classmethod
    def from_directory(
        cls,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        model_id: str | None = None,
        team_id: str | None = None,
        existing: Literal["deploy", "error"] = "deploy",
        disable_archive_download: bool = False,
        symlinks: Literal["store", "follow"] = "store",
        **deployment: Any,
    ) -> Push:
        """A push of a model directory, with the settings of its deployment as plain arguments.

        :param deployment: fields of `DeploymentArchivePayload`, such as ``environment_name``, ``deployment_name``, ``labels`` or
            ``is_development``
        :raises InvalidPush: for an argument that is none of them
        """
        known = {field.name for field in attrs.fields(DeploymentArchivePayload)}
        if unknown := sorted(deployment.keys() - known):
            raise InvalidPush(
                problems=[
                    Problem(f"$.deployment.{field}", f"is not a field; there are {', '.join(sorted(known))}") for field in unknown
                ]
            )
        return cls(
            path,
            name=name,
            model_id=model_id,
            team_id=team_id,
            deployment=DeploymentArchivePayload(**deployment),
            existing=existing,
            disable_archive_download=disable_archive_download,
            symlinks=symlinks,
        )


@attrs.frozen(kw_only=True)
class PushResult:
    """A push that became a deployment.

    :param push_id: the value of the deployment's label ``aiobaseten-push-id``
    :param upload: None for a model that needs no archive
    :param ignored: what the model directory holds and the archive does not
    """

    push_id: str
    model: Model
    deployment: Deployment
    upload: UploadReceipt | None
    ignored: tuple[Ignored, ...] = attrs.field(default=(), repr=False)


@attrs.frozen(kw_only=True)
class CheckResult:
    """A push that the service would take.

    :param model_id: of the model that would get a new deployment; None where a new model would be made
    :param size_bytes: of the archive; None for a stream
    :param ignored: what the model directory holds and the archive would not
    """

    name: str | None
    model_id: str | None
    team_id: str | None
    deployment: DeploymentArchivePayload
    size_bytes: int | None
    ignored: tuple[Ignored, ...] = attrs.field(default=(), repr=False)


@attrs.define(eq=False)
class _Attempt:
    """One go at a push.

    :param deadline: told what is being done; also the push's seat
    :param keeps_steps: whether another attempt may go on from the ledger
    :ivar reused_upload: whether the archive was uploaded by an earlier attempt
    """

    push: Push
    ledger: Ledger
    deadline: Deadline
    keeps_steps: bool = attrs.field(kw_only=True)
    reused_upload: bool = False


class Pusher:
    """Carries pushes out over one control plane and one upload engine.

    :param large: a turn for each large archive that may be under way; None: any number
    """

    def __init__(
        self,
        api: Endpoints,
        engine: UploadEngine,
        options: Options,
        clock: Clock,
        emit: Emitter,
        *,
        lookup: ModelLookup | None = None,
        large: anyio.Semaphore | None = None,
    ) -> None:
        self._api = api
        self._engine = engine
        self._options = options
        self._emit = emit
        self._lookup = lookup or ModelLookup(api, emit)
        self._large = large
        self._committer = Committer(api, options, clock, emit)

    async def push(self, push: Push, ledger: Ledger | None = None, *, seat: Seat | None = None) -> PushResult:
        """Carry out a push to the end of its commit.

        :param ledger: what earlier attempts have done, and where this one's steps are kept
        :param seat: given away while another push is waited for
        :raises DeadlineExceeded: if it takes longer than `TimeoutOptions.push_s`
        """
        keeps_steps = ledger is not None
        ledger = ledger or Ledger(push_id=push_id_of(push))
        deadline = Deadline(self._options.timeouts.push_s, ledger, seat or OwnSeat())
        try:
            with deadline.kept():
                return await self._carry_out(_Attempt(push, ledger, deadline, keeps_steps=keeps_steps))
            assert ledger.created is not None
            return _result_of(ledger, ledger.created)
        except BaseException as error:
            self._emit(PushFailed(push_id=ledger.push_id, error=str(error) or type(error).__name__))
            raise

    async def _carry_out(self, attempt: _Attempt) -> PushResult:
        push = attempt.push
        if (created := await self._made_before(attempt)) is not None:
            self._lookup.learn(created.model, push.team_id)
            return _result_of(attempt.ledger, created)
        attempt.deadline.begins("opening its source")
        async with await open_source(push.source, symlinks=push.symlinks) as source:
            try:
                return await self._push(attempt, source)
            except ApiError as refused:
                if not source.seekable or not await self._can_begin_again(attempt, refused):
                    raise
                return await self._push(attempt, source)

    async def _made_before(self, attempt: _Attempt) -> CreatedModelDeployment | None:
        """What an earlier run has made of the push: known, or now found."""
        ledger = attempt.ledger
        if ledger.created is not None or ledger.sent is None:
            return ledger.created
        attempt.deadline.begins("looking for what an earlier run has made")
        return await self._committer.settle(ledger, ledger.sent)

    async def _can_begin_again(self, attempt: _Attempt, refused: ApiError) -> bool:
        """Whether a commit was refused for what another attempt would find otherwise."""
        if refused.status == HTTPStatus.CONFLICT:
            return attempt.push.model_id is None  # Another push has made the model meanwhile: now it is found.
        if attempt.reused_upload and refused.status in _REFUSALS_OF_THE_ARCHIVE:
            await attempt.ledger.upload_lost()
            return True
        return False

    async def check(self, push: Push) -> CheckResult:
        """Do all of a push that sends no bytes of the archive and makes nothing."""
        push_id = push_id_of(push)
        async with await open_source(push.source, symlinks=push.symlinks) as source:
            request = await self._valid_request(push, source)
            if request.name is not None:
                model = await self._lookup.find(push_id, request.name, request.team_id)
                request = _to_model(push, request, model)
            request = attrs.evolve(self._tagged(push_id, request), dry_run=True)
            await self._prepare(request, push_id)
            return CheckResult(
                name=request.name,
                model_id=request.model_id,
                team_id=request.team_id,
                deployment=request.deployment,
                size_bytes=source.size_bytes,
                ignored=source.ignored,
            )

    @asynccontextmanager
    async def _turn_for(self, source: Source, seat: Seat) -> AsyncGenerator[None]:
        """Large archives take turns: side by side each would only take longer, and keep small ones from their share."""
        if self._large is None or source.size_bytes is None or source.size_bytes < LARGE_BYTES:
            yield
            return
        await acquire(self._large, seat)
        try:
            yield
        finally:
            self._large.release()

    async def _push(self, attempt: _Attempt, source: Source) -> PushResult:
        push, ledger, deadline = attempt.push, attempt.ledger, attempt.deadline
        deadline.begins("reading its config")
        valid = await self._valid_request(push, source)
        deadline.begins("looking its model up")
        async with self._named(attempt, valid) as named, self._turn_for(source, deadline):
            request = self._tagged(ledger.push_id, _to_model(push, valid, named.model))
            self._emit(
                PushStarted(
                    push_id=ledger.push_id,
                    name=push.name or model_name_in(request.deployment.config) or source.label,
                    size_bytes=source.size_bytes,
                )
            )
            created = await self._committer.find_own(ledger, request) if ledger.tried_commit else None
            receipt = None
            if created is None:
                receipt = await self._upload(attempt, request, source)
                ledger.tried_commit = True
                deadline.begins("committing")
                created = await self._committer.commit(
                    ledger, request, receipt.key if receipt else None, disable_archive_download=push.disable_archive_download
                )
            named.model = created.model
        return PushResult(
            push_id=ledger.push_id,
            model=created.model,
            deployment=created.deployment,
            upload=receipt,
            ignored=source.ignored,
        )

    async def _upload(self, attempt: _Attempt, request: PrepareModelUploadRequest, source: Source) -> UploadReceipt | None:
        """Prepare and upload, or go on with what an earlier attempt has left of this very archive and request."""
        ledger = attempt.ledger
        attempt.deadline.begins("preparing its upload")
        fingerprint = await self._fingerprint(source, request) if attempt.keeps_steps else None
        is_same = fingerprint is not None and fingerprint == ledger.fingerprint
        attempt.reused_upload = is_same and ledger.receipt is not None
        if attempt.reused_upload:
            return ledger.receipt
        if is_same and ledger.partial is not None and ledger.target is not None:
            try:
                return await self._send(attempt, request, source, ledger.target)
            except UploadDenied:
                ledger.target = None  # Kept credentials may be refused for other reasons than their age.
        target = await self._prepare(request, ledger.push_id)
        self._emit(Prepared(push_id=ledger.push_id, bucket=target.bucket if target else None, key=target.key if target else None))
        if ledger.partial is not None and not (is_same and target is not None and target.place == ledger.place):
            await self._abort_earlier(ledger, target)
        await ledger.prepared(fingerprint, target)
        return None if target is None else await self._send(attempt, request, source, target)

    async def _send(
        self, attempt: _Attempt, request: PrepareModelUploadRequest, source: Source, target: UploadTarget
    ) -> UploadReceipt:
        ledger = attempt.ledger
        attempt.deadline.begins("uploading its archive")
        receipt = await self._engine.upload(
            target,
            source,
            emit=self._emit,
            push_id=ledger.push_id,
            renew=lambda: self._renew(request, ledger.push_id),
            log=ledger,
        )
        await ledger.uploaded(receipt)
        return receipt

    async def _abort_earlier(self, ledger: Ledger, renewed: UploadTarget | None) -> None:
        """Give up what an earlier attempt has left, with its own credentials or else with those for the new key, if they may."""
        assert ledger.partial is not None
        credentials = ledger.target or renewed
        error: str | None = "its credentials are not known any more"
        if credentials is not None and ledger.place is not None:
            bucket, key, region = ledger.place
            old = attrs.evolve(credentials, bucket=bucket, key=key, region=region)
            error = "no answer in time"
            with anyio.move_on_after(self._options.timeouts.abort_s):
                try:
                    await self._engine.abort(old, ledger.partial.upload_id)
                    error = None
                except BasetenError as refused:
                    error = str(refused)
        key = ledger.place[1] if ledger.place else ""
        self._emit(UploadAborted(push_id=ledger.push_id, key=key, upload_id=ledger.partial.upload_id, error=error))
        ledger.upload_gone()

    async def _fingerprint(self, source: Source, request: PrepareModelUploadRequest) -> str | None:
        """Changes when the archive does, or anything that is sent with it."""
        small = (source.size_bytes or 0) <= QUICKLY_CHECKED_BYTES  # Then a turn of a worker thread would take longer.
        of_source = source.fingerprint if small else await run_to_end(lambda _: source.fingerprint)
        if of_source is None:
            return None
        sent = json.dumps([of_source, to_json(request), self._options.transfer.checksum], sort_keys=True, default=dict)
        return hashlib.blake2b(sent.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    async def _valid_request(self, push: Push, source: Source) -> PrepareModelUploadRequest:
        """The prepare request of a push as it is given, with every rule checked."""
        deployment = await self._with_config(_deployment_of(push), source)
        name = push.name
        if name is None and push.model_id is None:
            name = model_name_in(deployment.config)
        request = PrepareModelUploadRequest(deployment=deployment, name=name, model_id=push.model_id, team_id=push.team_id)
        if problems := [*push_problems(push), *rules.find_problems(request)]:
            raise InvalidPush(problems=problems)
        return request

    @asynccontextmanager
    async def _named(self, attempt: _Attempt, request: PrepareModelUploadRequest) -> AsyncGenerator[NamedModel]:
        """Around the rest of a push: the model that its name stands for, or will."""
        if request.name is None:
            yield NamedModel(None)
            return
        async with self._lookup.model(attempt.ledger.push_id, request.name, request.team_id, attempt.deadline) as named:
            yield named

    async def _with_config(self, deployment: DeploymentArchivePayload, source: Source) -> DeploymentArchivePayload:
        if deployment.config is not None:
            return deployment
        found = await source.read_config()
        raw_config = deployment.raw_config
        if raw_config is None and len(found.raw.encode()) <= rules.MAX_RAW_CONFIG_BYTES:
            raw_config = found.raw
        return attrs.evolve(deployment, config=found.config, raw_config=raw_config)

    def _tagged(self, push_id: str, request: PrepareModelUploadRequest) -> PrepareModelUploadRequest:
        if not self._options.tag_pushes:
            return request
        labels = {**(request.deployment.labels or {}), PUSH_ID_LABEL: push_id}
        return attrs.evolve(request, deployment=attrs.evolve(request.deployment, labels=labels))

    async def _prepare(self, request: PrepareModelUploadRequest, push_id: str) -> UploadTarget | None:
        on_retry = retry_reporter(self._emit, push_id, "prepare_model_upload")
        response = await self._api.prepare_model_upload(request, on_retry=on_retry)
        return response.target

    async def _renew(self, request: PrepareModelUploadRequest, push_id: str) -> UploadTarget:
        target = await self._prepare(request, push_id)
        if target is None:
            raise ApiError("gave no upload target when asked to renew one", method="POST", path="/v1/prepare_model_upload")
        return target


def _deployment_of(push: Push) -> DeploymentArchivePayload:
    deployment = push.deployment
    if deployment is None:
        return DeploymentArchivePayload()
    if not isinstance(deployment, DeploymentArchivePayload):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without type checks
        problem = f"must be a DeploymentArchivePayload, not a {type(deployment).__name__}"
        raise InvalidPush(problems=[Problem("$.deployment", problem)])
    return deployment


def _result_of(ledger: Ledger, created: CreatedModelDeployment) -> PushResult:
    return PushResult(push_id=ledger.push_id, model=created.model, deployment=created.deployment, upload=ledger.receipt)


def push_id_of(push: Push) -> str:
    """The id that the deployment's own labels give a push, else a new one.

    :raises InvalidPush: if its `deployment` is none
    """
    _deployment_of(push)
    return given_push_id(push) or uuid.uuid4().hex


def given_push_id(push: Push) -> str | None:
    """The id that the deployment's own labels give a push."""
    labels: object = getattr(push.deployment, "labels", None)
    given = cast("Mapping[str, object]", labels).get(PUSH_ID_LABEL) if isinstance(labels, Mapping) else None
    return given if isinstance(given, str) and given else None


def _to_model(push: Push, request: PrepareModelUploadRequest, model: Model | None) -> PrepareModelUploadRequest:
    """Turn a push to a name that exists into one to that model."""
    if model is None:
        return request
    if push.existing == "error":
        raise InvalidPush(problems=[Problem("$.name", f"the model {model.name!r} exists already, with the id {model.id}")])
    if push.disable_archive_download:
        raise InvalidPush(problems=[Problem("$.disable_archive_download", _only_for_new(f"the model {model.name!r} exists"))])
    return attrs.evolve(request, name=None, team_id=None, model_id=model.id)


def push_problems(push: Push) -> Iterator[Problem]:
    """What is wrong with a push beyond the request that it makes."""
    if push.existing not in ("deploy", "error"):
        yield Problem("$.existing", f"must be 'deploy' or 'error', not {push.existing!r}")
    if not isinstance(push.disable_archive_download, bool):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without type checks
        yield Problem("$.disable_archive_download", "must be true or false")
    elif push.disable_archive_download and push.model_id is not None:
        yield Problem("$.disable_archive_download", _only_for_new("model_id names an existing model"))


def _only_for_new(reason: str) -> str:
    return f"is fixed when a model is made, and {reason}"
