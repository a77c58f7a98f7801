"""Writes docs/reliability.md from the matrix and the figures that were kept: `python -m reliability.page`, in `tests`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from reliability.figures import FIGURES
from reliability.matrix import FOR_EVER, ONCE, RULES, THRICE, cells, times_in_words

from aiobaseten.local import faults

PAGE = FIGURES.with_suffix(".md")
KILLS = FIGURES.parents[1] / "benchmarks" / "results" / "kills.json"

INTRODUCTION = """# Reliability

What becomes of a push when something goes wrong, and how that is known. Each figure is from a test or a script of this
repository; `python -m reliability.page`, in `tests`, wrote this page from what they found.

The promise: a push ends in success, with its object byte-equal to the source and one deployment made; or in one typed error
that keeps its first cause, within the tries and the time that its options allow, with nothing left running, and nothing left
at the store that could be removed. No push makes two deployments."""

MATRIX = """## The matrix

Every call of a push meets every fault that can happen to it, once, three times and for ever: {count} cells, over a real
SeaweedFS behind proxies that do the harm (`aiobaseten.local.FaultyStack`), with default options and a clock that does not
wait. Each outcome below was written down by hand (`tests/reliability/matrix.py`) and is compared with what happens: the
error and its first cause, the number of tries, the seconds waited, the object's bytes, the number of deployments, the
uploads left at the store, and that no request, memory or task is left. A seeded tenth runs with the tests, all of it with
`nox -s matrix`, which is part of CI.

