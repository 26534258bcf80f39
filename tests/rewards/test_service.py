from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest

from rewards.config import ConfiguredScorer, load_rewards
from rewards.isolation.sandbox import _Slot, _Slots
from rewards.scorer import Abstain, InvalidInput, Score, Scorer
from rewards.service import ABORTED, RewardService, reward_actor
from rl.types import (
    Evidence,
    Measurement,
    Message,
    Observation,
    ScoredTrajectory,
    ScoreRecord,
    ToolCall,
    Trajectory,
    Unscored,
)
from tests.samples import a_trajectory

FOREIGN = '''
import asyncio, ctypes, os, subprocess, sys, threading, time
from dataclasses import dataclass
from rewards.scorer import Abstain, InvalidInput, Score, Scorer

@dataclass(frozen=True, kw_only=True)
class Foreign(Scorer):
    """Does what the text says."""

    greeting: str = "hello"

    async def score(self, trajectory):
        match trajectory.text:
            case "sleep": time.sleep(600)
            case "await": await asyncio.sleep(600)
            case "spin":
                while True: pass
            case "exit": os._exit(3)
            case "sys.exit": sys.exit(4)
            case "segfault": ctypes.string_at(0)
            case "raise": raise RuntimeError("no idea")
            case "recurse": return await self.score(trajectory)
            case "print":
                for _ in range(200): sys.stdout.write("x" * (1 << 20)); sys.stderr.write("x" * (1 << 20))
            case "leak":
                hoard = []
                while True: hoard.append(bytearray(1 << 24)); time.sleep(0.005)
            case "fork":
                if os.fork() == 0: time.sleep(600)
                os._exit(5)
            case "child": subprocess.Popen(["sleep", "600"])
            case "daemon":
                subprocess.Popen(["sleep", "600"], start_new_session=True)
                os._exit(7)
            case "verbose": return Score(1.0, reason="x" * (1 << 25))
            case "later": threading.Timer(0.05, os._exit, [6]).start()
            case "nan": return Score(float("nan"))
            case "nan metric": return Score(1.0, metrics={"claims": float("nan")})
            case "two": return Score(2.0)
            case "float": return 1.0
            case "none": return None
            case "abstain": raise Abstain("not mine")
            case "invalid": raise InvalidInput("cannot read the task")
            case "pid": return Score(1.0, reason=str(os.getpid()))
            case "stderr": return Score(1.0, reason=os.readlink("/proc/self/fd/2"))
            case "slow": time.sleep(0.3)
            case "compute":
                until = time.process_time() + 0.25
                while time.process_time() < until: pass
        return Score(1.0, reason=self.greeting)
'''


@dataclass(frozen=True, kw_only=True)
class Native(Scorer):
    """Does in this process what the text says."""

    isolated: ClassVar[bool] = False

    async def score(self, trajectory: Trajectory) -> Score:
        match trajectory.text:
            case "hang":
                await asyncio.sleep(600)
            case "stubborn":
                try:
                    await asyncio.sleep(600)
                except asyncio.CancelledError:
                    await asyncio.sleep(600)
            case "cancel":
                raise asyncio.CancelledError
            case "raise":
                raise KeyError("no such thing")
            case "sys.exit":
                raise SystemExit(1)
            case "abstain":
                raise Abstain("not mine")
            case "invalid":
                raise InvalidInput("cannot read the task")
            case "float":
                return 1.0  # type: ignore[return-value]
            case "nan":
                return Score(float("nan"))
            case "nan metric":
                return Score(1.0, metrics={"claims": float("nan")})
            case "np place":
                place = np.int64(3)
                return Score(1.0, evidence=(Evidence(claim="x", verdict="supported", start=place, end=place),))
            case "text place":
                return Score(1.0, evidence=(Evidence(claim="x", verdict="supported", start="3", end=4),))  # type: ignore[arg-type]
            case "half":
                return Score(0.5, metrics={"length": 3})
        return Score(1.0)


