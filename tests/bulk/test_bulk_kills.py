"""Runs whose process is killed again and again, as `benchmarks/kills.py` carries them out and checks them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("flags", [[], ["--same-key"]], ids=["credentials-kept", "same-key"])
def test_each_push_of_a_run_that_is_killed_is_deployed_once_and_nothing_is_left(tmp_path: Path, flags: list[str]) -> None:
    file = tmp_path / "result.json"
    # The script's own directory must be where it looks for modules, which the nox session forbids for the sake of the wheel.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, "kills.py", "--quick", "--json", str(file), *flags]
    ended = subprocess.run(command, check=False, cwd=BENCHMARKS, env=environment, capture_output=True, text=True, timeout=110)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(file.read_text())
    assert found["raw"]["violations"] == []
    assert len(found["raw"]["processes"]) == 1 + found["settings"]["kills"] == 6
    assert all(process["under_way"] for process in found["raw"]["processes"][:-1])
