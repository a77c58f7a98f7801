"""Many pushes whose process is killed again and again, against the local stack: ``python kills.py [--quick]``.

A process pushes models of all sizes with a journal. It is killed (SIGKILL) at random moments, and started again with the same
journal until all is done. Then each push must be deployed exactly once, each archive must hold what its source holds, and no
multipart upload may be left that a journal knew of. The script fails where any of it is not so.

Three things a kill may leave: an upload whose id was on its way from the store to the journal, of which nobody could know any more;
one that the store called aborted while it still took a part from the process that was killed (S3's documentation of
AbortMultipartUpload); and, where no credentials are kept, one whose push goes to another key by now. The store's own rules for
unfinished uploads remove them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import attrs
import report
from kills_client import MIB, Planned, Settings, make_plan
from processes import HERE, environment, exit_on_sigterm

from aiobaseten.local import LocalStack
from aiobaseten.local.object_store import UnfinishedUpload
from aiobaseten.models import Deployment

LINE_LIMIT_BYTES = MIB
LAST_KILL_AT = 0.6
MOST_EVENTS_LATER, MOST_SECONDS_LATER = 20, 0.1
RECONCILE_S = 4.0
DONE = ("committed", "active")


@attrs.frozen
class Moment:
    """When to kill: so many events after so many commits, and a while later."""

    commits: int
    events: int
    delay_s: float


def moments(pushes: int, kills: int, chance: random.Random) -> list[Moment]:
    """Spread over the run, and so early that pushes are still under way at the last one."""
    return [
        Moment(
            commits=int(pushes * LAST_KILL_AT * (number + chance.random()) / kills),
            events=chance.randint(0, MOST_EVENTS_LATER),
            delay_s=chance.uniform(0, MOST_SECONDS_LATER),
        )
        for number in range(kills)
    ]


@attrs.define
class Watch:
    """What one process told of its pushes.

    :ivar resumed: parts that the store had already, by push
    """

    lines: int = 0
    commits: int = 0
    under_way: set[str] = attrs.field(factory=set[str])
    resumed: dict[str, int] = attrs.field(factory=dict[str, int])
    looked_for: set[str] = attrs.field(factory=set[str])
    commits_found: int = 0
    commits_sent_again: int = 0
    aborted: set[str] = attrs.field(factory=set[str])
    refused_aborts: set[str] = attrs.field(factory=set[str])
    outcomes: dict[int, dict[str, Any]] = attrs.field(factory=dict[int, "dict[str, Any]"])

    def take(self, told: dict[str, Any]) -> None:
        """One line of the process."""
        self.lines += 1
        push_id = told["push_id"]
        match told.get("event"):
            case "PushStarted":
                self.under_way.add(push_id)
            case None:
                self.outcomes[told["outcome"]] = told
            case "UploadResumed":
                self.resumed[push_id] = told["parts"]
            case "UploadRestarted":
                self.resumed.pop(push_id, None)
            case "UploadAborted" if told["error"] is None:
                self.aborted.add(told["upload_id"])
            case "UploadAborted":
                self.refused_aborts.add(told["upload_id"])
            case "Reconciling":
                self.looked_for.add(push_id)
                self.under_way.add(push_id)
            case "CommitStarted" if push_id in self.looked_for:
                self.looked_for.remove(push_id)
                self.commits_sent_again += 1
            case "Committed":
                self.commits += 1
                self.under_way.discard(push_id)
                self.commits_found += push_id in self.looked_for
            case _:
                pass


@attrs.frozen(kw_only=True)
class Page:
    """What the journal held when its process was killed."""

    states: Counter[str]
    upload_ids: frozenset[str]
    credentials: int

    @property
    def done(self) -> int:
        return sum(self.states[state] for state in DONE)


def read_page(journal: Path) -> Page:
    """Read a copy, so that the next process finds the file as the kill has left it."""
    with tempfile.TemporaryDirectory(prefix="kills-") as directory:
        for suffix in ("", "-wal"):
            if (file := journal.with_name(journal.name + suffix)).exists():
                shutil.copy(file, directory)
        with closing(sqlite3.connect(Path(directory) / journal.name)) as database:
            rows = database.execute("SELECT state, upload_id FROM pushes").fetchall()
            [credentials] = database.execute("SELECT count(*) FROM credentials").fetchone()
    return Page(
        states=Counter(state for state, _ in rows),
        upload_ids=frozenset(upload_id for _, upload_id in rows if upload_id is not None),
        credentials=credentials,
    )


@attrs.frozen(kw_only=True)
class Life:
    """One process, from its start to its kill, or to its end."""

    watch: Watch
    page: Page
    status: int


async def live(settings: Settings, moment: Moment | None, commits_before: int) -> Life:
    """Run a process until the moment has come, or to its end."""
    watch = Watch()
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "kills_client.py",
        json.dumps(attrs.asdict(settings)),
        cwd=HERE,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_LIMIT_BYTES,
    )
    assert child.stdout is not None
    try:
        events_left = moment.events if moment else 0
        async for line in child.stdout:
            told = json.loads(line)
            watch.take(told)
            is_due = moment is not None and commits_before + watch.commits >= moment.commits
            if moment is None or not is_due or "event" not in told or not watch.under_way:
                continue
            if events_left == 0:
                await asyncio.sleep(moment.delay_s)
                break
            events_left -= 1
        else:
            await child.wait()
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        rest = await child.stdout.read()
        status = await child.wait()
    for line in rest.splitlines(keepends=True):
        if line.endswith(b"\n"):
            watch.take(json.loads(line))
    return Life(watch=watch, page=read_page(Path(settings.journal)), status=status)


@attrs.frozen(kw_only=True)
class Campaign:
    """All processes of a run, and what is there at its end."""

    keeps_credentials: bool
    lives: list[Life]
    deployments: list[tuple[str, Deployment]]
    left_over: list[UnfinishedUpload]
    wrong_archives: list[str]
    seconds: float


async def run(pushes: int, kills: int, largest_bytes: int, *, seed: int, same_key: bool) -> tuple[Campaign, list[Planned]]:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as directory:
        plan = make_plan(Path(directory), pushes, largest_bytes, chance)
        (Path(directory) / "plan.json").write_text(json.dumps([attrs.asdict(planned) for planned in plan]))
        async with LocalStack(rekey_on_prepare=not same_key) as stack:
            settings = Settings(
                base_url=stack.base_url,
                s3_endpoint_url=stack.s3_endpoint_url,
                api_key=stack.api_key,
                plan=str(Path(directory) / "plan.json"),
                journal=str(Path(directory) / "journal.db"),
                keep_credentials=not same_key,
                reconcile_s=RECONCILE_S,
            )
            started_s = time.perf_counter()
            lives: list[Life] = []
            for moment in [*moments(pushes, kills, chance), None]:
                lives.append(await live(settings, moment, sum(life.watch.commits for life in lives)))
            seconds = time.perf_counter() - started_s
            async with stack.client() as client:
                models = await client.list_models()
                deployments = [(model.name, found) for model in models for found in await client.list_deployments(model.id)]
            return Campaign(
                keeps_credentials=not same_key,
                lives=lives,
                deployments=deployments,
                left_over=await stack.multipart_uploads(),
                wrong_archives=await wrong_archives(stack, plan, lives[-1].watch.outcomes),
                seconds=seconds,
            ), plan


async def wrong_archives(stack: LocalStack, plan: list[Planned], outcomes: dict[int, dict[str, Any]]) -> list[str]:
    """The deployments whose archive does not hold what its source does."""
    wrong: list[str] = []
    for number, outcome in outcomes.items():
        if outcome["deployment_id"] is not None:
            key = stack.deployment_key(outcome["deployment_id"])
            if key is None or not plan[number - 1].is_held_by(await stack.read_object(key)):
                wrong.append(outcome["deployment_id"])
    return wrong


def violations(campaign: Campaign, plan: list[Planned]) -> list[str]:
    """All that is not as it must be, in words."""
    *killed, last = campaign.lives
    found = [
        f"kill {number} came too late: exit status {life.status}, {len(life.watch.under_way)} pushes under way"
        for number, life in enumerate(killed, 1)
        if life.status != -signal.SIGKILL or not life.watch.under_way
    ]
    if last.status:
        found.append(f"the last process failed with exit status {last.status}")
    ended = [outcome for life in campaign.lives for outcome in life.watch.outcomes.items()]
    found += [f"push {number} failed: {outcome['error']}" for number, outcome in ended if outcome["error"] is not None]
    outcomes = last.watch.outcomes
    if sorted(outcomes) != [*range(1, len(plan) + 1)]:
        found.append(f"{len(outcomes)} of {len(plan)} pushes ended")
    ids = Counter((deployment.labels or {}).get("aiobaseten-push-id") for _, deployment in campaign.deployments)
    found += [f"{count} deployments are of push {push_id}" for push_id, count in ids.items() if push_id is None or count > 1]
    there = {(name, deployment.id) for name, deployment in campaign.deployments}
    told = {(plan[number - 1].name, outcome["deployment_id"]) for number, outcome in outcomes.items()}
    found += [f"deployment {deployment_id} of {name} was made and not told" for name, deployment_id in there - told]
    found += [f"deployment {deployment_id} of {name} was told and not made" for name, deployment_id in told - there]
    found += [f"the archive of deployment {deployment_id} is not its source" for deployment_id in campaign.wrong_archives]
    known = set[str]().union(*(life.page.upload_ids | life.watch.refused_aborts for life in campaign.lives))
    aborted = set[str]().union(*(life.watch.aborted for life in campaign.lives))
    # Other credentials than an upload's own may not abort it: where a push goes elsewhere by now, its earlier upload stays.
    refused = (
        set[str]() if campaign.keeps_credentials else set[str]().union(*(life.watch.refused_aborts for life in campaign.lives))
    )
    found += [
        f"the upload {left.upload_id} is left although the journal knew it"
        for left in campaign.left_over
        if left.upload_id in known - aborted - refused
    ]
    if last.page.done != len(plan) or last.page.credentials:
        found.append(f"the journal ends with {dict(last.page.states)} and the credentials of {last.page.credentials} uploads")
    return found


def table(campaign: Campaign) -> report.Table:
    watches = [life.watch for life in campaign.lives]
    resumed = [parts for watch in watches for parts in watch.resumed.values()]
    return report.Table(
        title="Pushes whose process is killed",
        columns=["what", "how many"],
        rows=[
            ["pushes, each deployed exactly once", len(campaign.deployments)],
            ["kills survived", len(campaign.lives) - 1],
            ["pushes under way at a kill, over all kills", sum(len(life.watch.under_way) for life in campaign.lives[:-1])],
            ["multipart uploads that a later process went on with", len(resumed)],
            ["parts that it did not have to send again", sum(resumed)],
            ["earlier uploads that were aborted", sum(len(watch.aborted) for watch in watches)],
            ["commits without an answer: found, and not sent again", sum(watch.commits_found for watch in watches)],
            ["commits without an answer: never arrived, and sent once more", sum(watch.commits_sent_again for watch in watches)],
            ["multipart uploads left, of which the journal could not know or which were aborted", len(campaign.left_over)],
            ["seconds, all processes together", campaign.seconds],
        ],
        notes=[
            "Each process is ended by SIGKILL, at random moments spread over the run, and the next one has the same journal.",
            "Afterwards every deployment was listed, and every archive compared with its source.",
        ],
    )


def arguments() -> argparse.Namespace:
    parser = report.arguments(__doc__)
    parser.add_argument("--pushes", type=int, metavar="N", help="200, or 40 with --quick")
    parser.add_argument("--kills", type=int, metavar="N", help="20, or 5 with --quick")
    parser.add_argument("--largest-mib", type=int, metavar="MIB", help="the largest model: 64, or 24 with --quick")
    parser.add_argument("--seed", type=int, default=1, help="of the models and the moments")
    parser.add_argument("--same-key", action="store_true", help="prepare gives the same key again, and no credentials are kept")
    given = parser.parse_args()
    for name, value in zip(("pushes", "kills", "largest_mib"), (40, 5, 24) if given.quick else (200, 20, 64), strict=True):
        setattr(given, name, getattr(given, name) or value)
    return given


def main() -> None:
    given = arguments()
    exit_on_sigterm()
    campaign, plan = asyncio.run(run(given.pushes, given.kills, given.largest_mib * MIB, seed=given.seed, same_key=given.same_key))
    wrong = violations(campaign, plan)
    figures = table(campaign)
    lives = [
        {"commits": life.watch.commits, "under_way": len(life.watch.under_way), "states": dict(life.page.states)}
        for life in campaign.lives
    ]
    settings = {name: getattr(given, name) for name in ("pushes", "kills", "largest_mib", "seed", "same_key")}
    result = report.Result(
        benchmark="kills",
        title="Kills",
        settings=settings,
        tables=[figures],
        raw={"processes": lives, "left_over": [left.key for left in campaign.left_over], "violations": wrong},
    )
    report.finish(result, given)
    if wrong:
        raise SystemExit("\n".join(["not as it must be:", *wrong]))


if __name__ == "__main__":
    main()
