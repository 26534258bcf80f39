"""Bad input: exit status 2 and one clear message, before Ray starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from rl.cli import main

MINIMAL = "max_steps: 1\nrewards: {scorers: {answer: {use: answer}}}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a config, a mapping and a data set of two good rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rl.cluster.ray_session", lambda *args, **kwargs: pytest.fail("Ray is started"))
    (tmp_path / "run.yaml").write_text(MINIMAL)
    (tmp_path / "mapping.yaml").write_text(
        "id: id\nimage: image\nquestion: question\nanswer: {type: yes_no, column: answer}\n"
        "split: {hash_of: id, eval_fraction: 0.5}\n"
    )
    Image.new("RGB", (32, 32), "red").save(tmp_path / "good.png")
    rows = [{"id": f"case-{i}", "image": "good.png", "question": "Is it red?", "answer": "yes"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """What ``medrl train`` says of ``run.yaml`` under ``overrides``; it must say it in one message, status 2."""
    status = main(["train", "run.yaml", "output_dir=run", *overrides])
    said = capsys.readouterr().err
    assert status == 2, said
    assert "Traceback" not in said
    assert not Path("run").exists(), "nothing is left behind that a second try would stumble over"
    return said


ROWS = ("tasks.source=rows.jsonl", "tasks.mapping=mapping.yaml")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["learner.learning_rat=1"], "Did you mean: 'learning_rate'"),
        (
            ["loss.clip_low=3"],
            "loss.clip_low must be in (0, 1]; got 3.0 (run.yaml with output_dir=run loss.clip_low=3)",
        ),
        (["rewards.scorers.answer.use=anser"], "no scorer is called 'anser'"),
        (["rewards.scorers.answer.wight=2"], "wight"),
        (["rewards.scorers.answer.weight=0"], "the weights in rewards.scorers sum to 0"),
        (["rewards.scorers.own={use: 'nowhere.scorers:Mine'}"], "there is no module 'nowhere'"),
        (["rewards.scorers.form={use: rubric, path: gone.yaml}"], "there is no file 'gone.yaml'"),
        (["tasks.source=gone.jsonl", "tasks.mapping=mapping.yaml"], "gone.jsonl"),
        (["tasks.source=rows.jsonl"], "needs tasks.mapping"),
        (["tasks.source=rows.jsonl", "tasks.mapping=gone.yaml"], "gone.yaml"),
        ([*ROWS, "tasks.max_image_pixels=100"], "is too large: 32 x 32 = 1,024 pixels; at most 100"),
        ([*ROWS, "rollouts.max_images=0"], "has 1 images; the engines are set up for at most 0"),
        (["sampling.temperature=0.7", "sampling.top_p=0.9"], "got top_p 0.9, top_k 0 and temperature 0.7"),
        (["policy.path=gone"], "no policy at 'gone'"),
    ],
)
def test_what_the_config_asks_wrongly_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    assert said in refused(capsys, *overrides)


def _truncate_image(project: Path) -> None:
    content = (project / "good.png").read_bytes()
    (project / "good.png").write_bytes(content[: len(content) // 2])


def _append(line: str) -> Callable[[Path], None]:
    def append(project: Path) -> None:
        with (project / "rows.jsonl").open("a") as file:
            file.write(line + "\n")

    return append


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda project: (project / "rows.jsonl").write_text(""), "rows.jsonl"),
        (_append("{"), "rows.jsonl:9"),
        (_append('{"id": "case-9", "image": "good.png", "answer": "yes"}'), "rows.jsonl:9"),
        (_append('{"id": "case-9", "image": "good.png", "question": "?", "answer": "perhaps"}'), "rows.jsonl:9"),
        (_append('{"id": "case-0", "image": "good.png", "question": "?", "answer": "yes"}'), "case-0"),
        (
            _append('{"id": "case-9", "image": "gone.png", "question": "?", "answer": "yes"}'),
            "rows.jsonl:9: image gone.png cannot be read",
        ),
        (lambda project: (project / "good.png").write_bytes(b"not an image"), "good.png is not an image"),
        (_truncate_image, "good.png is corrupt or truncated"),
    ],
)
def test_what_the_data_set_has_wrong_is_refused_with_its_place(
    project: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], said: str
) -> None:
    spoil(project)
    assert said in refused(capsys, *ROWS)


@pytest.mark.slow
def test_a_policy_without_processor_or_of_an_unknown_architecture_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = project / "policy"
    policy.mkdir()
    (policy / "config.json").write_text(json.dumps({"architectures": ["MistralThreeForEverything"]}))
    (policy / "tokenizer.json").write_text("{}")
    assert "has no image processor" in refused(capsys, "policy.path=policy")
    (policy / "processor_config.json").write_text("{}")
    assert "vLLM does not know the architecture" in refused(capsys, "policy.path=policy")


def test_a_folder_that_is_no_run_cannot_be_resumed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no run to resume in run" in refused(capsys, "resume=true")
