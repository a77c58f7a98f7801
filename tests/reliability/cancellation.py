"""Cancels pushes and runs at every one of their suspensions, and measures how soon an upload falls silent.

``python tests/reliability/cancellation.py`` takes some minutes; with ``--save`` it keeps its figures. The test suite runs a part of
it (``test_cancellation.py``).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from reliability.figures import save_figures  # noqa: E402
from support.await_points import awaits_in_source  # noqa: E402
from support.cancel_run_sweep import BEGINNINGS, sweep_resumed_runs, sweep_runs  # noqa: E402
from support.cancel_sweep import SCENARIOS, STYLES, Sweep, sweep, sweeps  # noqa: E402
from support.silence import cancel_and_listen, slow_sink  # noqa: E402

SILENCES = 20
"""Uploads that are cancelled over plain HTTP, and as many over TLS."""


async def sweep_all() -> Sweep:
    """Every run of every sweep."""
    whole = Sweep()
    for scenario, style, abort in sweeps():
        report(whole, f"{scenario.name}, {style}, abort {abort}", await sweep(scenario, style, abort))
    with tempfile.TemporaryDirectory() as directory:
        for style in STYLES:
            for keeps_credentials in (False, True):
                label = f"run with a journal{' and its credentials' * keeps_credentials}, {style}"
                report(whole, label, await sweep_runs(Path(directory), style, keeps_credentials=keeps_credentials))
            for beginning in BEGINNINGS:
                label = f"run that goes on with a {beginning}, {style}"
                report(whole, label, await sweep_resumed_runs(Path(directory), style, beginning))
    return whole


def report(whole: Sweep, label: str, part: Sweep) -> None:
    whole.join(part)
    print(f"{label}: {part.runs} runs, cleaned up in {part.longest_cleanup_s:.2f} s at most", flush=True)


async def silences() -> list[float]:
    """How long bytes went on arriving after each of some cancellations, in ms."""
    found: list[float] = []
    for tls in (False, True):
        with tempfile.TemporaryDirectory() as directory:
            async with slow_sink(Path(directory), tls=tls) as (sink, engine):
                found.extend([(await cancel_and_listen(sink, engine)).ms for _ in range(SILENCES)])
    return found


async def measure() -> dict[str, Any]:
    """All figures.

    Places are the lines of the rooms that a push runs through on which something is awaited. One was reached if a push that was
    cancelled waited there, be it for what is awaited on another of them.
    """
    silent_ms = await silences()
    whole = await sweep_all()
    awaits = awaits_in_source()
    missed = [place for place in awaits if not place.covers(whole.places)]
    return {
        "scenarios": len(SCENARIOS) + 2 + len(BEGINNINGS),
        "runs": whole.runs,
        "distinct_places": len(awaits) - len(missed),
        "places_in_source": len(awaits),
        "places_not_reached": [str(place) for place in missed],
        "cancel_to_silence_ms_median": round(statistics.median(silent_ms), 1),
        "cancel_to_silence_ms_max": round(max(silent_ms), 1),
        "cleanup_s_max": round(whole.longest_cleanup_s, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="keep the figures for docs/reliability.md")
    arguments = parser.parse_args()
    figures = anyio.run(measure)
    print(json.dumps(figures, indent=2))
    if arguments.save:
        save_figures("cancellation", figures)


if __name__ == "__main__":
    main()
