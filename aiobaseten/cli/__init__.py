"""The command ``aiobaseten``. It needs the extra ``cli``."""

from __future__ import annotations

import sys

EXTRA_MODULES = ("cyclopts", "rich")


def main() -> None:
    """The entry point of the command."""
    try:
        from aiobaseten.cli.app import run  # noqa: PLC0415 - without the extra this cannot be imported, and must say so
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA_MODULES:
            raise
        sys.stderr.write(f"aiobaseten: the command needs {error.name}, which is not installed: pip install 'aiobaseten[cli]'\n")
        sys.exit(2)
    sys.exit(run(sys.argv[1:]))
