"""How much of an optimizer step each trajectory was: its weight in the loss, and its part of the gradient."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rl.run_folder import write_summary
from rl.types import TrainSample
from rollouts.log import LoggedStep


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientShare:
    """One trajectory's part g of the step's gradient G, the sum of all parts, before clipping and Adam.

    ``share`` is the projection g·G / |G|²: the shares of a step add up to 1, and one below 0 pulled against the step.
    ``norm`` is |g|, ``cosine`` that of the angle between g and G.
    """

    share: float
    norm: float
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """By trajectory id; ``measured`` has the parts of the gradient, where they were computed for these weights."""

    weights: Mapping[str, float]
    measured: Mapping[str, GradientShare]

    def of(self, id: str) -> float:
        return self.measured[id].share if self.measured else self.weights[id]

    def told(self) -> tuple[dict[str, str], str]:
        """Every share in words that say which of the two it is, and the trajectory with the largest."""
        of_what = "gradient" if self.measured else "loss weight"
        words = {name: f"{round(self.of(name), 3) + 0.0:.1%} of the {of_what}" for name in self.weights}  # + 0: no -0.0
        return words, max(self.weights, key=lambda name: abs(self.of(name)), default="")


def loss_weights(logged: LoggedStep, *, aggregation: str) -> dict[str, float]:
    """Each trained trajectory's |advantage| times the weight that the loss gives its tokens, over the sum of these.

    Known from the log alone: what a trajectory could do, not what its gradient did.
    """
    tokens = {
        item.trajectory.id: 1 if aggregation == "sequence_mean" else int(item.trajectory.completion_mask.sum())
        for group in logged.groups
        for item in group.scored
    }
    pulls = {name: abs(advantage) * tokens[name] for name, advantage in logged.advantages.items()}
    total = sum(pulls.values())
    return {name: pull / total if total else 0.0 for name, pull in pulls.items()}


def gradient_shares(
    samples: Sequence[TrainSample], parts: Sequence[tuple[float, float]], norm: float
) -> dict[str, GradientShare]:
    """From each part's norm and dot product with the whole; all zero where there was no gradient at all."""
    return {
        sample.trajectory_id: GradientShare(
            share=dot / norm**2 if norm else 0.0,
            norm=own,
            cosine=dot / (own * norm) if own * norm else 0.0,
        )
        for sample, (own, dot) in zip(samples, parts, strict=True)
    }


def shares_of(run_dir: Path, logged: LoggedStep, *, aggregation: str) -> Shares:
    return Shares(weights=loss_weights(logged, aggregation=aggregation), measured=read_shares(run_dir, logged))


def keep_shares(run_dir: Path, logged: LoggedStep, shares: Mapping[str, GradientShare]) -> None:
    """Write measured shares beside the log, with the weights that they were measured at."""
    path = shares_path(run_dir, logged.step)
    path.parent.mkdir(exist_ok=True)
    by_name = {name: asdict(share) for name, share in shares.items()}
    record = {"weights_before": logged.update["weights_before"], "shares": by_name}
    write_summary(path.parent, record, name=path.name)


def shares_path(run_dir: Path, step: int) -> Path:
    return run_dir / "explained" / f"step_{step:06d}.json"


def read_shares(run_dir: Path, logged: LoggedStep) -> dict[str, GradientShare]:
    """The parts of the gradient, where they were measured at the weights that the step of the log began with."""
    path = shares_path(run_dir, logged.step)
    if not path.is_file():
        return {}
    kept = json.loads(path.read_text())
    if (
        kept["weights_before"] != logged.update.get("weights_before")
        or kept["shares"].keys() != logged.advantages.keys()
    ):
        return {}
    return {name: GradientShare(**share) for name, share in kept["shares"].items()}
