"""Sources of questions → validated tasks: files, folders and data sets by a mapping, and the built-in cases.

Loading needs no accelerator stack, decodes no more of an image than its check takes, and shares one `EncodedImage`
between all tasks that ask about it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jsonschema import Draft202012Validator

from entities.reference import reference_validator
from rl.errors import TaskError
from rl.types import EncodedImage, Measurement, Message, Task
from rollouts.images import read_image, read_image_file
from rollouts.mapping import (
    IMAGE,
    FollowUpMapping,
    ReferenceMapping,
    SourceMapping,
    TaskMapping,
    comparable,
    fill_template,
    load_mapping,
)
from rollouts.references import finite_number, reference_answer
from rollouts.sources import BUILT_IN, Part, Row, read_rows
from rollouts.splits import held_out_images, is_held_out
from rollouts.validation import Problems, describe, shorten

Split = Literal["train", "eval"]


def load_tasks(
    source: str, *, mapping: str | SourceMapping, split: Split, max_image_pixels: int, limit: int = 0, seed: int = 0
) -> tuple[Task, ...]:
    """The tasks of one split of a source, in the source's order; the first ``limit`` of them, 0 for all.

    ``mapping``, or the YAML at its path, says which columns make a task (see ``configs/tasks/``); the built-in
    source needs none, and alone orders its training cases by ``seed``. Raises TaskError for a source or a mapping that
    is missing, empty or malformed, naming file and line of the first few rows that cannot be used.
    """
    if source == BUILT_IN:
        from rollouts.cytology import load_cytology

        return load_cytology(split, seed=seed)[: limit or None]
    if not mapping:
        raise TaskError(f"tasks.source {source} needs tasks.mapping, a YAML such as those in configs/tasks/; got none")
    if isinstance(mapping, str):
        mapping = load_mapping(mapping)
    loader = _Loader(source, mapping, _ImageReader(max_image_pixels))
    tasks = tuple(itertools.islice(loader.tasks(split), limit or None))
    loader.problems.raise_if_any()
    if not tasks:
        rules = "'where', 'unless' and 'split'"
        raise TaskError(
            f"{source} has no {split} task: none of {loader.rows_read} rows meets {rules} of {mapping.path}"
        )
    return tasks


def check_disjoint(train: Sequence[Task], evaluation: Sequence[Task]) -> int:
    """The number of evaluation tasks whose image some training task has too, which a data set may well intend.
    Raises TaskError where a task itself is in both: the evaluation would measure what was learnt by heart."""
    trained = {task.id: task for task in train}
    for task in evaluation:
        twin = trained.get(task.id)
        if twin and (twin.question, twin.images) == (task.question, task.images):
            raise TaskError(
                f"task {task.id!r} is both a training and an evaluation task; give the mapping a 'split', or set "
                f"tasks.eval_source to another source"
            )
    trained_images = {image.content for task in train for image in task.all_images}
    return sum(any(image.content in trained_images for image in task.all_images) for task in evaluation)


@dataclass(frozen=True, slots=True)
class _ImageReader:
    """Images by what a row says of them; each file and each content is checked and kept once."""

    max_pixels: int
    by_path: dict[Path, EncodedImage] = field(default_factory=dict)
    by_content: dict[bytes, EncodedImage] = field(default_factory=dict)

    def read(self, value: Any, *, folder: Path, source: str) -> EncodedImage:
        """``source`` names an image that comes without a file."""
        if isinstance(value, Mapping):  # as the datasets library stores an image
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            if value not in self.by_content:
                self.by_content[value] = read_image(value, source=source, max_pixels=self.max_pixels)
            return self.by_content[value]
        if not isinstance(value, str):
            raise TaskError(f"an image is a path, bytes or {{bytes, path}}; got {shorten(value)}")
        path = folder / value
        if path not in self.by_path:
            image = read_image_file(path, max_pixels=self.max_pixels)
            self.by_path[path] = self.by_content.setdefault(image.content, image)
        return self.by_path[path]


@dataclass(frozen=True, slots=True)
class _Case:
    """A row that some task asks about, with its images, and those of its follow-ups by their column."""

    row: Row
    images: tuple[EncodedImage, ...]
    follow_ups: Mapping[str, EncodedImage]

    @property
    def contents(self) -> list[bytes]:
        return [image.content for image in (*self.images, *self.follow_ups.values())]


@dataclass(slots=True)
class _Loader:
    """One pass over a source: rows → cases → the cases of a split → tasks. What is wrong goes to ``problems``."""

    source: str
    mapping: SourceMapping
    images: _ImageReader
    problems: Problems = field(default_factory=Problems)
    rows_read: int = 0

    def tasks(self, split: Split) -> Iterator[Task]:
        kinds = [(columns, _row_validator(self.mapping, columns)) for columns in self.mapping.tasks]
        places: dict[str, str] = {}
        for case in self._cases_of(split):
            place = case.row.place
            for columns, validator in kinds:
                try:
                    task = _task(self.mapping, columns, validator, case)
                except ValueError as error:
                    self.problems.add(place, str(error))
                    continue
                if task and (first := places.get(task.id)):
                    what = (
                        f"id {task.id!r} was used at {first}; every row needs its own id, every task of a row a 'name'"
                    )
                    self.problems.add(place, what)
                elif task:
                    places[task.id] = place
                    yield task

    def _cases_of(self, split: Split) -> Iterable[_Case]:
        rules = self.mapping.split
        if rules.hash_of == IMAGE:
            everything = list(self._cases(self._rows()))
            held_out = held_out_images((case.contents for case in everything), fraction=rules.eval_fraction)
            return [case for case in everything if (case.contents[0] in held_out) == (split == "eval")]
        cases = self._cases(self._rows_of(split))
        return self._without_shared_images(cases) if rules.drop_shared_images and split == "train" else cases

    def _without_shared_images(self, training: Iterable[_Case]) -> Iterator[_Case]:
        evaluation = _Loader(self.source, self.mapping, self.images)
        held_out = {content for case in evaluation._cases_of("eval") for content in case.contents}
        evaluation.problems.raise_if_any()
        for case in training:
            if held_out.isdisjoint(case.contents):
                yield case

    def _rows_of(self, split: Split) -> Iterator[Row]:
        """The rows of a split that does not depend on the images' content."""
        rules = self.mapping.split
        names = rules.eval if split == "eval" else rules.train
        match rules.kind:
            case "none":
                yield from self._rows()
            case "parts":
                yield from self._rows(*names)
            case "column":
                values = {comparable(name) for name in names}
                yield from (row for row in self._rows() if comparable(row.values[rules.column]) in values)
            case "hash":
                for row in self._rows():
                    key = "" if row.values[rules.hash_of] is None else comparable(row.values[rules.hash_of])
                    if not key:
                        self.problems.add(row.place, f"column {rules.hash_of!r}, which decides the split, is empty")
                    elif is_held_out(key.encode(), fraction=rules.eval_fraction) == (split == "eval"):
                        yield row

    def _rows(self, *parts: str) -> Iterator[Row]:
        """The rows that some task asks about."""
        mapping = self.mapping
        for name in parts or (mapping.file,):
            part = Part(name=name, columns=mapping.columns, subset=mapping.subset, revision=mapping.revision)
            for row in read_rows(self.source, part, problems=self.problems):
                self.rows_read += 1
                if missing := mapping.filter_columns - row.values.keys():
                    self.problems.add(row.place, f"{min(missing)!r} is missing; there are {', '.join(row.values)}")
                elif any(columns.applies_to(row.values) for columns in mapping.tasks):
                    yield row

    def _cases(self, rows: Iterable[Row]) -> Iterator[_Case]:
        for row in rows:
            try:
                yield _Case(row, tuple(self._images_of(row)), dict(self._follow_up_images(row)))
            except TaskError as error:
                self.problems.add(row.place, str(error))

    def _images_of(self, row: Row) -> Iterator[EncodedImage]:
        values = [row.values.get(column) for column in self.mapping.image]
        found = [item for value in values for item in (value if isinstance(value, list) else [value]) if item]
        if self.mapping.image and not found:
            raise TaskError(f"there is no image in column {' or '.join(self.mapping.image)}")
        for value in found:
            yield self._image(value, row)

    def _follow_up_images(self, row: Row) -> Iterator[tuple[str, EncodedImage]]:
        tasks = [columns for columns in self.mapping.tasks if columns.applies_to(row.values)]
        for column in sorted({each.image for columns in tasks for each in columns.follow_ups} - {""}):
            if not (value := row.values.get(column)):
                raise TaskError(f"there is no image in column {column}, which a follow-up shows")
            yield column, self._image(value, row)

    def _image(self, value: Any, row: Row) -> EncodedImage:
        return self.images.read(value, folder=row.folder / self.mapping.image_root, source=row.place)


