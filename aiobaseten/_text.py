"""Text from outside, as messages may hold it."""

from __future__ import annotations

from aiobaseten._redaction import redact

MAX_CHARS = 500


def one_line(text: str, *, max_chars: int = MAX_CHARS) -> str:
    """The text on one line, printable, bounded, and without the secrets that it may repeat."""
    line = " ".join(redact(text).split())
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line[: max_chars + 1])
    return line if len(line) <= max_chars else line[:max_chars] + "\N{HORIZONTAL ELLIPSIS}"
