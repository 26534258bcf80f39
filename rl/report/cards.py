"""The report's trajectories: held-out cases before and after training, and a choice of those trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from rl.replay.shares import Shares
from rl.report.input import Item
from rl.report.markup import Markup, element, join
from rl.report.pictures import Pictures
from rl.report.regions import DrawnBox, both_boxes, drawn_boxes
from rl.report.trace import verdict_badge
from rl.report.trajectory import Draw, case_panel, group_strip, hallucinated, outcome_chip, reward_of, trace_panel
from rl.types import EncodedImage, Group, ScoredTrajectory, Unscored
from rollouts.log import LoggedStep

_PAIRS_SHOWN = 16
_SHOWN_PER_KIND = 8
_OPEN_CARDS = 2

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
    if hallucinated(item):
        yield "hallucinated"


def _choice(every: Sequence[Shown]) -> list[Shown]:
    """Some of each kind, the latest first; kinds that are plenty are sampled evenly over the steps."""
    ranked = sorted(
        (index for index, one in enumerate(every) if isinstance(one.item, ScoredTrajectory)),
        key=lambda index: (reward_of(every[index].item) or 0.0, every[index].advantage or 0.0),
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
    gain = (reward_of(after.item) or 0.0) - (reward_of(before.item) or 0.0)
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
    rewards = " → ".join("unscored" if (r := reward_of(one.item)) is None else f"{r:.2f}" for one in (before, after))
    heading = element(
        "summary",
        element("span", CHANGES[change], class_=f"chip {change}"),
        element("span", after.group.task.id, class_="case"),
        element("span", f"reward {rewards}", class_="figures"),
    )
    sides = [
        element(
            "div",
            element("h4", f"{name} ", element("small", f"step {one.step}")),
            trace_panel(one.item, roles, draw=_drawn(pictures, one, _boxes(one, pictures))),
            class_="side",
        )
        for name, one in (("Before", before), ("After", after))
    ]
    boxes = both_boxes(before.item, after.item, coordinates=pictures.coordinates)
    case = case_panel(after.group.task, _drawn(pictures, after, boxes))
    body = element("div", case, *sides, class_="card-body pair")
    return element("details", heading, body, class_=f"card {change}", open="" if opened else None)


def _single_card(shown: Shown, *, roles: Mapping[str, str], pictures: Pictures, opened: bool) -> Markup:
    trajectory = shown.item.trajectory
    heading = element(
        "summary",
        outcome_chip(shown.item),
        element("span", shown.group.task.id, class_="case"),
        element("span", f"step {shown.step} · sample {trajectory.sample_index + 1}", class_="figures"),
        element("span", *_standing(shown), class_="figures standing"),
        *(verdict_badge(verdict, count=count) for verdict, count in hallucinated(shown.item).items()),
    )
    draw = _drawn(pictures, shown, _boxes(shown, pictures))
    panels = case_panel(shown.group.task, draw), trace_panel(shown.item, roles, draw=draw)
    body = element("div", *panels, class_="card-body")
    classes = " ".join(("card", *sorted(shown.kinds)))
    return element("details", heading, body, class_=classes, open="" if opened else None)


def _standing(shown: Shown) -> Iterator[Markup]:
    """How the trajectory came out beside the others of its group."""
    reward = reward_of(shown.item)
    yield element("span", "no reward" if reward is None else f"reward {reward:.2f}")
    yield group_strip([item.reward for item in shown.group.scored], _place(shown))
    if shown.advantage is not None:
        yield element("span", f"advantage {shown.advantage:+.2f}".replace("-", "−"))
    if shown.share:
        yield element("span", shown.share.replace("-", "−"))


def _place(shown: Shown) -> int | None:
    """Where the trajectory stands among those of its group that have a reward."""
    return next((place for place, item in enumerate(shown.group.scored) if item is shown.item), None)


def _boxes(shown: Shown, pictures: Pictures) -> list[DrawnBox]:
    return drawn_boxes(shown.item, coordinates=pictures.coordinates)


def _drawn(pictures: Pictures, shown: Shown, boxes: Sequence[DrawnBox]) -> Draw:
    """Draws an image of the case with those of ``boxes`` that are in it."""

    def draw(number: int, image: EncodedImage) -> Markup:
        alt = f"image {number + 1} of case {shown.group.task.id}"
        return pictures.element(image, alt, [box for box in boxes if box.image == number])

    return draw
