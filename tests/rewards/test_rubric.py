from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from rewards.rubric import RubricScorer, baichuan_score, healthbench_score
from rewards.rubrics.file import load_rubric
from rewards.rubrics.rules import RULE_NAMES, RuleReader
from rewards.scorer import Abstain, InvalidInput
from rewards.trace import SECTION_NAMES
from rl.errors import ConfigError
from rl.types import Measurement, Score, ToolCall
from rollouts.cytology import Conclusion, load_cytology, reference_trace
from tests.bounded import bounded_work
from tests.rewards.conftest import a_conversation

SHIPPED = Path(__file__).parents[2] / "configs" / "rewards"
RECORD = {"radius": Measurement(value=17.99, unit="um", reading="high"), "texture": Measurement(value=10.38)}
CONCLUSIONS: tuple[Conclusion, ...] = ("malignant", "benign")
TRACE = """<think>
Findings:
- radius 17.99 um high
- texture 10.38
Conclusion: malignant
</think>
<answer>yes</answer>"""


async def holds(trajectory: Any, rule: dict[str, Any], text: str = TRACE, **keywords: Any) -> bool:
    """Whether a rule holds, by way of a task's own rubric of one criterion."""
    rubric = ({"criterion": "c", "points": 1, "check": rule},)
    return (await RubricScorer().score(trajectory(text, record=RECORD, rubric=rubric, **keywords))).value == 1.0


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"contains": "malignant"}, True),
        ({"contains": "MALIGNANT"}, True),
        ({"contains": "malign"}, False),
        ({"contains": ["benign", "malignant"]}, True),
        ({"contains": "malignant", "in": "conclusion"}, True),
        ({"contains": "malignant", "in": "findings"}, False),
        ({"contains": "malignant", "in": "answer"}, False),
        ({"contains": "malignant", "in": "impression"}, False),
        ({"contains": "17.99 um"}, True),
        ({"equals": "yes", "in": "answer"}, True),
        ({"equals": "Yes.", "in": "answer"}, True),
        ({"equals": ["no", "maybe"], "in": "answer"}, False),
        ({"equals": "ye", "in": "answer"}, False),
        ({"regex": "radius \\d+"}, True),
        ({"regex": "^radius", "in": "findings"}, False),
        ({"regex": "(?i)RADIUS", "in": "findings"}, True),
        ({"regex": {"pattern": "\\d+\\.\\d+", "min": 2}}, True),
        ({"regex": {"pattern": "\\d+\\.\\d+", "min": 3}}, False),
        ({"regex": {"pattern": "\\d+\\.\\d+", "max": 2}}, True),
        ({"regex": {"pattern": "\\d+\\.\\d+", "max": 1}}, False),
        ({"regex": {"pattern": "benign", "max": 0}}, True),
        ({"json_schema": {"enum": ["yes"]}, "in": "answer"}, False),
        ({"names": {"of": ["radius", "area"]}, "in": "findings"}, True),
        ({"names": {"of": ["area", "smoothness"]}}, False),
        ({"names": {"of": ["radius", "texture", "area"], "min": 2}}, True),
        ({"names": {"of": ["radius", "texture", "area"], "min": 3}}, False),
        ({"names": {"of": ["radius", "texture"], "max": 1}}, False),
        ({"length": {"unit": "words", "max": 1}, "in": "answer"}, True),
        ({"length": {"unit": "words", "min": 2}, "in": "answer"}, False),
        ({"length": {"unit": "chars", "min": 3, "max": 3}, "in": "answer"}, True),
        ({"length": {"unit": "tokens", "min": 4, "max": 4}}, True),
        ({"length": {"unit": "tokens", "min": 5}}, False),
        ({"sections": ["Findings", "Conclusion"]}, True),
        ({"sections": ["Conclusion", "Findings"]}, False),
        ({"sections": ["Findings", "Plan"]}, False),
        ({"sections": ["Findings", "Findings"]}, False),
        ({"cites_evidence": {"min": 2}}, True),
        ({"cites_evidence": {"min": 3}}, False),
        ({"cites_evidence": {"max": 1}}, False),
        ({"answer_blocks": {"min": 1, "max": 1}}, True),
        ({"answer_blocks": {"min": 2}}, False),
        ({"tool_calls": {"min": 0, "max": 1}}, True),
        ({"all": [{"contains": "radius"}, {"contains": "texture"}]}, True),
        ({"all": [{"contains": "radius"}, {"contains": "area"}]}, False),
        ({"any": [{"contains": "area"}, {"contains": "texture"}]}, True),
        ({"any": [{"contains": "area"}, {"contains": "smoothness"}]}, False),
        ({"not": {"contains": "area"}}, True),
        ({"not": {"not": {"contains": "area"}}}, False),
    ],
)
async def test_rules(trajectory: Any, rule: dict[str, Any], expected: bool) -> None:
    assert await holds(trajectory, rule) is expected


