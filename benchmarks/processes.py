"""Starts the processes that the benchmarks consist of: the sink, the control plane, and the clients that are measured.

Each is bounded in time and ended by its own handle, whatever happens in between.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs

HERE = Path(__file__).parent
GRACE_S = 15


@attrs.frozen(kw_only=True)
class Endpoint:
    """Where a server listens; `ca_bundle` is the file of the authority that vouches for it, None over plain http."""

    url: str
    ca_bundle: str | None


def environment() -> dict[str, str]:
    """This process's environment without what would lead S3 clients elsewhere: AWS settings and proxies."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("AWS_")}
    kept = {name: value for name, value in kept.items() if not name.upper().endswith("_PROXY")}
    nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true"}
    return kept | nowhere


def exit_on_sigterm() -> None:
    """Let SIGTERM end this script as an exception would, so that it ends the processes that it started."""

    def leave(*_: object) -> None:
        raise SystemExit("asked to end")

    signal.signal(signal.SIGTERM, leave)


def run_script(*arguments: str, timeout_s: float) -> str:
    """Run a script of this directory to its end and return its standard output; its standard error goes where ours does.

    :raises SystemExit: it failed, or did not end in time
    """
    command = [sys.executable, *arguments]
    with subprocess.Popen(
        command, cwd=HERE, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            output, _ = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise SystemExit(f"{arguments[0]}: not done after {timeout_s:.0f} s") from None
        finally:
            _end(child)
    if child.returncode:
        raise SystemExit(f"{arguments[0]}: failed with exit status {child.returncode}")
    return output


@contextmanager
def sink(*flags: str) -> Generator[Endpoint]:
    """A sink of its own process, which ends with the block.

    :raises SystemExit: it did not start
    """
    with _talking("sink.py", *flags) as sink:
        yield _endpoint(sink.read())


@contextmanager
def control_plane(*flags: str) -> Generator[tuple[Endpoint, Talk]]:
    """A control plane of its own process, which ends with the block. Asked nothing in particular, it tells its `cpu_s`.

    :raises SystemExit: it did not start
    """
    with _talking("control_plane.py", *flags) as control_plane:
        yield _endpoint(control_plane.read()), control_plane


@contextmanager
def client(script: str, *arguments: str, timeout_s: float) -> Generator[Talk]:
    """A client in a process of its own, connected and ready to be asked. It is killed after `timeout_s`, and ends with the block.

    :raises SystemExit: it did not start
    """
    with _talking(script, *arguments) as client:
        bound = threading.Timer(timeout_s, client.kill)
        bound.start()
        try:
            client.read()
            yield client
        finally:
            bound.cancel()


class Talk:
    """The other end of `serve`: asks a process with a line of JSON, and gets one back."""

    def __init__(self, child: subprocess.Popen[str], name: str) -> None:
        self._child = child
        self._name = name

    def read(self) -> dict[str, Any]:
        """The next line that it writes.

        :raises SystemExit: it has ended
        """
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"{self._name}: ended early")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **request: Any) -> dict[str, Any]:
        """Have it do something, and return what it says of it.

        :raises SystemExit: it has ended
        """
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise SystemExit(f"{self._name}: ended early") from None
        return self.read()

    def kill(self) -> None:
        """End it at once."""
        self._child.kill()


async def serve(answer: Callable[..., Awaitable[dict[str, Any]]], *, ready: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Be the process at the other end of a `Talk`: say that it is `ready`, then answer each line until there are no more."""
    _say(ready)
    while line := await asyncio.to_thread(sys.stdin.readline):
        _say(await answer(**json.loads(line)))


def cpu_s() -> float:
    """CPU seconds that this process, all its threads and the children that it has waited for have used."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def peak_rss_mib() -> float:
    """The most memory that this process has ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def _say(message: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(dict(message)) + "\n")
    sys.stdout.flush()


def _endpoint(started: dict[str, Any]) -> Endpoint:
    return Endpoint(url=started["url"], ca_bundle=started["ca_bundle"])


@contextmanager
def _talking(*arguments: str) -> Generator[Talk]:
    """A script of this directory that ends with its standard input, and is made to where it does not."""
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, cwd=HERE, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        try:
            yield Talk(child, arguments[0])
        finally:
            with suppress(BrokenPipeError):
                child.stdin.close()
            _end(child, patience_s=GRACE_S)


def _end(child: subprocess.Popen[str], *, patience_s: float = 0) -> None:
    """Wait for the process's end, then ask for it, then force it. The interrupt lets it end the processes that it started."""
    for ask in (lambda: child.send_signal(signal.SIGINT), child.kill):
        try:
            child.wait(patience_s)
        except subprocess.TimeoutExpired:
            ask()
            patience_s = GRACE_S
        else:
            return
