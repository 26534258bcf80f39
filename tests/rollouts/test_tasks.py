"""Rows become tasks, or one message says which rows cannot and why."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rl.errors import TaskError
from rl.types import Measurement, Task
from rollouts.tasks import check_disjoint, load_tasks
from tests.rollouts.conftest import YES_NO

Rows = list[dict[str, Any]]
Load = Callable[..., tuple[Task, ...]]

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("MEDRL_DATA", REPOSITORY.parent / "shared" / "data"))


def message(load: Load, *args: Any, **fields: Any) -> str:
    with pytest.raises(TaskError) as caught:
        load(*args, **fields)
    return str(caught.value)


# What a row becomes


def test_a_row_becomes_a_task(load: Load, rows: Rows) -> None:
    first, second, third, fourth = load(rows)
    assert (first.id, first.question, first.stratum) == ("1", "Is it 1?", "yes")
    assert first.answer == {"type": "yes_no", "value": "yes"}
    assert [task.answer["value"] for task in (second, third, fourth)] == ["no", "yes", "no"]
    assert (first.images[0].width, first.images[0].height) == (8, 6)


def test_tasks_about_one_image_share_it(load: Load, rows: Rows, tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes((tmp_path / "c.png").read_bytes())
    _, _, third, fourth, fifth = load([*rows, rows[0] | {"id": 5, "image": "copy.png"}])
    assert third.images[0] is fourth.images[0] is fifth.images[0]


def test_images_of_very_different_sizes_and_several_in_a_question_are_kept(load: Load, rows: Rows, png: Any) -> None:
    wide, tall = png("wide.png", size=(900, 3)), png("tall.png", size=(2, 800))
    row = rows[0] | {"image": [wide, "a.png"], "second": tall, "third": None}
    (task,) = load([row], YES_NO | {"image": ["image", "second", "third"]})
    assert [(image.width, image.height) for image in task.images] == [(900, 3), (8, 6), (2, 800)]


def test_a_mapping_without_images_makes_text_tasks(load: Load, rows: Rows) -> None:
    mapping = {key: value for key, value in YES_NO.items() if key != "image"}
    assert load(rows, mapping)[0].images == ()


def test_image_paths_start_from_the_image_root(load: Load, rows: Rows, png: Any) -> None:
    png("pictures/p.png", size=(5, 4))
    (task,) = load([rows[0] | {"image": "p.png"}], YES_NO | {"image_root": "pictures"})
    assert task.images[0].width == 5


def test_a_template_puts_columns_into_the_question(load: Load, rows: Rows) -> None:
    mapping = {key: value for key, value in YES_NO.items() if key != "question"}
    mapping |= {"template": "{{age}} is {age}: {question}", "system": "For {sex} patients.", "stratum": "{sex}"}
    (task,) = load([rows[0] | {"age": 61, "sex": "Female"}], mapping)
    assert task.question == "{age} is 61: Is it 1?"
    assert (task.system, task.stratum) == ("For Female patients.", "female")


def test_a_row_gives_every_task_whose_filter_it_meets(load: Load, rows: Rows) -> None:
    cells = [{"kind": "red"}, {"kind": "Red"}, {"kind": "white"}]
    mapping = {
        "id": "id",
        "image": "image",
        "tasks": [
            {
                "name": "red",
                "template": "How many red?",
                "answer": {
                    "type": "number",
                    "column": "cells",
                    "take": "count",
                    "where": {"kind": "red"},
                    "tolerance": 1,
                },
            },
            {
                "name": "blue",
                "template": "Any blue?",
                "answer": {"type": "yes_no", "column": "cells", "take": "any", "where": {"kind": "blue"}},
            },
            {
                "name": "rest",
                "question": "question",
                "unless": {"id": 1},
                "answer": {"type": "text", "column": "answer"},
            },
        ],
    }
    tasks = load([row | {"cells": cells} for row in rows[:2]], mapping)
    assert [task.id for task in tasks] == ["1-red", "1-blue", "2-red", "2-blue", "2-rest"]
    assert tasks[0].answer == {"type": "number", "value": 2, "tolerance": 1}
    assert tasks[1].answer == {"type": "yes_no", "value": "no"}
    assert [task.stratum for task in tasks[2:]] == ["red number", "blue no", "rest text"]


def test_rows_with_too_few_or_too_many_objects_do_not_give_the_task(load: Load, rows: Rows) -> None:
    boxes = [[0, 0, 1, 1], [1, 1, 2, 3], [4, 4, 5, 5]]
    marked = [row | {"cells": [{"box": box} for box in boxes[:count]]} for count, row in enumerate(rows)]
    answer = {"type": "box", "column": "cells", "take": "each", "field": "box", "at_least": 1, "at_most": 2}
    tasks = load(marked, YES_NO | {"answer": answer})
    assert [(task.id, task.answer["value"]) for task in tasks] == [("2", boxes[:1]), ("3", boxes[:2])]


def test_filters_compare_text_without_case_and_outer_space(load: Load, rows: Rows) -> None:
    assert [task.id for task in load(rows, YES_NO | {"where": {"answer": "yes"}})] == ["1", "3"]
    assert [task.id for task in load(rows, YES_NO | {"where": {"id": [1, 2, 3]}, "unless": {"answer": "no"}})] == [
        "1",
        "3",
    ]


def test_a_record_is_read_from_columns_or_from_one_column(load: Load, rows: Rows) -> None:
    by_column = YES_NO | {"record": {"width": {"column": "w", "unit": "mm", "reading": "r"}}}
    (task,) = load([rows[0] | {"w": "1.5", "r": "high"}], by_column)
    assert task.record == {"width": Measurement(value=1.5, unit="mm", reading="high")}
    measured = {"width": {"value": 2, "unit": "cm"}, "depth": 3}
    (task,) = load([rows[0] | {"measured": measured}], YES_NO | {"record": "measured"})
    assert task.record == {"width": Measurement(value=2, unit="cm"), "depth": Measurement(value=3)}


def test_rubric_and_extra_columns_are_kept(load: Load, rows: Rows) -> None:
    criterion = {"criterion": "names the side", "points": -2, "tags": ["safety"]}
    (task,) = load([rows[0] | {"rubric": [criterion], "site": "A"}], YES_NO | {"rubric": "rubric", "extra": ["site"]})
    assert task.rubric == (criterion,)
    assert task.extra == {"site": "A"}


DOUBTED = YES_NO | {"follow_ups": ["Sure? {hint}", {"template": "And this?", "image": "later"}]}


def with_later(rows: Rows, png: Any) -> Rows:
    """Each row with a hint and a further image, of which the last row's is the first row's own."""
    names = [png("later-1.png", shade=11), png("later-2.png", shade=12), png("later-3.png", shade=13), "a.png"]
    return [row | {"hint": f"Hint {row['id']}.", "later": name} for row, name in zip(rows, names, strict=True)]


def test_follow_ups_put_columns_into_what_the_user_says_and_show_further_images(
    load: Load, rows: Rows, png: Any
) -> None:
    tasks = load(with_later(rows, png), DOUBTED)
    assert [[message.text for message in task.follow_ups] for task in tasks] == [
        [f"Sure? Hint {number}.", "And this?"] for number in (1, 2, 3, 4)
    ]
    assert [len(task.images) for task in tasks] == [1, 1, 1, 1]
    assert [[len(message.images) for message in task.follow_ups] for task in tasks] == [[0, 1]] * 4
    assert tasks[3].follow_ups[1].images[0] is tasks[0].images[0]
    assert tasks[0].all_images == (*tasks[0].images, *tasks[0].follow_ups[1].images)


def test_a_task_of_several_may_have_follow_ups_of_its_own_or_none(load: Load, rows: Rows) -> None:
    mapping = YES_NO | {
        "follow_ups": ["Sure?"],
        "tasks": [
            {"name": "plain", "follow_ups": []},
            {"name": "doubted"},
            {"name": "twice", "follow_ups": ["a", "b"]},
        ],
    }
    tasks = load(rows[:1], mapping)
    assert [[message.text for message in task.follow_ups] for task in tasks] == [[], ["Sure?"], ["a", "b"]]


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        ({"later": None}, "rows.jsonl:1: there is no image in column later, which a follow-up shows"),
        ({"later": "missing.png"}, "rows.jsonl:1: .*missing.png"),
        ({"hint": None}, "rows.jsonl:1: 'hint' must be"),
    ],
)
def test_a_follow_up_that_a_row_cannot_give_is_named(
    load: Load, rows: Rows, png: Any, spoilt: dict[str, Any], said: str
) -> None:
    with pytest.raises(TaskError, match=said):
        load([with_later(rows, png)[0] | spoilt], DOUBTED)


def test_a_follow_up_without_text_is_named(load: Load, rows: Rows) -> None:
    with pytest.raises(TaskError, match=r"rows.jsonl:1: the follow-up '\{hint\}' has no text in this row"):
        load([rows[0] | {"hint": " "}], YES_NO | {"follow_ups": ["{hint}"]})


def test_an_image_that_one_task_asks_about_and_another_shows_later_is_on_one_side(
    load: Load, rows: Rows, png: Any
) -> None:
    mapping = DOUBTED | {"split": {"hash_of": "image", "eval_fraction": 0.5}}
    for shades in itertools.product((0, 100), (0, 200)):
        rows[0]["image"], rows[1]["image"] = png("x.png", shade=1 + shades[0]), png("y.png", shade=2 + shades[1])
        told = [row | {"hint": "h", "later": rows[0]["image"]} for row in rows[:2]]  # the second shows the first's
        try:
            sides = [{task.id for task in load(told, mapping, split=split)} for split in ("train", "eval")]
        except TaskError as error:
            assert "has no" in str(error)  # both lie on the other side
            continue
        pytest.fail(f"one image is on both sides: {sides}")


def test_ids_are_made_from_file_and_row_where_no_column_has_them(load: Load, rows: Rows) -> None:
    mapping = {key: value for key, value in YES_NO.items() if key != "id"}
    assert [task.id for task in load(rows, mapping)] == ["rows-1", "rows-2", "rows-3", "rows-4"]


def test_limit_takes_the_first_tasks(load: Load, rows: Rows) -> None:
    assert [task.id for task in load(rows, limit=2)] == ["1", "2"]


# Splits


def test_a_split_by_column_takes_its_values(load: Load, rows: Rows) -> None:
    parts = [row | {"part": part} for row, part in zip(rows, ["train", "Val", "test", "unused"], strict=True)]
    mapping = YES_NO | {"split": {"column": "part", "train": "train", "eval": ["val", "test"]}}
    assert [task.id for task in load(parts, mapping)] == ["1"]
    assert [task.id for task in load(parts, mapping, split="eval")] == ["2", "3"]


def test_a_split_by_image_hash_puts_no_image_on_both_sides(load: Load, rows: Rows, png: Any) -> None:
    many = [rows[0] | {"id": n, "image": png(f"{n % 40}.png", shade=n % 40)} for n in range(120)]
    mapping = YES_NO | {"split": {"hash_of": "image", "eval_fraction": 0.3}}
    train, evaluation = load(many, mapping), load(many, mapping, split="eval")
    assert len(train) + len(evaluation) == 120
    assert 15 <= len(evaluation) <= 60  # 36 on average
    assert check_disjoint(train, evaluation) == 0


def test_a_split_by_image_hash_keeps_images_of_one_question_together(load: Load, rows: Rows, png: Any) -> None:
    names = [png(f"{n}.png", shade=n) for n in range(30)]
    chain = [rows[0] | {"id": n, "image": [names[n], names[n + 1]]} for n in range(29)]
    mapping = YES_NO | {"split": {"hash_of": "image", "eval_fraction": 0.5}}
    sides = []
    for split in ("train", "eval"):
        try:
            sides.append(len(load(chain, mapping, split=split)))
        except TaskError:
            sides.append(0)
    assert sorted(sides) == [0, 29]


def test_a_split_by_patient_puts_no_patient_on_both_sides(load: Load, rows: Rows) -> None:
    many = [rows[0] | {"id": n, "patient": f"P{n % 50}"} for n in range(150)]
    mapping = YES_NO | {"extra": ["patient"], "split": {"hash_of": "patient", "eval_fraction": 0.2}}
    train, evaluation = load(many, mapping), load(many, mapping, split="eval")
    assert len(train) + len(evaluation) == 150 and len(evaluation) >= 9
    assert not {task.extra["patient"] for task in train} & {task.extra["patient"] for task in evaluation}


def test_a_hash_split_does_not_depend_on_the_order_of_rows(load: Load, rows: Rows) -> None:
    many = [rows[0] | {"id": n} for n in range(60)]
    mapping = YES_NO | {"split": {"hash_of": "id", "eval_fraction": 0.5}}
    assert {task.id for task in load(many, mapping)} == {task.id for task in load(many[::-1], mapping)}


def test_training_rows_with_an_image_of_the_evaluation_can_be_left_out(load: Load, rows: Rows, tmp_path: Path) -> None:
    copy = tmp_path / "copy-of-a.png"
    copy.write_bytes((tmp_path / "a.png").read_bytes())
    parts = [row | {"part": "train"} for row in rows] + [rows[0] | {"id": 9, "image": "copy-of-a.png", "part": "eval"}]
    split = {"column": "part", "train": "train", "eval": "eval"}
    assert len(load(parts, YES_NO | {"split": split})) == 4
    kept = load(parts, YES_NO | {"split": split | {"drop_shared_images": True}})
    assert [task.id for task in kept] == ["2", "3", "4"]
    assert check_disjoint(kept, load(parts, YES_NO | {"split": split}, split="eval")) == 0


def test_a_task_on_both_sides_is_an_error(load: Load, rows: Rows) -> None:
    tasks = load(rows)
    with pytest.raises(
        TaskError, match=r"task '2' is both a training and an evaluation task; give the mapping a 'split'"
    ):
        check_disjoint(tasks, tasks[1:2])


def test_evaluation_tasks_about_a_trained_image_are_counted(load: Load, rows: Rows) -> None:
    tasks = load(rows)
    assert check_disjoint(tasks[:3], tasks[3:]) == 1  # rows 3 and 4 share c.png


def test_the_built_in_cases_need_no_mapping() -> None:
    def load_cases(split: Any) -> tuple[Task, ...]:
        return load_tasks("cytology", mapping="", split=split, max_image_pixels=10**6)

    train, evaluation = load_cases("train"), load_cases("eval")
    assert len(train) + len(evaluation) == 569
    assert check_disjoint(train, evaluation) == 0


# What is wrong with a row


def test_the_first_problems_are_named_and_all_are_counted(load: Load, rows: Rows) -> None:
    bad = [rows[0] | {"id": n, "answer": "perhaps"} for n in range(7)]
    lines = message(load, [*bad, rows[1]]).splitlines()
    assert lines[0] == "7 rows cannot be used:"
    assert lines[1].endswith("rows.jsonl:1: answer column 'answer' must be yes, no or maybe; got 'perhaps'")
    assert len(lines) == 7
    assert lines[-1] == "  … and 2 more"


def test_a_single_problem_is_one_line(load: Load, rows: Rows, tmp_path: Path) -> None:
    rows[2]["question"] = "  "
    assert message(load, rows) == f"{tmp_path}/rows.jsonl:3: 'question' must not be empty; got '  '"


def test_a_malformed_line_is_named(load: Load, rows: Rows) -> None:
    text = message(load, [rows[0], '{"id": 2, "image"', rows[2]])
    assert "rows.jsonl:2: is not valid JSON: Expecting ':' delimiter" in text


def test_a_line_that_is_no_object_is_named(load: Load, rows: Rows) -> None:
    assert "rows.jsonl:2: must be a JSON object; got [1, 2]" in message(load, [rows[0], "[1, 2]"])


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", '{"a": "\udce9"}'],
    ids=["nested", "long number", "half a character"],
)
def test_hostile_json_is_a_malformed_line(tmp_path: Path, load: Load, line: str) -> None:
    path = tmp_path / "hostile.jsonl"
    path.write_bytes(line.encode("utf-8", errors="surrogateescape"))
    assert "hostile.jsonl:1: is not valid JSON" in message(load, path)


def test_a_missing_column_is_named_with_a_close_one(load: Load, rows: Rows) -> None:
    rows[1]["questoin"] = rows[1].pop("question")
    text = message(load, rows)
    assert (
        "rows.jsonl:2: 'question' is missing; did you mean 'questoin'?; there are id, image, answer, questoin" in text
    )


def test_a_column_of_the_wrong_type_is_named(load: Load, rows: Rows) -> None:
    rows[0]["question"] = 5
    assert "rows.jsonl:1: 'question' must be of type string or array; got 5" in message(load, rows)


def test_a_filter_on_a_column_that_a_row_lacks_is_an_error_and_no_filter(load: Load, rows: Rows) -> None:
    assert "rows.jsonl:1: 'quality' is missing" in message(load, rows, YES_NO | {"unless": {"quality": "bad"}})


def test_a_repeated_id_names_both_places(load: Load, rows: Rows) -> None:
    rows[3]["id"] = 1
    text = message(load, rows)
    assert "rows.jsonl:4: id '1' was used at" in text and "rows.jsonl:1; every row needs its own id" in text


def test_two_unnamed_tasks_of_one_row_are_a_repeated_id(load: Load, rows: Rows) -> None:
    text = message(load, rows[:1], YES_NO | {"tasks": [{}, {}]})
    assert "every task of a row a 'name'" in text


@pytest.mark.parametrize("answer", ["", "  ", None])
def test_an_empty_answer_is_named(load: Load, rows: Rows, answer: str | None) -> None:
    rows[1]["answer"] = answer
    assert "rows.jsonl:2: answer column 'answer' is empty" in message(load, rows)


def test_a_missing_image_is_named(load: Load, rows: Rows) -> None:
    rows[1]["image"] = "gone.png"
    text = message(load, rows)
    assert "rows.jsonl:2: image " in text and "gone.png cannot be read: No such file or directory" in text


@pytest.mark.parametrize("value", [None, "", [], [None]])
def test_a_row_without_its_image_is_named(load: Load, rows: Rows, value: Any) -> None:
    rows[1]["image"] = value
    assert "rows.jsonl:2: there is no image in column image" in message(load, rows)


def test_an_image_of_the_wrong_kind_is_named(load: Load, rows: Rows) -> None:
    rows[1]["image"] = 7
    assert "rows.jsonl:2: an image is a path, bytes or {bytes, path}; got 7" in message(load, rows)


def test_a_corrupt_image_is_named(load: Load, rows: Rows, tmp_path: Path) -> None:
    path = tmp_path / "b.png"
    path.write_bytes(path.read_bytes()[:-20])
    text = message(load, rows)
    assert "rows.jsonl:2: image " in text and "b.png is corrupt or truncated" in text


def test_a_huge_image_is_named(load: Load, rows: Rows, png: Any) -> None:
    rows[1]["image"] = png("huge.png", size=(101, 100))
    assert "huge.png is too large: 101 x 100 = 10,100 pixels; at most 10,000 are allowed" in message(load, rows)


@pytest.mark.parametrize(
    ("rubric", "what"),
    [
        ([{"criterion": "x"}], "'points' is missing in 'rubric.0'"),
        ([{"criterion": "", "points": 1}], "'rubric.0.criterion' must not be empty"),
        ("good", "'rubric' must be of type array; got 'good'"),
    ],
)
def test_a_malformed_rubric_is_named(load: Load, rows: Rows, rubric: Any, what: str) -> None:
    assert f"rows.jsonl:1: {what}" in message(load, [rows[0] | {"rubric": rubric}], YES_NO | {"rubric": "rubric"})


@pytest.mark.parametrize(
    ("measured", "what"),
    [
        ({"width": {"valeu": 1}}, "'value' is missing in 'measured.width'; did you mean 'valeu'?"),
        ({"width": {"value": 1, "units": "mm"}}, "unknown key 'measured.width.units'; did you mean 'unit'?"),
        ({"width": "wide"}, "'measured.width' must be of type number or object"),
    ],
)
def test_a_malformed_record_is_named(load: Load, rows: Rows, measured: Any, what: str) -> None:
    assert f"rows.jsonl:1: {what}" in message(load, [rows[0] | {"measured": measured}], YES_NO | {"record": "measured"})


def test_a_measurement_that_is_no_number_is_named(load: Load, rows: Rows) -> None:
    mapping = YES_NO | {"record": {"width": {"column": "w"}}}
    text = message(load, [rows[0] | {"w": "wide"}], mapping)
    assert "rows.jsonl:1: column 'w' must hold a finite number; got 'wide'" in text


def test_a_row_without_what_decides_the_split_is_named(load: Load, rows: Rows) -> None:
    mapping = YES_NO | {"split": {"hash_of": "patient", "eval_fraction": 0.5}}
    assert "column 'patient', which decides the split, is empty" in message(
        load, [rows[0] | {"patient": None}], mapping
    )


def test_a_source_of_which_no_row_is_left_says_so(load: Load, rows: Rows) -> None:
    text = message(load, rows, YES_NO | {"where": {"answer": "maybe"}})
    assert "has no train task: none of 4 rows meets 'where', 'unless' and 'split' of" in text


def test_a_source_without_a_mapping_says_what_is_missing() -> None:
    with pytest.raises(TaskError, match=r"tasks\.source x\.jsonl needs tasks\.mapping"):
        load_tasks("x.jsonl", mapping="", split="train", max_image_pixels=1)


# The shipped mappings on the real data


def load_shipped(source: str, mapping: str, split: Any) -> tuple[Task, ...]:
    if not (DATA / source).is_dir():
        pytest.skip(f"{DATA / source} is missing; MEDRL_DATA names the folder that has {source}/")
    path = REPOSITORY / "configs" / "tasks" / f"{mapping}.yaml"
    return load_tasks(str(DATA / source), mapping=str(path), split=split, max_image_pixels=4_194_304)


def test_vqa_rad_loads_whole() -> None:
    train, evaluation = (load_shipped("vqa_rad", "vqa_rad", split) for split in ("train", "eval"))
    assert (len(train), len(evaluation)) == (3064, 451)
    # by hand, from the two files: answers "yes" and "no" without case and outer space
    assert Counter(task.stratum for task in train) == {"yes": 829, "no": 884, "open": 1351}
    assert Counter(task.stratum for task in evaluation) == {"yes": 118, "no": 133, "open": 200}
    assert len({id(image) for task in train for image in task.images}) == 314
    assert check_disjoint(train, evaluation) == 451  # each test image is also a training image: the comment says so


def test_vqa_rad_without_shared_images_trains_on_none_of_the_test_images(tmp_path: Path) -> None:
    evaluation = load_shipped("vqa_rad", "vqa_rad", "eval")
    text = (REPOSITORY / "configs" / "tasks" / "vqa_rad.yaml").read_text()
    strict = tmp_path / "strict.yaml"
    strict.write_text(text.replace("drop_shared_images: false", "drop_shared_images: true"))
    train = load_tasks(str(DATA / "vqa_rad"), mapping=str(strict), split="train", max_image_pixels=4_194_304)
    assert len(train) == 1152  # 3,064 less the 1,912 that the comment names
    assert check_disjoint(train, evaluation) == 0


def test_bccd_counts_and_boxes_load_whole() -> None:
    train, evaluation = (load_shipped("bccd", "bccd_count", split) for split in ("train", "eval"))
    # 205 and 159 images with four questions each, less 8 + 7 without a red and 1 + 5 without a white cell
    assert (len(train), len(evaluation)) == (4 * 205 - 9, 4 * 159 - 12)
    assert check_disjoint(train, evaluation) == 0
    assert all(task.answer["value"] >= 1 for task in train if task.id.endswith(("-red", "-white")))
    boxes = load_shipped("bccd", "bccd_boxes", "train")
    assert len(boxes) == 194  # images with exactly one white cell
    assert all(len(task.answer["value"]) == 1 for task in boxes)


# What claims are held against


def test_columns_become_the_reference_of_a_task(load: Load, rows: Rows) -> None:
    mapping = YES_NO | {"reference": {"findings": "seen", "sources": {"report": "text"}, "regions": "boxes"}}
    seen = [{"name": "edema", "urgency": "urgent"}, "effusion"]
    boxes = [[0, 0, 4, 4], {"box": [1, 1, 2, 2], "label": "edema"}]
    first, second = load(
        [
            rows[0] | {"seen": seen, "text": "Edema.", "boxes": boxes},
            rows[1] | {"seen": "edema, pleural effusion", "text": "", "boxes": None},
        ],
        mapping,
    )
    assert first.reference == {"findings": seen, "sources": {"report": "Edema."}, "regions": boxes}
    assert second.reference == {"findings": ["edema", "pleural effusion"]}


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("seen", [{"name": "edema", "urgency": "high"}], "'findings.0.urgency' must be one of urgent, actionable"),
        ("seen", [{"nam": "edema"}], "'name' is missing in 'findings.0'; did you mean 'nam'"),
        ("boxes", [[1, 2, 3]], "'regions.0': .* is too short"),
    ],
)
def test_a_reference_that_cannot_be_used_is_named(load: Load, rows: Rows, column: str, value: Any, said: str) -> None:
    mapping = YES_NO | {"reference": {"findings": "seen", "regions": "boxes"}}
    assert re.search(said, message(load, [rows[0] | {"seen": None, "boxes": None} | {column: value}], mapping))
