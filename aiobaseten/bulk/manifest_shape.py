"""What a manifest may say: its fields and their types, the defaults, and what each model's settings are with them.

Nothing here looks at the disk. What a model's settings and its config together break is found by `broken_rules`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import attrs

from aiobaseten import rules
from aiobaseten._convert import Mismatch, from_json, json_type
from aiobaseten.bulk.manifest_lines import Lines, Path
from aiobaseten.bulk.manifest_text import ManifestText
from aiobaseten.errors import Problem
from aiobaseten.models import DeploymentArchivePayload, PrepareModelUploadRequest
from aiobaseten.push import Push, push_problems
from aiobaseten.sources import model_name_in
from aiobaseten.sources.config import is_file_name
from aiobaseten.sources.files import printable

TOP_FIELDS = ("defaults", "models")
MAX_SHOWN_CHARACTERS = 100

Broken = tuple[tuple[str, ...], str]
"""A broken rule: the path in a model's settings, and the rule."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
_ALTERNATIVES = {"name": "model_id", "model_id": "name", "team": "team_id", "team_id": "team"}
_STAND_IN = "x"


@attrs.frozen(kw_only=True)
class ModelSettings(DeploymentArchivePayload):
    """The fields of a model in a manifest: a deployment's, and where from and where to. None where not given.

    :param path: of a model directory or an archive file, relative to the manifest
    :param glob: of several of them
    :param name: as in `Push`, and so are `model_id`, `team_id`, `existing`, `disable_archive_download` and `symlinks`
    :param team: the name of a team, in place of its id
    """

    path: str | None = None
    glob: str | None = None
    name: str | None = None
    model_id: str | None = None
    team: str | None = None
    team_id: str | None = None
    existing: Literal["deploy", "error"] = "deploy"
    disable_archive_download: bool = False
    symlinks: Literal["store", "follow"] = "store"


MODEL_FIELDS = tuple(field.name for field in attrs.fields(ModelSettings))
DEFAULTS_FIELDS = tuple(field for field in MODEL_FIELDS if field not in ("path", "glob", "name"))
_DEPLOYMENT_FIELDS = tuple(field.name for field in attrs.fields(DeploymentArchivePayload))
_TEXT_FIELDS = ("name", "model_id", "environment_name")


@attrs.frozen(kw_only=True, eq=False)
class Defaults:
    """``defaults``, as far as they are of the right types.

    :param wrong: the fields that are not
    :param broken: the rules that they break with nothing added
    """

    values: Mapping[str, Any] = attrs.field(factory=dict[str, Any])
    wrong: frozenset[str] = frozenset()
    broken: frozenset[Broken] = frozenset()


@attrs.frozen(kw_only=True, eq=False)
class ModelShape:
    """One item of ``models``.

    :param index: its place among them, from 0
    :param own: the fields that it has itself, as far as they are of the right types
    :param own_wrong: those that are not
    :param place: ``path`` or ``glob``, whichever says where its sources are; None where neither can
    :param settings: its own and the defaults'; what is of the wrong type is left out, or has a stand-in
    :param deployment: of the settings, what goes into the deployment; None where that is all at its defaults
    :param is_whole: whether nothing of it had to be left out
    """

    index: int
    own: Mapping[str, Any]
    own_wrong: frozenset[str]
    place: Literal["path", "glob"] | None
    settings: ModelSettings
    deployment: DeploymentArchivePayload | None
    is_whole: bool

    def path_of(self, field: str, *rest: str) -> Path:
        """Of a field and what is in it; of the model itself, where the field comes from the defaults."""
        return ("models", self.index, field, *rest) if field in self.own else ("models", self.index)


class Mistakes:
    """Gathers what is wrong, each mistake once, with file, line and field."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.lines = Lines()
        self._found: dict[Problem, int] = {}

    def add(self, path: Path, rule: str, *, line: int | None = None) -> None:
        """A mistake in a field.

        :param line: left out, the one on which the field is
        """
        line = self.lines.of(path) if line is None else line
        self._found.setdefault(Problem(f"{self._at(line)}: {_json_path(path)}", rule), line or 0)

    def add_at_line(self, line: int | None, rule: str) -> None:
        """A mistake in a file that could not be read as values."""
        self._found.setdefault(Problem(self._at(line), rule), line or 0)

    def where(self, path: Path) -> str:
        """File, line and field, such as ``deploy.yaml:12: $.models[3].labels``."""
        return f"{self._at(self.lines.of(path))}: {_json_path(path)}"

    def _at(self, line: int | None) -> str:
        return self.label if line is None else f"{self.label}:{line}"

    def in_order(self) -> list[Problem]:
        """From the first line to the last, and on one line from the first model to the last."""
        return sorted(self._found, key=lambda problem: (self._found[problem], _natural(problem.path), problem.rule))


def _json_path(path: Path) -> str:
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{_shown(step)}" for step in path)


def _natural(text: str) -> list[int | str]:
    """Sorts 9 before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def _shown(text: str) -> str:
    """A text from the manifest as a message can hold it: on one line, and not too long."""
    return printable(text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}...")


