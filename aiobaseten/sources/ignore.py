"""Which files of a model directory stay out of its archive, and by which rule.

A ``.truss_ignore`` at the root of the directory takes the place of the defaults. Rules have the meaning that Truss gives them:
lines are stripped, the last rule that matches decides, and nothing below a directory that is left out can come back in.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

import attrs
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from aiobaseten._text import one_line
from aiobaseten.errors import ArchiveError
from aiobaseten.options import MiB

IGNORE_FILE_NAME = ".truss_ignore"
MAX_IGNORE_FILE_BYTES = MiB
MAX_SHOWN_CHARACTERS = 100
MAX_RULES = 10_000
MAX_RULE_CHARACTERS = 4096
_ANYWHERE = "^(?:.+/)?"
"""How the expressions of most rules begin. Taken out, it is tried once for all of them."""
_DEEPER = "(?:/.+)?"
"""What ``**`` is in the middle of a rule."""
_ITEM = re.compile(r"\\.|\[\^?+\]?+[^\]]*+\]", re.DOTALL)
"""A character with a backslash, or a class of them."""
_STAR_BEFORE_STAR = re.compile(r"\[\^/\]\*((?:\\.|\[\^?+\]?+[^\]]*+\](?!\*)|[^/\\\[()])*+)(?=\[\^/\]\*)", re.DOTALL)
"""What ``*`` is, with what comes between it and the next one in the same part of a path."""

DEFAULT_RULES = (
    # Version control and systems
    ".git",
    ".DS_Store",
    # Python: compiled, built, distributed
    "__pycache__/",
    "*.py[cod]",
    "*$py.class",
    "*.so",
    ".Python",
    "build/",
    "develop-eggs/",
    "dist/",
    "downloads/",
    "eggs/",
    ".eggs/",
    "lib/",
    "lib64/",
    "parts/",
    "sdist/",
    "var/",
    "wheels/",
    "share/python-wheels/",
    "*.egg-info/",
    ".installed.cfg",
    "*.egg",
    "MANIFEST",
    "*.manifest",
    "*.spec",
    "pip-log.txt",
    "pip-delete-this-directory.txt",
    "__pypackages__/",
    ".pdm.toml",
    "*.sage.py",
    # Environments
    ".env",
    ".venv",
    "env/",
    "venv/",
    "ENV/",
    "env.bak/",
    "venv.bak/",
    # Tests and caches
    "htmlcov/",
    ".tox/",
    ".nox/",
    ".coverage",
    ".coverage.*",
    ".cache",
    "nosetests.xml",
    "coverage.xml",
    "*.cover",
    "*.py,cover",
    ".hypothesis/",
    ".pytest_cache/",
    "cover/",
    ".mypy_cache/",
    ".dmypy.json",
    "dmypy.json",
    ".ruff_cache/",
    ".pyre/",
    ".pytype/",
    "cython_debug/",
    # Documentation, web frameworks, notebooks, editors
    "docs/_build/",
    ".pybuilder/",
    "target/",
    ".ipynb_checkpoints",
    "profile_default/",
    "ipython_config.py",
    "*.mo",
    "*.pot",
    "*.log",
    "local_settings.py",
    "db.sqlite3",
    "db.sqlite3-journal",
    "instance/",
    ".webassets-cache",
    ".scrapy",
    "celerybeat-schedule",
    "celerybeat.pid",
    ".spyderproject",
    ".spyproject",
    ".ropeproject",
    "*.tmp",
    "*.swp",
)


@attrs.frozen
class _Rule:
    line: str
    expression: re.Pattern[str]
    leaves_out: bool


class IgnoreRules:
    """Rules in their order, those of a directory or the defaults."""

    def __init__(self, rules: Iterable[_Rule], *, is_default: bool) -> None:
        self.is_default = is_default
        self._rules = tuple(rules)
        # Most paths match no rule at all: one search tells, in place of eighty.
        self._any_rule = _any_of(rule.expression for rule in self._rules)

    def match(self, path: str, *, is_directory: bool) -> str | None:
        """The line of the rule that leaves a path out; None where it stays.

        :param path: relative to the directory that the rules are for, with ``/`` between its parts
        """
        for spelling in (path, f"{path}/") if is_directory else (path,):
            if self._any_rule.search(spelling):
                last = next(rule for rule in reversed(self._rules) if rule.expression.search(spelling))
                if last.leaves_out:
                    return last.line
        return None


def _any_of(expressions: Iterable[re.Pattern[str]]) -> re.Pattern[str]:
    """One expression that finds something where any of several does."""
    anywhere: list[str] = []
    others: list[str] = []
    for expression in expressions:
        source = expression.pattern
        for name in expression.groupindex:  # Beside others, the names of groups would have to differ.
            source = source.replace(f"(?P<{name}>", "(?:")
        if source.startswith(_ANYWHERE):
            anywhere.append(source.removeprefix(_ANYWHERE))
        else:
            others.append(source)
    if anywhere:
        others.append(f"{_ANYWHERE}(?:{'|'.join(anywhere)})")
    return re.compile("|".join(others) or r"(?!)")


def parse_rules(content: bytes, label: str) -> IgnoreRules:
    """Read the bytes of a ``.truss_ignore``.

    :param label: what messages call the file
    :raises ArchiveError: where they are not UTF-8, or a line is no rule; it names the line
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ArchiveError(f"{label}, line {number}: byte 0x{content[error.start]:02x} is not UTF-8", path=label) from error
    rules: list[_Rule] = []
    for number, line in enumerate(map(str.strip, io.StringIO(text, newline=None)), 1):
        if not line or line.startswith("#"):
            continue
        try:
            rules.append(_parse_rule(line))
        except ValueError as error:
            shown = one_line(line, max_chars=MAX_SHOWN_CHARACTERS)
            raise ArchiveError(
                f"{label}, line {number}: {shown!r} is not a valid rule: {one_line(str(error))}", path=label
            ) from error
        if len(rules) > MAX_RULES:
            raise ArchiveError(f"{label}, line {number}: there are more than {MAX_RULES:,} rules", path=label)
    return IgnoreRules(rules, is_default=False)