def _row_validator(mapping: SourceMapping, columns: TaskMapping) -> Draft202012Validator:
    """What a row must have to give this task. Answers are checked where they are read."""
    number = {"type": ["number", "string"]}
    properties: dict[str, Any] = {column: {"type": ["string", "number", "boolean"]} for column in columns.placeholders}
    properties |= {columns.question: _ASKED, mapping.id: {"type": ["string", "integer"], "pattern": r"\S"}}
    if columns.answer.take:
        wanted = sorted({*columns.answer.where, columns.answer.field} - {""})
        properties[columns.answer.column] = {"type": "array", "items": {"type": "object", "required": wanted}}
    if isinstance(mapping.record, str):
        properties[mapping.record] = {"type": "object", "minProperties": 1, "additionalProperties": _MEASUREMENT}
    else:
        properties |= {entry["column"]: number for entry in mapping.record.values()}
    properties[mapping.rubric] = {"type": "array", "items": _CRITERION}
    properties.pop("", None)  # of what the mapping leaves out
    return Draft202012Validator({"required": sorted(mapping.task_columns(columns)), "properties": properties})


_ASKED = {
    "type": ["string", "array"],
    "pattern": r"\S",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"type": "string"}, "content": {"type": "string", "pattern": r"\S"}},
    },
}
_MEASUREMENT = {
    "type": ["number", "object"],
    "required": ["value"],
    "additionalProperties": False,
    "properties": {"value": {"type": "number"}, "unit": {"type": "string"}, "reading": {"type": "string"}},
}
_CRITERION = {
    "type": "object",
    "required": ["criterion", "points"],
    "properties": {
        "criterion": {"type": "string", "pattern": r"\S"},
        "points": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}


def _task(mapping: SourceMapping, columns: TaskMapping, validator: Draft202012Validator, case: _Case) -> Task | None:
    """The task that ``columns`` make of a row; None where the mapping says that the row does not give it. Raises
    ValueError, naming the column, for a value that cannot be used."""
    row, values = case.row, case.row.values
    if not columns.applies_to(values):
        return None
    if error := next(iter(validator.iter_errors(values)), None):
        raise ValueError(describe(error))
    if not columns.has_answer(values):
        return None
    case_id = str(values[mapping.id]).strip() if mapping.id else f"{row.table}-{row.number}"
    answer = reference_answer(columns.answer, values)
    return Task(
        id=f"{case_id}-{columns.name}" if columns.name else case_id,
        question=_question(columns, values),
        answer=answer,
        images=case.images,
        follow_ups=tuple(_follow_up(each, case) for each in columns.follow_ups),
        system=fill_template(columns.system, values).strip(),
        record=_record(mapping, values),
        rubric=tuple(values[mapping.rubric]) if mapping.rubric else (),
        reference=_reference(mapping.reference, values),
        stratum=comparable(fill_template(columns.stratum, values)) or _stratum(columns, answer),
        extra={column: values[column] for column in mapping.extra},
    )


def _follow_up(columns: FollowUpMapping, case: _Case) -> Message:
    text = fill_template(columns.template, case.row.values).strip()
    if not text:
        raise ValueError(f"the follow-up {columns.template!r} has no text in this row")
    return Message(text=text, images=(case.follow_ups[columns.image],) if columns.image else ())


def _question(columns: TaskMapping, values: Mapping[str, Any]) -> str:
    """The text of the question; of a conversation of several messages, its transcript."""
    asked = fill_template(columns.template, values) if columns.template else values[columns.question]
    if isinstance(asked, str):
        return asked.strip()
    if len(asked) == 1:
        return str(asked[0]["content"]).strip()
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content'].strip()}" for message in asked)


def _stratum(columns: TaskMapping, answer: Mapping[str, Any]) -> str:
    """Where the mapping names none: the answer where there are few, otherwise its type."""
    kind = answer["value"] if answer["type"] in ("yes_no", "choice") else answer["type"]
    return f"{columns.name} {kind}".strip()


def _reference(columns: ReferenceMapping, values: Mapping[str, Any]) -> dict[str, Any]:
    """What ``Task.reference`` holds of the row; an empty cell gives nothing. Raises ValueError."""
    reference: dict[str, Any] = {}
    if columns.findings and (findings := values[columns.findings]):
        named = findings.split(",") if isinstance(findings, str) else findings
        reference["findings"] = [each.strip() if isinstance(each, str) else each for each in named]
    if columns.regions and (regions := values[columns.regions]):
        reference["regions"] = regions
    sources = {name: values[column] for name, column in columns.sources.items() if values[column]}
    if sources:
        reference["sources"] = sources
    if error := next(reference_validator().iter_errors(reference), None) if reference else None:
        raise ValueError(f"reference: {describe(error)}")
    return reference


def _record(mapping: SourceMapping, values: Mapping[str, Any]) -> dict[str, Measurement]:
    if isinstance(mapping.record, str):
        entries = values[mapping.record] if mapping.record else {}
        return {
            name: Measurement(**entry) if isinstance(entry, Mapping) else Measurement(value=entry)
            for name, entry in entries.items()
        }
    return {
        name: Measurement(
            value=finite_number(values[entry["column"]], column=entry["column"]),
            unit=entry.get("unit", ""),
            reading=str(values[entry["reading"]]).strip() if "reading" in entry else "",
        )
        for name, entry in mapping.record.items()
    }
