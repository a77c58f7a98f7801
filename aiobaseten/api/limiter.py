"""How often an endpoint may be called: a token bucket that the service's own "not so fast" can close for a while."""

from __future__ import annotations

import anyio

from aiobaseten.retry import Clock

_ROUNDING = 1e-6


class TokenBucket:
    """Lets calls to one endpoint through in the order they came, at most `requests_per_s` of them.

    It fills at that rate up to one second's worth, but at least one, which is how many calls may go at once after a rest. With
    `requests_per_s` None only a `pause` holds anybody up. A call that is cancelled while it waits takes nothing from the others.
    """

    def __init__(self, requests_per_s: float | None, clock: Clock) -> None:
        self._requests_per_s = requests_per_s
        self._clock = clock
        self._size = max(1.0, requests_per_s or 1.0)
        self._tokens = self._size
        self._filled_at_s = self._open_at_s = clock.monotonic()
        self._turn = anyio.Lock(fast_acquire=True)

    async def acquire(self) -> None:
        """Wait for the right to make one call."""
        if not self._turn.locked() and self._take() == 0:
            return
        async with self._turn:
            while (wait_s := self._take()) > 0:
                await self._clock.sleep(wait_s)

    def pause(self, seconds: float) -> None:
        """Let nobody through for so long from now on, also those who wait already. A shorter pause does not end a longer one."""
        self._open_at_s = max(self._open_at_s, self._clock.monotonic() + seconds)

    def _take(self) -> float:
        """Take a token and return 0, or else return how many seconds from now there may be one."""
        now_s = self._clock.monotonic()
        if now_s < self._open_at_s:
            return self._open_at_s - now_s
        if self._requests_per_s is None:
            return 0
        self._tokens = min(self._size, self._tokens + (now_s - self._filled_at_s) * self._requests_per_s)
        self._filled_at_s = now_s
        if self._tokens < 1 - _ROUNDING:
            return (1 - self._tokens) / self._requests_per_s
        self._tokens -= 1
        return 0