def read_shape(text: ManifestText, mistakes: Mistakes) -> tuple[Defaults, list[ModelShape]]:
    """The models of a manifest, as far as they have the right shape; what is wrong is added to `mistakes`."""
    for duplicate in text.duplicates:
        told = f"is given twice, on lines {duplicate.first_line} and {duplicate.line}"
        mistakes.add(duplicate.path, told, line=duplicate.first_line)
    document = text.values
    if not isinstance(document, Mapping):
        what = "is empty" if document is None else f"must be an object, not {json_type(document)}"
        mistakes.add((), f"{what}; a manifest lists its models, such as models: [{{path: models/a}}]")
        return Defaults(), []
    known = _known(cast("Mapping[object, Any]", document), TOP_FIELDS, (), mistakes)
    defaults = _read_defaults(known.get("defaults"), mistakes)
    models: object = known.get("models")
    if models is None or models == []:
        mistakes.add(
            ("models",) if "models" in known else (), "holds no models; list at least one, such as models: [{path: models/a}]"
        )
        return defaults, []
    if not isinstance(models, list):
        mistakes.add(("models",), f"must be an array of models, not {json_type(models)}")
        return defaults, []
    shapes = (_read_model(index, given, defaults, mistakes) for index, given in enumerate(cast("list[object]", models)))
    return defaults, [shape for shape in shapes if shape is not None]


def _read_defaults(given: object, mistakes: Mistakes) -> Defaults:
    if given is None:
        return Defaults()
    at: Path = ("defaults",)
    if not isinstance(given, Mapping):
        mistakes.add(at, f"must be an object, not {json_type(given)}")
        return Defaults()
    values, wrong = _typed(cast("Mapping[object, Any]", given), DEFAULTS_FIELDS, at, mistakes)
    _check_teams(values, at, mistakes)
    for field, value in values.items():
        for path, rule in _broken_in_any_case(field, value):
            mistakes.add((*at, *path), rule)
    return Defaults(values=values, wrong=wrong, broken=frozenset(broken_rules(_settings(values, wrong), None)))


def _broken_in_any_case(field: str, value: object) -> set[Broken]:
    """The rules that a field breaks whatever the others are: with all of them left out, and with those set that some need."""
    helpful = {"environment_name": _STAND_IN, "preserve_env_instance_type": False}
    return set(broken_rules(_settings({field: value}, ()), None)) & set(
        broken_rules(_settings({**helpful, field: value}, ()), None)
    )


def _read_model(index: int, given: object, defaults: Defaults, mistakes: Mistakes) -> ModelShape | None:
    at: Path = ("models", index)
    if not isinstance(given, Mapping):
        mistakes.add(at, f"must be an object, not {json_type(given)}; such as {{path: models/a}}")
        return None
    own, own_wrong = _typed(cast("Mapping[object, Any]", given), MODEL_FIELDS, at, mistakes)
    _check_teams(own, at, mistakes)
    inherited = {field: value for field, value in defaults.values.items() if _ALTERNATIVES.get(field) not in {*own, *own_wrong}}
    values = {**inherited, **own}
    if own.get("labels") and inherited.get("labels"):
        values["labels"] = {**inherited["labels"], **own["labels"]}
    wrong = own_wrong | {field for field in defaults.wrong if field not in own}
    settings = _settings(values, wrong)
    deployment = _deployment_in(settings)
    return ModelShape(
        index=index,
        own=own,
        own_wrong=own_wrong,
        place=_place(own, own_wrong, at, mistakes),
        settings=settings,
        deployment=None if deployment == DeploymentArchivePayload() else deployment,
        is_whole=not wrong,
    )


def _settings(values: Mapping[str, Any], wrong: Sequence[str] | frozenset[str]) -> ModelSettings:
    """The settings; where a text is of the wrong type, it counts as given, so that nothing is told that it would put right."""
    stand_ins: dict[str, Any] = {field: _STAND_IN for field in _TEXT_FIELDS if field in wrong}
    return ModelSettings(**{**values, **stand_ins})


def _deployment_in(settings: ModelSettings, **changes: Any) -> DeploymentArchivePayload:
    fields: dict[str, Any] = {field: getattr(settings, field) for field in _DEPLOYMENT_FIELDS}
    return DeploymentArchivePayload(**{**fields, **changes})


