"""What the bench measures, and within which bounds: its arguments as settings, steps and their share of time. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

import attrs

from aiobaseten.cli.outcome import human_bytes
from aiobaseten.errors import ConfigurationError
from aiobaseten.options import GiB, KiB, MiB, TransferOptions, is_finite_number
from aiobaseten.upload.plan import MAX_PART_SIZE_BYTES, MIN_PART_SIZE_BYTES

WARM_UP_BYTES = MiB
MIN_STEP_S = 1.0
"""Less time than this says little of a setting."""
MAX_CONNECTIONS = 1024

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(?:(|[KMGT])(?:iB)?|B)", re.IGNORECASE)
_UNITS = {"": 1, "K": KiB, "M": MiB, "G": GiB, "T": 1024 * GiB}


def parse_size(text: str, flag: str) -> int:
    """A number of bytes: ``8MiB``, ``64M`` (which is 64 MiB) or plain ``65536``.

    :raises ConfigurationError: if it is no size of at least one byte
    """
    found = _SIZE.fullmatch(text.strip())
    size_bytes = int(Decimal(found[1]) * _UNITS[(found[2] or "").upper()]) if found else 0
    if size_bytes < 1:
        raise ConfigurationError(f"{flag} must be a size such as 8MiB, 64M or a number of bytes, not {text!r}")
    return size_bytes


@attrs.frozen
class Setting:
    """What one step measures. None is what the library chooses by itself."""

    connections: int | None = None
    part_size_bytes: int | None = None

    @property
    def options(self) -> TransferOptions:
        """With memory for every part in flight."""
        if self.connections is None or self.part_size_bytes is None:
            return TransferOptions()
        chosen = TransferOptions(part_size_bytes=self.part_size_bytes, max_connections=self.connections)
        return attrs.evolve(chosen, memory_budget_bytes=max(chosen.memory_budget_bytes, self.in_flight_bytes))

    @property
    def in_flight_bytes(self) -> int:
        """The bytes that are on their way at once; 0 where that is the library's choice."""
        return (self.connections or 0) * (self.part_size_bytes or 0)

    @property
    def arguments(self) -> str:
        """The arguments of `push` that choose it."""
        assert self.part_size_bytes is not None
        given = f"--max-connections {self.connections} --part-size-mib {self.part_size_bytes // MiB}"
        budget_bytes = self.options.memory_budget_bytes
        return (
            given if budget_bytes == TransferOptions().memory_budget_bytes else f"{given} --memory-budget-mib {budget_bytes // MiB}"
        )

    def __str__(self) -> str:
        if self.connections is None or self.part_size_bytes is None:
            return "auto"
        connections = "1 connection" if self.connections == 1 else f"{self.connections} connections"
        return f"{connections}, {self.part_size_bytes // MiB} MiB parts"


@attrs.frozen(kw_only=True)
class Plan:
    """What to measure, and within which bounds.

    :param path: a model directory or archive; None: random bytes
    :param size_bytes: of the random bytes
    """

    settings: tuple[Setting, ...]
    to: Literal["local", "baseten"] = "local"
    path: str | None = None
    size_bytes: int = 256 * MiB
    max_s: float = 60.0
    max_bytes: int = 4 * GiB


def plan_of(
    *,
    to: Literal["local", "baseten"],
    path: str | None,
    size: str | None,
    connections: str,
    part_size: str,
    max_s: float,
    max_bytes: str,
) -> Plan:
    """The plan that the command's arguments describe.

    :raises ConfigurationError: for a value that cannot work, naming its flag
    """
    if path is not None and size is not None:
        raise ConfigurationError("--size is for random bytes; with a path its own size counts")
    if not is_finite_number(max_s) or max_s < MIN_STEP_S:
        raise ConfigurationError(f"--max-seconds must be a number of at least {MIN_STEP_S:g}, not {max_s}")
    return Plan(
        settings=settings_of(connections, part_size),
        to=to,
        path=path,
        size_bytes=parse_size(size or "256MiB", "--size"),
        max_s=max_s,
        max_bytes=parse_size(max_bytes, "--max-bytes"),
    )


def settings_of(connections: str, part_sizes: str) -> tuple[Setting, ...]:
    """``auto`` first, if it is among the connections; then each number of connections with the first part size, and so on.

    :raises ConfigurationError: for a value that cannot work
    """
    counts = [item.strip() for item in connections.split(",")]
    fixed = [Setting(count, size) for size in _part_sizes(part_sizes) for count in _counts(counts)]
    settings = [Setting(), *fixed] if "auto" in counts else fixed
    return tuple(dict.fromkeys(settings))


def _counts(items: Sequence[str]) -> list[int]:
    for item in items:
        if item != "auto" and not (re.fullmatch("[0-9]{1,4}", item) and 1 <= int(item) <= MAX_CONNECTIONS):
            raise ConfigurationError(
                f"--connections must be 'auto' or numbers from 1 to {MAX_CONNECTIONS}, as in auto,4,8, not {item!r}"
            )
    return [int(item) for item in items if item != "auto"]


def _part_sizes(text: str) -> list[int]:
    sizes = [parse_size(item, "--part-size") for item in text.split(",")]
    for size, item in zip(sizes, text.split(","), strict=True):
        if size % MiB or not MIN_PART_SIZE_BYTES <= size <= MAX_PART_SIZE_BYTES:
            raise ConfigurationError(f"--part-size must be whole MiB from 5MiB to 5GiB, not {item.strip()!r}")
    return sizes


@attrs.define(kw_only=True)
class Allowance:
    """What is left of the bounds, and how steps share it."""

    bytes_left: int
    until_s: float
    best_bytes_per_s: float = 0.0

    def spend(self, size_bytes: int, bytes_per_s: float = 0.0) -> None:
        """Take what a step has sent off. Its rate, if it says something, tells what later steps can do."""
        self.bytes_left -= size_bytes
        self.best_bytes_per_s = max(self.best_bytes_per_s, bytes_per_s)

    def reason_to_skip(self, setting: Setting, size_bytes: int, now_s: float) -> str | None:
        """Why a step does not fit any more; None if it does."""
        left_s = self.until_s - now_s
        if size_bytes > self.bytes_left:
            return f"out of bytes: {human_bytes(max(0, self.bytes_left))} are left"
        if left_s < MIN_STEP_S:
            return f"out of time: {max(0.0, left_s):.1f} s are left"
        in_flight_bytes = min(size_bytes, setting.in_flight_bytes)
        if in_flight_bytes > left_s * self.best_bytes_per_s > 0:
            needed_s = in_flight_bytes / self.best_bytes_per_s
            return f"out of time: its first {human_bytes(in_flight_bytes)} alone would take about {needed_s:.0f} s"
        return None

    def share_s(self, steps_left: int, now_s: float) -> float:
        """The seconds that the next of so many steps may take."""
        left_s = self.until_s - now_s
        return min(left_s, max(MIN_STEP_S, left_s / steps_left))
