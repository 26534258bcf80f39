"""The record of these tests: radius 17.99 um high, texture 10.38 low, worst radius 25.38 um high, area 1001 um2 high,
smoothness 0.1184 (no reading)."""

from __future__ import annotations

from typing import Any

import pytest

from rewards.hallucination import HallucinationScorer
from rewards.scorer import Abstain
from rl.errors import ConfigError
from rl.types import Measurement, Score
from rollouts.cytology import load_cytology, reference_trace
from tests.bounded import bounded_work

RECORD = {
    "radius": Measurement(value=17.99, unit="um", reading="high"),
    "texture": Measurement(value=10.38, reading="low"),
    "worst radius": Measurement(value=25.38, unit="um", reading="high"),
    "area": Measurement(value=1001, unit="um2", reading="high"),
    "smoothness": Measurement(value=0.1184),
}
TRACE = """<think>
Findings:
- radius 17.99 um high
- texture 10.38 low
- worst radius 25.38 um high
Conclusion: malignant
</think>
<answer>yes</answer>"""


async def score(trajectory: Any, text: str, record: Any = RECORD, **parameters: Any) -> Score:
    return await HallucinationScorer(**parameters).score(trajectory(text, record=record))


def verdicts(scored: Score) -> dict[str, str]:
    return {evidence.source.removeprefix("record."): evidence.verdict for evidence in scored.evidence}


async def test_a_faithful_trace_scores_one_and_points_at_its_claims(trajectory: Any) -> None:
    scored = await score(trajectory, TRACE)
    assert scored.value == 1.0
    assert verdicts(scored) == {"radius": "supported", "texture": "supported", "worst radius": "supported"}
    assert [TRACE[each.start : each.end] for each in scored.evidence] == [
        "radius 17.99 um high",
        "texture 10.38 low",
        "worst radius 25.38 um high",
    ]
    # 3 of the 5 fields of the record
    assert scored.metrics == {
        "claims": 3,
        "supported": 3,
        "refuted": 0,
        "uncertain": 0,
        "unsupported": 0,
        "recall": 0.6,
        "claim_words": 4.0,  # 4, 3 and 5 words
    }


@pytest.mark.slow
async def test_every_reference_trace_of_the_built_in_cases_is_fully_supported(trajectory: Any) -> None:
    for task in load_cytology("eval")[:40]:
        scored = await score(trajectory, reference_trace(task, conclusion="benign"), task.record)
        assert (scored.value, scored.metrics["claims"]) == (1.0, len(task.record)), scored.reason


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        # the value, rounded to the digits that are printed
        ("radius 17.99 um high", "supported"),
        ("radius 18.0 um high", "supported"),
        ("radius 18 um high", "supported"),
        ("radius 17.990 um high", "supported"),
        ("radius 17.9 um high", "refuted"),
        ("radius 17.991 um high", "refuted"),
        ("radius 19 um high", "refuted"),
        ("radius -17.99 um high", "refuted"),
        ("area 1,001 um2 high", "supported"),
        ("area 1.0e3 um2 high", "supported"),
        ("smoothness 0.12", "supported"),
        ("smoothness 0.1", "uncertain"),  # half a unit of the last digit is .05, 42 % of the value
        ("smoothness 0.2", "refuted"),
        ("smoothness 0", "uncertain"),
        # units
        ("radius 17.99 high", "supported"),
        ("radius 17.99 µm high", "supported"),
        ("radius 17.99 microns high", "supported"),
        ("radius 0.01799 mm high", "supported"),
        ("radius 17.99 mm high", "refuted"),
        ("radius 17.99 mg high", "refuted"),
        ("texture 10.38 um low", "refuted"),
        ("area 1001 um^2 high", "supported"),
        ("area 1001 um high", "refuted"),
        # readings
        ("radius 17.99 um", "supported"),
        ("radius 17.99 um elevated", "supported"),
        ("radius 17.99 um, higher than normal", "supported"),
        ("radius 17.99 um low", "refuted"),
        ("radius 17.99 um normal", "refuted"),
        ("radius 17.99 um not high", "refuted"),
        ("radius 17.99 um high low", "refuted"),
        ("smoothness 0.1184 high", "supported"),  # the record has no reading to hold against
        # nothing to rest on
        ("radius high", "unsupported"),
        ("radius", "unsupported"),
        ("radius low", "refuted"),
        # other ways of writing
        ("Radius: 17.99 um (high)", "supported"),
        ("radius = 17.99 um", "supported"),
        ("WORST RADIUS 25.4 um", "supported"),
        ("worst-radius 25.4 um", "supported"),
    ],
)
async def test_a_finding_is_held_against_the_record(trajectory: Any, line: str, verdict: str) -> None:
    scored = await score(trajectory, f"<think>\nFindings:\n- {line}\nConclusion: x\n</think>")
    assert list(verdicts(scored).values()) == [verdict], scored.reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The radius is 17.99 µm, which is high, and the texture of 10.38 is low.", ["supported", "supported"]),
        ("There is a radius of 18 (high).", ["supported"]),
        ("A 17.99 um radius and a 10.38 texture were seen.", ["supported", "supported"]),
        ("Radius and texture are 17.99 and 10.38 respectively.", ["supported", "supported"]),
        ("Radius and texture are 10.38 and 17.99 respectively.", ["refuted", "refuted"]),
        ("The worst radius, 25.38 um, is high; the radius is 17.99 um.", ["supported", "supported"]),
        ("A high radius and low texture.", ["unsupported", "unsupported"]),
        ("A low radius.", ["refuted"]),
        ("The radius is the first thing to look at.", []),
        ("Radiuses of 5 and textures of 3 are usual.", []),
        ("The radius is discussed first. It has 20 nuclei.", []),
    ],
)
async def test_free_prose_is_read_too(trajectory: Any, text: str, expected: list[str]) -> None:
    scored = await score(trajectory, f"<think>{text}</think><answer>yes</answer>")
    assert [evidence.verdict for evidence in scored.evidence] == expected


