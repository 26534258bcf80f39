"""Which columns of a source make a task: a small YAML, checked against ``mapping.schema.json``."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonschema import Draft202012Validator

from rl.errors import TaskError
from rollouts.validation import describe, shorten

Filter = Mapping[str, frozenset[str]]
"""Column → values, as `comparable` text."""

IMAGE = "image"
"""What ``split.hash_of`` says to split by the images' content and not by a column."""

_ONLY_FOR = {"options": ("choice",), "index_from": ("choice",), "synonyms": ("text",), "separator": ("labels",)}
_CONSTANTS = {
    **dict.fromkeys(("tolerance", "relative_tolerance"), ("number", "formula")),
    **dict.fromkeys(("decimals", "unit", "unit_required"), ("number",)),
    **dict.fromkeys(("tolerance_days", "day_first"), ("date",)),
    **dict.fromkeys(("threshold", "coordinates", "answer_coordinates"), ("box",)),
    **dict.fromkeys(("variables", "domain"), ("formula",)),
    "match": ("text",),
    "metric": ("labels",),
}
"""Key of an answer → the types that it belongs to; constants go into the task's answer as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerMapping:
    """Where the reference answer stands; ``mapping.schema.json`` describes the fields."""

    type: str
    column: str
    take: Literal["", "count", "any", "each"] = ""
    field: str = ""
    where: Filter
    at_least: int = 0
    at_most: int | None = None
    options: tuple[str, ...] = ()
    index_from: int | None = None
    synonyms: str = ""
    separator: str = ","
    constants: Mapping[str, Any]

    def entries(self, values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The objects of the list in ``column`` that meet ``where``."""
        return [entry for entry in values[self.column] if meets(entry, self.where)]

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column, *self.options, *filter(None, [self.synonyms]))


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUpMapping:
    """What the user says after a turn; ``image`` is the column of an image that comes with it, or empty."""

    template: str
    image: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMapping:
    """One kind of task that a row can give. Exactly one of ``question`` (a column) and ``template`` is set."""

    answer: AnswerMapping
    where: Filter
    unless: Filter
    name: str = ""
    question: str = ""
    template: str = ""
    system: str = ""
    stratum: str = ""
    follow_ups: tuple[FollowUpMapping, ...] = ()

    def applies_to(self, values: Mapping[str, Any]) -> bool:
        """Whether a row meets every column of ``where`` and none of ``unless``."""
        return meets(values, self.where) and not any(meets(values, {c: v}) for c, v in self.unless.items())

    def has_answer(self, values: Mapping[str, Any]) -> bool:
        """Whether the row's list has as many objects as the answer needs."""
        count = len(self.answer.entries(values)) if self.answer.take else 0
        return count >= self.answer.at_least and (self.answer.at_most is None or count <= self.answer.at_most)

    @property
    def placeholders(self) -> frozenset[str]:
        """The columns whose values are put into text."""
        templates = (self.template, self.system, self.stratum, *(each.template for each in self.follow_ups))
        return frozenset(column for template in templates for _, column in parse_template(template) if column)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitMapping:
    """Which rows train and which evaluate: by parts of the source, by a column's values, or by a hash."""

    kind: Literal["none", "parts", "column", "hash"] = "none"
    train: tuple[str, ...] = ()
    eval: tuple[str, ...] = ()
    column: str = ""
    hash_of: str = ""
    eval_fraction: float = 0.0
    drop_shared_images: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceMapping:
    """Columns of what claims are held against; ``sources`` goes from the name of a text to its column."""

    findings: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    regions: str = ""

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({self.findings, self.regions, *self.sources.values()} - {""})


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceMapping:
    """How the rows of a source become tasks. ``record`` is a column or name → ``{column, unit, reading}``."""

    path: str
    tasks: tuple[TaskMapping, ...]
    split: SplitMapping
    file: str = ""
    id: str = ""
    image: tuple[str, ...] = ()
    image_root: str = ""
    record: str | Mapping[str, Mapping[str, str]] = ""
    rubric: str = ""
    reference: ReferenceMapping = ReferenceMapping()
    extra: tuple[str, ...] = ()
    subset: str = ""
    revision: str = ""

    @property
    def filter_columns(self) -> frozenset[str]:
        """The columns that decide whether and where a row is used."""
        columns = {column for task in self.tasks for column in (*task.where, *task.unless)} | {self.split.column}
        return frozenset(columns | {self.split.hash_of} - {IMAGE}) - {""}

    def task_columns(self, task: TaskMapping) -> frozenset[str]:
        """The columns that a row must have to give this task, its images apart."""
        columns = {self.id, self.rubric, task.question, *self.extra, *task.answer.columns, *task.placeholders}
        columns |= self.reference.columns | {each.image for each in task.follow_ups}
        if isinstance(self.record, str):
            columns.add(self.record)
        else:
            columns.update(name for entry in self.record.values() for key, name in entry.items() if key != "unit")
        return frozenset(columns) - {""}

    @property
    def columns(self) -> frozenset[str]:
        return self.filter_columns.union(self.image, *(self.task_columns(task) for task in self.tasks))


