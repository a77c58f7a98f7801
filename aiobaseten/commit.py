"""The commit of a push: sent once, and looked for when its answer was lost.

The service knows no idempotency key, so a commit that may have arrived is never sent again blindly. Each push carries an id in its
deployment's labels; by it the deployment is found, if the commit made one. New things may be invisible for a while, so the
search goes on for the whole of `TimeoutOptions.reconcile_s` before it gives up. The ledger dates each try before it is sent: a
process that is started again after a kill looks for what the last one may have made, and sends again only when the
window has passed without a trace.
"""

from __future__ import annotations

from aiobaseten.api.endpoints import Endpoints
from aiobaseten.errors import ApiError, BasetenError, CommitUncertain, NotFoundError, ServerError, TransportError
from aiobaseten.events import CommitStarted, Committed, Emitter, Reconciling, retry_reporter
from aiobaseten.ledger import Commit, Ledger, SentCommit
from aiobaseten.models import (
    CreatedModelDeployment,
    Deployment,
    DeploymentArchiveSource,
    ModelArchiveSource,
    PrepareModelUploadRequest,
)
from aiobaseten.options import Options
from aiobaseten.retry import Clock, in_trouble, poll_intervals_s

PUSH_ID_LABEL = "aiobaseten-push-id"


class Committer:
    """Makes deployments, each exactly once."""

    def __init__(self, api: Endpoints, options: Options, clock: Clock, emit: Emitter) -> None:
        self._api = api
        self._options = options
        self._clock = clock
        self._emit = emit

    async def commit(
        self, ledger: Ledger, request: PrepareModelUploadRequest, s3_key: str | None, *, disable_archive_download: bool
    ) -> CreatedModelDeployment:
        """Make the deployment that `request` prepared.

        :raises CommitUncertain: when it was sent, and neither an answer nor the deployment could be found
        :raises ApiError: when the service refused it
        :raises TransportError: when it certainly was not sent
        """
        push_id = ledger.push_id
        if ledger.was_sent and (earlier := await self.find_own(ledger, request)) is not None:
            return earlier
        commit = self._commit_of(request)
        self._emit(CommitStarted(push_id=push_id, model_id=request.model_id, name=request.name))
        try:
            created = await self._send(ledger, commit, request, s3_key, disable_archive_download=disable_archive_download)
        except BasetenError as error:
            if not _may_have_acted(error):
                await ledger.not_committed()
                raise
            with in_trouble(error):
                created = await self._reconcile(push_id, commit, error)
        return await self._ended(ledger, created)

    async def settle(self, ledger: Ledger, sent: SentCommit) -> CreatedModelDeployment | None:
        """Find out what became of a commit that an earlier process may have sent. None: it made nothing, and may be sent again.

        :raises CommitUncertain: when that cannot be said
        """
        push_id, commit = ledger.push_id, sent.commit
        may_have = f"an earlier run may have sent the commit of push {push_id}"
        self._emit(Reconciling(push_id=push_id, error=may_have))
        age_s = max(0.0, self._clock.time() - sent.sent_at_s)
        try:
            found = await self._look_for(push_id, commit, max(0.0, self._options.timeouts.reconcile_s - age_s))
        except BasetenError as error:
            raise CommitUncertain(f"{may_have}, and looking for its deployment failed: {error}", push_id=push_id) from error
        if found is not None:
            return await self._ended(ledger, found)
        if not commit.tagged and commit.deployment_name is None:
            raise CommitUncertain(
                f"{may_have}, and its deployment has no label and no name of its own by which it could be found", push_id=push_id
            )
        await ledger.not_committed()
        return None

    async def find_own(self, ledger: Ledger, request: PrepareModelUploadRequest) -> CreatedModelDeployment | None:
        """The push's own deployment, made by a commit that was thought to have done nothing."""
        found = await self._find(ledger.push_id, self._commit_of(request))
        return None if found is None else await self._ended(ledger, found)

    def _commit_of(self, request: PrepareModelUploadRequest) -> Commit:
        return Commit(
            model_id=request.model_id,
            name=request.name,
            team_id=request.team_id,
            deployment_name=request.deployment.deployment_name,
            tagged=self._options.tag_pushes,
        )

    async def _ended(self, ledger: Ledger, created: CreatedModelDeployment) -> CreatedModelDeployment:
        await ledger.committed(created)
        self._emit(Committed(push_id=ledger.push_id, model_id=created.model.id, deployment_id=created.deployment.id))
        return created

    async def _send(
        self,
        ledger: Ledger,
        commit: Commit,
        request: PrepareModelUploadRequest,
        s3_key: str | None,
        *,
        disable_archive_download: bool,
    ) -> CreatedModelDeployment:
        async def before_send() -> None:
            await ledger.committing(commit, self._clock.time())

        def on_retry(error: BaseException, attempt: int, delay_s: float) -> None:
            tell(error, attempt, delay_s)
            ledger.unsent()

        tell = retry_reporter(self._emit, ledger.push_id, "create_model" if request.model_id is None else "create_deployment")
        if request.model_id is not None:
            return await self._api.create_deployment(
                request.model_id,
                DeploymentArchiveSource(deployment=request.deployment, s3_key=s3_key),
                before_send=before_send,
                on_retry=on_retry,
            )
        assert request.name is not None
        return await self._api.create_model(
            ModelArchiveSource(
                name=request.name,
                deployment=request.deployment,
                s3_key=s3_key,
                disable_archive_download=disable_archive_download,
            ),
            team_id=request.team_id,
            before_send=before_send,
            on_retry=on_retry,
        )

    async def _reconcile(self, push_id: str, commit: Commit, lost: BasetenError) -> CreatedModelDeployment:
        """Look for what a commit of this process has made."""
        self._emit(Reconciling(push_id=push_id, error=str(lost)))
        started_s = self._clock.monotonic()
        try:
            found = await self._look_for(push_id, commit, self._options.timeouts.reconcile_s)
        except BasetenError as error:
            lost.add_note(f"looking for the deployment failed: {error}")
            outcome = f"looking for its deployment failed: {error}"
        else:
            if found is not None:
                return found
            outcome = f"no deployment of it was found in {self._clock.monotonic() - started_s:.0f} s"
        raise CommitUncertain(
            f"the commit of push {push_id} was sent, its outcome is unknown ({lost}), and {outcome}", push_id=push_id
        ) from lost

    async def _look_for(self, push_id: str, commit: Commit, window_s: float) -> CreatedModelDeployment | None:
        """Look for a deployment until the window has passed, and once at least. Passing failures mean: look again.

        :raises BasetenError: if the last look failed
        """
        started_s = self._clock.monotonic()
        failure: BasetenError | None = None
        for interval_s in poll_intervals_s():
            try:
                found = await self._find(push_id, commit)
            except NotFoundError:
                found, failure = None, None
            except BasetenError as error:
                if not (error.retryable or _is_unreadable(error)):
                    raise
                found, failure = None, error
            else:
                failure = None
            if found is not None:
                return found
            left_s = started_s + window_s - self._clock.monotonic()
            if left_s <= 0:
                break
            await self._clock.sleep(min(interval_s, left_s))
        if failure is not None:
            raise failure
        return None

    async def _find(self, push_id: str, commit: Commit) -> CreatedModelDeployment | None:
        if commit.model_id is not None:
            deployment = await self._own_deployment(push_id, commit, commit.model_id)
            if deployment is None:
                return None
            return CreatedModelDeployment(model=await self._api.get_model(commit.model_id), deployment=deployment)
        for model in await self._api.list_models(name=commit.name, team_id=commit.team_id):
            if model.name == commit.name and (deployment := await self._own_deployment(push_id, commit, model.id)):
                return CreatedModelDeployment(model=model, deployment=deployment)
        return None

    async def _own_deployment(self, push_id: str, commit: Commit, model_id: str) -> Deployment | None:
        """The push's deployment: by its id, or, without ids, by the name it was given, which is unique within a model."""
        for deployment in await self._api.list_deployments(model_id):
            if commit.tagged:
                if (deployment.labels or {}).get(PUSH_ID_LABEL) == push_id:
                    return deployment
            elif commit.deployment_name and deployment.name == commit.deployment_name:
                return deployment
        return None


def _may_have_acted(error: BasetenError) -> bool:
    """Whether the service may have made the deployment although the call failed: no answer, 5xx, or one that cannot be read."""
    if isinstance(error, TransportError):
        return error.request_sent
    return isinstance(error, ServerError) or _is_unreadable(error)


def _is_unreadable(error: BasetenError) -> bool:
    return isinstance(error, ApiError) and error.status is not None and error.status < 300