def test_every_rule_is_in_the_schema_and_in_the_test_above() -> None:
    schema = json.loads((Path(__file__).parents[2] / "rewards" / "rubrics" / "rubric.schema.json").read_text())
    rule = schema["$defs"]["rule"]["properties"]
    assert set(rule) == {*RULE_NAMES, "in"}
    assert set(rule["in"]["enum"]) == {"text", "outside"} | SECTION_NAMES
    tested = str(test_rules.pytestmark)
    assert all(f"'{name}'" in tested for name in RULE_NAMES if name != "states")


@pytest.mark.parametrize(
    ("conclusion", "expected"),
    [
        ("malignant", True),
        ("the mass is malignant", True),
        ("not malignant", False),
        ("no sign that it is malignant", False),
        ("possibly malignant", False),
        ("malignancy is ruled out, it is not malignant", False),
        ("not benign but malignant", True),
        ("benign", False),
    ],
)
async def test_a_statement_is_an_affirmed_mention(trajectory: Any, conclusion: str, expected: bool) -> None:
    text = TRACE.replace("Conclusion: malignant", f"Conclusion: {conclusion}")
    assert await holds(trajectory, {"states": "malignant", "in": "conclusion"}, text) is expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"diagnosis": "flu", "codes": ["J10"]}', True),
        ('{"diagnosis": "flu", "codes": ["flu"]}', False),  # the pattern
        ('{"diagnosis": "flu", "codes": ["J10", "J10"]}', False),  # not unique
        ('{"codes": []}', False),
        ('{"diagnosis": "flu", "codes": []} ', True),
        ("flu", False),
        ('{"diagnosis": ', False),
    ],
)
async def test_an_answer_can_be_held_to_a_json_schema(trajectory: Any, answer: str, expected: bool) -> None:
    codes = {"type": "array", "uniqueItems": True, "items": {"$ref": "#/$defs/code"}}
    schema = {
        "type": "object",
        "required": ["diagnosis"],
        "properties": {"diagnosis": {"type": "string"}, "codes": codes},
        "$defs": {"code": {"type": "string", "pattern": "^[A-Z][0-9]+$"}},
    }
    text = TRACE.replace(">yes<", f">{answer}<")
    assert await holds(trajectory, {"json_schema": schema, "in": "answer"}, text) is expected


OBO = """format-version: 1.2

[Term]
id: D:1
name: pneumonia

[Term]
id: D:2
name: myocardial infarction
synonym: "heart attack" EXACT []

[Term]
id: D:3
name: lobar pneumonia
synonym: "croupous pneumonitis" EXACT []
is_a: D:1
"""


@pytest.mark.parametrize(
    ("said", "named", "with_tree"),
    [
        ("pneumonia", 1, 1),
        ("pneumonia and pneumonia", 1, 1),
        ("a heart attack", 0, 1),  # a synonym
        ("croupous pneumonitis", 0, 1),  # a synonym of a kind of it
        ("myocardial infarction or pneumonia", 2, 2),
        ("possibly pneumonia", 1, 1),
        ("no pneumonia", 0, 0),
        ("a cough", 0, 0),
    ],
)
async def test_entities_are_named_by_their_words_and_with_a_tree_by_synonyms_and_kinds(
    trajectory: Any, tmp_path: Path, said: str, named: int, with_tree: int
) -> None:
    tree = write(tmp_path, OBO, "tree.obo")
    for scorer, count in ((RubricScorer(), named), (RubricScorer(tree=tree), with_tree)):
        scorer.check_use(gate=False)
        rule = {"names": {"of": ["pneumonia", "myocardial infarction"], "min": count, "max": count}}
        rubric = ({"criterion": "c", "points": 1, "check": rule},)
        score = await scorer.score(trajectory(f"<think>{said}</think>", rubric=rubric))
        assert score.value == 1.0, score.evidence[0].note


