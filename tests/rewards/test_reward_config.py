from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rewards.answer import AnswerScorer
from rewards.config import (
    SECTION_KEYS,
    build_scorer,
    load_rewards,
    load_rewards_file,
    read_section,
    resolve_scorer,
)
from rewards.hallucination import HallucinationScorer
from rewards.provenance import version_of
from rewards.rubric import RubricScorer
from rl.config_schema import RewardsConfig
from rl.errors import ConfigError

MODULE = '''
from __future__ import annotations
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from rewards.scorer import Score, Scorer, Trajectory

@dataclass(frozen=True, kw_only=True)
class RedFlags(Scorer):
    """Fraction of the required red-flag terms that the reasoning names."""

    terms: list[str]
    cut: float = 0.5
    limit: int | None = None
    mode: Literal["any", "all"] = "any"
    table: Path | None = None
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self):
        if self.cut > 1:
            raise ValueError(f"cut must be at most 1; got {self.cut}")

    async def score(self, trajectory: Trajectory) -> Score:
        named = [term for term in self.terms if term in trajectory.reasoning.lower()]
        return Score(len(named) / len(self.terms), reason=f"named {named}")

class Plain:
    pass

class Undecorated(Scorer):
    async def score(self, trajectory): ...
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("hospital")
    (path / "my_hospital").mkdir()
    (path / "my_hospital" / "__init__.py").touch()
    (path / "my_hospital" / "scorers.py").write_text(MODULE)
    (path / "my_hospital" / "faulty.py").write_text("import not_there_at_all")
    (path / "my_hospital" / "typo.py").write_text("def (:")
    (path / "table.csv").write_text("a,b")
    return path


def red_flags(folder: Path, **spec: Any) -> Any:
    return build_scorer("red_flags", {"use": "my_hospital.scorers:RedFlags", **spec}, base_dir=folder)


@pytest.mark.parametrize(
    ("name", "cls"), [("answer", AnswerScorer), ("hallucination", HallucinationScorer), ("rubric", RubricScorer)]
)
def test_built_in_scorers_have_short_names(name: str, cls: type) -> None:
    assert resolve_scorer(name) is cls


def test_a_package_offers_its_scorers_by_an_entry_point(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = folder / "hospital-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: hospital\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[medrl.scorers]\nred_flags = my_hospital.scorers:RedFlags\n")
    monkeypatch.syspath_prepend(folder)
    built = build_scorer("x", {"use": "red_flags", "terms": ["fever"]}, base_dir=folder)
    assert type(built.scorer).__name__ == "RedFlags"
    with pytest.raises(
        ConfigError, match=r"no scorer is called 'red_flag'; known: .*red_flags.* Did you mean 'red_flags'"
    ):
        resolve_scorer("red_flag")


async def test_a_scorer_in_a_file_beside_the_config_is_found_and_built(folder: Path, trajectory: Any) -> None:
    built = red_flags(folder, terms=["fever", "pain"], limit=3, weight=0.25, names={"a": ["b"]})
    assert (built.weight, built.gate, built.isolated, built.timeout_s) == (0.25, False, True, 30.0)
    assert (built.scorer.terms, built.scorer.limit, built.scorer.names) == (["fever", "pain"], 3, {"a": ("b",)})
    scored = await built.scorer.score(trajectory("<think>Fever!</think>"))
    assert (scored.value, scored.reason) == (0.5, "named ['fever']")


def test_built_in_scorers_run_in_the_service_and_foreign_ones_apart_unless_told_otherwise(folder: Path) -> None:
    assert not build_scorer("a", {"use": "answer"}).isolated
    assert build_scorer("a", {"use": "answer", "isolated": True}).isolated
    assert not red_flags(folder, terms=["x"], isolated=False).isolated


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "rewards.scorers.x must be a mapping with the key `use`; got {}"),
        ({"use": "answre"}, "x.use: no scorer is called 'answre'; known: answer, .*Did you mean 'answer'?"),
        ({"use": "nowhere.at.all:Scorer"}, "there is no module 'nowhere'; looked for in the installed packages, in"),
        ({"use": "my_hospital.score:RedFlags"}, "there is no module 'my_hospital.score'"),
        ({"use": "my_hospital.faulty:RedFlags"}, "needs 'not_there_at_all', which is not installed"),
        ({"use": "my_hospital.typo:RedFlags"}, "my_hospital.typo cannot be imported: SyntaxError"),
        ({"use": "my_hospital.scorers:RedFlag"}, "has no 'RedFlag'; its scorers: RedFlags.* Did you mean 'RedFlags'?"),
        ({"use": "my_hospital.scorers:Plain"}, "not a subclass of rewards.scorer.Scorer"),
        ({"use": "my_hospital.scorers:Undecorated"}, "must be decorated with @dataclass"),
        ({}, "RedFlags needs this parameter and it is missing"),
        ({"terms": ["x"], "trems": 1}, "x.trems: RedFlags has no such parameter; allowed: terms.*mean 'terms'?"),
        ({"terms": "fever"}, "x.terms must be a list; got 'fever' (a string)"),
        ({"terms": ["fever", 3]}, "x.terms[1] must be a string; got 3 (an integer)"),
        ({"terms": [], "cut": "high"}, "x.cut must be a number; got 'high' (a string)"),
        ({"terms": [], "cut": True}, "x.cut must be a number; got True (true or false)"),
        ({"terms": [], "cut": 2}, "x: cut must be at most 1; got 2.0"),
        ({"terms": [], "limit": 1.5}, "x.limit must be an integer or null; got 1.5 (a number)"),
        ({"terms": [], "mode": "al"}, "x.mode must be one of 'any', 'all'; got 'al'. Did you mean 'all'?"),
        ({"terms": [], "table": "nowhere.csv"}, "x.table: there is no file 'nowhere.csv'; looked for "),
        ({"terms": [], "names": {"a": 1}}, "x.names.a must be a list; got 1 (an integer)"),
        ({"terms": [], "weight": -1}, "x.weight must be a number >= 0; got -1"),
        ({"terms": [], "weight": "much"}, "x.weight must be a number >= 0; got 'much'"),
        ({"terms": [], "weight": float("inf")}, "x.weight must be a number >= 0; got inf"),
        ({"terms": [], "timeout_s": 0}, "x.timeout_s must be a number > 0; got 0"),
        ({"terms": [], "gate": "yes"}, "x.gate must be true or false; got 'yes'"),
        ({"terms": [], "when": ["choice"]}, "x.when must map fields of the task to values"),
        ({"terms": [], "when": {"anwser.type": "choice"}}, "x.when.anwser.type: a task has no such field.*'answer'?"),
        ({"use": "answer", "gate": True}, "x: the scorer `answer` never closes a gate"),
        ({"use": "hallucination", "gate": True}, "x: a gate of the scorer `hallucination` needs max_refuted"),
        ({"use": "hallucination", "min_claims": 0}, "x: min_claims must be >= 1"),
        ({"use": "rubric", "path": "cytology.yaml", "gate": True}, "a gate needs a criterion with `critical: true`"),
        ({"use": "rubric", "path": "cytology_safety.yaml"}, "no criterion has points > 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_what_is_allowed(folder: Path, spec: dict[str, Any], message: str) -> None:
    if message.startswith("RedFlags") or "terms" in spec:
        spec = {"use": "my_hospital.scorers:RedFlags", **spec}
    with pytest.raises(ConfigError) as caught:
        build_scorer("x", spec, base_dir=folder)
    parts = [part.strip() for part in message.split(".*")]
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "rewards.scorers must name at least one scorer"),
        ({"scorers": {}}, "rewards.scorers must name at least one scorer"),
        ({"scorers": {"a": {"use": "answer", "weight": 0}}}, "the weights in rewards.scorers sum to 0 (a: 0.0)"),
        (
            {"scorers": {"g": {"use": "rubric", "path": "cytology_safety.yaml", "gate": True}}},
            "the weights in rewards.scorers sum to 0 (g: gate)",
        ),
        (
            {"scorers": {"a": {"use": "answer"}}, "length_penalti": 0.1},
            "rewards.length_penalti is not known; allowed: ",
        ),
        (
            {"scorers": {"a": {"use": "answer"}}, "length_penalty": 0.5},
            "rewards.length_penalty must be in [0, 0.49]",
        ),
        ({"scorers": {"a": {"use": "answer"}}, "timeout_s": -1}, "rewards.timeout_s must be a number > 0"),
        ({"path": "nowhere.yaml"}, "rewards.path: there is no file 'nowhere.yaml'"),
    ],
)
def test_a_section_that_does_not_fit_together_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_rewards(section)
    assert message in str(caught.value)


def test_the_section_may_stand_in_a_file_of_its_own_bare_or_under_its_name(tmp_path: Path) -> None:
    scorers = "scorers: {a: {use: answer}}"
    (tmp_path / "bare.yaml").write_text(scorers)
    (tmp_path / "whole.yaml").write_text(f"rewards: {{{scorers}}}\nseed: 3")
    for name in ("bare.yaml", "whole.yaml"):
        assert read_section({"path": name}, tmp_path) == {"scorers": {"a": {"use": "answer"}}}
        assert load_rewards({"path": name}, tmp_path)[0].name == "a"


def test_a_rewards_file_needs_no_run_around_it(folder: Path) -> None:
    (folder / "rewards.yaml").write_text(
        "scorers:\n  answer: {use: answer}\n  flags: {use: 'my_hospital.scorers:RedFlags', terms: [x], "
        "table: table.csv}\n"
        "length_penalty: 0.1\nlength_soft_tokens: 200\n"
    )
    loaded = load_rewards_file(folder / "rewards.yaml")
    assert [each.name for each in loaded.scorers] == ["answer", "flags"]
    assert loaded.scorers[1].scorer.table == folder / "table.csv"  # type: ignore[attr-defined]
    assert (loaded.length_penalty, loaded.length_soft_tokens) == (0.1, 200)


LAUGHS = "a0: &a0 [ha, ha]\n" + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "scorers: {a: {use: answer}}\nlength_soft_tokens: many",
            "length_soft_tokens must be an integer >= 0; got 'many'",
        ),
        ("- a", "must be a mapping with the key `scorers`; got list"),
        ("scorers: {a: [", r"rewards\.yaml:1 is not valid YAML: expected the node content"),
        ("scorers: &all\n  a: [*all]", r"rewards\.yaml:1: an alias \(`\*name`\) stands inside of what it stands for"),
        (LAUGHS, "rewards.yaml holds more than 200000 values, each alias counted as what it stands for"),
        pytest.param("scorers: " + "[" * 100_000, "rewards.yaml is nested too deeply", id="nested"),
        ("scorers:\n  ? [a]\n  : {use: answer}", r"rewards\.yaml:2: a key must be a word, not a list or a mapping"),
        ("scorers:\n  a: {use: answer}\n  a: {use: format}", r"rewards\.yaml:3: the key 'a' stands here twice"),
        (None, "the rewards file: there is no file"),
    ],
)
def test_a_rewards_file_that_cannot_be_read_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "rewards.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_rewards_file(tmp_path / "rewards.yaml")


OWN_ERROR = "class NoLicence(Exception): pass\n\nraise NoLicence('expired')"


@pytest.mark.parametrize("fault", [OWN_ERROR, "open('gone.csv')", "1 / 0", "raise SystemExit(3)", "assert False"])
def test_a_module_that_breaks_when_it_is_imported_is_named(folder: Path, fault: str) -> None:
    name = f"breaks_{abs(hash(fault))}"
    (folder / f"{name}.py").write_text(fault)
    with pytest.raises(ConfigError, match=rf"rewards\.scorers\.x\.use: the module {name} cannot be imported: \w+"):
        build_scorer("x", {"use": f"{name}:X"}, base_dir=folder)


def test_the_keys_of_the_section_are_those_of_the_run_config() -> None:
    assert {field.name for field in dataclasses.fields(RewardsConfig)} == SECTION_KEYS


def test_paths_are_looked_for_beside_the_config_first_and_then_among_the_shipped(folder: Path, tmp_path: Path) -> None:
    assert red_flags(folder, terms=["x"], table="table.csv").scorer.table == folder / "table.csv"
    (tmp_path / "cytology.yaml").write_text("- {criterion: mine, points: 1, check: {contains: x}}")
    mine = build_scorer("x", {"use": "rubric", "path": "cytology.yaml"}, base_dir=tmp_path).scorer
    assert isinstance(mine, RubricScorer)
    assert [criterion.criterion for criterion in mine.static] == ["mine"]
    for path in ("cytology.yaml", "rewards/cytology.yaml"):
        shipped = build_scorer("x", {"use": "rubric", "path": path}, base_dir=folder).scorer
        assert isinstance(shipped, RubricScorer)
        assert len(shipped.static) > 3


class TestVersion:
    def test_it_changes_with_the_parameters_and_the_code(self, folder: Path, tmp_path: Path) -> None:
        first = red_flags(folder, terms=["x"]).version
        assert first == red_flags(folder, terms=["x"]).version
        assert first != red_flags(folder, terms=["y"]).version
        (folder / "my_hospital" / "scorers.py").write_text(MODULE + "\n# another line\n")
        assert first != red_flags(folder, terms=["x"]).version
        (folder / "my_hospital" / "scorers.py").write_text(MODULE)

    def test_it_changes_with_the_content_of_a_file_and_not_with_its_place(self, tmp_path: Path) -> None:
        versions = []
        for name, points in (("a.yaml", 1), ("b.yaml", 1), ("c.yaml", 2)):
            (tmp_path / name).write_text(f"- {{criterion: c, points: {points}, check: {{contains: x}}}}")
            versions.append(version_of(RubricScorer(path=tmp_path / name)))
        assert versions[0] == versions[1] != versions[2]

    def test_it_changes_with_the_yaml_beside_a_module_of_the_same_name(self, folder: Path) -> None:
        first = red_flags(folder, terms=["x"]).version
        beside = folder / "my_hospital" / "scorers.yaml"
        beside.write_text("fever: [pyrexia]")
        second = red_flags(folder, terms=["x"]).version
        beside.unlink()
        assert first != second

    @pytest.mark.slow
    def test_it_is_the_same_in_every_process(self) -> None:
        code = "from rewards.config import build_scorer; print(build_scorer('a', {'use': 'hallucination'}).version)"
        versions = {
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
            for _ in range(2)
        }
        assert versions == {version_of(HallucinationScorer())}


def test_a_configured_scorer_travels_to_a_process_that_does_not_know_its_folder(folder: Path) -> None:
    built = red_flags(folder, terms=["fever"], weight=0.5, when={"answer.type": "choice"})
    code = (
        "import pickle, sys; built = pickle.loads(sys.stdin.buffer.read());"
        "print(built.name, built.weight, built.scorer.terms, built.when, built.version)"
    )
    there = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(built), capture_output=True, check=True)
    assert there.stdout.decode().split("\n")[0] == (
        f"red_flags 0.5 ['fever'] {{'answer.type': 'choice'}} {built.version}"
    )


@pytest.mark.parametrize(
    ("when", "applies"),
    [
        ({}, True),
        ({"answer.type": "yes_no"}, True),
        ({"answer.type": ["choice", "yes_no"]}, True),
        ({"answer.type": "choice"}, False),
        ({"record": True}, False),
        ({"record": False}, True),
        ({"extra.modality": "CT"}, True),
        ({"extra.modality": "MR"}, False),
        ({"extra.missing.deeper": "x"}, False),
        ({"stratum": "rare", "extra.modality": "CT"}, True),
        ({"stratum": "common", "extra.modality": "CT"}, False),
    ],
)
def test_when_looks_at_the_fields_of_the_task(trajectory: Any, when: dict[str, Any], applies: bool) -> None:
    task = trajectory("", extra={"modality": "CT"}, stratum="rare").task
    assert build_scorer("x", {"use": "answer", "when": when}).applies_to(task) is applies


@pytest.mark.slow
def test_the_rewards_start_without_what_takes_long_to_import() -> None:
    code = (
        "import rewards.config, rewards.service, rewards.answer, rewards.rubric, rewards.hallucination, sys;"
        "print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    slow = {"torch", "ray", "vllm", "transformers", "deepspeed", "sympy", "pint", "scipy", "jsonschema"}
    assert not slow & set(ran.stdout.split())
