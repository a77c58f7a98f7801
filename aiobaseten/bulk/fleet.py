"""Many pushes in one run, under the budgets that all pushes of a client share.

One task takes pushes from the caller's iterable, each only when there is a place for it; a task for each push carries it out, with
further attempts where a failure may pass; outcomes go to the consumer one by one, and a push keeps its place until
its outcome was taken. So nothing is read ahead, and nothing piles up.
"""

from __future__ import annotations

import asyncio
import math
import os
import traceback
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import count
from types import TracebackType
from typing import Self

import anyio
import anyio.abc
import attrs
from anyio.streams.memory import MemoryObjectSendStream

from aiobaseten.bulk.identity import Identities, label_of
from aiobaseten.bulk.journal import Journal
from aiobaseten.bulk.report import BulkReport, PushOutcome, PushRecord, State
from aiobaseten.bulk.timeline import Timeline, Track
from aiobaseten.errors import AuthenticationError, BasetenError, ConfigurationError, JournalError
from aiobaseten.events import Emitter, Event, Prepared, retry_reporter
from aiobaseten.ledger import Ledger
from aiobaseten.models import Deployment
from aiobaseten.options import RetryOptions, RunOptions
from aiobaseten.push import Push, Pusher, PushResult, push_id_of
from aiobaseten.retry import Clock, retrying

MOST_WAITING = 256
"""Deployments that are waited for at once, beside the pushes under way: each is looked at every 5 s."""
LARGE_AT_ONCE = 4
CLOSE_TIMEOUT_S = 5.0

AnyPush = Push | str | os.PathLike[str]
Pushes = Iterable[AnyPush] | AsyncIterable[AnyPush]


@attrs.define(kw_only=True, eq=False)
class _Flight:
    """A push under way.

    :ivar place: that it holds until its outcome was taken
    :ivar scope: ends the push; `waiting` only the wait for its deployment to become active
    """

    track: Track
    place: anyio.Semaphore
    parked: anyio.Semaphore
    scope: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    waiting: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    stopping: bool = False

    def keep_in(self, ledger: Ledger) -> None:
        """Follow this ledger from now on."""
        self.track.ledger = ledger
        ledger.on_unsent = self._unsent

    def stop(self) -> None:
        """End it, but for a commit that was sent: that is seen through to its answer."""
        self.stopping = True
        ledger = self.track.ledger
        if ledger.created is not None:
            self.waiting.cancel()
        elif ledger.sent is None:
            self.scope.cancel()

    def _unsent(self) -> None:
        if self.stopping:
            self.scope.cancel()

    @asynccontextmanager
    async def given_away(self) -> AsyncGenerator[None]:
        """Around a wait for another push: the place is free for others meanwhile, as long as not too many wait so."""
        try:
            self.parked.acquire_nowait()
        except anyio.WouldBlock:
            yield
            return
        place, self.place = self.place, self.parked
        place.release()
        yield
        await place.acquire()
        self.place = place
        self.parked.release()