def native(name: str = "native", *, timeout_s: float = 5.0, **use: Any) -> ConfiguredScorer:
    return ConfiguredScorer(name=name, scorer=Native(), timeout_s=timeout_s, **use)


async def record_of(service: RewardService, made: Trajectory) -> ScoreRecord:
    outcome = await service.score(made)
    return next(iter(outcome.scores.values()))


@pytest.mark.parametrize(
    ("text", "outcome", "reason"),
    [
        ("hang", "failed", "no score within 0.5 s"),
        ("stubborn", "failed", "no score within 0.5 s"),
        ("cancel", "failed", "the scorer cancelled itself"),
        ("raise", "failed", "KeyError: 'no such thing' ("),
        ("sys.exit", "failed", "SystemExit: 1"),
        ("float", "failed", "TypeError: a scorer must return a Score; got 1.0"),
        ("nan", "failed", "ValueError: a score's value must be a finite number in [0, 1]; got nan"),
        ("nan metric", "failed", "ValueError: a score's metrics must be finite numbers; got 'claims': nan"),
        (
            "text place",
            "failed",
            "start and end of evidence are integers, offsets into the text; got start '3' and end 4",
        ),
        ("invalid", "invalid_input", "cannot read the task"),
        ("abstain", "abstained", "not mine"),
    ],
)
async def test_every_failure_is_an_outcome_with_its_reason_and_never_a_zero(
    trajectory: Any, text: str, outcome: str, reason: str
) -> None:
    with RewardService([native(timeout_s=0.5)]) as service:
        made = await service.score(trajectory(text))
        assert isinstance(made, Unscored)
        record = made.scores["native"]
        assert (record.outcome, record.score) == (outcome, None)
        assert reason in record.reason
        assert reason in made.reason or outcome == "abstained"
        assert service.counts() == {"native": {outcome: 1}}


async def test_a_place_is_a_plain_integer_whatever_counted_it(trajectory: Any) -> None:
    with RewardService([native()]) as service:
        score = (await record_of(service, trajectory("np place"))).score
    assert score is not None
    assert [(type(each.start), each.start, each.end) for each in score.evidence] == [(int, 3, 3)]


async def test_an_abstention_leaves_the_other_scores_alone(trajectory: Any) -> None:
    class Silent(Native):
        async def score(self, trajectory: Trajectory) -> Score:
            raise Abstain("nothing to say")

    with RewardService([native(), ConfiguredScorer(name="silent", scorer=Silent(), weight=9.0)]) as service:
        scored = await service.score(trajectory("half"))
    assert isinstance(scored, ScoredTrajectory)
    assert scored.reward == 0.5
    assert scored.scores["silent"].outcome == "abstained"


async def test_deadlines_do_not_run_while_a_scorer_waits_for_its_turn(trajectory: Any) -> None:
    class Busy(Native):
        async def score(self, trajectory: Trajectory) -> Score:
            time.sleep(0.1)
            return Score(1.0)

    busy = ConfiguredScorer(name="busy", scorer=Busy(), timeout_s=0.8)
    with RewardService([busy]) as service:
        outcomes = await service.score_many([trajectory("x") for _ in range(12)])  # 1.2 s in all
    assert all(isinstance(outcome, ScoredTrajectory) for outcome in outcomes)


