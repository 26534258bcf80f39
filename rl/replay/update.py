"""A logged step made again, from advantages to weights, each part compared with the log; and made otherwise.

Every part starts from what the log says of the one before, so that the first difference is where it arose: advantages
from the logged rewards; learner logprobs and loss from the logged advantages and the checkpoint before the step.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rewards.config import max_shaping
from rewards.tools.terminal import wrapped
from rl.batch import make_train_batch
from rl.config import load_config
from rl.config_schema import RunConfig
from rl.errors import ConfigError
from rl.progress import say
from rl.run_folder import run_config
from rl.types import Group, TrainBatch
from rollouts.log import LoggedStep, read_step

Through = Literal["advantages", "loss", "update"]

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
"""Where bits cannot agree (on a GPU, in bfloat16, on other ranks): in nats, or of the logged value if it is above 1."""

WHAT_IF_SECTIONS = ("rewards", "advantage", "loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One part of the step: what was compared, and the first difference in words; empty where there is none."""

    part: str
    compared: str
    difference: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """How the gradient would have turned under another setting, beside the one that was taken.

    ``flipped`` counts the advantages of another sign, ``rescored`` the trajectories that were scored anew; ``cosine``
    is NaN where the setting leaves no gradient.
    """

    setting: str
    norm: float
    cosine: float
    flipped: int
    rescored: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedStep:
    """What came of making a step again. ``tolerance`` 0 means that all was compared to the bit.

    ``norm`` and ``turns`` are of the whole batch as one, in however many ``minibatches`` the step took it.
    """

    step: int
    began: str
    tolerance: float
    checks: tuple[Check, ...]
    norm: float = math.nan
    turns: tuple[Turn, ...] = ()
    minibatches: int = 1

    @property
    def same(self) -> bool:
        return not any(check.difference for check in self.checks)


def replay_step(
    run_dir: Path,
    *,
    step: int,
    through: Through = "update",
    what_if: Sequence[str] = (),
    tolerance: float | None = None,
) -> ReplayedStep:
    """Make a step of a run again through its ``advantages``, its ``loss`` or its whole ``update``, and compare.

    Compares to the bit for a float32 run on the CPU with as many ranks at the same ZeRO stage, elsewhere within
    ``tolerance`` (`TOLERANCE`). ``what_if`` are settings ``key=value`` of `WHAT_IF_SECTIONS`: the gradient under each,
    and under all of them, is laid beside the one that was taken, before clipping and Adam; where the step had several
    mini-batches, beside that of its whole batch as one. Advantages need no learner; the rest runs one inside a Ray
    session of its own. Raises LogError, CheckpointError, ConfigError.
    """
    config = run_config(run_dir)
    variants = what_if_configs(run_dir, what_if)
    logged = read_step(run_dir, step)
    checks = [advantages_check(make_batch(config, logged.batch, step=step), logged)]
    if through == "advantages" and not variants:
        return ReplayedStep(step=step, began="the logged rewards", tolerance=0.0, checks=tuple(checks))
    from rl.cluster import ray_session

    config.ray.address = ""  # that of the run may be gone; RAY_ADDRESS names another
    config.ray.num_cpus = 0
    with ray_session(config.ray, cpus_needed=config.learner.ranks * config.learner.cpus_per_rank):
        return asyncio.run(_replayed(run_dir, config, step, checks, variants, through=through, tolerance=tolerance))


async def _replayed(
    run_dir: Path,
    config: RunConfig,
    step: int,
    checks: list[Check],
    variants: Mapping[str, RunConfig],
    *,
    through: Through,
    tolerance: float | None,
) -> ReplayedStep:
    from rl.replay.rewind import ONE_WHOLE, logged_batch, read_update, rewind, shape_of

    logged = read_update(run_dir, step)
    rewound = await rewind(
        run_dir,
        config,
        step,
        shape=ONE_WHOLE if variants else shape_of(logged),
        with_reference=any(variant.loss.kl_coef > 0 for variant in variants.values()),
        entropy_gradient=any(variant.loss.entropy_coef > 0 for variant in variants.values()),
        warn=say,
    )
    batch, learner = logged_batch(logged), rewound.learner
    exact = rewound.exact and (not variants or shape_of(logged) == ONE_WHOLE)
    allowed = tolerance if tolerance is not None else 0.0 if exact else TOLERANCE[config.policy.dtype]
    norm, turns = await _turns(learner, config, batch, logged, variants) if variants else (math.nan, ())
    _, before = await learner.weights()
    update = await learner.update(batch)
    _, after = await learner.weights()
    recorded = logged.update
    checks.append(_weights_check("weights before", before.sha256, recorded["weights_before"], exact, rewound.strayed))
    if exact:
        checks.append(micro_batches_check(batch, update.micro_batches, logged))
    checks.append(logprobs_check(batch, update.logprobs, logged, tolerance=allowed))
    of_update = ("grad_norm", "learning_rate")
    checks.append(numbers_check("loss", update.stats, recorded["stats"], leave=of_update, tolerance=allowed))
    if through == "update":
        of_loss = tuple(name for name in recorded["stats"] if name not in of_update)
        checks.append(numbers_check("gradient", update.stats, recorded["stats"], leave=of_loss, tolerance=allowed))
        checks.append(_weights_check("weights after", after.sha256, recorded["weights_after"], exact, 0))
    return ReplayedStep(
        step=step,
        began=rewound.began,
        tolerance=allowed,
        checks=tuple(checks),
        norm=norm,
        turns=turns,
        minibatches=config.learner.minibatches,
    )


