"""A model directory, read as the archive that it would be.

Opening it does all that can fail: the config is parsed, the rules of what to leave out are read, everything is walked, links are
resolved. What remains is a layout, of which any range can be read.
"""

from __future__ import annotations

import hashlib
import posixpath
import stat
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Literal

from aiobaseten._threads import Check, run_to_end
from aiobaseten.errors import ArchiveError, SourceChanged
from aiobaseten.sources.base import Ignored, ModelConfig, Source
from aiobaseten.sources.config import CONFIG_NAME, EXTERNAL_PACKAGE_DIRS, MAX_CONFIG_BYTES, ConfigFile, is_file_name, parse_config
from aiobaseten.sources.files import Stamp, kind_of, opened, read_small_file, read_unchanged, unreadable
from aiobaseten.sources.ignore import DEFAULTS, IGNORE_FILE_NAME, MAX_IGNORE_FILE_BYTES, IgnoreRules, parse_rules
from aiobaseten.sources.layout import Entry, FileEntry, TarLayout, TextEntry, directories_of, sort_key
from aiobaseten.sources.links import LinkKeeper
from aiobaseten.sources.walk import Root, Walk

BUNDLED_PACKAGES_DIR = "bundled_packages_dir"
DEFAULT_BUNDLED_PACKAGES_DIR = "packages"
MAX_TOLD = 10
LINK_HINT = 'A link is kept where it leads to something in the archive; symlinks="follow" archives what it leads to in its place.'

Symlinks = Literal["store", "follow"]


class DirectorySource(Source):
    """A model directory as a tar archive that is never written. Made by `open_directory`."""

    seekable = True

    def __init__(self, label: str, layout: TarLayout, config: ModelConfig, ignored: Iterable[Ignored]) -> None:
        self.label = label
        self.size_bytes = layout.size_bytes
        self.ignored = tuple(ignored)
        self._layout = layout
        self._config = config
        self._fingerprint = _fingerprint(layout.entries)

    async def read_into(self, offset: int, buffer: memoryview) -> int:
        return await run_to_end(lambda check: self._layout.read_into(offset, buffer, partial(_read_file, check)))

    async def read_config(self) -> ModelConfig:
        return self._config

    @property
    def fingerprint(self) -> str:
        return self._fingerprint


def open_directory(path: str, *, label: str, symlinks: Symlinks, check: Check) -> DirectorySource:
    """Lay out the archive of a model directory.

    :raises ArchiveError: where it cannot be archived as it is; one error for all that is wrong with its files
    :raises SourceChanged: where it changes meanwhile
    """
    root = Root(path=posixpath.abspath(path))
    config, stamp = _read_config(root.path, label)
    packages = _package_roots(config, root.path)
    walk = Walk(_read_rules(root.path), follow_links=symlinks == "follow", check=check)
    walk.add(root)
    if CONFIG_NAME in walk.ignored:
        rule = walk.ignored[CONFIG_NAME].rule
        raise ArchiveError(f"{label}: the rule {rule!r} leaves out {CONFIG_NAME}, which an archive must hold", path=config.label)
    for package in packages:
        walk.add(package)
    if packages:
        _note_collisions(walk)
    links = LinkKeeper(walk, [root, *packages]).keep() if walk.links else []
    if walk.problems:
        raise _refusal(label, walk)
    layout = TarLayout(_with_config([*walk.files, *links], config, stamp))
    return DirectorySource(label, layout, config.model_config, (walk.ignored[name] for name in sorted(walk.ignored, key=sort_key)))


def _read_config(root: str, label: str) -> tuple[ConfigFile, Stamp]:
    path = posixpath.join(root, CONFIG_NAME)
    try:
        content, stamp = read_small_file(path, MAX_CONFIG_BYTES)
    except FileNotFoundError as error:
        raise ArchiveError(f"{label} has no {CONFIG_NAME}, which a model directory must hold at its root", path=path) from error
    return parse_config(content, path), stamp


def _read_rules(root: str) -> IgnoreRules:
    path = posixpath.join(root, IGNORE_FILE_NAME)
    try:
        content, _ = read_small_file(path, MAX_IGNORE_FILE_BYTES)
    except FileNotFoundError:
        return DEFAULTS
    return parse_rules(content, path)