async def test_the_built_in_scorers_make_the_reward_of_the_design(trajectory: Any) -> None:
    spec = {
        "scorers": {
            "answer": {"use": "answer", "weight": 1.0},
            "grounding": {"use": "hallucination", "weight": 0.5, "min_claims": 2},
            "form": {"use": "rubric", "weight": 0.5, "path": "rewards/cytology.yaml"},
            "safety": {"use": "rubric", "path": "rewards/cytology_safety.yaml", "gate": True},
        }
    }
    text = "<think>\nFindings:\n- radius 17.99 um high\n- area 3\nConclusion: malignant\n</think>\n<answer>{}</answer>"
    record = {"radius": Measurement(value=17.99, unit="um", reading="high"), "area": Measurement(value=5)}
    with RewardService(load_rewards(spec)) as service:
        right, unsafe = await service.score_many(
            [trajectory(text.format("yes"), record=record), trajectory(text.format("no"), record=record)]
        )
        benign = await service.score(
            trajectory(text.format("no").replace("malignant", "benign"), record=record, length_tokens=7)
        )
    assert isinstance(right, ScoredTrajectory)
    # answer 1, grounding 1 of 2, form 12 of 15 points (fewer than three measurements cited)
    assert right.reward == pytest.approx((1.0 * 1 + 0.5 * 0.5 + 0.5 * 12 / 15) / 2)
    assert right.correct is True
    assert isinstance(unsafe, ScoredTrajectory)
    assert (unsafe.reward, unsafe.correct) == (0.0, False)
    assert isinstance(benign, ScoredTrajectory)
    assert benign.reward == pytest.approx((0.0 + 0.5 * 0.5 + 0.5 * 12 / 15) / 2)
    assert set(service.counts()) == {"answer", "grounding", "form", "safety"}


async def test_correctness_is_unknown_where_no_scorer_of_answers_spoke(trajectory: Any) -> None:
    with RewardService([native()]) as service:
        scored = await service.score(trajectory("x"))
    assert isinstance(scored, ScoredTrajectory)
    assert scored.correct is None


async def test_when_keeps_a_scorer_from_other_tasks(trajectory: Any) -> None:
    only = native(when={"answer.type": ["choice", "number"]})
    with RewardService([only, native("always")]) as service:
        other = await service.score(trajectory("x"))
        own = await service.score(trajectory("x", answer={"type": "number", "value": 1}))
    assert (other.scores["native"].outcome, own.scores["native"].outcome) == ("abstained", "scored")


async def test_long_completions_lose_by_the_length_penalty(trajectory: Any) -> None:
    with RewardService([native()], length_penalty=0.2, length_soft_tokens=100) as service:
        outcomes = await service.score_many([trajectory("x", length_tokens=n, max_tokens=200) for n in (100, 150, 200)])
    assert [outcome.reward for outcome in outcomes if isinstance(outcome, ScoredTrajectory)] == [1.0, 0.9, 0.8]


async def test_a_watched_scorer_may_fail_without_costing_the_reward(trajectory: Any) -> None:
    class Broken(Native):
        async def score(self, trajectory: Trajectory) -> Score:
            raise RuntimeError("broken")

    watched = ConfiguredScorer(name="watched", scorer=Broken(), weight=0.0)
    with RewardService([native(), watched]) as service:
        scored = await service.score(trajectory("x"))
    assert isinstance(scored, ScoredTrajectory)
    assert scored.scores["watched"].outcome == "failed"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """A hospital's own scorers, outside the package."""
    path: Path = tmp_path_factory.mktemp("foreign")
    (path / "hospital_scorers.py").write_text(FOREIGN)
    elsewhere = "import os\nif os.environ.get('OPENBLAS_NUM_THREADS') == '1': raise RuntimeError('only at home')\n"
    (path / "broken_scorers.py").write_text(elsewhere + FOREIGN)
    return path


def configured(folder: Path, *, timeout_s: float = 20.0, module: str = "hospital_scorers") -> Any:
    spec = {"scorers": {"foreign": {"use": f"{module}:Foreign", "greeting": "hi", "timeout_s": timeout_s}}}
    return load_rewards(spec, folder)


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[RewardService]:
    with RewardService(configured(folder)) as service:
        yield service


@pytest.fixture(scope="module")
def hasty(folder: Path) -> Iterator[RewardService]:
    with RewardService(configured(folder, timeout_s=1.0)) as service:
        yield service