class PushRun:
    """A run of many pushes: an async context manager, and within it an async iterator of `PushOutcome`, each as its push ends.

    Leaving the block early cancels what is under way and cleans up. Made by `Client.push_many`.
    """

    def __init__(
        self,
        pushes: Pushes,
        *,
        make_pusher: Callable[[Emitter, anyio.Semaphore], Pusher],
        wait: Callable[[PushResult, float], Awaitable[Deployment]],
        options: RunOptions,
        retry: RetryOptions,
        journal: Journal | None,
        clock: Clock,
        emit: Emitter,
    ) -> None:
        self._pushes = _iterator_of(pushes)
        self._wait = wait
        self._options = options
        self._retry = retry
        self._journal = journal
        self._clock = clock
        self._emit = emit
        self._pusher = make_pusher(Emitter(self._observe), anyio.Semaphore(LARGE_AT_ONCE))
        self._timeline = Timeline(clock.monotonic)
        self._started_at = self._now()
        self._identities = Identities()
        self._records: list[PushRecord] = []
        self._flights: set[_Flight] = set()
        self._interrupted = 0
        self._places = anyio.Semaphore(options.concurrency, fast_acquire=True)
        self._parked = anyio.Semaphore(options.concurrency, fast_acquire=True)
        self._places_to_wait = anyio.Semaphore(MOST_WAITING, fast_acquire=True)
        self._taking = anyio.CancelScope()
        self._stopping = False
        self._any_prepared = False
        self._stopped_by: Exception | None = None
        self._failure: Exception | None = None
        self._failure_was_raised = False
        self._ended_s: float | None = None
        self._closing = AsyncExitStack()
        self._tasks: anyio.abc.TaskGroup | None = None

    async def __aenter__(self) -> Self:
        """Begin the run.

        :raises JournalError: if its journal cannot be used
        """
        if self._tasks is not None:
            raise ConfigurationError("a run can be entered only once: call push_many again")
        if self._journal is not None:
            await self._closing.enter_async_context(self._journal)
        self._send, self._receive = anyio.create_memory_object_stream[PushOutcome](0)
        self._timeline, self._started_at = Timeline(self._clock.monotonic), self._now()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._take_pushes)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        try:
            if isinstance(error, anyio.get_cancelled_exc_class()):
                return await self._tasks.__aexit__(kind, error, traceback)
            # Another error stays as it is: given to the task group, it would come out in an exception group.
            await self._tasks.__aexit__(None, None, None)
            return None
        finally:
            self._receive.close()
            self._ended_s = self._timeline.now_s()
            with anyio.CancelScope(shield=True):
                await self._close_journal(error)

    async def _close_journal(self, error: BaseException | None) -> None:
        """Close it; what it fails with is raised, unless it was raised before."""
        try:
            await self._closing.aclose()
        except JournalError as failure:
            if error is None and not self._failure_was_raised:
                raise
            if error is not None and not isinstance(error, JournalError):
                error.add_note(f"closing the journal failed too: {failure}")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> PushOutcome:
        """The next push that ends.

        :raises JournalError: after the last outcome, if the journal failed
        :raises Exception: after the last outcome, what the iterable of pushes raised
        """
        if self._tasks is None:
            raise ConfigurationError("the run has not begun: use it inside `async with`")
        try:
            return await self._receive.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            if self._ended_s is None:
                self._ended_s = self._timeline.now_s()
        failure, self._failure = self._failure, None
        if failure is not None:
            self._failure_was_raised = True
            raise failure
        raise StopAsyncIteration

    @property
    def report(self) -> BulkReport:
        """What has become of the pushes so far, and of all of them once the run is over."""
        return BulkReport(
            started_at=self._started_at,
            duration_s=self._timeline.now_s() if self._ended_s is None else self._ended_s,
            records=tuple(self._records),
            throughput=self._timeline.throughput,
            stopped_by=self._stopped_by,
            interrupted=self._interrupted,
        )

    def stop(self) -> None:
        """Take no more pushes, and end those under way, but for commits that were sent: these are seen through to their answers.

        Pushes that are ended have no outcome. What they uploaded is aborted, unless a journal keeps its credentials. The next run
        with the journal goes on with them.
        """
        self._stopping = True
        self._taking.cancel()
        for flight in self._flights:
            flight.stop()

    async def _take_pushes(self) -> None:
        assert self._tasks is not None
        numbers = count(1)
        try:
            with self._send, self._taking:
                while True:
                    await self._places.acquire()
                    push = _push_of(await anext(self._pushes))
                    key = await self._key(push)
                    self._tasks.start_soon(self._carry_out, push, next(numbers), key, self._send.clone())
        except StopAsyncIteration:
            pass
        except asyncio.CancelledError as error:
            if self._taking.cancel_called or anyio.current_effective_deadline() == -math.inf:
                raise
            self._failure = self._failure or _stray(error)
        except Exception as error:  # noqa: BLE001 - raised from `__anext__`, after the outcomes of what is under way
            self._failure = self._failure or error
        finally:
            await _close(self._pushes)

    async def _key(self, push: Push) -> str | Exception:
        """What the journal knows the push by, or why it cannot."""
        try:
            return "" if self._journal is None else await self._identities.key(push)
        except Exception as refused:  # noqa: BLE001 - the push will fail with it, and alone
            return refused

    async def _carry_out(self, push: Push, number: int, key: str | Exception, send: MemoryObjectSendStream[PushOutcome]) -> None:
        """One push, from the moment it has a place until its outcome was taken."""
        flight = _Flight(
            track=Track(number=number, name=push.name or label_of(push), source=label_of(push), began_s=self._timeline.now_s()),
            place=self._places,
            parked=self._parked,
        )
        self._flights.add(flight)
        if self._stopping:
            flight.stop()
        outcome: PushOutcome | None = None
        try:
            with send:
                with flight.scope:
                    outcome = await self._outcome(push, flight, key)
                self._flights.discard(flight)
                if outcome is not None:
                    self._records.append(outcome.record)
                    await send.send(outcome)
        finally:
            self._interrupted += outcome is None
            self._flights.discard(flight)
            flight.place.release()

    async def _outcome(self, push: Push, flight: _Flight, key: str | Exception) -> PushOutcome:
        track = flight.track
        result: PushResult | None = None
        error: Exception | None = None
        skipped = False
        state: State = "committed"
        try:
            flight.keep_in(await self._ledger(push, key))
            skipped = track.ledger.created is not None
            with self._timeline.following(track):
                result = await self._push(push, flight)
            timeout_s = self._options.wait_timeout_s
            if timeout_s is not None and not track.ledger.is_active and not self._stopping:
                with flight.waiting:
                    result = await self._until_active(flight, result, timeout_s)
                    state = "active"
        except Exception as caught:  # noqa: BLE001 - told as the outcome, and never disturbs the other pushes
            traceback.clear_frames(caught.__traceback__)  # Who keeps the outcome keeps no credentials and buffers with it.
            error, state = caught, "failed"
        if skipped and error is None:
            state = "skipped"
        record = track.record(state, self._timeline.now_s(), error)
        if error is not None:
            self._flights.discard(flight)
            await self._note_failure(track.ledger, error)
        return PushOutcome(push=push, result=result, error=error, skipped=skipped, record=record)

    async def _ledger(self, push: Push, key: str | Exception) -> Ledger:
        if isinstance(key, Exception):
            raise key
        push_id = push_id_of(push)
        if self._journal is None:
            return Ledger(push_id=push_id)
        return await self._journal.entry(key, push_id=push_id, name=push.name or label_of(push), source=label_of(push))

    async def _push(self, push: Push, flight: _Flight) -> PushResult:
        """Push, and again where the failure may pass: from the start where the source can be read again."""
        track = flight.track

        async def attempt() -> PushResult:
            track.attempts += track.ledger.created is None
            return await self._pusher.push(push, track.ledger, seat=flight)

        def may_repeat(error: BaseException) -> bool:
            is_passing = isinstance(error, BasetenError) and error.retryable
            return is_passing and not self._stopping and not isinstance(push.source, AsyncIterable)

        return await retrying(
            attempt,
            options=self._retry,
            clock=self._clock,
            may_repeat=may_repeat,
            on_retry=retry_reporter(self._emit, track.ledger.push_id, "push"),
        )

    async def _until_active(self, flight: _Flight, result: PushResult, timeout_s: float) -> PushResult:
        """Wait for the deployment, in a place of its own: the next push may begin meanwhile."""
        await self._places_to_wait.acquire()
        flight.place.release()
        flight.place = self._places_to_wait
        deployment = await self._wait(result, timeout_s)
        await flight.track.ledger.active(deployment)
        return attrs.evolve(result, deployment=deployment)

    async def _note_failure(self, ledger: Ledger, error: Exception) -> None:
        """Write a failure down, and stop the run where the other pushes would fail for it too."""
        if isinstance(error, JournalError):
            self._failure = self._failure or error
        else:
            try:
                await ledger.failed(error)
            except JournalError as unwritten:
                self._failure = self._failure or unwritten
        if self._options.fail_fast or isinstance(self._failure, JournalError) or self._refuses_key(error):
            self._stopped_by = self._stopped_by or error
            self.stop()

    def _refuses_key(self, error: Exception) -> bool:
        """Whether every other push would fail for the key too: a 403 may be about one team or model, once others were prepared."""
        refused = error if isinstance(error, AuthenticationError) else error.__cause__
        if not isinstance(refused, AuthenticationError):
            return False
        return refused.status == HTTPStatus.UNAUTHORIZED or not self._any_prepared

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.time(), UTC)

    def _observe(self, event: Event) -> None:
        self._any_prepared |= isinstance(event, Prepared)
        self._timeline(event)
        self._emit(event)


