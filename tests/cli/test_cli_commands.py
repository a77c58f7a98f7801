"""The command against the real stack: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from support.clock import FakeClock
from support.commands import command, point_at, records
from support.model_dirs import model_dir
from support.processes import processes_of, until
from support.terminals import output_and_terminal

from aiobaseten.events import Committed
from aiobaseten.local import LocalStack

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MiB = 1024 * 1024


@pytest.fixture(autouse=True)
def environment(local_stack: LocalStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    point_at(local_stack, monkeypatch, tmp_path)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """A clock of its own for the command: waiting takes no time."""
    fake = FakeClock()
    monkeypatch.setattr("aiobaseten.client.Clock", lambda: fake.clock)
    return fake


def printed(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    captured = capsys.readouterr()
    return captured.out, captured.err


async def test_push_prints_what_was_made(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    directory = model_dir(tmp_path / "model", name)
    (directory / "a.log").write_text("x" * 2048)
    assert await command("push", directory, "--environment", "production", "--label", "owner=me", "--wait") == 0
    out, err = printed(capsys)
    assert f"({name}):" in out
    assert "in 1 part" in out
    assert "verified; ACTIVE" in out
    assert "left out by the default rules: 1 file, 2.0 KiB; the largest is a.log (2.0 KiB, rule '*.log')" in out
    assert f"{name}: starts" in err
    assert "committed: model" in err


async def test_push_json_is_one_object_per_push(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, local_stack: LocalStack
) -> None:
    directories = [model_dir(tmp_path / str(n), f"{name}-{n}", weights_bytes=n * 9 * MiB) for n in range(2)]
    assert await command("push", *directories, "--json", "--label", "a=1", "--label", "b=x=y", "--deployment-name", "v1") == 0
    out, _ = printed(capsys)
    by_source = {record["source"]: record for record in records(out)}
    assert set(by_source) == set(map(str, directories))
    large = by_source[str(directories[1])]
    assert large["ok"] is True
    assert large["model_name"] == f"{name}-1"
    assert large["deployment_name"] == "v1"
    assert large["parts"] == 2
    assert large["verified"] is True
    assert large["ignored"] == {"files": 0, "size_bytes": 0, "largest": None}
    assert (await local_stack.object_digest(large["s3_key"]))[0] == large["size_bytes"]
    async with local_stack.client() as client:
        deployment = await client.get_deployment(large["model_id"], large["deployment_id"])
    assert deployment.labels == {"a": "1", "b": "x=y", "aiobaseten-push-id": large["push_id"]}


async def test_one_of_several_pushes_fails(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    good = model_dir(tmp_path / "good", name)
    assert await command("push", good, tmp_path / "missing", "--json") == 2
    out, _ = printed(capsys)
    failed = next(record for record in records(out) if not record["ok"])
    assert failed["source"].endswith("missing")
    assert failed["error"]["type"] == "ArchiveError"
    assert failed["error"]["retryable"] is False
    assert any(record["ok"] for record in records(out))


async def test_failures_that_differ(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    directory = model_dir(tmp_path / "model", name)
    assert await command("push", directory, "--deployment-name", "v1") == 0
    assert await command("push", directory, tmp_path / "missing", "--deployment-name", "v1") == 1
    _, err = printed(capsys)
    assert "missing: failed: ArchiveError" in err


async def test_existing_and_ids(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    directory = model_dir(tmp_path / "model", name)
    assert await command("push", directory, "--json", "--development") == 0
    (made,) = records(printed(capsys)[0])
    assert await command("push", directory, "--existing", "error") == 2
    assert await command("push", directory, "--model-id", made["model_id"], "--json") == 0
    (again,) = records(capsys.readouterr().out)
    assert again["model_id"] == made["model_id"]
    assert await command("push", directory, "--model-id", "nope1234") == 4
    assert await command("push", directory, "--name", f"{name}-named", "--json", "--disable-archive-download") == 0
    (named,) = records(capsys.readouterr().out)
    assert named["model_name"] == f"{name}-named"


async def test_a_model_without_an_archive(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.yaml").write_text(f"model_name: {name}\nbis_llm: {{}}\n")
    assert await command("push", directory) == 0
    assert "no archive needed" in printed(capsys)[0]


async def test_check_makes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, local_stack: LocalStack) -> None:
    directory = model_dir(tmp_path / "model", name)
    assert await command("check", directory) == 0
    assert f"would be a new model {name}, " in printed(capsys)[0]
    async with local_stack.client() as client:
        assert await client.list_models(name=name) == ()
        result = await client.push(directory)
    assert await command("check", directory, "--json") == 0
    (record,) = records(printed(capsys)[0])
    assert record["model_id"] == result.model.id
    assert await command("check", directory) == 0
    assert f"a new deployment of model {result.model.id}" in printed(capsys)[0]


async def test_wait(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, local_stack: LocalStack, no_waiting: FakeClock
) -> None:
    async with local_stack.client() as client:
        result = await client.push(model_dir(tmp_path / "model", name))
    ids = (result.model.id, result.deployment.id)
    local_stack.set_status(result.deployment.id, "ACTIVE")
    assert await command("wait", *ids) == 0
    assert printed(capsys)[0] == f"deployment {ids[1]} of model {ids[0]} is ACTIVE\n"
    assert await command("wait", *ids, "--json") == 0
    assert records(printed(capsys)[0]) == [{"model_id": ids[0], "deployment_id": ids[1], "status": "ACTIVE"}]
    local_stack.set_status(result.deployment.id, "BUILD_FAILED")
    assert await command("wait", *ids) == 1
    assert "BUILD_FAILED" in printed(capsys)[1]
    local_stack.set_status(result.deployment.id, "BUILDING")
    assert await command("wait", *ids, "--timeout", "3") == 1
    assert await command("wait", ids[0], "nope1234") == 4


async def test_a_refused_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv("BASETEN_API_KEY", "wrong-key-7")
    assert await command("push", model_dir(tmp_path / "model", name)) == 3
    out, err = printed(capsys)
    assert "AuthenticationError" in err
    assert "wrong-key-7" not in out + err


async def test_another_refusal(tmp_path: Path, name: str) -> None:
    directory = model_dir(tmp_path / "model", name)
    assert await command("push", directory, "--deployment-name", "v1") == 0
    assert await command("push", directory, "--deployment-name", "v1") == 5


async def test_an_unreachable_service(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, no_waiting: FakeClock) -> None:
    directory = model_dir(tmp_path / "model", name)
    assert await command("push", directory, "--base-url", "http://127.0.0.1:9") == 6
    assert "cannot connect to 127.0.0.1" in printed(capsys)[1]
    assert len(no_waiting.sleeps_s) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["push"], "either sources or --manifest"),
        (["push", "x", "--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
        (["push", "x", "--label", "no-equals"], "KEY=VALUE"),
        (["push", "x", "y", "--name", "one"], "single source"),
        (["push", "x", "--part-size-mib", "1"], "part_size_bytes"),
        (["push", "x", "--ca-bundle", "/does/not/exist"], "ca_bundle"),
        (["push", "x", "--base-url", "http://example.com"], "https"),
        (["push", "x", "--s3-endpoint-url", "nonsense"], "S3 endpoint"),
        (["push", "x"], "x"),
        (["push", ""], "does not exist"),
        (["push", "x", "--concurrency", "0"], "concurrency"),
        (["push", "x", "--push-timeout", "0"], "push_s"),
        (["wait", "m", "d", "--timeout", "nan"], "timeout_s"),
        (["demo", "--examples", "/does/not/exist"], "no model directory"),
    ],
)
async def test_bad_usage_and_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await command(*arguments) == 2
    out, err = printed(capsys)
    assert message in err
    assert out == ""
    assert "Traceback" not in err


async def test_no_key_at_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("BASETEN_API_KEY")
    assert await command("push", "x") == 2
    assert "BASETEN_API_KEY" in printed(capsys)[1]


async def test_transfer_options(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    directory = model_dir(tmp_path / "model", name, weights_bytes=11 * MiB)
    options = ["--part-size-mib", "5", "--memory-budget-mib", "10", "--max-connections", "2", "--checksum", "off", "--json"]
    assert await command("push", directory, *options) == 0
    (record,) = records(printed(capsys)[0])
    assert record["parts"] == 3
    assert record["verified"] is False


async def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert await command("--help") == 0
    assert "push" in printed(capsys)[0]
    assert await command("push", "--help") == 0
    assert "--environment" in printed(capsys)[0]
    assert await command("--version") == 0
    assert printed(capsys)[0].strip() == "0.1.0"


@asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[subprocess.Popen[str]]:
    """The command in a process of its own."""
    with subprocess.Popen(  # noqa: ASYNC220 - starting one takes a moment only
        [sys.executable, "-c", "from aiobaseten.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_the_local_stack_runs_until_interrupted() -> None:
    async with running("local", "--json") as process:
        assert process.stdout is not None
        settings = json.loads(await anyio.to_thread.run_sync(process.stdout.readline))
        assert set(settings) == {"BASETEN_API_KEY", "AIOBASETEN_BASE_URL", "AIOBASETEN_S3_ENDPOINT_URL"}
        found = processes_of(settings["AIOBASETEN_S3_ENDPOINT_URL"])
        assert "weed" in found
        process.send_signal(signal.SIGINT)
        assert await anyio.to_thread.run_sync(process.wait) == 130
        await until(lambda: processes_of(settings["AIOBASETEN_S3_ENDPOINT_URL"]) == {})


async def test_the_local_stack_prints_exports() -> None:
    async with running("local") as process:
        assert process.stdout is not None
        lines = [await anyio.to_thread.run_sync(process.stdout.readline) for _ in range(3)]
        assert [line.split("=")[0] for line in lines] == [
            "export BASETEN_API_KEY",
            "export AIOBASETEN_BASE_URL",
            "export AIOBASETEN_S3_ENDPOINT_URL",
        ]
        process.send_signal(signal.SIGINT)
        assert await anyio.to_thread.run_sync(process.wait) == 130


async def test_an_interrupted_push_leaves_no_upload(tmp_path: Path, name: str, local_stack: LocalStack) -> None:
    directory = model_dir(tmp_path / "model", name, weights_bytes=150 * MiB)
    async with running("push", str(directory), "--max-connections", "1") as process:
        while not await local_stack.multipart_uploads():
            assert process.poll() is None
            await anyio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert await anyio.to_thread.run_sync(process.wait) == 130
        assert process.stderr is not None
        assert "interrupted" in process.stderr.read()
    assert await local_stack.multipart_uploads() == []


@pytest.mark.parametrize("module", ["cyclopts", "rich"])
async def test_without_the_extra_it_says_which_to_install(module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from aiobaseten.cli import main; main()"
    ended = await anyio.run_process([sys.executable, "-c", code], check=False)
    assert ended.returncode == 2
    assert b"pip install 'aiobaseten[cli]'" in ended.stderr
    assert ended.stdout == b""


async def test_another_missing_module_is_not_hidden() -> None:
    code = "import sys; sys.modules['aiohttp'] = None; from aiobaseten.cli import main; main()"
    ended = await anyio.run_process([sys.executable, "-c", code], check=False)
    assert ended.returncode == 1
    assert b"aiohttp" in ended.stderr


async def test_results_go_to_stdout_while_bars_are_on_the_terminal(tmp_path: Path, name: str) -> None:
    """Standard error is a terminal, standard output a pipe: what another program reads must arrive there."""
    directory = model_dir(tmp_path / "model", name)
    terminal, child_end = pty.openpty()
    with subprocess.Popen(  # noqa: ASYNC220 - starting one takes a moment only
        [sys.executable, "-c", "from aiobaseten.cli import main; main()", "push", str(directory), "--json"],
        stdout=subprocess.PIPE,
        stderr=child_end,
        text=True,
    ) as process:
        os.close(child_end)
        out, shown = await output_and_terminal(process, terminal)
    assert process.returncode == 0
    (record,) = records(out)
    assert record["model_name"] == name
    assert name.encode() in shown


async def test_a_deployment_that_fails_while_waited_for_is_named(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    local_stack: LocalStack,
    no_waiting: FakeClock,
) -> None:
    def fail_at_once(self: object, event: object) -> None:
        if isinstance(event, Committed):
            local_stack.set_status(event.deployment_id, "BUILD_FAILED")

    monkeypatch.setattr("aiobaseten.cli.display.Lines.__call__", fail_at_once)
    assert await command("push", model_dir(tmp_path / "model", name), "--wait", "--json") == 1
    (record,) = records(printed(capsys)[0])
    assert record["ok"] is False
    assert record["error"]["type"] == "DeploymentFailed"
    assert record["model_name"] == name
    assert record["deployment_id"]
    assert record["push_id"]


async def test_a_push_that_takes_too_long_is_given_up(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, local_stack: LocalStack, no_waiting: FakeClock
) -> None:
    assert await command("push", model_dir(tmp_path / "model", name), "--push-timeout", "0.000001", "--json") == 1
    (record,) = records(printed(capsys)[0])
    assert record["error"]["type"] == "DeadlineExceeded"
    assert "push_s" in record["error"]["message"]
    async with local_stack.client() as client:
        assert await client.list_models(name=name) == ()


async def test_a_reader_that_goes_away_stops_no_push(tmp_path: Path, name: str, local_stack: LocalStack) -> None:
    directories = [model_dir(tmp_path / str(n), f"{name}-{n}") for n in range(2)]
    code = "from aiobaseten.cli import main; main()"
    with subprocess.Popen(  # noqa: ASYNC220 - starting one takes a moment only
        [sys.executable, "-c", code, "push", *map(str, directories), "--json", "--concurrency", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = await anyio.to_thread.run_sync(process.stderr.read)
    assert b"Traceback" not in err
    async with local_stack.client() as client:
        for n in range(2):
            assert len(await client.list_models(name=f"{name}-{n}")) == 1


async def test_names_that_cannot_be_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = os.fsdecode(b"caf\xe9")
    assert await command("push", source, "--json") == 2
    (record,) = records(printed(capsys)[0])
    assert record["source"] == source
    assert await command("push", source) == 2
    assert "caf\\udce9: failed: ArchiveError" in printed(capsys)[1]
