"""A suite on a model behind an endpoint, from the command line to results.json, and what can be made of it later."""

from __future__ import annotations

import importlib.resources
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import rl.benchmarks.endpoint
from rl.benchmarks.run import entity_frequencies
from rl.cli import main
from rl.types import Message
from rollouts.chat_server import ChatServer, ChatServerSettings
from rollouts.log import iter_rows, read_step, write_step
from tests.rewards.fake_judge import Answer, FakeServer, obedient, serve, user_text, verdict
from tests.rl.conftest import medrl
from tests.samples import a_task

BENCHMARK = """
title: Arithmetic
citation: "Nobody 2020"
licence: MIT
source: {shipped: rows.jsonl}
split: test
modality: "{topic}"
metric: accuracy
slices: [level]
checked: run
fields: the rows
mapping:
  id: id
  question: question
  answer: {type: number, column: answer}
  extra: [topic, level]
rewards: {scorers: {answer: {use: answer}}}
"""
ROWS = [
    {"id": f"{a}+{b}", "question": f"What is {a} + {b}?", "answer": a + b, "topic": "even" if a % 2 == 0 else "odd"}
    | {"level": b}
    for a in range(4)
    for b in (1, 2)
]


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "sums.yaml").write_text(BENCHMARK)
    return tmp_path / "sums.yaml"


def adds(body: dict[str, Any]) -> Answer:
    """Right for even numbers, off by one for odd ones; breaks on 3 + 2."""
    first, second = (int(word) for word in user_text(body).rstrip("?").split() if word.isdecimal())
    if (first, second) == (3, 2):
        return Answer("", status=400, body=b"broken")
    return Answer(f"<think>x</think><answer>{first + second + first % 2}")


def better(body: dict[str, Any]) -> Answer:
    first, second = (int(word) for word in user_text(body).rstrip("?").split() if word.isdecimal())
    return Answer(f"<answer>{first + second}")


def evaluate(benchmark: Path, server: FakeServer, out: Path, *arguments: object) -> dict[str, Any]:
    asked = ["evaluate", "--benchmarks", benchmark, "--endpoint", server.url, "--model", "m", "--out", out]
    assert main([str(each) for each in (*asked, *arguments)]) == 0
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    schema = importlib.resources.files("rl.benchmarks").joinpath("results.schema.json").read_text()
    Draft202012Validator(json.loads(schema)).validate(results)
    return results


@pytest.fixture
def evaluated(benchmark: Path, tmp_path: Path) -> Iterator[Path]:
    with serve(adds) as server:
        evaluate(benchmark, server, tmp_path / "first")
    yield tmp_path / "first"


def sums(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())["benchmarks"]["sums"]
    return found


def test_a_lost_answer_is_counted_and_never_wrong(evaluated: Path) -> None:
    """Four even sums are right, three odd ones wrong, one lost: 4/7 of eight tasks."""
    found = sums(evaluated)
    assert (found["tasks"], found["answered"], found["lost"], found["unscored"]) == (8, 7, 1, 0)
    assert found["value"] == pytest.approx(4 / 7)
    assert found["lost_reasons"] == {"HTTP 400 broken (attempt 1 of 4)": 1}


def test_results_are_broken_down_by_modality_and_slices(evaluated: Path) -> None:
    tables = sums(evaluated)["tables"]
    assert [(part["name"], part["answered"], part["value"]) for part in tables["modality"]] == [
        ("even", 4, 1.0),
        ("odd", 3, 0.0),
    ]
    assert [(part["name"], part["answered"]) for part in tables["level"]] == [("1", 4), ("2", 3)]
    assert tables["modality"][0]["interval"] is None  # all are right: no spread to speak of


def test_the_page_leads_to_every_answer_and_escapes_what_servers_say(
    benchmark: Path, evaluated: Path, tmp_path: Path
) -> None:
    page = (evaluated / "report.html").read_text()
    assert 'href="sums/report.html"' in page and (evaluated / "sums" / "report.html").is_file()
    assert "Lost 1: HTTP 400 broken (attempt 1 of 4)" in page and "0.571" in page
    script = Answer("", status=400, body=b"<script>alert(1)</script>")
    with serve(lambda body: script if "3 + 2" in user_text(body) else better(body)) as server:
        evaluate(benchmark, server, tmp_path / "out")
    assert "<script>alert" not in (tmp_path / "out" / "report.html").read_text()


