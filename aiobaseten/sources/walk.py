"""Walks a model directory, and the directories of external packages, for what belongs into the archive.

Nothing is read but names, types, sizes and times. Each file is opened once, so that one that cannot be read is named before
anything is sent. All that is wrong is collected, not only the first of it.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

import attrs

from aiobaseten._threads import Check
from aiobaseten.errors import ArchiveError, Problem, SourceChanged
from aiobaseten.sources.base import Ignored
from aiobaseten.sources.files import Stamp, kind_of, opened, printable, unreadable
from aiobaseten.sources.ignore import DEFAULTS, IgnoreRules
from aiobaseten.sources.layout import FileEntry, directories_of

MAX_ENTRIES = 1_000_000
MAX_COUNTED = 100_000
MAX_FOLLOWED = 10_000

Identity = tuple[int, int]
"""Device and inode: what tells one directory from another."""


@attrs.frozen(kw_only=True)
class Root:
    """A directory whose children belong into the archive.

    :param path: absolute
    :param prefix: of its children's names in the archive: empty, or ending with ``/``
    :param is_package_dir: whether it holds external packages. To each of them the default rules apply too, from its own root on
    """

    path: str
    prefix: str = ""
    is_package_dir: bool = False


@attrs.frozen(kw_only=True)
class FoundLink:
    """A symbolic link that was found in `root`, to be archived as `name`."""

    name: str
    path: str
    root: Root


@attrs.frozen(kw_only=True)
class _Filter:
    """Rules for paths that begin `skip` characters into a name."""

    rules: IgnoreRules
    skip: int = 0


@attrs.frozen(kw_only=True)
class _Directory:
    path: str
    prefix: str
    root: Root
    filters: tuple[_Filter, ...]
    identity: Identity | None = None
    parent: _Directory | None = None

    def is_within(self, identity: Identity) -> bool:
        directory: _Directory | None = self
        while directory is not None:
            if directory.identity == identity:
                return True
            directory = directory.parent
        return False


class Walk:
    """What one or more directories hold.

    :ivar files: regular files, and what links point to where links are followed
    :ivar links: where links are kept
    :ivar ignored: by name in the archive
    :ivar problems: what cannot be archived: the file's path, and what is wrong with it
    """

    def __init__(self, rules: IgnoreRules, *, follow_links: bool, check: Check) -> None:
        self.files: list[FileEntry] = []
        self.links: list[FoundLink] = []
        self.ignored: dict[str, Ignored] = {}
        self.problems: list[tuple[str, Problem]] = []
        self._rules = rules
        self._follow_links = follow_links
        self._check = check
        self._pending: list[_Directory] = []
        self._left_to_count = MAX_COUNTED
        self._links_to_follow = MAX_FOLLOWED

    def add(self, root: Root) -> None:
        """Walk a directory.

        :raises SourceChanged: where something vanishes meanwhile
        :raises ArchiveError: where there is more than an archive should hold
        """
        filters = (_Filter(rules=self._rules),)
        for parent in directories_of(root.prefix):
            if found := _match(filters, parent, is_directory=True):
                self._leave_out(root.prefix[:-1], found, self._count(root.path), is_directory=True)
                return
        try:
            identity = _identity_of(Path(root.path).stat()) if self._follow_links else None
        except OSError as error:
            self._failed(root.path, root.prefix or "./", error)
        else:
            self._pending.append(_Directory(path=root.path, prefix=root.prefix, root=root, filters=filters, identity=identity))
        while self._pending:
            self._list(self._pending.pop())

    def _list(self, directory: _Directory) -> None:
        try:
            with os.scandir(directory.path) as listing:
                self._refuse_replaced(directory)
                for entry in listing:
                    self._check()
                    self._take(entry, directory)
        except OSError as error:
            self._failed(directory.path, directory.prefix or "./", error)

    def _refuse_replaced(self, directory: _Directory) -> None:
        """A directory that has become a link since its name was seen would lead anywhere."""
        is_found = directory.parent is not None and not self._follow_links
        if is_found and not stat.S_ISDIR(Path(directory.path).lstat().st_mode):
            raise SourceChanged(f"{directory.path!r} was replaced by a link since the push began", path=directory.path)

    def _take(self, entry: os.DirEntry[str], directory: _Directory) -> None:
        try:
            self._add_entry(entry, directory)
        except OSError as error:
            self._failed(entry.path, directory.prefix + entry.name, error)
        if len(self.files) + len(self.links) + len(self.problems) > MAX_ENTRIES:
            raise ArchiveError(f"{directory.root.path!r} holds more than {MAX_ENTRIES:,} files", path=directory.root.path)

    def _add_entry(self, entry: os.DirEntry[str], directory: _Directory) -> None:
        name = directory.prefix + entry.name
        is_link = entry.is_symlink()
        is_directory = leads_to_directory(entry)
        if found := _match(directory.filters, name, is_directory=is_directory):
            is_directory = is_directory and not is_link
            count = self._count(entry.path) if is_directory else _count_one(entry)
            self._leave_out(name, found, count, is_directory=is_directory)
        elif is_link and self._follow_links:
            self._follow(entry, name, directory)
        elif is_link:
            self.links.append(FoundLink(name=name, path=entry.path, root=directory.root))
        elif is_directory:
            self._descend(entry, name, directory)
        elif entry.is_file(follow_symlinks=False):
            self._add_file(entry.path, name)
        else:
            self._refuse_kind(entry.path, name, entry.stat(follow_symlinks=False).st_mode)

    def _follow(self, entry: os.DirEntry[str], name: str, directory: _Directory) -> None:
        try:
            _, status = follow_link(entry.path)
        except BrokenLink as broken:
            self.refuse(entry.path, name, broken.reason)
            return
        if stat.S_ISDIR(status.st_mode):
            if directory.is_within(_identity_of(status)):
                self.refuse(entry.path, name, f"leads to {link_text(entry.path)!r}, which it is in itself: a loop")
            else:
                self._count_link(directory)
                self._descend(entry, name, directory)
        elif stat.S_ISREG(status.st_mode):
            self._add_file(entry.path, name, through_link=True)
        else:
            self._refuse_kind(entry.path, name, status.st_mode)

    def _count_link(self, directory: _Directory) -> None:
        """Forty directories, each with two links to the next, are no loop, and without end all the same."""
        self._links_to_follow -= 1
        if self._links_to_follow < 0:
            raise ArchiveError(
                f"{directory.root.path!r} leads through more than {MAX_FOLLOWED:,} links to directories", path=directory.root.path
            )

    def _descend(self, entry: os.DirEntry[str], name: str, directory: _Directory) -> None:
        filters = directory.filters
        if directory.root.is_package_dir and directory.prefix == directory.root.prefix:
            filters = (*filters, _Filter(rules=DEFAULTS, skip=len(name) + 1))
        identity = _identity_of(entry.stat()) if self._follow_links else None
        self._pending.append(
            _Directory(
                path=entry.path, prefix=f"{name}/", root=directory.root, filters=filters, identity=identity, parent=directory
            )
        )

    def _add_file(self, path: str, name: str, *, through_link: bool = False) -> None:
        with opened(path, follow=through_link) as descriptor:
            status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            self._refuse_kind(path, name, status.st_mode)
            return
        executable = bool(status.st_mode & stat.S_IXUSR)
        self.files.append(FileEntry(name=name, path=path, stamp=Stamp.of(status), executable=executable, through_link=through_link))

    def refuse(self, path: str, name: str, rule: str) -> None:
        """Note that a file cannot be archived."""
        self.problems.append((path, Problem(printable(name), rule)))

    def _refuse_kind(self, path: str, name: str, mode: int) -> None:
        self.refuse(path, name, f"is {kind_of(mode)}; an archive holds regular files and links only")

    def _failed(self, path: str, name: str, error: OSError) -> None:
        failure = unreadable(path, error)
        if isinstance(failure, SourceChanged):
            raise failure from error
        self.refuse(path, name, f"cannot be read: {error.strerror}")

    def _leave_out(self, name: str, found: _Found, count: _Count, *, is_directory: bool) -> None:
        same = self.ignored.get(name)  # Of another root.
        self.ignored[name] = Ignored(
            path=printable(name) + "/" * is_directory,
            rule=found.line,
            is_default=found.is_default,
            files=count.files + (same.files if same else 0),
            size_bytes=count.size_bytes + (same.size_bytes if same else 0),
        )

    def _count(self, path: str) -> _Count:
        """What a directory holds, as far as that is quickly found."""
        files = size_bytes = 0
        pending = [path]
        while pending and self._left_to_count > 0:
            self._check()
            with suppress(OSError), os.scandir(pending.pop()) as listing:
                for entry in listing:
                    self._left_to_count -= 1
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        one = _count_one(entry)
                        files += one.files
                        size_bytes += one.size_bytes
        return _Count(files, size_bytes)


class BrokenLink(Exception):
    """A symbolic link that leads nowhere. `reason` says how."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def link_text(path: str) -> str:
    return os.readlink(path)  # noqa: PTH115 - a Path would tidy the text up


