"""Thousands of pushes of which one call in twenty goes wrong at random: ``nox -s soak``, or where the package is installed
``PYTHONPATH=tests python tests/reliability/soak.py [--pushes N] [--save]``.

A process of its own pushes archives, directories and streams of all sizes, with a journal, through a `FaultyStack` that this one
runs. When all have ended, a second such process with the same journal pushes what has failed, and nothing goes wrong any more. The
script fails unless

- each push that succeeded has exactly one deployment, by the push's id, and each that failed none, but for an uncertain commit,
  which may have one; after the second process each push has exactly one;
- each deployment's archive holds what was to be pushed;
- each failure is an error of the library that no further try could have helped, of a kind that faults of that run explain;
- each multipart upload that is left is one whose id was lost on its way to the client, or that could not be aborted;
- memory, file descriptors, threads and tasks of the client's process are as many in the last quarter of the run as in the second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import attrs
from reliability.figures import save_figures
from reliability.soak_client import MIB, Planned, Settings, kind_of, make_plan
from support.model_dirs import model_archive

import aiobaseten as ab
from aiobaseten.local import FaultyStack, LocalStack

HERE = Path(__file__).parent
SILENCE_S = 90
LINE_LIMIT_BYTES = MIB

FLAT = {"rss_mib": 32.0, "rss_in_use_mib": 5.0, "fds": 8.0, "threads": 8.0, "tasks": 1.0}
"""How much more of each may be held in the last quarter of the samples than in the second.

