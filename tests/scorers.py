"""Scorers that tests name in a config by import path, as a user's own."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import ClassVar

from rewards.scorer import Score, Scorer, Trajectory


@dataclass(frozen=True, kw_only=True)
class LetterShare(Scorer):
    """Share of the completion's characters that are ``letter``: a reward with signal for a policy of random weights."""

    isolated: ClassVar[bool] = False

    letter: str = "e"

    async def score(self, trajectory: Trajectory) -> Score:
        text = trajectory.text
        return Score(text.count(self.letter) / max(len(text), 1), reason=f"{text.count(self.letter)} letters")


@dataclass(frozen=True, kw_only=True)
class Slow(Scorer):
    """Takes ``step_s`` seconds longer for each next sample of a group."""

    isolated: ClassVar[bool] = False

    step_s: float = 0.3

    async def score(self, trajectory: Trajectory) -> Score:
        await asyncio.sleep(self.step_s * trajectory.sample_index)
        return Score(1.0)


@dataclass(frozen=True, kw_only=True)
class Broken(Scorer):
    """Fails on every trajectory."""

    isolated: ClassVar[bool] = False

    async def score(self, trajectory: Trajectory) -> Score:
        raise RuntimeError("the judge is out of order")


@dataclass(frozen=True, kw_only=True)
class Dies(Scorer):
    """Takes its process with it."""

    isolated: ClassVar[bool] = False

    async def score(self, trajectory: Trajectory) -> Score:
        os._exit(7)
