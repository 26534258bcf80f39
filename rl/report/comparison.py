"""A comparison of two scorings as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from entities.reference import Coordinates
from rl.replay.compare import Comparison, Shift
from rl.replay.compare_text import mean, ranks, signs, versions, winners
from rl.replay.examples import Pair
from rl.report.cards import pair_cards
from rl.report.charts import format_value
from rl.report.frame import document, section
from rl.report.markup import Markup, element, join
from rl.report.pictures import Pictures

_BINS = 20
_WIDTH, _HALF = 220.0, 26.0


def comparison_page(
    found: Comparison, examples: Sequence[Pair], *, roles: Mapping[str, str], coordinates: Coordinates = "pixel"
) -> str:
    """The whole page; ``roles`` says what each scorer's score is used for in the scoring that comes after, and the
    policy wrote its boxes in ``coordinates``."""
    links = {"scorers": "Scorers", "examples": "Examples"} if examples else {"scorers": "Scorers"}
    return document(
        f"{found.before} → {found.after}",
        links=links,
        sections=_sections(found, examples, roles, Pictures(coordinates=coordinates)),
    )


def _sections(
    found: Comparison, examples: Sequence[Pair], roles: Mapping[str, str], pictures: Pictures
) -> Iterator[Markup]:
    yield _verdict(found)
    lead = (
        "Each distribution before stands above the line, after it below. Moved is the Wasserstein-1 distance between "
        "both; changed counts trajectories whose outcome, value or gate is another."
    )
    yield section("scorers", "Scorers", lead, _table(found, roles))
    if examples:
        note = f"The {len(examples)} trajectories whose reward moved most, before on the left and after on the right."
        cards = pair_cards(examples, note, roles=roles, pictures=pictures)
        yield section("examples", "Examples", "", cards)


def _verdict(found: Comparison) -> Markup:
    facts = f"{found.trajectories:,} trajectories · {found.groups:,} groups · {found.steps:,} steps"
    said = [element("li", text) for text in (ranks(found), signs(found), winners(found))]
    return element(
        "section",
        element("p", f"Two scorings of the same trajectories · {facts}", class_="eyebrow"),
        element("h1", _headline(found)),
        element("div", *_tiles(found), class_="tiles"),
        element("ul", *said, class_="said"),
        class_="verdict",
    )


def _headline(found: Comparison) -> str:
    if found.reproduced:
        return f"Both scorings agree on all {found.trajectories:,} trajectories."
    flipped = found.signs["flipped"] / max(found.trajectories, 1)
    return (
        f"{flipped:.1%} of advantages change sign; {found.winner_changes:,} of {found.contested:,} groups have another "
        f"winner."
    )


def _tiles(found: Comparison) -> Iterator[Markup]:
    before, after = mean(found.rewards.before), mean(found.rewards.after)
    yield _tile("Mean reward", f"{_number(before)} → {_number(after)}")
    correlations = found.rank_correlations
    yield _tile("Rank correlation in groups", _number(float(np.mean(correlations)) if correlations else None))
    yield _tile("Trajectories with other scores", f"{found.trajectories - found.unchanged:,}")


def _tile(title: str, figure: str) -> Markup:
    return element("div", element("h3", title), element("p", element("b", figure), class_="big"), class_="tile")


def _table(found: Comparison, roles: Mapping[str, str]) -> Markup:
    titles = ("Scorer", "Distribution, 0 to 1", "Mean", "Moved", "Changed", "No score", "Version")
    head = element("tr", *(element("th", title, scope="col") for title in titles))
    rows = [_row(name, roles.get(name, ""), shift) for name, shift in found.shifts.items()]
    rows.append(_row("reward", "combined", found.rewards))
    return element("div", element("table", head, *rows), class_="tile scorers")


def _row(name: str, role: str, shift: Shift) -> Markup:
    missing = [sum(n for outcome, n in counts.items() if outcome != "scored") for counts in shift.outcomes]
    changed = f"{shift.changed:,}"
    if shift.changed_alike:
        changed += f" ({shift.changed_alike:,} under one version)"
    cells = (
        _histogram(name, shift),
        f"{_number(mean(shift.before))} → {_number(mean(shift.after))}",
        _number(None if np.isnan(shift.distance) else shift.distance),
        changed,
        f"{missing[0]:,} → {missing[1]:,}" if any(missing) else "",
        versions(shift) if shift.versions_before or shift.versions_after else "",
    )
    heading = element("th", element("b", name), " ", element("small", role), scope="row")
    return element("tr", heading, *(element("td", cell) for cell in cells))


def _histogram(name: str, shift: Shift) -> Markup:
    """Both distributions, one above and one below a line; their columns are shares of all that was scored."""
    both = [np.histogram(np.clip(values, 0.0, 1.0), bins=_BINS, range=(0.0, 1.0))[0] for values in shift.values]
    shares = [counts / max(counts.sum(), 1) for counts in both]
    tallest = max(float(max(share.max() for share in shares)), 1e-9)
    width = _WIDTH / _BINS
    bars = [
        element(
            "rect",
            x=index * width + 0.5,
            width=width - 1,
            y=_HALF - height if above else _HALF + 1,
            height=height,
            class_="before" if above else "after",
        )
        for above, share in zip((True, False), shares, strict=True)
        for index, value in enumerate(share)
        if (height := float(value) / tallest * (_HALF - 1)) > 0
    ]
    line = element("line", x1=0, x2=_WIDTH, y1=_HALF + 0.5, y2=_HALF + 0.5, class_="rule")
    return element(
        "svg",
        join(*bars, line),
        class_="shift",
        viewBox=f"0 0 {_WIDTH:g} {2 * _HALF + 1:g}",
        role="img",
        aria_label=f"distribution of {name} before and after",
    )


def _number(value: float | None) -> str:
    return "–" if value is None else format_value(value, "score")
