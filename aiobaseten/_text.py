"""Text from outside, as messages may hold it."""

from __future__ import annotations

MAX_CHARS = 500


def one_line(text: str, *, max_chars: int = MAX_CHARS, secret: str | None = None) -> str:
    """The text on one line, printable and bounded.

    :param secret: what is masked should the text repeat it
    """
    if secret:
        text = text.replace(secret, "***")
    line = " ".join(text.split())
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line[: max_chars + 1])
    return line if len(line) <= max_chars else line[:max_chars] + "\N{HORIZONTAL ELLIPSIS}"
