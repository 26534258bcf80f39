"""From an optimizer step back to its groups, trajectories, scores, claims and their evidence."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from rewards.tools.explain import explain
from rewards.tools.terminal import WIDTH, Paint, shortened, wrapped
from rl.config_schema import RunConfig
from rl.errors import LogError
from rl.progress import say
from rl.replay.shares import GradientShare, Shares, gradient_shares, keep_shares, shares_of
from rl.run_folder import run_config
from rl.types import Group, ScoredTrajectory, Unscored
from rollouts.log import LoggedStep, read_step

SHOWN_GROUPS = 6
SHOWN_TRAJECTORIES = 12


def explain_step(run_dir: Path, *, step: int, trajectory: str | None, gradients: bool, paint: Paint) -> Iterator[str]:
    """Lines of at most 80 columns on a step, or on one trajectory's part in it; what a model wrote is neutralised.

    ``gradients`` has a learner take the step's gradient apart, which is kept in the run's folder. Raises LogError for a
    step or a trajectory that was not logged, and what rewinding raises.
    """
    config = run_config(run_dir)
    logged = read_step(run_dir, step)
    if trajectory is not None:
        find_item(logged, trajectory)
    if gradients:
        measure_shares(run_dir, config, step)
    shares = shares_of(run_dir, logged, aggregation=config.loss.aggregation)
    yield from _step_lines(logged, config, paint)
    yield ""
    if trajectory is None:
        yield from _share_note(shares, minibatches=config.learner.minibatches)
        yield ""
        yield from _group_lines(logged, shares, paint)
        yield ""
        yield from _trajectory_table(logged, shares, paint)
    else:
        from rl.commands.trajectory_sources import rewards_of_run

        yield from _part_lines(logged, trajectory, config, shares, paint)
        yield ""
        yield from explain(find_item(logged, trajectory)[1], rewards_of_run(run_dir), paint=paint)


def measure_shares(run_dir: Path, config: RunConfig, step: int) -> None:
    """Take the gradient of a step apart with a learner in a Ray session of its own; kept as JSON beside the log."""
    from rl.cluster import ray_session
    from rl.replay.rewind import ONE_WHOLE, logged_batch, read_update, rewind

    async def measured() -> dict[str, GradientShare]:
        rewound = await rewind(run_dir, config, step, shape=ONE_WHOLE, warn=say)
        gradients = await rewound.learner.gradients(batch, by_sample=True)
        return gradient_shares(batch.samples, [(part.norm, part.dot) for part in gradients.samples], gradients.norm)

    logged = read_update(run_dir, step)
    batch = logged_batch(logged)
    config.ray.address, config.ray.num_cpus = "", 0
    with ray_session(config.ray, cpus_needed=config.learner.cpus_per_rank):
        keep_shares(run_dir, logged, asyncio.run(measured()))


def find_item(logged: LoggedStep, id: str) -> tuple[Group, ScoredTrajectory | Unscored]:
    """A trajectory of the step and its group. Raises LogError where the step has none of that id."""
    found: dict[str, tuple[Group, ScoredTrajectory | Unscored]] = {}
    for group in logged.groups:
        found |= {item.trajectory.id: (group, item) for item in group.scored}
        found |= {item.trajectory.id: (group, item) for item in group.unscored}
    if id not in found:
        raise LogError(
            f"step {logged.step} has no trajectory of the id {id!r}; its ids are such as {next(iter(found))!r}"
        )
    return found[id]


def _step_lines(logged: LoggedStep, config: RunConfig, paint: Paint) -> Iterator[str]:
    if not logged.advantages:
        yield paint(f"step {logged.step}: the log knows of no update that it led to", "bold")
        return
    yield paint(f"step {logged.step}: policy version {logged.step - 1} became {logged.step}", "bold")
    if update := logged.update:
        stats = update["stats"]
        clipped = ", clipped" if stats["grad_norm"] > config.learner.max_grad_norm else ""
        yield (
            f"  loss {stats['total']:.6g}, gradient norm {stats['grad_norm']:.4g}{clipped}, "
            f"learning rate {stats['learning_rate']:.3g}"
        )
        yield f"  weights {update['weights_before'][:16]}… → {update['weights_after'][:16]}…"
    trained = [group for group in logged.batch if any(item.trajectory.id in logged.advantages for item in group.scored)]
    silent = sum(not any(logged.advantages.get(item.trajectory.id) for item in group.scored) for group in trained)
    unscored = sum(len(group.unscored) for group in logged.groups)
    yield f"  {len(logged.advantages):,} trajectories in {len(trained):,} groups were trained on"
    yield f"  {silent:,} groups gave no signal: all advantages are zero"
    if unscored:
        yield f"  left out: {unscored:,} trajectories without a reward, because a scorer failed"
    if logged.drawn_anew:
        yield f"  left out: {len(logged.drawn_anew):,} groups without signal, which others were drawn for"
    if lost := len(logged.batch) - len(trained):
        yield f"  left out: {lost:,} groups with fewer than two rewards, hence without a baseline"


def _share_note(shares: Shares, *, minibatches: int) -> Iterator[str]:
    if shares.measured:
        whole = f", as if its {minibatches} mini-batches were one" if minibatches > 1 else ""
        yield from wrapped(
            f"share: the projection of a trajectory's gradient on the step's, before clipping and Adam{whole}; all add "
            f"up to 100 %, and one below zero pulled against the step"
        )
    else:
        yield from wrapped(
            "share: |advantage| × loss tokens, in per cent of the step's sum. This is the weight in the loss and not "
            "the gradient; --gradients has a learner measure that"
        )


def _group_lines(logged: LoggedStep, shares: Shares, paint: Paint) -> Iterator[str]:
    def share(group: Group) -> float:
        return sum(shares.of(item.trajectory.id) for item in group.scored if item.trajectory.id in shares.weights)

    yield paint(f"{'share':>7}  {'rewards':13}  group", "bold")
    ranked = sorted(logged.groups, key=share, reverse=True)
    for group in ranked[:SHOWN_GROUPS]:
        rewards = [item.reward for item in group.scored]
        span = f"{min(rewards):.3f}–{max(rewards):.3f}" if rewards else "none"
        head = f"{share(group):7.1%}  {span:13}  "
        yield from wrapped(shortened(f"{group.task.id}: {group.task.question}", 100), indent=head)
    if len(ranked) > SHOWN_GROUPS:
        yield f"{sum(map(share, ranked[SHOWN_GROUPS:])):7.1%}  in {len(ranked) - SHOWN_GROUPS:,} further groups"


def _trajectory_table(logged: LoggedStep, shares: Shares, paint: Paint) -> Iterator[str]:
    items = {item.trajectory.id: item for group in logged.groups for item in group.scored}
    ranked = sorted(logged.advantages, key=lambda name: abs(shares.of(name)), reverse=True)
    yield paint(f"{'share':>7}  {'advantage':>9}  {'reward':>6}  {'tokens':>6}  trajectory", "bold")
    for name in ranked[:SHOWN_TRAJECTORIES]:
        item = items[name]
        answer = item.trajectory.answer_text
        told = {True: "right", False: "wrong", None: "untold"}[item.correct]
        head = (
            f"{shares.of(name):7.1%}  {logged.advantages[name]:+9.3f}  {item.reward:6.3f}  "
            f"{item.trajectory.length_tokens:6,}  "
        )
        yield head + shortened(f"{name}  {told}: {answer or '—'}", WIDTH - len(head))
    if len(ranked) > SHOWN_TRAJECTORIES:
        rest = sum(shares.of(name) for name in ranked[SHOWN_TRAJECTORIES:])
        yield f"{rest:7.1%}  in {len(ranked) - SHOWN_TRAJECTORIES:,} further trajectories"
    if ranked:
        yield from wrapped(f"one of them, with its scores and their evidence: --trajectory {ranked[0]}")


def _part_lines(logged: LoggedStep, id: str, config: RunConfig, shares: Shares, paint: Paint) -> Iterator[str]:
    """What the step did with one trajectory."""
    group, item = find_item(logged, id)
    if id not in logged.advantages:
        why = item.reason if isinstance(item, Unscored) else "its group has fewer than two rewards, hence no baseline"
        yield from wrapped(f"not trained on: {why}")
        return
    assert isinstance(item, ScoredTrajectory)
    advantage = logged.advantages[id]
    turned = "more likely" if advantage > 0 else "less likely" if advantage < 0 else "neither more nor less likely"
    rewards = [each.reward for each in group.scored]
    yield paint(f"advantage {advantage:+.4f}: the step was to make it {turned}", "bold")
    yield from wrapped(
        f"reward {item.reward:.4f} in a group of {len(rewards)} from {min(rewards):.4f} to {max(rewards):.4f}, mean "
        f"{sum(rewards) / len(rewards):.4f} (baseline {config.advantage.baseline}, scale {config.advantage.scale}"
        f"{', every reward on its own' if config.advantage.per_reward else ''})",
        indent="  ",
    )
    yield f"  weight in the loss {shares.weights[id]:.2%}, micro-batch {logged.micro_batches.get(id, '—')}"
    if measured := shares.measured.get(id):
        yield (
            f"  share of the gradient {measured.share:.2%}: norm {measured.norm:.4g}, cosine to the step's "
            f"{measured.cosine:+.3f}"
        )
