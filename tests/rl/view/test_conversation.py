"""A trajectory of several turns: what the policy was told stands between them, and is told apart from what it wrote."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from rl.report.run import write_report
from rl.types import Evidence, Group, Message, Observation, Score, ScoredTrajectory, ScoreRecord
from rl.view.index import LoggedFile
from rl.view.tokens import spelled, token_section
from rl.view.trajectory import open_trajectory, trajectory_view
from rollouts.log import Kind, LoggedStep, write_step
from tests.rl.view.conftest import a_case, an_image
from tests.samples import a_trajectory

FIRST, DOUBT, SECOND = "radius high <answer>yes</answer>", "Are you <b>sure</b>?", "texture low <answer>no</answer>"
TEXT = f"{FIRST}\n\n{SECOND}"
PIECES = re.compile(r'<div class="(trace|told)">|<img[^>]* alt="([^"]*)"|<mark[^>]*>([^<]*)|<b class="answer">(\w+)')


def a_conversation() -> ScoredTrajectory:
    """The second turn follows a doubt with the case's image again; a claim of each turn was checked."""
    doubt = Message(text=DOUBT, images=(an_image(),))
    start = len(FIRST) + 2  # the turns are a blank line apart
    spots = (
        Evidence(claim="radius high", verdict="supported", start=0, end=11),
        Evidence(claim="texture low", verdict="refuted", start=start, end=start + 11),
    )
    record = ScoreRecord(scorer="facts", version="v", outcome="scored", score=Score(0.0, evidence=spots))
    regions = {"regions": [{"box": [16, 8, 48, 24], "label": "mass"}]}
    trajectory = a_trajectory(
        TEXT,
        task=replace(a_case("told"), follow_ups=(doubt,), reference=regions),
        observations=(Observation(message=doubt, place=len(FIRST)),),
        completion_token_ids=np.array([4, 8, 8, 8, 9, 6], np.int32),
        completion_mask=np.array([True, False, False, False, False, True]),
        rollout_logprobs=np.array([-0.5, np.nan, np.nan, np.nan, np.nan, -0.25], np.float32),
    )
    return ScoredTrajectory(trajectory=trajectory, reward=0.0, scores={"facts": record})


def a_step(item: ScoredTrajectory, *, kind: Kind = "train") -> LoggedStep:
    return LoggedStep(step=1, kind=kind, groups=[Group(task=item.trajectory.task, scored=(item,))])


def shown(folder: Path, item: ScoredTrajectory) -> str:
    write_step(folder, a_step(item))
    file = LoggedFile(run="mine", kind="train", step=1, written=0, size_bytes=0)
    return trajectory_view(open_trajectory(folder, file, 0), [])


def test_a_page_shows_what_the_policy_was_told_between_the_turns_that_it_wrote(tmp_path: Path) -> None:
    page = shown(tmp_path, a_conversation())
    image = f"/images/mine/{an_image().sha256}.png"
    assert [next(filter(None, piece)) for piece in PIECES.findall(page)] == [
        *("image 1 of case told", "trace", "radius high", "yes"),
        *("told", "image 2 of case told", "trace", "texture low", "no"),
    ]
    assert page.count(f'src="{image}"') == 2  # in the case and in the doubt
    assert page.count("Are you &lt;b&gt;sure&lt;/b&gt;?") == 3  # in the trace, the follow-ups and the conversation
    assert "reward 0.000 · 2 tokens · policy version 0 · 2 turns" in page


def test_the_conversation_has_every_message_in_its_place(tmp_path: Path) -> None:
    page = shown(tmp_path, a_conversation())
    conversation = page[page.index("Conversation") :]
    assert re.findall(r"<li><b>(\w+)</b><pre>([^/]*?)&", conversation) == [
        ("assistant", "radius high "),
        ("user", "[image]\nAre you "),
        ("assistant", "texture low "),
    ]
    assert "4 messages" in conversation  # the question comes first


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_a_report_shows_what_the_policy_was_told(tmp_path: Path, kind: Kind) -> None:
    write_step(tmp_path, a_step(a_conversation(), kind=kind))
    report = write_report(tmp_path).read_text(encoding="utf-8")
    assert report.count("<rect ") == 1  # the region is one of the case's image
    pieces = [next(filter(None, piece)) for piece in PIECES.findall(report)]
    assert pieces[1:7] == ["trace", "radius high", "yes", "told", "image 2 of case told", "trace"]


def test_before_and_after_training_are_each_told_their_own(tmp_path: Path) -> None:
    item = a_conversation()
    brief = replace(item, trajectory=replace(item.trajectory, text=FIRST, observations=()))
    for number, each in enumerate((brief, item)):
        write_step(tmp_path, replace(a_step(each, kind="eval"), step=number))
    pieces = [next(filter(None, piece)) for piece in PIECES.findall(write_report(tmp_path).read_text(encoding="utf-8"))]
    assert pieces[:7] == ["image 1 of case told", "trace", "radius high", "yes", "trace", "radius high", "yes"]
    assert pieces[7:9] == ["told", "image 2 of case told"]


def test_a_task_without_follow_ups_has_no_word_of_them(tmp_path: Path) -> None:
    item = a_conversation()
    plain = replace(item.trajectory, text=FIRST, observations=(), task=a_case("plain"))
    page = shown(tmp_path, replace(item, trajectory=plain))
    assert [word for word in ("told", "Follow-ups", "turns,", "User") if word in page] == []


def test_tokens_that_were_told_are_dim_and_a_run_of_one_stands_once(tmp_path: Path) -> None:
    trajectory = a_conversation().trajectory
    row = {name: getattr(trajectory, name) for name in ("completion_token_ids", "completion_mask", "rollout_logprobs")}
    section = token_section(row | {"learner_logprobs": None}, ["a", "<img>", "<img>", "<img>", "Sure", "b"])
    assert "6, 2 of them written by the policy" in section
    assert re.findall(r'<span( class="foreign")?[^>]*>([^<]+)</span>', section)[-4:] == [
        ("", "a"),
        (' class="foreign"', "&lt;img&gt; × 3 "),
        (' class="foreign"', "Sure"),
        ("", "b"),
    ]


def test_a_long_completion_is_shown_in_part_and_its_worst_token_told_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    Tokenizer(WordLevel({f"t{id}": id for id in range(4000)})).save(str(tmp_path / "policy" / "tokenizer.json"))
    drawn = np.full(4000, -1.0, np.float32)
    learnt = drawn.copy()
    learnt[3500] = -1.5
    row = {
        "completion_token_ids": np.arange(4000, dtype=np.int32),
        "completion_mask": np.ones(4000, np.bool_),
        "rollout_logprobs": drawn,
        "learner_logprobs": learnt,
    }
    section = token_section(row, spelled(tmp_path, range(4000)))
    assert "largest -0.5 at token 3500 &#x27;t3500&#x27;" in section
    assert "1,000 more" in section