Memory in use leaves out what is only kept for the next parts, by which all memory together differs from sample to sample.
"""
MOST_SAMPLES, ENOUGH_SAMPLES, LEAST_BETWEEN = 40, 16, 20

LOST_CREATES = (
    *("reply lost", "stall", "reply cut in its head", "reply cut in its body", "500 after acting", "502 after acting"),
    *("error in a 200 after acting", "garbage after acting"),
)
"""Faults of CreateMultipartUpload that leave an upload whose id nobody knows."""
EXPLAINED_BY: Mapping[str, Sequence[str]] = {
    "AuthenticationError (status 403)": ["AccessDenied"],
    "ApiError (status 307)": ["redirect"],
    "ApiError (status 200)": ["error in a 200"],
    "UploadDenied (AccessDenied)": ["AccessDenied"],
    "UploadError (RequestTimeTooSkewed)": ["RequestTimeTooSkewed"],
    "UploadError (Redirect)": ["redirect", "another region"],
    "IntegrityError (BadDigest)": ["BadDigest"],
    "CredentialsExpired (ExpiredToken)": ["ExpiredToken"],
    "CommitUncertain": [
        *("reset before the body", "reset in the body", "reset after the body", "reply lost", "stall", "stall before acting"),
        *("trickle", "reply cut in its head", "reply cut in its body", "500", "500 after acting", "502", "502 after acting"),
        *("503 SlowDown", "503 before the body", "error in a 200", "error in a 200 after acting", "garbage"),
        "garbage after acting",
    ],
}
"""The failures that no further try could have helped, and the kinds of faults that they come from."""


@attrs.define(kw_only=True)
class Life:
    """What one process of the client told, and how it ended.

    :ivar given_up: ids of uploads that it wanted to abort, whatever came of that
    :ivar reported: by the run: how many pushes have ended, how many of them failed, how many were interrupted
    :ivar status: None where it was silent for too long
    """

    samples: list[dict[str, float]] = attrs.field(factory=list[dict[str, float]])
    outcomes: dict[int, dict[str, Any]] = attrs.field(factory=dict[int, dict[str, Any]])
    given_up: set[str] = attrs.field(factory=set[str])
    went_on: Counter[str] = attrs.field(factory=Counter[str])
    kept_from_connecting: list[tuple[str, str]] = attrs.field(factory=list[tuple[str, str]])
    reported: list[int] | None = None
    stopped_by: str | None = None
    status: int | None = None
    seconds: float = 0.0

    def take(self, told: dict[str, Any]) -> None:
        match told:
            case {"outcome": number}:
                self.outcomes[number] = told
            case {"aborted": upload_id}:
                self.given_up.add(upload_id)
            case {"sample": sample}:
                self.samples.append(sample)
            case {"went_on": how}:
                self.went_on[how] += 1
            case {"struck": struck}:
                self.kept_from_connecting = [(call, kind) for call, kind in struck]
                self.reported, self.stopped_by = told["reported"], told["stopped_by"]
            case _:
                pass

    @property
    def failures(self) -> list[dict[str, Any]]:
        return [outcome for outcome in self.outcomes.values() if outcome["error"] is not None]


async def live(settings: Settings, faulty: FaultyStack) -> Life:
    """Start a client, and the faults with its first outcome; read what it tells until it ends, or is silent for too long."""
    life = Life()
    begun_s = time.monotonic()
    command = [sys.executable, str(HERE / "soak_client.py"), json.dumps(attrs.asdict(settings))]
    path = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    child = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, "PYTHONPATH": path}, stdout=asyncio.subprocess.PIPE, limit=LINE_LIMIT_BYTES
    )
    assert child.stdout is not None
    try:
        while line := await asyncio.wait_for(child.stdout.readline(), SILENCE_S):
            told = json.loads(line)
            life.take(told)
            if settings.rate and "outcome" in told and len(life.outcomes) == 1:
                faulty.inject_randomly(settings.rate, seed=settings.seed + 1)
        life.status = await asyncio.wait_for(child.wait(), SILENCE_S)
    except TimeoutError:
        pass  # It hangs: `status` stays None.
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    faulty.clear()
    life.seconds = time.monotonic() - begun_s
    return life


@attrs.frozen(kw_only=True)
class Findings:
    """Both processes, and what the stack itself holds.

    :ivar struck: each fault as its call and its kind
    :ivar deployments: after each process, by the id of their push
    :ivar left: ids of multipart uploads that were neither completed nor aborted
    """

    plan: Sequence[Planned]
    first: Life
    second: Life
    struck: Sequence[tuple[str, str]]
    calls: int
    deployments: tuple[Mapping[str, list[ab.Deployment]], Mapping[str, list[ab.Deployment]]]
    wrong_archives: Sequence[str]
    left: Sequence[str]

    @property
    def strikes(self) -> Counter[str]:
        return Counter(kind for _, kind in self.struck)

    @property
    def lost_creates(self) -> int:
        return sum(call == "CreateMultipartUpload" and kind in LOST_CREATES for call, kind in self.struck)

    @property
    def not_aborted(self) -> set[str]:
        """Uploads that are left although a client wanted to abort them."""
        return set(self.left) & (self.first.given_up | self.second.given_up)

    @property
    def explained(self) -> int:
        """How many of the uploads that are left a fault of their own explains."""
        hindered_aborts = sum(call == "AbortMultipartUpload" for call, _ in self.struck)
        unknown = len(self.left) - len(self.not_aborted)
        return min(len(self.not_aborted), hindered_aborts) + min(unknown, self.lost_creates)

    @property
    def duplicates(self) -> int:
        return sum(len(found) - 1 for found in self.deployments[1].values())

    def quarters(self, what: str) -> dict[str, float]:
        """The medians of the second and of the last quarter of the first process's samples."""
        samples = [sample[what] for sample in self.first.samples]
        if not samples:
            return {}
        quarter = max(1, len(samples) // 4)
        return {"early": round(median(samples[quarter : 2 * quarter] or samples), 1), "late": round(median(samples[-quarter:]), 1)}

    @property
    def growth_bytes_per_push(self) -> int | None:
        """Of the memory in use, from the second to the last quarter; None without samples."""
        used = self.quarters("rss_in_use_mib")
        return round((used["late"] - used["early"]) * MIB / (len(self.plan) / 2)) if used else None


async def deployments_of(stack: LocalStack) -> dict[str, list[ab.Deployment]]:
    """All that the stack has, by the id of their push."""
    found: dict[str, list[ab.Deployment]] = {}
    async with stack.client() as client:
        for model in await client.list_models():
            for deployment in await client.list_deployments(model.id):
                push_id = str((deployment.labels or {}).get("aiobaseten-push-id"))
                found.setdefault(push_id, []).append(deployment)
    return found


async def wrong_archives(stack: LocalStack, plan: Sequence[Planned], outcomes: Mapping[int, dict[str, Any]]) -> list[str]:
    """The deployments whose archive is not what its push was to send."""
    wrong: list[str] = []
    for planned in plan:
        deployment_id = outcomes.get(planned.number, {}).get("deployment_id")
        if deployment_id is not None:
            key = stack.deployment_key(deployment_id)
            if key is None or not planned.is_held_by(await stack.read_object(key)):
                wrong.append(deployment_id)
    return wrong


async def soak(count: int, *, rate: float, seed: int) -> Findings:
    """Have both processes run, and look at what the stack holds then."""
    with tempfile.TemporaryDirectory(prefix="soak-") as home:
        directory = Path(home)
        async with LocalStack(teams=("default", "research")) as stack, FaultyStack(stack) as faulty:
            async with stack.client() as client:
                (team,) = await client.list_teams(name="research")
                names = [f"soak-existing-{index}" for index in range(1 + count // 100)]
                made = [await client.push(ab.Push(model_archive(name), name=name)) for name in names]
            before = {result.push_id for result in made}
            model_ids = [result.model.id for result in made]
            plan = make_plan(directory, count, model_ids=model_ids, team_id=team.id, chance=random.Random(seed))
            (directory / "plan.json").write_text(json.dumps([attrs.asdict(planned) for planned in plan]))
            settings = Settings(
                base_url=faulty.base_url,
                s3_endpoint_url=faulty.s3_endpoint_url,
                api_key=stack.api_key,
                plan=str(directory / "plan.json"),
                journal=str(directory / "journal.db"),
                rate=rate,
                seed=seed,
                sample_every=max(LEAST_BETWEEN, count // MOST_SAMPLES),
            )
            first = await live(settings, faulty)
            calls = sum(faulty.calls.values())
            in_between = await deployments_of(stack)
            second = await live(attrs.evolve(settings, rate=0.0), faulty)
            at_the_end = await deployments_of(stack)
            return Findings(
                plan=plan,
                first=first,
                second=second,
                struck=[*first.kept_from_connecting, *((struck.call, kind_of(struck.fault)) for struck in faulty.struck)],
                calls=calls + len(first.kept_from_connecting),
                deployments=(without(in_between, before), without(at_the_end, before)),
                wrong_archives=await wrong_archives(stack, plan, second.outcomes),
                left=[left.upload_id for left in await stack.multipart_uploads()],
            )


def without(deployments: Mapping[str, list[ab.Deployment]], push_ids: set[str]) -> dict[str, list[ab.Deployment]]:
    return {push_id: found for push_id, found in deployments.items() if push_id not in push_ids}


def violations(findings: Findings) -> list[str]:
    """All that is not as it must be, in words."""
    return [
        *(f"first process: {what}" for what in _wrong_in(findings.first, findings.deployments[0], findings)),
        *(f"second process: {what}" for what in _wrong_in(findings.second, findings.deployments[1], findings)),
        *(f"second process: push {each['outcome']} failed: {each['error']}" for each in findings.second.failures),
        *_unexplained(findings),
        *(f"the archive of deployment {deployment_id} is not its source" for deployment_id in findings.wrong_archives),
        *_not_flat(findings),
    ]


def _wrong_in(life: Life, deployments: Mapping[str, list[ab.Deployment]], findings: Findings) -> list[str]:
    found: list[str] = []
    if life.status is None:
        found.append(f"it hung: nothing was told for {SILENCE_S} s")
    elif life.status:
        found.append(f"it failed with exit status {life.status}")
    if life.stopped_by:
        found.append(f"the run was stopped by {life.stopped_by}")
    if sorted(life.outcomes) != [planned.number for planned in findings.plan]:
        found.append(f"{len(life.outcomes)} of {len(findings.plan)} pushes ended")
    if life.reported != [len(life.outcomes), len(life.failures), 0]:
        found.append(f"its report tells of {life.reported}, its outcomes of {[len(life.outcomes), len(life.failures), 0]}")
    for outcome in life.outcomes.values():
        what = f"push {outcome['outcome']} ({outcome['cause'] or outcome['state']})"
        made = [deployment.id for deployment in deployments.get(outcome["push_id"], [])]
        if outcome["error"] is None and made != [outcome["deployment_id"]]:
            found.append(f"{what} tells of deployment {outcome['deployment_id']}, and there are {made}")
        if outcome["error"] is not None and len(made) > (outcome["cause"] == "CommitUncertain"):
            found.append(f"{what} has the deployments {made} all the same")
    known = {outcome["push_id"] for outcome in life.outcomes.values()}
    return found + [f"deployments of push {push_id}, which was not told" for push_id in deployments.keys() - known]


def _unexplained(findings: Findings) -> list[str]:
    found: list[str] = []
    for failure in findings.first.failures:
        what = f"push {failure['outcome']} failed with {failure['cause']}: {failure['error']}"
        if not failure["is_typed"]:
            found.append(f"{what}, which is none of the library's errors")
        elif failure["is_passing"] or failure["cause"] not in EXPLAINED_BY:
            found.append(f"{what}, which further tries should have helped")
        elif failure["cause"].startswith("CredentialsExpired") and findings.plan[failure["outcome"] - 1].kind != "stream":
            found.append(f"{what}, although its source can be read again")
        elif failure["cause"] == "CommitUncertain" and failure["first_cause"] is None:
            found.append(f"{what}, without a first cause")
    for cause, count in Counter(failure["cause"] for failure in findings.first.failures).items():
        strikes = sum(findings.strikes[kind] for kind in EXPLAINED_BY.get(cause, ()))
        if count > strikes:
            found.append(f"{count} pushes failed with {cause}, and {strikes} faults explain it")
    if len(findings.left) > findings.explained:
        found.append(f"{len(findings.left)} multipart uploads are left, and faults explain {findings.explained}")
    return found


def _not_flat(findings: Findings) -> list[str]:
    if len(findings.first.samples) < ENOUGH_SAMPLES:
        return []
    grown = {what: findings.quarters(what) for what in FLAT}
    return [
        f"{what} is not flat: {each['early']} in the second quarter of the run, {each['late']} in the last"
        for what, each in grown.items()
        if each["late"] - each["early"] > FLAT[what]
    ]


def figures(findings: Findings, given: argparse.Namespace) -> dict[str, Any]:
    """What docs/reliability.md tells of."""
    first, second = findings.first, findings.second
    return {
        "pushes": given.pushes,
        "rate": given.rate,
        "seed": given.seed,
        "calls": findings.calls,
        "faults_struck": len(findings.struck),
        "faults_by_kind": dict(findings.strikes.most_common()),
        "faults_by_call": dict(Counter(call for call, _ in findings.struck).most_common()),
        "tries_repeated": first.went_on["Retrying"],
        "credentials_renewed": first.went_on["CredentialsRenewed"],
        "commits_looked_for": first.went_on["Reconciling"],
        "succeeded_in_first_run": len(first.outcomes) - len(first.failures),
        "failed_by_cause": dict(Counter(failure["cause"] for failure in first.failures).most_common()),
        "succeeded_after_second_run": len(second.outcomes) - len(second.failures),
        "duplicate_deployments": findings.duplicates,
        "uploads_left": len(findings.left),
        "uploads_left_explained": findings.explained,
        "seconds": round(first.seconds + second.seconds, 1),
        "samples": len(first.samples),
        **{what: findings.quarters(what) for what in FLAT},
        "growth_bytes_per_push": findings.growth_bytes_per_push,
    }


def table(found: Mapping[str, Any]) -> str:
    """The figures, one in a line."""
    lines: list[str] = []
    for name, value in found.items():
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"    {each:<38} {count:>8}" for each, count in value.items())]
        else:
            lines.append(f"{name:<42} {value!s:>8}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pushes", type=int, default=2000, metavar="N", help="how many (default: 2000)")
    parser.add_argument("--rate", type=float, default=0.05, help="the share of calls that go wrong (default: 0.05)")
    parser.add_argument("--seed", type=int, default=1, help="of the pushes and the faults")
    parser.add_argument("--save", action="store_true", help="keep the figures in docs/reliability/soak.json")
    given = parser.parse_args()
    findings = asyncio.run(soak(given.pushes, rate=given.rate, seed=given.seed))
    found = figures(findings, given)
    sys.stdout.write(table(found))
    if wrong := violations(findings):
        raise SystemExit("\n".join(["not as it must be:", *wrong]))
    if given.save:
        save_figures("soak", found)


if __name__ == "__main__":
    main()
