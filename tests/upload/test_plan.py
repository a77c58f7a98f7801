from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiobaseten.errors import ArchiveError
from aiobaseten.options import GiB, KiB, MiB, TransferOptions
from aiobaseten.upload.plan import (
    MAX_OBJECT_SIZE_BYTES,
    MAX_PART_SIZE_BYTES,
    MAX_PARTS,
    MIN_PART_SIZE_BYTES,
    plan_upload,
)

part_sizes = st.none() | st.integers(MIN_PART_SIZE_BYTES, MAX_PART_SIZE_BYTES)
thresholds = st.integers(MIN_PART_SIZE_BYTES, MAX_PART_SIZE_BYTES)


@given(size=st.integers(1, MAX_OBJECT_SIZE_BYTES), part_size=part_sizes, threshold=thresholds)
def test_parts_cover_the_archive_within_s3_limits(size: int, part_size: int | None, threshold: int) -> None:
    plan = plan_upload(size, TransferOptions(part_size_bytes=part_size, multipart_threshold_bytes=threshold))
    assert plan.multipart == (size >= threshold)
    assert plan.part_count is not None
    assert plan.part_count <= MAX_PARTS
    if plan.multipart:
        assert plan.part_size_bytes >= (part_size or 8 * MiB)
        assert plan.part_size_bytes <= MAX_PART_SIZE_BYTES
    else:
        assert plan.part_count == 1
    parts = list(plan.parts())
    assert len(parts) == plan.part_count
    assert [part.number for part in parts] == list(range(1, len(parts) + 1))
    assert parts[0].offset == 0
    assert all(before.offset + before.size_bytes == after.offset for before, after in itertools.pairwise(parts))
    assert parts[-1].offset + parts[-1].size_bytes == size
    if plan.multipart:
        assert all(MIN_PART_SIZE_BYTES <= part.size_bytes <= MAX_PART_SIZE_BYTES for part in parts[:-1])


@given(part_size=part_sizes)
def test_an_unknown_length_may_grow_to_the_largest_object(part_size: int | None) -> None:
    plan = plan_upload(None, TransferOptions(part_size_bytes=part_size))
    assert plan.part_count is None
    parts = list(plan.parts())
    assert len(parts) <= MAX_PARTS
    assert sum(part.size_bytes for part in parts) == MAX_OBJECT_SIZE_BYTES
    sizes = [part.size_bytes for part in parts[:-1]]
    assert sizes == sorted(sizes)
    assert sizes[0] == plan.part_size_bytes
    assert all(MIN_PART_SIZE_BYTES <= size <= MAX_PART_SIZE_BYTES for size in sizes)


@pytest.mark.parametrize(
    ("size", "part_size", "count"),
    [
        (1, 1, 1),
        (8 * MiB - 1, 8 * MiB - 1, 1),
        (8 * MiB, 8 * MiB, 1),
        (8 * MiB + 1, 8 * MiB, 2),
        (1 * GiB, 8 * MiB, 128),
        (10_000 * 8 * MiB, 8 * MiB, 10_000),
        (10_000 * 8 * MiB + 1, 9 * MiB, 8889),
        (MAX_OBJECT_SIZE_BYTES, 525 * MiB, 9987),
    ],
)
def test_default_part_sizes(size: int, part_size: int, count: int) -> None:
    plan = plan_upload(size, TransferOptions())
    assert (plan.part_size_bytes, plan.part_count) == (part_size, count)


def test_a_given_part_size_wins_while_it_fits() -> None:
    assert plan_upload(1 * GiB, TransferOptions(part_size_bytes=5 * MiB)).part_size_bytes == 5 * MiB
    assert plan_upload(100 * GiB, TransferOptions(part_size_bytes=5 * MiB)).part_size_bytes == 11 * MiB


@pytest.mark.parametrize("size", [0, MAX_OBJECT_SIZE_BYTES + 1])
def test_sizes_that_cannot_be_stored_are_refused(size: int) -> None:
    with pytest.raises(ArchiveError, match=r"empty|5 TiB"):
        plan_upload(size, TransferOptions())


def test_a_threshold_moves_the_border() -> None:
    options = TransferOptions(multipart_threshold_bytes=100 * MiB)
    assert not plan_upload(100 * MiB - 1, options).multipart
    assert plan_upload(100 * MiB, options).multipart
    assert not plan_upload(5 * KiB, options).multipart


@pytest.mark.parametrize(
    ("options", "part_size"),
    [
        ({"max_connections": 5}, 12 * MiB),
        ({"max_connections": 6}, 8 * MiB),
        ({"max_connections": 6, "memory_budget_bytes": 72 * MiB}, 12 * MiB),
        ({"memory_budget_bytes": 47 * MiB}, 8 * MiB),
        ({"part_size_bytes": 5 * MiB}, 5 * MiB),
    ],
)
def test_larger_parts_only_where_memory_has_room_for_them(options: dict[str, int], part_size: int) -> None:
    assert plan_upload(1 * GiB, TransferOptions(**options), is_fast=True).part_size_bytes == part_size


@pytest.mark.parametrize(
    ("size", "part_size", "count"),
    [
        (256 * MiB - 1, 8 * MiB, 32),
        (256 * MiB, 12 * MiB, 22),
        (1 * GiB, 12 * MiB, 86),
        (10_000 * 12 * MiB, 12 * MiB, 10_000),
        (10_000 * 12 * MiB + 1, 13 * MiB, 9231),
    ],
)
def test_large_archives_have_larger_parts_on_fast_links(size: int, part_size: int, count: int) -> None:
    plan = plan_upload(size, TransferOptions(), is_fast=True)
    assert (plan.part_size_bytes, plan.part_count) == (part_size, count)
