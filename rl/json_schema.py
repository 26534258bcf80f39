"""JSON Schemas that hostile values are checked by: bounded in time, whatever the value holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rl.regex import compile_regex

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_UNBOUNDED = frozenset({"patternProperties", "$dynamicRef", "$recursiveRef"})
"""Keywords that would run Python's regular expressions, or lead where a bound is not seen."""


def schema_fault(schema: Mapping[str, Any]) -> str:
    """Why the designer's schema cannot be used; empty if it can."""
    import re2
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
        for key, value in _keywords(schema):
            if key in _UNBOUNDED or (key == "$ref" and not str(value).startswith("#/$defs/")):
                return f"{key}: {value!r} is not supported; references go to #/$defs/…"
            if key == "pattern" and isinstance(value, str):
                compile_regex(value)
    except SchemaError as error:
        return f"this is no JSON Schema: {error.message}"
    except re2.error:
        return f"the pattern {value!r} does not compile (RE2 syntax)"
    return ""


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            yield key, value
            yield from _keywords(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _keywords(value)


def bounded_validator(schema: Mapping[str, Any]) -> Validator:
    """For a schema that `schema_fault` finds nothing wrong with."""
    from jsonschema import Draft202012Validator, validators

    keywords = {"pattern": _pattern, "uniqueItems": _unique_items}
    return validators.extend(Draft202012Validator, keywords)(schema)


def _pattern(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[Any]:
    """Linear in the text, as Python's own are not."""
    from jsonschema.exceptions import ValidationError

    if isinstance(instance, str) and not compile_regex(pattern).search(instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _unique_items(_: Any, unique: bool, instance: Any, __: Any) -> Iterator[Any]:
    """By what the items are written as: comparing each with each would be quadratic."""
    from jsonschema.exceptions import ValidationError

    if unique and isinstance(instance, list):
        written = {json.dumps(item, sort_keys=True) for item in instance}
        if len(written) < len(instance):
            yield ValidationError("the items are not unique")
