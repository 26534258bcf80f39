"""Functions in the shapes that other frameworks document, each through the service as a config names it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from rewards.config import ConfiguredScorer, build_scorer, load_rewards
from rewards.scorer import Score
from rewards.service import RewardService, attempt
from rl.errors import ConfigError
from rl.types import Message, ScoredTrajectory
from tests.rewards.conftest import a_conversation

FUNCTIONS = """
import asyncio, math
import numpy as np

# TRL's GRPOTrainer

def exact(completions, answer, **kwargs):
    return [1.0 if completion[0]["content"] == truth else 0.0 for completion, truth in zip(completions, answer)]

async def exact_later(prompts, completions, modality, **kwargs):
    await asyncio.sleep(0)
    assert prompts[0][-1]["role"] == "user"
    return [0.5 if each == "CT" else None for each in modality]

def plain_text(prompts, completions, completion_ids, trainer_state, **kwargs):
    assert isinstance(prompts[0], str) and len(completion_ids[0]) == 4
    return np.array([len(completions[0]) / 10 + trainer_state.global_step], dtype=np.float32)

def logging(completions, log_metric, log_extra, **kwargs):
    log_metric("accuracy", 0.25)
    log_extra("gold", ["42"])
    return [1]

def answers(completions, results, **kwargs):
    return eval(results[0], {"nan": math.nan, "inf": math.inf})

def conversation(completions, completion_ids, **kwargs):
    assert [each["role"] for each in completions[0]] == ["assistant", "user", "assistant"]
    assert len(completion_ids[0]) == 9  # 4 written, 3 told, 2 written
    return [float([each["content"] for each in completions[0]] == ["no", "Sure?", "yes"])]

def decoded(completions, **kwargs):
    return [float(completions[0] == "no\\n\\nSure?\\n\\nyes")]

def last_turn(prompts, completions, **kwargs):
    return [float((prompts[0][-1]["content"], completions[0][0]["content"]) == ("?\\n\\nSure?", "yes"))]

def called(completions, **kwargs):
    return [float([each["role"] for each in completions[0]] == ["assistant", "tool", "assistant"])]

# verl

def spoken(data_source, solution_str, ground_truth, extra_info):
    return float(solution_str == "no\\n\\nSure?\\n\\nyes")

def compute_score(data_source, solution_str, ground_truth, extra_info=None, bonus=0.0):
    score = float(solution_str == ground_truth) + bonus
    return {"score": score, "acc": 1.0, "pred": solution_str, "where": data_source}

def compute_score_batched(data_sources, solution_strs, ground_truths, extra_infos):
    return [float(s == g and e["modality"] == "CT") for s, g, e in zip(solution_strs, ground_truths, extra_infos)]

async def compute_score_later(data_source, solution_str, ground_truth, extra_info):
    return -1.0

# EasyR1

def heard(reward_input):
    return {"overall": float(reward_input["response"] == "no\\n\\nSure?\\n\\nyes")}

def one(reward_input, format_weight=0.1):
    right = float(reward_input["response"] == reward_input["ground_truth"])
    assert reward_input["response_length"] == 4
    return {"overall": (1 - format_weight) * right, "format": 0.0, "accuracy": right}

def many(reward_inputs, format_weight=0.1):
    return [one(each, format_weight) for each in reward_inputs]

def older(predict, ground_truth):
    return {"overall": float(predict == ground_truth)}

def older_many(predicts, ground_truths):
    return [older(*each) for each in zip(predicts, ground_truths)]

def forgetful(reward_input):
    return {"accuracy": 1.0}

# OpenRLHF

def whole_query(queries, prompts, labels):
    return [float(queries[0] == "?\\nno\\n\\nSure?\\n\\nyes")]

def reward_func(queries, prompts, labels, **kwargs):
    right = np.array([float(query[len(prompt):] == label) for query, prompt, label in zip(queries, prompts, labels)])
    return {"rewards": right, "scores": right, "extra_logs": {"accuracy": right.mean()}}

def reward_list(queries, prompts, labels):
    return [0.75]

not_a_function = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("elsewhere")
    (path / "foreign_rewards.py").write_text(FUNCTIONS)
    (path / "broken.py").write_text("raise RuntimeError('no key set')")
    return path


def built(folder: Path, use: str, function: str, **spec: Any) -> ConfiguredScorer:
    spec = {"use": use, "path": "foreign_rewards.py", "function": function, **spec}
    return build_scorer("foreign", spec, base_dir=folder)


