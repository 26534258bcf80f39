from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rewards.config import RewardsFile, load_rewards_file
from rewards.places import place_in_rewards
from rewards.tools.lint import CHECKS, Problem, lint, lint_scored
from rewards.tools.rule_logic import certainty, excludes, holds_for_nothing, implies
from rewards.tools.scoring import score_stream
from tests.rewards.conftest import MakeTrajectory

A, B = {"contains": "fever"}, {"contains": "cough"}


@pytest.mark.parametrize(
    ("rule", "known"),
    [
        (A, "depends"),
        ({"not": A}, "depends"),
        ({"regex": "x*"}, "always"),
        ({"regex": "(?s).*"}, "always"),
        ({"regex": r"\A\z"}, "depends"),
        ({"regex": "x"}, "depends"),
        ({"length": {"unit": "words", "min": 0}}, "always"),
        ({"length": {"unit": "words", "max": 9}}, "depends"),
        ({"answer_blocks": {"min": 0}}, "always"),
        ({"sections": ["Findings"]}, "depends"),
        ({"sections": ["Findings:"]}, "never"),  # the colon is the heading's own
        ({"equals": "yes", "in": "answer"}, "depends"),
        ({"equals": "The answer is B", "in": "answer"}, "never"),
        ({"all": [A, {"not": A}]}, "never"),
        ({"all": [{"regex": "x*"}, {"answer_blocks": {"min": 0}}]}, "always"),
        ({"all": [A, {"not": {"regex": "x*"}}]}, "never"),
        ({"any": [A, {"not": A}]}, "always"),
        ({"any": [A, {"regex": "x*"}]}, "always"),
        ({"any": [A, B]}, "depends"),
        ({"any": [{"not": {"regex": "x*"}}]}, "never"),
        ({"not": {"regex": "x*"}}, "never"),
    ],
)
def test_a_rule_that_is_settled_without_a_trace_is_told_from_one_that_is_not(rule: dict[str, Any], known: str) -> None:
    assert certainty(rule) == known


def words(low: int | None = None, high: int | None = None, unit: str = "words") -> dict[str, Any]:
    bounds = {name: bound for name, bound in (("min", low), ("max", high)) if bound is not None}
    return {"length": {"unit": unit, **bounds}}


@pytest.mark.parametrize(
    ("rule", "other", "holds"),
    [
        (A, A, True),
        (A, B, False),
        (A, {"contains": ["cough", "Fever"]}, True),
        ({"contains": ["cough", "fever"]}, A, False),
        ({"states": "fever"}, A, True),
        (A, {"states": "fever"}, False),
        (A | {"in": "reasoning"}, A | {"in": "answer"}, False),
        ({"all": [A, B]}, A, True),
        (A, {"any": [A, B]}, True),
        ({"any": [A, B]}, A, False),
        ({"not": {"contains": ["fever", "cough"]}}, {"not": A}, True),
        (words(5, 8), words(3, 9), True),
        (words(5), words(3, 9), False),
        (words(5, 8), words(3, 9, unit="chars"), False),
        ({"tool_calls": {"name": "zoom", "min": 2}}, {"tool_calls": {"name": "zoom", "min": 1}}, True),
        ({"tool_calls": {"name": "zoom", "min": 2}}, {"tool_calls": {"name": "dose", "min": 1}}, False),
    ],
)
def test_a_rule_implies_another(rule: dict[str, Any], other: dict[str, Any], holds: bool) -> None:
    assert implies(rule, other) is holds


@pytest.mark.parametrize(
    ("rule", "other", "holds"),
    [
        (A, {"not": A}, True),
        ({"not": {"contains": ["fever", "cough"]}}, A, True),
        ({"not": A}, {"contains": ["fever", "cough"]}, False),
        ({"all": [A, B]}, {"not": B}, True),
        ({"equals": "yes"}, {"equals": ["no", "maybe"]}, True),
        ({"equals": "yes"}, {"equals": ["no", "Yes."]}, False),
        ({"equals": "yes"}, {"equals": "no", "in": "answer"}, False),
        (words(high=5), words(6), True),
        (words(high=6), words(6), False),
        (A, B, False),
    ],
)
def test_a_rule_excludes_another(rule: dict[str, Any], other: dict[str, Any], holds: bool) -> None:
    assert excludes(rule, other) is holds
    assert excludes(other, rule) is holds