def make_batch(config: RunConfig, groups: Sequence[Group], *, step: int) -> TrainBatch:
    """The batch that ``config`` makes of logged groups, from their rewards on."""
    from rl.launch import load_scorers

    scorers = load_scorers(config) if config.advantage.per_reward else ()
    return make_train_batch(
        groups,
        baseline=config.advantage.baseline,  # type: ignore[arg-type]
        scale=config.advantage.scale,  # type: ignore[arg-type]
        per_reward=config.advantage.per_reward,
        weights={scorer.name: scorer.weight for scorer in scorers if scorer.weight > 0},
        gates=frozenset(scorer.name for scorer in scorers if scorer.gate),
        max_shaping=max_shaping(scorers, config.rewards.length_penalty),
        policy_version=step - 1,
    )


def advantages_check(batch: TrainBatch, logged: LoggedStep) -> Check:
    """Which trajectories were trained on, and with what; always to the bit: it is float64 on any machine."""
    now = {sample.trajectory_id: sample.advantage for sample in batch.samples}
    differing = [name for name in {**now, **logged.advantages} if now.get(name) != logged.advantages.get(name)]
    difference = ""
    if differing:
        name = differing[0]
        was, is_ = (_or_untrained(values.get(name)) for values in (logged.advantages, now))
        difference = f"{name}: logged {was}, now {is_}; {_of(len(differing), len(now), 'trajectories')} differ"
    return Check(part="advantages", compared=f"{len(now):,} trajectories", difference=difference)


def micro_batches_check(batch: TrainBatch, now: Sequence[int], logged: LoggedStep) -> Check:
    places = dict(zip((sample.trajectory_id for sample in batch.samples), now, strict=True))
    differing = [name for name in places if places[name] != logged.micro_batches.get(name)]
    difference = ""
    if differing:
        name = differing[0]
        difference = f"{name}: logged in {logged.micro_batches.get(name)}, now in {places[name]}"
    return Check(part="micro-batches", compared=f"{len(set(now)):,} passes", difference=difference)


def logprobs_check(batch: TrainBatch, now: Sequence[np.ndarray], logged: LoggedStep, *, tolerance: float) -> Check:
    """The learner's logprobs before the update; names the first trajectory and token that differ."""
    first, differing, largest = "", 0, 0.0
    for sample, found in zip(batch.samples, now, strict=True):
        mask = sample.loss_mask[sample.prompt_length :]
        expected = logged.learner_logprobs[sample.trajectory_id][mask]
        apart = np.abs(found - expected)
        unequal = np.flatnonzero(~(apart <= tolerance))  # NaN is unequal
        if len(unequal) and not first:
            place = int(unequal[0])
            token = int(np.flatnonzero(mask)[place])
            written = int(sample.token_ids[sample.prompt_length + token])
            first = (
                f"{sample.trajectory_id}, token {token} of its completion (id {written}): logged "
                f"{expected[place]:.9g}, now {found[place]:.9g}"
            )
        differing += len(unequal)
        largest = max(largest, float(apart.max(initial=0.0)))
    if first:
        first += f"; {_of(differing, batch.loss_tokens, 'tokens')} differ, by {largest:.3g} at most"
    return Check(part="learner logprobs", compared=f"{batch.loss_tokens:,} tokens", difference=first)


def numbers_check(
    part: str, now: Mapping[str, float], logged: Mapping[str, float], *, leave: Iterable[str], tolerance: float
) -> Check:
    """Named numbers of the update, but those to ``leave``."""
    names = [name for name in logged if name not in leave]
    differing = [name for name in names if not _same(now.get(name, math.nan), logged[name], tolerance)]
    difference = ""
    if differing:
        name = differing[0]
        difference = f"{name}: logged {logged[name]!r}, now {now.get(name)!r}"
    return Check(part=part, compared=", ".join(names[:3]) + (" …" if len(names) > 3 else ""), difference=difference)


def what_if_configs(run_dir: Path, settings: Sequence[str]) -> dict[str, RunConfig]:
    """The run's config under each setting, and under all of them where there are several.

    Raises ConfigError for a key outside `WHAT_IF_SECTIONS`, which would have changed the rollouts too.
    """
    for setting in settings:
        if setting.split(".")[0] not in WHAT_IF_SECTIONS:
            allowed = ", ".join(f"{section}.…" for section in WHAT_IF_SECTIONS)
            raise ConfigError(f"--what-if takes {allowed}, which a logged step can be judged under; got {setting!r}")
    path = run_dir / "config.yaml"
    configs = {setting: load_config(path, [setting]) for setting in settings}
    return configs | ({"all of these": load_config(path, settings)} if len(settings) > 1 else {})


