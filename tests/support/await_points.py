"""Where tasks suspend, counted one by one, so that a test can do something at the very k-th; and where the source could.

Each task that is started within a `Watch` has its coroutine wrapped in one that is told each time it is suspended.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import aiobaseten

HOME = Path(aiobaseten.__file__).parent
ROOMS = ("push.py", "commit.py", "deadline.py", "lookup.py", "ledger.py", "upload/*.py", "api/*.py")
"""What one push runs through, its sources left out."""


class Place(NamedTuple):
    """A line of the package on which something is awaited."""

    file: str
    function: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}"


_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@dataclass(eq=False)
class Watch:
    """Counts the suspensions of the tasks that are started with it, and of all that these start.

    :ivar reached: the places of the package where the task that was suspended for the k-th time waited then, outermost first, after
        those of the first task
    """

    stop_at: int | None = None
    stop: Callable[[], object] = lambda: None
    again: int = 0
    count: int = 0
    reached: tuple[Place, ...] | None = None
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    _first: Any = None

    def start(self, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start the first task. The loop must be watched."""
        self._first = coro
        token = _watch.set(self)
        try:
            return asyncio.get_running_loop().create_task(coro)
        finally:
            _watch.reset(token)

    def suspended(self, coro: Any) -> None:
        self.count += 1
        if self.stop_at is None or not self.stop_at <= self.count <= self.stop_at + self.again:
            return
        if self.reached is None:
            self.reached = tuple(dict.fromkeys([*_places(self._first), *_places(coro)]))
        asyncio.get_running_loop().call_soon(self.stop)  # before the task goes on, were it only to give way to others


class _Counting(Coroutine[Any, Any, Any]):
    def __init__(self, inner: Any, watch: Watch) -> None:
        self._inner = inner
        self._watch = watch

    def send(self, value: Any) -> Any:
        result = self._inner.send(value)
        self._watch.suspended(self._inner)
        return result

    def throw(self, *error: Any) -> Any:
        result = self._inner.throw(*error)
        self._watch.suspended(self._inner)
        return result

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._inner.__await__()  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)  # such as cr_frame, by which anyio sees whether a task was begun


@contextmanager
def watched_loop() -> Iterator[None]:
    """Has the running loop start its tasks so that a `Watch` can count them."""
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **settings: Any) -> asyncio.Task[Any]:
        watch = _watch.get()
        if watch is None or not hasattr(coro, "cr_frame"):
            return asyncio.Task(coro, loop=loop, **settings)
        task = asyncio.Task(_Counting(coro, watch), loop=loop, **settings)
        watch.tasks.append(task)
        return task

    loop.set_task_factory(factory)
    try:
        yield
    finally:
        loop.set_task_factory(before)


def _places(coro: Any) -> Iterator[Place]:
    """The lines of the package at which a suspended coroutine waits, outermost first."""
    for frame in _frames(coro):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(HOME):
            yield Place(str(path.relative_to(HOME)), frame.f_code.co_qualname, frame.f_lineno)


def _frames(awaitable: Any) -> Iterator[FrameType]:
    while awaitable is not None:
        frame = getattr(awaitable, "cr_frame", None) or getattr(awaitable, "ag_frame", None) or getattr(awaitable, "gi_frame", None)
        awaited = getattr(awaitable, "cr_await", None) or getattr(awaitable, "ag_await", None)
        if frame is not None:
            yield frame
            manager = frame.f_locals.get("self")
            if isinstance(manager, contextlib._AsyncGeneratorContextManager):
                awaited = manager.gen  # What its own frame awaits does not tell which generator it is of.
        awaitable = awaited


@dataclass(frozen=True)
class Await:
    """An ``await``, ``async with`` or ``async for`` of the source."""

    file: str
    first_line: int
    last_line: int
    text: str

    def covers(self, places: Iterable[Place]) -> bool:
        return any(place.file == self.file and self.first_line <= place.line <= self.last_line for place in places)

    def __str__(self) -> str:
        return f"{self.file}:{self.first_line} {self.text}"


def awaits_in_source(rooms: Iterable[str] = ROOMS) -> list[Await]:
    """Each line of the package on which something is awaited."""
    found: dict[tuple[str, int], Await] = {}
    for path in sorted(path for room in rooms for path in HOME.glob(room)):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Await | ast.AsyncWith | ast.AsyncFor):
                continue
            last = node.end_lineno or node.lineno
            if isinstance(node, ast.AsyncWith):  # Its block is not part of it; a manager that stands on a line of its own is.
                last = max(item.context_expr.end_lineno or node.lineno for item in node.items)
            elif isinstance(node, ast.AsyncFor):
                last = node.iter.end_lineno or node.lineno
            file = str(path.relative_to(HOME))
            found.setdefault((file, node.lineno), Await(file, node.lineno, last, lines[node.lineno - 1].strip()))
    return [found[key] for key in sorted(found)]