async def test_only_rightly_cited_fields_count_as_evidence_and_each_once(trajectory: Any) -> None:
    text = TRACE.replace("- texture 10.38", "- radius 17.99\n- texture 99")
    assert await holds(trajectory, {"cites_evidence": {"min": 1, "max": 1}}, text)
    contradictory = TRACE.replace("- texture 10.38", "- radius 5")
    assert not await holds(trajectory, {"cites_evidence": {"min": 1}}, contradictory)


class TestScores:
    """Points 5, 3, -2: met are the first and the last."""

    points, met = (5.0, 3.0, -2.0), (True, False, True)

    def test_healthbench(self) -> None:
        assert healthbench_score(self.points, self.met) == (5 - 2) / (5 + 3)

    def test_healthbench_may_be_negative_before_it_is_clipped(self) -> None:
        assert healthbench_score(self.points, (False, False, True)) == -2 / 8

    def test_baichuan_m3(self) -> None:
        assert baichuan_score(self.points, self.met) == (5 - 2 + 2) / (5 + 3 + 2)

    @pytest.mark.parametrize(("met", "expected"), [((True, True, False), 1.0), ((False, False, True), 0.0)])
    def test_baichuan_m3_reaches_both_ends(self, met: tuple[bool, ...], expected: float) -> None:
        assert baichuan_score(self.points, met) == expected

    async def test_the_scorer_clips_and_keeps_what_it_clipped(self, trajectory: Any) -> None:
        rubric = (
            {"criterion": "wanted", "points": 4, "check": {"contains": "pneumonia"}},
            {"criterion": "unwanted", "points": -1, "check": {"contains": "malignant"}},
        )
        scored = await RubricScorer().score(trajectory(TRACE, rubric=rubric))
        assert (scored.value, scored.metrics["unclipped"]) == (0.0, -0.25)
        other = await RubricScorer(form="baichuan_m3").score(trajectory(TRACE, rubric=rubric))
        assert other.value == (0 - 1 + 1) / 5
        assert "-1 met: unwanted" in scored.reason
        assert "+4 not met: wanted" in scored.reason

    async def test_evidence_says_whether_the_trace_is_fine_and_where_it_shows(self, trajectory: Any) -> None:
        rubric = (
            {"criterion": "wanted", "points": 4, "check": {"contains": "radius"}},
            {"criterion": "missed", "points": 4, "check": {"contains": "area"}},
            {"criterion": "unwanted", "points": -1, "check": {"contains": "malignant"}},
            {"criterion": "avoided", "points": -1, "check": {"contains": "benign"}},
        )
        evidence = (await RubricScorer().score(trajectory(TRACE, rubric=rubric))).evidence
        assert [each.verdict for each in evidence] == ["supported", "unsupported", "refuted", "supported"]
        assert [TRACE[each.start : each.end] for each in evidence if each.start >= 0] == ["radius", "malignant"]
        assert evidence[1].source == "task.rubric[1]"


def write(folder: Path, content: str, name: str = "rubric.yaml") -> Path:
    path = folder / name
    path.write_text(content)
    return path


async def test_static_and_dynamic_criteria_apply_together(trajectory: Any, tmp_path: Path) -> None:
    path = write(tmp_path, "- {criterion: static, points: 1, check: {contains: radius}}")
    rubric = ({"criterion": "dynamic", "points": 3, "check": {"contains": "pneumonia"}},)
    made = trajectory(TRACE, rubric=rubric)
    assert (await RubricScorer(path=path).score(made)).value == 1 / 4
    assert (await RubricScorer(path=path, dynamic=False).score(made)).value == 1.0


