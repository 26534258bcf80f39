from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewards.tools.agreement import (
    Labels,
    Pair,
    Paired,
    confusion,
    measures,
    on_scale,
    pair,
    read_labels,
    read_scores,
    report_lines,
)
from rewards.tools.terminal import Paint
from rl.errors import TaskError

BINARY = Labels(by_id={}, kind="binary", low=0, high=1)
FIVE = Labels(by_id={}, kind="ordinal", low=1, high=5)


def labels_of(folder: Path, *labels: Any, scale: tuple[float, float] | None = None) -> Labels:
    path = folder / "human.jsonl"
    path.write_text("".join(json.dumps({"id": str(at), "label": label}) + "\n" for at, label in enumerate(labels)))
    return read_labels(path, scale=scale)


def paired(labels: list[float], values: list[float]) -> Paired:
    pairs = [
        Pair(id=str(at), label=label, value=value, reasons={"answer": f"{value}: said so"})
        for at, (label, value) in enumerate(zip(labels, values, strict=True))
    ]
    return Paired(pairs=pairs, without_value={}, without_row=0)


@pytest.mark.parametrize(
    ("given", "kind", "low", "high"),
    [
        ([True, False], "binary", 0, 1),
        ([1, 0, 1], "binary", 0, 1),
        ([1, 1], "binary", 0, 1),
        ([1, 5, 3], "ordinal", 1, 5),
        ([0.5, 1.25], "continuous", 0.5, 1.25),
        ([0, 100], "continuous", 0, 100),
    ],
)
def test_the_kind_of_labels_is_read_off_them(tmp_path: Path, given: list[Any], kind: str, low: int, high: int) -> None:
    labels = labels_of(tmp_path, *given)
    assert (labels.kind, labels.low, labels.high) == (kind, low, high)


def test_a_scale_says_what_could_have_been_given(tmp_path: Path) -> None:
    labels = labels_of(tmp_path, 2, 3, scale=(1, 5))
    assert (labels.kind, labels.low, labels.high) == ("ordinal", 1, 5)


@pytest.mark.parametrize(
    ("lines", "scale", "said"),
    [
        (['{"id": "1", "label": "good"}'], None, "human.jsonl:1: a label is"),
        (['{"id": "1", "label": 1}', '{"id": "1", "label": 0}'], None, "human.jsonl:2: the id '1' has a label already"),
        (['{"id": "1"'], None, "human.jsonl:1: not JSON"),
        (["7"], None, "human.jsonl:1: a label is"),
        ([f'{{"id": "1", "label": {10**400}}}'], None, "human.jsonl:1: the label is too large"),
        ([""], None, "holds no label"),
        (['{"id": "1", "label": 3}'], None, "labels go from 3 to 3 .* got labels that are all the same"),
        (['{"id": "1", "label": 7}'], (1, 5), "labels go from 1 to 5 .* got the label 7"),
    ],
)
def test_labels_that_cannot_be_read_are_named(
    tmp_path: Path, lines: list[str], scale: tuple[float, float] | None, said: str
) -> None:
    path = tmp_path / "human.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(TaskError, match=said):
        read_labels(path, scale=scale)


def test_scores_are_what_the_score_command_wrote(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"id": "1", "completion": ""}\n')
    with pytest.raises(TaskError, match=r"scores.jsonl:1: not a row of `medrl rewards score`"):
        list(read_scores(path))


def score(id: str, value: float | None) -> dict[str, Any]:
    outcome = "failed" if value is None else "scored"
    entry = {"value": value, "outcome": outcome, "reason": "why"}
    return {"id": id, "outcome": outcome, "reward": value, "scores": {"answer": entry}}


def test_labelled_rows_without_a_value_are_counted_and_never_zero(tmp_path: Path) -> None:
    labels = labels_of(tmp_path, 1, 0, 1, 0)
    found = pair(labels, [score("0", 1.0), score("1", None), score("2", 0.5), score("not labelled", 0.0)])
    assert [(each.id, each.label, each.value) for each in found.pairs] == [("0", 1.0, 1.0), ("2", 1.0, 0.5)]
    assert (dict(found.without_value), found.without_row) == ({"failed": 1}, 1)
    assert found.pairs[0].reasons == {"answer": "1.000: why"}


def test_a_scorer_that_no_row_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="--scorer anser: the rows have answer"):
        pair(labels_of(tmp_path, 1, 0), [score("0", 1.0), score("1", 1.0)], scorer="anser")


