"""The report's trajectories: held-out cases before and after training, and a choice of those trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from rl.replay.shares import Shares
from rl.report.charts import format_value
from rl.report.input import Item
from rl.report.markup import Markup, element, join
from rl.report.pictures import Pictures
from rl.report.trace import ScorerEvidence, evidence_list, marked_trace, verdict_badge
from rl.types import Group, ScoredTrajectory, ScoreRecord, Task, Unscored, Verdict
from rollouts.log import LoggedStep

_PAIRS_SHOWN = 16
_SHOWN_PER_KIND = 8
_OPEN_CARDS = 2
_CUT: Mapping[str, str] = {"length": "cut by the token limit", "abort": "aborted"}

CHANGES: Mapping[str, str] = {
    "fixed": "wrong → right",
    "broke": "right → wrong",
    "stayed-wrong": "wrong both times",
    "stayed-right": "right both times",
    "better": "reward up",
    "worse": "reward down",
    "even": "reward unchanged",
}
"""What training did to a held-out case: told by its answer where that can be, by its reward elsewhere."""

KINDS: Mapping[str, str] = {
    **{kind: kind for kind in ("best", "worst", "wrong", "hallucinated", "unscored")},
    "strongest": "moved its step most",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A trajectory to show, with the group that it was compared in and the filters that it answers to."""

    step: int
    group: Group
    item: Item
    advantage: float | None = None
    share: str = ""
    kinds: frozenset[str] = frozenset()


def evaluation_cards(evaluations: Sequence[LoggedStep], *, roles: Mapping[str, str], pictures: Pictures) -> Markup:
    """The same held-out cases before and after training, side by side; one evaluation alone as single cards.

    ``roles`` says what each scorer's score is used for (``weight 0.5``, ``gate``).
    """
    if len(evaluations) < 2:
        return trajectory_cards(evaluations, roles=roles, pictures=pictures, name="held-out")
    before, after = evaluations
    pairs = list(_pairs(before, after))
    chosen = _chosen_pairs(pairs)
    note = f"{len(chosen)} of {len(pairs)} cases are shown; all of them are in the trajectory log."
    counts = Counter(_change(*pair) for pair in pairs)
    return join(_change_bar(counts), pair_cards(chosen, note, roles=roles, pictures=pictures))


def pair_cards(
    pairs: Sequence[tuple[Shown, Shown]], note: str, *, roles: Mapping[str, str], pictures: Pictures
) -> Markup:
    """Two trajectories of each case side by side, or two scorings of the same one."""
    shown = Counter(_change(*pair) for pair in pairs)
    cards = [
        _pair_card(*pair, roles=roles, pictures=pictures, opened=index < _OPEN_CARDS)
        for index, pair in enumerate(pairs)
    ]
    return join(_toolbar(_filters("change", CHANGES, shown), note), _cards(cards))


def trajectory_cards(
    steps: Sequence[LoggedStep],
    *,
    roles: Mapping[str, str],
    pictures: Pictures,
    name: str = "training",
    shares: Mapping[int, Shares] = MappingProxyType({}),
) -> Markup:
    """A choice of the steps' trajectories: the best, the worst, wrong, hallucinated and unscored ones.

    ``shares`` by step say how much of it each trajectory was.
    """
    every = list(_all_shown(steps, shares))
    chosen = _choice(every)
    counts = Counter(kind for one in chosen for kind in one.kinds)
    cards = [
        _single_card(one, roles=roles, pictures=pictures, opened=index < _OPEN_CARDS)
        for index, one in enumerate(chosen)
    ]
    read = ", ".join(str(step.step) for step in steps)
    note = f"{len(chosen)} of {len(every):,} trajectories of step{'s' if len(steps) > 1 else ''} {read} are shown."
    return join(_toolbar(_filters(name, KINDS, counts), note), _cards(cards))


def _cards(cards: Iterable[Markup]) -> Markup:
    return element("div", *cards, class_="cards")


def _toolbar(filters: Markup, note: str) -> Markup:
    return element("div", filters, element("span", note, class_="dim"), class_="toolbar")


