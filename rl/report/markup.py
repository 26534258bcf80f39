"""HTML and SVG by construction: whatever is not markup already is escaped when it becomes part of some."""

from __future__ import annotations

import html

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})


class Markup(str):
    """Text that is HTML or SVG already. Only `element` and `join` make it, and code that builds it of literals."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """One element. Children that are not `Markup` are escaped, as are all attribute values.

    ``class_`` and ``for_`` lose their underscore, other underscores become hyphens (``data_chart``). None leaves an
    attribute out, an empty string writes it bare (``open``).
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    opening = f"<{name}{written}>"
    return Markup(opening if name in _VOID else f"{opening}{join(*children)}</{name}>")


def join(*children: str) -> Markup:
    """Children in a row, those that are not `Markup` escaped."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(child) for child in children))


def _attribute(key: str, value: str | float) -> str:
    name = key.rstrip("_").replace("_", "-")
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f' {name}="{html.escape(text)}"' if text else f" {name}"