def test_one_row_is_no_agreement(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="1 of 2 labelled rows have a value"):
        pair(labels_of(tmp_path, 1, 0), [score("0", 1.0)])


def test_values_become_labels_by_a_threshold_or_by_the_nearest_level() -> None:
    assert on_scale(np.array([0.49, 0.5]), BINARY, threshold=0.5).tolist() == [0, 1]
    # 1 + 4·value is 1, 1.48, 1.5, 5
    assert on_scale(np.array([0, 0.12, 0.125, 1]), FIVE, threshold=0.5).tolist() == [1, 1, 2, 5]


def test_kappa_of_two_by_two_as_counted_by_hand() -> None:
    # 20 both, 5 and 10 apart, 15 neither: p_o .7, p_e .5·.6 + .5·.4 = .5, kappa (.7 − .5)/.5 = .4
    labels = [1.0] * 25 + [0.0] * 25
    values = [1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 15
    kappa = measures(paired(labels, values), BINARY, resamples=50)[0]
    assert kappa.value == pytest.approx(0.4)
    assert kappa.low < 0.4 < kappa.high
    assert confusion(paired(labels, values), BINARY) == {(1, 1): 20, (1, 0): 5, (0, 1): 10, (0, 0): 15}


def test_every_measure_is_that_of_an_independent_implementation() -> None:
    from scipy.stats import kendalltau, pearsonr, spearmanr
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(3)
    labels = rng.integers(1, 6, size=80).astype(float)
    values = np.clip((labels - 1) / 4 + rng.normal(0, 0.3, size=80), 0, 1).round(1)
    found = {each.name: each.value for each in measures(paired(labels.tolist(), values.tolist()), FIVE, resamples=20)}
    levels = on_scale(values, FIVE, threshold=0.5)
    assert found == {
        "Cohen's kappa, quadratic weights": pytest.approx(cohen_kappa_score(labels, levels, weights="quadratic")),
        "Pearson r": pytest.approx(pearsonr(labels, values).statistic),
        "Spearman rho": pytest.approx(spearmanr(labels, values).statistic),
        "Kendall tau-b": pytest.approx(kendalltau(labels, values).statistic),
    }


@pytest.mark.slow
def test_the_interval_covers_as_the_normal_one_does_and_is_the_same_every_time() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(400)
    labels = 0.6 * values + 0.4 * rng.random(400)
    continuous = Labels(by_id={}, kind="continuous", low=0, high=1)
    drawn = paired(labels.tolist(), values.tolist())
    pearson = measures(drawn, continuous, resamples=400)[0]
    # Fisher: tanh(atanh r ± 1.96/√397)
    low, high = (math.tanh(math.atanh(pearson.value) + sign * 1.96 / math.sqrt(397)) for sign in (-1, 1))
    assert (pearson.low, pearson.high) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))
    assert measures(drawn, continuous, resamples=400)[0] == pearson


def test_agreement_with_what_never_varies_is_undefined_and_not_zero() -> None:
    found = measures(paired([0, 1, 0, 1], [1.0] * 4), BINARY, resamples=20)
    assert [math.isnan(each.value) for each in found] == [False, True, True, True]
    said = "\n".join(report_lines(paired([0, 1], [1.0, 1.0]), BINARY, scorer=None, threshold=0.5, paint=Paint()))
    assert "undefined: one of the two never varies" in said


def test_the_report_fits_on_80_columns_and_begins_with_the_largest_disagreement() -> None:
    report = paired([1, 5, 3], [0.0, 0.0, 0.75])
    lines = list(report_lines(report, FIVE, scorer="answer", threshold=0.5, paint=Paint()))
    assert max(map(len, lines)) <= 80
    said = "\n".join(lines)
    assert "       5     1     0     0     0     0" in said
    # (0 + 0 + .75)/3 − (0 + 1 + .5)/3
    assert "mean value - mean label, in [0, 1]  -0.250" in said
    assert said.index("  1: label 5, answer 0.000") < said.index("  2: label 3, answer 0.750")
    assert "  0: label" not in said


def test_where_nothing_disagrees_the_report_says_so() -> None:
    lines = list(report_lines(paired([0, 1], [0.0, 1.0]), BINARY, scorer=None, threshold=0.5, paint=Paint()))
    assert lines[-2:] == ["largest disagreements", "  none"]