async def _turns(
    learner: Any, config: RunConfig, batch: TrainBatch, logged: LoggedStep, variants: Mapping[str, RunConfig]
) -> tuple[float, tuple[Turn, ...]]:
    from rl.settings import loss_function

    groups = [await _regrouped(config, variant, logged.batch) for variant in variants.values()]
    batches = [
        make_batch(variant, regrouped, step=logged.step)
        for variant, (regrouped, _) in zip(variants.values(), groups, strict=True)
    ]
    losses = [(other, loss_function(variant)) for other, variant in zip(batches, variants.values(), strict=True)]
    gradients = await learner.gradients(batch, variants=losses)
    turns = tuple(
        Turn(
            setting=setting,
            norm=gradient.norm,
            cosine=gradient.dot / (gradient.norm * gradients.norm) if gradient.norm * gradients.norm else math.nan,
            flipped=_flipped(batch, other),
            rescored=rescored,
        )
        for setting, gradient, other, (_, rescored) in zip(variants, gradients.variants, batches, groups, strict=True)
    )
    return gradients.norm, turns


async def _regrouped(config: RunConfig, variant: RunConfig, groups: Sequence[Group]) -> tuple[Sequence[Group], int]:
    """The groups with the rewards of ``variant``, and how many trajectories were scored anew for it.

    A logged score of a scorer in the same version is taken as it is: only what a setting changes is scored again.
    """
    if variant.rewards == config.rewards:
        return groups, 0
    from rewards.service import RewardService
    from rl.collect import group_outcomes
    from rl.launch import load_scorers

    scorers = load_scorers(variant)
    section = variant.rewards
    regrouped, rescored = [], 0
    with RewardService(
        scorers, length_penalty=section.length_penalty, length_soft_tokens=section.length_soft_tokens
    ) as service:
        for group in groups:
            items = sorted(group.items, key=lambda item: item.trajectory.sample_index)
            outcomes = await asyncio.gather(*(service.score(item.trajectory, known=item.scores) for item in items))
            regrouped.append(group_outcomes(group.task, outcomes))
            rescored += sum(
                any(item.scores.get(name) is not record for name, record in outcome.scores.items())
                for item, outcome in zip(items, outcomes, strict=True)
            )
    return regrouped, rescored


def _flipped(one: TrainBatch, other: TrainBatch) -> int:
    """How many trajectories of both have advantages of opposite signs."""
    signs = {sample.trajectory_id: np.sign(sample.advantage) for sample in one.samples}
    return sum(signs.get(sample.trajectory_id, 0.0) * np.sign(sample.advantage) < 0 for sample in other.samples)


def _weights_check(part: str, now: str, logged: str, exact: bool, strayed: int) -> Check:
    if not exact:
        return Check(part=part, compared="not compared: a digest has no tolerance")
    difference = "" if now == logged else f"logged {logged[:16]}…, now {now[:16]}…"
    if difference and strayed:
        difference += f"; first at step {strayed}, on the way from the checkpoint"
    return Check(part=part, compared=f"sha256 {now[:16]}…", difference=difference)


def _same(now: float, logged: float, tolerance: float) -> bool:
    if math.isnan(now) or math.isnan(logged):
        return math.isnan(now) and math.isnan(logged)
    return now == logged or abs(now - logged) <= tolerance * max(1.0, abs(logged))


def _or_untrained(advantage: float | None) -> str:
    return "not trained on" if advantage is None else repr(advantage)


def _of(part: int, whole: int, noun: str) -> str:
    return f"{part:,} of {whole:,} {noun}"


def described(replayed: ReplayedStep) -> Iterator[str]:
    """The outcome as lines for a terminal."""
    how = "to the bit" if replayed.tolerance == 0 else f"within {replayed.tolerance:g}"
    yield f"step {replayed.step}, from {replayed.began}; compared {how}"
    for check in replayed.checks:
        yield f"  {check.part:18}{'DIFFERS' if check.difference else 'same':9}{check.compared}"
    first = next((check for check in replayed.checks if check.difference), None)
    yield f"first difference: {first.part}: {first.difference}" if first else "no difference"
    if replayed.turns:
        yield ""
        as_it_was = "as it was"
        if replayed.minibatches > 1:
            as_it_was = "as one step"
            yield from wrapped(
                f"Gradients of the whole batch at the weights before the step, as if it were one optimizer step. "
                f"It was taken in {replayed.minibatches}, each at the weights that the one before had left."
            )
        width = max(len(as_it_was), *(len(turn.setting) for turn in replayed.turns))
        yield f"{'what if':{width}}  {'norm':>10}  {'cosine':>8}  {'flipped':>8}  {'rescored':>8}"
        yield f"{as_it_was:{width}}  {replayed.norm:10.4g}  {1:8.4f}"
        for turn in replayed.turns:
            cosine = "none" if math.isnan(turn.cosine) else f"{turn.cosine:.4f}"
            yield f"{turn.setting:{width}}  {turn.norm:10.4g}  {cosine:>8}  {turn.flipped:8,}  {turn.rescored:8,}"
