"""Reads the text of a ``config.yaml`` into values that JSON can carry."""

from __future__ import annotations

from typing import Any, cast

import attrs
import yaml

from aiobaseten.errors import ArchiveError
from aiobaseten.options import MiB
from aiobaseten.sources import safe_yaml
from aiobaseten.sources.base import ModelConfig

CONFIG_NAME = "config.yaml"
EXTERNAL_PACKAGE_DIRS = "external_package_dirs"
MAX_CONFIG_BYTES = MiB
MAX_VALUES = 100_000
MAX_PATH_BYTES = 4096


@attrs.frozen(kw_only=True)
class ConfigFile:
    """A ``config.yaml`` that was read.

    :param label: what messages call it
    :param values: all of it, parsed
    :param text: as the user wrote it
    """

    label: str
    values: dict[str, Any] = attrs.field(repr=False)
    text: str = attrs.field(repr=False)

    @property
    def model_config(self) -> ModelConfig:
        return ModelConfig(config=self._without_external_packages(), raw=self.text)

    @property
    def external_package_dirs(self) -> list[str]:
        """The directories whose children belong into the archive.

        :raises ArchiveError: where the field is not a list of paths
        """
        directories: object = self.values.get(EXTERNAL_PACKAGE_DIRS)
        if directories is None:
            return []
        if not isinstance(directories, list) or not all(map(_is_path, cast("list[object]", directories))):
            raise ArchiveError(f"{self.label}: {EXTERNAL_PACKAGE_DIRS} must be a list of directories' paths", path=self.label)
        return cast("list[str]", directories)

    def dump_without_external_packages(self) -> bytes:
        """The same config as YAML again, less the directories that an archive must not name."""
        values = self._without_external_packages()
        text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
        if safe_yaml.load(text, max_values=MAX_VALUES) != values:
            # PyYAML loses Unicode's own line breaks, unless it may write ASCII only.
            text = yaml.safe_dump(values, sort_keys=False)
        return text.encode()

    def _without_external_packages(self) -> dict[str, Any]:
        return {key: value for key, value in self.values.items() if key != EXTERNAL_PACKAGE_DIRS}


def _is_path(value: object) -> bool:
    return isinstance(value, str) and is_file_name(value)


def is_file_name(text: str) -> bool:
    """Whether the system could have a file of that name: no NUL, nothing that is not Unicode, and not too long."""
    try:
        return "\0" not in text and 0 < len(text.encode()) < MAX_PATH_BYTES
    except UnicodeEncodeError:
        return False


def parse_config(content: bytes, label: str) -> ConfigFile:
    """Read the bytes of a ``config.yaml``.

    :param label: what messages call the file
    :raises ArchiveError: where they are not the YAML, in UTF-8, of a mapping of JSON values; it names line and column
    """
    if len(content) > MAX_CONFIG_BYTES:
        raise ArchiveError(f"{label} has more than {MAX_CONFIG_BYTES:,} bytes", path=label)
    try:
        text = safe_yaml.decode(content)
        values: Any = safe_yaml.load(text, max_values=MAX_VALUES)
    except safe_yaml.UnreadableText as error:
        raise ArchiveError(error.told_of(label), path=label) from error
    if values is None:
        raise ArchiveError(f"{label} is empty; it must hold a mapping, such as 'model_name: my-model'", path=label)
    if not isinstance(values, dict):
        raise ArchiveError(f"{label} must hold a mapping, not {_kind_of(values)}", path=label)
    return ConfigFile(label=label, values=cast("dict[str, Any]", values), text=text)


def _kind_of(value: object) -> str:
    return "a list" if isinstance(value, list) else f"the single value {str(value)[:40]!r}"