def test_what_an_empty_completion_meets_is_found() -> None:
    assert holds_for_nothing({"not": A})
    assert not holds_for_nothing(A)


def linted(folder: Path, rubric: str, *, scorers: str = "form: {use: rubric, path: form.yaml}") -> list[Problem]:
    return lint(written(folder, rubric, scorers=scorers), place_of=lambda key: f"rewards.yaml#{key}")


def written(folder: Path, rubric: str, *, scorers: str) -> RewardsFile:
    (folder / "form.yaml").write_text(rubric)
    (folder / "rewards.yaml").write_text(f"scorers: {{{scorers}}}\n")
    return load_rewards_file(folder / "rewards.yaml")


def criterion(text: str, check: str, points: int = 1, **more: Any) -> str:
    extra = "".join(f", {name}: {str(value).lower()}" for name, value in more.items())
    return f"- {{criterion: {text}, points: {points}, check: {{{check}}}{extra}}}\n"


FEVER = criterion("Names fever.", "contains: fever")

FAULTY: list[tuple[str, str, int, str]] = [
    (criterion("Always.", 'regex: "x*"'), "cannot-fail", 1, "always earned"),
    (FEVER + criterion("Never.", 'not: {regex: "x*"}', -1), "cannot-fail", 2, "never lost"),
    (FEVER + criterion("Never.", 'equals: "The answer is B", in: answer'), "cannot-pass", 2, "never earned"),
    (FEVER + criterion("Always.", 'regex: "x*"', -1), "cannot-pass", 2, "always lost"),
    (FEVER + criterion("Keeps quiet.", "not: {contains: fever}"), "unreachable-points", 2, "cannot be earned together"),
    (FEVER + criterion("Says too much.", "contains: [fever, cough]", -1), "unreachable-points", 1, "also meets -1"),
    (FEVER + criterion("Is short.", "length: {unit: words, max: 9}"), "met-by-nothing", 2, "an empty completion earns"),
    (FEVER + criterion("Calls it fever.", "contains: [fever, pyrexia]"), "overlap", 2, "contained in, or contains"),
    (FEVER + criterion("Names fever!", "states: pyrexia"), "overlap", 2, "says the same as"),
    (FEVER + criterion("Is rude.", "contains: fool", -1, critical=True), "critical-without-gate", 2, "is no gate"),
]


@pytest.mark.parametrize(("rubric", "check", "line", "said"), FAULTY)
def test_a_fault_of_a_rubric_is_found_with_its_line(
    tmp_path: Path, rubric: str, check: str, line: int, said: str
) -> None:
    problems = [problem for problem in linted(tmp_path, rubric) if problem.check == check]
    assert [problem.place for problem in problems] == [f"{tmp_path}/form.yaml:{line}"]
    assert said in problems[0].message


def test_a_criterion_without_effect_in_a_gate_is_found(tmp_path: Path) -> None:
    rubric = FEVER + criterion("Is rude.", "contains: fool", -1, critical=True)
    scorers = "answer: {use: answer}, gate: {use: rubric, path: form.yaml, gate: true}"
    assert [problem.check for problem in linted(tmp_path, rubric, scorers=scorers)] == ["idle-in-gate"]


@pytest.mark.parametrize(
    ("scorers", "said"),
    [
        ("a: {use: answer}, b: {use: answer}", "'b' is the same scorer with the same parameters as 'a'"),
        (
            "a: {use: rubric, path: form.yaml}, b: {use: rubric, path: form.yaml, form: baichuan_m3}",
            "of 'b' is checked",
        ),
        ("a: {use: hallucination}, b: {use: rubric, path: cites.yaml}", "counts the citations that 'a' scores too"),
    ],
)
def test_what_two_scorers_both_see_is_found(tmp_path: Path, scorers: str, said: str) -> None:
    (tmp_path / "cites.yaml").write_text(criterion("Cites.", "cites_evidence: {min: 3}"))
    problems = linted(tmp_path, FEVER, scorers=scorers)
    assert [problem.check for problem in problems] == ["double-counting"]
    assert said in problems[0].message


