"""Fuzzes each target of `targets.py` with atheris, in a process of its own and for a bounded time.

    python tests/fuzz/run.py [--seconds N] [--only NAME ...] [--save]

An input that fails, takes more than 5 s or 2 GiB ends its target's run: it is kept in `tests/fuzz/findings`, and belongs among the
seeds once its cause is found. With ``--save`` what was run is written to `docs/reliability/fuzz.json`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SEEDS = HERE / "seeds"
DICTIONARIES = HERE / "dictionaries"
FINDINGS = HERE / "findings"
REPORT = HERE.parents[1] / "docs" / "reliability" / "fuzz.json"

MAX_INPUT_BYTES = 4096
MAX_UNIT_S = 5
MAX_RSS_MIB = 2048
GRACE_S = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--only", action="append", metavar="NAME", help="this target; may be given again")
    parser.add_argument("--save", action="store_true", help=f"write {REPORT.name}, of a run of all")
    parser.add_argument("--fuzz", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    arguments, flags = parser.parse_known_args()
    if arguments.fuzz:
        fuzz(arguments.fuzz[0], Path(arguments.fuzz[1]), flags)
    if importlib.util.find_spec("atheris") is None:
        print(f"skipped: there is no atheris for Python {platform.python_version()} on {platform.system()}")
        return 0
    names = arguments.only or sorted(path.name for path in SEEDS.iterdir())
    results = [run(name, arguments.seconds) for name in names]
    if arguments.save and not arguments.only:
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        report = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "python": platform.python_version(), "targets": results}
        REPORT.write_text(json.dumps(report, indent=2) + "\n")
    return any(result["findings"] for result in results)


def run(name: str, seconds: int) -> dict[str, Any]:
    """Fuzz one target, and tell of it."""
    FINDINGS.mkdir(exist_ok=True)
    before = set(FINDINGS.iterdir())
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch, "corpus")
        corpus.mkdir()
        longest = Path(scratch, "longest")
        command = [
            *(sys.executable, str(Path(__file__)), "--fuzz", name, str(longest)),
            *(
                f"-max_total_time={seconds}",
                f"-max_len={MAX_INPUT_BYTES}",
                f"-timeout={MAX_UNIT_S}",
                f"-rss_limit_mb={MAX_RSS_MIB}",
            ),
            *(f"-artifact_prefix={FINDINGS / name}-", "-print_final_stats=1"),
        ]
        if (dictionary := DICTIONARIES / f"{name}.dict").exists():
            command.append(f"-dict={dictionary}")
        command += [str(corpus), str(SEEDS / name)]
        begun_s = time.monotonic()
        ended = subprocess.run(  # noqa: PLW1510 - how it ends is what is asked
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=seconds + GRACE_S
        )
        found = sorted(set(FINDINGS.iterdir()) - before)
        executions = re.search(r"stat::number_of_executed_units:\s+(\d+)", ended.stdout)
        result = {
            "name": name,
            "executions": int(executions[1]) if executions else 0,
            "seconds": round(time.monotonic() - begun_s, 1),
            "longest_execution_s": float(longest.read_text() or 0) if longest.exists() else 0.0,
            "findings": max(len(found), int(ended.returncode != 0)),
            "corpus": len(list(corpus.iterdir())) + len(list((SEEDS / name).iterdir())),
        }
    print(json.dumps(result), flush=True)
    if result["findings"]:
        print(ended.stdout[-6000:])
        print(*(f"found: {path}" for path in found), sep="\n")
    return result


def fuzz(name: str, longest: Path, flags: list[str]) -> None:
    """Be the process that fuzzes a target: does not return."""
    import atheris

    sys.path.insert(0, str(HERE.parent))
    with atheris.instrument_imports(include=["aiobaseten", "yaml", "pathspec", "fuzz"]):
        from fuzz.targets import TARGETS

    longest_s = 0.0

    def timed(data: bytes) -> None:
        nonlocal longest_s
        begun_s = time.perf_counter()
        TARGETS[name](data)
        if (took_s := time.perf_counter() - begun_s) > longest_s:
            longest_s = took_s
            longest.write_text(f"{took_s:.3f}")

    atheris.Setup([sys.argv[0], *flags], timed)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
