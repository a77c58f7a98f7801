"""Symbolic links that an archive keeps: each must lead, inside the archive, to what it leads to on disk.

A link whose own text does that is kept as it is. One that gets there by another way, such as an absolute path, gets the relative
text for it. One whose target is not in the archive cannot be kept.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator

from aiobaseten.sources.layout import LinkEntry, directories_of
from aiobaseten.sources.walk import BrokenLink, FoundLink, Root, Walk, follow_link, link_text


class LinkKeeper:
    """Finds out what each link of a walk is in the archive.

    :param roots: all that the walk went through
    """

    def __init__(self, walk: Walk, roots: list[Root]) -> None:
        self._walk = walk
        self._roots = [(root, posixpath.join(os.path.realpath(root.path), "")) for root in roots]
        names = [*(file.name for file in walk.files), *(link.name for link in walk.links)]
        self._files = {file.name for file in walk.files}
        self._directories = {directory for name in names for directory in directories_of(name)} | {""}
        self._targets: dict[str, str] = {}

    def keep(self) -> list[LinkEntry]:
        """The links as entries; those that cannot be kept become problems of the walk."""
        kept = [link for link in self._walk.links if self._resolve(link)]
        return [LinkEntry(name=link.name, target=self._text_of(link)) for link in kept]

    def _resolve(self, link: FoundLink) -> bool:
        """Note which name in the archive a link leads to, or why none."""
        try:
            real_path, status = follow_link(link.path)
        except BrokenLink as broken:
            self._walk.refuse(link.path, link.name, broken.reason)
            return False
        names = list(self._names_of(real_path, link.root))
        for name in names:
            if name in self._files or name in self._directories:
                self._targets[link.name] = name
                return True
        if not names:
            reason = f"leads outside the model directory, to {real_path!r}"
        else:
            reason = f"leads to {names[0]!r}, which {self._why_absent(names[0], status)}"
        self._walk.refuse(link.path, link.name, reason)
        return False

    def _names_of(self, real_path: str, own_root: Root) -> Iterator[str]:
        """The names that a file would have in the archive, the one beside the link first."""
        for root, real_root in sorted(self._roots, key=lambda each: each[0] != own_root):
            if posixpath.join(real_path, "").startswith(real_root):
                yield (root.prefix + real_path[len(real_root) :]).rstrip("/")

    def _why_absent(self, name: str, status: os.stat_result) -> str:
        for each in (*directories_of(name), name):
            if each in self._walk.ignored:
                return f"the rule {self._walk.ignored[each].rule!r} leaves out of the archive"
        if stat.S_ISDIR(status.st_mode):
            return "holds no files: an archive has no empty directories"
        return "is not in the archive"

    def _text_of(self, link: FoundLink) -> str:
        text = link_text(link.path)
        directory = posixpath.dirname(link.name)
        target = self._targets[link.name]
        if not text.startswith("/") and self._lead(directory, text) == target:
            return text
        return posixpath.relpath(f"/{target}", f"/{directory}")

    def _lead(self, directory: str, text: str) -> str | None:
        """Where a relative link in a directory of the archive leads to once the archive is unpacked."""
        at = directory
        for part in text.split("/"):
            if part == ".." and not at:
                return None
            if part == "..":
                at = posixpath.dirname(at)
            elif part not in ("", "."):
                at = posixpath.join(at, part)
                at = self._targets.get(at, at)
                if at not in self._directories and at not in self._files:
                    return None
        return at
