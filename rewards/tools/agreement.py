"""Agreement of rewards with human labels: kappa, correlations with intervals, confusion, the largest disagreements."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rewards.rows import load_json, read_lines
from rewards.tools.terminal import Paint, shortened, wrapped
from rl.errors import TaskError

Kind = Literal["binary", "ordinal", "continuous"]
MAX_LEVELS = 11
RESAMPLES = 1000
RESAMPLED_ROWS = 2_000_000  # in all; of many rows fewer resamples tell as much
CONFIDENCE = 0.95
SHOWN_DISAGREEMENTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What people said, by id, and the scale that they said it on: ``low`` to ``high``."""

    by_id: Mapping[str, float]
    kind: Kind
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One row with its label and its value in [0, 1]; ``reasons`` go by scorer."""

    id: str
    label: float
    value: float
    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """The labelled rows that have a value, and how many have none: by outcome, or no row at all."""

    pairs: Sequence[Pair]
    without_value: Mapping[str, int]
    without_row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """An estimate with its bootstrap interval; NaN where it is undefined, as a correlation with a constant is."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan


def read_labels(path: Path, *, scale: tuple[float, float] | None = None) -> Labels:
    """Labels ``{"id", "label": true | false | number}``, one a line; further keys are passed over.

    True and false, or 0 and 1, are binary; whole numbers of at most `MAX_LEVELS` levels ordinal; others continuous.
    ``scale`` is the lowest and the highest label that could be given; left out, that were given. Raises TaskError with
    ``file:line``.
    """
    by_id: dict[str, float] = {}
    for number, (id, label) in read_lines(path, _parse_label):
        if id in by_id:
            raise TaskError(f"{path}:{number}: the id {id!r} has a label already; give each row one")
        by_id[id] = label
    if not by_id:
        raise TaskError(f"{path} holds no label")
    low, high = scale or (min(by_id.values()), max(by_id.values()))
    if set(by_id.values()) <= {0.0, 1.0} and not scale:
        return Labels(by_id=by_id, kind="binary", low=0.0, high=1.0)
    outside = next((label for label in by_id.values() if not low <= label <= high), None)
    if outside is not None or low >= high:
        got = f"the label {outside:g}" if outside is not None else "labels that are all the same"
        raise TaskError(f"{path}: labels go from {low:g} to {high:g} (--scale LOW HIGH), low < high; got {got}")
    whole = all(label % 1 == 0 for label in (*by_id.values(), low, high))
    return Labels(
        by_id=by_id, kind="ordinal" if whole and high - low < MAX_LEVELS else "continuous", low=low, high=high
    )


def _parse_label(line: bytes) -> tuple[str, float]:
    row = load_json(line)
    if isinstance(row, dict) and isinstance(row.get("id"), str) and isinstance(row.get("label"), bool | int | float):
        try:
            return row["id"], float(row["label"])
        except OverflowError:
            raise ValueError("the label is too large") from None
    got = shortened(line.decode(), 100)
    raise ValueError(f'a label is {{"id": text, "label": true, false or a number}}; got {got}')


def read_scores(path: Path) -> Iterator[dict[str, Any]]:
    """The rows that ``medrl rewards score`` wrote. Raises TaskError with ``file:line``."""
    return (row for _, row in read_lines(path, _parse_scores))


def _parse_scores(line: bytes) -> dict[str, Any]:
    row = load_json(line)
    if isinstance(row, dict) and {"id", "reward", "outcome"} <= row.keys() and isinstance(row.get("scores"), dict):
        return row
    raise ValueError("not a row of `medrl rewards score`, with id, outcome, reward and scores")


def pair(labels: Labels, scores: Iterable[Mapping[str, Any]], *, scorer: str | None = None) -> Paired:
    """Labels with the rewards of the same id or, where a ``scorer`` is named, with its values.

    Raises TaskError for a scorer that no row has, and where fewer than two rows have both.
    """
    pairs: list[Pair] = []
    without_value: Counter[str] = Counter()
    names: set[str] = set()
    for row in scores:
        label = labels.by_id.get(row["id"])
        if label is None:
            continue
        names |= row["scores"].keys()
        entry = row["scores"].get(scorer, {}) if scorer else row
        value = entry.get("value" if scorer else "reward")
        if value is None:
            without_value[entry.get("outcome", "not asked")] += 1
            continue
        asked = {scorer: entry} if scorer else row["scores"]
        reasons = {name: f"{_number(each['value'])}: {each['reason']}" for name, each in asked.items()}
        pairs.append(Pair(id=row["id"], label=label, value=value, reasons=reasons))
    if scorer and names and scorer not in names:
        raise TaskError(f"--scorer {scorer}: the rows have {', '.join(sorted(names))}")
    if len(pairs) < 2:
        raise TaskError(f"{len(pairs)} of {len(labels.by_id)} labelled rows have a value; agreement needs at least two")
    without_row = len(labels.by_id) - len(pairs) - without_value.total()
    return Paired(pairs=pairs, without_value=without_value, without_row=without_row)


def on_scale(values: np.ndarray, labels: Labels, *, threshold: float) -> np.ndarray:
    """Values in [0, 1] as labels: at or above the threshold, or the nearest level of the scale (upwards if between)."""
    if labels.kind == "binary":
        return (values >= threshold).astype(float)
    return np.floor(labels.low + values * (labels.high - labels.low) + 0.5)


