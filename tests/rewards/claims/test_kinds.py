"""What each kind of claim says of a trace, through the scorer that a config names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rewards.config import load_rewards
from rewards.hallucination import HallucinationScorer
from rewards.scorer import Abstain, InvalidInput, Score
from rewards.service import RewardService
from rl.errors import ConfigError
from rl.types import EncodedImage, Measurement, Message, ToolCall
from tests.bounded import bounded_work
from tests.rewards.conftest import a_conversation

CHEST = Path(__file__).parents[3] / "configs" / "entities" / "chest_findings.csv"
FINDINGS = [
    {"name": "consolidation", "urgency": "urgent"},
    {"name": "pleural effusion", "urgency": "actionable"},
    {"name": "pneumothorax", "polarity": "negated"},
    {"name": "nodule", "polarity": "uncertain"},
]
REPORT = "There is a new consolidation in the left lower lobe. The heart measures 12.5 cm. No pneumothorax is seen."
IMAGE = EncodedImage(content=b"\x89PNG", width=200, height=100)


async def judged(trajectory: Any, text: str, *, tool_calls: Any = (), task: Any = None, **parameters: Any) -> Score:
    made = trajectory(f"<think>{text}</think><answer>yes</answer>", tool_calls=tool_calls, **(task or {}))
    return await HallucinationScorer(**parameters).score(made)


def verdicts(scored: Score) -> list[tuple[str, str]]:
    return [(evidence.claim, evidence.verdict) for evidence in scored.evidence]


class TestMeasurements:
    RECORD = {"radius": Measurement(value=17.99, unit="um")}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("text", "verdict"),
        [
            ("The radius is 17 to 19 um.", "supported"),  # no end is more than 10 % away
            ("The radius is 0.0175-0.0185 mm.", "supported"),
            ("The radius is between 10 and 30 um.", "uncertain"),
            ("The radius is 18.5 to 19 um.", "refuted"),
            ("The radius is above 17 um.", "supported"),
            ("The radius is above 5 um.", "uncertain"),
            ("The radius is above 20 um.", "refuted"),
            ("The radius is less than 18 um.", "supported"),
            ("The radius is at most 12 um.", "refuted"),
            ("The radius is 17-19 mg.", "refuted"),
        ],
    )
    async def test_a_range_or_bound_must_hold_the_value_and_say_something(
        self, trajectory: Any, text: str, verdict: str
    ) -> None:
        scored = await judged(trajectory, text, task={"record": self.RECORD})
        assert [evidence.verdict for evidence in scored.evidence] == [verdict], scored.reason

    async def test_a_line_of_no_field_is_the_records_business_only_where_there_is_nothing_else(
        self, trajectory: Any
    ) -> None:
        text = "\nFindings:\n- radius 17.99 um [record: radius]\n- a spiculated edge [box: 1, 2, 3, 4]\n"
        alone = await judged(trajectory, text, task={"record": self.RECORD})
        assert [each.verdict for each in alone.evidence] == ["supported", "unsupported"]
        beside = await judged(trajectory, text, task={"record": self.RECORD, "reference": {"findings": ["edema"]}})
        assert [each.verdict for each in beside.evidence] == ["supported"]
        invented = await judged(
            trajectory,
            f"{text}- serum ferritin 512 high\n- edema of 3 mm",
            task={"record": self.RECORD, "reference": {"findings": ["edema"]}},
        )
        assert verdicts(invented)[1:] == [("serum ferritin 512 high", "unsupported"), ("edema", "supported")]


class TestFindings:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("A consolidation.", [("consolidation", "supported")]),
            ("No consolidation.", [("consolidation", "refuted")]),
            ("Possible consolidation.", [("consolidation", "uncertain")]),
            ("No pneumothorax.", [("pneumothorax", "supported")]),
            ("A large pneumothorax.", [("pneumothorax", "refuted")]),
            ("A possible lung nodule.", [("lung nodule", "supported")]),
            ("A lung nodule.", [("lung nodule", "uncertain")]),
            ("Hydrothorax on the left.", [("Hydrothorax", "supported")]),  # a synonym in the tree
            ("An airspace opacity.", [("airspace opacity", "supported")]),  # consolidation is a kind of it
            ("No airspace opacity.", [("airspace opacity", "refuted")]),
            ("Pneumonia.", [("Pneumonia", "unsupported")]),  # a kind of consolidation is more than is known
            ("A rib fracture.", [("rib fracture", "unsupported")]),
            ("No rib fracture.", []),  # true denials without end are worth nothing
            ("History of pneumothorax.", []),
            ("If a pneumothorax develops, place a tube.", []),
            ("The consolidation is large. A consolidation of the lobe.", [("consolidation", "supported")] * 2),
        ],
    )
    async def test_a_finding_is_held_against_the_reference(self, trajectory: Any, text: str, expected: Any) -> None:
        scored = await judged(trajectory, text, task={"reference": {"findings": FINDINGS}}, entities=CHEST)
        assert verdicts(scored) == expected, scored.reason

    async def test_in_a_closed_world_what_is_not_listed_is_not_there(self, trajectory: Any) -> None:
        task = {"reference": {"findings": FINDINGS}}
        scored = await judged(trajectory, "A rib fracture.", task=task, entities=CHEST, closed_world=True)
        assert verdicts(scored) == [("rib fracture", "refuted")]

    async def test_without_a_tree_the_names_and_synonyms_of_the_reference_are_found(self, trajectory: Any) -> None:
        task = {"reference": {"findings": [{"name": "Kerley B lines", "synonyms": ["septal lines"]}]}}
        scored = await judged(trajectory, "Septal lines. No Kerley-B line. A rib fracture.", task=task)
        assert verdicts(scored) == [("Septal lines", "supported"), ("Kerley-B line", "refuted")]
        assert scored.metrics["claims"] == 1  # of one finding, and it is refuted once
        assert scored.value == 0.0

    async def test_evidence_says_what_the_verdict_rests_on(self, trajectory: Any) -> None:
        scored = await judged(trajectory, "A pneumothorax.", task={"reference": {"findings": FINDINGS}})
        (evidence,) = scored.evidence
        assert evidence.source == "reference.findings.pneumothorax"
        assert evidence.note == "affirmed here, negated in the reference as 'pneumothorax'"

    async def test_a_normal_case_is_met_by_claiming_nothing(self, trajectory: Any) -> None:
        task = {"reference": {"findings": []}}
        assert (await judged(trajectory, "A clear chest.", task=task, entities=CHEST)).value == 1.0
        assert (await judged(trajectory, "A fracture.", task=task, entities=CHEST)).value == 0.0

    async def test_recited_options_are_no_claims(self, trajectory: Any) -> None:
        options = {"A": "Pneumothorax", "B": "Rib fracture", "C": "Consolidation"}
        task = {
            "answer": {"type": "choice", "value": "C", "options": options},
            "reference": {"findings": FINDINGS},
        }
        text = "The options:\nA) Pneumothorax\n(B) rib fracture\nC. Consolidation\nI see a consolidation."
        scored = await judged(trajectory, text, task=task, entities=CHEST)
        assert verdicts(scored) == [("consolidation", "supported")]
        scored = await judged(trajectory, "A) I see a pneumothorax", task=task, entities=CHEST)
        assert verdicts(scored) == [("pneumothorax", "refuted")]


class TestQuotes:
    TASK = {  # noqa: RUF012
        "question": "Is the mass seen on the film malignant?",
        "reference": {"sources": {"report": REPORT, "old note": "All was well then."}},
    }

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('The report says "a new  Consolidation in the left lower lobe".', "supported"),
            ("It reads “There is a new consolidation … No pneumothorax is seen.”", "supported"),
            ("It reads “No pneumothorax is seen … there is a new consolidation”", "refuted"),  # not in this order
            ('It says "a new consolidation in the right lower lobe".', "refuted"),
            ('It says "the heart measures 1.25 cm".', "refuted"),
            ('The old note says "a new consolidation in the left lower lobe".', "refuted"),
            ('The old note says "all was well then".', "supported"),
        ],
    )
    async def test_a_quote_must_stand_in_its_source(self, trajectory: Any, text: str, expected: str) -> None:
        scored = await judged(trajectory, text, task=self.TASK)
        assert [evidence.verdict for evidence in scored.evidence] == [expected], scored.reason

    @pytest.mark.parametrize(
        "text",
        ['A so-called "ground glass" look.', 'Asked: "Is the mass seen on the film malignant?"', 'A 5" tube, 6" more.'],
    )
    async def test_emphasis_the_question_and_inches_are_no_quotes(self, trajectory: Any, text: str) -> None:
        assert (await judged(trajectory, text, task=self.TASK)).evidence == ()

    async def test_silence_is_not_all_that_could_be_quoted(self, trajectory: Any) -> None:
        assert (await judged(trajectory, "Nothing.", task=self.TASK)).value == 0.0

    async def test_a_quote_of_a_tool_result_names_the_call(self, trajectory: Any) -> None:
        calls = (ToolCall(name="search", arguments={}, result="Aspirin is an inhibitor of COX-1."),)
        scored = await judged(trajectory, 'It said "aspirin is an inhibitor of COX-1".', tool_calls=calls)
        assert [(each.verdict, each.source) for each in scored.evidence] == [("supported", "tool_calls.0")]

    async def test_what_refuses_a_call_is_nothing_to_quote(self, trajectory: Any) -> None:
        said = "refused: no drug is called 'aspirin cures every cancer'"
        calls = (
            ToolCall(name="dose", arguments={"drug": "aspirin cures every cancer"}, result=said, ok=False),
            ToolCall(name="search", arguments={}, result="Aspirin is an inhibitor of COX-1."),
        )
        text = 'I read "aspirin cures every cancer" and "aspirin is an inhibitor of COX-1".'
        scored = await judged(trajectory, text, tool_calls=calls)
        assert [(each.verdict, each.source) for each in scored.evidence] == [
            ("refuted", "reference.sources"),
            ("supported", "tool_calls.1"),
        ]


class TestRegions:
    TASK = {  # noqa: RUF012
        "images": (IMAGE,),
        "reference": {"regions": [{"box": [10, 10, 50, 50], "label": "nodule"}, [100, 20, 180, 80]]},
    }

    @pytest.mark.parametrize(
        ("text", "verdict", "source"),
        [
            ("At [10, 10, 50, 50].", "supported", "reference.regions.0"),
            ("At (100, 20), (180, 60).", "supported", "reference.regions.1"),  # 40 / 60 of it
            ("At [30, 10, 70, 50].", "uncertain", "reference.regions.0"),  # 20·40 / (60·40) = 1/3
            ("At [60, 60, 80, 80].", "refuted", "reference.regions"),
            ("At [150, 10, 250, 50].", "refuted", "image 0"),
            ("At [50, 50, 10, 10].", "refuted", "image 0"),
            ("In image 2 at [10, 10, 50, 50].", "refuted", "image 1"),
            ("A nodule at [100, 20, 180, 80].", "refuted", "reference.regions"),  # a region, but not the nodule's
        ],
    )
    async def test_a_box_must_lie_where_the_reference_has_one(
        self, trajectory: Any, text: str, verdict: str, source: str
    ) -> None:
        scored = await judged(trajectory, text, task=self.TASK)
        assert [(each.verdict, each.source) for each in scored.evidence] == [(verdict, source)], scored.reason

    async def test_coordinates_are_compared_in_shares_of_the_image(self, trajectory: Any) -> None:
        # [50, 100, 250, 500] of 1000 is [.05, .1, .25, .5], of 200 x 100 pixels [10, 10, 50, 50]
        scored = await judged(trajectory, "[50, 100, 250, 500]", task=self.TASK, box_coordinates="per_mille")
        assert [each.note for each in scored.evidence] == ["overlaps by 1.00"]

    async def test_pointing_at_one_region_many_times_counts_once(self, trajectory: Any) -> None:
        text = "[10, 10, 50, 50] [10, 10, 50, 49] [10, 11, 50, 50]"
        scored = await judged(trajectory, text, task=self.TASK)
        assert (scored.metrics["claims"], scored.value) == (1.0, 0.5)  # of two regions


class TestTools:
    CALLS = (
        ToolCall(name="measure_length", arguments={}, result="length: 12.4 mm (calibrated)"),
        ToolCall(name="search drug", arguments={}, result="30 mg, then a time-out", ok=False),
    )

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("The measure_length tool returned 12.4 mm.", [("12.4 mm", "supported")]),
            ("According to measure length it is 1.24 cm.", [("1.24 cm", "supported")]),
            ("Measure-length reports about 12 mm.", [("12 mm", "supported")]),
            ("measure_length returned 14.2 mm.", [("14.2 mm", "refuted")]),
            ("measure_length returned 12.4 kg.", [("12.4 kg", "refuted")]),
            ("search drug says 30 mg.", [("30 mg", "refuted")]),
            ("I call measure_length with 3 points.", []),
            ("It is 99 mm.", []),
        ],
    )
    async def test_a_number_must_be_one_that_the_tool_returned(self, trajectory: Any, text: str, expected: Any) -> None:
        scored = await judged(trajectory, text, tool_calls=self.CALLS)
        assert verdicts(scored) == expected, scored.reason

    async def test_a_failed_call_is_named(self, trajectory: Any) -> None:
        scored = await judged(trajectory, "search drug says 30 mg.", tool_calls=self.CALLS)
        assert [(each.source, each.note) for each in scored.evidence] == [("tool_calls.1", "search drug failed")]


class TestForms:
    TASK = {"reference": {"findings": [*FINDINGS, "edema"]}}  # noqa: RUF012
    TEXT = "A consolidation. A pneumothorax. A rib fracture. Pulmonary edema."

    async def test_by_hand(self, trajectory: Any) -> None:
        """4 claims: consolidation and edema supported, pneumothorax refuted, fracture unsupported; 2 of 5 findings."""
        by_form = {
            form: (await judged(trajectory, self.TEXT, task=self.TASK, entities=CHEST, form=form)).value
            for form in ("share", "recall", "f1")
        }
        # F1 = 2 · .5 · .4 / (.5 + .4)
        assert by_form == pytest.approx({"share": 0.5, "recall": 0.4, "f1": 4 / 9})

    async def test_crimson_by_hand(self, trajectory: Any) -> None:
        """N = 1 + .5 + .25 (consolidation, effusion, edema); right 1 + .25; false .25 + .25 ."""
        scored = await judged(trajectory, self.TEXT, task=self.TASK, entities=CHEST, form="crimson")
        assert scored.metrics["crimson"] == pytest.approx(0.75 / 1.75)
        assert scored.value == pytest.approx(0.5 + 0.75 / 3.5)
        silent = await judged(trajectory, "Nothing.", task=self.TASK, entities=CHEST, form="crimson")
        assert silent.value == 0.5
        wrong = await judged(trajectory, "A rib fracture.", task=self.TASK, entities=CHEST, form="crimson")
        assert wrong.value == pytest.approx(0.5 / (1 + 0.25 / 1.75))

    async def test_saliency_by_hand(self, trajectory: Any) -> None:
        """The answer's sentence has 3 words. ``consolidation``: 1 shared, 1/√3; ``rib fracture``: 2 shared, 2/√6."""
        text = "<think>A consolidation. A rib fracture.</think><answer>consolidation, rib fracture</answer>"
        made = trajectory(text, **self.TASK)
        scored = await HallucinationScorer(form="saliency", entities=CHEST).score(made)
        supported, unsupported = 3**-0.5, 2 / 6**0.5
        assert scored.value == pytest.approx(supported / (supported + unsupported), abs=1e-5)

    async def test_what_the_answer_does_not_rest_on_weighs_a_little(self, trajectory: Any) -> None:
        text = "<think>Consolidation. A rib fracture.</think><answer>consolidation</answer>"
        scored = await HallucinationScorer(form="saliency", entities=CHEST).score(trajectory(text, **self.TASK))
        assert scored.value == pytest.approx(1 / 1.1, abs=1e-5)  # weights 1 and .1
        silent = await judged(trajectory, "Nothing.", task=self.TASK, entities=CHEST, form="saliency")
        assert silent.value == 1.0

    async def test_a_kind_of_a_finding_is_no_second_claim(self, trajectory: Any) -> None:
        text = "A consolidation, an opacity, a lung abnormality."
        scored = await judged(trajectory, text, task=self.TASK, entities=CHEST)
        assert (scored.metrics["claims"], scored.metrics["supported"]) == (1.0, 1.0)

    async def test_crimson_needs_findings(self, trajectory: Any) -> None:
        with pytest.raises(ConfigError, match="crimson weighs findings"):
            HallucinationScorer(form="crimson", claims=("quotes",))
        with pytest.raises(Abstain):
            await judged(trajectory, "x", form="crimson", task={"record": TestMeasurements.RECORD})

    async def test_label_counts_and_length_are_metrics(self, trajectory: Any) -> None:
        scored = await judged(trajectory, self.TEXT, task=self.TASK, entities=CHEST)
        assert scored.metrics["supported"] == 2
        assert scored.metrics["claim_words"] == 1.5  # consolidation, pneumothorax, rib fracture, pulmonary edema


