"""Upload throughput beside other clients, over TLS on loopback: ``python upload.py [--quick]``.

All clients are up and warm before the first measurement. Then they take turns, round after round, so that a machine whose
speed drifts is unfair to none; medians over the rounds are printed as a Markdown table and written as JSON. Each client keeps
its defaults.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from clients import CLIENTS

HERE = Path(__file__).parent
MIB = 1024 * 1024
PACKAGES = {"boto3, 10 threads": "boto3", "aioboto3 upload_file": "aioboto3", "obstore": "obstore"}


@contextmanager
def process(*arguments: str) -> Generator[subprocess.Popen[str]]:
    """A script of this directory in a process of its own, which ends with its standard input."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, cwd=HERE, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            assert child.stdin is not None
            child.stdin.close()
            child.wait(30)


def read_line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"{child.args} ended early")
    return line


def measure_once(child: subprocess.Popen[str]) -> dict[str, float]:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()
    measured: dict[str, float] = json.loads(read_line(child))
    return measured


def make_files(directory: Path, size_mib: int) -> dict[str, str]:
    file = directory / "archive.bin"
    model = directory / "model"
    (model / "data").mkdir(parents=True)
    (model / "config.yaml").write_text("model_name: benchmark\n")
    (directory / "small.bin").write_bytes(bytes(1000))
    with file.open("wb") as archive:
        for _ in range(size_mib):
            archive.write(os.urandom(MIB))
    os.link(file, model / "data" / "weights.bin")
    return {"file": str(file), "directory": str(model)}


def run(size_mib: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    names = [name for name in CLIENTS if importlib.util.find_spec(PACKAGES.get(name, "aiobaseten"))]
    for name in CLIENTS.keys() - set(names):
        sys.stderr.write(f"left out: {name}: its package is not installed\n")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aiobaseten-bench-")))
        sink = stack.enter_context(process("sink.py", "--tls"))
        settings = json.dumps(json.loads(read_line(sink)) | make_files(directory, size_mib))
        children = {name: stack.enter_context(process("clients.py", name, settings)) for name in names}
        for child in children.values():
            read_line(child)
        for number in range(rounds):
            for name, child in children.items():
                results[name].append(measure_once(child))
            sys.stderr.write(f"round {number + 1} of {rounds}\n")
    return results


def summary(results: dict[str, list[dict[str, float]]], size_mib: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, measured in results.items():
        pairs = zip(results["aiobaseten"], measured, strict=True)
        rows.append(
            {
                "client": name,
                "mib_per_s": median(size_mib / one["wall_s"] for one in measured),
                "our_speed_over_it": median(other["wall_s"] / ours["wall_s"] for ours, other in pairs),
                "cpu_s_per_gib": median(one["cpu_s"] for one in measured) * 1024 / size_mib,
                "rss_mib": max(one["rss_mib"] for one in measured),
                "lag_p99_ms": median(one["lag_p99_ms"] for one in measured),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| client | MiB/s | our speed over it | CPU s/GiB | peak RSS MiB | loop lag p99 ms |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['client']} | {row['mib_per_s']:.0f} | {row['our_speed_over_it']:.2f} | {row['cpu_s_per_gib']:.2f}"
        f" | {row['rss_mib']:.0f} | {row['lag_p99_ms']:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="256 MiB and three rounds in place of 1 GiB and seven")
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    size_mib, rounds = (256, 3) if arguments.quick else (1024, 7)
    results = run(size_mib, rounds)
    rows = summary(results, size_mib)
    sys.stdout.write(f"{size_mib} MiB over TLS on loopback, medians of {rounds} rounds\n\n{table(rows)}\n")
    if arguments.json:
        packages = ("aiobaseten", *PACKAGES.values())
        versions = {name: importlib.metadata.version(name) for name in packages if importlib.util.find_spec(name)}
        about = {
            "date": datetime.now(UTC).date().isoformat(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "versions": versions,
            "size_mib": size_mib,
        }
        arguments.json.write_text(json.dumps({"about": about, "summary": rows, "rounds": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