def _filters(name: str, labels: Mapping[str, str], counts: Mapping[str, int]) -> Markup:
    """Radio buttons that style sheets alone act upon: they work where no script runs."""
    choices = {
        "all": "all",
        **{kind: f"{label} · {counts[kind]}" for kind, label in labels.items() if counts.get(kind)},
    }
    buttons = [
        element(
            "label",
            element("input", type="radio", name=name, value=kind, checked="" if kind == "all" else None),
            element("span", label),
        )
        for kind, label in choices.items()
    ]
    return element("fieldset", element("legend", "Show", class_="unseen"), *buttons, class_="filters")


def _all_shown(steps: Sequence[LoggedStep], shares: Mapping[int, Shares]) -> Iterator[Shown]:
    for step in steps:
        told, strongest = shares[step.step].told() if step.step in shares else ({}, "")
        for group in step.groups:
            for item in group.items:
                id = item.trajectory.id
                kinds = frozenset([*_kinds(item), *(["strongest"] if id == strongest else [])])
                advantage, share = step.advantages.get(id), told.get(id, "")
                yield Shown(step=step.step, group=group, item=item, advantage=advantage, share=share, kinds=kinds)


def _kinds(item: Item) -> Iterator[str]:
    if isinstance(item, Unscored):
        yield "unscored"
    elif item.correct is False:
        yield "wrong"
    if _hallucinated(item):
        yield "hallucinated"


def _hallucinated(item: Item) -> dict[Verdict, int]:
    """Refuted and unsupported claims, as counted by the scorers that check claims."""
    checked = [record.score.metrics for record in item.scores.values() if record.score is not None]
    verdicts: tuple[Verdict, ...] = ("refuted", "unsupported")
    counts = {verdict: int(max((count.get(verdict, 0.0) for count in checked), default=0)) for verdict in verdicts}
    return {verdict: count for verdict, count in counts.items() if count}


def _all_evidence(item: Item) -> list[ScorerEvidence]:
    return [
        ScorerEvidence(record.scorer, evidence)
        for record in item.scores.values()
        if record.score is not None
        for evidence in record.score.evidence
    ]


def _choice(every: Sequence[Shown]) -> list[Shown]:
    """Some of each kind, the latest first; kinds that are plenty are sampled evenly over the steps."""
    ranked = sorted(
        (index for index, one in enumerate(every) if isinstance(one.item, ScoredTrajectory)),
        key=lambda index: (_reward(every[index].item) or 0.0, every[index].advantage or 0.0),
    )
    picked: dict[int, frozenset[str]] = {}
    extremes = {"best": _one_of_each_group(ranked[::-1], every), "worst": _one_of_each_group(ranked, every)}
    common = {
        kind: _evenly([index for index, one in enumerate(every) if kind in one.kinds], _SHOWN_PER_KIND)
        for kind in ("wrong", "hallucinated", "unscored", "strongest")
    }
    for kind, indices in {**extremes, **common}.items():
        for index in indices:
            picked[index] = picked.get(index, every[index].kinds) | {kind}
    return [replace(every[index], kinds=picked[index]) for index in sorted(picked, key=lambda i: (-every[i].step, i))]


def _one_of_each_group(ranked: Sequence[int], every: Sequence[Shown]) -> list[int]:
    first: dict[int, int] = {}
    for index in ranked:
        first.setdefault(id(every[index].group), index)
    return list(first.values())[:_SHOWN_PER_KIND]


def _evenly(indices: Sequence[int], count: int) -> list[int]:
    stride = max(len(indices) / count, 1.0)
    return [indices[int(place * stride)] for place in range(min(count, len(indices)))]


def _reward(item: Item) -> float | None:
    return item.reward if isinstance(item, ScoredTrajectory) else None


def _correct(item: Item) -> bool | None:
    return item.correct if isinstance(item, ScoredTrajectory) else None


def _pairs(before: LoggedStep, after: LoggedStep) -> Iterator[tuple[Shown, Shown]]:
    """The first trajectory of each case that both evaluations hold."""
    earlier = {group.task.id: group for group in before.groups}
    for group in after.groups:
        if (other := earlier.get(group.task.id)) is not None:
            yield (
                Shown(step=before.step, group=other, item=other.items[0]),
                Shown(step=after.step, group=group, item=group.items[0]),
            )