def test_the_same_numbers_come_from_the_log_alone(
    evaluated: Path, benchmark: Path, tmp_path: Path, capsys: Any
) -> None:
    benchmark.unlink()
    (tmp_path / "rows.jsonl").unlink()
    assert main(["evaluate", "--rescore", str(evaluated), "--out", str(tmp_path / "again")]) == 0
    assert "the same numbers as before" in capsys.readouterr().out
    again, first = sums(tmp_path / "again"), sums(evaluated)
    assert again.pop("lost_reasons") and first.pop("lost_reasons")
    assert again == first


def test_two_models_are_compared_on_the_tasks_that_both_answered(
    evaluated: Path, benchmark: Path, tmp_path: Path, capsys: Any
) -> None:
    """Of seven tasks the second is right on the three that the first was wrong on: p = 2 · (1/2)³."""
    with serve(better) as server:
        evaluate(benchmark, server, tmp_path / "second")
    assert main(["compare", str(evaluated), str(tmp_path / "second"), "--out", str(tmp_path / "compared")]) == 0
    found = json.loads((tmp_path / "compared" / "comparison.json").read_text())["benchmarks"]["sums"]
    assert (found["tasks"], found["better"], found["worse"], found["test"]) == (7, 3, 0, "exact McNemar")
    assert found["p"] == pytest.approx(0.25)
    assert "p 0.2500 (exact McNemar)" in capsys.readouterr().out


def test_a_benchmark_of_several_turns_is_asked_and_kept_turn_by_turn(benchmark: Path, tmp_path: Path) -> None:
    """The second answer, which counts, is the right one; the first never is."""
    benchmark.write_text(BENCHMARK.replace("  extra:", '  follow_ups: ["Again: {question}"]\n  extra:'))

    def doubts(body: dict[str, Any]) -> Answer:
        return better(body) if len(body["messages"]) == 4 else Answer("<answer>99")

    with serve(doubts) as server:
        found = evaluate(benchmark, server, tmp_path / "out")["benchmarks"]["sums"]
    assert (found["value"], found["answered"], len(server.requests)) == (1.0, 8, 16)
    (group, *_) = read_step(tmp_path / "out" / "sums", 0, kind="eval").groups
    trajectory = group.scored[0].trajectory
    assert trajectory.turns == ("<answer>99</answer>", "<answer>1</answer>")  # What is 0 + 1?
    assert trajectory.observations[0].message.text == "Again: What is 0 + 1?"


def test_a_question_that_goes_on_otherwise_is_another_question(evaluated: Path, tmp_path: Path, capsys: Any) -> None:
    other = shutil.copytree(evaluated, tmp_path / "other")
    logged = read_step(other / "sums", 0, kind="eval")
    doubted = [replace(each, task=replace(each.task, follow_ups=(Message(text="Sure?"),))) for each in logged.groups]
    write_step(other / "sums", replace(logged, groups=doubted))
    assert main(["compare", str(evaluated), str(other)]) == 2
    assert "is another question in" in capsys.readouterr().err


def test_several_samples_give_pass_at_k_and_a_majority(benchmark: Path, tmp_path: Path) -> None:
    """Of three samples, told apart by their seeds, two are right: pass@1 2/3, pass@2 and the majority 1."""
    seen: dict[str, int] = {}

    def judgement(body: dict[str, Any]) -> Answer:
        assert body["temperature"] == 1.0
        number = seen[user_text(body)] = seen.get(user_text(body), 0) + 1
        return better(body) if number < 3 else Answer("<answer>99")

    with serve(judgement) as server:
        found = evaluate(benchmark, server, tmp_path / "out", "--samples", 3, "--pass-at", "1,2")["benchmarks"]["sums"]
    assert found["pass_at"] == {"1": pytest.approx(2 / 3), "2": 1.0} and found["majority"] == 1.0
    assert found["value"] == pytest.approx(2 / 3) and found["complete"] == 8


def test_tasks_that_were_trained_on_are_told_apart(benchmark: Path, tmp_path: Path) -> None:
    long = {"id": "long", "question": "One two three four five six seven eight 1 + 1?", "answer": 2}
    with (tmp_path / "rows.jsonl").open("a") as rows:
        rows.write(json.dumps(long | {"topic": "odd", "level": 1}) + "\n")
    (tmp_path / "train.jsonl").write_text(
        json.dumps(long | {"part": "train"}) + "\n" + json.dumps(ROWS[0] | {"part": "eval"})
    )
    (tmp_path / "mapping.yaml").write_text(
        "question: question\nanswer: {type: number, column: answer}\nsplit: {column: part, train: train, eval: eval}\n"
    )
    (tmp_path / "train.yaml").write_text(
        f"tasks: {{source: {tmp_path}/train.jsonl, mapping: mapping.yaml}}\n"
        "rewards: {scorers: {answer: {use: answer}}}\n"
    )
    with serve(better) as server:
        found = evaluate(benchmark, server, tmp_path / "out", "--trained-on", tmp_path / "train.yaml")
    contamination = found["benchmarks"]["sums"]["contamination"]
    assert contamination["tasks"] == 1 and contamination["without"]["answered"] == 8