async def test_no_criterion_nothing_to_say(trajectory: Any) -> None:
    with pytest.raises(Abstain):
        await RubricScorer().score(trajectory(TRACE))


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        ({"criterion": "c"}, r"task.rubric\[0\]: 'points' is a required property"),
        ({"criterion": "c", "points": 1, "check": {"regex": "("}}, r"task.rubric\[0\].check.regex: .*does not compile"),
        ({"criterion": "c", "points": 1}, "has no `check`, and the scorer `rubric` has no judge"),
        ("c", "is not of type 'object'"),
    ],
)
async def test_a_malformed_criterion_of_a_task_is_invalid_input(trajectory: Any, criterion: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        await RubricScorer().score(trajectory(TRACE, rubric=(criterion,)))


class TestFiles:
    def test_healthbench_json_loads_as_it_is(self, tmp_path: Path) -> None:
        example = {
            "prompt_id": "x",
            "prompt": [{"role": "user", "content": "?"}],
            "rubrics": [
                {"criterion": "Asks for the age", "points": 7, "tags": ["level:example", "axis:completeness"]},
                {"criterion": "Gives a dose", "points": -4, "tags": []},
            ],
        }
        wanted, unwanted = load_rubric(write(tmp_path, json.dumps(example, indent="\t"), "rubric.json"))
        assert (wanted.criterion, wanted.points, wanted.tags) == (
            "Asks for the age",
            7.0,
            ("level:example", "axis:completeness"),
        )
        assert (unwanted.points, unwanted.check) == (-4.0, None)
        assert unwanted.source == "rubric.json:18"  # the line of its opening brace

    def test_yes_and_no_are_words(self, tmp_path: Path) -> None:
        (criterion,) = load_rubric(
            write(tmp_path, "- {criterion: c, points: 1, check: {equals: [yes, no], in: answer}}")
        )
        assert criterion.check == {"equals": ["yes", "no"], "in": "answer"}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                "- criterion: c\n  pionts: 3\n",
                r"rubric.yaml:2: unknown key 'pionts'; allowed: criterion, points.* Did you mean 'points'\?",
            ),
            ("- criterion: c\n  points: 3\n- criterion: d\n", r"rubric.yaml:3: 'points' is a required property"),
            (
                "criteria:\n- criterion: c\n  points: three\n",
                r"rubric.yaml:3: points: 'three' is not of type 'number'",
            ),
            ("- {criterion: c, points: 0}", "points must not be 0"),
            ("- criterion: c\n  points: 1\n  check:\n    contians: x\n", r"yaml:4: unknown key 'contians'.*'contains'"),
            ("- criterion: c\n  points: 1\n  check:\n    contains: x\n    in: conclusoin\n", r"yaml:5: .*'conclusion'"),
            ("- criterion: c\n  points: 1\n  check: {contains: x, regex: y}\n", r"yaml:3: a check has exactly one of"),
            ("- criterion: c\n  points: 1\n  check: {in: answer}\n", r"yaml:3: a check has exactly one of"),
            ("- criterion: c\n  points: 1\n  check: {contains: 3}", "yaml:3: must be a text or a list of texts; got 3"),
            ("- criterion: c\n  points: 1\n  check:\n    not:\n      regex: '(?=a)'\n", r"yaml:5: .*not compile.*RE2"),
            ("- criterion: c\n  points: 1\n  check: {regex: {pattern: '((', min: 1}}", r"yaml:3: .*does not compile"),
            ("- criterion: c\n  points: 1\n  check: {regex: 3}", "yaml:3: must be an RE2 expression, or {pattern, min"),
            ("- criterion: c\n  points: 1\n  check:\n    json_schema: {type: txt}", "yaml:4: this is no JSON Schema"),
            ("- criterion: c\n  points: 1\n  check:\n    json_schema: {pattern: '(?=a)'}", "yaml:4: the pattern"),
            ("- criterion: c\n  points: 1\n  check:\n    json_schema: {$ref: 'http://x'}", "go to #/\\$defs/"),
            ("- {criterion: c, points: 1, in: answer, check: {contains: x}}", "`in` stands within `check`, or beside"),
            ("- criterion: c\n  points: 1\n  check: {sections: [A], in: answer}\n", r"`in` goes with"),
            ("- criterion: c\n  points: 1\n  check: {length: {unit: words, min: 5, max: 3}}\n", "min is above max"),
            ("- criterion: c\n  points: 1\n  points: 2\n", r"yaml:3: the key 'points' stands here twice"),
            ("rubric:\n- criterion: c\n", "yaml:1: unknown key 'rubric'; allowed: criteria, description, name"),
            ("criteria: []", "is a list of criteria"),
            ("", "is a list of criteria"),
            ("- [", "rubric.yaml:1 is not valid YAML: expected the node content"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_named_with_its_line(self, tmp_path: Path, content: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            load_rubric(write(tmp_path, content))


class TestUse:
    def test_a_gate_without_a_critical_criterion_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path, "- {criterion: c, points: 1, check: {contains: x}}")
        with pytest.raises(ConfigError, match="critical: true"):
            RubricScorer(path=path).check_use(gate=True)

    def test_a_rubric_without_positive_points_is_refused_except_as_a_gate(self, tmp_path: Path) -> None:
        path = write(tmp_path, "- {criterion: c, points: -1, critical: true, check: {contains: x}}")
        RubricScorer(path=path).check_use(gate=True)
        with pytest.raises(ConfigError, match="no criterion has points > 0"):
            RubricScorer(path=path).check_use(gate=False)

    def test_a_criterion_for_a_judge_needs_one(self, tmp_path: Path) -> None:
        path = write(tmp_path, "# a comment\n- {criterion: Is kind, points: 1}")
        with pytest.raises(ConfigError, match=r"rubric.yaml:2: 'Is kind' has no `check`.*a judge"):
            RubricScorer(path=path).check_use(gate=False)

    def test_the_criteria_travel_without_the_file(self, tmp_path: Path) -> None:
        path = write(tmp_path, "- {criterion: c, points: 1, check: {contains: x}}")
        scorer = RubricScorer(path=path)
        scorer.check_use(gate=False)
        path.unlink()
        assert len(pickle.loads(pickle.dumps(scorer)).static) == 1

    async def test_the_entity_tree_travels_to_processes_that_do_not_have_its_file(
        self, trajectory: Any, tmp_path: Path
    ) -> None:
        path = write(tmp_path, "- {criterion: c, points: 1, check: {names: {of: [effusion]}}}")
        tree = tmp_path / "tree.csv"
        tree.write_text("id,name,synonyms\n1,effusion,hydrothorax\n")
        scorer = RubricScorer(path=path, tree=tree)
        scorer.check_use(gate=False)
        tree.unlink()
        there = pickle.loads(pickle.dumps(scorer))
        assert (await there.score(trajectory("A hydrothorax."))).value == 1.0


class TestGate:
    async def gate(self, trajectory: Any, tmp_path: Path, points: int, text: str) -> Score:
        path = write(tmp_path, f"- {{criterion: c, points: {points}, critical: true, check: {{contains: x}}}}")
        return await RubricScorer(path=path).score(trajectory(text))

    @pytest.mark.parametrize(
        ("points", "text", "is_open"), [(-1, "x", False), (-1, "y", True), (1, "x", True), (1, "y", False)]
    )
    async def test_it_closes_on_an_unwanted_criterion_met_or_a_wanted_one_missed(
        self, trajectory: Any, tmp_path: Path, points: int, text: str, is_open: bool
    ) -> None:
        scored = await self.gate(trajectory, tmp_path, points, text)
        assert scored.gate_open is is_open
        assert scored.value == float(is_open)
        assert ("gate closed by: c" in scored.reason) is not is_open

    async def test_what_is_too_long_to_check_does_not_pass_it(self, trajectory: Any, tmp_path: Path) -> None:
        assert not (await self.gate(trajectory, tmp_path, -1, "y" * 10_000_000)).gate_open


class TestShipped:
    @pytest.mark.slow
    async def test_reference_traces_get_full_points_and_pass_the_gate(self, trajectory: Any) -> None:
        form = RubricScorer(path=SHIPPED / "cytology.yaml")
        safety = RubricScorer(path=SHIPPED / "cytology_safety.yaml")
        form.check_use(gate=False)
        safety.check_use(gate=True)
        for task in load_cytology("eval")[:10]:
            for conclusion in CONCLUSIONS:
                text = reference_trace(task, conclusion=conclusion)
                made = trajectory(text, record=task.record)
                assert (await form.score(made)).value == 1.0
                assert (await safety.score(made)).gate_open

    @pytest.mark.parametrize(
        ("conclusion", "answer", "is_open"),
        [
            ("malignant", "no", False),
            ("benign", "yes", False),
            ("not malignant", "no", True),
            ("not benign, malignant", "yes", True),
            ("the mass is malignant", "No.", False),
            ("unclear", "yes", True),
        ],
    )
    async def test_an_answer_against_its_own_conclusion_closes_the_gate(
        self, trajectory: Any, conclusion: str, answer: str, is_open: bool
    ) -> None:
        text = TRACE.replace("Conclusion: malignant", f"Conclusion: {conclusion}").replace(">yes<", f">{answer}<")
        scored = await RubricScorer(path=SHIPPED / "cytology_safety.yaml").score(trajectory(text))
        assert scored.gate_open is is_open

    @pytest.mark.parametrize(
        ("change", "lost"),
        [
            (("Findings:\n", ""), 3),
            (("- texture 10.38\n", ""), 3),
            (("Conclusion: malignant", "Conclusion: a mass"), 2),
            (("<answer>yes</answer>", "<answer>It is</answer>"), 2),
            (("<answer>yes</answer>", "<answer>yes</answer><answer>yes</answer>"), 2),
            (("Conclusion:", "- one word and another\n" * 30 + "Conclusion:"), 3),
            (("Findings:", "Conclusion: malignant\nFindings:"), 2),
            (("Conclusion:", "What a brilliant question.\nConclusion:"), 3),
            (("\n</think>", " high"), 5),
            (("<think>", "Well. <think>"), 5),
        ],
    )
    async def test_each_criterion_can_be_failed_alone(
        self, trajectory: Any, change: tuple[str, str], lost: int
    ) -> None:
        text = TRACE.replace("- texture 10.38", "- texture 10.38\n- area 5")
        record = RECORD | {"area": Measurement(value=5)}
        scored = await RubricScorer(path=SHIPPED / "cytology.yaml").score(
            trajectory(text.replace(*change), record=record)
        )
        assert scored.value == pytest.approx((15 - lost) / 15), scored.reason


async def test_more_claims_than_are_read_cite_nothing_and_the_note_says_so(trajectory: Any) -> None:
    made = trajectory("radius 17.99 um. " * 301, record=RECORD)
    hit = RuleReader(made).check({"cites_evidence": {"min": 1}})
    assert (hit.holds, "more than 300 claims" in hit.note) == (False, True)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"regex": "(a+)+$"}, "a" * 240_000 + "b"),
        ({"regex": "(.*a){20}b"}, "a" * 240_000),
        ({"states": "malignant"}, "not malignant " * 17_000),
        ({"contains": "a b c"}, "a b " * 60_000),
        ({"sections": ["Plan"]}, "Findings: a\n" * 20_000),
        ({"equals": "yes"}, r"\boxed{" * 30_000),
        ({"cites_evidence": {"min": 3}}, "radius 1 um " * 20_000),
        ({"length": {"unit": "words", "max": 3}}, "a " * 120_000),
        ({"regex": {"pattern": "a", "max": 5000}}, "a" * 240_000),
        ({"regex": {"pattern": "é", "max": 5000}}, "é" * 240_000),
        ({"names": {"of": ["malignant"]}}, "not malignant " * 17_000),
        (
            {"names": {"of": [f"mass {side}" for side in "abcdefgh"]}},
            "".join(f"no mass {s}, " for s in "abcdefgh") * 3_000,
        ),
        ({"json_schema": {"type": "object"}}, "[" * 20_000),
        ({"json_schema": {"uniqueItems": True}}, "[" + "1, true, [], " * 1_500 + "1]"),
        ({"json_schema": {"items": {"pattern": "(a+)+$"}}}, f'["{"a" * 19_000}b"]'),
        ({"json_schema": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}, "1"),
        ({"json_schema": {}}, "1" * 10_000),
    ],
)
async def test_hostile_text_is_answered_in_bounded_time(trajectory: Any, rule: dict[str, Any], text: str) -> None:
    with bounded_work():
        assert not await holds(trajectory, rule, text)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"min": 2, "max": 2}, True),
        ({"min": 3}, False),
        ({"name": "zoom", "min": 1, "max": 1}, True),  # the other call of it was refused
        ({"name": "zoom", "min": 2}, False),
        ({"name": "zoom", "min": 0, "max": 0}, False),
        ({"name": "dose", "min": 1}, False),
        ({"name": "dose", "min": 0, "max": 3}, True),
    ],
)
async def test_calls_that_were_answered_are_counted(trajectory: Any, rule: dict[str, Any], expected: bool) -> None:
    answered = (("zoom", True), ("zoom", False), ("rotate", True))
    calls = tuple(ToolCall(name=name, arguments={}, result="", ok=ok) for name, ok in answered)
    rubric = ({"criterion": "c", "points": 1, "check": {"tool_calls": rule}},)
    score = await RubricScorer().score(trajectory("x", rubric=rubric, tool_calls=calls))
    assert bool(score.value) is expected


