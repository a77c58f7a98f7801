"""``aiobaseten push --manifest`` against the real stack: selection, journal, report, interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from support.commands import command, point_at, records
from support.meddling_proxy import answer, hold, meddling_proxy
from support.model_dirs import model_dir
from support.processes import until

from aiobaseten.bulk.journal_file import JournalFile
from aiobaseten.local import LocalStack

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MiB = 1024 * 1024


@pytest.fixture(autouse=True)
def environment(local_stack: LocalStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    point_at(local_stack, monkeypatch, tmp_path)


@pytest.fixture
def manifest(tmp_path: Path, name: str) -> Path:
    """Six models, which a glob finds."""
    for number in range(6):
        model_dir(tmp_path / "models" / f"m{number}", f"{name}-{number}")
    file = tmp_path / "deploy.yaml"
    file.write_text("defaults:\n  labels: {team: search}\nmodels:\n  - glob: models/*\n")
    return file


def write(manifest: Path, text: str) -> None:
    manifest.write_text(text)


async def deployments(stack: LocalStack, name: str) -> int:
    async with stack.client() as client:
        found = await client.list_models(name=name)
        return sum([len(await client.list_deployments(model.id)) for model in found])


async def test_a_manifest_is_deployed_and_goes_on_from_its_journal(
    capsys: pytest.CaptureFixture[str], local_stack: LocalStack, manifest: Path, name: str
) -> None:
    assert await command("push", "--manifest", manifest, "--limit", 2) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "2/2 done, 0 failed" in err
    assert (manifest.parent / "deploy.yaml.journal.db").stat().st_mode & 0o777 == 0o600
    assert await command("push", "--manifest", manifest, "--json", "--wait", "--concurrency", 2) == 0
    out, err = capsys.readouterr()
    told = records(out)
    assert len(told) == 6
    assert sum(record["skipped"] for record in told) == 2
    assert {record["status"] for record in told} == {"ACTIVE"}
    assert "6/6 done (2 skipped), 0 failed" in err
    for number in range(6):
        assert await deployments(local_stack, f"{name}-{number}") == 1


async def test_select_and_limit(capsys: pytest.CaptureFixture[str], manifest: Path, name: str) -> None:
    assert (
        await command("push", "--manifest", manifest, "--json", "--select", f"{name}-[135]", "--select", "models/m0", "--limit", 3)
        == 0
    )
    told = records(capsys.readouterr().out)
    assert {record["model_name"] for record in told} == {f"{name}-{number}" for number in (0, 1, 3)}
    assert await command("push", "--manifest", manifest, "--select", "nothing-*") == 2
    assert "nothing-*" in capsys.readouterr().err


async def test_a_dry_run_checks_all_and_makes_nothing(
    capsys: pytest.CaptureFixture[str], local_stack: LocalStack, manifest: Path, name: str
) -> None:
    assert await command("push", "--manifest", manifest, "--dry-run") == 0
    assert capsys.readouterr().out.count("would be a new model") == 6
    assert await deployments(local_stack, f"{name}-0") == 0
    assert not (manifest.parent / "deploy.yaml.journal.db").exists()
    assert await command("push", manifest.parent / "models" / "m0", "--dry-run", "--json") == 0
    assert records(capsys.readouterr().out)[0]["deployment_id"] is None


async def test_every_mistake_is_told_before_anything_is_sent(
    capsys: pytest.CaptureFixture[str], local_stack: LocalStack, manifest: Path, name: str
) -> None:
    write(manifest, "models:\n  - path: models/m0\n  - path: nowhere\n  - path: models/m1\n    lables: {}\n")
    assert await command("push", "--manifest", manifest) == 2
    err = capsys.readouterr().err
    assert "deploy.yaml:3: $.models[1].path" in err
    assert "deploy.yaml:5: $.models[2].lables" in err
    assert await deployments(local_stack, f"{name}-0") == 0


async def test_teams_by_name(capsys: pytest.CaptureFixture[str], local_stack: LocalStack, manifest: Path, name: str) -> None:
    write(manifest, "defaults: {team: research}\nmodels:\n  - path: models/m0\n  - {path: models/m1, team: nobody}\n")
    assert await command("push", "--manifest", manifest) == 2
    assert "nobody" in capsys.readouterr().err
    write(manifest, "defaults: {team: research}\nmodels:\n  - path: models/m0\n")
    assert await command("push", "--manifest", manifest) == 0
    async with local_stack.client() as client:
        (model,) = await client.list_models(name=f"{name}-0")
    assert model.team_name == "research"


async def test_failures_are_grouped_and_the_command_that_retries_them_is_told(
    capsys: pytest.CaptureFixture[str], local_stack: LocalStack, manifest: Path
) -> None:
    async with meddling_proxy(local_stack.base_url) as proxy:
        proxy.plan("POST", "/v1/models", answer(422, '{"message": "no such accelerator"}'), times=2)
        arguments = ("push", "--manifest", manifest, "--base-url", proxy.url)
        assert await command(*arguments) == 5
        err = capsys.readouterr().err
        assert "ApiError (status 422)" in err
        assert "no such accelerator" in err
        assert f"aiobaseten push --manifest {manifest} --base-url {proxy.url}" in err.replace("\n  ", " ").replace("\n", "")
        assert await command(*arguments) == 0
        assert "6/6 done (4 skipped), 0 failed" in capsys.readouterr().err


async def test_resume_and_no_resume(capsys: pytest.CaptureFixture[str], local_stack: LocalStack, manifest: Path, name: str) -> None:
    journal = manifest.parent / "elsewhere.db"
    arguments = ("push", "--manifest", manifest, "--journal", journal, "--limit", 1)
    assert await command(*arguments, "--resume") == 2
    assert "there is no journal" in capsys.readouterr().err
    assert await command(*arguments) == 0
    assert await command(*arguments, "--resume") == 0
    assert await deployments(local_stack, f"{name}-0") == 1
    assert await command(*arguments, "--no-resume") == 0
    assert await deployments(local_stack, f"{name}-0") == 2
    assert len(list(journal.parent.glob("elsewhere.db.2*Z"))) == 1


async def test_sources_with_a_journal(
    capsys: pytest.CaptureFixture[str], local_stack: LocalStack, manifest: Path, name: str
) -> None:
    arguments = ("push", manifest.parent / "models" / "m0", "--journal", manifest.parent / "journal.db")
    assert await command(*arguments) == 0
    capsys.readouterr()
    assert await command(*arguments) == 0
    assert "done by an earlier run" in capsys.readouterr().out
    assert await deployments(local_stack, f"{name}-0") == 1


async def test_a_report_is_written(capsys: pytest.CaptureFixture[str], manifest: Path, name: str) -> None:
    page = manifest.parent / "report.html"
    shutil.rmtree(manifest.parent / "models" / "m5" / "model")
    assert await command("push", "--manifest", manifest, "--report", page) == 0
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert f"{name}-3" in text
    assert "deploy.yaml" in text
    capsys.readouterr()
    assert await command("push", "--manifest", manifest, "--report", manifest.parent / "no" / "report.html") == 2
    err = capsys.readouterr().err
    assert "--report" in err
    assert "skipped" not in err  # told before the run


async def test_a_full_disk_ends_the_run_in_words(
    capsys: pytest.CaptureFixture[str], manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(JournalFile, "write", full_disk)
    assert await command("push", "--manifest", manifest, "--concurrency", 1) == 1
    err = capsys.readouterr().err
    assert "database or disk is full" in err
    assert "JournalError" in err
    assert "To go on with what is not deployed" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("push",),
        ("push", "model", "--manifest", "deploy.yaml"),
        ("push", "model", "--select", "x"),
        ("push", "model", "--limit", "3"),
        ("push", "model", "--resume"),
        ("push", "model", "--journal-credentials"),
        ("push", "--manifest", "deploy.yaml", "--name", "x"),
        ("push", "--manifest", "deploy.yaml", "--symlinks", "follow"),
        ("push", "--manifest", "deploy.yaml", "--limit", "0"),
        ("push", "--manifest", "missing.yaml"),
    ],
)
async def test_options_that_do_not_fit_together(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    assert await command(*arguments) == 2
    assert capsys.readouterr().err


async def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert await command("schema") == 0
    assert "models" in json.loads(capsys.readouterr().out)["properties"]


@pytest.fixture
async def child(manifest: Path) -> AsyncIterator[list[subprocess.Popen[str]]]:
    """Commands that a test starts; whatever is left of them ends with it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def start(manifest: Path, **environment: str) -> subprocess.Popen[str]:
    words = [
        sys.executable,
        "-c",
        "from aiobaseten.cli import main; main()",
        "push",
        "--manifest",
        str(manifest),
        "--concurrency",
        "1",
    ]
    return subprocess.Popen(
        words, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("interrupts", [1, 2])
async def test_ctrl_c_sees_commits_through_and_a_second_one_ends_at_once(
    local_stack: LocalStack, manifest: Path, name: str, child: list[subprocess.Popen[str]], interrupts: int
) -> None:
    arrived, go_on = anyio.Event(), anyio.Event()
    async with meddling_proxy(local_stack.base_url) as proxy:
        proxy.plan("POST", "/v1/models", hold(arrived, go_on))
        process = start(manifest, AIOBASETEN_BASE_URL=proxy.url)
        child.append(process)
        with anyio.fail_after(60):
            await arrived.wait()
        process.send_signal(signal.SIGINT)
        if interrupts == 2:
            await anyio.sleep(0.5)
            process.send_signal(signal.SIGINT)
        else:
            await anyio.sleep(0.2)
            go_on.set()
        await until(lambda: process.poll() is not None)
        go_on.set()
        _, err = process.communicate()
        assert process.returncode == 130
        assert "commits that were sent are seen through" in err
        with anyio.fail_after(10):
            while await deployments(local_stack, f"{name}-0") == 0:  # noqa: ASYNC110 - the service acts when it gets to it
                await anyio.sleep(0.02)
        assert sum([await deployments(local_stack, f"{name}-{number}") for number in range(6)]) == 1
        assert await command("push", "--manifest", manifest, "--json") == 0
    for number in range(6):
        assert await deployments(local_stack, f"{name}-{number}") == 1