def test_a_reply_that_says_nothing_follows_no_instruction(tmp_path: Path) -> None:
    with serve(lambda _: Answer("<think>No forbidden word here.</think>")) as server:
        asked = ["evaluate", "--benchmarks", "instructions", "--endpoint", server.url, "--model", "m"]
        assert main([*asked, "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["benchmarks"]["instructions"]["value"] == 0.0


def test_frequencies_are_those_of_the_rarest_entity(tmp_path: Path) -> None:
    from entities.tree import EntityTree

    (tmp_path / "tree.csv").write_text("id,name,synonyms,parents\na,edema,,\nb,mass,,\n")
    tree = EntityTree.load(tmp_path / "tree.csv")
    corpus = [a_task("1", question="Edema?"), a_task("2", question="Edema or mass?"), a_task("3", question="Edema.")]
    asked = [a_task("x", question="Edema and mass?"), a_task("y", question="Edema?"), a_task("z", question="What?")]
    assert entity_frequencies(asked, tree, corpus=corpus) == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "name one model to evaluate"),
        (["--endpoint", "http://h/v1"], "--endpoint needs --model NAME"),
        (
            ["--endpoint", "ftp://h", "--model", "m"],
            "--endpoint.url must be the address of an OpenAI-compatible server",
        ),
        (
            ["--endpoint", "http://h/v1", "--model", "m", "--api-key-env", "NO_SUCH_KEY"],
            "NO_SUCH_KEY must hold the key",
        ),
        (
            ["--endpoint", "http://h/v1", "--model", "m", "--pass-at", "4"],
            "pass@4 needs --samples of at least 4; got 1",
        ),
    ],
)
def test_what_is_asked_wrongly_is_said_before_anything_is_asked(
    benchmark: Path, tmp_path: Path, capsys: Any, arguments: list[str], what: str
) -> None:
    assert main(["evaluate", "--benchmarks", str(benchmark), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert what in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_benchmark_that_needs_a_judge_says_so(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "healthbench").mkdir()
    asked = ["evaluate", "--benchmarks", "healthbench", "--endpoint", "http://h/v1", "--model", "m"]
    assert main([*asked, "--out", str(tmp_path / "out"), "--data", str(tmp_path)]) == 2
    assert "pass --judge FILE" in capsys.readouterr().err


def test_a_judge_scores_healthbenchs_form_and_only_its_mean_is_cut(tmp_path: Path) -> None:
    """+3 for mentioning water, −9 for mentioning alcohol. ``water`` earns 3/3, ``alcohol`` −9/3: a mean of −1, cut to
    0; of the first alone it is 1."""
    rubric = [{"criterion": "Mentions water", "points": 3}, {"criterion": "Mentions alcohol", "points": -9}]
    rows = [{"id": word, "question": f"Say {word}.", "rubrics": rubric} for word in ("water", "alcohol")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = BENCHMARK.replace("metric: accuracy", "metric: unclipped\njudge: true").replace('"{topic}"', "text")
    text = text.replace("slices: [level]\n", "").replace("  extra: [topic, level]\n", "  rubric: rubrics\n")
    text = text.replace("{type: number, column: answer}", "{type: text, column: id}")
    text = text.replace("{answer: {use: answer}}", "{quality: {use: rubric, dynamic: true, judge: main}}")
    (tmp_path / "judged.yaml").write_text(text)

    def judgement(body: dict[str, Any]) -> Answer:
        return obedient(body) if "Mentions" in user_text(body) else verdict(True)  # the trial question

    with serve(judgement) as judge, serve(lambda body: Answer(user_text(body))) as server:
        (tmp_path / "judge.yaml").write_text(f"judges: {{main: {{url: '{judge.url}', model: j}}}}")
        judging = ("--judge", tmp_path / "judge.yaml")
        both = evaluate(tmp_path / "judged.yaml", server, tmp_path / "both", *judging)["benchmarks"]["judged"]
        one = evaluate(tmp_path / "judged.yaml", server, tmp_path / "one", *judging, "--limit", 1)["benchmarks"][
            "judged"
        ]
    assert (both["answered"], both["value"], one["value"]) == (2, 0.0, 1.0)


def test_an_endpoint_that_answers_nothing_ends_the_evaluation(
    benchmark: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl.benchmarks.endpoint, "FIRST_REST_S", 0.0)
    with serve(lambda _: Answer("", status=404, body=b"no such model")) as server:
        asked = ["evaluate", "--benchmarks", benchmark, "--endpoint", server.url, "--model", "m"]
        assert main([*map(str, asked), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "no answer came to any of the 8 requests of sums" in said and "no such model" in said


@pytest.fixture
def heard_interrupts() -> Iterator[None]:
    """SIGINT raises, as at a terminal: tests that a shell started in its background would not hear it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("heard_interrupts")
def test_a_suite_that_is_interrupted_keeps_what_is_done_and_goes_on_with_the_rest(
    benchmark: Path, tmp_path: Path, capsys: Any
) -> None:
    other = benchmark.with_name("again.yaml")
    other.write_text(benchmark.read_text())
    asked: list[str] = []

    def interrupting(body: dict[str, Any]) -> Answer:
        """Ctrl-C at the first question of the second benchmark."""
        asked.append(user_text(body))
        if len(asked) == len(ROWS) + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return adds(body)

    def arguments(*further: object) -> list[str]:
        asked_for = ["evaluate", "--benchmarks", f"{benchmark},{other}", "--model", "m", "--out", tmp_path / "out"]
        return [str(each) for each in (*asked_for, "--endpoint", server.url, *further)]

    with serve(interrupting) as server:
        assert main(arguments()) == 130
        assert "go on with --resume" in capsys.readouterr().err
        left = json.loads((tmp_path / "out" / "results.json").read_text())
        assert (list(left["benchmarks"]), left["unfinished"]) == (["sums"], ["again"])
        assert main(arguments()) == 2 and "add --resume to go on" in capsys.readouterr().err
        assert main(arguments("--resume", "--limit", 2)) == 2
        assert "limit differ from" in capsys.readouterr().err
        assert main([*arguments("--resume"), "--model", "n"]) == 2
        assert "holds another evaluation: model" in capsys.readouterr().err
        asked.clear()
        asked.extend(["none"] * (len(ROWS) + 1))
        assert main(arguments("--resume")) == 0
        assert sorted(asked[len(ROWS) + 1 :]) == sorted(row["question"] for row in ROWS)  # of the second one alone
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["benchmarks"]) == ["sums", "again"] and results["unfinished"] == []
    assert results["benchmarks"]["sums"] == left["benchmarks"]["sums"]
    assert results["benchmarks"]["again"]["value"] == pytest.approx(4 / 7)


@pytest.mark.slow
def test_a_policy_answers_the_same_in_an_engine_and_behind_a_server(
    tiny_policy: Path, benchmark: Path, tmp_path: Path, ray_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray and vLLM on one side, vLLM's own server on the other; a policy of random weights is wrong, and nothing is
    lost. ``e`` stops nearly every answer early: it belongs to the text on both sides."""
    settings = [
        "policy.dtype=float32",
        "sampling.max_tokens=32",
        "rollouts.max_model_len=512",
        "rollouts.kv_cache_mb=64",
        "sampling.stop=[e]",
    ]
    asked = ("evaluate", *settings, "--benchmarks", f"{benchmark},instructions", "--limit", 3)
    done = medrl(*asked, "--policy", tiny_policy, "--out", tmp_path / "engine")
    assert done.returncode == 0, done.stderr

    server = ray_session.remote(ChatServer).remote(
        ChatServerSettings(
            policy=str(tiny_policy),
            dtype="float32",
            max_model_len=512,
            max_num_seqs=8,
            tensor_parallel=1,
            kv_cache_mb=64,
            gpu_memory_utilization=0.5,
            start_timeout_s=300.0,
            on_gpu=False,
        ),
        local=True,
    )
    address = ray_session.get(server.ready.remote())
    monkeypatch.setenv("MODEL_KEY", address.key)
    behind = ("--endpoint", address.url, "--model", address.model, "--api-key-env", "MODEL_KEY")
    assert main([str(each) for each in (*asked, *behind, "--out", tmp_path / "server")]) == 0
    ray_session.kill(server)

    for out in ("engine", "server"):
        found = json.loads((tmp_path / out / "results.json").read_text())["benchmarks"]
        assert [(each["tasks"], each["answered"], each["lost"]) for each in found.values()] == [(3, 3, 0), (3, 3, 0)]
    for name in ("sums", "instructions"):
        engine, behind_server = (
            [(row["text"], row["finish_reason"]) for row in iter_rows(tmp_path / out / name, kind="eval")]
            for out in ("engine", "server")
        )
        assert engine == behind_server and any(text.endswith("e") for text, _ in engine)