def _change(before: Shown, after: Shown) -> str:
    was, now = _correct(before.item), _correct(after.item)
    if was is not None and now is not None:
        return {(False, True): "fixed", (True, False): "broke", (False, False): "stayed-wrong"}.get(
            (was, now), "stayed-right"
        )
    gain = (_reward(after.item) or 0.0) - (_reward(before.item) or 0.0)
    return "better" if gain > 0 else "worse" if gain < 0 else "even"


def _chosen_pairs(pairs: Sequence[tuple[Shown, Shown]]) -> list[tuple[Shown, Shown]]:
    """As many of each change as there is room for, one of each in turn."""
    queues = [[pair for pair in pairs if _change(*pair) == change] for change in CHANGES]
    turns = [queue[turn] for turn in range(_PAIRS_SHOWN) for queue in queues if turn < len(queue)]
    return turns[:_PAIRS_SHOWN]


def _change_bar(counts: Mapping[str, int]) -> Markup:
    """How many cases changed, as one bar of parts with their numbers."""
    parts = [(kind, counts[kind]) for kind in CHANGES if counts.get(kind)]
    bar = [element("span", class_=f"part {kind}", style=f"flex-grow:{count}") for kind, count in parts]
    key = [
        element("li", element("i", class_=f"swatch {kind}"), element("b", f"{count:,}"), f" {CHANGES[kind]}")
        for kind, count in parts
    ]
    return join(element("div", *bar, class_="change-bar"), element("ul", *key, class_="key"))


def _pair_card(before: Shown, after: Shown, *, roles: Mapping[str, str], pictures: Pictures, opened: bool) -> Markup:
    change = _change(before, after)
    rewards = " → ".join("unscored" if (r := _reward(one.item)) is None else f"{r:.2f}" for one in (before, after))
    heading = element(
        "summary",
        element("span", CHANGES[change], class_=f"chip {change}"),
        element("span", after.group.task.id, class_="case"),
        element("span", f"reward {rewards}", class_="figures"),
    )
    sides = [
        element(
            "div", element("h4", f"{name} ", element("small", f"step {one.step}")), _panel(one, roles), class_="side"
        )
        for name, one in (("Before", before), ("After", after))
    ]
    body = element("div", _case(after.group.task, pictures), *sides, class_="card-body pair")
    return element("details", heading, body, class_=f"card {change}", open="" if opened else None)


def _single_card(shown: Shown, *, roles: Mapping[str, str], pictures: Pictures, opened: bool) -> Markup:
    trajectory = shown.item.trajectory
    heading = element(
        "summary",
        _outcome_chip(shown.item),
        element("span", shown.group.task.id, class_="case"),
        element("span", f"step {shown.step} · sample {trajectory.sample_index + 1}", class_="figures"),
        element("span", *_standing(shown), class_="figures standing"),
        *(verdict_badge(verdict, count=count) for verdict, count in _hallucinated(shown.item).items()),
    )
    body = element("div", _case(shown.group.task, pictures), _panel(shown, roles), class_="card-body")
    classes = " ".join(("card", *sorted(shown.kinds)))
    return element("details", heading, body, class_=classes, open="" if opened else None)


def _outcome_chip(item: Item) -> Markup:
    if isinstance(item, Unscored):
        return element("span", "unscored", class_="chip unscored-chip")
    name = {True: "right", False: "wrong", None: "scored"}[item.correct]
    return element("span", name, class_=f"chip {name}-chip")


def _standing(shown: Shown) -> Iterator[Markup]:
    """How the trajectory came out beside the others of its group."""
    reward = _reward(shown.item)
    yield element("span", "no reward" if reward is None else f"reward {reward:.2f}")
    yield _group_strip(shown)
    if shown.advantage is not None:
        yield element("span", f"advantage {shown.advantage:+.2f}".replace("-", "−"))
    if shown.share:
        yield element("span", shown.share.replace("-", "−"))