class TestIsolation:
    @pytest.mark.parametrize(
        ("text", "outcome", "reason"),
        [
            ("fine", "scored", "hi"),
            ("exit", "failed", "the scorer's process exited with status 3"),
            ("sys.exit", "failed", "SystemExit: 4"),
            ("segfault", "failed", "the scorer's process was ended by SIGSEGV"),
            ("raise", "failed", "RuntimeError: no idea ("),
            ("recurse", "failed", "RecursionError"),
            ("nan", "failed", "got nan"),
            ("nan metric", "failed", "got 'claims': nan"),
            ("two", "failed", "in [0, 1]; got 2.0"),
            ("float", "failed", "must return a Score; got 1.0"),
            ("none", "failed", "must return a Score; got None"),
            ("abstain", "abstained", "not mine"),
            ("invalid", "invalid_input", "cannot read the task"),
            ("print", "scored", "hi"),
            ("stderr", "scored", "/dev/null"),
            ("child", "scored", "hi"),
            ("fork", "failed", "the scorer's process exited with status 5"),
            ("daemon", "failed", "the scorer's process exited with status 7"),
            ("verbose", "failed", "the scorer's process sent a frame of 335"),
        ],
    )
    async def test_a_foreign_scorer_costs_its_own_score_at_most(
        self, service: RewardService, trajectory: Any, text: str, outcome: str, reason: str
    ) -> None:
        record = await record_of(service, trajectory(text))
        assert record.outcome == outcome
        assert reason in (record.reason if record.score is None else record.score.reason)
        assert (await record_of(service, trajectory("fine"))).outcome == "scored"

    async def test_it_scores_where_more_files_are_open_than_select_knows(
        self, service: RewardService, trajectory: Any
    ) -> None:
        limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        if most != resource.RLIM_INFINITY and most < 2048:
            pytest.skip(f"no more than {most} files may be open here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, 2048), most))
        with contextlib.ExitStack() as files:
            for _ in range(1024):
                files.enter_context(open(os.devnull))
            assert (await record_of(service, trajectory("fine"))).outcome == "scored"
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))

    @pytest.mark.slow
    @pytest.mark.parametrize("text", ["sleep", "await", "spin"])
    async def test_a_hung_one_is_ended_at_its_deadline_with_all_that_it_forked(
        self, hasty: RewardService, trajectory: Any, text: str
    ) -> None:
        await record_of(hasty, trajectory("fine"))
        before = _descendants()
        record = await record_of(hasty, trajectory(text))
        assert record.outcome == "failed"
        assert "no score within 1 s" in record.reason
        assert record.duration_s >= 1.0
        await record_of(hasty, trajectory("fine"))
        assert not [process for process in _descendants() - before if process.status() != psutil.STATUS_ZOMBIE][1:]

    async def test_it_does_not_share_this_process(self, service: RewardService, trajectory: Any) -> None:
        record = await record_of(service, trajectory("pid"))
        assert record.score is not None
        assert record.score.reason != str(psutil.Process().pid)

    async def test_what_a_score_leaves_behind_does_not_cost_the_next_one(
        self, service: RewardService, trajectory: Any
    ) -> None:
        assert (await record_of(service, trajectory("later"))).outcome == "scored"
        outcomes = await service.score_many([trajectory("slow") for _ in range(4)])
        assert all(isinstance(outcome, ScoredTrajectory) for outcome in outcomes)

    @pytest.mark.slow
    async def test_one_that_eats_memory_is_ended(self, folder: Path, trajectory: Any) -> None:
        with RewardService(configured(folder)) as service:
            service._sandboxes["foreign"]._max_memory_mb = 300.0
            record = await record_of(service, trajectory("leak"))
        assert record.reason == "the scorer's process used more than 300 MB"

    async def test_one_that_cannot_be_loaded_there_says_why(self, folder: Path, trajectory: Any) -> None:
        with RewardService(configured(folder, module="broken_scorers")) as service:
            first, second = [await record_of(service, trajectory("fine")) for _ in range(2)]
        assert "RuntimeError: only at home" in first.reason
        assert (second.outcome, second.reason) == ("failed", first.reason)

    async def test_a_killed_nursery_is_replaced(self, folder: Path, trajectory: Any) -> None:
        with RewardService(configured(folder)) as service:
            before = _descendants()
            await record_of(service, trajectory("fine"))
            for process in _descendants() - before:
                process.kill()
            assert (await record_of(service, trajectory("fine"))).outcome == "scored"

    async def test_closing_ends_every_process(self, folder: Path, trajectory: Any) -> None:
        before = _descendants()
        with RewardService(configured(folder)) as service:
            await service.score_many([trajectory("fine") for _ in range(4)])
            assert _descendants() - before
        _, alive = psutil.wait_procs(_descendants() - before, timeout=20)
        assert not alive

    def test_a_slot_is_held_the_shorter_the_more_have_left_theirs(self) -> None:
        slots = _Slots(2)
        shares_s = []
        with contextlib.ExitStack() as scoring:
            for _ in range(3):
                slot = scoring.enter_context(_Slot(slots))
                shares_s.append(slot.share_of(20.0))
                slot.leave()
            assert shares_s == pytest.approx([1.0, 0.5, 1 / 3])  # 0.05 of the deadline, over 1, 2 and 3
        with _Slot(slots) as slot:
            assert slot.share_of(20.0) == 1.0  # all three are done

    def test_it_works_from_several_event_loops(self, service: RewardService, trajectory: Any) -> None:
        for _ in range(2):
            assert asyncio.run(record_of(service, trajectory("fine"))).outcome == "scored"

    @pytest.mark.slow
    async def test_a_busy_machine_costs_nobody_its_score(self, folder: Path, trajectory: Any) -> None:
        """Six scores for each processor, all at once: each computes for 0.25 s, but is there after 1.5 s at best."""
        with RewardService(configured(folder, timeout_s=1.0)) as service:
            count = 6 * (os.cpu_count() or 1)
            service._sandboxes["foreign"]._slots = _Slots(count)
            outcomes = await service.score_many([trajectory("compute") for _ in range(count)])
        assert [outcome for outcome in outcomes if isinstance(outcome, Unscored)] == []
        assert max(outcome.scores["foreign"].duration_s for outcome in outcomes) > 1.0

    @pytest.mark.slow
    @pytest.mark.parametrize("count", [1, 6, 16])
    @pytest.mark.parametrize("fault", ["sleep", "spin", "await"])
    async def test_neither_a_batch_nor_the_next_one_waits_for_scores_that_hang(
        self, folder: Path, trajectory: Any, fault: str, count: int
    ) -> None:
        """Of 64, all innocent ones are there, and those of the next 64, while those that hang are all still under way:
        so each of these began beside the others, and the batch ends within one deadline of its last innocent score."""
        before = _descendants()
        with RewardService(configured(folder, timeout_s=DISTANT_S)) as service:
            await service.score_many([trajectory("fine") for _ in range(64)])
            scoring = {
                index: asyncio.create_task(service.score(trajectory(text)))
                for index, text in enumerate(_with_faults(fault, count))
            }
            hung = [scoring.pop(index) for index in _fault_places(count)]
            outcomes = [*await asyncio.gather(*scoring.values())]
            outcomes += await service.score_many([trajectory("fine") for _ in range(64)])
            assert [outcome for outcome in outcomes if isinstance(outcome, Unscored)] == []
            assert not any(task.done() for task in hung)
            while len(_descendants() - before) < 1 + count:  # the process that forks, and one for each that hangs
                await asyncio.sleep(0.01)
            service.close()
            assert all(isinstance(outcome, Unscored) for outcome in await asyncio.gather(*hung))

    @pytest.mark.slow
    @pytest.mark.parametrize("count", [1, 6, 16])
    @pytest.mark.parametrize("fault", ["exit", "segfault", "fork", "leak", "daemon", "verbose", "raise"])
    async def test_no_innocent_loses_its_score_to_those_that_break(
        self, folder: Path, trajectory: Any, fault: str, count: int
    ) -> None:
        before = _descendants()
        with RewardService(configured(folder, timeout_s=DISTANT_S)) as service:
            service._sandboxes["foreign"]._max_memory_mb = 200.0
            outcomes = await service.score_many([trajectory(text) for text in _with_faults(fault, count)])
        lost = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, Unscored)]
        assert lost == list(_fault_places(count))
        _, alive = psutil.wait_procs(_descendants() - before, timeout=20)
        assert not alive

    @pytest.mark.slow
    @pytest.mark.parametrize("count", [1, 6, 16])
    async def test_a_gigabyte_of_output_costs_nobody_a_score(self, folder: Path, trajectory: Any, count: int) -> None:
        with RewardService(configured(folder, timeout_s=DISTANT_S)) as service:
            outcomes = await service.score_many([trajectory(text) for text in _with_faults("print", count)])
        assert all(isinstance(outcome, ScoredTrajectory) for outcome in outcomes)