@pytest.mark.parametrize(
    ("use", "function", "spec", "value", "reason", "metrics"),
    [
        ("trl", "exact", {}, 1.0, "1", {}),
        ("trl", "exact", {"columns": {"answer": "extra.wrong"}}, 0.0, "0", {}),
        ("trl", "exact_later", {}, 0.5, "0.5", {}),
        ("trl", "plain_text", {"completions": "text", "range": [0, 10]}, 0.03, "0.3", {}),  # "yes" has 3 of 10 letters
        ("trl", "logging", {}, 1.0, "1; gold: 42", {"accuracy": 0.25}),
        ("verl", "compute_score", {}, 1.0, "1; pred: yes; where: rare", {"acc": 1.0}),
        ("verl", "compute_score", {"kwargs": {"bonus": 1.0}, "range": [0, 2]}, 1.0, "2;", {"acc": 1.0}),
        ("verl", "compute_score_batched", {}, 1.0, "1", {}),
        ("verl", "compute_score_later", {"range": [-3, 5]}, 0.25, "-1", {}),  # 2 of 8 above the lowest
        ("easyr1", "one", {"kwargs": {"format_weight": 0.2}}, 0.8, "0.8", {"accuracy": 1.0, "format": 0.0}),
        ("easyr1", "many", {}, 0.9, "0.9", {"accuracy": 1.0, "format": 0.0}),
        ("easyr1", "older", {}, 1.0, "1", {}),
        ("easyr1", "older_many", {}, 1.0, "1", {}),
        ("openrlhf", "reward_func", {}, 1.0, "1", {"scores": 1.0, "accuracy": 1.0}),
        ("openrlhf", "reward_list", {}, 0.75, "0.75", {}),
    ],
)
async def test_a_function_is_called_as_its_framework_calls_it(
    trajectory: Any, folder: Path, use: str, function: str, spec: Any, value: float, reason: str, metrics: Any
) -> None:
    made = trajectory("yes", extra={"modality": "CT", "wrong": "no"}, stratum="rare", system="Be brief.")
    attempted = await attempt(built(folder, use, function, **spec).scorer, made)
    assert isinstance(attempted.score, Score), attempted.reason
    assert attempted.score.value == pytest.approx(value)
    assert attempted.score.reason.startswith(reason)
    assert attempted.score.metrics == metrics


@pytest.mark.parametrize(
    ("use", "function", "spec"),
    [
        ("trl", "conversation", {}),
        ("trl", "decoded", {"completions": "text"}),
        ("trl", "last_turn", {"turns": "last"}),
        ("verl", "spoken", {}),
        ("verl", "compute_score", {"turns": "last"}),
        ("easyr1", "heard", {}),
        ("easyr1", "older", {"turns": "last"}),
        ("openrlhf", "whole_query", {}),
        ("openrlhf", "reward_func", {"turns": "last"}),
    ],
)
async def test_a_function_gets_several_turns_as_its_framework_gives_them(
    trajectory: Any, folder: Path, use: str, function: str, spec: Any
) -> None:
    made = a_conversation(trajectory("no", extra={"modality": "CT"}), ("Sure?", "yes"))
    with RewardService([built(folder, use, function, **spec)]) as service:
        (record,) = (await service.score(made)).scores.values()
    assert record.score is not None and record.score.value == 1.0, record.reason


async def test_a_function_is_told_what_a_tool_answered_as_the_tools_word(trajectory: Any, folder: Path) -> None:
    made = a_conversation(trajectory("look", extra={"modality": "CT"}), (Message(text="closer", role="tool"), "yes"))
    with RewardService([built(folder, "trl", "called")]) as service:
        (record,) = (await service.score(made)).scores.values()
    assert record.score is not None and record.score.value == 1.0, record.reason


async def test_a_function_of_a_module_is_found_by_its_import_path(trajectory: Any, folder: Path) -> None:
    spec = {"use": "trl", "function": "foreign_rewards:exact"}
    attempted = await attempt(build_scorer("x", spec, base_dir=folder).scorer, trajectory("yes"))
    assert attempted.score == Score(1.0, reason="1")


async def test_none_means_that_the_function_has_nothing_to_say_of_this_task(trajectory: Any, folder: Path) -> None:
    attempted = await attempt(built(folder, "trl", "exact_later").scorer, trajectory("x", extra={"modality": "MR"}))
    assert (attempted.outcome, attempted.reason) == ("abstained", "exact_later returned None: not for this task")


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ("[1.0, 0.0]", "2 results were returned for one completion"),
        ("[]", "0 results were returned for one completion"),
        ("[nan]", "answers must return finite numbers; got nan"),
        ("[inf]", "answers must return finite numbers; got inf"),
        ("['0.5']", "answers must return finite numbers; got '0.5'"),
        ("[{'score': 1.0}]", "answers must return finite numbers; got {'score': 1.0}"),
        ("[1.5]", "answers returned 1.5, outside of its range [0, 1]; say `range: [lowest, highest]`"),
        ("[-0.1]", "answers returned -0.1, outside of its range [0, 1]"),
    ],
)
async def test_a_result_that_is_no_score_is_a_failure_with_its_reason(
    trajectory: Any, folder: Path, results: str, reason: str
) -> None:
    attempted = await attempt(built(folder, "trl", "answers").scorer, trajectory("x", extra={"results": results}))
    assert attempted.outcome == "failed"
    assert reason in attempted.reason


