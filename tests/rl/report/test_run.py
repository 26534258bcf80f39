"""The report: complete in itself, true to the run's folder, and safe whatever a model wrote."""

import base64
import hashlib
import io
import json
import math
import random
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from rl.errors import LogError
from rl.metrics import METRICS, MetricsLog, declaration
from rl.report.page import _by_chart
from rl.report.pictures import Pictures
from rl.report.run import write_report
from rl.types import (
    EncodedImage,
    Evidence,
    Group,
    Measurement,
    SamplingParams,
    Score,
    ScoredTrajectory,
    ScoreRecord,
    Task,
    Trajectory,
    Unscored,
    Verdict,
)
from rollouts.log import LoggedStep, write_step

ATTACK = "<script>document.title='owned'</script>\"'><img src=x onerror=\"document.title='owned'\">"
TRACE = "<think>radius 17.9 high; texture 12.0 low</think><answer>yes</answer>"


class Page(HTMLParser):
    """The page as a browser takes it apart: its elements with attributes and texts, and whether they close."""

    void = ("meta", "img", "input", "br", "hr", "link")

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        for tag in set(self.open):
            self.texts.setdefault(tag, []).append(text)

    def text(self, tag: str = "body") -> str:
        return "".join(self.texts.get(tag, []))

    def all(self, tag: str, class_: str = "") -> list[dict[str, str]]:
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and (not class_ or class_ in attributes.get("class", "").split())
        ]


def png(side: int = 8, *, noise: bool = False) -> EncodedImage:
    picture = Image.new("RGB", (side, side), "plum")
    if noise:
        picture = Image.frombytes("RGB", (side, side), random.Random(side).randbytes(side * side * 3))
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return EncodedImage(content=encoded.getvalue(), width=side, height=side, source=f"{side}.png")


def a_task(name: str) -> Task:
    return Task(
        id=name,
        question="Is the mass malignant?",
        answer={"type": "yes_no", "value": "yes"},
        images=(png(),),
        record={"radius": Measurement(value=17.9, unit="um", reading="high")},
    )


def a_trajectory(task: Task, name: str, *, text: str = TRACE, index: int = 0) -> Trajectory:
    return Trajectory(
        id=name,
        task=task,
        sample_index=index,
        prompt_token_ids=np.arange(3, dtype=np.int32),
        completion_token_ids=np.arange(5, dtype=np.int32),
        completion_mask=np.ones(5, np.bool_),
        rollout_logprobs=np.zeros(5, np.float32),
        text=text,
        finish_reason="stop",
        policy_version=0,
        seed=0,
        sampling=SamplingParams(),
    )


def scored(trajectory: Trajectory, reward: float, *, correct: bool | None, refuted: int = 0) -> ScoredTrajectory:
    verdict: Verdict = "refuted" if refuted else "supported"
    spot = Evidence(claim="radius 17.9 high", verdict=verdict, start=7, end=23, source="record.radius", note="as cited")
    facts = Score(reward, reason="one claim", evidence=(spot,), metrics={"claims": 1, verdict: 1})
    answer = Score(float(bool(correct)), reason="read the answer block")
    records = {
        name: ScoreRecord(scorer=name, version="v1", outcome="scored", score=score)
        for name, score in (("answer", answer), ("facts", facts))
    }
    return ScoredTrajectory(trajectory=trajectory, reward=reward, scores=records, correct=correct)


def unscored(trajectory: Trajectory) -> Unscored:
    failed = ScoreRecord(scorer="judge", version="v1", outcome="failed", reason="no answer within 30 s")
    return Unscored(trajectory=trajectory, scores={"judge": failed}, reason="judge failed")


def evaluation(step: int, outcomes: dict[str, bool | None]) -> LoggedStep:
    groups = []
    for name, correct in outcomes.items():
        task = a_task(name)
        item = scored(a_trajectory(task, f"{step}/{name}"), 0.9 if correct else 0.2, correct=correct)
        groups.append(Group(task=task, scored=(item,)))
    return LoggedStep(step=step, groups=groups, kind="eval")


