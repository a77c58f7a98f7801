"""What the bench found: a table and advice for people, raw numbers for programs. Pure."""

from __future__ import annotations

from typing import Any, Literal

import attrs
from rich.table import Table

from aiobaseten.cli.bench_plan import WARM_UP_BYTES, Plan, Setting
from aiobaseten.cli.outcome import error_as_json, human_bytes
from aiobaseten.errors import BasetenError
from aiobaseten.options import MiB
from aiobaseten.upload import UploadRehearsal

AS_GOOD = 0.9
"""`auto` is as good as a fixed setting from this share of its rate on: two runs of one setting may differ as much."""


@attrs.frozen(kw_only=True)
class Step:
    """What became of one setting: measured, or skipped for a reason."""

    setting: Setting
    rehearsal: UploadRehearsal | None = None
    skipped: str | None = None

    @property
    def bytes_per_s(self) -> float:
        return self.rehearsal.bytes_per_s if self.rehearsal else 0.0

    def __str__(self) -> str:
        done = self.rehearsal
        if done is None:
            return f"{self.setting}: skipped: {self.skipped}"
        taken = f"{human_bytes(done.size_bytes)} in {done.parts} {'part' if done.parts == 1 else 'parts'}, {done.duration_s:.1f} s"
        return f"{self.setting}: {done.bytes_per_s / MiB:.1f} MiB/s ({taken})"


@attrs.define(kw_only=True)
class Report:
    """A sweep as far as it got.

    :param size_bytes: of the archive that every step sends
    :param sent_bytes: what the store took, the warm-up included
    """

    plan: Plan
    size_bytes: int
    sent_bytes: int = 0
    steps: list[Step] = attrs.field(factory=list[Step])
    ended: Literal["running", "complete", "failed", "interrupted"] = "running"
    error: BasetenError | None = None

    @property
    def at_most_bytes(self) -> int:
        """What the whole sweep may send."""
        return min(self.plan.max_bytes, WARM_UP_BYTES + self.size_bytes * len(self.plan.settings))

    @property
    def best(self) -> Step | None:
        return max(self._measured, key=lambda step: step.bytes_per_s, default=None)

    @property
    def _measured(self) -> list[Step]:
        return [step for step in self.steps if step.rehearsal is not None]

    def advice(self) -> str:
        """What to do about it, in one sentence."""
        auto = next((step for step in self._measured if step.setting == Setting()), None)
        fixed = max((step for step in self._measured if step is not auto), key=lambda step: step.bytes_per_s, default=None)
        if fixed is None:
            if auto is None:
                return "Nothing was measured."
            return f"`auto` gave {auto.bytes_per_s / MiB:.1f} MiB/s; there is no fixed setting to compare it with."
        if auto is None:
            return f"The best of these was {fixed.setting}: push with {fixed.setting.arguments}."
        share = auto.bytes_per_s / fixed.bytes_per_s
        gave = f"`auto` gave {100 * share:.0f} % of the best fixed setting ({fixed.setting})"
        return f"{gave}: leave the settings out." if share >= AS_GOOD else f"{gave}: push with {fixed.setting.arguments}."

    def table(self) -> Table:
        """The same for people."""
        where = "to the local stack" if self.plan.to == "local" else "to Baseten's store"
        table = Table(title=f"Upload throughput {where}", caption=self.advice(), caption_justify="left", caption_style="")
        for heading in ("connections", "part size", "MiB/s", "parts", "seconds", "share of the best"):
            table.add_column(heading, justify="right")
        table.add_column("")
        for step in self.steps:
            table.add_row(
                "auto" if step.setting.connections is None else str(step.setting.connections),
                "auto" if step.setting.part_size_bytes is None else f"{step.setting.part_size_bytes // MiB} MiB",
                *self._cells(step),
                style="dim" if step.rehearsal is None else "bold" if step is self.best else None,
            )
        return table

    def _cells(self, step: Step) -> tuple[str, ...]:
        done, best = step.rehearsal, self.best
        if done is None or best is None:
            return ("-", "-", "-", "-", f"skipped: {step.skipped}")
        share = f"{100 * done.bytes_per_s / best.bytes_per_s:.0f} %"
        return (f"{done.bytes_per_s / MiB:.1f}", str(done.parts), f"{done.duration_s:.2f}", share, "best" if step is best else "")

    def as_json(self) -> dict[str, Any]:
        """The same for programs: raw numbers, what is not known is null."""
        return {
            "to": self.plan.to,
            "source": self.plan.path,
            "source_size_bytes": self.size_bytes,
            "max_s": self.plan.max_s,
            "max_bytes": self.plan.max_bytes,
            "sent_bytes": self.sent_bytes,
            "ended": self.ended,
            "steps": [self._step_as_json(step) for step in self.steps],
            "advice": self.advice(),
            "error": None if self.error is None else error_as_json(self.error),
        }

    def _step_as_json(self, step: Step) -> dict[str, Any]:
        done, best = step.rehearsal, self.best
        return {
            "max_connections": step.setting.connections,
            "part_size_bytes": step.setting.part_size_bytes,
            "memory_budget_bytes": step.setting.options.memory_budget_bytes,
            "bytes_per_s": done and done.bytes_per_s,
            "size_bytes": done and done.size_bytes,
            "parts": done and done.parts,
            "duration_s": done and done.duration_s,
            "share_of_best": done.bytes_per_s / best.bytes_per_s if done and best else None,
            "is_best": step is best,
            "skipped": step.skipped,
        }
