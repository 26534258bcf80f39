"""A learner brought back to where a logged step began: from the nearest checkpoint, through the steps in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from policies.worker import LearnerGroup
from rl.batch import train_sample
from rl.checkpoint import checkpoint_folders, latest_checkpoint
from rl.config_schema import RunConfig
from rl.errors import LogError
from rl.types import TrainBatch
from rollouts.log import LoggedStep, read_step


@dataclass(frozen=True, slots=True)
class Shape:
    """Over what the learner's sums run; another shape rounds them otherwise."""

    ranks: int
    zero_stage: int


ONE_WHOLE = Shape(ranks=1, zero_stage=0)
"""A learner that holds everything in one process: the one that can take a gradient apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewound:
    """``learner`` stands before the step. ``began`` says from where it was brought there; ``exact`` whether the same
    numbers can be expected of it to the bit; ``strayed`` is the first step in between that ended elsewhere than logged,
    0 for none."""

    learner: LearnerGroup
    began: str
    exact: bool
    strayed: int


def logged_batch(logged: LoggedStep) -> TrainBatch:
    """The batch that the step trained on, with the advantages that were logged."""
    trained = [
        [scored for scored in group.scored if scored.trajectory.id in logged.advantages] for group in logged.batch
    ]
    samples = tuple(
        train_sample(scored.trajectory, group=number, advantage=logged.advantages[scored.trajectory.id])
        for number, group in enumerate(filter(None, trained))
        for scored in group
    )
    return TrainBatch(
        samples=samples,
        loss_tokens=sum(int(sample.loss_mask.sum()) for sample in samples),
        policy_version=logged.step - 1,
    )


def read_update(run_dir: Path, step: int) -> LoggedStep:
    """A training step with the record of its update. Raises LogError where the log holds none."""
    logged = read_step(run_dir, step)
    if not logged.update:
        raise LogError(
            f"the log of step {step} in {run_dir} does not say what its update did (metadata medrl.update); only its "
            f"advantages can be made again"
        )
    return logged


def shape_of(logged: LoggedStep) -> Shape:
    return Shape(ranks=logged.update["ranks"], zero_stage=logged.update["zero_stage"])


async def rewind(
    run_dir: Path,
    config: RunConfig,
    step: int,
    *,
    shape: Shape,
    with_reference: bool = False,
    entropy_gradient: bool = False,
    warn: Callable[[str], None],
) -> Rewound:
    """Start a learner inside the current Ray session and bring it to where ``step`` began.

    The steps after the checkpoint are taken again from the log. ``with_reference`` and ``entropy_gradient`` prepare it
    for losses that the run itself did not have. Raises CheckpointError, LogError and LearnerError.
    """
    from rl.cluster import has_gpu, start_learner
    from rl.settings import learner_settings, loss_function

    run_dir = run_dir.resolve()  # an actor may run elsewhere
    learner_config = dataclasses.replace(config.learner, ranks=shape.ranks, zero_stage=shape.zero_stage)
    if not has_gpu():
        learner_config.gpus_per_rank = 0.0
    config = dataclasses.replace(config, learner=learner_config)
    settings = learner_settings(config, config.policy.path or str(run_dir / "initial_policy"))
    settings = dataclasses.replace(
        settings,
        with_reference=settings.with_reference or with_reference,
        entropy_gradient=settings.entropy_gradient or entropy_gradient,
    )
    checkpoint, done, began = None, 0, "the policy that the run started from"
    if checkpoint_folders(run_dir, before=step):
        checkpoint, state = latest_checkpoint(run_dir, before=step, warn=warn)
        done, began = state["step"], f"checkpoint {checkpoint.name}"
    exact = not settings.on_gpu and settings.dtype == "float32"
    learner = await start_learner(settings, learner_config, loss_function(config))
    if checkpoint:
        await learner.load(checkpoint / "learner")
    strayed = 0
    for earlier in range(done + 1, step):
        logged = read_update(run_dir, earlier)
        await learner.update(logged_batch(logged))
        exact = exact and shape_of(logged) == shape
        _, weights = await learner.weights()
        if exact and not strayed and weights.sha256 != logged.update["weights_after"]:
            strayed = earlier
    if step - done > 1:
        began += f", step {done + 1} to {step - 1} made again" if step - done > 2 else f", step {step - 1} made again"
    return Rewound(learner=learner, began=began, exact=exact, strayed=strayed)
