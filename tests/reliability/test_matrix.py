"""A seeded tenth of the matrix; `nox -s matrix` runs all of it."""

from __future__ import annotations

import random

import pytest
from reliability.matrix import FOR_EVER, ONCE, RULES, THRICE, cells
from reliability.matrix_run import run_all
from reliability.page import PAGE, page

from aiobaseten.local import faults
from aiobaseten.local.calls import CONTROL_PLANE_CALLS, S3_CALLS

SEED = 5


def test_every_call_of_a_push_and_every_fault_that_can_happen_to_it_have_cells() -> None:
    assert {*CONTROL_PLANE_CALLS, *S3_CALLS} - RULES.keys() == {"GetObject"}, "which no push makes"
    named = {(cell.call, cell.fault, cell.times) for cell in cells()}
    possible = {(call, fault) for fault, common in faults.COMMON.items() for call in common.calls & RULES.keys()}
    assert named == {(*pair, times) for pair in possible for times in (ONCE, THRICE, FOR_EVER)}


def test_the_page_is_as_the_figures_and_the_matrix_have_it() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python -m reliability.page, in tests"


@pytest.mark.anyio
@pytest.mark.slow
async def test_a_tenth_of_the_matrix() -> None:
    quick = [cell for cell in cells() if not (cell.fault.startswith("stall") and cell.times is FOR_EVER)]  # these take a minute
    chosen = random.Random(SEED).sample(quick, len(list(cells())) // 10)
    results = await run_all(chosen)
    assert len(results) == len(chosen) > 90
    assert [f"{result.cell}: {result.problem}" for result in results if result.problem] == []