async def test_a_name_that_begins_with_another_is_its_own(trajectory: Any) -> None:
    record = {"radius": Measurement(value=17.99), "radius error": Measurement(value=0.5)}
    scored = await score(trajectory, "Findings:\n- radius error 0.5\n- radius 17.99", record)
    assert verdicts(scored) == {"radius error": "supported", "radius": "supported"}


async def test_a_finding_of_no_field_is_unsupported(trajectory: Any) -> None:
    scored = await score(trajectory, TRACE.replace("Conclusion", "- nuclear grade 3\n- calcification\nConclusion"))
    assert scored.metrics["unsupported"] == 2
    assert scored.value == 3 / 5


async def test_findings_may_begin_right_behind_the_tag(trajectory: Any) -> None:
    scored = await score(trajectory, "<think>Findings:\n- radius 17.99 um high\n- nuclear grade 3\n</think>")
    assert [evidence.verdict for evidence in scored.evidence] == ["supported", "unsupported"]


async def test_what_stands_in_the_answer_is_no_claim(trajectory: Any) -> None:
    scored = await score(trajectory, TRACE.replace("yes", "yes, radius 99 um"))
    assert scored.value == 1.0


class TestGaming:
    async def test_saying_nothing_scores_zero(self, trajectory: Any) -> None:
        for text in ("", "<answer>yes</answer>", "<think>It looks malignant.</think><answer>yes</answer>"):
            assert (await score(trajectory, text)).value == 0.0

    async def test_repeating_an_easy_claim_counts_once(self, trajectory: Any) -> None:
        text = "<think>\nFindings:\n" + "- radius 17.99 um high\n" * 20 + "</think>"
        assert (await score(trajectory, text)).value == pytest.approx(1 / 3)  # 1 claim, at least 3 asked for

    async def test_spelling_one_claim_in_many_ways_counts_once(self, trajectory: Any) -> None:
        text = "<think>\nFindings:\n- radius 17.99\n- radius 18.0 um\n- radius 18 um high\n</think>"
        assert (await score(trajectory, text)).value == pytest.approx(1 / 3)

    async def test_a_field_cited_rightly_and_wrongly_is_refuted(self, trajectory: Any) -> None:
        scored = await score(trajectory, TRACE.replace("- texture", "- radius 3 um high\n- texture"))
        assert scored.value == pytest.approx(2 / 3)
        assert scored.metrics["refuted"] == 1

    async def test_more_right_claims_never_make_it_worse(self, trajectory: Any) -> None:
        more = await score(trajectory, TRACE.replace("Conclusion", "- area 1001 um2 high\nConclusion"))
        assert more.value == 1.0

    async def test_f1_pays_for_citing_only_a_part_of_the_record(self, trajectory: Any) -> None:
        # share 3/3, of the record 3/5: F1 = 2 * 3 / (3 + 5)
        assert (await score(trajectory, TRACE, form="f1")).value == pytest.approx(6 / 8)

    async def test_a_small_record_can_be_cited_in_full(self, trajectory: Any) -> None:
        record = {"radius": RECORD["radius"]}
        assert (await score(trajectory, "Findings:\n- radius 17.99 um high", record)).value == 1.0


async def test_a_unit_can_be_required(trajectory: Any) -> None:
    scored = await score(trajectory, "Findings:\n- radius 17.99 high", require_unit=True)
    assert verdicts(scored) == {"radius": "unsupported"}


async def test_fields_may_have_further_names(trajectory: Any) -> None:
    scored = await score(trajectory, "Findings:\n- size of nuclei 17.99 um", synonyms={"radius": ["size of nuclei"]})
    assert verdicts(scored) == {"radius": "supported"}


async def test_a_task_without_a_record_is_none_of_its_business(trajectory: Any) -> None:
    with pytest.raises(Abstain):
        await score(trajectory, TRACE, record={})


async def test_as_a_gate_it_closes_above_so_many_refuted_claims(trajectory: Any) -> None:
    text = TRACE.replace("17.99", "11.11")
    assert (await score(trajectory, text, max_refuted=1)).gate_open
    assert not (await score(trajectory, text, max_refuted=0)).gate_open
    with pytest.raises(ConfigError, match="max_refuted"):
        HallucinationScorer().check_use(gate=True)


def test_a_score_for_saying_nothing_cannot_be_configured() -> None:
    with pytest.raises(ConfigError, match="min_claims must be >= 1"):
        HallucinationScorer(min_claims=0)


@pytest.mark.parametrize(
    "text",
    [
        "radius " * 30_000,
        "radius 1 um " * 20_000,
        "- radius high\n" * 16_000,
        "high " * 49_000 + "radius",
        "Findings:\n" + "radius 1 um " * 20_000,
        "Findings: a\n" * 20_000,
        "1 " * 120_000,
        "radius 9**9**9**9",
        "radius " + "9" * 240_000,
        "[" * 10_000_000,
    ],
)
async def test_hostile_text_is_answered_in_bounded_time(trajectory: Any, text: str) -> None:
    made = trajectory(text, record=RECORD)
    with bounded_work():
        scored = await HallucinationScorer().score(made)
    assert (scored.value, bool(scored.reason)) == (0.0, True)
