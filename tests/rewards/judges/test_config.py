from __future__ import annotations

import gc
import json
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import yaml

from rewards.config import ConfiguredScorer, build_scorer, load_rewards
from rewards.judge import Endpoint, EngineEndpoint, Judge, endpoint_with_key
from rewards.judges.config import check_judges, read_judges, with_endpoints
from rewards.rubric import RubricScorer
from rl.config import load_config, to_yaml
from rl.errors import ConfigError
from tests.rewards.fake_judge import Answer, obedient, serve, verdict

URL = "http://127.0.0.1:9/v1"
ONE = {"url": URL, "model": "m"}
RUBRIC = "- {criterion: Mentions fever, points: 1}"


def judged(tmp_path: Path, judge: Any, **judges: Any) -> ConfiguredScorer:
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    section = {"judges": judges, "scorers": {"quality": {"use": "rubric", "path": "rubric.yaml", "judge": judge}}}
    return load_rewards(section, tmp_path)[0]


class TestReading:
    def test_one_endpoint_may_stand_alone_and_several_in_a_list(self) -> None:
        judges = read_judges(
            {
                "a": {**ONE, "api_key_env": "KEY", "votes": 3, "temperature": 0.5},
                "b": {"endpoints": [ONE, {"policy": "org/name", "gpus": 1}], "max_tokens": 9},
                "c": {"policy": "org/name"},
            }
        )
        assert judges["a"].endpoints == (Endpoint(url=URL, model="m", api_key_env="KEY"),)
        assert (judges["a"].votes, judges["a"].temperature, judges["a"].name) == (3, 0.5, "a")
        assert judges["b"].endpoints == (
            Endpoint(url=URL, model="m"),
            EngineEndpoint(policy="org/name", gpus=1.0),
        )
        assert judges["c"].endpoints == (EngineEndpoint(policy="org/name"),)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("main", "rewards.judges.x must be a mapping with `endpoints`, `url` and `model`, or `policy`"),
            ({}, "rewards.judges.x must name `endpoints`, or one by `url` and `model`, or by `policy`"),
            ({"endpoints": []}, "rewards.judges.x must name `endpoints`"),
            ({"endpoints": ["u"]}, r"x.endpoints\[0\] must be a mapping"),
            ({"endpoints": [ONE], "model": "m"}, "x.model belongs into one of the endpoints"),
            ({"url": URL}, "x.model: Endpoint needs this parameter and it is missing"),
            ({"endpoints": [ONE, {**ONE, "modle": "m"}]}, r"x.endpoints\[1\].modle: .*Did you mean 'model'\?"),
            ({**ONE, "vots": 3}, "x.vots: Judge has no such parameter; allowed: .*Did you mean 'votes'?"),
            ({**ONE, "votes": 2}, "x: votes must be odd"),
            ({**ONE, "votes": 3}, "x: votes: 3 at temperature 0 would all be the same"),
            ({**ONE, "attempts": 0}, "x: attempts must be > 0"),
            ({**ONE, "temperature": -1}, "x: temperature must be >= 0"),
            ({**ONE, "structured": "xml"}, "x.structured must be one of 'json_schema', 'json_object', 'none'"),
            ({**ONE, "max_concurrency": 0}, "x.max_concurrency must be >= 1"),
            ({"url": "judge:8000", "model": "m"}, "x.url must be the address of an OpenAI-compatible server"),
            ({"url": "http://user:pw@judge/v1", "model": "m"}, "without a password"),
            ({"policy": "./nowhere"}, "x.policy: './nowhere' is no folder of a policy"),
            ({"policy": "p", "dtype": "int4"}, "x.dtype must be one of 'bfloat16', 'float32'"),
            ({**ONE, "api_key": "sk-1"}, "x.api_key: a key never stands in a config.*`api_key_env`"),
            ({**ONE, "key": "sk-1"}, "x.key: a key never stands in a config"),
        ],
    )
    def test_what_does_not_fit_is_named_with_what_is_allowed(self, spec: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            read_judges({"x": spec})
        assert "sk-1" not in str(caught.value)
        assert "user:pw" not in str(caught.value)

    def test_a_scorer_names_its_judge(self, tmp_path: Path) -> None:
        scorer = judged(tmp_path, "main", main=ONE, other={**ONE, "model": "n"}).scorer
        assert isinstance(scorer, RubricScorer)
        assert scorer.judge
        assert scorer.judge.name == "main"
        with pytest.raises(
            ConfigError, match=r"quality.judge: no judge is called 'mian'; known: main. Did you mean 'main'"
        ):
            judged(tmp_path, "mian", main=ONE)
        with pytest.raises(
            ConfigError, match=r"no judge is called 'main'; known: none; describe it under rewards.judges"
        ):
            judged(tmp_path, "main")

    def test_a_scorer_of_ones_own_has_a_judge_by_its_annotation(self, tmp_path: Path) -> None:
        built = build_scorer(
            "x", {"use": "tests.rewards.test_judge:Asking", "judge": "main"}, judges=read_judges({"main": ONE})
        )
        assert built.scorer.judge.name == "main"  # type: ignore[attr-defined]

    def test_only_what_a_judge_answers_makes_the_version_and_it_is_not_deterministic(self, tmp_path: Path) -> None:
        first = judged(tmp_path, "main", main=ONE)
        moved = judged(tmp_path, "main", main={**ONE, "url": "http://elsewhere/v1", "timeout_s": 3})
        other = judged(tmp_path, "main", main={**ONE, "model": "n"})
        assert first.version == moved.version != other.version
        assert not first.deterministic

    def test_the_config_is_read_without_network_and_holds_no_key(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("A_JUDGES_KEY", "sk-secret")
        (tmp_path / "rubric.yaml").write_text(RUBRIC)
        rewards = {
            "judges": {"main": {**ONE, "api_key_env": "A_JUDGES_KEY"}},
            "scorers": {"quality": {"use": "rubric", "path": "rubric.yaml", "judge": "main"}},
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({"rewards": rewards}))
        resolved = to_yaml(load_config(path))
        assert "A_JUDGES_KEY" in resolved
        assert "sk-secret" not in resolved


class TestCheck:
    def test_a_judge_that_is_not_there_is_one_clear_message(self, tmp_path: Path) -> None:
        with pytest.raises(
            ConfigError,
            match=r"the judge 'main' does not answer: http://.*:9/v1 \(m\): ConnectError: .*mend rewards.judges.main",
        ):
            check_judges([judged(tmp_path, "main", main=ONE)])

    def test_a_model_that_is_not_there_is_told_in_the_servers_words(self, tmp_path: Path) -> None:
        answer = Answer(status=404, body=b"The model `m` does not exist")
        with serve(lambda body: answer) as server, pytest.raises(ConfigError, match=r"HTTP 404 The model `m` does not"):
            check_judges([judged(tmp_path, "main", main={**ONE, "url": server.url})])

    def test_no_connection_is_left_open(self, tmp_path: Path) -> None:
        answer = Answer(text='{"is_true": true}')
        with serve(lambda body: answer) as server:
            main = read_judges({"main": {**ONE, "url": server.url}})["main"]
            scorer = ConfiguredScorer(name="x", scorer=RubricScorer(judge=main))
            gc.disable()  # which would close it some time later
            try:
                assert check_judges([scorer]) == []
                port = urlsplit(server.url).port
                ours = [each for each in psutil.Process().net_connections() if each.raddr and each.raddr.port == port]
            finally:
                gc.enable()
        assert not [each for each in ours if each.status == psutil.CONN_ESTABLISHED]

    def test_a_key_that_is_not_set_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("A_JUDGES_KEY", raising=False)
        with pytest.raises(
            ConfigError, match=r"the environment variable A_JUDGES_KEY must hold the key of .* is not set"
        ):
            check_judges([judged(tmp_path, "main", main={**ONE, "api_key_env": "A_JUDGES_KEY"})])
        monkeypatch.setenv("A_JUDGES_KEY", "sk\nsecret")
        with pytest.raises(ConfigError, match="characters that no key has") as caught:
            check_judges([judged(tmp_path, "main", main={**ONE, "api_key_env": "A_JUDGES_KEY"})])
        assert "secret" not in str(caught.value)

    def test_one_of_several_that_does_not_answer_is_a_warning(self, tmp_path: Path) -> None:
        with serve(lambda body: verdict(True)) as server:
            scorer = judged(tmp_path, "main", main={"endpoints": [ONE, {**ONE, "url": server.url}]})
            (warning,) = check_judges([scorer])
            assert warning.startswith(f"the judge 'main' goes on without {URL} (m): ConnectError")
            assert len(server.requests) == 1

    def test_where_verdicts_are_kept_a_scoring_may_go_on_without_their_judge(self, tmp_path: Path) -> None:
        kept = tmp_path / "verdicts.sqlite"
        scorer = judged(tmp_path, "main", main={**ONE, "cache": str(kept)})
        with pytest.raises(ConfigError, match="does not answer"):
            check_judges([scorer], kept_will_do=True)  # nothing is kept yet
        assert "goes on without" in check_judges([scorer], kept_will_do=True)[0]
        with pytest.raises(ConfigError, match="does not answer"):
            check_judges([scorer])

    def test_what_a_model_says_is_not_its_fault_before_the_run(self, tmp_path: Path) -> None:
        with serve(lambda body: Answer(text="gibberish", finish_reason="length")) as server:
            assert check_judges([judged(tmp_path, "main", main={**ONE, "url": server.url})]) == []

    def test_an_engine_of_the_run_is_not_asked_yet(self, tmp_path: Path) -> None:
        own = judged(tmp_path, "main", main={"policy": "p"})
        assert check_judges([own], starts_engines=True) == []
        with pytest.raises(ConfigError, match="engine for p: only `medrl train` and `medrl evaluate` start engines"):
            check_judges([own])

    def test_no_judge_no_check(self) -> None:
        assert check_judges([build_scorer("a", {"use": "answer"})]) == []


async def test_a_scorer_travels_with_the_address_of_its_engine_and_what_it_read(
    tmp_path: Path, trajectory: Any
) -> None:
    built = judged(tmp_path, "main", main={"policy": "p"})
    (tmp_path / "rubric.yaml").unlink()
    with serve(obedient) as server:
        engine = EngineEndpoint(policy="p")
        placed = with_endpoints(built, {engine: endpoint_with_key("k", url=server.url, model="p")})
        there = pickle.loads(pickle.dumps(placed))
        assert (await there.scorer.score(trajectory("fever"))).value == 1.0
        assert server.headers[0]["Authorization"] == "Bearer k"
    assert there.version == built.version


def test_judges_need_neither_network_nor_http_to_be_imported() -> None:
    code = "import rewards.rubric, rewards.judges.client, rewards.judges.config, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"httpx", "httpx2", "openai", "jsonschema", "ray", "vllm", "torch"} & set(loaded)


def test_a_mapping_of_parameters_is_kept_as_it_is() -> None:
    judge: Judge = read_judges({"a": {**ONE, "parameters": {"reasoning": {"effort": "low"}}}})["a"]
    parameters: Mapping[str, Any] = judge.parameters
    assert json.loads(json.dumps(dict(parameters))) == {"reasoning": {"effort": "low"}}
    assert isinstance(hash(judge), int)
