"""Finds the sources that a manifest names, opens each once, and tells what is wrong with them and with what they are pushed to."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import anyio
import attrs

from aiobaseten._threads import Check, run_to_end
from aiobaseten.bulk.manifest_shape import Defaults, Mistakes, ModelShape, add_broken_rules
from aiobaseten.errors import InvalidPush
from aiobaseten.sources import model_name_in, open_source
from aiobaseten.sources.config import CONFIG_NAME
from aiobaseten.sources.walk import leads_to_directory

ARCHIVE_ENDINGS = (".tar", ".tgz", ".tar.gz")
MAX_OPEN = 8


@attrs.define(kw_only=True, eq=False)
class Candidate:
    """A source that a model of the manifest names, and what came out when it was checked.

    :param written: its path as the manifest has it; of a glob, the match
    :param path: the same, absolute
    :ivar size_bytes: of the archive; None where that is not known
    :ivar name: of the model, if it has one
    """

    shape: ModelShape
    written: str
    path: str
    size_bytes: int | None = None
    name: str | None = None


@attrs.frozen(kw_only=True)
class _Opened:
    """What was found in a source.

    :param refusal: why it cannot be used at all
    :param config: its parsed config; None where it has none that can be used, which `config_refusal` explains
    """

    refusal: InvalidPush | None = None
    size_bytes: int | None = None
    config: Mapping[str, Any] | None = None
    config_refusal: InvalidPush | None = None


def find_candidates(shapes: Iterable[ModelShape], directory: str, mistakes: Mistakes, check: Check) -> list[Candidate]:
    """The sources of all models.

    :param directory: of the manifest
    """
    candidates: list[Candidate] = []
    for shape in shapes:
        check()
        if shape.place == "path":
            candidates.append(_candidate(shape, shape.own["path"], directory))
        elif shape.place == "glob":
            candidates += [_candidate(shape, match, directory) for match in _matches(shape, directory, mistakes, check)]
    return candidates


def _candidate(shape: ModelShape, written: str, directory: str) -> Candidate:
    return Candidate(shape=shape, written=written, path=os.path.abspath(_below(directory, written)))  # noqa: PTH100 - keeps links


def _below(directory: str, written: str) -> str:
    return os.path.join(directory, os.path.expanduser(written))  # noqa: PTH111, PTH118 - a Path would lose a file's trailing slash


def _matches(shape: ModelShape, directory: str, mistakes: Mistakes, check: Check) -> list[str]:
    """The model directories and archive files that a glob matches, sorted."""
    pattern: str = shape.own["glob"]
    home = os.path.expanduser(pattern)  # noqa: PTH111 - a Path would normalize the pattern
    if home != pattern:
        # Only what the user wrote is a pattern, not the name of the home directory.
        rest = pattern.partition("/")[2]
        home = os.path.join(glob.escape(home[: len(home) - len(rest)]), rest)  # noqa: PTH118
    found = {os.path.normpath(match) for match in _expand(home, directory, check)}
    matches = sorted(match for match in found if _is_source(_below(directory, match)))
    at = shape.path_of("glob")
    if not found:
        mistakes.add(at, f"matches nothing: {pattern!r}")
    elif not matches:
        mistakes.add(
            at,
            f"matches {len(found):,}, none of them a directory that holds a {CONFIG_NAME} or an archive file: {pattern!r}",
        )
    elif len(matches) > 1 and shape.own.get("name") is not None:
        mistakes.add(
            shape.path_of("name"),
            f"names one model, and the glob matches {len(matches):,}; leave it out: each has model_name in its {CONFIG_NAME}",
        )
    return matches


def _expand(pattern: str, directory: str, check: Check) -> set[str]:
    """What a pattern matches, as the glob module finds it; but each directory is looked at once, and ``**`` goes through no links:
    two of them that lead upwards would be without end.
    """
    found = {"/"} if pattern.startswith("/") else {""}
    parts = [part for part in pattern.split("/") if part]
    if pattern.endswith("/"):
        parts.append("")
    left = len(parts)
    for is_any_depth, same in groupby(parts, "**".__eq__):
        piece = list(same)
        left -= len(piece)
        if is_any_depth:
            found = {match for base in found for match in _at_any_depth(base, directory, check, with_files=left == 0)}
        elif piece != [""]:  # as of "models/**/"
            found = {match for base in found for match in _directly(base, "/".join(piece), directory, check)}
    return found - {""}


def _directly(base: str, pattern: str, directory: str, check: Check) -> Iterator[str]:
    check()
    for match in glob.iglob(pattern, root_dir=_join(directory, base)):  # noqa: PTH207 - a Path has other patterns
        yield _join(base, match)


def _at_any_depth(base: str, directory: str, check: Check, *, with_files: bool) -> Iterator[str]:
    if not os.path.isdir(_join(directory, base) or "."):  # noqa: PTH112 - "" is the directory itself
        return
    yield base
    pending = [base]
    while pending:
        check()
        at = pending.pop()
        with suppress(OSError), os.scandir(_join(directory, at) or ".") as listing:
            for entry in listing:
                is_directory = leads_to_directory(entry)
                if not entry.name.startswith(".") and (is_directory or with_files):
                    yield _join(at, entry.name)
                    if is_directory and not entry.is_symlink():
                        pending.append(_join(at, entry.name))


def _join(directory: str, name: str) -> str:
    return os.path.join(directory, name)  # noqa: PTH118 - "" stays ""


def _is_source(path: str) -> bool:
    candidate = Path(path)
    return (path.endswith(ARCHIVE_ENDINGS) and candidate.is_file()) or (candidate / CONFIG_NAME).is_file()


async def check_candidates(candidates: Iterable[Candidate], defaults: Defaults, mistakes: Mistakes) -> None:
    """Open every source, a few at once, and check each push that it would make."""
    waiting = iter(await run_to_end(partial(_by_source, candidates)))

    async def work() -> None:
        for same in waiting:
            opened = await _open(same[0], needs_config=any(each.shape.settings.config is None for each in same))
            await run_to_end(partial(_check_all, same, opened, defaults, mistakes))

    async with anyio.create_task_group() as tasks:
        for _ in range(MAX_OPEN):
            tasks.start_soon(work)


def _by_source(candidates: Iterable[Candidate], check: Check) -> Iterable[list[Candidate]]:
    by_source: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        check()
        by_source.setdefault((candidate.path, candidate.shape.settings.symlinks), []).append(candidate)
    return by_source.values()


def _check_all(same: Iterable[Candidate], opened: _Opened, defaults: Defaults, mistakes: Mistakes, check: Check) -> None:
    for candidate in same:
        check()
        _check(candidate, opened, defaults, mistakes)


async def _open(candidate: Candidate, *, needs_config: bool) -> _Opened:
    try:
        source = await open_source(candidate.path, symlinks=candidate.shape.settings.symlinks)
    except InvalidPush as refusal:
        return _Opened(refusal=refusal)
    async with source:
        config, config_refusal = None, None
        if needs_config:
            try:
                config = (await source.read_config()).config
            except InvalidPush as error:
                config_refusal = error
        return _Opened(size_bytes=source.size_bytes, config=config, config_refusal=config_refusal)


def _check(candidate: Candidate, opened: _Opened, defaults: Defaults, mistakes: Mistakes) -> None:
    shape, settings = candidate.shape, candidate.shape.settings
    at = shape.path_of(shape.place or "path")
    source = repr(candidate.written)
    config = opened.config if settings.config is None else settings.config
    refusal = opened.refusal or (opened.config_refusal if settings.config is None else None)
    for rule in _told(refusal, source):
        mistakes.add(at, rule)
    candidate.size_bytes = opened.size_bytes
    candidate.name = settings.name
    if settings.name is None and settings.model_id is None:
        candidate.name = model_name_in(config)
        if candidate.name is None and refusal is None:
            mistakes.add(
                ("models", shape.index),
                f"no name is known for the model in {source}: set name or model_id, or model_name in its {CONFIG_NAME}",
            )
    add_broken_rules(shape, config, defaults, mistakes, source=source)


def _told(refusal: InvalidPush | None, source: str) -> Iterator[str]:
    """Each reason on a line of its own."""
    if refusal is None:
        return
    reasons = [f"{source}: {problem}" for problem in refusal.problems] or [str(refusal)]
    for reason in reasons:
        yield "; ".join(line.strip() for line in reason.splitlines())


def check_targets(candidates: Iterable[Candidate], mistakes: Mistakes, check: Check) -> None:
    """Tell of two pushes of one source to one place, and of two deployments of one model with the same name."""
    pushed: dict[tuple[str | None, ...], Candidate] = {}
    named: dict[tuple[str | None, ...], Candidate] = {}
    for candidate in candidates:
        check()
        shape, settings = candidate.shape, candidate.shape.settings
        if not shape.is_whole:
            continue
        model = _model(candidate)
        deployment = settings.deployment_name or None
        target = (os.path.realpath(candidate.path), *model, settings.environment_name, deployment)
        first = pushed.setdefault(target, candidate)
        if first is not candidate:
            mistakes.add(
                shape.path_of(shape.place or "path"),
                f"{candidate.written!r} goes to the same place as {_who(first, mistakes)} already does",
            )
        elif (
            deployment is not None
            and None not in model[:2]
            and (first := named.setdefault((*model, deployment), candidate)) is not candidate
        ):
            mistakes.add(
                shape.path_of("deployment_name"),
                f"{deployment!r} is already the deployment of {_who(first, mistakes)}, to the same model",
            )


def _model(candidate: Candidate) -> tuple[str | None, ...]:
    """What tells one model from another."""
    settings = candidate.shape.settings
    if settings.model_id is not None:
        return ("model_id", settings.model_id, None, None)
    return ("name", candidate.name, settings.team, settings.team_id)


def _who(candidate: Candidate, mistakes: Mistakes) -> str:
    line = mistakes.lines.of(("models", candidate.shape.index))
    place = f"$.models[{candidate.shape.index}]" + ("" if line is None else f" (line {line})")
    return f"{candidate.written!r} of {place}"
