"""Reading a run's config: YAML with dotted overrides, merged into the schema and validated.

An unknown key, a value of the wrong type and a value out of range are errors that name the key, what was got, what is
allowed and the file. ``validate`` needs no accelerator stack and runs before Ray starts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

import configs
from rl.config_schema import KEYWORD_KEYS, RewardsConfig, RunConfig
from rl.errors import ConfigError

SHIPPED_CONFIGS = Path(configs.__file__).parent

CHOICES: dict[str, tuple[str, ...]] = {
    "policy.preset": ("tiny", "smollm2"),
    "policy.dtype": ("float32", "bfloat16"),
    "rollouts.weight_transfer": ("host", "nccl"),
    "advantage.baseline": ("group_mean", "leave_one_out"),
    "advantage.scale": ("std", "none", "batch"),
    "loss.objective": ("ppo", "cispo"),
    "loss.importance": ("token", "sequence"),
    "loss.kl_estimator": ("k1", "k2", "k3"),
    "loss.aggregation": ("token_mean", "sequence_mean", "constant"),
    "loss.rollout_correction.mode": ("none", "truncate", "mask"),
    "loss.rollout_correction.level": ("token", "sequence"),
    "learner.zero_stage": ("0", "1", "2", "3"),
    "learner.attention": ("auto", "sdpa", "flex", "flash"),
}

Range = tuple[str, Callable[[Any], bool]]
POSITIVE: Range = ("> 0", lambda value: value > 0)
NOT_NEGATIVE: Range = (">= 0", lambda value: value >= 0)
AT_LEAST_ONE: Range = (">= 1", lambda value: value >= 1)
FRACTION: Range = ("in [0, 1]", lambda value: 0 <= value <= 1)

RANGES: dict[str, Range] = {
    "max_steps": AT_LEAST_ONE,
    "tasks_per_step": AT_LEAST_ONE,
    "group_size": (">= 2 to centre rewards", lambda value: value >= 2),
    "seed": (">= 0", lambda value: value >= 0),
    "policy.lora.rank": NOT_NEGATIVE,
    "warmstart.steps": NOT_NEGATIVE,
    "warmstart.batch_size": AT_LEAST_ONE,
    "warmstart.learning_rate": POSITIVE,
    "warmstart.labelled_cases": NOT_NEGATIVE,
    "warmstart.labelled_share": FRACTION,
    "tasks.limit": NOT_NEGATIVE,
    "tasks.tuning_share": ("in [0, 1)", lambda value: 0 <= value < 1),
    "tasks.max_image_pixels": AT_LEAST_ONE,
    "sampling.temperature": ("> 0: greedy groups have no signal", lambda value: value > 0),
    "sampling.top_p": ("in (0, 1]", lambda value: 0 < value <= 1),
    "sampling.top_k": NOT_NEGATIVE,
    "sampling.max_tokens": AT_LEAST_ONE,
    "rollouts.workers": AT_LEAST_ONE,
    "rollouts.gpus_per_worker": NOT_NEGATIVE,
    "rollouts.cpus_per_worker": NOT_NEGATIVE,
    "rollouts.threads": AT_LEAST_ONE,
    "rollouts.tensor_parallel": AT_LEAST_ONE,
    "rollouts.max_model_len": AT_LEAST_ONE,
    "rollouts.max_num_seqs": AT_LEAST_ONE,
    "rollouts.kv_cache_mb": AT_LEAST_ONE,
    "rollouts.gpu_memory_utilization": ("in (0, 1]", lambda value: 0 < value <= 1),
    "rollouts.max_images": NOT_NEGATIVE,
    "rollouts.max_tool_calls": AT_LEAST_ONE,
    "rollouts.tool_timeout_s": POSITIVE,
    "rollouts.max_logprob_difference": POSITIVE,
    "rollouts.timeout_s": POSITIVE,
    "rewards.max_unscored_fraction": FRACTION,
    "rewards.length_penalty": FRACTION,
    "rewards.length_soft_tokens": NOT_NEGATIVE,
    "rewards.workers": AT_LEAST_ONE,
    "rewards.timeout_s": POSITIVE,
    "loss.clip_low": ("in (0, 1]", lambda value: 0 < value <= 1),
    "loss.clip_high": POSITIVE,
    "loss.dual_clip": ("0 (off) or > 1", lambda value: value == 0 or value > 1),
    "loss.kl_coef": NOT_NEGATIVE,
    "loss.entropy_coef": NOT_NEGATIVE,
    "loss.rollout_correction.cap": POSITIVE,
    "dynamic_sampling.max_rounds": AT_LEAST_ONE,
    "async.max_staleness": NOT_NEGATIVE,
    "learner.ranks": AT_LEAST_ONE,
    "learner.gpus_per_rank": NOT_NEGATIVE,
    "learner.cpus_per_rank": NOT_NEGATIVE,
    "learner.threads": AT_LEAST_ONE,
    "learner.learning_rate": POSITIVE,
    "learner.warmup_steps": NOT_NEGATIVE,
    "learner.decay_steps": NOT_NEGATIVE,
    "learner.weight_decay": NOT_NEGATIVE,
    "learner.max_grad_norm": POSITIVE,
    "learner.minibatches": AT_LEAST_ONE,
    "learner.micro_batch_tokens": AT_LEAST_ONE,
    "learner.timeout_s": POSITIVE,
    "evaluation.every_steps": NOT_NEGATIVE,
    "evaluation.max_tasks": NOT_NEGATIVE,
    "checkpoint.every_steps": AT_LEAST_ONE,
    "checkpoint.keep": NOT_NEGATIVE,
    "ray.num_cpus": NOT_NEGATIVE,
    "ray.object_store_mb": (">= 80", lambda value: value >= 80),
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read ``path``, apply dotted overrides (``learner.learning_rate=1e-4``) and validate.

    Raises ConfigError for a missing or malformed file, an unknown key (with a suggestion), a value of the wrong type
    and a value out of range.
    """
    path = find_config(path)
    schema = OmegaConf.structured(RunConfig)
    merged = _merge(schema, _read_yaml(path), where=str(path))
    for override in overrides:
        merged = _merge(merged, _parse_override(override), where=f"override {override!r}")
    config: RunConfig = OmegaConf.to_object(merged)  # type: ignore[assignment]
    config = _with_rewards_file(config, overrides, base_dir=path.parent)
    config.tasks.mapping = _found_mapping(config.tasks.mapping, base_dir=path.parent)
    config.rollouts.tools_dir = config.rollouts.tools_dir or str(path.parent.resolve())
    validate(config, where=f"{path} with {' '.join(overrides)}" if overrides else str(path))
    return config