*Deployed* means byte-equal and once. An error *at once* is not repeated, because repeating cannot help. A reply to
CreateMultipartUpload that is lost leaves an upload that nobody can name: the scoped credentials may not list uploads. A
lifecycle rule of the bucket removes such. Where a fault ends the push, or is survived at the first try, three times and for
ever are the same to it as once."""

CALLS = {
    "list_models": "Looking the name up, asking for the teams, preparing: a new model; for the teams, a name that two teams have.",
    "PutObject": "A small archive.",
    "CreateMultipartUpload": "A large archive: its upload is created.",
    "UploadPart": "A large archive: its second part of three.",
    "CompleteMultipartUpload": "A large archive: its upload is completed.",
    "HeadObject": "A Complete whose reply was lost; the next is told that there is no such upload, and the object is looked for.",
    "AbortMultipartUpload": "A part is denied, and the upload aborted, once. The push fails with the denial, whatever comes of it.",
    "create_model": "The commit of a new model, and of a new deployment of one that exists.",
    "list_deployments": "A commit whose reply was lost: its deployment is looked for, in the model's list, and the model with it.",
    "get_deployment": "Waiting for a deployment that is up, for at most 60 s.",
}


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))
    return found


def kills() -> dict[str, Any]:
    found = json.loads(KILLS.read_text(encoding="utf-8"))
    return {"date": found["date"], "python": found["machine"]["Python"].removeprefix("CPython ")} | dict(
        found["result"]["tables"][0]["rows"]
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield ""
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"


def summary() -> Iterator[str]:
    cells_run, soak_run, stops, fuzzed, killed = load("matrix"), load("soak"), load("cancellation"), load("fuzz"), kills()
    executions = sum(target["executions"] for target in fuzzed["targets"])
    longest_s = max(target["longest_execution_s"] for target in fuzzed["targets"])
    figures = [
        ("cells of the matrix that passed", f"{cells_run['passed']} of {cells_run['cells']}", "matrix", cells_run),
        ("faults survived in the soak", f"{soak_run['faults_struck']:,} in {soak_run['pushes']:,} pushes", "soak", soak_run),
        ("places where pushes were cancelled", f"{stops['distinct_places']}, in {stops['runs']:,} pushes", "cancellation", stops),
        ("fuzz executions", f"{executions:,}, the longest {longest_s:.2g} s", "fuzz", fuzzed),
        ("kills survived", f"{killed['kills survived']}", "bench -- --only kills", killed),
    ]
    yield from table(
        ("what", "figure", "command", "measured"),
        [(what, figure, f"`nox -s {run}`", f"{of['date']}, Python {of['python']}") for what, figure, run, of in figures],
    )


def matrix() -> Iterator[str]:
    outcomes = {(cell.call, cell.fault, cell.times): cell.outcome for cell in cells()}
    yield ""
    yield MATRIX.format(count=len(outcomes))
    shown: list[object] = []
    for call, rules in RULES.items():
        if rules in shown:
            continue
        shown.append(rules)
        calls = [other for other, its in RULES.items() if its == rules]
        yield ""
        yield f"### {', '.join(calls)}"
        yield ""
        yield CALLS[call]
        yield from table(
            ("fault", *map(times_in_words, (ONCE, THRICE, FOR_EVER))),
            [
                (fault, *[outcomes[call, fault, times] for times in (ONCE, THRICE, FOR_EVER)])
                for fault in faults.COMMON
                if (call, fault, ONCE) in outcomes
            ],
        )


def soak() -> Iterator[str]:
    run = load("soak")
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(run["faults_by_kind"].items(), key=lambda item: -item[1]))
    causes = ", ".join(f"{cause} {count}" for cause, count in sorted(run["failed_by_cause"].items(), key=lambda item: -item[1]))
    yield ""
    yield "## The soak"
    yield ""
    yield f"{run['pushes']:,} pushes in one run with a journal, where {run['rate']:.0%} of all calls go wrong at random:"
    yield f"{run['faults_struck']:,} faults in {run['seconds']:.0f} s. Then a second run, without faults, ends the rest."
    yield from table(
        ("what", "how many"),
        [
            ("deployed in the first run", f"{run['succeeded_in_first_run']:,}"),
            ("failed in the first run, each with a typed error", causes or "none"),
            ("deployed after the second run", f"{run['succeeded_after_second_run']:,}"),
            ("pushes with two deployments", run["duplicate_deployments"]),
            ("multipart uploads left", f"{run['uploads_left']}, of them explained by a fault {run['uploads_left_explained']}"),
            ("faults, by kind", kinds),
        ],
    )
    yield from table(
        ("of the client's process", "early", "late"),
        [
            (words, f"{run[name]['early']:g}", f"{run[name]['late']:g}")
            for words, name in (
                ("resident memory, MiB", "rss_mib"),
                ("open file descriptors", "fds"),
                ("threads", "threads"),
                ("tasks", "tasks"),
            )
        ],
    )


def cancellation() -> Iterator[str]:
    run = load("cancellation")
    yield ""
    yield "## Cancellation"
    yield ""
    yield "A push is cancelled at its first suspension, the next at its second, and so on to the last, over all tasks of a push:"
    yield f"{run['runs']:,} pushes in {run['scenarios']} scenarios, at {run['distinct_places']} places in the source, of its"
    yield f"{run['places_in_source']} that may suspend (`docs/reliability/cancellation.json` names the rest)."
    yield from table(
        ("what", "figure"),
        [
            ("from the cancellation to the last byte, median", f"{run['cancel_to_silence_ms_median']:.2g} ms"),
            ("from the cancellation to the last byte, longest", f"{run['cancel_to_silence_ms_max']:.2g} ms"),
            ("clean-up, longest", f"{run['cleanup_s_max']:.2g} s"),
        ],
    )


def fuzz() -> Iterator[str]:
    run = load("fuzz")
    yield ""
    yield "## Fuzzing"
    yield ""
    yield "Coverage-guided, by atheris: whatever comes in, only this library's own errors come out. Earlier findings are seeds now."
    yield from table(
        ("target", "executions", "seconds", "longest, s", "findings"),
        [
            (
                each["name"],
                f"{each['executions']:,}",
                f"{each['seconds']:.0f}",
                f"{each['longest_execution_s']:.2g}",
                each["findings"],
            )
            for each in run["targets"]
        ],
    )


def killed() -> Iterator[str]:
    yield ""
    yield "## Kills"
    yield ""
    yield "A run of many pushes is ended by SIGKILL, again and again, and begun again with the same journal."
    yield from table(
        ("what", "how many"),
        [
            (what, f"{count:.0f}" if isinstance(count, float) else count)
            for what, count in kills().items()
            if what not in ("date", "python")
        ],
    )


def page() -> str:
    return "\n".join([INTRODUCTION, *summary(), *matrix(), *soak(), *cancellation(), *fuzz(), *killed()]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
