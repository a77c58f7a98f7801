from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint

from aiobaseten.options import KiB, MiB
from aiobaseten.upload.budget import BufferBudget

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def lent(budget: BufferBudget, size_bytes: int) -> AsyncGenerator[memoryview]:
    buffer = await budget.lend(size_bytes)
    try:
        yield buffer.content
    finally:
        buffer.release()
        buffer.release()


async def settle() -> None:
    for _ in range(5):
        await checkpoint()


async def test_buffers_wait_for_room_in_order() -> None:
    budget = BufferBudget(10 * MiB)
    order: list[str] = []

    async def borrow(name: str, size: int, give_back: anyio.Event) -> None:
        async with lent(budget, size) as buffer:
            assert len(buffer) == size
            order.append(name)
            await give_back.wait()

    events = {name: anyio.Event() for name in "abcd"}
    async with anyio.create_task_group() as tasks:
        for name, size in [("a", 6 * MiB), ("b", 6 * MiB), ("c", 1 * MiB), ("d", 4 * MiB)]:
            tasks.start_soon(borrow, name, size, events[name])
            await settle()
        assert order == ["a"]
        assert budget.used_bytes == 6 * MiB
        events["a"].set()
        await settle()
        assert order == ["a", "b", "c"]
        events["b"].set()
        await settle()
        assert order == ["a", "b", "c", "d"]
        events["c"].set()
        events["d"].set()
    assert budget.used_bytes == 0


async def test_a_buffer_larger_than_the_budget_travels_alone() -> None:
    budget = BufferBudget(5 * MiB)
    async with AsyncExitStack() as small:
        await small.enter_async_context(lent(budget, 1 * MiB))
        with anyio.move_on_after(0.05) as scope:
            async with lent(budget, 50 * MiB):
                pytest.fail("must wait for the small one")
        assert scope.cancelled_caught
    async with lent(budget, 50 * MiB) as huge:
        assert len(huge) == 50 * MiB
        with anyio.move_on_after(0.05) as scope:
            async with lent(budget, 1):
                pytest.fail("must wait for the huge one")
        assert scope.cancelled_caught
    assert budget.used_bytes == 0
    assert budget.idle_bytes == 0


async def test_memory_is_reused_and_bounded() -> None:
    budget = BufferBudget(16 * MiB)
    async with lent(budget, 8 * MiB) as first:
        first[:3] = b"abc"
    async with lent(budget, 8 * MiB) as again:
        assert bytes(again[:3]) == b"abc"
    for size in range(1, 40):
        async with lent(budget, size * MiB // 4):
            assert budget.used_bytes + budget.idle_bytes <= 16 * MiB
    assert budget.idle_bytes <= 16 * MiB


async def test_memory_is_reused_by_those_who_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    class Counted(bytearray):
        def __init__(self, size: int) -> None:
            nonlocal made
            made += 1
            super().__init__(size)

    monkeypatch.setattr("aiobaseten.upload.budget.bytearray", Counted, raising=False)
    budget = BufferBudget(8 * MiB)

    async def borrow() -> None:
        for _ in range(10):
            async with lent(budget, 2 * MiB):
                await checkpoint()

    async with anyio.create_task_group() as tasks:
        for _ in range(9):
            tasks.start_soon(borrow)
    assert made == 4


async def test_small_buffers_are_not_kept() -> None:
    budget = BufferBudget(16 * MiB)
    async with lent(budget, 50 * KiB) as buffer:
        assert len(buffer) == 50 * KiB
        assert budget.used_bytes == 50 * KiB
    assert budget.idle_bytes == 0


async def test_a_lent_buffer_is_dead_after_its_block() -> None:
    budget = BufferBudget(16 * MiB)
    async with lent(budget, 2 * MiB) as buffer:
        pass
    with pytest.raises(ValueError, match="released"):
        buffer[0]


async def test_cancelled_waiters_leave_no_trace() -> None:
    budget = BufferBudget(8 * MiB)
    chance = random.Random(7)

    async def borrow(size: int) -> None:
        with anyio.move_on_after(chance.random() / 100):
            async with lent(budget, size):
                assert budget.used_bytes <= max(8 * MiB, size + MiB)
                await anyio.sleep(chance.random() / 100)

    async with anyio.create_task_group() as tasks:
        for _ in range(300):
            tasks.start_soon(borrow, chance.randrange(1, 12 * MiB))
    assert budget.used_bytes == 0
    async with lent(budget, 8 * MiB):
        assert budget.used_bytes == 8 * MiB


async def test_a_waiter_cancelled_in_the_moment_it_is_served_gives_its_room_back() -> None:
    budget = BufferBudget(8 * MiB)
    scope = anyio.CancelScope()

    async def borrow() -> None:
        with scope:
            async with lent(budget, 8 * MiB):
                pytest.fail("was cancelled before it ran again")

    async with anyio.create_task_group() as tasks, lent(budget, 8 * MiB):
        tasks.start_soon(borrow)
        await settle()
        scope.cancel()
    assert budget.used_bytes == 0


async def test_buffers_of_another_size_take_the_place_of_idle_ones() -> None:
    budget = BufferBudget(64 * MiB)
    async with lent(budget, 8 * MiB), lent(budget, 8 * MiB), lent(budget, 8 * MiB):
        pass
    assert budget.idle_bytes == 24 * MiB
    async with lent(budget, 12 * MiB):
        assert budget.idle_bytes == 8 * MiB
        async with lent(budget, 12 * MiB):
            assert budget.idle_bytes == 0
    assert budget.idle_bytes == 24 * MiB


async def test_small_buffers_and_large_ones_take_turns() -> None:
    budget = BufferBudget(16 * MiB)
    granted: list[str] = []
    lent = [await budget.lend(8 * MiB), await budget.lend(8 * MiB)]

    async def take(name: str, size: int) -> None:
        lent.append(await budget.lend(size))
        granted.append(name)

    async with anyio.create_task_group() as tasks:
        for name in ("part 1", "part 2", "part 3"):
            tasks.start_soon(take, name, 8 * MiB)
        await anyio.wait_all_tasks_blocked()
        for name in ("archive 1", "archive 2"):
            tasks.start_soon(take, name, 50_000)
        await anyio.wait_all_tasks_blocked()
        while len(granted) < 5:
            lent.pop(0).release()
            await anyio.wait_all_tasks_blocked()
    assert granted == ["part 1", "archive 1", "part 2", "archive 2", "part 3"]
    for buffer in lent:
        buffer.release()
    assert budget.used_bytes == 0


async def test_a_crowd_of_small_buffers_does_not_keep_a_large_one_waiting() -> None:
    budget = BufferBudget(16 * MiB)
    lent = [await budget.lend(4 * MiB) for _ in range(4)]
    large = anyio.Event()

    async def take_small() -> None:
        lent.append(await budget.lend(4 * MiB))

    async def take_large() -> None:
        lent.append(await budget.lend(16 * MiB))
        large.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take_small)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(take_large)
        for _ in range(20):
            tasks.start_soon(take_small)
        await anyio.wait_all_tasks_blocked()
        for _ in range(6):
            lent.pop(0).release()
            await anyio.wait_all_tasks_blocked()
        assert large.is_set()
        while lent:
            lent.pop(0).release()
            await anyio.wait_all_tasks_blocked()
