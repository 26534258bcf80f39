"""From the ``rewards`` section of a config to scorers that are ready to run, every fault found before the run starts.

    rewards:
      scorers:
        answer:    {use: answer, weight: 1.0}
        grounding: {use: hallucination, weight: 0.5, when: {record: true}}
        safety:    {use: rubric, path: rewards/cytology_safety.yaml, gate: true}
        red_flags: {use: "my_hospital.scorers:RedFlags", weight: 0.25, terms: [fever]}

``use`` is a built-in name, an entry point of the group ``medrl.scorers`` or ``module.path:Class`` (see `rl.plugins`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast, get_args

from rewards.combine import largest_penalty
from rewards.judge import Judge
from rewards.judges.config import named_judges, read_judges
from rewards.places import lines_named, read_yaml
from rewards.provenance import version_of
from rewards.scorer import Scorer, Turns
from rl.errors import ConfigError
from rl.plugins import fit_parameters, import_folders, make_importable, plain, resolve_class, suggestion
from rl.types import Task

BUILT_IN = {
    "answer": "rewards.answer:AnswerScorer",
    "easyr1": "rewards.compat:EasyR1Function",
    "format": "rewards.format:FormatScorer",
    "hallucination": "rewards.hallucination:HallucinationScorer",
    "key_points": "rewards.key_points:KeyPointScorer",
    "openrlhf": "rewards.compat:OpenRlhfFunction",
    "rubric": "rewards.rubric:RubricScorer",
    "symbolic": "rewards.symbolic:SymbolicScorer",
    "trace": "rewards.trace_scorer:TraceScorer",
    "trl": "rewards.compat:TrlFunction",
    "verl": "rewards.compat:VerlFunction",
}
ENTRY_POINTS = "medrl.scorers"
SHIPPED_RUBRICS = Path(__file__).resolve().parent.parent / "configs" / "rewards"
DEFAULT_TIMEOUT_S = 30.0
MAX_RETRIES = 10

SECTION_KEYS = frozenset(
    {"path", "judges", "scorers", "length_penalty", "length_soft_tokens", "max_unscored_fraction"}
    | {"workers", "timeout_s", "base_dir", "cache"}
)
"""Keys of the ``rewards`` section, those of `rl.config.RewardsConfig`."""
USE_KEYS = frozenset(
    {"use", "weight", "gate", "shaping", "rising", "timeout_s", "when", "isolated", "retries", "deterministic"}
    | {"turns"}
)
"""Keys of one scorer's entry that say how it is used; all others are the scorer's own parameters."""
TASK_FIELDS = frozenset(
    {"answer", "extra", "record", "rubric", "reference", "images", "stratum", "id", "question", "follow_ups"}
)


@dataclass(frozen=True, kw_only=True)
class ConfiguredScorer:
    """A scorer and how a run uses it.

    ``version`` is a hash of the scorer's code and parameters, the same in every process and on every machine;
    ``when`` maps dotted fields of the task to the value, or the list of values, that they must have (true: not
    empty) for the scorer to apply. A ``weight`` of 0 watches: the score is kept, the reward does not see it.
    ``shaping`` is the most that a score takes off the reward, all of it where it is 0; such a scorer has no weight. Of
    one that is ``rising`` the more is taken off the better the rest of the reward is (see `rewards.combine`).
    ``retries`` is how often a failed score is asked for again; scores of a ``deterministic`` scorer may be cached.
    ``turns`` is what is read of a trajectory of several; each that is read by itself has ``timeout_s`` and ``retries``.
    ``import_folders`` are where the scorer's module may lie outside of the installed packages; they travel along, so
    that any process can unpickle it.
    """

    name: str
    scorer: Scorer
    weight: float = 1.0
    gate: bool = False
    shaping: float = 0.0
    rising: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S
    when: Mapping[str, Any] = field(default_factory=dict)
    isolated: bool = False
    retries: int = 0
    deterministic: bool = False
    turns: Turns = "all"
    version: str = ""
    import_folders: tuple[str, ...] = ()

    def applies_to(self, task: Task) -> bool:
        return all(_holds(task, path, wanted) for path, wanted in self.when.items())

    def __reduce__(self) -> tuple[Any, ...]:
        others = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "scorer"}
        return _restored, (_Importable(self.import_folders), self.scorer, others)


@dataclass(frozen=True)
class _Importable:
    """Pickled in front of a scorer, it makes the scorer's module importable wherever the two are unpickled."""

    folders: tuple[str, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return make_importable, (self.folders,)


def _restored(_: None, scorer: Scorer, others: Mapping[str, Any]) -> ConfiguredScorer:
    return ConfiguredScorer(scorer=scorer, **others)


@dataclass(frozen=True, kw_only=True)
class RewardsFile:
    """What a rewards file says: the scorers, and how their scores are shaped (the keys of `rl.config_schema`)."""

    scorers: tuple[ConfiguredScorer, ...]
    length_penalty: float = 0.0
    length_soft_tokens: int = 0
    cache: str = ""
    """A file that keeps scores from one use to the next; empty keeps them in memory alone."""


def load_rewards_file(path: str | Path) -> RewardsFile:
    """Build the scorers of a rewards file, which needs no run around it: bare, or a config with a ``rewards`` section.

    Relative paths in it start from its own folder, or from the ``base_dir`` that a run has written into its config.
    Raises ConfigError with the ``file:line`` of the key at fault.
    """
    file = find_file(Path(path), ".", where="the rewards file")
    with lines_named(file):
        section = read_section({"path": str(file)})
        soft_tokens = section.get("length_soft_tokens", 0)
        if isinstance(soft_tokens, bool) or not isinstance(soft_tokens, int) or soft_tokens < 0:
            raise ConfigError(f"rewards.length_soft_tokens must be an integer >= 0; got {soft_tokens!r}")
        base_dir = Path(_text(section.get("base_dir", ""), where="rewards.base_dir") or file.parent)
        return RewardsFile(
            scorers=load_rewards(section, base_dir if base_dir.is_dir() else file.parent),
            length_penalty=float(section.get("length_penalty", 0.0)),
            length_soft_tokens=soft_tokens,
            cache=_text(section.get("cache", ""), where="rewards.cache"),
        )


def load_rewards(section: Mapping[str, Any], base_dir: str | Path = ".") -> tuple[ConfiguredScorer, ...]:
    """Build every scorer of a ``rewards`` section.

    Paths are looked for in ``base_dir`` (the folder of the config), in the working folder, then among the shipped
    rubrics. Raises ConfigError, naming the key, for whatever does not exist or does not fit together.
    """
    section = read_section(section, base_dir)
    specs = section.get("scorers") or {}
    if not isinstance(specs, Mapping) or not specs:
        raise ConfigError(f"rewards.scorers must name at least one scorer; got {specs!r}")
    timeout_s = _positive(section.get("timeout_s", DEFAULT_TIMEOUT_S), where="rewards.timeout_s")
    judges = read_judges(section.get("judges") or {})
    scorers = tuple(
        build_scorer(name, spec, base_dir=base_dir, default_timeout_s=timeout_s, judges=judges)
        for name, spec in specs.items()
    )
    if not sum(each.weight for each in scorers if not each.gate) > 0:
        weights = ", ".join(f"{each.name}: {'gate' if each.gate else each.weight}" for each in scorers)
        raise ConfigError(
            f"the weights in rewards.scorers sum to 0 ({weights}); at least one scorer needs a weight > 0"
        )
    _check_penalty(section, scorers)
    return scorers


def read_section(section: Mapping[str, Any], base_dir: str | Path = ".") -> dict[str, Any]:
    """The section itself or, where it has a ``path``, the section in that file (bare, or under ``rewards:``)."""
    section = dict(plain(section))
    if section.get("path"):
        file = find_file(Path(section["path"]), base_dir, where="rewards.path")
        content, _ = read_yaml(file)
        if not isinstance(content, Mapping):
            raise ConfigError(f"{file} must be a mapping with the key `scorers`; got {type(content).__name__}")
        section = dict(plain(content.get("rewards", content)))
    for key in section:
        if key not in SECTION_KEYS:
            allowed = ", ".join(sorted(SECTION_KEYS))
            raise ConfigError(f"rewards.{key} is not known; allowed: {allowed}." + suggestion(key, SECTION_KEYS))
    return section


def build_scorer(
    name: str,
    spec: Mapping[str, Any],
    *,
    base_dir: str | Path = ".",
    default_timeout_s: float = DEFAULT_TIMEOUT_S,
    judges: Mapping[str, Judge] = MappingProxyType({}),
) -> ConfiguredScorer:
    """Build one scorer from its entry in ``rewards.scorers``. Raises ConfigError for whatever does not fit."""
    where = f"rewards.scorers.{name}"
    if not isinstance(spec, Mapping) or not isinstance(spec.get("use"), str):
        raise ConfigError(f"{where} must be a mapping with the key `use`; got {spec!r}")
    spec = plain(spec)
    cls = resolve_scorer(spec["use"], base_dir=base_dir, where=f"{where}.use")
    parameters = {key: value for key, value in spec.items() if key not in USE_KEYS}
    fitted = fit_parameters(cls, named_judges(cls, parameters, judges, where=where), where=where)
    for key, value in fitted.items():
        if isinstance(value, Path):
            fitted[key] = find_file(value, base_dir, where=f"{where}.{key}")
    gate = _flag(spec.get("gate", False), where=f"{where}.gate")
    shaping = _weight(spec.get("shaping", 0.0), where=f"{where}.shaping")
    if shaping and (gate or spec.get("weight")):
        raise ConfigError(f"{where}: a scorer that shapes has neither a weight nor a gate; leave one of them out")
    rising = _flag(spec.get("rising", False), where=f"{where}.rising")
    if rising and not shaping:
        raise ConfigError(f"{where}.rising is about what `shaping` takes off; set that too")
    try:
        scorer = cls(**fitted)
        scorer.check_use(gate=gate)
    except (TypeError, ValueError, ConfigError) as error:
        raise ConfigError(f"{where}: {error}") from error
    turns = _turns(spec.get("turns", scorer.turns), where=f"{where}.turns")
    return ConfiguredScorer(
        name=name,
        scorer=scorer,
        weight=_weight(spec.get("weight", 0.0 if gate or shaping else 1.0), where=f"{where}.weight"),
        gate=gate,
        shaping=shaping,
        rising=rising,
        timeout_s=_positive(spec.get("timeout_s", default_timeout_s), where=f"{where}.timeout_s"),
        when=_when(spec.get("when", {}), where=f"{where}.when"),
        isolated=_flag(spec.get("isolated", cls.isolated), where=f"{where}.isolated"),
        retries=_retries(spec.get("retries", 0), where=f"{where}.retries"),
        deterministic=_flag(spec.get("deterministic", scorer.deterministic), where=f"{where}.deterministic"),
        turns=turns,
        version=version_of(scorer, turns=turns),
        import_folders=import_folders(base_dir),
    )


def resolve_scorer(name_or_path: str, *, base_dir: str | Path = ".", where: str = "use") -> type[Scorer]:
    """The scorer class of a built-in name, an entry point or ``module.path:Class``. Raises ConfigError."""
    return resolve_class(
        name_or_path,
        Scorer,  # type: ignore[type-abstract]
        noun="scorer",
        built_in=BUILT_IN,
        entry_points=ENTRY_POINTS,
        base_dir=base_dir,
        where=where,
    )


def find_file(path: Path, base_dir: str | Path, *, where: str) -> Path:
    """An existing file for a path from a config. Raises ConfigError that names the places it was looked for in."""
    places = [Path(base_dir), Path.cwd(), SHIPPED_RUBRICS, SHIPPED_RUBRICS.parent]
    tried = list(dict.fromkeys((place / path).resolve() for place in places))
    for candidate in tried:
        if candidate.is_file():
            return candidate
    raise ConfigError(f"{where}: there is no file {str(path)!r}; looked for {', '.join(map(str, tried))}")


def _check_penalty(section: Mapping[str, Any], scorers: tuple[ConfiguredScorer, ...]) -> None:
    penalty = section.get("length_penalty", 0.0)
    shaping = {each.name: each.shaping for each in scorers if each.shaping}
    weights = {each.name: each.weight for each in scorers if not each.gate}
    correctness = [each.name for each in scorers if each.scorer.decides_correctness]
    bound = largest_penalty(weights, correctness=correctness)
    if not isinstance(penalty, int | float) or not 0.0 <= penalty <= bound:
        raise ConfigError(
            f"rewards.length_penalty must be in [0, {bound:.4g}], so that a long right answer still outranks a short "
            f"wrong one under these weights; got {penalty!r}"
        )
    if penalty + sum(shaping.values()) > bound:
        parts = " + ".join([f"length_penalty {penalty:g}", *(f"{name} {most:g}" for name, most in shaping.items())])
        raise ConfigError(
            f"rewards: all shaping together must be at most {bound:.4g}, so that no amount of it outranks correctness "
            f"under these weights; got {parts}"
        )


def max_shaping(scorers: Iterable[ConfiguredScorer], length_penalty: float) -> float:
    """The most that shaping can take off a reward."""
    return length_penalty + sum(each.shaping for each in scorers)


def task_field(task: Task, path: str) -> Any:
    """What a dotted path such as ``answer.value`` leads to in a task; None where it leads nowhere."""
    name, *keys = path.split(".")
    found: Any = getattr(task, name)
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def check_task_field(path: str, *, where: str) -> None:
    """Raise ConfigError for a dotted path that no task can have."""
    root = path.split(".")[0]
    if root not in TASK_FIELDS:
        allowed = ", ".join(sorted(TASK_FIELDS))
        raise ConfigError(
            f"{where}: a task has no such field; start with one of {allowed}." + suggestion(root, TASK_FIELDS)
        )


def _holds(task: Task, path: str, wanted: Any) -> bool:
    found = task_field(task, path)
    if isinstance(wanted, bool) and not isinstance(found, bool):
        return bool(found) == wanted
    return found in wanted if isinstance(wanted, list) else found == wanted


def _when(value: Any, *, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{where} must map fields of the task to values, as in {{answer.type: choice}}; got {value!r}"
        )
    for path in value:
        check_task_field(path, where=f"{where}.{path}")
    return dict(value)


def _weight(value: Any, *, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < math.inf:
        raise ConfigError(f"{where} must be a number >= 0; got {value!r}")
    return float(value)


def _text(value: Any, *, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where} must be a string; got {value!r}")
    return value


def _positive(value: Any, *, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < math.inf:
        raise ConfigError(f"{where} must be a number > 0; got {value!r}")
    return float(value)


def _retries(value: Any, *, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_RETRIES:
        raise ConfigError(f"{where} must be an integer in [0, {MAX_RETRIES}]; got {value!r}")
    return value


def _turns(value: Any, *, where: str) -> Turns:
    if value not in get_args(Turns):
        allowed = "`last`, `each` (by itself) or `all` (at once)"
        raise ConfigError(f"{where} is what is read of a trajectory of several turns: {allowed}; got {value!r}")
    return cast(Turns, value)


def _flag(value: Any, *, where: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{where} must be true or false; got {value!r}")
    return value