def _typed(
    given: Mapping[object, Any], fields: Sequence[str], at: Path, mistakes: Mistakes
) -> tuple[dict[str, Any], frozenset[str]]:
    """The known fields of the right types, and the names of those of wrong ones."""
    known = _known(given, fields, at, mistakes)
    try:
        from_json(known, ModelSettings)
    except Mismatch as mismatch:
        wrong = {problem.path.removeprefix("$."): problem.rule for problem in mismatch.problems}
        for field, rule in wrong.items():
            mistakes.add((*at, field), rule)
        return {field: value for field, value in known.items() if field not in wrong}, frozenset(wrong)
    return known, frozenset()


def _known(given: Mapping[object, Any], fields: Sequence[str], at: Path, mistakes: Mistakes) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for key, value in given.items():
        if not isinstance(key, str):
            mistakes.add(at, f"has the key {_shown(repr(key))}; keys must be strings")
        elif key in fields:
            known[key] = value
        elif key in MODEL_FIELDS:
            mistakes.add((*at, key), "is for a model to set, and has no defaults")
        else:
            nearest = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(fields)}"
            mistakes.add((*at, key), f"is not a field here; {hint}")
    return known


def _check_teams(values: Mapping[str, Any], at: Path, mistakes: Mistakes) -> None:
    if values.get("team") is not None and values.get("team_id") is not None:
        mistakes.add((*at, "team_id"), "must not be set with team: either says which team it is")


def _place(own: Mapping[str, Any], wrong: frozenset[str], at: Path, mistakes: Mistakes) -> Literal["path", "glob"] | None:
    """Which field says where the sources are, if exactly one does so as it should."""
    given: list[Literal["path", "glob"]] = [field for field in ("path", "glob") if own.get(field) is not None]
    if len(given) != 1:
        if given or wrong.isdisjoint(("path", "glob")):
            mistakes.add(at, f"must have exactly one of path and glob, and has {'both' if given else 'neither'}")
        return None
    [field] = given
    text: str = own[field]
    if not text:
        mistakes.add((*at, field), "must not be empty")
    elif _URL.match(text):
        mistakes.add((*at, field), f"must be a local path, and '{_shown(text)}' is a URL: fetch it first")
    elif not is_file_name(text):
        mistakes.add((*at, field), f"cannot be the name of a file: '{_shown(text)}'")
    else:
        return field
    return None


def broken_rules(settings: ModelSettings, config: Mapping[str, Any] | None) -> Iterator[Broken]:
    """What is wrong with the request that a push with these settings would make.

    :param config: of the source, for settings that hold none; None where it is not known
    """
    if settings.config is not None:
        config = settings.config
    name = settings.name
    if name is None and settings.model_id is None:
        name = model_name_in(config) or _STAND_IN  # That no name is known is told by who knows the source.
    request = PrepareModelUploadRequest(
        deployment=_deployment_in(settings, config=config or {}),
        name=name,
        model_id=settings.model_id,
        team_id=settings.team_id if settings.team is None else settings.team,
    )
    push = Push("", model_id=settings.model_id, disable_archive_download=settings.disable_archive_download)
    for problem in [*rules.find_problems(request), *push_problems(push)]:
        field, _, rest = problem.path.removeprefix("$.deployment.").removeprefix("$.").partition(".")
        if field == "team_id" and settings.team is not None:
            field = "team"
        yield ((field, rest) if rest else (field,)), problem.rule


def add_broken_rules(
    shape: ModelShape, config: Mapping[str, Any] | None, defaults: Defaults, mistakes: Mistakes, *, source: str
) -> None:
    """Tell each broken rule where it can be put right: at the model's field, the defaults' field, or the source's config.

    :param source: what messages call the source
    """
    for (field, *rest), rule in broken_rules(shape.settings, config):
        if field == "config" and shape.settings.config is None:
            where = ".".join(("$", *rest))
            mistakes.add(shape.path_of(shape.place or "path"), f"config.yaml of {source}: {where}: {rule}")
        elif ((field, *rest), rule) in defaults.broken and not _is_own(shape, field, *rest):
            mistakes.add(("defaults", field, *rest), rule)
        elif field in shape.own or field in shape.own_wrong:
            mistakes.add(("models", shape.index, field, *rest), rule)
        else:
            mistakes.add(("models", shape.index), f"{field}, which defaults set, {rule}")


def _is_own(shape: ModelShape, field: str, *rest: str) -> bool:
    """Whether a value is the model's own; labels are its own one by one."""
    if field != "labels" or not rest:
        return field in shape.own
    labels: Mapping[object, Any] = shape.own.get("labels") or {}
    return any(isinstance(key, str) and rest[0].startswith(key) for key in labels)