def load_mapping(path: str) -> SourceMapping:
    """Read and check a mapping. Raises TaskError with the file, the key, what is allowed and a close name."""
    return read_mapping(_read_yaml(Path(path)), path=path)


def read_mapping(fields: Mapping[str, Any], *, path: str) -> SourceMapping:
    """Check a mapping that was read from ``path``. Raises TaskError as `load_mapping` does."""
    if error := next(iter(_validator().iter_errors(fields)), None):
        raise TaskError(f"mapping {path}: {describe(error)}")
    if fields.get("split", {}).get("hash_of") == IMAGE and "image" not in fields:
        raise TaskError(f"mapping {path}: split.hash_of 'image' needs 'image', the columns that hold the images")
    kinds = fields.get("tasks", [{}])
    return SourceMapping(
        path=path,
        tasks=tuple(_task_mapping(path, fields, kind) for kind in kinds),
        split=_split_mapping(fields.get("split", {})),
        image=_texts(fields.get("image", [])),
        reference=ReferenceMapping(**fields.get("reference", {})),
        extra=_texts(fields.get("extra", [])),
        **{
            key: fields[key]
            for key in ("file", "id", "image_root", "record", "rubric", "subset", "revision")
            if key in fields
        },
    )


def comparable(value: Any) -> str:
    """How filters compare values: as text, without case and outer space; truth values are ``true`` and ``false``."""
    return str(value).strip().casefold()


def meets(values: Mapping[str, Any], where: Filter) -> bool:
    """Whether every column of ``where`` has one of its values."""
    return all(comparable(values[column]) in allowed for column, allowed in where.items())


def parse_template(template: str) -> Iterator[tuple[str, str]]:
    """Pairs of literal text and the column that follows it (empty at the end). A placeholder is a column's whole name:
    no attribute, index, conversion or format is looked at. Raises ValueError for one that has them."""
    for literal, column, form, conversion in string.Formatter().parse(template):
        if column == "" or form or conversion:
            raise ValueError(f"a placeholder is the name of a column in braces, as in {{age}}; got {template!r}")
        yield literal, column or ""


def fill_template(template: str, values: Mapping[str, Any]) -> str:
    """The template with every placeholder replaced by its column's value."""
    return "".join(literal + (str(values[column]) if column else "") for literal, column in parse_template(template))


@functools.cache
def _validator() -> Draft202012Validator:
    schema = importlib.resources.files(__package__).joinpath("mapping.schema.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(schema))


class Yaml(yaml.SafeLoader):
    """YAML 1.2's truth values: ``yes`` and ``no`` are text, as answers mostly are."""


_BOOL = "tag:yaml.org,2002:bool"
Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Yaml.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|false)$"), ["t", "f"])


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        fields = yaml.load(path.read_text(encoding="utf-8"), Yaml)
    except OSError as error:
        what = f"mapping {path} cannot be read: {error.strerror}"
        raise TaskError(f"{what}; set tasks.mapping (configs/tasks/ has examples)") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TaskError(f"mapping {path} is not valid YAML: {error}") from error
    if not isinstance(fields, dict):
        raise TaskError(f"mapping {path} must hold keys and values; got {shorten(fields)}")
    return fields