def training(step: int) -> LoggedStep:
    task = a_task("trained-on")
    good = scored(a_trajectory(task, "good"), 1.0, correct=True)
    bad = scored(a_trajectory(task, "bad", index=1), 0.1, correct=False, refuted=1)
    lost = unscored(a_trajectory(task, "lost", index=2))
    group = Group(task=task, scored=(good, bad), unscored=(lost,))
    return LoggedStep(step=step, groups=[group], advantages={"good": 1.25, "bad": -1.25})


def a_run(folder: Path, *, steps: int = 4, accuracies: tuple[float, float] = (0.4, 0.8)) -> Path:
    with MetricsLog(folder / "metrics.jsonl") as log:
        log.record(0, {"eval/accuracy": accuracies[0], "eval/reward": 0.5, "publication/check_difference": 2e-6})
        for step in range(1, steps + 1):
            log.record(step, {"reward/mean": 0.5 + step / 100, "score/answer": 0.5, "score/facts": step / 10,
                              "time/generate_s": 2.0, "time/update_s": 1.0, "loss/learning_rate": 1e-4,
                              "throughput/tokens": 1000})  # fmt: skip
        log.record(steps, {"eval/accuracy": accuracies[1], "eval/reward": 0.75})
    write_step(folder, evaluation(0, {"a": False, "b": True, "c": False, "d": True, "e": False}))
    write_step(folder, evaluation(steps, {"a": True, "b": False, "c": False, "d": True, "e": True}))
    write_step(folder, training(1))
    summary = {"accuracy_before": accuracies[0], "accuracy_after": accuracies[1], "reward_before": 0.5}
    summary |= {"reward_after": 0.75, "steps": steps, "wall_s": 192.0, "yardstick_accuracy": 0.95, "seed": 7}
    summary |= {"unscored": 1, "tokens_total": 4000, "finished": True}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "versions.json").write_text(json.dumps({"medrl": "0.1.0", "torch": "2.13.0"}))
    scorers = "scorers: {answer: {use: answer}, facts: {use: hallucination, weight: 0.5}}"
    (folder / "config.yaml").write_text(f"max_steps: {steps}\nrewards: {{{scorers}}}\n")
    return folder


