"""The ``judges`` of a rewards section: read from the config, given to scorers, and tried before a run starts."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rewards.judge import Endpoint, EngineEndpoint, Judge
from rl.errors import ConfigError
from rl.plugins import fit_parameters, suggestion

if TYPE_CHECKING:
    from rewards.config import ConfiguredScorer

_ENDPOINT_KEYS = frozenset(
    {each.name for cls in (Endpoint, EngineEndpoint) for each in dataclasses.fields(cls) if each.init}
)


def read_judges(specs: Any, *, where: str = "rewards.judges") -> dict[str, Judge]:
    """The judges by name. Needs no network. Raises ConfigError that names the key."""
    if not isinstance(specs, Mapping):
        raise ConfigError(f"{where} must map names to judges; got {specs!r}")
    return {name: _read_judge(name, spec, where=f"{where}.{name}") for name, spec in specs.items()}


def named_judges(
    cls: type, parameters: Mapping[str, Any], judges: Mapping[str, Judge], *, where: str
) -> dict[str, Any]:
    """The parameters of a scorer, with the judge itself where one of type `Judge` names it."""
    found = dict(parameters)
    for name, value in parameters.items():
        if isinstance(value, str) and _takes_judge(cls, name):
            if value not in judges:
                known = ", ".join(judges) or "none; describe it under rewards.judges"
                raise ConfigError(
                    f"{where}.{name}: no judge is called {value!r}; known: {known}." + suggestion(value, judges)
                )
            found[name] = judges[value]
    return found


def check_judges(
    scorers: Sequence[ConfiguredScorer], *, starts_engines: bool = False, kept_will_do: bool = False
) -> list[str]:
    """Put a trial question to every endpoint of every judge that the scorers ask.

    Returns what is to be said of endpoints that do not answer while others do. Raises ConfigError for a judge of which
    nothing answers, unless ``kept_will_do`` and it has a cache of verdicts. Engines are not asked: they are still to be
    started, or (``starts_engines`` false) never will be.
    """
    judges = list(dict.fromkeys(judge for each in scorers for _, judge in judges_of(each)))
    if not judges:
        return []
    return asyncio.run(_check(judges, starts_engines=starts_engines, kept_will_do=kept_will_do))


def reach_judges(
    scorers: Sequence[ConfiguredScorer],
    *,
    starts_engines: bool = False,
    kept_will_do: bool = False,
    warn: Callable[[str], None] = lambda line: print(f"medrl: {line}", file=sys.stderr, flush=True),
) -> tuple[ConfiguredScorer, ...]:
    """The scorers with their judges' keys read, once these have answered. To be called where a run or a scoring begins.

    Raises ConfigError as `check_judges` does; ``warn`` is told of servers that are missing while others are there.
    """
    for warning in check_judges(scorers, starts_engines=starts_engines, kept_will_do=kept_will_do):
        warn(warning)
    return tuple(with_endpoints(each, {}) for each in scorers)


def judges_of(configured: ConfiguredScorer) -> Iterator[tuple[str, Judge]]:
    """The judges of a scorer, by the field that holds them."""
    for field in dataclasses.fields(configured.scorer):
        if isinstance(value := getattr(configured.scorer, field.name), Judge):
            yield field.name, value


def engines_of(configured: ConfiguredScorer) -> tuple[EngineEndpoint, ...]:
    """The engines that a run has to start for a scorer."""
    endpoints = [endpoint for _, judge in judges_of(configured) for endpoint in judge.endpoints]
    return tuple(endpoint for endpoint in endpoints if isinstance(endpoint, EngineEndpoint))


def with_endpoints(configured: ConfiguredScorer, started: Mapping[EngineEndpoint, Endpoint]) -> ConfiguredScorer:
    """The scorer as other processes get it: the addresses of started engines in place, and every key read.

    Its version stays the same: neither says what a judge answers.
    """
    placed = {
        name: dataclasses.replace(
            judge,
            endpoints=tuple(
                each.with_key() if isinstance(each, Endpoint) else started.get(each, each) for each in judge.endpoints
            ),
        )
        for name, judge in judges_of(configured)
    }
    if not placed:
        return configured
    scorer = copy.copy(configured.scorer)  # with what it has read from files: other processes may not have them
    for name, judge in placed.items():
        object.__setattr__(scorer, name, judge)
    return dataclasses.replace(configured, scorer=scorer)


async def _check(judges: Sequence[Judge], *, starts_engines: bool, kept_will_do: bool) -> list[str]:
    from rewards.judges.client import JudgeClient

    warnings = []
    for judge in judges:
        has_kept = kept_will_do and judge.cache is not None and judge.cache.exists()
        client = JudgeClient(judge)
        try:
            heard = await client.knock()
        finally:
            await client.close()
        silent = {
            endpoint: fault
            for endpoint, fault in heard.items()
            if fault and not (starts_engines and isinstance(endpoint, EngineEndpoint))
        }
        said = [f"{endpoint}: {fault}" for endpoint, fault in silent.items()]
        if len(silent) == len(judge.endpoints) and not has_kept:
            raise ConfigError(
                f"the judge {judge.name!r} does not answer: {'; '.join(said)}. Start it, or mend "
                f"rewards.judges.{judge.name}"
            )
        warnings += [f"the judge {judge.name!r} goes on without {each}" for each in said]
    return warnings


def _read_judge(name: str, spec: Any, *, where: str) -> Judge:
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{where} must be a mapping with `endpoints`, `url` and `model`, or `policy`; got {spec!r}")
    alone = {key: value for key, value in spec.items() if key in _ENDPOINT_KEYS}
    if "endpoints" in spec and alone:
        raise ConfigError(f"{where}.{next(iter(alone))} belongs into one of the endpoints, since there are several")
    listed = spec.get("endpoints", [alone] if alone else [])
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{where} must name `endpoints`, or one by `url` and `model`, or by `policy`; got {spec!r}")
    places = [where] if alone else [f"{where}.endpoints[{index}]" for index in range(len(listed))]
    endpoints = tuple(_read_endpoint(each, where=place) for each, place in zip(listed, places, strict=True))
    own = {key: value for key, value in spec.items() if key not in _ENDPOINT_KEYS}
    for key in own:
        _refuse_secret(key, where=where)
    try:
        fitted = fit_parameters(Judge, own | {"endpoints": endpoints, "name": name}, where=where)
        if fitted.get("cache"):
            fitted["cache"] = Path(fitted["cache"]).resolve()
        return Judge(**fitted)
    except ConfigError as error:
        raise error if str(error).startswith(where) else ConfigError(f"{where}: {error}") from None


def _read_endpoint(spec: Any, *, where: str) -> Endpoint | EngineEndpoint:
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{where} must be a mapping with `url` and `model`, or `policy`; got {spec!r}")
    for key in spec:
        _refuse_secret(key, where=where)
    if "policy" in spec:
        engine = EngineEndpoint(**fit_parameters(EngineEndpoint, spec, where=where))
        folder = Path(engine.policy)
        if engine.policy.startswith((".", "/")) and not (folder / "config.json").is_file():
            raise ConfigError(f"{where}.policy: {engine.policy!r} is no folder of a policy: it has no config.json")
        return dataclasses.replace(engine, policy=str(folder.resolve())) if folder.is_dir() else engine
    return read_endpoint(spec, where=where)


def read_endpoint(spec: Mapping[str, Any], *, where: str) -> Endpoint:
    """A server by its address. Raises ConfigError where that is none."""
    endpoint = Endpoint(**fit_parameters(Endpoint, spec, where=where))
    parts = urlsplit(endpoint.url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise ConfigError(
            f"{where}.url must be the address of an OpenAI-compatible server up to /v1, with http:// or https:// and "
            "without a password or a query"
        )
    if endpoint.max_concurrency < 1:
        raise ConfigError(f"{where}.max_concurrency must be >= 1; got {endpoint.max_concurrency}")
    return endpoint


def _refuse_secret(key: str, *, where: str) -> None:
    if key in ("api_key", "key", "token"):
        raise ConfigError(
            f"{where}.{key}: a key never stands in a config, which is logged; name the environment variable that holds "
            "it in `api_key_env`"
        )


def _takes_judge(cls: type, name: str) -> bool:
    try:
        annotation = typing.get_type_hints(cls).get(name)
    except (NameError, TypeError, AttributeError):
        return False  # `fit_parameters` says what is wrong with it
    return Judge in (annotation, *typing.get_args(annotation))