def _task_mapping(path: str, shared: Mapping[str, Any], own: Mapping[str, Any]) -> TaskMapping:
    """``own`` goes on top of what the file sets for all tasks; filters add up."""
    where = f"tasks.{own['name']}" if "name" in own else "the mapping"
    texts = {key: shared[key] for key in ("question", "template", "system", "stratum") if key in shared}
    if "question" in own or "template" in own:
        texts = {key: text for key, text in texts.items() if key not in ("question", "template")}
    texts |= {key: own[key] for key in ("name", "question", "template", "system", "stratum") if key in own}
    if ("question" in texts) == ("template" in texts):
        raise TaskError(f"mapping {path}: {where} needs 'question' (a column) or 'template' (text), and not both")
    follow_ups = _follow_ups(own.get("follow_ups", shared.get("follow_ups", [])))
    answer = own.get("answer", shared.get("answer"))
    if answer is None:
        raise TaskError(f"mapping {path}: {where} has no 'answer'")
    try:
        for template in (*texts.values(), *(each.template for each in follow_ups)):
            list(parse_template(template))
        return TaskMapping(
            answer=_answer_mapping(answer),
            where=_filter(shared.get("where", {})) | _filter(own.get("where", {})),
            unless=_filter(shared.get("unless", {})) | _filter(own.get("unless", {})),
            follow_ups=follow_ups,
            **texts,
        )
    except ValueError as error:
        raise TaskError(f"mapping {path}: {where}: {error}") from error


def _follow_ups(entries: Sequence[str | Mapping[str, str]]) -> tuple[FollowUpMapping, ...]:
    return tuple(FollowUpMapping(**({"template": each} if isinstance(each, str) else each)) for each in entries)


def _answer_mapping(fields: Mapping[str, Any]) -> AnswerMapping:
    kind, take = fields["type"], fields.get("take", "")
    for key, only in (_ONLY_FOR | _CONSTANTS).items():
        if key in fields and kind not in only:
            raise ValueError(f"answer.{key} belongs to type {' or '.join(only)}; the type is {kind}")
    if kind == "choice" and "options" not in fields:
        raise ValueError("an answer of type choice needs 'options'")
    if kind != {"count": "number", "any": "yes_no"}.get(take, kind):
        raise ValueError(f"answer.take: count gives a number, any gives yes_no; the type is {kind}")
    if ("field" in fields) != (take == "each"):
        raise ValueError("answer.field says which field of each object is the answer: it goes with 'take: each'")
    if not take and (of_list := fields.keys() & {"where", "at_least", "at_most"}):
        raise ValueError(f"answer.{min(of_list)} is about the objects of a list: it goes with 'take'")
    return AnswerMapping(
        **{key: value for key, value in fields.items() if key not in {"where", "options", *_CONSTANTS}},
        where=_filter(fields.get("where", {})),
        options=_texts(fields.get("options", [])),
        constants={key: fields[key] for key in _CONSTANTS if key in fields},
    )


def _split_mapping(fields: Mapping[str, Any]) -> SplitMapping:
    if not fields:
        return SplitMapping()
    kind: Literal["parts", "column", "hash"] = "parts"
    if "hash_of" in fields or "column" in fields:
        kind = "hash" if "hash_of" in fields else "column"
    texts = {key: _texts(fields[key]) for key in ("train", "eval") if key in fields}
    return SplitMapping(kind=kind, **{**fields, **texts})


def _filter(fields: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    return {
        column: frozenset(comparable(value) for value in (values if isinstance(values, list) else [values]))
        for column, values in fields.items()
    }


def _texts(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