async def test_several_kinds_are_judged_together_and_in_order(trajectory: Any) -> None:
    task = {"record": TestMeasurements.RECORD, "reference": {"findings": FINDINGS, "sources": {"report": REPORT}}}
    text = 'A consolidation: "a new consolidation in the left lower lobe". Radius 17.99 um.'
    scored = await judged(trajectory, text, task=task, claims=("quotes", "measurements", "findings"))
    assert [each.source for each in scored.evidence if each.source != "reference.findings.consolidation"] == [
        "reference.sources.report",
        "record.radius",
    ]
    only = await judged(trajectory, text, task=task, claims=("measurements",))
    assert [each.source for each in only.evidence] == ["record.radius"]


async def test_a_reference_that_cannot_be_read_is_the_tasks_fault(trajectory: Any) -> None:
    with pytest.raises(InvalidInput, match=r"task 'task-0': reference\.findings"):
        await judged(trajectory, "x", task={"reference": {"findings": [1]}})


async def test_more_claims_than_can_be_honest_are_not_read(trajectory: Any) -> None:
    scored = await judged(trajectory, "A consolidation. " * 301, task={"reference": {"findings": FINDINGS}})
    assert (scored.value, scored.reason) == (0.0, "makes more than 300 claims of one kind, which are not read")