def follow_link(path: str) -> tuple[str, os.stat_result]:
    """Where a link leads in the end, without any link on the way, and what is there.

    :raises BrokenLink: where it leads nowhere
    """
    target = link_text(path)
    try:
        real_path = os.path.realpath(path, strict=True)
        return real_path, Path(path).stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BrokenLink(f"leads to {target!r}, and from there to itself: a loop of links") from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise BrokenLink(f"leads to {target!r}, but there is no {error.filename!r}") from error
        raise BrokenLink(f"leads to {target!r}, which cannot be reached: {error.strerror}") from error


@attrs.frozen
class _Count:
    files: int
    size_bytes: int


@attrs.frozen
class _Found:
    line: str
    is_default: bool


def _count_one(entry: os.DirEntry[str]) -> _Count:
    return _Count(1, entry.stat().st_size if entry.is_file(follow_symlinks=False) else 0)


def _match(filters: tuple[_Filter, ...], name: str, *, is_directory: bool) -> _Found | None:
    for each in filters:
        line = each.rules.match(name[each.skip :], is_directory=is_directory)
        if line is not None:
            return _Found(line, each.rules.is_default)
    return None


def leads_to_directory(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a directory or a link to one: rules for directories are for both, as with Truss."""
    with suppress(OSError):
        return entry.is_dir()
    return False


def _identity_of(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino
