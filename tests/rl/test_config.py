"""Configs: overrides, suggestions, ranges, and a resolved form that reads back the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.config import SHIPPED_CONFIGS, load_config, to_yaml
from rl.errors import ConfigError

MINIMAL = "rewards: {scorers: {answer: {use: answer}}}\n"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def test_an_override_wins_over_the_file_and_the_default(config_file: Path) -> None:
    config_file.write_text(MINIMAL + "group_size: 4\nseed: 3\n")
    config = load_config(config_file, ["group_size=16", "learner.learning_rate=1e-4", "sampling.stop=[END]"])
    assert (config.group_size, config.seed, config.learner.learning_rate) == (16, 3, 1e-4)
    assert config.sampling.stop == ["END"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("group_sise=4", "Did you mean: 'group_size'"),
        ("learner.zero_stag=2", "Did you mean: 'zero_stage'"),
        ("group_size=1", r"group_size must be >= 2 to centre rewards; got 1 \(.*run.yaml with group_size=1\)"),
        ("group_size=many", "could not be converted to Integer"),
        ("learner.zero_stage=4", "learner.zero_stage must be one of 0, 1, 2, 3; got 4"),
        ("loss.dual_clip=0.5", r"loss.dual_clip must be 0 \(off\) or > 1; got 0.5"),
        ("learner.learning_rate=-1", "learner.learning_rate must be > 0; got -1.0"),
        ("sampling.temperature=0", "sampling.temperature must be > 0"),
        ("sampling.max_tokens=1024", "max_model_len must exceed sampling.max_tokens"),
        ("learner.minibatches=3", "tasks_per_step must be a multiple of learner.minibatches; got 16 and 3"),
        ("learner={warmup_steps: 5, decay_steps: 5}", "learner.decay_steps must exceed learner.warmup_steps"),
        ("learner.offload_optimizer=true", "learner.offload_optimizer needs learner.zero_stage 1, 2 or 3"),
        ("learner.adam_betas=[0.9]", "learner.adam_betas must be two numbers"),
        ("rollouts.weight_transfer=rdma", "rollouts.weight_transfer must be one of host, nccl; got 'rdma'"),
        ("rollouts.weight_transfer=nccl", r"needs learner.gpus_per_rank >= 1 .* got 0, 0 and 1. .*=host needs no GPU"),
        ("rewards.scorers=null", "rewards.scorers"),
        ("async.max_stalenes=1", r"^async.max_stalenes: .*Did you mean: 'max_staleness'"),
        ("async.max_staleness=-1", "async.max_staleness must be >= 0; got -1"),
        ("async_.max_staleness=1", "Key 'async_' not in 'RunConfig'. Did you mean: 'async'"),
        ("asynch.max_staleness=1", "Did you mean: 'async'"),
        ("rollouts={gpus_per_worker: 1, tensor_parallel: 2}", "gpus_per_worker must be >= .*; got 1 and 2"),
        ("learner={ranks: 2, gpus_per_rank: 0.5}", "learner.gpus_per_rank must be >= 1, .*; got 0.5 and 2 ranks"),
        ("async=1", r"^async: a mapping of keys \(max_staleness\) belongs here; got 1"),
        ("loss.rollout_correction=none", r"a mapping of keys \(mode, level, cap\) belongs here; got 'none'"),
        ("sampling.stop=END", r"^sampling.stop: a list belongs here, such as \['END'\]; got 'END'"),
        ("nonsense", "an override must read key=value; got 'nonsense'"),
        ("=3", "an override must read key=value"),
    ],
)
def test_a_bad_override_says_what_was_wrong(config_file: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(config_file, [override])


def test_generation_ahead_without_an_importance_correction_is_refused_and_told_what_to_set(config_file: Path) -> None:
    config_file.write_text(MINIMAL + "async: {max_staleness: 2}\n")
    assert load_config(config_file).async_.max_staleness == 2
    with pytest.raises(ConfigError, match=r"set loss.rollout_correction.mode to truncate or mask, or async.max_stal"):
        load_config(config_file, ["loss.rollout_correction.mode=none"])
    assert load_config(config_file, ["loss.rollout_correction.mode=none", "async.max_staleness=0"])


def test_weights_go_over_nccl_where_learner_and_every_process_of_an_engine_have_a_gpu(config_file: Path) -> None:
    config_file.write_text(MINIMAL + "rollouts: {weight_transfer: nccl, gpus_per_worker: 2, tensor_parallel: 2}\n")
    assert load_config(config_file, ["learner.gpus_per_rank=1"]).rollouts.weight_transfer == "nccl"
    for few in ("learner.gpus_per_rank=0.5", "rollouts.tensor_parallel=3", "rollouts.gpus_per_worker=0.5"):
        with pytest.raises(ConfigError, match="NCCL takes one process per GPU"):
            load_config(config_file, ["learner.gpus_per_rank=1", few])


def test_a_section_whose_name_is_a_keyword_is_shown_as_it_is_written(config_file: Path) -> None:
    config = load_config(config_file, ["async.max_staleness=1"])
    assert "async:\n  max_staleness: 1\n" in to_yaml(config) and "async_" not in to_yaml(config)
    config_file.write_text(to_yaml(config))
    assert load_config(config_file) == config


def test_a_run_without_scorers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(ConfigError, match=r"rewards\.scorers must name at least one scorer"):
        load_config(path)


@pytest.mark.parametrize(("text", "said"), [("a: [", "cannot be read as YAML"), ("- a\n", "must hold a mapping")])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(path)
    with pytest.raises(ConfigError, match=said):
        load_config("quickstart", [f"rewards.path={path}"])


def test_a_missing_file_names_the_shipped_configs() -> None:
    with pytest.raises(ConfigError, match=r"no config file 'nowhere.yaml'; shipped ones are .*quickstart"):
        load_config("nowhere.yaml")


@pytest.mark.parametrize("path", sorted(SHIPPED_CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_loads_by_its_name_and_its_resolved_form_reads_back_the_same(
    path: Path, tmp_path: Path
) -> None:
    config = load_config(path.stem)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(config))
    assert load_config(resolved) == config


def test_rewards_may_stand_in_a_file_of_their_own(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("scorers: {grounding: {use: hallucination, weight: 0.5}}\n")
    config = load_config(config_file, ["rewards.path=mine.yaml"])
    assert list(config.rewards.scorers) == ["grounding"]
    assert config.rewards.base_dir == str(tmp_path.resolve())


def test_overrides_hold_for_rewards_in_a_file_of_their_own(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("scorers: {grounding: {use: hallucination, weight: 0.5}}\nworkers: 2\n")
    overrides = ["rewards.path=mine.yaml", "rewards.scorers.grounding.weight=2", "rewards.workers=4"]
    for given in (overrides, overrides[::-1]):
        rewards = load_config(config_file, given).rewards
        assert (rewards.scorers, rewards.workers) == ({"grounding": {"use": "hallucination", "weight": 2}}, 4)
        assert rewards.path == ""


def test_a_rewards_file_that_is_not_there_is_named_with_the_places_looked_at(config_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"rewards.path names no file: 'gone.yaml'; looked for .*gone.yaml"):
        load_config(config_file, ["rewards.path=gone.yaml"])


def test_a_mapping_is_found_beside_the_config_and_among_the_shipped_ones(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("question: q\n")
    assert load_config(config_file, ["tasks.mapping=mine.yaml"]).tasks.mapping == str(tmp_path / "mine.yaml")
    shipped = load_config(config_file, ["tasks.mapping=tasks/vqa_rad.yaml"]).tasks.mapping
    assert shipped == str(SHIPPED_CONFIGS / "tasks" / "vqa_rad.yaml")
    assert load_config(config_file, ["tasks.mapping=gone.yaml"]).tasks.mapping == "gone.yaml"
