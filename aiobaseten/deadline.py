"""The time limit of a push, and what is raised when it passes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

import anyio

from aiobaseten.errors import CommitUncertain, DeadlineExceeded
from aiobaseten.ledger import Ledger
from aiobaseten.retry import Trouble, watched_troubles
from aiobaseten.seat import Seat


class Deadline:
    """The time limit of one attempt at a push.

    It stands in for the push's seat: while that is given away, the limit's time stands still.

    :param limit_s: None: no limit
    """

    def __init__(self, limit_s: float | None, ledger: Ledger, seat: Seat) -> None:
        self._limit_s = limit_s
        self._ledger = ledger
        self._seat = seat
        self._scope = anyio.CancelScope()
        self._doing = ""
        self._troubles: list[Trouble] = []

    def begins(self, doing: str) -> None:
        """What the push does from now on, in words that go after "while"."""
        self._doing = doing
        self._troubles.clear()

    @contextmanager
    def kept(self) -> Generator[None]:
        """Around the attempt. When the limit passes, the block ends early, and quietly only if the deployment is known to be there.

        :raises DeadlineExceeded: if no commit was under way
        :raises CommitUncertain: if one was
        """
        if self._limit_s is None:
            yield
            return
        notes: list[str] = []
        task = asyncio.current_task()
        assert task is not None
        cancelled_before = task.cancelling()
        with watched_troubles() as self._troubles, self._scope:
            self._scope.deadline = anyio.current_time() + self._limit_s
            try:
                yield
            except asyncio.CancelledError as cancelled:
                notes = getattr(cancelled, "__notes__", notes)
                raise
        if not self._scope.cancelled_caught:
            return
        if task.cancelling() > cancelled_before:
            raise asyncio.CancelledError  # A caller's own, which older versions of anyio take for the scope's in such a moment.
        if self._ledger.created is None:
            raise self._error(notes)

    @asynccontextmanager
    async def given_away(self) -> AsyncGenerator[None]:
        left_s = self._scope.deadline - anyio.current_time()
        self._scope.deadline = math.inf
        try:
            async with self._seat.given_away():
                yield
        finally:
            self._scope.deadline = anyio.current_time() + left_s

    def _error(self, notes: list[str]) -> DeadlineExceeded | CommitUncertain:
        push_id = self._ledger.push_id
        failure = self._troubles[-1].error if self._troubles else None
        last = f"; the last failure: {failure}" if failure is not None else ""
        error: DeadlineExceeded | CommitUncertain = DeadlineExceeded(
            f"the push's {self._limit_s:g} s (TimeoutOptions.push_s) passed while {self._doing}{last}", push_id=push_id
        )
        error.__cause__ = failure
        if self._ledger.sent is not None:
            late = error
            error = CommitUncertain(f"the commit of push {push_id} may have been made: {late}", push_id=push_id)
            error.__cause__ = late
        for note in notes:
            error.add_note(note)
        return error
