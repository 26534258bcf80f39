"""Benchmarks are data: every shipped one reads, those whose data are here load, a mistake has its line."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rewards.answer import check_key
from rewards.config import load_rewards
from rl.benchmarks.spec import benchmark_tasks, find_benchmarks, has_data, load_benchmark
from rl.cli import main
from rl.errors import ConfigError, TaskError
from rl.types import Task
from rollouts.mapping import fill_template
from rollouts.tasks import load_tasks

DATA = Path(os.environ.get("MEDRL_DATA", Path(__file__).parents[3].parent / "shared" / "data"))
NAMES = [benchmark.name for benchmark in find_benchmarks()]
HERE = [benchmark.name for benchmark in find_benchmarks() if benchmark.checked == "run"]
PIXELS = 1 << 24
GOOD = """
title: A benchmark
citation: "Somebody 2020"
licence: MIT
source: {shipped: rows.jsonl}
split: test
modality: text
metric: accuracy
checked: run
fields: the rows
mapping:
  question: question
  answer: {type: yes_no, column: answer}
  extra: [topic]
rewards: {scorers: {answer: {use: answer}}}
""".lstrip()


def written(folder: Path, text: str = GOOD) -> Path:
    (folder / "rows.jsonl").write_text('{"question": "Is it?", "answer": "yes", "topic": "heart"}\n')
    (folder / "mine.yaml").write_text(text)
    return folder / "mine.yaml"


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_benchmark_reads_and_its_scorers_can_be_built(name: str) -> None:
    (benchmark,) = find_benchmarks([name])
    judges = {"judges": {"main": {"url": "http://judge/v1", "model": "m"}}} if benchmark.judge else {}
    assert load_rewards(dict(benchmark.rewards) | judges, benchmark.path.parent)


@pytest.mark.parametrize("name", HERE)
def test_a_benchmark_whose_data_are_here_loads(name: str) -> None:
    (benchmark,) = find_benchmarks([name])
    if not has_data(benchmark, DATA):
        pytest.skip(f"{DATA} has no {benchmark.source['path']}; MEDRL_DATA names the folder that has it")
    for task in benchmark_tasks(benchmark, data=DATA, max_image_pixels=PIXELS, limit=40):
        check_key(task)
        assert fill_template(benchmark.modality, task.extra)
        assert all(column in task.extra for column in benchmark.slices)


IMAGE = "a.png"
MCQ = {"question": "Which?", "A": "x", "B": "y", "C": "z", "D": "w"}
PUBLISHED: dict[str, tuple[dict[str, Any], Any]] = {
    "chexpert_plus": ({"path_to_image": IMAGE, "section_findings": "No pneumothorax."}, "No pneumothorax."),
    "healthbench": (
        {
            "prompt_id": "p",
            "prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}],
            "rubrics": [{"criterion": "Greets.", "points": 3, "tags": []}],
        },
        "p",
    ),
    "iu_xray": ({"id": "1", "report": "Clear.", "image_path": [IMAGE], "split": "test"}, "Clear."),
    "med_halt_fct": (
        {"id": "1", "question": "Which?", "options": '{"0": "x", "1": "y"}', "correct_index": 1, "split_type": "test"},
        "B",
    ),
    "medcalc_bench": (
        {"Patient Note": "A man.", "Question": "BMI?", "Ground Truth Answer": "23.5", "Output Type": "decimal"}
        | {"Category": "physical", "Calculator Name": "BMI"},
        23.5,
    ),
    "medxpertqa_mm": (
        {"id": "MM-0", "question": "Which?", "options": {"A": "x", "B": "y"}, "label": "B", "images": [IMAGE]}
        | {"medical_task": "Treatment", "body_system": "Skeletal", "question_type": "Reasoning"},
        "B",
    ),
    "mmmu_val_med": (
        {
            "id": "1",
            "question": "<image 1>?",
            "options": "['x', 'y']",
            "answer": "B",
            "question_type": "multiple-choice",
        }
        | {"image_1": IMAGE, **{f"image_{number}": None for number in range(2, 8)}},
        "B",
    ),
    "mmmu_pro_med": (
        {"id": "1", "question": "<image 1>?", "options": "['x', 'y']", "answer": "B", "subject": "Pharmacy"}
        | {"image_1": IMAGE, **{f"image_{number}": None for number in range(2, 8)}},
        "B",
    ),
    "pathvqa": ({"image": IMAGE, "question": "Is it?", "answer": "no"}, "no"),
    "pmc_vqa": ({"id": "1", "image": IMAGE, "question": "Which?", "options": ["x", "y"], "answer": "B"}, "B"),
    "rarebench": ({"Phenotype": "ataxia", "RareDisease": ["Friedreich ataxia", "FRDA"]}, "Friedreich ataxia"),
    "slake": (
        {"qid": 9, "img_name": IMAGE, "question": "Is it?", "answer": "Yes", "q_lang": "en", "modality": "MRI"}
        | {"answer_type": "CLOSED", "content_type": "Modality", "location": "Abdomen"},
        "yes",
    ),
}
SAME_FORM = {"healthbench_hard": "healthbench", "med_halt_nota": "med_halt_fct", "mimic_cxr": "iu_xray"}


FIELDS = {benchmark.name for benchmark in find_benchmarks() if benchmark.checked == "fields"}


@pytest.mark.parametrize("name", sorted(FIELDS | PUBLISHED.keys() | SAME_FORM.keys()))
def test_a_row_with_the_published_names_becomes_a_task(name: str, tmp_path: Path) -> None:
    row, value = PUBLISHED[SAME_FORM.get(name, name)]
    (benchmark,) = find_benchmarks([name])
    Image.new("L", (8, 6)).save(tmp_path / IMAGE)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    mapping = dataclasses.replace(benchmark.mapping, file="", image_root="")
    (task,) = load_tasks(str(tmp_path / "rows.jsonl"), mapping=mapping, split="eval", max_image_pixels=PIXELS)
    check_key(task)
    assert task.answer["value"] == value and fill_template(benchmark.modality, task.extra)
    assert bool(task.images) == bool(benchmark.mapping.image)


def test_a_conversation_is_put_as_its_transcript(tmp_path: Path) -> None:
    row, _ = PUBLISHED["healthbench"]
    (benchmark,) = find_benchmarks(["healthbench"])
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (task,) = load_tasks(str(tmp_path / "rows.jsonl"), mapping=benchmark.mapping, split="eval", max_image_pixels=PIXELS)
    assert task.question == "User: Hi\n\nAssistant: Yes?" and task.rubric[0]["points"] == 3


def test_a_benchmark_of_ones_own_loads(tmp_path: Path) -> None:
    benchmark = load_benchmark(written(tmp_path))
    (task,) = benchmark_tasks(benchmark, max_image_pixels=PIXELS)
    assert isinstance(task, Task) and task.extra == {"topic": "heart"}


@pytest.mark.parametrize(
    ("was", "now", "line", "what"),
    [
        ("metric: accuracy", "metric: acuracy", 7, "did you mean 'accuracy'?"),
        ("licence: MIT", "license: MIT", 3, "unknown key 'license'; did you mean 'licence'?"),
        ("checked: run\n", "", 1, "'checked' is missing"),
        ("modality: text", "modality: '{organ}'", 6, "modality names 'organ', which mapping.extra lacks"),
        ("split: test", "split: test\nslices: [place]", 6, "slices names 'place', which mapping.extra lacks"),
        ("type: yes_no", "type: yesno", 12, "did you mean 'yes_no'?"),
        ("{shipped: rows.jsonl}", "{path: rows.jsonl}", 4, "none of the allowed forms"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, was: str, now: str, line: int, what: str) -> None:
    path = written(tmp_path, GOOD.replace(was, now))
    with pytest.raises(ConfigError) as caught:
        load_benchmark(path)
    assert f"{path}:{line}: " in str(caught.value) and what in str(caught.value)


def test_a_benchmark_that_does_not_exist_is_named_with_a_close_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'medqa'"):
        find_benchmarks(["medqaa"])


def test_data_that_are_not_there_are_named_with_where_to_get_them(tmp_path: Path) -> None:
    (benchmark,) = find_benchmarks(["slake"])
    with pytest.raises(
        TaskError, match=r"slake does not exist; it is to be had from www\.med-vqa\.com/slake, and --data"
    ):
        benchmark_tasks(benchmark, data=tmp_path, max_image_pixels=PIXELS)


def test_the_list_says_what_was_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmarks", "slake", "instructions"]) == 0
    printed = capsys.readouterr().out
    assert "fields          -  SLAKE" in printed and "arXiv:2102.09542" in printed
    assert "run            12  Instruction following" in printed