@pytest.mark.parametrize(("turns", "problems"), [("last", ["double-counting"]), ("each", [])])
def test_the_last_turn_and_each_of_them_are_not_the_same(tmp_path: Path, turns: str, problems: list[str]) -> None:
    scorers = f"right: {{use: answer}}, held: {{use: answer, turns: {turns}}}"
    assert [problem.check for problem in linted(tmp_path, FEVER, scorers=scorers)] == problems


def test_the_same_scorer_for_different_tasks_counts_nothing_twice(tmp_path: Path) -> None:
    scorers = "a: {use: answer, when: {stratum: x}}, b: {use: answer, when: {stratum: y}}"
    assert linted(tmp_path, FEVER, scorers=scorers) == []


def test_a_wrong_answer_that_may_outrank_a_right_one_is_found(tmp_path: Path) -> None:
    scorers = "answer: {use: answer}, form: {use: rubric, path: form.yaml, weight: 1.5}"
    (problem,) = linted(tmp_path, FEVER, scorers=scorers)
    assert (problem.check, problem.place) == ("correctness-outranked", "rewards.yaml#rewards.scorers.answer")
    assert "holds 40% of the weight" in problem.message


def test_a_sound_rubric_has_no_problem(tmp_path: Path) -> None:
    rubric = FEVER + criterion("Names cough.", "contains: cough", 2) + criterion("Is rude.", "contains: fool", -1)
    assert linted(tmp_path, rubric, scorers="answer: {use: answer}, form: {use: rubric, path: form.yaml}") == []


def test_a_criterion_that_tells_no_given_trace_from_another_is_found(
    tmp_path: Path, trajectory: MakeTrajectory
) -> None:
    rubric = FEVER + criterion("Names cough.", "contains: cough", 2) + criterion("Is rude.", "contains: fool", -1)
    rewards = written(tmp_path, rubric, scorers="form: {use: rubric, path: form.yaml}")
    scored: list[Any] = []
    texts = ["fever and cough" if number % 2 else "cough" for number in range(10)]
    score_stream(map(trajectory, texts), rewards, receive=scored.append)
    found = lint_scored(scored, rewards, place_of=str)
    assert [problem.place.rpartition(":")[2] for problem in found] == ["2", "3"]
    assert "every one of 10 traces passes +2 'Names cough.'" in found[0].message
    assert lint_scored(scored[:9], rewards, place_of=str) == []


@pytest.mark.parametrize("critical", [True, False])
def test_a_gate_that_is_left_to_the_tasks_is_held_against_those_that_are_given(
    trajectory: MakeTrajectory, tmp_path: Path, critical: bool
) -> None:
    rewards = written(tmp_path, "", scorers="answer: {use: answer}, safety: {use: rubric, gate: true}")
    (problem,) = lint(rewards, place_of=str)
    assert (problem.check, problem.severity, problem.place) == (
        "gate-left-to-tasks",
        "warning",
        "rewards.scorers.safety",
    )
    rude = {"criterion": "Is rude.", "points": -1, "check": {"contains": "fool"}, "critical": critical}
    scored: list[Any] = []
    score_stream([trajectory("<answer>yes</answer>", rubric=[rude])], rewards, receive=scored.append)
    found = lint_scored(scored, rewards, place_of=str)
    assert [(problem.check, problem.severity) for problem in found] == ([] if critical else [("never-closes", "error")])


def test_every_problem_has_a_name_that_can_be_allowed() -> None:
    assert {check for _, check, _, _ in FAULTY} <= CHECKS.keys()


@pytest.mark.parametrize("head", ["", "max_steps: 1\nrewards:\n  "])
def test_a_key_of_a_rewards_file_has_a_line(tmp_path: Path, head: str) -> None:
    indent = "  " if head else ""
    file = tmp_path / "r.yaml"
    file.write_text(f"{head}scorers:\n{indent}  a: {{use: answer}}\n{indent}  b:\n{indent}    use: answer\n")
    first = head.count("\n") + 1
    assert place_in_rewards(file, "rewards.scorers.b.use: what") == f"{file}:{first + 3}"
    assert place_in_rewards(file, "the weights in rewards.scorers sum to 0") == f"{file}:{first}"
    assert place_in_rewards(file, "something else") is None
