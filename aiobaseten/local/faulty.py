"""`FaultyStack`: a local stack whose calls go wrong as told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio

from aiobaseten.local.calls import Call
from aiobaseten.local.fault_plan import FaultPlan, Struck
from aiobaseten.local.fault_proxy import fault_proxy
from aiobaseten.local.faults import COMMON, AnyFault
from aiobaseten.local.object_store import LocalStackError
from aiobaseten.local.stack import LocalStack

if TYPE_CHECKING:
    from aiobaseten.client import Client


class FaultyStack:
    """A `LocalStack` seen through two proxies, in which the calls that you choose go wrong. An async context manager.

    ::

        async with LocalStack() as stack, FaultyStack(stack) as faulty, faulty.client() as client:
            faulty.inject("UploadPart", faults.slow_down(), part_number=2, times=3)
            faulty.inject("create_model", faults.ReplyLost())
            await client.push("./my-model")

    Any client can use it, at `base_url` and `s3_endpoint_url`. Only those of `client` can also be kept from connecting
    (`faults.Refused`, `faults.NameUnresolved`): all others are past that when the proxies see them. Answers are held in memory,
    the bodies of requests are passed on as they come.
    """

    def __init__(self, stack: LocalStack) -> None:
        self._stack = stack
        self._plan = FaultPlan()
        self._proxies = AsyncExitStack()
        self._urls: tuple[str, str] | None = None

    async def __aenter__(self) -> Self:
        try:
            control = await self._proxies.enter_async_context(fault_proxy(self._stack.base_url, self._plan, is_s3=False))
            s3 = await self._proxies.enter_async_context(fault_proxy(self._stack.s3_endpoint_url, self._plan, is_s3=True))
        except BaseException:
            await self._close()
            raise
        self._urls = control, s3
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        self._urls = None
        with anyio.CancelScope(shield=True):
            await self._proxies.aclose()

    @property
    def stack(self) -> LocalStack:
        """The stack behind it, where nothing goes wrong."""
        return self._stack

    @property
    def base_url(self) -> str:
        """Where the REST API is, without a slash at the end."""
        return self._running[0]

    @property
    def s3_endpoint_url(self) -> str:
        """Where the S3 API is, without a slash at the end."""
        return self._running[1]

    @property
    def calls(self) -> Counter[Call]:
        """How often each call was tried, those included that could not connect."""
        return Counter(self._plan.calls)

    @property
    def struck(self) -> Sequence[Struck]:
        """The faults that have happened, in their order."""
        return tuple(self._plan.struck)

    @property
    def pending(self) -> Sequence[AnyFault]:
        """The faults injected for some tries that have not all happened yet: a test that leaves some has not tested them."""
        return self._plan.pending

    def inject(self, call: Call, fault: AnyFault, *, times: int | None = 1, skip: int = 0, part_number: int | None = None) -> None:
        """Have a call go wrong. Of several faults for one call, the first injected goes first.

        :param call: by the client's method (``prepare_model_upload``, ``create_model``, ``create_deployment``, ``list_models`` …)
            or S3's name (``CreateMultipartUpload``, ``UploadPart``, ``PutObject``, ``CompleteMultipartUpload``,
            ``AbortMultipartUpload``, ``HeadObject``, ``GetObject``)
        :param times: how many tries of the call; None: all of them
        :param skip: how many tries it lets pass before that
        :param part_number: only tries of this part
        :raises ConfigurationError: for an argument that cannot work
        """
        self._plan.inject(call, fault, times=times, skip=skip, part_number=part_number)

    def inject_randomly(self, rate: float, *, seed: int, kinds: Iterable[str] = COMMON) -> None:
        """Have calls go wrong at random, on top of what is injected otherwise.

        :param rate: the share of calls, from 0 to 1; somewhat less for clients that cannot be kept from connecting
        :param seed: the same seed gives the same faults to the same calls in the same order
        :param kinds: names in `faults.COMMON`; each call gets those that can happen to it
        :raises ConfigurationError: for an argument that cannot work
        """
        self._plan.inject_randomly(rate, seed=seed, kinds=kinds)

    def clear(self) -> None:
        """Have nothing go wrong from now on."""
        self._plan.clear()

    def client(self, **options: Any) -> Client:
        """A client of this stack; `options` are further arguments of `aiobaseten.Client`, or others in place of the stack's own."""
        own: dict[str, Any] = {
            "api_key": self._stack.api_key,
            "base_url": self.base_url,
            "s3_endpoint_url": self.s3_endpoint_url,
        }
        from aiobaseten.local.faulty_client import FaultyClient  # noqa: PLC0415 - a stack alone does not need the client

        return FaultyClient(self._plan, **(own | options))

    @property
    def _running(self) -> tuple[str, str]:
        if self._urls is None:
            raise LocalStackError("this FaultyStack is not running: use it inside `async with FaultyStack(stack) as faulty`")
        return self._urls