async def test_a_mapping_without_the_number_and_a_column_that_is_missing_are_failures(
    trajectory: Any, folder: Path
) -> None:
    for function, use, reason in (
        ("forgetful", "easyr1", "the mapping that was returned needs the key 'overall'; it has accuracy"),
        ("exact_later", "trl", "missing 1 required positional argument: 'modality'"),
    ):
        attempted = await attempt(built(folder, use, function).scorer, trajectory("x"))
        assert attempted.outcome == "failed"
        assert reason in attempted.reason


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"function": "exakt"}, "foreign_rewards.py has no function 'exakt'; it has exact, .*Did you mean 'exact'?"),
        ({"function": "not_a_function"}, "has no function 'not_a_function'"),
        ({"path": "nowhere.py"}, "x.path: there is no file 'nowhere.py'"),
        ({"path": "broken.py"}, "broken.py cannot be imported: RuntimeError: no key set"),
        ({"path": None}, "function must be module:name, or a name with `path`; got 'exact'"),
        ({"path": None, "function": "nowhere.at:all"}, "function: there is no module 'nowhere'"),
        ({"range": [1, 0]}, "range must be [lowest, highest], two finite numbers; got [1.0, 0.0]"),
        ({"range": [0, math.inf]}, "range must be [lowest, highest], two finite numbers; got [0.0, inf]"),
        ({"columns": {"solution": "anwser.value"}}, "columns.solution: a task has no such field.*'answer'?"),
        ({"gate": True}, "a reward function returns a number and never closes a gate"),
        ({"colums": {}}, "x.colums: TrlFunction has no such parameter; .*Did you mean 'columns'?"),
    ],
)
def test_what_does_not_fit_is_named_before_a_run_starts(folder: Path, spec: dict[str, Any], message: str) -> None:
    whole = {"use": "trl", "path": "foreign_rewards.py", "function": "exact", **spec}
    with pytest.raises(ConfigError) as caught:
        build_scorer("x", {key: value for key, value in whole.items() if value is not None}, base_dir=folder)
    assert all(part in str(caught.value) for part in message.split(".*")), str(caught.value)


def test_its_version_follows_the_function_s_code(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "moved.py").write_text(FUNCTIONS)
    (tmp_path / "changed.py").write_text(FUNCTIONS.replace("1 - format_weight", "2 - format_weight"))
    same, moved, changed = (
        build_scorer("x", {"use": "easyr1", "path": str(path), "function": "one"}).version
        for path in (folder / "foreign_rewards.py", tmp_path / "moved.py", tmp_path / "changed.py")
    )
    assert same == moved != changed
    by_module = build_scorer("x", {"use": "trl", "function": "foreign_rewards:exact"}, base_dir=folder).version
    (folder / "foreign_rewards.py").write_text(FUNCTIONS + "\n# another line\n")
    assert build_scorer("x", {"use": "trl", "function": "foreign_rewards:exact"}, base_dir=folder).version != by_module
    (folder / "foreign_rewards.py").write_text(FUNCTIONS)


def test_it_runs_apart_and_is_taken_for_deterministic_only_where_the_config_says_so(folder: Path) -> None:
    assert built(folder, "trl", "exact").isolated
    assert not built(folder, "trl", "exact").deterministic
    assert built(folder, "trl", "exact", deterministic=True).deterministic


@pytest.mark.slow
async def test_the_functions_that_trl_ships_score_through_the_service(trajectory: Any) -> None:
    spec = {
        "scorers": {
            "accuracy": {
                "use": "trl",
                "function": "trl.rewards:accuracy_reward",
                "columns": {"solution": "answer.value"},
            },
            "form": {"use": "trl", "function": "trl.rewards:think_format_reward"},
        }
    }
    texts = [r"<think>a third</think> \boxed{\frac{1}{3}}", r"\boxed{\frac{1}{2}}"]
    with RewardService(load_rewards(spec)) as service:
        right, wrong = await service.score_many(
            [trajectory(text, answer={"type": "formula", "value": r"$\frac{1}{3}$"}) for text in texts]
        )
        (unreadable,) = await service.score_many([trajectory("x", answer={"type": "formula", "value": "no formula"})])
    assert isinstance(right, ScoredTrajectory) and isinstance(wrong, ScoredTrajectory)
    assert (right.reward, wrong.reward) == (1.0, 0.0)
    assert right.scores["accuracy"].score is not None
    assert "gold_parsed" in right.scores["accuracy"].score.reason
    assert unreadable.scores["accuracy"].outcome == "abstained"  # TRL's None, where it cannot read the solution
