"""What every source of an archive's bytes can do."""

from __future__ import annotations

import abc
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, cast

import attrs

logger = logging.getLogger("aiobaseten")


def model_name_in(config: object) -> str | None:
    """The name that a parsed ``config.yaml`` gives its model; None where it gives none that can be one."""
    name = cast("Mapping[str, Any]", config).get("model_name") if isinstance(config, Mapping) else None
    return name if isinstance(name, str) and name.strip() else None


@attrs.frozen(kw_only=True)
class ModelConfig:
    """A model's ``config.yaml``.

    :param config: parsed, as sent to the service: without ``external_package_dirs``, whose files the archive already holds
    :param raw: its text as the user wrote it
    """

    config: Mapping[str, Any]
    raw: str = attrs.field(repr=False)

    @property
    def model_name(self) -> str | None:
        return model_name_in(self.config)


@attrs.frozen(kw_only=True)
class Ignored:
    """A file or directory that stays out of the archive.

    :param path: in the archive, relative to its root, with a trailing ``/`` for a directory; what does not print is escaped
    :param rule: the line of ``.truss_ignore``, or of the defaults, that matched it
    :param is_default: whether `rule` is one of the defaults
    :param files: how many files that leaves out; at least so many, where directories with very many files are left out
    :param size_bytes: their size together, counted as far as `files`
    """

    path: str
    rule: str
    is_default: bool
    files: int
    size_bytes: int


class Source(abc.ABC):
    """The bytes of one archive, open for reading. Close it with `aclose`, or use it as an async context manager.

    :ivar label: what messages call it: a path, or ``<bytes>``, ``<stream>``
    :ivar size_bytes: the archive's size; None while it is not known
    :ivar seekable: whether any range can be read, in any order, at once and again. A source that is not is read once, from start
        to end
    :ivar ignored: what a model directory holds and the archive does not
    """

    label: str
    size_bytes: int | None
    seekable: bool
    ignored: tuple[Ignored, ...] = ()

    @abc.abstractmethod
    async def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` with the bytes from `offset` on, off the event loop, and return how many there were.

        Fewer than ``len(buffer)`` only where the source ends. When the call has returned or raised, cancelled or not,
        nothing writes into `buffer` any more.

        :raises SourceChanged: where a file is not as it was when the source was opened
        :raises ArchiveError: where a file cannot be read
        """

    @abc.abstractmethod
    async def read_config(self) -> ModelConfig:
        """The ``config.yaml`` at the archive's root.

        :raises ArchiveError: where there is none that can be read, or where it is not a valid config
        """

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str | None:
        """Changes when the bytes do: of paths, sizes and times, not of contents. None where nothing can be said."""

    async def aclose(self) -> None:  # noqa: B027 - a source may hold nothing open
        """Let go of what the source holds open."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.aclose()
        except Exception as failure:
            # Only a caller's own iterator can fail here. What was done is done, and the first error stays the first.
            if error is not None:
                error.add_note(f"closing {self.label} failed too: {failure!r}")
            else:
                logger.warning("closing %s failed", self.label, exc_info=failure)