def _package_roots(config: ConfigFile, root: str) -> list[Root]:
    """The directories of external packages, and where in the archive their children go."""
    prefix = _bundled_prefix(config)
    roots = [Root(path=posixpath.join(root, path), prefix=prefix, is_package_dir=True) for path in config.external_package_dirs]
    for each in roots:
        named = f"{config.label}: {EXTERNAL_PACKAGE_DIRS} names {each.path!r}"
        try:
            mode = Path(each.path).stat().st_mode
        except OSError as error:
            raise ArchiveError(f"{named}, which cannot be opened: {error.strerror}", path=each.path) from error
        if not stat.S_ISDIR(mode):
            raise ArchiveError(f"{named}, which is {kind_of(mode)} and must be a directory", path=each.path)
    return roots


def _bundled_prefix(config: ConfigFile) -> str:
    directory: object = config.values.get(BUNDLED_PACKAGES_DIR, DEFAULT_BUNDLED_PACKAGES_DIR)
    if not isinstance(directory, str) or not is_file_name(directory):
        raise ArchiveError(
            f"{config.label}: {BUNDLED_PACKAGES_DIR} must be the path of a directory in the archive", path=config.label
        )
    inside = posixpath.normpath(directory)
    if inside.startswith("/") or inside.split("/")[0] == "..":
        raise ArchiveError(
            f"{config.label}: {BUNDLED_PACKAGES_DIR} must stay inside the archive, and {directory!r} does not", path=config.label
        )
    return "" if inside == "." else f"{inside}/"


def _note_collisions(walk: Walk) -> None:
    """Refuse two files for one path of the archive, and a file where another is in a directory."""
    found = [*((file.name, file.path) for file in walk.files), *((link.name, link.path) for link in walk.links)]
    paths: defaultdict[str, list[str]] = defaultdict(list)
    for name, path in found:
        paths[name].append(path)
    for name, same in paths.items():
        if len(same) > 1:
            walk.refuse(same[-1], name, f"is what {' and '.join(map(repr, same))} would both be in the archive")
        for directory in directories_of(name):
            if directory in paths:
                walk.refuse(
                    same[0], directory, f"is a file, {paths[directory][0]!r}, and the directory of {same[0]!r} in the archive"
                )


def _refusal(label: str, walk: Walk) -> ArchiveError:
    problems = sorted(walk.problems, key=lambda each: each[1].path)
    told = [f"\n  {problem}" for _, problem in problems[:MAX_TOLD]]
    if len(problems) > MAX_TOLD:
        told.append(f"\n  and {len(problems) - MAX_TOLD:,} more")
    links = {link.path for link in walk.links}
    if any(path in links for path, _ in problems):
        told.append(f"\n{LINK_HINT}")
    return ArchiveError(
        f"{label} cannot be archived as it is:{''.join(told)}", path=problems[0][0], problems=[problem for _, problem in problems]
    )


def _with_config(entries: list[Entry], config: ConfigFile, stamp: Stamp) -> list[Entry]:
    """Make sure that the archive holds the config that was read, less what it must not name."""
    if EXTERNAL_PACKAGE_DIRS in config.values:
        changed = TextEntry(name=CONFIG_NAME, content=config.dump_without_external_packages())
        return [changed, *(entry for entry in entries if entry.name != CONFIG_NAME)]
    found = [entry for entry in entries if entry.name == CONFIG_NAME]
    if not found or (isinstance(found[0], FileEntry) and found[0].stamp != stamp):
        raise SourceChanged(f"{config.label!r} changed while its directory was being read", path=config.label)
    return entries


def _read_file(check: Check, entry: FileEntry, offset: int, buffer: memoryview) -> None:
    try:
        with opened(entry.path, follow=entry.through_link) as descriptor:
            read_unchanged(descriptor, offset, buffer, entry.stamp, entry.path, check)
    except OSError as error:
        raise unreadable(entry.path, error) from error


def _fingerprint(entries: Iterable[Entry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.name}\0{_facts_of(entry)}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _facts_of(entry: Entry) -> str:
    if isinstance(entry, FileEntry):
        return f"{entry.size_bytes} {entry.stamp.mtime_ns} {entry.executable}"
    if isinstance(entry, TextEntry):
        return hashlib.sha256(entry.content).hexdigest()
    return f"-> {entry.target}"
