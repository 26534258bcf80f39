"""Which task comes next: every task once per epoch, each stratum drawn evenly, repeatable and resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rl.errors import CheckpointError
from rl.types import Task


class TaskSampler:
    """Draws tasks without replacement within an epoch of each stratum, in an order that ``seed`` fixes.

    With ``balance`` every batch holds as many tasks of each stratum (a remainder goes to the strata in turn), however
    rare one of them is; otherwise all tasks are one stratum.
    """

    def __init__(self, tasks: Sequence[Task], *, seed: int, balance: bool) -> None:
        self.tasks = tuple(tasks)
        self.seed = seed
        keys = [task.stratum if balance else "" for task in tasks]
        self._members = {key: [i for i, k in enumerate(keys) if k == key] for key in sorted(set(keys))}
        self._drawn = dict.fromkeys(self._members, 0)
        self._turn = 0
        self._places = {id(task): place for place, task in enumerate(self.tasks)}
        self._again: list[Task] = []
        digest = hashlib.sha256()
        for task in self.tasks:
            digest.update(json.dumps([task.id, task.question, task.answer], default=str).encode())
            for message in task.follow_ups:
                digest.update(json.dumps([message.text, [image.sha256 for image in message.images]]).encode())
        self._digest = digest.hexdigest()

    def next_batch(self, size: int) -> list[Task]:
        """The next ``size`` tasks, strata alternating; those that a restored state had left to do come first."""
        again, self._again = self._again[:size], self._again[size:]
        size -= len(again)
        strata = list(self._members)
        chosen = [self._draw(strata[(self._turn + place) % len(strata)]) for place in range(size)]
        self._turn = (self._turn + size) % len(strata)
        return again + chosen

    def state(self, *, undone: Sequence[Task] = ()) -> dict[str, Any]:
        """Where the sampler stands, as JSON. ``undone`` were drawn and not trained on: they are to be drawn again."""
        return {
            "drawn": dict(self._drawn),
            "turn": self._turn,
            "undone": [self._places[id(task)] for task in (*undone, *self._again)],
            "tasks": self._digest,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned. Raises CheckpointError where the tasks are not the same."""
        if set(state["drawn"]) != set(self._drawn):
            raise CheckpointError(
                f"the checkpoint's sampler has strata {sorted(state['drawn'])}, the tasks have {sorted(self._drawn)}; "
                f"resume with the tasks that the run started with"
            )
        if state.get("tasks", self._digest) != self._digest:  # older checkpoints have none
            raise CheckpointError(
                f"the {len(self.tasks)} training tasks are not those that the checkpoint was taken with: one was "
                f"added, removed, moved or edited; resume with the data that the run started with"
            )
        self._drawn = {stratum: int(count) for stratum, count in state["drawn"].items()}
        self._turn = int(state["turn"])
        self._again = [self.tasks[place] for place in state.get("undone", ())]  # older checkpoints have none

    def _draw(self, stratum: str) -> Task:
        members = self._members[stratum]
        epoch, place = divmod(self._drawn[stratum], len(members))
        self._drawn[stratum] += 1
        order = np.random.default_rng([self.seed, epoch, *stratum.encode()]).permutation(len(members))
        return self.tasks[members[order[place]]]
