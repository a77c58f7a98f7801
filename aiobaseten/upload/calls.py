"""The S3 calls of one upload: repeated while their failures are passing ones, with credentials renewed when they expire."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from aiobaseten.errors import BasetenError, CredentialsExpired
from aiobaseten.events import CredentialsRenewed, Emitter, retry_reporter
from aiobaseten.models import UploadTarget
from aiobaseten.options import Options
from aiobaseten.retry import Clock, retrying
from aiobaseten.sources.base import Source
from aiobaseten.upload.connections import Connections
from aiobaseten.upload.log import UploadLog

T = TypeVar("T")

Renew = Callable[[], Awaitable[UploadTarget]]
"""Gets fresh credentials. They may be for another key than the first."""


class KeyChanged(Exception):
    """The renewed credentials are for another key: the upload must start over there."""

    def __init__(self, target: UploadTarget, expired: CredentialsExpired) -> None:
        super().__init__()
        self.target = target
        self.expired = expired


class Calls:
    """Makes the calls of an upload to one key.

    :param log: told of credentials that were renewed
    :param renew: called when the credentials have expired; without it that is an error
    :param renewed: whether the credentials are fresh ones, which are not renewed before they were good for something
    :ivar target: with the credentials that hold now
    :ivar giving_up: set when clean-up begins: from then on nothing is repeated
    """

    def __init__(
        self,
        target: UploadTarget,
        source: Source,
        *,
        options: Options,
        clock: Clock,
        connections: Connections,
        emit: Emitter,
        push_id: str,
        log: UploadLog,
        renew: Renew | None,
        renewed: bool,
    ) -> None:
        self.target = target
        self.giving_up = False
        self._source = source
        self._options = options
        self._clock = clock
        self._connections = connections
        self._emit = emit
        self._push_id = push_id
        self._log = log
        self._renew = renew
        self._renewing = anyio.Lock()
        self._may_renew = not renewed

    async def make(self, operation: str, call: Callable[[UploadTarget], Awaitable[T]]) -> T:
        """Make a call, as often as it takes.

        :raises KeyChanged: the renewed credentials are for another key, and the source can be read again
        """
        tell = retry_reporter(self._emit, self._push_id, operation)

        def on_retry(error: BaseException, attempt: int, delay_s: float) -> None:
            self._connections.failed(error)
            tell(error, attempt, delay_s)

        def may_repeat(error: BaseException) -> bool:
            return isinstance(error, BasetenError) and error.retryable and not self.giving_up

        while True:
            target = self.target
            try:
                result = await retrying(
                    lambda: call(self.target),
                    options=self._options.retry,
                    clock=self._clock,
                    may_repeat=may_repeat,
                    on_retry=on_retry,
                )
            except CredentialsExpired as expired:
                await self._renew_credentials(target, expired)
            else:
                self._may_renew = True
                return result

    async def _renew_credentials(self, stale: UploadTarget, expired: CredentialsExpired) -> None:
        """Renew the credentials, unless another worker has just done so. Fresh ones that are refused at once stay refused."""
        async with self._renewing:
            if self.target is not stale:
                return
            if self._renew is None or not self._may_renew or self.giving_up:
                raise expired
            renewed = await self._renew()
            self._may_renew = False
            same_key = renewed.place == stale.place
            self._emit(CredentialsRenewed(push_id=self._push_id, same_key=same_key))
            if same_key:
                self.target = renewed
                self._log.credentials_renewed(renewed)
            elif self._source.seekable:
                raise KeyChanged(renewed, expired)
            else:
                expired.add_note(f"the renewed credentials are for another key, and {self._source.label} cannot be read again")
                raise expired