def measures(
    paired: Paired, labels: Labels, *, threshold: float = 0.5, resamples: int = RESAMPLES, seed: int = 0
) -> list[Measure]:
    """Kappa (quadratic weights where labels are ordinal, Cohen 1968; none for continuous ones), Pearson, Spearman and
    Kendall's tau-b, each with a percentile bootstrap interval over rows."""
    given = np.array([each.label for each in paired.pairs])
    values = np.array([each.value for each in paired.pairs])
    levels = on_scale(values, labels, threshold=threshold)
    rng = np.random.default_rng(seed)
    count = min(resamples, max(100, RESAMPLED_ROWS // len(given)))
    drawn = [rng.integers(len(given), size=len(given)) for _ in range(count)]
    computed: list[tuple[str, np.ndarray, Callable[[np.ndarray, np.ndarray], float]]] = [
        ("Pearson r", values, _pearson),
        ("Spearman rho", values, _spearman),
        ("Kendall tau-b", values, _kendall),
    ]
    if labels.kind != "continuous":
        name = "Cohen's kappa" + ", quadratic weights" * (labels.kind == "ordinal")
        computed.insert(0, (name, levels, _kappa))
    return [_measure(name, given, said, statistic, drawn) for name, said, statistic in computed]


def confusion(paired: Paired, labels: Labels, *, threshold: float = 0.5) -> dict[tuple[float, float], int]:
    """(label, value on the labels' scale) → rows."""
    values = on_scale(np.array([each.value for each in paired.pairs]), labels, threshold=threshold)
    return Counter((each.label, float(level)) for each, level in zip(paired.pairs, values, strict=True))


def report_lines(
    paired: Paired, labels: Labels, *, scorer: str | None, threshold: float, paint: Paint
) -> Iterator[str]:
    """The report in lines of at most 80 columns."""
    what = shortened(scorer or "reward", 24)
    yield paint(
        f"{what} against human labels: {len(paired.pairs):,} rows, "
        f"{labels.kind} labels from {labels.low:g} to {labels.high:g}",
        "bold",
    )
    for outcome, count in paired.without_value.items():
        yield f"  left out: {count:,} labelled rows without a value ({outcome})"
    if paired.without_row:
        yield f"  left out: {paired.without_row:,} labels of ids that have no scores"
    yield ""
    yield f"  {'measure':<34} {'value':>7}   {CONFIDENCE:.0%} interval"
    for each in measures(paired, labels, threshold=threshold):
        interval = "" if math.isnan(each.low) else f"{_number(each.low)} to {_number(each.high)}"
        note = "undefined: one of the two never varies" if math.isnan(each.value) else interval
        yield f"  {each.name:<34} {_number(each.value):>7}   {note}".rstrip()
    unit = [(each.label - labels.low) / (labels.high - labels.low) for each in paired.pairs]
    bias = float(np.mean([each.value for each in paired.pairs]) - np.mean(unit))
    yield f"  {'mean value - mean label, in [0, 1]':<34} {bias:>+7.3f}"
    if labels.kind != "continuous":
        yield ""
        yield from _confusion_lines(paired, labels, what=what, threshold=threshold, paint=paint)
    yield ""
    yield from _disagreement_lines(paired, labels, what=what, paint=paint)


def _confusion_lines(paired: Paired, labels: Labels, *, what: str, threshold: float, paint: Paint) -> Iterator[str]:
    counts = confusion(paired, labels, threshold=threshold)
    rounding = f"[0, 1] spread over {labels.low:g} to {labels.high:g}, rounded"
    rule = f"1 from {threshold:g} on" if labels.kind == "binary" else rounding
    yield paint("confusion: rows are labels, columns values", "bold")
    yield f"  {what}: {rule}"
    scale = [labels.low + step for step in range(int(labels.high - labels.low) + 1)]
    yield " " * 8 + "".join(f"{level:>6g}" for level in scale)
    for label in scale:
        yield f"{label:>8g}" + "".join(f"{counts.get((label, level), 0):>6}" for level in scale)


def _disagreement_lines(paired: Paired, labels: Labels, *, what: str, paint: Paint) -> Iterator[str]:
    def gap(each: Pair) -> float:
        return abs((each.label - labels.low) / (labels.high - labels.low) - each.value)

    yield paint("largest disagreements", "bold")
    apart = sorted((each for each in paired.pairs if gap(each) > 0), key=gap, reverse=True)
    if not apart:
        yield "  none"
    for each in apart[:SHOWN_DISAGREEMENTS]:
        yield from wrapped(f"{shortened(each.id, 40)}: label {each.label:g}, {what} {each.value:.3f}", indent="  ")
        for name, reason in each.reasons.items():
            yield from wrapped(shortened(f"{name} {reason}", 240), indent="    ", hanging="      ")


def _measure(
    name: str,
    given: np.ndarray,
    said: np.ndarray,
    statistic: Callable[[np.ndarray, np.ndarray], float],
    resamples: Sequence[np.ndarray],
) -> Measure:
    value = statistic(given, said)
    drawn = [drawn for index in resamples if not math.isnan(drawn := statistic(given[index], said[index]))]
    if math.isnan(value) or len(drawn) < len(resamples) / 2:
        return Measure(name=name, value=value)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Measure(name=name, value=value, low=float(low), high=float(high))


def _is_constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    return math.nan if _is_constant(a) or _is_constant(b) else float(np.corrcoef(a, b)[0, 1])


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import rankdata  # with scikit-learn; .5 s

    return _pearson(rankdata(a), rankdata(b))


def _kendall(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import kendalltau

    return math.nan if _is_constant(a) or _is_constant(b) else float(kendalltau(a, b).statistic)


def _kappa(a: np.ndarray, b: np.ndarray) -> float:
    """``1 - E (a - b)² / E (a - b')²``, b' independent of a: quadratic weights; the plain kappa where all is 0 or 1."""
    expected = (a**2).mean() + (b**2).mean() - 2 * a.mean() * b.mean()
    return float(1 - ((a - b) ** 2).mean() / expected) if expected > 0 else math.nan


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