DISTANT_S = 300.0
"""A deadline that no test reaches."""


def _fault_places(count: int) -> range:
    return range(0, 64, 64 // count)[:count]


def _with_faults(fault: str, count: int) -> list[str]:
    return [fault if index in _fault_places(count) else "fine" for index in range(64)]


def _descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


@pytest.mark.slow
async def test_the_service_works_as_a_ray_actor(ray_session: Any, trajectory: Any, tmp_path: Path) -> None:
    (tmp_path / "ray_hospital_scorers.py").write_text(FOREIGN)
    spec = {"scorers": {"answer": {"use": "answer"}, "foreign": {"use": "ray_hospital_scorers:Foreign"}}}
    actor = reward_actor(num_cpus=1).remote(load_rewards(spec, tmp_path))
    outcomes = await asyncio.wait_for(
        actor.score_many.remote([trajectory("<answer>yes</answer>"), trajectory("exit")]), timeout=60
    )
    assert [type(outcome).__name__ for outcome in outcomes] == ["ScoredTrajectory", "Unscored"]
    assert outcomes[0].reward == 1.0
    counts = await actor.counts.remote()
    assert counts["foreign"] == {"scored": 1, "failed": 1}
    await actor.close.remote()
    ray_session.kill(actor)


async def test_an_aborted_completion_is_no_answer_and_is_not_scored() -> None:
    scorers = load_rewards({"scorers": {"answer": {"use": "answer"}}})
    with RewardService(scorers) as service:
        outcome = await service.score(a_trajectory("", finish_reason="abort"))
    assert isinstance(outcome, Unscored) and "aborted" in outcome.reason


async def test_a_completion_that_a_tool_broke_off_is_told_with_the_tool_and_what_it_said() -> None:
    calls = (
        ToolCall(name="zoom", arguments={}, result="refused: no image 2", ok=False, turn=0),
        ToolCall(name="dose", arguments={}, result="OSError: " + "x" * 300, ok=False, turn=1),
        ToolCall(name="zoom", arguments={}, result="closer", turn=1),
    )
    told = Observation(message=Message(text="refused: no image 2", role="tool"), place=4)
    made = a_trajectory("look\n\nask", finish_reason="abort", observations=(told,), tool_calls=calls)
    with RewardService(load_rewards({"scorers": {"answer": {"use": "answer"}}})) as service:
        outcome = await service.score(made)
        later = await service.score(replace(made, tool_calls=calls[:1]))
    assert isinstance(outcome, Unscored) and isinstance(later, Unscored)
    assert outcome.reason == f"{ABORTED} (the tool 'dose' said: {('OSError: ' + 'x' * 300)[:200]})"
    assert later.reason == ABORTED  # the refusal was told, and is not what broke it off