def _parse_rule(line: str) -> _Rule:
    if len(line) > MAX_RULE_CHARACTERS:
        raise ValueError(f"it has more than {MAX_RULE_CHARACTERS:,} characters")
    # Truss's rules are of this class, under its older name. pathspec's other one reads "!data/*" otherwise.
    source: str | None
    source, leaves_out = GitIgnoreSpecPattern.pattern_to_regex(line)
    if source is None or leaves_out is None:
        raise ValueError("it matches nothing")
    source = _ITEM.sub(_as_it_will_be, source)
    try:
        return _Rule(line, re.compile(_without_second_thoughts(source)), leaves_out)
    except (re.error, FutureWarning) as error:
        raise ValueError(str(error)) from error
    except (OverflowError, RecursionError) as error:
        raise ValueError("it is too complex") from error


def _as_it_will_be(item: re.Match[str]) -> str:
    """A class of characters without what Python warns of, since it may mean more there some day."""
    text = item[0]
    return text if text.startswith("\\") else text[0] + re.sub(r"(?<!\\)[\[&~|]", r"\\\g<0>", text[1:])


def _without_second_thoughts(source: str) -> str:
    """The same rule, in an expression that takes no more time than the square of a path's length.

    As pathspec writes them, ``a*b*c*d`` and ``**/a/**/b`` try each place for each wildcard. The first place for what follows a
    wildcard is as good as any other, as long as another wildcard of the kind comes after it. (Only where three ``*`` are in
    one part of a path, ``[!a]`` between them does not stand for a ``/`` any more.)
    """
    if len(_STAR_BEFORE_STAR.findall(source)) > 1:
        source = _STAR_BEFORE_STAR.sub(r"(?>[^/]*?\1)", source)
    first, *others = source.split(_DEEPER)
    if others and (len(others) > 1 or first.startswith(_ANYWHERE)):
        if first.startswith(_ANYWHERE):
            first = f"^(?>(?s:.+?/)??{first.removeprefix(_ANYWHERE)}(?=/))"
        source = "".join([first, *(f"(?>(?s:/.+?)??{each}(?=/))" for each in others[:-1]), f"(?s:/.+)?{others[-1]}"])
    return source


DEFAULTS = IgnoreRules(map(_parse_rule, DEFAULT_RULES), is_default=True)
