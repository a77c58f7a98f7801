"""Which processes of a local stack are there, found from outside by the port that is on their command lines."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

import anyio


def command_lines() -> dict[int, str]:
    """Every process that can be looked at, zombies left out."""
    if sys.platform != "linux":
        listing = subprocess.run(["ps", "-axww", "-o", "pid=,command="], check=True, capture_output=True, text=True).stdout
        return {int(pid): command for pid, command in (line.split(maxsplit=1) for line in listing.splitlines())}
    found: dict[int, str] = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[int(path.parent.name)] = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # It ended meanwhile.
            continue
    return {pid: command for pid, command in found.items() if command}


def processes_of(s3_endpoint_url: str) -> dict[str, int]:
    """The process ids of a stack's ``weed`` and ``supervisor``, as far as they are there."""
    marker = f"-s3.port={urlsplit(s3_endpoint_url).port}"
    return {
        "supervisor" if "supervisor.py" in command else "weed": pid
        for pid, command in command_lines().items()
        if f"{marker} " in command or f'{marker}"' in command
    }


def listening(pids: Iterable[int]) -> set[tuple[str, int]]:
    """The addresses, as Linux's kernel writes them, and ports that processes listen on, TCP and UDP."""
    inodes: set[str] = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # It was closed meanwhile.
                if found := re.fullmatch(r"socket:\[(\d+)\]", descriptor.readlink().name):
                    inodes.add(found[1])
    sockets: set[tuple[str, int]] = set()
    for table, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state and fields[9] in inodes:
                address, port = fields[1].split(":")
                sockets.add((address, int(port, 16)))
    return sockets


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await anyio.sleep(0.02)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())
