"""The place that a push takes up among those that may be under way, and how it makes room while it waits for another push."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol

import anyio


class Seat(Protocol):
    """A push's place in a run."""

    def given_away(self) -> AbstractAsyncContextManager[object]:
        """Around a wait for another push: others may use the place meanwhile."""
        ...


class OwnSeat:
    """The place of a push by itself: nobody waits for it."""

    def given_away(self) -> AbstractAsyncContextManager[object]:
        return nullcontext()


async def acquire(turn: anyio.Lock | anyio.Semaphore, seat: Seat) -> None:
    """Wait for something that other pushes have, without keeping a place meanwhile."""
    acquired = False
    try:
        turn.acquire_nowait()
    except anyio.WouldBlock:
        pass
    else:
        return
    try:
        async with seat.given_away():
            await turn.acquire()
            acquired = True
    except BaseException:
        if acquired:
            turn.release()
        raise
