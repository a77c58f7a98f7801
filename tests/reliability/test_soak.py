"""A short run of `soak.py`, and that it finds what is not as it must be."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from reliability import soak

FLAT = {"rss_mib": 100.0, "rss_in_use_mib": 90.0, "fds": 20, "threads": 9, "tasks": 2}


@pytest.mark.anyio
@pytest.mark.slow
async def test_pushes_under_random_faults_are_all_accounted_for() -> None:
    found = await soak.soak(60, rate=0.08, seed=3)
    assert soak.violations(found) == []
    assert len(found.struck) > 5
    assert len(found.second.outcomes) == 60
    assert len(found.first.samples) == 3


def deployed(number: int) -> dict[str, Any]:
    told = {"outcome": number, "push_id": f"push-{number}", "deployment_id": f"deployment-{number}", "state": "committed"}
    return told | {"error": None, "cause": None, "is_typed": False, "is_passing": False, "first_cause": None}


def failed(number: int, cause: str, *, is_typed: bool = True, is_passing: bool = False) -> dict[str, Any]:
    told = {"deployment_id": None, "state": "failed", "error": "no luck", "cause": cause}
    return deployed(number) | told | {"is_typed": is_typed, "is_passing": is_passing}


def findings() -> soak.Findings:
    """Two pushes: the first is deployed at once, the second by the second process, after a fault that no further try helps."""
    plan = [
        soak.Planned(number=number, kind="bytes", path=None, name=f"soak-{number}", model_id=None, team_id=None)
        for number in (1, 2)
    ]
    there = {f"push-{number}": [SimpleNamespace(id=f"deployment-{number}")] for number in (1, 2)}
    return soak.Findings(
        plan=plan,
        first=soak.Life(
            outcomes={1: deployed(1), 2: failed(2, "UploadDenied (AccessDenied)")},
            samples=[FLAT] * 40,
            given_up={"upload-1"},
            reported=[2, 1, 0],
            status=0,
        ),
        second=soak.Life(outcomes={1: deployed(1), 2: deployed(2)}, samples=[FLAT], reported=[2, 0, 0], status=0),
        struck=[("PutObject", "AccessDenied"), ("AbortMultipartUpload", "500"), ("CreateMultipartUpload", "reply lost")],
        calls=40,
        deployments=({"push-1": there["push-1"]}, there),
        wrong_archives=[],
        left=["upload-1", "upload-2"],
    )


def test_nothing_is_wrong_with_a_run_that_is_as_it_must_be() -> None:
    assert soak.violations(findings()) == []


def hang(found: soak.Findings) -> None:
    found.first.status = None


def fail_with_something_else(found: soak.Findings) -> None:
    found.first.outcomes[2] = failed(2, "KeyError", is_typed=False)


def fail_in_passing(found: soak.Findings) -> None:
    found.first.outcomes[2] = failed(2, "UploadError (SlowDown)", is_passing=True)


def fail_without_a_fault(found: soak.Findings) -> None:
    found.struck.pop(0)


def fail_for_expired_credentials(found: soak.Findings) -> None:
    found.first.outcomes[2] = failed(2, "CredentialsExpired (ExpiredToken)")


def be_uncertain_of_nothing(found: soak.Findings) -> None:
    found.first.outcomes[2] = failed(2, "CommitUncertain")


def miscount(found: soak.Findings) -> None:
    found.first.reported = [2, 0, 0]


def lose_a_push(found: soak.Findings) -> None:
    del found.second.outcomes[2]


def fail_again(found: soak.Findings) -> None:
    found.second.outcomes[2] = failed(2, "UploadDenied (AccessDenied)")


def deploy_twice(found: soak.Findings) -> None:
    found.deployments[1]["push-2"].append(SimpleNamespace(id="deployment-3"))


def deploy_what_failed(found: soak.Findings) -> None:
    found.deployments[0]["push-2"] = [SimpleNamespace(id="deployment-2")]


def deploy_unasked(found: soak.Findings) -> None:
    found.deployments[1]["push-9"] = [SimpleNamespace(id="deployment-9")]


def store_another_archive(found: soak.Findings) -> None:
    found.wrong_archives.append("deployment-1")


def leave_an_upload(found: soak.Findings) -> None:
    found.left.append("upload-3")


def leave_an_upload_that_was_aborted(found: soak.Findings) -> None:
    found.struck.remove(("AbortMultipartUpload", "500"))


def leak(found: soak.Findings) -> None:
    found.first.samples[30:] = [FLAT | {"fds": 60}] * 10


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (hang, "first process: it hung: nothing was told for 90 s"),
        (fail_with_something_else, "push 2 failed with KeyError: no luck, which is none of the library's errors"),
        (fail_in_passing, "push 2 failed with UploadError (SlowDown): no luck, which further tries should have helped"),
        (fail_without_a_fault, "1 pushes failed with UploadDenied (AccessDenied), and 0 faults explain it"),
        (fail_for_expired_credentials, "although its source can be read again"),
        (be_uncertain_of_nothing, "push 2 failed with CommitUncertain: no luck, without a first cause"),
        (miscount, "first process: its report tells of [2, 0, 0], its outcomes of [2, 1, 0]"),
        (lose_a_push, "second process: 1 of 2 pushes ended"),
        (fail_again, "second process: push 2 failed: no luck"),
        (deploy_twice, "tells of deployment deployment-2, and there are ['deployment-2', 'deployment-3']"),
        (deploy_what_failed, "push 2 (UploadDenied (AccessDenied)) has the deployments ['deployment-2'] all the same"),
        (deploy_unasked, "second process: deployments of push push-9, which was not told"),
        (store_another_archive, "the archive of deployment deployment-1 is not its source"),
        (leave_an_upload, "3 multipart uploads are left, and faults explain 2"),
        (leave_an_upload_that_was_aborted, "2 multipart uploads are left, and faults explain 1"),
        (leak, "fds is not flat: 20.0 in the second quarter of the run, 60.0 in the last"),
    ],
)
def test_what_is_not_as_it_must_be_is_told(break_it: Callable[[soak.Findings], None], said: str) -> None:
    found = findings()
    break_it(found)
    assert said in "\n".join(soak.violations(found))
