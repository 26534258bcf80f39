"""The rule `json_schema`: a text that is JSON of the schema that a designer wrote. Bounded, whatever the text holds."""

from __future__ import annotations

import functools
import json
from typing import Any

from rl.json_schema import bounded_validator

MAX_JSON_CHARS = 20_000


def json_fault(text: str, schema: str) -> str:
    """What keeps a text from being JSON of the schema (as JSON itself, so that it can be cached); empty if nothing."""
    if len(text) > MAX_JSON_CHARS:
        return f"{len(text)} characters are not read as JSON"
    try:
        value = json.loads(text)
        error = next(_validator(schema).iter_errors(value), None)
    except ValueError as fault:
        return f"no JSON: {fault}"[:200]
    except RecursionError:
        return "nested too deep"
    return error.message[:200] if error else ""


@functools.lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    return bounded_validator(json.loads(schema))
