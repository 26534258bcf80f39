"""A calendar date, or a gestational age in weeks and days."""

from __future__ import annotations

import datetime
import re
import unicodedata
from dataclasses import dataclass

from rewards.answer_types.reading import Check, denied, key_number, key_value
from rewards.scorer import InvalidInput
from rl.types import Task

_MONTHS = {
    **{"jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6, "jul": 7, "aug": 8, "sep": 9, "sept": 9},
    **{"oct": 10, "nov": 11, "dec": 12, "january": 1, "february": 2, "march": 3, "april": 4, "june": 6, "july": 7},
    **{"august": 8, "september": 9, "october": 10, "november": 11, "december": 12},
}
_NAME = r"(?P<name>[A-Za-z]{3,9})\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>\d{4})"
_FORMS = tuple(
    re.compile(rf"(?<![\w./-]){form}(?![\w/-]|\.\d)", re.IGNORECASE)
    for form in (
        rf"{_YEAR}[-/.](?P<month>\d{{1,2}})[-/.](?P<day>\d{{1,2}})(?:T[\d:.]{{1,15}}Z?)?",
        r"(?P<year>\d{4})(?P<month>\d{2})(?P<day>\d{2})",
        rf"{_YEAR}\s?年\s?(?P<month>\d{{1,2}})\s?月\s?(?P<day>\d{{1,2}})\s?日",
        rf"(?P<first>\d{{1,2}})[-/.](?P<second>\d{{1,2}})[-/.]{_YEAR}",
        rf"{_DAY}(?:\s?of)?[\s/-]{{0,3}}{_NAME}[\s,/-]{{0,3}}{_YEAR}",
        rf"{_YEAR}[\s,-]{{1,3}}{_NAME}[\s-]{{1,3}}{_DAY}",
        rf"{_NAME}\s{{1,2}}{_DAY}[\s,]{{1,3}}{_YEAR}",
        rf"{_NAME}[\s,]{{1,3}}{_YEAR}",
        rf"{_YEAR}[-/](?P<month>\d{{1,2}})",
        rf"(?P<month>\d{{1,2}})/{_YEAR}",
    )
)
_GESTATION = re.compile(
    r"(?<![\w.])(?P<weeks>\d{1,2})\s?(?:(?:-|and\s)?\s?(?P<sevenths>[0-6])/7\s?)?-?(?:w|wk|wks|weeks?)"
    r"(?:(?:\s?,|\s?and|\s?\+)?\s?(?P<days>[0-6])(?:[\s-]?(?:d|days?)|\s?/7))?(?![\w/])"
    r"|(?<![\w.])(?P<plus_weeks>\d{1,2})\s?(?:\+\s?(?P<plus_days>[0-6])(?:\s?/7)?|\s(?P<bare_sevenths>[0-6])/7)(?![\w/])"
    r"|(?<![\w.])(?P<only_days>\d{2,3})\s?(?:d|days)(?!\w)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, order=True)
class _Date:
    """``day`` 0 where only year and month are known."""

    year: int
    month: int
    day: int

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.month:02d}" + (f"-{self.day:02d}" if self.day else "")


def check(given: str, task: Task) -> Check:
    """Key: ``{"value": "2024-03-05" | "2024-03" | "32w4d", "tolerance_days"?, "day_first"?}``.

    Dates are read in the usual spellings, with years of four digits; ``05/03/2024`` is read month first unless
    ``day_first``, and the other way round where only that is a date. All dates that are given and not rejected
    (``March 5, not March 6``) must be right. A gestational age is one number of days, whatever its spelling
    (``32w4d``, ``32+4``, ``32 4/7 weeks``, ``228 days``).
    """
    key = key_value(task, str)
    day_first = task.answer.get("day_first") is True
    expected_days = _gestation(key)
    if expected_days:
        return _compare_days(_gestation(given), expected_days[0], task)
    expected = _dates(key, day_first=day_first)
    if len(expected) != 1:
        raise InvalidInput(f"answer.value of task {task.id!r} must be a date or a gestational age; got {key!r}")
    return _compare_dates(_dates(given, day_first=day_first), expected[0], task)


def _compare_dates(found: list[_Date], expected: _Date, task: Task) -> Check:
    if not found:
        return Check(0.0, f"holds no date, expected {expected}")
    read = ", ".join(map(str, found))
    right = all(_same_date(each, expected, task) for each in found)
    return Check(float(right), f"read {read}, expected {expected}", read=read)


def _same_date(found: _Date, expected: _Date, task: Task) -> bool:
    if not (found.day and expected.day):
        return (found.year, found.month) == (expected.year, expected.month) and not expected.day
    tolerance = key_number(task, "tolerance_days", 0.0) or 0.0
    difference = datetime.date(*_parts(found)) - datetime.date(*_parts(expected))
    return abs(difference.days) <= tolerance


def _compare_days(found: list[int], expected: int, task: Task) -> Check:
    spelled = f"expected {expected // 7}w{expected % 7}d"
    if not found:
        return Check(0.0, f"holds no gestational age, {spelled}")
    tolerance = key_number(task, "tolerance_days", 0.0) or 0.0
    read = ", ".join(f"{days // 7}w{days % 7}d" for days in found)
    return Check(float(all(abs(days - expected) <= tolerance for days in found)), f"read {read}, {spelled}", read=read)


def _gestation(text: str) -> list[int]:
    """Gestational ages in days."""
    found = set()
    text = unicodedata.normalize("NFKC", text).translate({ord("周"): "w", ord("天"): "d"})
    for match in _GESTATION.finditer(text):
        if denied(text, match.start()):
            continue
        weeks = match["weeks"] or match["plus_weeks"] or "0"
        parts = ("sevenths", "days", "plus_days", "bare_sevenths", "only_days")
        days = next((match[part] for part in parts if match[part]), "0")
        found.add(7 * int(weeks) + int(days))
    return sorted(found)


def _dates(text: str, *, day_first: bool) -> list[_Date]:
    """All dates in a text; of overlapping spellings the fullest."""
    found = set()
    for form in _FORMS:
        for match in list(form.finditer(text)):
            if date := _date(match, day_first=day_first):
                if not denied(text, match.start()):
                    found.add(date)
                text = f"{text[: match.start()]}{';' * len(match[0])}{text[match.end() :]}"
    return sorted(found)


def _date(match: re.Match[str], *, day_first: bool) -> _Date | None:
    parts = match.groupdict()
    if parts.get("first"):
        day, month = int(parts["first"]), int(parts["second"])
        if not day_first:
            day, month = month, day
        if month > 12:
            day, month = month, day
    else:
        month = int(parts["month"]) if parts.get("month") else _MONTHS.get((parts.get("name") or "").casefold(), 0)
        day = int(parts.get("day") or 0)
    date = _Date(int(parts["year"]), month, day)
    try:
        datetime.date(date.year, date.month, date.day or 1)
    except ValueError:
        return None
    return date


def _parts(date: _Date) -> tuple[int, int, int]:
    return date.year, date.month, date.day
