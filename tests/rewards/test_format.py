from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rewards.config import load_rewards, load_rewards_file, max_shaping
from rewards.format import FormatScorer
from rewards.service import RewardService
from rl.errors import ConfigError
from rl.types import Message, ScoredTrajectory
from tests.rewards.conftest import a_conversation


@pytest.mark.parametrize(
    ("text", "demands_met"),
    [
        ("<think>x</think><answer>yes</answer>", 3),
        ("x</think>\n<answer>yes</answer>\n", 3),
        ("<THINK>x</THINK> <Answer>yes</Answer>", 3),
        ("<think>x</think><answer>yes", 3),
        ("<think></think><answer>yes</answer>", 2),
        ("<think>x</think><answer> </answer>", 2),
        ("<think>x</think><answer>yes</answer> I am sure.", 2),
        ("Well. <think>x</think><answer>yes</answer>", 2),
        ("<answer>yes</answer>", 2),
        ("<answer>yes</answer><think>x</think>", 2),
        ("<think>x</think><answer>yes</answer><answer>yes</answer>", 2),
        ("<think>x</think>yes", 1),
        ("yes", 0),
        ("", 0),
        ("<answer>" * 1_000, 1),  # nothing stands around them
    ],
)
async def test_the_form_is_tags_in_order_filled_and_nothing_around(
    trajectory: Any, text: str, demands_met: int
) -> None:
    score = await FormatScorer().score(trajectory(text))
    assert score.value == pytest.approx(demands_met / 3)
    assert score.reason


async def test_a_block_that_was_cut_off_is_not_closed(trajectory: Any) -> None:
    score = await FormatScorer().score(trajectory("<think>x</think><answer>yes", finish_reason="length"))
    assert score.value < 1.0


async def test_reasoning_need_not_be_asked_for(trajectory: Any) -> None:
    form = FormatScorer(reasoning=False)
    assert (await form.score(trajectory("<answer>yes</answer>"))).value == 1.0
    assert (await form.score(trajectory("<think>x</think><answer>yes</answer>"))).value < 1.0


CALL = '<tool_call>{"name": "zoom"}</tool_call>'


@pytest.mark.parametrize(
    ("calling", "answering", "demands_met"),
    [
        (f"<think>closer</think>{CALL}{CALL}", "<think>x</think><answer>yes</answer>", 3),
        (f"closer</think>\n{CALL}\n", "x</think><answer>yes</answer>", 3),
        (CALL, "<think>x</think><answer>yes</answer>", 0),
        (f"<think>closer</think>See: {CALL}", "<think>x</think><answer>yes</answer>", 2),
        (f"<think>closer</think>{CALL}", "<think>x</think>", 2),
        (f"<think>closer</think>{CALL}", f"<think>x</think><answer>yes</answer>{CALL}", 2),
        (f"<think>closer</think>{CALL}<answer>yes</answer>", "<think>x</think><answer>yes</answer>", 2),
    ],
)
async def test_before_tools_answered_calls_stand_in_place_of_the_answer(
    trajectory: Any, calling: str, answering: str, demands_met: int
) -> None:
    made = a_conversation(trajectory(calling), (Message(text="closer", role="tool"), answering))
    score = await FormatScorer().score(made)
    assert score.value == pytest.approx(demands_met / 3)


async def test_calls_alone_are_the_form_where_no_reasoning_is_asked_for(trajectory: Any) -> None:
    told = (Message(text="closer", role="tool"), "<answer>yes</answer>")
    form = FormatScorer(reasoning=False)
    assert (await form.score(a_conversation(trajectory(CALL), told))).value == 1.0
    assert (await form.score(a_conversation(trajectory(f"Well. {CALL}"), told))).value < 1.0


REWARDS = """
length_penalty: 0.1
length_soft_tokens: 100
scorers:
  answer: {use: answer}
  form: {use: format, shaping: 0.3}
"""


async def test_form_and_length_shape_a_reward_by_config(trajectory: Any, tmp_path: Path) -> None:
    (tmp_path / "rewards.yaml").write_text(REWARDS)
    loaded = load_rewards_file(tmp_path / "rewards.yaml")
    assert max_shaping(loaded.scorers, loaded.length_penalty) == pytest.approx(0.4)
    made = [
        trajectory("<think>x</think><answer>yes</answer>", length_tokens=100, max_tokens=200),
        trajectory("<answer>yes</answer>", length_tokens=150, max_tokens=200),
        trajectory("<think>x</think><answer>no</answer>", length_tokens=100, max_tokens=200),
    ]
    with RewardService(loaded.scorers, length_penalty=0.1, length_soft_tokens=100) as service:
        scored = [each for each in await service.score_many(made) if isinstance(each, ScoredTrajectory)]
    # the second lacks one demand of three (.3 / 3) and is half way from 100 to 200 tokens (.1 / 2)
    assert [each.reward for each in scored] == pytest.approx([1.0, 1 - 0.1 - 0.05, 0.0])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"form": {"use": "format", "shaping": 0.5}}, r"all shaping together must be at most 0.49.*got .*form 0.5"),
        ({"form": {"use": "format", "shaping": 0.1, "weight": 1.0}}, "neither a weight nor a gate"),
        ({"form": {"use": "format", "rising": True}}, r"rising is about what `shaping` takes off"),
        ({"form": {"use": "format", "shaping": -0.1}}, r"form.shaping must be a number >= 0; got -0.1"),
        ({"form": {"use": "format", "shaping": "much"}}, "form.shaping must be a number >= 0; got 'much'"),
    ],
)
def test_shaping_that_could_outrank_correctness_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_rewards({"scorers": {"answer": {"use": "answer"}, **section}})


async def test_kinds_of_task_are_mixed_by_when(trajectory: Any) -> None:
    """A scorer that is not for a task leaves both sums, so that each kind has a reward of its own."""
    scorers = load_rewards(
        {
            "scorers": {
                "choice": {"use": "answer", "when": {"answer.type": ["choice", "yes_no"]}},
                "boxes": {"use": "answer", "weight": 3.0, "when": {"answer.type": "box"}},
                "form": {"use": "format", "weight": 1.0},
            }
        }
    )
    box = {"type": "box", "value": [0, 0, 10, 10]}
    made = [
        trajectory("<think>x</think><answer>no</answer>"),
        trajectory("<think>x</think><answer>[0, 0, 10, 5]</answer>", answer=box),
    ]
    with RewardService(scorers) as service:
        scored = [each for each in await service.score_many(made) if isinstance(each, ScoredTrajectory)]
    assert [each.reward for each in scored] == pytest.approx([0.5, (3 * 0.5 + 1) / 4])  # (0 + 1) / 2
    assert [each.scores["boxes"].outcome for each in scored] == ["abstained", "scored"]
