"""What every report has around its sections: one page, complete in itself, light or dark."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from rl.report.markup import Markup, element

STYLE = Path(__file__).with_name("report.css")
SCRIPT = Path(__file__).with_name("report.js")


def document(name: str, *, links: Mapping[str, str], sections: Iterable[Markup]) -> str:
    """The whole page of ``name``: it loads nothing, and runs no script but its own. ``links`` lead to sections."""
    script = SCRIPT.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{name} · medrl report"),
        element("style", Markup(STYLE.read_text(encoding="utf-8"))),
    )
    body = element(
        "body",
        top_bar(name, {f"#{target}": title for target, title in links.items()}),
        element("main", *sections),
        element("script", Markup(script)),
    )
    return "<!doctype html>\n" + element("html", head, body, lang="en")


def section(name: str, title: str, lead: str, *content: Markup) -> Markup:
    return element(
        "section", element("h2", title), element("p", lead, class_="lead") if lead else "", *content, id=name
    )


def top_bar(name: str, links: Mapping[str, str]) -> Markup:
    """The bar above every page. ``links`` goes by address."""
    themes = [
        element(
            "label",
            element("input", type="radio", name="theme", value=theme, checked="" if theme == "auto" else None),
            element("span", theme),
        )
        for theme in ("auto", "light", "dark")
    ]
    return element(
        "header",
        element("span", "medrl", class_="brand"),
        element("span", name, class_="run-name"),
        element("nav", *(element("a", title, href=address) for address, title in links.items())),
        element("fieldset", element("legend", "Theme", class_="unseen"), *themes, class_="theme"),
    )
