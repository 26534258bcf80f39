"""A completion token by token: how likely each was to the engine that drew it, and to the learner trained on it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rl.report.markup import Markup, element
from rl.view.runs import config_of, made_in

_MOST_SHOWN = 3000
_SMALLEST, _LARGEST = 1e-5, 1.0  # nats: where the colour of a difference begins, and where it is full
_UNLIKELY = 5.0  # nats: a token of this surprise, a probability below 1 %, is underlined in full
_TOKENIZER_FOLDERS = ("policy", "initial_policy")


def token_section(row: Mapping[str, Any], texts: Sequence[str] | None) -> Markup:
    """The tokens of a row of the store, ``texts`` as their spellings where the tokenizer is known.

    The stronger the ground, the further apart learner and engine are; the stronger the line below, the less likely the
    token was as it was drawn. Nothing for a row without tokens.
    """
    ids, drawn, learnt = row["completion_token_ids"], row["rollout_logprobs"], row["learner_logprobs"]
    written = row["completion_mask"]
    if ids is None or drawn is None or not len(ids):
        return Markup()
    differences = np.full(len(ids), np.nan) if learnt is None else learnt.astype(np.float64) - drawn
    spellings = texts or [f"{id} " for id in ids]
    runs = _runs(ids, written)[:_MOST_SHOWN]
    shown = [
        _token(start, int(ids[start]), spellings[start], float(drawn[start]), float(differences[start]))
        if written[start]
        else _told(start, end, int(ids[start]), spellings[start])
        for start, end in runs
    ]
    cut = len(ids) - runs[-1][1]
    count = f"{len(ids):,}" + ("" if written.all() else f", {written.sum():,} of them written by the policy")
    return element(
        "details",
        element("summary", "Tokens ", element("span", f"{count}; {_summary(differences, spellings)}", class_="dim")),
        element("p", _LEGEND if learnt is not None else _LEGEND_DRAWN, class_="note"),
        element("div", *shown, element("i", f" … {cut:,} more", class_="cut") if cut else "", class_="tokens"),
        class_="fold",
    )


_ALWAYS = "Tokens that the policy did not write are dim. Point at one for its numbers."
_LEGEND = (
    f"The stronger the ground, the further the learner's logprob was from the engine's before the update; the stronger "
    f"the line, the less likely the token was. {_ALWAYS}"
)
_LEGEND_DRAWN = f"The stronger the line, the less likely the token was as it was drawn. {_ALWAYS}"


def _runs(ids: np.ndarray, written: np.ndarray) -> list[tuple[int, int]]:
    """Where each element begins and ends: every token that the policy wrote, and every run of one that it was told, as
    an image's are."""
    again = ~written[1:] & ~written[:-1] & (ids[1:] == ids[:-1])
    return list(pairwise([0, *(np.flatnonzero(~again) + 1).tolist(), len(ids)]))


def _summary(differences: np.ndarray, spellings: Sequence[str]) -> str:
    sizes = np.abs(differences)
    if not np.isfinite(sizes).any():
        return "no learner logprobs were logged"
    worst = int(np.nanargmax(sizes))
    if sizes[worst] == 0:
        return "learner and engine agree to the bit"
    return (
        f"learner − engine: mean size {np.nanmean(sizes):.2g} nats, largest {differences[worst]:+.2g} at token {worst} "
        f"{spellings[worst].strip()!r}"
    )


def _token(place: int, id: int, text: str, drawn: float, difference: float) -> Markup:
    told = f"token {place} · id {id} · engine {drawn:.4f} nats"
    if math.isfinite(difference):
        told += f" · learner {drawn + difference:.4f} · difference {difference:+.2e}"
    surprise = min(-drawn / _UNLIKELY, 1.0)
    return element("span", text, title=told, style=f"--apart:{_strength(difference):.2f};--surprise:{surprise:.2f}")


def _told(start: int, end: int, id: int, text: str) -> Markup:
    places = f"token {start}"
    if end - start > 1:
        places, text = f"tokens {start} to {end - 1}", f"{text} × {end - start:,} "
    return element("span", text, class_="foreign", title=f"{places} · id {id} · not written by the policy")


def _strength(difference: float) -> float:
    """From 0 to 1, by the logarithm of the difference."""
    size = abs(difference) if math.isfinite(difference) else 0.0
    if size <= _SMALLEST:
        return 0.0
    return min(math.log(size / _SMALLEST) / math.log(_LARGEST / _SMALLEST), 1.0)


def spelled(folder: Path, ids: Sequence[int]) -> list[str] | None:
    """Each token as text, by the tokenizer of the run's policy; None where there is none, or no ``tokenizers``."""
    path = _tokenizer_file(folder)
    if path is None:
        return None
    tokenizer = _tokenizer(path)
    if tokenizer is None:
        return None
    texts = {id: tokenizer.decode([id], skip_special_tokens=False) for id in set(ids)}
    return [texts[id] for id in ids]


def _tokenizer_file(folder: Path) -> Path | None:
    run = made_in(folder)
    named = str((config_of(folder).get("policy") or {}).get("path") or "")
    places = [*(run / name for name in _TOKENIZER_FOLDERS), *([Path(named)] if named else [])]
    return next((place / "tokenizer.json" for place in places if (place / "tokenizer.json").is_file()), None)


@functools.lru_cache(maxsize=4)
def _tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:  # it comes with the stack of training, which looking at logs does not need
        return None
    return Tokenizer.from_file(str(path))