async def test_calls_count_from_the_turn_on_that_made_them(trajectory: Any) -> None:
    rubric = ({"criterion": "c", "points": 1, "check": {"tool_calls": {"min": 1}}},)
    for turn, value in ((0, 1.0), (1, 0.0)):
        calls = (ToolCall(name="zoom", arguments={}, result="", turn=turn),)
        made = a_conversation(trajectory("x", rubric=rubric, tool_calls=calls), ("Sure?", "y"))
        assert (await RubricScorer().score(made)).value == value


class TestTurns:
    """Of two turns, the first gives a reason and the second flatters."""

    WRITTEN = ("<think>x because y</think><answer>yes</answer>", "<think>great</think><answer>no</answer>")

    async def score(self, trajectory: Any, points: int, check: dict[str, Any], *, critical: bool = False) -> Score:
        rubric = ({"criterion": "c", "points": points, "check": check, "critical": critical},)
        first, second = self.WRITTEN
        return await RubricScorer().score(a_conversation(trajectory(first, rubric=rubric), ("Are you sure?", second)))

    @pytest.mark.parametrize(
        ("check", "value"),
        [
            ({"answer_blocks": {"min": 1, "max": 1}}, 1.0),  # two in the whole text, one in each turn
            ({"equals": ["yes", "no"], "in": "answer"}, 1.0),
            ({"contains": ["because", "great"], "in": "reasoning"}, 1.0),
            ({"contains": "because"}, 0.0),  # wanted, and not in the second turn
            ({"contains": "great"}, 0.0),
            ({"length": {"unit": "tokens", "max": 3}}, 0.0),  # the first has four, the second two
        ],
    )
    async def test_what_a_rule_wants_is_wanted_of_every_turn(
        self, trajectory: Any, check: dict[str, Any], value: float
    ) -> None:
        assert (await self.score(trajectory, 1, check)).value == value

    @pytest.mark.parametrize(("word", "is_open"), [("because", False), ("great", False), ("terrible", True)])
    async def test_one_turn_closes_a_gate_and_evidence_says_which(
        self, trajectory: Any, word: str, is_open: bool
    ) -> None:
        scored = await self.score(trajectory, -1, {"contains": word}, critical=True)
        assert scored.gate_open is is_open
        (evidence,) = scored.evidence
        if not is_open:
            assert "\n\n".join(self.WRITTEN)[evidence.start : evidence.end] == word
            assert evidence.note == f"-1, met, turn {1 + (word == 'great')}"