def test_a_tree_that_is_not_there_is_named_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.obo cannot be read"):
        HallucinationScorer(entities=tmp_path / "none.obo").check_use(gate=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "consolidation " * 4_250,
        "No consolidation, " * 3_250,
        '"' * 60_000,
        '"consolidation in the lobe" ' * 2_000,
        "“" * 60_000,
        "[10, 10, 50, 50] " * 3_500,
        "[" * 60_000,
        "measure_length returned 12.4 mm. " * 1_750,
        "measure_length returned " + "12.4 mm " * 6_250,
        "A. consolidation " * 3_500,
        "1 to " * 12_000,
        "consolidation, edema and no nodule " * 99,
    ],
)
async def test_hostile_text_is_answered_in_bounded_time(trajectory: Any, text: str) -> None:
    task = {
        "answer": {"type": "choice", "value": "A", "options": ["consolidation " * 20, "no"]},
        "images": (IMAGE,),
        "record": TestMeasurements.RECORD,
        "reference": {"findings": FINDINGS, "sources": {"report": REPORT * 20}, "regions": [[0, 0, 1, 1]]},
    }
    with bounded_work():
        await judged(trajectory, text, task=task, tool_calls=TestTools.CALLS, entities=CHEST)


class TestTurns:
    """A second image, of 100 x 100 pixels, is shown after the first turn."""

    async def scored(self, trajectory: Any, first: str, second: str, *, turns: str = "each", **task: Any) -> Score:
        told = Message(text="The nurse wrote it down as a shadow.", images=(replace(IMAGE, width=100),))
        made = a_conversation(trajectory(f"<think>{first}</think>", images=(IMAGE,), **task), (told, second))
        with RewardService(load_rewards({"scorers": {"x": {"use": "hallucination", "turns": turns}}})) as service:
            score = (await service.score(made)).scores["x"].score
        assert score is not None
        return score

    async def test_a_box_is_held_against_the_images_that_were_shown_by_then(self, trajectory: Any) -> None:
        regions = [{"box": [0, 0, 50, 50], "image": 1}]
        box = "Image 2 has it at [0, 0, 50, 40]."  # 2000 of 2500 pixels
        score = await self.scored(trajectory, box, box, reference={"regions": regions})
        assert [(each.verdict, each.note) for each in score.evidence] == [
            ("refuted", "there is no image 2"),
            ("supported", "overlaps by 0.80"),
        ]
        assert (score.metrics["claims"], score.metrics["refuted"], score.metrics["recall"]) == (2, 1, 0.5)
        at_once = await self.scored(trajectory, box, box, reference={"regions": regions}, turns="all")
        assert [each.verdict for each in at_once.evidence] == ["supported", "supported"]

    async def test_where_a_tool_is_to_look_and_what_it_showed_is_held_against_no_region(self, trajectory: Any) -> None:
        first = '<think>A mass at [0, 0, 50, 40].</think><tool_call>{"box": [60, 60, 80, 80]}</tool_call>'
        zoomed = Message(text="closer", images=(replace(IMAGE, width=100),), role="tool")
        second = "<think>In image 2 at [0, 0, 50, 50]. In image 1 at [60, 60, 80, 80].</think>"
        task = {"images": (IMAGE,), "reference": {"regions": [[0, 0, 50, 50]]}}
        made = a_conversation(trajectory(first, **task), (zoomed, second))
        score = await HallucinationScorer().score(made)
        assert [(each.verdict, each.source) for each in score.evidence] == [
            ("supported", "reference.regions.0"),
            ("uncertain", "image 1"),
            ("refuted", "reference.regions"),
        ]

    @pytest.mark.parametrize(("turns", "verdicts"), [("each", ["refuted"]), ("all", [])])
    async def test_the_words_of_a_follow_up_are_no_invented_quote(
        self, trajectory: Any, turns: str, verdicts: list[str]
    ) -> None:
        """In the first of single turns nobody had said so yet."""
        quote = 'It is called "it down as a shadow" here.'
        score = await self.scored(trajectory, quote, quote, turns=turns, reference={"sources": {"report": REPORT}})
        assert [each.verdict for each in score.evidence] == verdicts
