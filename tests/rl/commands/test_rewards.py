"""The designer's commands as a designer runs them; none of them may start Ray or load a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rl.cli import main
from rl.types import Group, Measurement, Score, ScoredTrajectory, ScoreRecord
from rollouts.log import LoggedStep, write_step
from tests.samples import a_task, a_trajectory

REWARDS = """
scorers:
  answer: {use: answer}
  grounding: {use: hallucination, weight: 0.5, when: {record: true}}
"""
ANSWER = {"type": "yes_no", "value": "yes"}


def row(id: str, completion: str = "<think>x</think><answer>yes</answer>", **fields: Any) -> dict[str, Any]:
    return {"id": id, "question": "Is it?", "completion": completion, "answer": ANSWER} | fields


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.yaml").write_text(REWARDS)
    return tmp_path


def write_rows(*rows: dict[str, Any]) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def score(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    status = main(["rewards", "score", "rewards.yaml", "--in", "rows.jsonl", "--out", "scores.jsonl", *arguments])
    return status, [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("concurrency", ["1", "3", "64"])
def test_one_row_in_is_one_row_out_in_the_same_order(folder: Path, concurrency: str) -> None:
    write_rows(*(row(str(index), f"<answer>{'yes' if index % 3 else 'no'}</answer>") for index in range(10)))
    status, scores = score("--concurrency", concurrency)
    assert status == 0
    assert [each["id"] for each in scores] == [str(index) for index in range(10)]
    assert [each["reward"] for each in scores] == [0, 1, 1, 0, 1, 1, 0, 1, 1, 0]


def test_a_row_that_a_scorer_cannot_read_says_so_in_its_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(row("1"), row("2", answer={"type": "riddle"}), row("3"))
    _, scores = score()
    assert [(each["outcome"], each["reward"]) for each in scores] == [
        ("scored", 1),
        ("invalid_input", None),
        ("scored", 1),
    ]
    assert "must be one of yes_no" in scores[1]["scores"]["answer"]["reason"]
    assert "scored 2 of 3 rows, mean reward 1.000, invalid_input 1 (first: 2: answer:" in capsys.readouterr().err


def test_a_completion_that_was_aborted_is_unscored_and_said_to_be(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(row("1", finish_reason="abort"), row("2"))
    _, scores = score()
    assert [each["reward"] for each in scores] == [None, 1]
    assert "(first: 1: aborted, so that no scorer was asked)" in capsys.readouterr().err


def test_an_output_row_has_these_keys_and_no_others(folder: Path) -> None:
    text = "radius 17 um high <answer>yes</answer>"
    write_rows(row("1", text, record={"radius": {"value": 17, "unit": "um", "reading": "high"}}))
    (out,) = score()[1]
    assert list(out) == ["id", "outcome", "reward", "scores"]
    grounding = out["scores"]["grounding"]
    assert list(grounding) == ["value", "outcome", "reason", "evidence", "version", "inputs", "duration_s"]
    (claim,) = grounding["evidence"]
    assert text[claim["start"] : claim["end"]] == claim["claim"] == "radius 17 um high"


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ('{"id": "1"', "rows.jsonl:2: not JSON: "),
        (json.dumps(row("1")), "rows.jsonl:2: the id '1' was used on line 1"),
        (json.dumps(row("2", images=["gone.png"])), "rows.jsonl:2: images: 'gone.png' cannot be read: No such file"),
    ],
)
def test_a_malformed_row_ends_it_before_anything_is_scored(
    folder: Path, capsys: pytest.CaptureFixture[str], last: str, said: str
) -> None:
    Path("rows.jsonl").write_text(f"{json.dumps(row('1'))}\n{last}\n")
    assert main(["rewards", "score", "rewards.yaml", "--in", "rows.jsonl", "--out", "scores.jsonl"]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["rewards.yaml", "rows.jsonl"]


def test_the_rows_are_never_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(row("1"))
    assert main(["rewards", "score", "rewards.yaml", "--in", "rows.jsonl", "--out", "./rows.jsonl"]) == 2
    assert "is the file that is read" in capsys.readouterr().err


def test_what_length_shaping_does_without_token_counts_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("rewards.yaml").write_text("scorers: {answer: {use: answer}}\nlength_penalty: 0.4\nlength_soft_tokens: 100\n")
    write_rows(row("1"), row("2", length_tokens=150, max_tokens=200))
    _, scores = score()
    # 150 tokens are half way from 100 to 200: half of the penalty of 0.4
    assert [each["reward"] for each in scores] == [1.0, 0.8]
    assert "1 of 2 rows have no length_tokens and max_tokens, and are rewarded without it" in capsys.readouterr().err


def test_a_rule_that_counts_tokens_reads_no_row_without_a_count(folder: Path) -> None:
    write_rows(
        row("1", rubric=[{"criterion": "short", "points": 1, "check": {"length": {"unit": "tokens", "max": 9}}}])
    )
    Path("rewards.yaml").write_text("scorers: {form: {use: rubric}}\n")
    status, (out,) = score()
    assert (status, out["outcome"]) == (1, "invalid_input")
    assert "without a token count" in out["scores"]["form"]["reason"]


RECORD = {"radius": Measurement(value=17.0, unit="um", reading="high")}


@pytest.fixture
def run(folder: Path) -> Path:
    """The folder of a run of one step and two trajectories, one of which answers wrongly."""
    task = a_task("case", record=RECORD)
    scored = [
        ScoredTrajectory(
            trajectory=a_trajectory(
                f"radius 17 um high <answer>{said}</answer>", id=f"train-000001-0000/{at}", task=task
            ),
            reward=value,
            scores={"answer": ScoreRecord(scorer="answer", version="v", outcome="scored", score=Score(value))},
            correct=bool(value),
        )
        for at, (said, value) in enumerate([("yes", 1.0), ("no", 0.0)])
    ]
    write_step(folder / "run", LoggedStep(step=1, groups=[Group(task=task, scored=tuple(scored))]))
    return folder / "run"


def test_the_logged_trajectories_of_a_run_are_scored_anew(run: Path) -> None:
    assert main(["rewards", "score", "rewards.yaml", "--in", "run", "--out", "scores.jsonl"]) == 0
    scores = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    # answer weighs 1, grounding .5 and is 1 for both: (1 + .5)/1.5 and (0 + .5)/1.5
    assert [(each["id"], each["reward"]) for each in scores] == [
        ("train-000001-0000/0", 1.0),
        ("train-000001-0000/1", pytest.approx(1 / 3)),
    ]


def test_a_folder_that_is_no_run_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "score", "rewards.yaml", "--in", ".", "--out", "scores.jsonl"]) == 2
    assert "holds no trajectories; is it a run's folder?" in capsys.readouterr().err


@pytest.mark.slow
def test_no_tool_loads_the_accelerator_stack(folder: Path) -> None:
    write_rows(row("1"), row("2", "<answer>no</answer>"))
    Path("human.jsonl").write_text('{"id": "1", "label": true}\n{"id": "2", "label": false}\n')
    commands = [
        "score rewards.yaml --in rows.jsonl --out scores.jsonl",
        "list",
        "explain 1 --in rows.jsonl --rewards rewards.yaml",
        "lint rewards.yaml --in rows.jsonl",
        "test rewards.yaml",
        "agree --labels human.jsonl --scores scores.jsonl",
    ]
    code = (
        "import sys; from rl.cli import main; "
        f"ended = [main(['rewards', *line.split()]) for line in {commands}]; "
        "print(ended, sorted({'torch', 'ray', 'vllm', 'transformers'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.stdout.splitlines()[-1] == "[0, 0, 0, 0, 1, 0] []", ran.stderr


def test_the_commands_start_before_anything_heavy_is_loaded() -> None:
    code = (
        "import sys; from rl.cli import _parser; _parser().parse_args(['rewards', 'list']); "
        "print(sorted({'numpy', 'yaml', 'jsonschema', 'pyarrow', 'sklearn', 'PIL'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stderr


def test_a_row_is_explained_by_the_rewards_that_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(row("1"), row("2", "<answer>no</answer>"))
    assert main(["rewards", "explain", "2", "--in", "rows.jsonl", "--rewards", "rewards.yaml"]) == 0
    assert "read 'no', expected 'yes'" in capsys.readouterr().out


def test_a_trajectory_of_a_run_is_explained_by_what_was_logged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").write_text("max_steps: 1\nrewards: {scorers: {answer: {use: answer, weight: 2.0}}}\n")
    assert main(["rewards", "explain", "train-000001-0000/1", "--in", "run"]) == 0
    said = capsys.readouterr().out
    assert "answer  weight 2  value 0.0000  version v" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["9", "--in", "rows.jsonl", "--rewards", "rewards.yaml"], "has no trajectory of the id '9'"),
        (["1", "--in", "rows.jsonl"], "holds no scores; say with --rewards"),
        (["9", "--in", "run"], "has no trajectory of the id '9'; its ids are such as 'train-000001-0000/0'"),
    ],
)
def test_what_cannot_be_explained_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    write_rows(row("1"))
    (run / "config.yaml").write_text("max_steps: 1\nrewards: {scorers: {answer: {use: answer}}}\n")
    assert main(["rewards", "explain", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_kinds_that_do_not_exist_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "list", "rules"]) == 0
    assert "cites_evidence" in capsys.readouterr().out
    assert main(["rewards", "list", "judges"]) == 2
    assert "there is no kind 'judges'; there are scorers, answers, rules, claims" in capsys.readouterr().err


def test_mutation_testing_ends_with_a_status_for_ci(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(row("1", "<think></think><answer>yes</answer>"))
    allow = ["--allow", "flattery", "--allow", "hidden_instructions"]
    run = ["rewards", "test", "rewards.yaml", "--in", "rows.jsonl"]
    assert main(run) == 1
    assert "unpunished: flattery, hidden_instructions" in capsys.readouterr().out
    assert main([*run, *allow]) == 0
    assert "every corruption is punished, or allowed" in capsys.readouterr().out
    assert main([*run, "--allow", "flatery"]) == 2
    assert "Did you mean 'flattery'?" in capsys.readouterr().err


def test_traces_that_no_corruption_could_harm_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(row("1", "<answer>no</answer>"))
    assert main(["rewards", "test", "rewards.yaml", "--in", "rows.jsonl"]) == 2
    assert "none of the traces gets a reward that could drop; 1: its reward is 0" in capsys.readouterr().err


@pytest.mark.slow
def test_the_rewards_of_the_quickstart_punish_every_corruption(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "test", "configs/quickstart.yaml"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("scores", ["scores.jsonl", "run"])
def test_agreement_with_human_labels_is_shown_for_scores_and_for_a_run(
    run: Path, capsys: pytest.CaptureFixture[str], scores: str
) -> None:
    assert main(["rewards", "score", "rewards.yaml", "--in", "run", "--out", "scores.jsonl"]) == 0
    ids = ("train-000001-0000/0", "train-000001-0000/1")
    Path("human.jsonl").write_text("".join(json.dumps({"id": id, "label": id.endswith("0")}) + "\n" for id in ids))
    assert main(["rewards", "agree", "--labels", "human.jsonl", "--scores", scores, "--scorer", "answer"]) == 0
    said = capsys.readouterr().out
    assert "answer against human labels: 2 rows, binary labels" in said
    assert "Cohen's kappa                        1.000" in said


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    line = f"{sys.executable} -m rl.cli rewards list | head -1"
    ran = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert ran.stdout.startswith("Scorers") and ran.stderr == ""


def test_lint_ends_with_a_status_for_ci(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("form.yaml").write_text(
        '- {criterion: a, points: 1, check: {regex: "x*"}}\n- {criterion: b, points: 1, check: {not: {contains: b}}}\n'
    )
    Path("rewards.yaml").write_text("scorers:\n  form: {use: rubric, path: form.yaml}\n")
    lint = ["rewards", "lint", "rewards.yaml"]
    assert main(lint) == 1
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "form.yaml:1: error [cannot-fail] every trace meets +1 'a': its points are always earned",
        "form.yaml:2: warning [met-by-nothing] an empty completion earns +1 'b'",
    ]
    assert said.err == "errors 1, warnings 1\n"
    assert main([*lint, "--allow", "cannot-fail"]) == 0
    assert main([*lint, "--allow", "cannot-fail", "--strict"]) == 1
    assert main([*lint, "--allow", "can-fail"]) == 2
    assert "Did you mean 'cannot-fail'?" in capsys.readouterr().err


BAD_REWARDS = [
    ("{answer: {use: answer, weight: 0}}", "rewards.yaml:2: the weights in rewards.scorers sum to 0"),
    ("\n  own: {use: 'nowhere.at_all:Mine'}", "rewards.yaml:3: rewards.scorers.own.use: there is no module 'nowhere'"),
    ("\n  a: {use: answer, blocks: 1}", "rewards.yaml:3: rewards.scorers.a.blocks: AnswerScorer has no such parameter"),
    ("\n  form: {use: rubric, path: unknown.yaml}", "unknown.yaml:1: unknown key 'pints'"),
    ("\n  form: {use: rubric, path: lost.yaml}", "lost.yaml: no criterion has points > 0"),
    ("\n  form: {use: rubric, path: regex.yaml}", "regex.yaml:1: the regular expression '(' does not compile"),
    (
        "\n  a: {use: answer}\n  g: {use: rubric, path: wanted.yaml, gate: true}",
        "wanted.yaml: a gate needs a criterion",
    ),
]


@pytest.mark.parametrize(("scorers", "said"), BAD_REWARDS)
@pytest.mark.parametrize("command", [["lint"], ["score", "--in", "rows.jsonl", "--out", "scores.jsonl"]])
def test_rewards_that_cannot_be_used_are_one_message_with_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], scorers: str, said: str, command: list[str]
) -> None:
    Path("unknown.yaml").write_text("- {criterion: a, pints: 1}")
    Path("lost.yaml").write_text("- {criterion: a, points: -1, check: {contains: a}}")
    Path("wanted.yaml").write_text("- {criterion: a, points: 1, check: {contains: a}}")
    Path("regex.yaml").write_text('- {criterion: a, points: 1, check: {regex: "("}}')
    Path("rewards.yaml").write_text(f"# rewards\nscorers: {scorers}\n")
    write_rows(row("1"))
    assert main(["rewards", command[0], "rewards.yaml", *command[1:]]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("medrl: ConfigError: ") and "rewards.yaml:" in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("scores.jsonl").exists()