def _group_strip(shown: Shown) -> Markup:
    """The rewards of the group on a line from 0 to 1, its mean as a tick, this trajectory filled."""
    rewards = [item.reward for item in shown.group.scored]
    if len(rewards) < 2:
        return Markup()
    mean = sum(rewards) / len(rewards)
    low, high = min(0.0, *rewards), max(1.0, *rewards)

    def place(reward: float) -> float:
        return 5 + 90 * (reward - low) / (high - low)

    dots = [
        element("circle", cx=place(item.reward), cy=9, r=3.2, class_="this" if item is shown.item else "other")
        for item in sorted(shown.group.scored, key=lambda item: item is shown.item)
    ]
    label = f"rewards of the group's {len(rewards)} trajectories, mean {mean:.2f}"
    return element(
        "svg",
        element("title", label),
        element("line", x1=5, x2=95, y1=9, y2=9, class_="rule"),
        element("line", x1=place(mean), x2=place(mean), y1=3, y2=15, class_="mean"),
        *dots,
        class_="strip",
        viewBox="0 0 100 18",
        role="img",
        aria_label=label,
    )


def _case(task: Task, pictures: Pictures) -> Markup:
    """The images, the question, the reference answer and the record of a case."""
    images = [
        pictures.element(image, f"image {index + 1} of case {task.id}") for index, image in enumerate(task.images)
    ]
    answer = task.answer.get("value", task.answer)
    written = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    rows = [
        element(
            "tr",
            element("th", name, scope="row"),
            element("td", f"{entry.value:g} {entry.unit}"),
            element("td", entry.reading),
        )
        for name, entry in task.record.items()
    ]
    record = element(
        "details", element("summary", f"Record, {len(rows)} measurements"), element("table", *rows), class_="folded"
    )
    return element(
        "div",
        *images,
        element("p", task.question, class_="question"),
        element("p", element("span", "Reference ", class_="dim"), element("b", written)),
        record if rows else Markup(),
        class_="case-panel",
    )


def _panel(shown: Shown, roles: Mapping[str, str]) -> Markup:
    """What the policy wrote and what was said of it."""
    item, trajectory = shown.item, shown.item.trajectory
    facts = [f"{trajectory.length_tokens:,} tokens", f"policy version {trajectory.policy_version}"]
    if trajectory.source:
        facts = [f"imported from {trajectory.source}"]
    if (reward := _reward(item)) is not None:
        facts.insert(0, f"reward {reward:.3f}")
    if trajectory.finish_reason in _CUT:
        facts.append(_CUT[trajectory.finish_reason])
    if trajectory.tool_calls:
        facts.append(f"{len(trajectory.tool_calls)} tool calls")
    failure = element("p", f"Unscored: {item.reason}", class_="failure") if isinstance(item, Unscored) else Markup()
    return element(
        "div",
        element("p", _outcome_chip(item), element("span", " · ".join(facts), class_="dim"), class_="facts"),
        marked_trace(trajectory.text, _all_evidence(item)),
        failure,
        element(
            "div", *(_score(record, roles.get(record.scorer, "")) for record in item.scores.values()), class_="scores"
        ),
        class_="panel",
    )


def _score(record: ScoreRecord, role: str) -> Markup:
    score = record.score
    if score is None:
        figure = element("span", record.outcome.replace("_", " "), class_=f"outcome {record.outcome}")
        reason, evidence = record.reason, Markup()
    else:
        figure = element("span", element("i", style=f"width:{100 * score.value:.1f}%"), class_="meter")
        figure = join(figure, element("b", format_value(score.value, "score")))
        reason, evidence = score.reason, evidence_list(score.evidence)
    closed = (
        element("span", "gate closed: reward 0", class_="failure")
        if score and not score.gate_open and "gate" in role
        else Markup()
    )
    name = element("span", element("b", record.scorer), " ", element("small", role), title=f"version {record.version}")
    why = element("div", element("p", reason[:1000]) if reason else Markup(), closed, evidence, class_="why")
    return element("div", element("div", name, figure, class_="score-head"), why, class_="score")