def report(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_the_verdict_stands_at_the_top_in_words_and_numbers(tmp_path: Path) -> None:
    page = report(a_run(tmp_path / "quickstart"))
    assert page.text("h1") == "Held-out accuracy rose from 40.0% to 80.0%."
    for shown in (
        "+40.0 points",
        "+0.250",
        "3:12",
        "4,000",
        "seed 7",
        "Logistic regression on the same measurements: 95.0%",
    ):
        assert shown in page.text()
    assert page.text("title").startswith("quickstart")


@pytest.mark.parametrize(
    ("accuracies", "headline"),
    [((0.8, 0.4), "fell from 80.0% to 40.0%"), ((0.4, 0.4), "stayed at 40.0%")],
)
def test_a_verdict_that_is_no_success_is_not_told_as_one(
    accuracies: tuple[float, float], headline: str, tmp_path: Path
) -> None:
    assert headline in report(a_run(tmp_path, accuracies=accuracies)).text("h1")


def test_the_page_loads_nothing_and_runs_no_script_but_its_own(tmp_path: Path) -> None:
    page = report(a_run(tmp_path))
    script = page.text("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert len(page.all("script")) == 1 and "src" not in page.all("script")[0]
    assert not page.all("link")
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert all(link["href"].startswith("#") for link in page.all("a"))
    assert not re.search(r"url\(|@import|https?://", page.text("style") + script)


def an_attack() -> LoggedStep:
    """A step whose every text tries to leave its place."""
    task = replace(
        a_task(ATTACK),
        question=ATTACK,
        system=ATTACK,
        answer={"value": ATTACK},
        record={ATTACK: Measurement(value=1.0, unit=ATTACK, reading=ATTACK)},
        images=(replace(png(), source=ATTACK),),
    )
    text = f"<think>{ATTACK}</think><answer>{ATTACK}</answer>"
    spot = Evidence(claim=ATTACK, verdict="refuted", start=9, end=30, source=ATTACK, note=ATTACK)
    score = Score(0.5, reason=ATTACK, evidence=(spot,), metrics={"claims": 1, "refuted": 1})
    record = ScoreRecord(scorer=ATTACK, version=ATTACK, outcome="scored", score=score)
    item = ScoredTrajectory(trajectory=a_trajectory(task, "x", text=text), reward=0.5, scores={ATTACK: record})
    lost = Unscored(trajectory=a_trajectory(task, "y", text=ATTACK), scores={}, reason=ATTACK)
    return LoggedStep(step=1, groups=[Group(task=task, scored=(item,), unscored=(lost,))])


def test_a_script_in_anything_that_was_logged_does_nothing(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    write_step(folder, an_attack())
    (folder / "versions.json").write_text(json.dumps({ATTACK: ATTACK}))
    (folder / "config.yaml").write_text(f"# {ATTACK}\n")
    page = report(folder)
    assert len(page.all("script")) == 1
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.text("main").count("<script>document.title='owned'</script>") > 10  # all of it can be read


@pytest.mark.slow
def test_in_a_real_browser_the_script_of_a_completion_does_not_run(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    folder = a_run(tmp_path / "run")
    write_step(folder, an_attack())
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--dump-dom"]
    page = write_report(folder).as_uri()
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    dumped = subprocess.run([browser, *flags, profile, page], capture_output=True, text=True, timeout=120).stdout
    assert "<title>run · medrl report</title>" in dumped
    assert '<div class="readout"' in dumped  # while the page's own script did run


def test_held_out_cases_stand_side_by_side_and_are_counted_by_what_training_did_to_them(tmp_path: Path) -> None:
    page = report(a_run(tmp_path))
    cards = {card["class"].removeprefix("card ") for card in page.all("details", "card") if "trained" not in str(card)}
    assert {"fixed", "broke", "stayed-wrong", "stayed-right"} <= cards
    assert len(page.all("div", "pair")) == 5
    assert "2 wrong → right" in page.text() and "1 right → wrong" in page.text()


def test_held_out_cases_without_a_right_answer_are_told_by_their_reward(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    for step, reward in ((0, 0.2), (4, 0.6)):
        task = a_task("free text")
        item = scored(a_trajectory(task, "t"), reward, correct=None)
        write_step(folder, LoggedStep(step=step, groups=[Group(task=task, scored=(item,))], kind="eval"))
    assert len(report(folder).all("details", "better")) == 1


def test_training_trajectories_can_be_filtered_and_tell_scores_reasons_and_advantage(tmp_path: Path) -> None:
    page = report(a_run(tmp_path))
    offered = {choice["value"] for choice in page.all("input") if choice["name"] == "training"}
    assert offered == {"all", "best", "worst", "wrong", "hallucinated", "unscored", "strongest"}
    assert len(page.all("details", "hallucinated")) == 1
    assert len(page.all("details", "unscored")) == 1
    text = page.text()
    for shown in ("advantage +1.25", "advantage −1.25", "50.0% of the loss weight", "Unscored: judge failed",
                  "no answer within 30 s",
                  "read the answer block", "weight 0.5", "✗ 1 refuted", "record.radius · as cited"):  # fmt: skip
        assert shown in text


@pytest.mark.parametrize("missing", ["summary.json", "config.yaml", "versions.json", "metrics.jsonl", "trajectories"])
def test_a_folder_that_lacks_a_part_is_reported_as_far_as_it_goes(missing: str, tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = report(folder)
    assert page.text("h1").startswith("Held-out accuracy rose from 40.0% to 80.0%")
    if missing in ("config.yaml", "versions.json"):
        assert f"{missing} is missing." in page.text("ul")
    if missing == "summary.json":
        assert "This run did not finish: its last recorded step is 4 of 4." in page.text("ul")


def test_an_interrupted_run_says_so_though_it_has_a_summary(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"finished": False}))
    assert "This run did not finish" in report(folder).text("ul")


def test_damaged_parts_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    (folder / "summary.json").write_text('{"accuracy_before": 0.')
    (folder / "config.yaml").write_text("a: [")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "from/another/release": 1}\n{"step": 6, "rewa')
    (folder / "trajectories" / "step_000001.parquet").write_bytes(b"PAR1")
    notes = report(folder).text("ul")
    for shown in ("summary.json is damaged", "config.yaml is damaged", "step_000001.parquet cannot be read",
                  "does not know: from/another/release"):  # fmt: skip
        assert shown in notes


def test_a_number_that_was_not_finite_is_pointed_out(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    with MetricsLog(folder / "metrics.jsonl", resume_at=4) as log:
        log.record(4, {"loss/grad_norm": math.inf})
    assert "loss/grad_norm was not a finite number at 1 step: 4." in report(folder).text("ul")


def test_a_folder_with_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"holds neither metrics\.jsonl nor trajectories"):
        write_report(tmp_path)


def test_an_evaluation_alone_is_reported_too(tmp_path: Path) -> None:
    write_step(tmp_path, evaluation(0, {"a": True, "b": False}))
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.record(0, {"eval/accuracy": 0.5, "eval/reward": 0.55})
    (tmp_path / "summary.json").write_text(json.dumps({"policy": "p", "accuracy": 0.5, "reward": 0.55}))
    page = report(tmp_path)
    assert page.text("h1") == "Held-out accuracy is 50.0%."
    assert "Evaluation report" in page.text()
    assert len(page.all("details", "card")) == 2


def test_images_are_inlined_shrunk_when_large_and_named_beyond_the_budget() -> None:
    pictures = Pictures(budget_bytes=600_000)
    small, large = pictures.element(png(), "small"), pictures.element(png(900, noise=True), "large")
    assert '<img src="data:image/png;base64,' in small
    assert '<img src="data:image/jpeg;base64,' in large and len(large) < 500_000 < len(png(900, noise=True).content)
    assert 'alt="large" width="900" height="900"' in large
    beyond = pictures.element(png(901, noise=True), "too much")
    assert "<img" not in beyond and "901.png stays in the run&#x27;s folder" in beyond


def test_every_chart_of_the_metrics_is_drawn_and_what_never_changes_is_one_line(tmp_path: Path) -> None:
    page = report(a_run(tmp_path))
    titles = page.text("figcaption")
    for title in ("Accuracy", "Reward", "Reward components", "Time per step"):
        assert title in titles
    assert "Learning rate" not in titles
    assert "Learning rate 1e-4" in page.text("p")
    labels = [svg["aria-label"] for svg in page.all("svg", "chart")]
    assert "Accuracy: held-out 40.0% at step 0, 80.0% at step 4" in labels


def test_a_replay_gets_the_page_of_its_comparison_and_an_evaluation_that_of_its_results(tmp_path: Path) -> None:
    source, replay, suite = a_run(tmp_path / "source"), tmp_path / "replay", tmp_path / "suite"
    write_step(replay, training(1))
    (replay / "replay.json").write_text(json.dumps({"source": str(source), "scorers": {}}))
    assert report(replay).text("h1") == "Both scorings agree on all 3 trajectories."
    suite.mkdir()
    results = {"model": "a policy", "seed": 0, "sampling": {"temperature": 0.0}, "benchmarks": {}}
    (suite / "results.json").write_text(json.dumps(results))
    assert report(suite).text("h1") == "a policy"


def test_a_replay_whose_source_is_gone_is_an_error(tmp_path: Path) -> None:
    write_step(tmp_path, training(1))
    (tmp_path / "replay.json").write_text(json.dumps({"source": str(tmp_path / "gone"), "scorers": {}}))
    with pytest.raises(LogError, match="gone"):
        write_report(tmp_path)


def test_each_recorded_metric_is_drawn_under_its_own_title_alone() -> None:
    names = [declared.name.replace("<scorer>", "answer").replace("<verdict>", "refuted") for declared in METRICS]
    names = [name for name in names if "<" not in name]
    charts = _by_chart(SimpleNamespace(metrics=dict.fromkeys(names)))  # type: ignore[arg-type]
    drawn = [metric for metrics in charts.values() for metric in metrics]
    assert all(metric.chart == title for title, metrics in charts.items() for metric in metrics)
    assert sorted(metric.name for metric in drawn) == sorted(n for n in names if declaration(n).chart)
