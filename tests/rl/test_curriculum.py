"""The sampler: balance, no repetition within an epoch, repeatability, exact continuation."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from rl.curriculum import TaskSampler
from rl.errors import CheckpointError
from rl.types import Message
from tests.samples import a_task

TASKS = [a_task(f"m{i}", stratum="yes") for i in range(3)] + [a_task(f"b{i}", stratum="no") for i in range(10)]


def test_every_batch_holds_as_many_tasks_of_each_stratum_however_rare_one_is() -> None:
    sampler = TaskSampler(TASKS, seed=0, balance=True)
    for _ in range(20):
        assert Counter(task.stratum for task in sampler.next_batch(8)) == {"yes": 4, "no": 4}


def test_an_odd_batch_gives_its_remainder_to_the_strata_in_turn() -> None:
    sampler = TaskSampler(TASKS, seed=0, balance=True)
    drawn = Counter(task.stratum for _ in range(4) for task in sampler.next_batch(3))
    assert drawn == {"yes": 6, "no": 6}


def test_no_task_comes_twice_within_an_epoch_of_its_stratum() -> None:
    sampler = TaskSampler(TASKS, seed=3, balance=False)
    for _ in range(3):
        epoch = [task.id for task in sampler.next_batch(len(TASKS))]
        assert sorted(epoch) == sorted(task.id for task in TASKS)


def test_epochs_come_in_different_orders() -> None:
    sampler = TaskSampler(TASKS, seed=3, balance=False)
    assert [t.id for t in sampler.next_batch(13)] != [t.id for t in sampler.next_batch(13)]


def test_without_balance_tasks_come_as_often_as_they_are_there() -> None:
    drawn = Counter(task.stratum for task in TaskSampler(TASKS, seed=0, balance=False).next_batch(13))
    assert drawn == {"yes": 3, "no": 10}


def test_a_restored_sampler_goes_on_where_the_first_one_stood() -> None:
    first = TaskSampler(TASKS, seed=1, balance=True)
    first.next_batch(7)
    state = json.loads(json.dumps(first.state()))
    second = TaskSampler(TASKS, seed=1, balance=True)
    second.restore(state)
    assert [t.id for t in second.next_batch(9)] == [t.id for t in first.next_batch(9)]


def test_a_state_of_other_strata_is_refused() -> None:
    sampler = TaskSampler(TASKS, seed=1, balance=True)
    with pytest.raises(CheckpointError, match="resume with the tasks"):
        sampler.restore(TaskSampler(TASKS, seed=1, balance=False).state())


@pytest.mark.parametrize(
    "edit",
    [{"answer": {"type": "choice", "value": "B"}}, {"follow_ups": (Message(text="Sure?"),)}],
    ids=["answer", "follow-up"],
)
def test_a_state_of_tasks_that_were_edited_since_is_refused(edit: dict[str, Any]) -> None:
    state = TaskSampler(TASKS, seed=1, balance=True).state()
    edited = [*TASKS[:-1], replace(TASKS[-1], **edit)]
    with pytest.raises(CheckpointError, match="the 13 training tasks are not those that the checkpoint was taken with"):
        TaskSampler(edited, seed=1, balance=True).restore(state)


def test_tasks_that_were_drawn_and_not_trained_on_come_first_again_and_none_is_lost_or_doubled() -> None:
    sampler = TaskSampler(TASKS, seed=1, balance=True)
    sampler.next_batch(4)
    undone = sampler.next_batch(3)
    resumed = TaskSampler(TASKS, seed=1, balance=True)
    resumed.restore(json.loads(json.dumps(sampler.state(undone=undone))))
    first = resumed.next_batch(2)
    again = TaskSampler(TASKS, seed=1, balance=True)
    again.restore(json.loads(json.dumps(resumed.state(undone=first))))
    undisturbed = TaskSampler(TASKS, seed=1, balance=True)
    undisturbed.next_batch(4)
    assert [t.id for t in again.next_batch(9)] == [t.id for t in undisturbed.next_batch(9)]