def _read_yaml(path: Path) -> DictConfig:
    try:
        document = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(document, DictConfig):
        raise ConfigError(f"{path} must hold a mapping of keys to values; got {type(document).__name__}")
    return document


def find_config(name: str | Path) -> Path:
    """The file of that name, or the shipped config of that name, with or without ``.yaml``. Raises ConfigError."""
    for candidate in (Path(name), SHIPPED_CONFIGS / name, SHIPPED_CONFIGS / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    shipped = ", ".join(sorted(path.stem for path in SHIPPED_CONFIGS.glob("*.yaml")))
    raise ConfigError(f"there is no config file {str(name)!r}; shipped ones are {shipped}")


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML; `load_config` reads it back to the same config."""
    return OmegaConf.to_yaml(_as_written(config))


def validate(config: RunConfig, *, where: str) -> None:
    """Check every value and how values fit together; raises one ConfigError that names ``where``."""
    for key, allowed in CHOICES.items():
        if str(value := _value(config, key)) not in allowed:
            raise ConfigError(f"{key} must be one of {', '.join(allowed)}; got {value!r} ({where})")
    for key, (allowed_text, holds) in RANGES.items():
        if not holds(value := _value(config, key)):
            raise ConfigError(f"{key} must be {allowed_text}; got {value!r} ({where})")
    for broken, message in _conflicts(config):
        if broken:
            raise ConfigError(f"{message} ({where})")


def _value(config: RunConfig, key: str) -> Any:
    section, *rest = key.split(".")
    return attrgetter(".".join([KEYWORD_KEYS.get(section, section), *rest]))(config)


def _conflicts(config: RunConfig) -> list[tuple[bool, str]]:
    """What each key allows on its own but the pair does not."""
    return [
        *_device_conflicts(config),
        (not config.rewards.scorers, "rewards.scorers must name at least one scorer; got none"),
        (
            config.sampling.max_tokens >= config.rollouts.max_model_len,
            f"rollouts.max_model_len must exceed sampling.max_tokens so that a prompt fits; got "
            f"{config.rollouts.max_model_len} and {config.sampling.max_tokens}",
        ),
        (
            config.tasks_per_step % config.learner.minibatches != 0,
            f"tasks_per_step must be a multiple of learner.minibatches; got {config.tasks_per_step} and "
            f"{config.learner.minibatches}",
        ),
        (
            0 < config.learner.decay_steps <= config.learner.warmup_steps,
            f"learner.decay_steps must exceed learner.warmup_steps, or be 0; got {config.learner.decay_steps} and "
            f"{config.learner.warmup_steps}",
        ),
        (
            len(config.learner.adam_betas) != 2 or not all(0 <= beta < 1 for beta in config.learner.adam_betas),
            f"learner.adam_betas must be two numbers in [0, 1); got {list(config.learner.adam_betas)}",
        ),
        (
            config.loss.objective == "cispo" and config.loss.dual_clip > 0,
            f"loss.dual_clip must be 0 where loss.objective is cispo, which has no use for it; got "
            f"{config.loss.dual_clip}",
        ),
        (
            config.rewards.length_soft_tokens >= config.sampling.max_tokens,
            f"rewards.length_soft_tokens must be below sampling.max_tokens; got {config.rewards.length_soft_tokens} "
            f"and {config.sampling.max_tokens}",
        ),
        (
            config.async_.max_staleness > 0 and config.loss.rollout_correction.mode == "none",
            f"async.max_staleness {config.async_.max_staleness} trains on tokens that older weights wrote, which needs "
            f"an importance correction: set loss.rollout_correction.mode to truncate or mask, or async.max_staleness "
            f"to 0; got mode none",
        ),
    ]


def _device_conflicts(config: RunConfig) -> list[tuple[bool, str]]:
    """The same of what is to run where."""
    return [
        (
            config.rollouts.weight_transfer == "nccl"
            and (config.learner.gpus_per_rank < 1 or config.rollouts.gpus_per_worker < config.rollouts.tensor_parallel),
            f"rollouts.weight_transfer=nccl needs learner.gpus_per_rank >= 1 and rollouts.gpus_per_worker >= "
            f"rollouts.tensor_parallel, since NCCL takes one process per GPU; got {config.learner.gpus_per_rank:g}, "
            f"{config.rollouts.gpus_per_worker:g} and {config.rollouts.tensor_parallel}. "
            f"rollouts.weight_transfer=host needs no GPU",
        ),
        (
            0 < config.rollouts.gpus_per_worker < config.rollouts.tensor_parallel,
            f"rollouts.gpus_per_worker must be >= rollouts.tensor_parallel, since each part of an engine takes a GPU, "
            f"or 0 for the CPU; got {config.rollouts.gpus_per_worker:g} and {config.rollouts.tensor_parallel}",
        ),
        (
            config.learner.ranks > 1 and 0 < config.learner.gpus_per_rank < 1,
            f"learner.gpus_per_rank must be >= 1, or 0 for the CPU, where there are several learner.ranks, since NCCL "
            f"takes one process per GPU; got {config.learner.gpus_per_rank:g} and {config.learner.ranks} ranks",
        ),
        (
            config.learner.attention in ("flex", "flash") and config.learner.gpus_per_rank == 0,
            f"learner.attention must be auto or sdpa where learner.gpus_per_rank is 0; got {config.learner.attention}",
        ),
        (
            config.learner.attention == "flash" and config.policy.dtype != "bfloat16",
            f"learner.attention=flash computes in 16 bits; set policy.dtype=bfloat16, got {config.policy.dtype}",
        ),
        (
            config.learner.offload_optimizer and config.learner.zero_stage == 0,
            "learner.offload_optimizer needs learner.zero_stage 1, 2 or 3: DeepSpeed offloads nothing at 0",
        ),
    ]


def _merge(base: DictConfig, update: Any, *, where: str) -> DictConfig:
    try:
        for written, name in KEYWORD_KEYS.items():
            if name in update:
                raise ConfigKeyError(f"Key '{name}' not in 'RunConfig'. Did you mean: '{written}'?")
        update = _renamed(update, KEYWORD_KEYS)
        merged = OmegaConf.merge(base, update)
    except OmegaConfBaseException as error:
        reason, key = _misfit(base, update) or (str(error).splitlines()[0], getattr(error, "full_key", None))
        for written, name in KEYWORD_KEYS.items():
            key = key and re.sub(rf"^{name}\b", written, key)
            reason = reason.replace(f"Did you mean: '{name}'", f"Did you mean: '{written}'")
        raise ConfigError(f"{key + ': ' if key else ''}{reason} ({where})") from None
    assert isinstance(merged, DictConfig)
    return merged


def _misfit(base: DictConfig, update: DictConfig, *, prefix: str = "") -> tuple[str, str] | None:
    """Where a value stands for a section or for a list: what belongs there, and the key."""
    for name, value in update.items_ex(resolve=False):
        key, node = prefix + str(name), base.get(name) if name in base else None
        if isinstance(node, DictConfig) and isinstance(value, DictConfig):
            if found := _misfit(node, value, prefix=f"{key}."):
                return found
        elif isinstance(node, DictConfig) and value is not None:
            return f"a mapping of keys ({', '.join(map(str, node)) or 'names'}) belongs here; got {value!r}", key
        elif isinstance(node, ListConfig) and value is not None and not isinstance(value, ListConfig):
            return f"a list belongs here, such as [{value!r}]; got {value!r}", key
    return None


def _as_written(config: RunConfig) -> DictConfig:
    """The config with its keys as users write them."""
    return _renamed(OmegaConf.structured(config), {name: written for written, name in KEYWORD_KEYS.items()})


def _renamed(config: DictConfig, names: Mapping[str, str]) -> DictConfig:
    """The same with other names for some of its keys, in the same order."""
    container: Any = OmegaConf.to_container(config)
    return OmegaConf.create({names.get(key, key): value for key, value in container.items()})


def _parse_override(override: str) -> DictConfig:
    key, separator, _ = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"an override must read key=value; got {override!r}, e.g. learner.learning_rate=1e-4")
    try:
        return OmegaConf.from_dotlist([override])
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"override {override!r} cannot be read: {str(error).splitlines()[0]}") from None


def _found_mapping(mapping: str, *, base_dir: Path) -> str:
    """Where the mapping stands: seen from the working folder, from the config's, or among the shipped ones."""
    candidates = [Path(mapping), base_dir / mapping, SHIPPED_CONFIGS / mapping]
    return next((str(path.resolve()) for path in candidates if mapping and path.is_file()), mapping)


def _with_rewards_file(config: RunConfig, overrides: Sequence[str], *, base_dir: Path) -> RunConfig:
    """Take the rewards section from the file that ``rewards.path`` names, if it names one, under the overrides."""
    if not config.rewards.path:
        if not config.rewards.base_dir:
            config.rewards.base_dir = str(base_dir.resolve())
        return config
    candidates = list(dict.fromkeys([base_dir / config.rewards.path, SHIPPED_CONFIGS / config.rewards.path]))
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        looked = ", ".join(str(candidate) for candidate in candidates)
        raise ConfigError(f"rewards.path names no file: {config.rewards.path!r}; looked for {looked}")
    section = _merge(OmegaConf.structured(RewardsConfig), _read_yaml(found), where=str(found))
    for override in overrides:
        if isinstance(overriding := _parse_override(override).get("rewards"), DictConfig):
            section = _merge(section, overriding, where=f"override {override!r}")
    section.path = ""
    config.rewards = OmegaConf.to_object(section)  # type: ignore[assignment]
    config.rewards.base_dir = str(found.parent.resolve())
    return config
