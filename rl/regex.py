"""RE2's regular expressions, which take time linear in the text: no look-around, no back-references."""

from __future__ import annotations

import functools
from typing import Any

import re2

MAX_MEMORY_BYTES = 1 << 22


@functools.lru_cache(maxsize=1024)
def compile_regex(pattern: str) -> Any:
    """An RE2 pattern. Raises re2.error with RE2's words."""
    options = re2.Options()
    options.max_mem = MAX_MEMORY_BYTES
    options.log_errors = False
    return re2.compile(pattern, options)
