"""The process that ends SeaweedFS when nobody else can, here with small servers of our own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiobaseten.local import supervisor

Pipes = tuple[tuple[int, int], tuple[int, int]]
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def plan(directory: Path, command: list[str], **changes: Any) -> dict[str, Any]:
    leftover = directory / "leftover.sock"
    leftover.touch()
    return {
        "command": command,
        "environment": {"NAME": "value"},
        "directory": str(directory),
        "log": str(directory / "log"),
        "unlink": [str(directory / "never-made"), str(directory), str(leftover)],
        "remove": None,
        "parent": os.getppid(),
        **changes,
    }


def in_thread(call: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    """A control and a report pipe, each as its reading and its writing end."""
    control, report = os.pipe(), os.pipe()
    yield control, report
    for end in (*control, *report):
        with contextlib.suppress(OSError):
            os.close(end)


def test_the_server_ends_with_the_pipe(tmp_path: Path, pipes: Pipes) -> None:
    (control, writer), (_, report) = pipes
    pid_file = tmp_path / "pid"
    write_pid = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    thread = in_thread(
        lambda: supervisor.supervise(plan(tmp_path, [sys.executable, "-c", write_pid]), control=control, report=report)
    )
    while not (pid_file.exists() and pid_file.read_text()):
        thread.join(0.02)
    os.close(writer)
    thread.join(20)
    assert not thread.is_alive()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert not (tmp_path / "leftover.sock").exists()


def test_the_directory_is_removed_when_that_is_asked(tmp_path: Path, pipes: Pipes) -> None:
    (control, writer), (_, report) = pipes
    directory = tmp_path / "temporary"
    directory.mkdir()
    os.write(writer, b"x")
    supervisor.supervise(plan(directory, SLEEP, remove=str(directory)), control=control, report=report)
    assert not directory.exists()


def test_an_end_of_its_own_is_reported_once_and_cleaned_up_later(tmp_path: Path, pipes: Pipes) -> None:
    (control, writer), (reader, report) = pipes
    command = [sys.executable, "-c", "import os; print(sorted(os.environ.items())); print('bye')"]
    thread = in_thread(lambda: supervisor.supervise(plan(tmp_path, command), control=control, report=report))
    assert os.read(reader, 100) == supervisor.SERVER_ENDED
    assert thread.is_alive()
    assert (tmp_path / "leftover.sock").exists()
    os.close(writer)
    thread.join(20)
    os.close(report)
    assert os.read(reader, 100) == b""
    log = (tmp_path / "log").read_text()
    assert "('NAME', 'value')" in log
    assert "PATH" not in log
    assert log.endswith("bye\n")


def test_a_parent_that_is_gone_ends_the_server_though_the_pipe_is_open(tmp_path: Path, pipes: Pipes) -> None:
    (control, _), (_, report) = pipes
    supervisor.supervise(plan(tmp_path, SLEEP, parent=os.getppid() + 1), control=control, report=report)
    assert not (tmp_path / "leftover.sock").exists()


def test_a_command_that_cannot_be_run_is_an_end_of_its_own(tmp_path: Path, pipes: Pipes) -> None:
    (control, writer), (reader, report) = pipes
    thread = in_thread(lambda: supervisor.supervise(plan(tmp_path, ["/no/such/command"]), control=control, report=report))
    assert os.read(reader, 100) == supervisor.SERVER_ENDED
    assert "/no/such/command" in (tmp_path / "log").read_text()
    os.close(writer)
    thread.join(20)
    assert not (tmp_path / "leftover.sock").exists()


@pytest.mark.parametrize("how", ["end of input", "SIGTERM"])
def test_as_a_process_of_its_own(tmp_path: Path, how: str) -> None:
    directory = tmp_path / "temporary"
    directory.mkdir()
    arguments = json.dumps(plan(directory, SLEEP, remove=str(directory), parent=os.getpid()))
    command = [sys.executable, "-I", supervisor.__file__, arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        log = directory / "log"
        while not (log.exists() and log.read_text() == "up\n"):
            assert process.poll() is None
        if how == "SIGTERM":
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 128 + signal.SIGTERM
        else:
            process.communicate(timeout=20)
            assert process.returncode == 0
    assert not directory.exists()