def _iterator_of(pushes: Pushes) -> AsyncIterator[AnyPush]:
    if isinstance(pushes, str | bytes | os.PathLike | Push):
        raise ConfigurationError(f"pushes must be an iterable of pushes or paths, not a single {type(pushes).__name__}")
    if isinstance(pushes, AsyncIterable):
        return aiter(pushes)
    if isinstance(pushes, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without type checks
        return _from_sync(pushes)
    raise ConfigurationError(f"pushes must be an iterable or async iterable of pushes or paths, not a {type(pushes).__name__}")


async def _close(pushes: AsyncIterator[AnyPush]) -> None:
    if isinstance(pushes, AsyncGenerator):
        with anyio.move_on_after(CLOSE_TIMEOUT_S, shield=True), suppress(Exception):
            await pushes.aclose()


async def _from_sync(pushes: Iterable[AnyPush]) -> AsyncIterator[AnyPush]:
    for push in pushes:
        yield push


def _push_of(given: AnyPush) -> Push:
    """Whatever is no push becomes one that fails when it is its turn."""
    return given if isinstance(given, Push) else Push(given)


def _stray(error: asyncio.CancelledError) -> BasetenError:
    stray = BasetenError("a CancelledError came from the iterable of pushes, where nothing had been cancelled")
    stray.__cause__ = error
    return stray
