"""Keeps SeaweedFS from outliving the process that started it. Run as a script of its own, it needs the standard library only.

It starts one server and holds the reading end of a pipe whose writing end the starting process has. When that pipe ends, because
the stack was stopped or because its process was killed, it kills the server, reaps it, and removes what the server leaves behind.
A pipe works alike on Linux and macOS and whichever thread started the server, which a parent-death signal does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CHECK_INTERVAL_S = 0.2
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
SERVER_ENDED = b"ended\n"


def supervise(plan: Mapping[str, Any], *, control: int, report: int) -> None:
    """Run a server until `control` ends or `plan["parent"]` dies, then kill it and clean up.

    :param plan: ``command``, ``environment``, ``directory`` (where it runs), ``log`` (file for its output), ``unlink`` (files to
        remove afterwards), ``remove`` (a directory to remove afterwards, or None), ``parent`` (process id)
    :param control: file descriptor whose end of file, or any byte, means stop
    :param report: file descriptor that is told `SERVER_ENDED` when the server ends by itself
    """
    stop = threading.Event()
    server = _start(plan)
    try:
        threading.Thread(target=_wait_for_end, args=(control, stop), daemon=True).start()
        has_reported = False
        # A process forked from the parent holds a copy of the pipe's other end, so the parent is watched as well.
        while not stop.wait(CHECK_INTERVAL_S) and os.getppid() == plan["parent"]:
            if not has_reported and (server is None or server.poll() is not None):
                os.write(report, SERVER_ENDED)
                has_reported = True
    finally:
        if server is not None:
            server.kill()
            server.wait()
        clean_up(plan["unlink"], plan["remove"])


def clean_up(unlink: Iterable[str], remove: str | None) -> None:
    """Remove files, and a directory if there is one, as far as that can be done."""
    for path in unlink:
        with contextlib.suppress(OSError):
            Path(path).unlink()
    if remove is not None:
        shutil.rmtree(remove, ignore_errors=True)


def _start(plan: Mapping[str, Any]) -> subprocess.Popen[bytes] | None:
    """Start the server; None when it cannot be, and its log then says why."""
    with Path(plan["log"]).open("ab") as log:
        try:
            return subprocess.Popen(  # nosec B603  # noqa: S603 - the command comes from the stack that started this process
                plan["command"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=plan["directory"],
                env=plan["environment"],
                umask=0o077,
                preexec_fn=_die_with_supervisor if sys.platform == "linux" else None,  # noqa: PLW1509 - no thread runs yet
            )
        except OSError as error:
            log.write(f"{error}\n".encode())
            return None


def _die_with_supervisor() -> None:
    """Ask Linux to kill the server should the supervisor itself be killed. Runs in the server's process, before it is one."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # pragma: no cover - no tracer survives the fork


def _wait_for_end(control: int, stop: threading.Event) -> None:
    os.read(control, 1)
    stop.set()


def _leave(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def main() -> None:
    """Supervise what the one argument, a JSON object, says; standard input is the control, standard output the report."""
    signal.signal(signal.SIGTERM, _leave)
    supervise(json.loads(sys.argv[1]), control=0, report=1)


if __name__ == "__main__":
    main()
