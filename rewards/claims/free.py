"""Free claims: what a trace says in sentences of its own, taken apart and held against the evidence by a judge.

Atomic claims with the three verdicts of Baichuan-M3's fact checking: supported, refuted, uncertain. What a rule has
judged already is not asked about again, and an option that is merely recited is no claim.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from entities.match import fold
from rewards.claims.claim import Claim, bounded, claim_text, without_recited_options
from rewards.judge import Judge, JudgeFailure, Reply, together
from rewards.judges.prompt import Question
from rewards.scorer import Trajectory
from rewards.trace import Span
from rewards.turns import asked
from rl.types import Verdict

CLAIMS_PER_QUESTION = 20
MAX_QUOTE_CHARS = 500

EXTRACT = (
    "You take a text about a patient apart into its factual claims. Each claim states one fact (a finding, a "
    "measurement, a diagnosis, a mechanism, what a source says) in one short sentence that can be understood alone, "
    "and comes with the `quote`: the consecutive words of the text that make it, copied exactly. A negated statement "
    "is a claim too. Leave out questions, plans, conjectures that the text itself rejects, and answer options that "
    "are only recited. Do not judge and do not add: what the text does not say is no claim of it."
)
VERIFY = (
    "You check claims about a patient against the evidence, and against nothing else: neither plausibility nor what "
    "you know. `supported`: the evidence says so, or it follows from it at once. `refuted`: the evidence says "
    "otherwise. `uncertain`: it says neither. Give one verdict for each claim, by its number, with the words of the "
    "evidence that decide it as its `basis` (empty where there are none)."
)


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


CLAIMS_SCHEMA = _object(
    claims={"type": "array", "items": _object(claim={"type": "string"}, quote={"type": "string"})},
)
VERDICTS_SCHEMA = _object(
    verdicts={
        "type": "array",
        "items": _object(
            number={"type": "integer"},
            basis={"type": "string"},
            verdict={"type": "string", "enum": ["supported", "refuted", "uncertain"]},
        ),
    }
)


async def free_claims(trajectory: Trajectory, judge: Judge, *, known: Sequence[Claim]) -> list[Claim]:
    """The claims of the trace that are none of the ``known`` ones, with the judge's verdicts.

    Raises JudgeFailure, and TooManyClaims.
    """
    text = claim_text(trajectory).before_answer
    if not text.text:
        return []
    found = await judge.ask(
        Question(
            instructions=EXTRACT,
            material={"question": asked(trajectory), "text": text.text},
            task="Which factual claims does the text in the data make?",
            schema=CLAIMS_SCHEMA,
        )
    )
    stated = bounded(_placed(found.content["claims"], text))
    taken = [(claim.span.start, claim.span.end) for claim in known]
    new = [each for each in stated if not any(each.span.start < end and start < each.span.end for start, end in taken)]
    return await _judged(without_recited_options(new, trajectory), trajectory, judge)


def _placed(claims: Sequence[Mapping[str, str]], text: Span) -> list[Claim]:
    """The claims at their place in the text. One whose words do not stand there is not the trace's, and left out.

    Raises JudgeFailure where none does: then the judge has read something else.
    """
    found = []
    for claim in claims:
        words = [re.escape(word) for word in claim["quote"][:MAX_QUOTE_CHARS].split()]
        match = re.search(r"\s{1,8}".join(words), text.text) if words else None
        if match and claim["claim"].strip():
            span = Span(text.start + match.start(), text.start + match.end(), match[0])
            found.append(_claim(span, "uncertain", statement=claim["claim"].strip()))
    if claims and not found:
        raise JudgeFailure("the words of none of the claims that the judge found stand in the text")
    return found


async def _judged(claims: Sequence[Claim], trajectory: Trajectory, judge: Judge) -> list[Claim]:
    parts = [claims[at : at + CLAIMS_PER_QUESTION] for at in range(0, len(claims), CLAIMS_PER_QUESTION)]
    verdicts = await together(_verdicts([claim.note for claim in part], trajectory, judge) for part in parts)
    return [
        _claim(claim.span, verdict, statement=claim.note, basis=basis)
        for part, given in zip(parts, verdicts, strict=True)
        for claim, (verdict, basis) in zip(part, given, strict=True)
    ]


async def _verdicts(claims: Sequence[str], trajectory: Trajectory, judge: Judge) -> list[tuple[Verdict, str]]:
    """A verdict and what it rests on, for each claim. Where no verdict has most of the votes, it is uncertain."""
    replies = await judge.poll(
        Question(
            instructions=VERIFY,
            material={"evidence": _evidence(trajectory), "claims": dict(enumerate(claims, start=1))},
            task="Does the evidence in the data support or refute each of the claims?",
            schema=VERDICTS_SCHEMA,
        )
    )
    votes = [_by_number(reply, len(claims)) for reply in replies]
    decided: list[tuple[Verdict, str]] = []
    for number in range(1, len(claims) + 1):
        given = [vote[number] for vote in votes]
        most, count = Counter(each["verdict"] for each in given).most_common(1)[0]
        verdict: Verdict = most if 2 * count > len(given) else "uncertain"
        basis = next((each["basis"] for each in given if each["verdict"] == verdict), "")
        shares = f" ({count} of {len(given)} votes)" if len(given) > 1 else ""
        decided.append((verdict, f"{judge.name}{shares}: {basis[:200] or 'no basis given'}"))
    return decided


def _by_number(reply: Reply, count: int) -> dict[int, Mapping[str, Any]]:
    verdicts = reply.content["verdicts"]
    numbers = sorted(each["number"] for each in verdicts)
    if numbers != list(range(1, count + 1)):
        raise JudgeFailure(f"malformed verdict: of {count} claims it judged the numbers {numbers[:30]}")
    return {each["number"]: each for each in verdicts}


def _evidence(trajectory: Trajectory) -> dict[str, Any]:
    task = trajectory.task
    parts = {
        "question": "\n".join(filter(None, (task.system, asked(trajectory)))),
        "record": {
            name: " ".join(filter(None, (f"{each.value:g}", each.unit, each.reading)))
            for name, each in task.record.items()
        },
        "reference": dict(task.reference),
        "tools": {f"{index}. {call.name}": call.result for index, call in enumerate(trajectory.tool_calls) if call.ok},
    }
    return {name: part for name, part in parts.items() if part}


def _claim(span: Span, verdict: Verdict, *, statement: str, basis: str = "") -> Claim:
    note = f"{statement[:MAX_QUOTE_CHARS]} ({basis})" if basis else statement[:MAX_QUOTE_CHARS]
    return Claim(kind="free", subject=fold(statement), span=span, verdict=verdict, source="judge", note=note)
