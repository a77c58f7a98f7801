"""A manifest: one file that names the pushes of a run, by the hundred or the thousand.

It is checked whole before anything is sent: its text (`manifest_text`), its fields (`manifest_shape`), and every source that it
names (`manifest_sources`). All mistakes are told at once, each with file, line and field.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import attrs

from aiobaseten._threads import Check, run_to_end
from aiobaseten.bulk.manifest_shape import Defaults, Mistakes, ModelShape, add_broken_rules, read_shape
from aiobaseten.bulk.manifest_sources import Candidate, check_candidates, check_targets, find_candidates
from aiobaseten.bulk.manifest_text import MAX_MANIFEST_BYTES, READERS, reader_for
from aiobaseten.errors import ConfigurationError, InvalidPush, Problem
from aiobaseten.models import DeploymentArchivePayload
from aiobaseten.push import Push
from aiobaseten.sources.config import is_file_name
from aiobaseten.sources.files import printable, read_small_file
from aiobaseten.sources.safe_yaml import UnreadableText

SCHEMA_NAME = "manifest.schema.json"
MAX_TOLD = 100


@attrs.frozen(kw_only=True)
class ManifestEntry:
    """One push of a manifest.

    :param push: with an absolute path, and the name that its config.yaml gives it, unless it goes to a `model_id`
    :param written: the path as the manifest has it; of a glob, the match
    :param team: the name of a team whose id `push` still needs; None where it needs none
    :param line: where its model begins in the file
    :param size_bytes: of the archive, as it was when it was checked; None where that is not known
    :param team_place: file, line and field of `team`
    """

    push: Push
    written: str
    team: str | None = None
    line: int | None = None
    size_bytes: int | None = None
    team_place: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class Manifest:
    """The pushes of a manifest, in its order; those of a glob sorted by path."""

    path: Path
    entries: tuple[ManifestEntry, ...] = attrs.field(repr=lambda entries: f"<{len(entries)} entries>")

    def select(self, patterns: Sequence[str] = (), *, limit: int | None = None) -> Manifest:
        """The same manifest with some of its pushes.

        :param patterns: with ``*``, ``?`` and ``[abc]``, for the model's name or the path as the manifest has it; left out, all
        :param limit: how many pushes to keep, the first ones
        :raises InvalidPush: for each pattern that matches nothing
        :raises ConfigurationError: where `limit` is not a whole number of at least 1
        """
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ConfigurationError(f"limit must be a whole number of at least 1, not {limit!r}")
        chosen: set[int] = set(range(len(self.entries))) if not patterns else set()
        problems: list[Problem] = []
        for pattern in patterns:
            matches = re.compile(fnmatch.translate(pattern)).match
            found = {
                index
                for index, entry in enumerate(self.entries)
                if matches(entry.written) or (entry.push.name is not None and matches(entry.push.name))
            }
            if not found:
                problems.append(Problem(self._label, f"no model's name or path matches {pattern!r}"))
            chosen |= found
        if problems:
            raise InvalidPush(problems=problems)
        return attrs.evolve(self, entries=tuple(self.entries[index] for index in sorted(chosen)[:limit]))

    async def with_teams(self, find_team: Callable[[str], Awaitable[str | None]]) -> Manifest:
        """The same manifest with the ids of all teams in its pushes.

        :param find_team: gives the id of the team of a name, and is asked once for each; None where there is none
        :raises InvalidPush: with every place that names a team that there is not
        """
        ids: dict[str, str | None] = {}
        for entry in self.entries:
            if entry.team is not None and entry.team not in ids:
                ids[entry.team] = await find_team(entry.team)
        problems = {
            Problem(entry.team_place or self._label, f"there is no team named {entry.team!r}"): None
            for entry in self.entries
            if entry.team is not None and ids[entry.team] is None
        }
        entries = tuple(_with_team(entry, ids) for entry in self.entries)
        if not problems:
            problems = dict.fromkeys(_same_targets(self.entries, entries))
        if problems:
            raise _refusal(self._label, list(problems))
        return attrs.evolve(self, entries=entries)

    @property
    def _label(self) -> str:
        return printable(str(self.path))


def _with_team(entry: ManifestEntry, ids: Mapping[str, str | None]) -> ManifestEntry:
    if entry.team is None:
        return entry
    return attrs.evolve(entry, push=attrs.evolve(entry.push, team_id=ids[entry.team]), team=None, team_place=None)


def _same_targets(entries: Sequence[ManifestEntry], resolved: Sequence[ManifestEntry]) -> Iterator[Problem]:
    """What loading could not see: one team by its name here and by its id there, and otherwise the same push."""
    firsts: dict[tuple[object, ...], ManifestEntry] = {}
    for entry, push in zip(entries, (entry.push for entry in resolved), strict=True):
        deployment = push.deployment or DeploymentArchivePayload()
        target = (push.name, push.model_id, push.team_id, deployment.environment_name, deployment.deployment_name or None)
        first = firsts.setdefault((push.source, *target), entry)
        if first is not entry:
            what = f"{entry.written!r} goes to the same place twice: lines {first.line} and {entry.line} mean the same team"
            yield Problem(entry.team_place or first.team_place or "$", what)


async def load_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a manifest, and check all that it names: nothing is sent, and no bytes of archives are read but their configs.

    YAML, TOML or JSON, by the file's ending. Paths are relative to the manifest's directory.

    :raises InvalidPush: with one problem per mistake, whose path is like ``deploy.yaml:12: $.models[3].labels``
    """
    given = os.fsdecode(path)
    mistakes = Mistakes(printable(given))
    defaults, shapes, candidates = await run_to_end(lambda check: _read(given, mistakes, check))
    await check_candidates(candidates, defaults, mistakes)
    entries = await run_to_end(lambda check: tuple(_finish(defaults, shapes, candidates, mistakes, check)))
    if problems := mistakes.in_order():
        raise _refusal(mistakes.label, problems)
    return Manifest(path=Path(given), entries=entries)


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a manifest, for editors and other tools. What needs the disk, only `load_manifest` finds."""
    schema: dict[str, Any] = json.loads(resources.files("aiobaseten.bulk").joinpath(SCHEMA_NAME).read_text(encoding="utf-8"))
    return schema


def _read(path: str, mistakes: Mistakes, check: Check) -> tuple[Defaults, list[ModelShape], list[Candidate]]:
    """All that can be found out before sources are opened."""
    reader = reader_for(path)
    if reader is None:
        mistakes.add_at_line(None, f"a manifest's name must end in {', '.join(READERS)}")
        return Defaults(), [], []
    if not is_file_name(path):
        mistakes.add_at_line(None, "cannot be the name of a file")
        return Defaults(), [], []
    try:
        content, _ = read_small_file(path, MAX_MANIFEST_BYTES)
        text = reader(content)
    except FileNotFoundError:
        mistakes.add_at_line(None, "does not exist")
    except InvalidPush as error:
        mistakes.add_at_line(None, str(error))
    except UnreadableText as error:
        column = "" if error.column is None else f"column {error.column}: "
        at = "" if error.shown is None else f" ({error.shown})"
        mistakes.add_at_line(error.line, f"{column}{error.problem}{at}")
    else:
        mistakes.lines = text.lines
        defaults, shapes = read_shape(text, mistakes)
        return defaults, shapes, find_candidates(shapes, os.path.dirname(path), mistakes, check)  # noqa: PTH120 - "" stays ""
    return Defaults(), [], []


def _finish(
    defaults: Defaults, shapes: Sequence[ModelShape], candidates: Sequence[Candidate], mistakes: Mistakes, check: Check
) -> Iterator[ManifestEntry]:
    """What concerns all pushes together, and the settings of models without any source; then the entries."""
    check_targets(candidates, mistakes, check)
    with_source = {candidate.shape.index for candidate in candidates}
    for shape in shapes:
        if shape.index not in with_source:
            add_broken_rules(shape, None, defaults, mistakes, source="")
    for candidate in candidates:
        yield _entry(candidate, mistakes)


def _entry(candidate: Candidate, mistakes: Mistakes) -> ManifestEntry:
    shape, settings = candidate.shape, candidate.shape.settings
    push = Push(
        candidate.path,
        name=candidate.name,
        model_id=settings.model_id,
        team_id=settings.team_id,
        deployment=shape.deployment,
        existing=settings.existing,
        disable_archive_download=settings.disable_archive_download,
        symlinks=settings.symlinks,
    )
    has_team = settings.team is not None
    return ManifestEntry(
        push=push,
        written=candidate.written,
        team=settings.team,
        line=mistakes.lines.of(("models", shape.index)),
        size_bytes=candidate.size_bytes,
        team_place=mistakes.where(("models", shape.index, "team") if "team" in shape.own else ("defaults", "team"))
        if has_team
        else None,
    )


def _refusal(label: str, problems: Sequence[Problem]) -> InvalidPush:
    count = "a mistake" if len(problems) == 1 else f"{len(problems):,} mistakes"
    told = [f"{label} has {count}; nothing was sent", *map(str, problems[:MAX_TOLD])]
    if len(problems) > MAX_TOLD:
        told.append(f"... and {len(problems) - MAX_TOLD:,} more")
    return InvalidPush("\n".join(told), problems=problems)
