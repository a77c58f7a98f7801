"""The bounds that uploads share: fixed by options, or moved by what is seen. All times are made up."""

from __future__ import annotations

import attrs
import pytest
from support.fake_s3 import error
from support.uploads import PATIENT, random_bytes, rig

from aiobaseten.errors import TransportError, UploadError
from aiobaseten.options import MiB, Options, TransferOptions
from aiobaseten.retry import Clock
from aiobaseten.upload.connections import MOST_AT_FIRST, MOST_RAISED_BUDGET_BYTES, Connections, usable_processors
from aiobaseten.upload.transport import Sent

pytestmark = pytest.mark.anyio

MEMORY_BYTES = 64 * MiB


class Scene:
    """Connections that are all busy, on a link that carries so much per connection."""

    def __init__(self, options: TransferOptions, bytes_per_s: float) -> None:
        self.now_s = 100.0
        self.sent = 0.0
        self.bytes_per_s = bytes_per_s
        self.connections = Connections(
            options, Clock(monotonic=lambda: self.now_s), lambda: Sent(size_bytes=int(self.sent), cpu_s=0.0)
        )

    async def pass_time(self, seconds: float) -> None:
        limiter = self.connections.for_parts
        for _ in range(int(seconds * 10)):
            holders = [object() for _ in range(self.connections.limit - limiter.borrowed_tokens)]
            for holder in holders:
                limiter.acquire_on_behalf_of_nowait(holder)
            self.now_s += 0.1
            self.sent += 0.1 * self.bytes_per_s * self.connections.limit
            self.connections.part_sent(0.2)
            self.connections.look(wanted=True)
            for holder in holders:
                limiter.release_on_behalf_of(holder)


async def test_more_connections_where_they_pay_and_memory_for_them() -> None:
    scene = Scene(TransferOptions(), 10 * MiB)
    assert scene.connections.limit == min(MOST_AT_FIRST, usable_processors() + 1)
    await scene.pass_time(20)
    assert scene.connections.limit > 16
    scene.connections.expect_parts_of(8 * MiB)
    budget = scene.connections.budget
    assert not budget.used_bytes
    buffers = [await budget.lend(8 * MiB) for _ in range(scene.connections.limit)]
    assert budget.used_bytes == scene.connections.limit * 8 * MiB > MEMORY_BYTES
    for buffer in buffers:
        buffer.release()
    scene.connections.expect_parts_of(1024 * MiB)
    assert budget._budget_bytes == MOST_RAISED_BUDGET_BYTES


async def test_fixed_numbers_stay() -> None:
    scene = Scene(TransferOptions(max_connections=3), 10 * MiB)
    await scene.pass_time(20)
    scene.connections.failed(UploadError("slow down", status=503))
    assert scene.connections.limit == 3
    assert scene.connections.for_archives is scene.connections.for_parts
    scene.connections.expect_parts_of(100 * MiB)
    assert scene.connections.budget._budget_bytes == MEMORY_BYTES


async def test_a_given_budget_is_kept_although_connections_grow() -> None:
    scene = Scene(TransferOptions(memory_budget_bytes=100 * MiB), 10 * MiB)
    await scene.pass_time(20)
    assert scene.connections.limit == 100 // 8
    assert scene.connections.budget._budget_bytes == 100 * MiB


async def test_a_store_that_pushes_back_gets_fewer() -> None:
    for told in (UploadError("slow down", status=503), UploadError("late", code="RequestTimeout"), timed_out()):
        scene = Scene(TransferOptions(), 10 * MiB)
        await scene.pass_time(20)
        before = scene.connections.limit
        scene.connections.failed(UploadError("broken", status=500))
        assert scene.connections.limit == before
        scene.connections.failed(told)
        assert scene.connections.limit < before


def timed_out() -> TransportError:
    error = TransportError("late")
    error.__cause__ = TimeoutError()
    return error


async def test_looks_too_soon_after_another_change_nothing() -> None:
    scene = Scene(TransferOptions(), 10 * MiB)
    scene.connections.look(wanted=True)
    observed = scene.connections._tuner._seen  # type: ignore[union-attr]
    scene.now_s += 0.01
    scene.connections.look(wanted=True)
    assert scene.connections._tuner._seen == observed  # type: ignore[union-attr]


async def test_a_part_that_was_refused_is_offered_before_it_is_sent_again() -> None:
    async with rig() as r:
        r.server.faults["UploadPart"] = [error(503, "SlowDown")]
        await r.upload(random_bytes(12 * MiB))
        asked = [
            "Expect" in headers for call, headers in zip(r.server.calls, r.server.headers, strict=True) if call == "UploadPart"
        ]
        assert sorted(asked) == [False, False, True]
        r.server.faults["PutObject"] = [error(503, "SlowDown")]
        await r.upload(random_bytes(1000))
        assert "Expect" not in r.server.headers[-1]


async def test_the_bandwidth_limit_is_shared_by_uploads() -> None:
    transfer = TransferOptions(bandwidth_limit_bytes_per_s=200 * MiB, part_size_bytes=5 * MiB)
    async with rig(Options(transfer=transfer, retry=PATIENT.retry)) as r:
        data = random_bytes(12 * MiB)
        reserved: list[int] = []
        bandwidth = r.engine.s3._transport._bandwidth
        assert bandwidth is not None
        reserve = bandwidth.reserve

        def count(size_bytes: int) -> float:
            reserved.append(size_bytes)
            return reserve(size_bytes)

        bandwidth.reserve = count  # type: ignore[method-assign]
        await r.upload(data)
        await r.upload(random_bytes(1000))
        bodies = len(data) + 1000  # and that of Complete
        assert bodies < sum(reserved) < bodies + 1000
        assert max(reserved) <= bandwidth.slice_bytes
        assert r.engine.s3.sent().size_bytes == sum(reserved)


async def test_many_workers_are_employed_as_connections_grow() -> None:
    async with rig(attrs.evolve(PATIENT, transfer=TransferOptions(part_size_bytes=5 * MiB))) as r:
        r.engine.connections._set(7)
        await r.upload(random_bytes(60 * MiB))
        assert r.server.most_in_flight <= 7
        assert r.engine.connections.budget.used_bytes == 0


def test_a_link_is_fast_when_its_last_part_was() -> None:
    connections = Scene(TransferOptions(), 10 * MiB).connections
    assert not connections.are_fast
    connections.part_sent(0.1)
    assert connections.are_fast
    connections.part_sent(1.0)
    assert not connections.are_fast


def test_at_least_one_processor_can_be_used() -> None:
    assert usable_processors() >= 1
