"""A seeded tenth of the matrix; `nox -s matrix` runs all of it."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from reliability.matrix import FOR_EVER, ONCE, RULES, THRICE, cells
from reliability.matrix_run import run_cells

from aiobaseten.local import LocalStack, faults

SEED = 5


def test_every_call_of_a_push_and_every_fault_that_can_happen_to_it_have_cells() -> None:
    named = {(cell.call, cell.fault, cell.times) for cell in cells()}
    possible = {(call, fault) for fault, common in faults.COMMON.items() for call in common.calls}
    assert named == {(*pair, times) for pair in possible for times in (ONCE, THRICE, FOR_EVER)}
    unused = {call: sorted(set(rules) - {fault for of, fault in possible if of == call}) for call, rules in RULES.items()}
    assert Counter(fault for left in unused.values() for fault in left).keys() <= {
        "reset in the body",
        "reset after the body",
        "error in a 200",
        "garbage",
        "BadDigest",
        "flipped bit",
    }


@pytest.mark.anyio
@pytest.mark.slow
async def test_a_tenth_of_the_matrix(local_stack: LocalStack) -> None:
    quick = [cell for cell in cells() if not (cell.fault == "stall" and cell.times is FOR_EVER)]  # these take a minute
    chosen = random.Random(SEED).sample(quick, len(list(cells())) // 10)
    results = await run_cells(local_stack, chosen)
    assert len(results) == len(chosen) > 80
    assert [f"{result.cell}: {result.problem}" for result in results if result.problem] == []
