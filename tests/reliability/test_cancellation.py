"""Pushes and runs that are cancelled wherever they can be. This is a part of all runs: `cancellation.py` makes the rest."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from zlib import crc32

import pytest
from support.await_points import awaits_in_source, watched_loop
from support.cancel_run_sweep import BEGINNINGS, Beginning, sweep_resumed_runs, sweep_runs
from support.cancel_sweep import SCENARIOS, STYLES, Abort, Scenario, Style, cancel_at, check_whole, sweep
from support.model_dirs import model_archive
from support.silence import cancel_and_listen, slow_sink

import aiobaseten as ab
from aiobaseten.local import LocalStack
from aiobaseten.options import MiB

pytestmark = pytest.mark.anyio

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def share(label: str, of: int) -> tuple[int, int]:
    """One of so many shares, the same in each run of the suite; a smaller one where each run makes a client of its own."""
    of *= 4 if label.startswith("client") else 1
    return crc32(label.encode()) % of, of


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
async def test_a_cancelled_scope_leaves_nothing(scenario: Scenario) -> None:
    seen = await sweep(scenario, "scope", "works", share=share(scenario.name, 2))
    assert seen.runs > 0


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
async def test_a_cancelled_task_leaves_nothing(scenario: Scenario) -> None:
    style: Style = "task" if crc32(scenario.name.encode()) % 2 else "task, again and again"
    seen = await sweep(scenario, style, "works", share=share(scenario.name, 4))
    assert seen.runs > 0


@pytest.mark.parametrize(
    ("name", "style", "abort", "of"),
    [
        ("parts", "scope", "refused", 1),
        ("parts", "scope", "silent", 4),
        ("stream", "task, again and again", "refused", 2),
    ],
)
async def test_an_upload_that_cannot_be_aborted_is_told(name: str, style: Style, abort: Abort, of: int) -> None:
    seen = await sweep(BY_NAME[name], style, abort, share=share(style, of))
    assert seen.runs > 0


@pytest.mark.parametrize("style", STYLES)
async def test_a_cancelled_run_goes_on_with_its_journal(tmp_path: Path, style: Style) -> None:
    keeps_credentials = style == "task"
    seen = await sweep_runs(tmp_path, style, keeps_credentials=keeps_credentials, share=share(style, 60))
    assert seen.runs > 0


@pytest.mark.parametrize("beginning", BEGINNINGS)
async def test_a_run_that_goes_on_is_cancelled_too(tmp_path: Path, beginning: Beginning) -> None:
    seen = await sweep_resumed_runs(tmp_path, "scope", beginning, share=share(beginning, 8))
    assert seen.runs > 0


@pytest.mark.slow
async def test_cancelled_pushes_to_a_real_store_leave_no_upload(local_stack: LocalStack, name: str) -> None:
    archive = model_archive(name, weights_bytes=12 * MiB)
    options = ab.Options(transfer=ab.TransferOptions(part_size_bytes=5 * MiB))
    with watched_loop():
        async with local_stack.client(options=options) as client:
            await client.push(ab.Push(model_archive(f"{name}-before")))
            for k in count(1, 4):
                ended = await cancel_at(k, "scope", lambda: client.push(ab.Push(archive)))
                assert await local_stack.multipart_uploads() == []
                check_whole(client, f"{name}, k={k}")
                assert ended.error is None
                if ended.reached is None:
                    break
                assert ended.was_cancelled
            (model,) = await client.list_models(name=name)
            push_ids = [str(deployment.labels) for deployment in await client.list_deployments(model.id)]
            assert len(set(push_ids)) == len(push_ids)


async def test_the_sweep_reaches_what_an_upload_waits_for() -> None:
    """Else the other tests here would pass without having cancelled anything."""
    seen = await sweep(BY_NAME["parts"], "scope", "works")
    functions = {place.function for place in seen.places}
    assert functions >= {"_Upload._create", "_Upload._send_part", "_Upload._complete", "ControlPlane._send", "Committer.commit"}
    assert sum(place.covers(seen.places) for place in awaits_in_source(("upload/engine.py",))) >= 15


@pytest.mark.parametrize("tls", [False, True])
async def test_a_cancelled_upload_falls_silent(tmp_path: Path, tls: bool) -> None:
    """Also on a link so slow that most of what was sent is still in the system's buffers."""
    async with slow_sink(tmp_path, tls=tls) as (sink, engine):
        for _ in range(2):
            silence = await cancel_and_listen(sink, engine)
            assert silence.bytes_after < MiB
            assert silence.ms < 1500
