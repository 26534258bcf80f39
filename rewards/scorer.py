"""The contract of a scorer, and all that its author needs to import.

A scorer *is* its config: the fields of the dataclass are the parameters that a config may set, so that it can be
built, hashed and sent to any process.

    @dataclass(frozen=True, kw_only=True)
    class RedFlags(Scorer):
        \"\"\"Fraction of the required red-flag terms that the reasoning names.\"\"\"

        terms: list[str]

        async def score(self, trajectory: Trajectory) -> Score:
            text = trajectory.reasoning.lower()
            named = [term for term in self.terms if term in text]
            return Score(len(named) / len(self.terms), reason=f"named {named}")
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from rewards.judge import Judge
from rl.types import Evidence, Score, Trajectory

__all__ = ["Abstain", "Evidence", "InvalidInput", "Score", "Scorer", "Trajectory", "Turns"]

Turns = Literal["last", "each", "all"]
"""What of a trajectory of several turns is read: the last one, each by itself, or the whole text at once."""


class Abstain(Exception):
    """Raised by a scorer that has nothing to say about this task; it leaves the weighted sum of this trajectory."""


class InvalidInput(Exception):
    """Raised by a scorer that cannot read the *task* (an unknown answer type, a malformed criterion).

    What the policy wrote is never invalid input: it is right or wrong.
    """


@dataclass(frozen=True, kw_only=True)
class Scorer(ABC):
    """Says of one trajectory how good it is, in [0, 1], why, and on what evidence.

    Whatever `score` raises, other than `Abstain` and `InvalidInput`, leaves the trajectory unscored; it never
    becomes a zero.
    """

    isolated: ClassVar[bool] = True
    """Run in a process of its own, which a hang or a crash costs nothing but this one score. False only for code
    that is known to be bounded in time and memory; a config may override it (``isolated:``)."""
    decides_correctness: ClassVar[bool] = False
    """A value of 1 means that the answer is right (`ScoredTrajectory.correct`)."""
    depends_on: ClassVar[tuple[str, ...]] = ()
    """Further modules and packages whose code the score depends on; part of the scorer's version."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions (``sympy``, ``math-verify``) whose versions the score depends on; part of the scorer's version."""
    deterministic: ClassVar[bool] = False
    """The same task and text get the same score, always, so that it may be kept and need not be made anew. A config may
    override it (``deterministic:``)."""

    turns: ClassVar[Turns] = "all"
    """What is read of a trajectory of several turns; `score` is asked once for each turn that is read by itself, and
    need not know of others (see `rewards.turns`). The user ends a turn, a tool's answer does not. A config may override
    it (``turns:``)."""
    counted_metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics that count something: those of several turns add up, where others are averaged."""

    @abstractmethod
    async def score(self, trajectory: Trajectory) -> Score:
        """Score one trajectory. Raises Abstain or InvalidInput where no score can be given."""

    def check_use(self, *, gate: bool) -> None:  # noqa: B027 - a hook: most scorers serve in either role
        """Raise ConfigError where this scorer, with these parameters, cannot serve as it is used.

        Called once before the run starts; also the place to read the files that the parameters name.
        """

    def prepare(self) -> None:
        """Load what scoring needs. Called once in the process that will score, before any deadline runs."""
        for each in fields(self):
            if isinstance(part := getattr(self, each.name), Judge):
                part.prepare()

    def sources(self) -> tuple[str, ...]:
        """The modules whose code makes the score, besides the one that the scorer's class stands in."""
        return self.depends_on
