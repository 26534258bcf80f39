"""A number, with or without a unit."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import unicodedata

from rewards.answer_types.reading import Check, denied, key_number
from rewards.quantity import Quantity, Unit, convert, own_unit, parse_unit, quantities
from rewards.scorer import InvalidInput
from rl.types import Task

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_IN_WORDS = {"none": 0, "no": 0} | {word: value for value, word in enumerate(_SMALL.split())}
_IN_WORDS |= {word: 10 * tens for tens, word in enumerate(_TENS.split(), start=2)}
_FRACTION = re.compile(r"\s*(\d{1,9})\s?/\s?(\d{1,9})\s*")
_AFTER_SIGN = re.compile(r"(?<![<>])[=≈]")
_DIGIT = re.compile(r"\d")
_PERCENT = parse_unit("%")
_MARGIN = re.compile(r"(?:±|\+/-)\s?$")  # in front of a margin, which is no second answer
_BOUND = re.compile(
    r"(?:(?<![\w\"'/|])[<>≤≥]=?|\b(?:(?:less|more|greater|fewer|higher|lower)\sthan|at\s(?:least|most)|up\sto))\s?$",
    re.IGNORECASE,
)
_CHINESE_UNITS = {
    **{"厘米": "cm", "毫米": "mm", "微米": "µm", "毫克": "mg", "微克": "µg", "千克": "kg", "公斤": "kg", "毫升": "mL"},
    **{"岁": "years", "小时": "hours", "分钟": "minutes"},
}
_GROUPS = re.compile(
    r"(?<![\w.,])\d{1,3}(?:(?:[ '’\u2009\u202f]\d{3}){1,5}|(?:\.\d{3}){2,5})(?![\d'’]|[., ]\d)"
)  # thousands that are set apart otherwise than by commas
_SPELLINGS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"\\[dt]?frac\s?\{(\d{1,9})\}\s?\{(\d{1,9})\}", r"\1/\2"),
        (r"\\(?:times|cdot)(?![a-z])", "×"),
        (r"\\[,;:! ]|~|\{,\}", " "),
        (r"\\%", "%"),
        (r"\s?\$\s?", " "),
        *((rf"(?<=\d)\s?{chinese}", f" {unit} ") for chinese, unit in _CHINESE_UNITS.items()),
        (r"(?<=[\u4e00-\u9fff])(?=[\d.])|(?<=[\w%])(?=[\u4e00-\u9fff])", " "),
        (r"(?<=10)(?:\*\*|\^)\s?\{?\s?([-+−]?\d{1,3})\s?\}?", r"^\1"),
        (r"(?<![\w.×*·^])(?<![×x*·] )10\^([-+−]?\d{1,3})", r"1e\1"),
        (r"^\W{0,4}(?:minus|negative|[–−-])\s?(?=[\d.])", "-"),
        (r"(?<=\d)\s?(?:thousand)\b", "e3"),
        (r"(?<=\d)\s?K(?=\s?/\s?(?:[uµμ]L|mm))", "e3"),
        (r"(?<=\d)\s?(?:million)\b", "e6"),
        (r"(?<=\d)\s?(?:billion)\b", "e9"),
        (r"\s?[(\[]\s?(?:normal|reference|ref)\b[^()\[\]]{0,60}[)\]]", ""),  # what others have is no second answer
        (r"\bper\s?cent\b", "%"),
        (r"(?<=[a-z])\sper\s(?=[a-z])", "/"),
        (r"(?<=[a-z])[ ·]([a-zµ]{1,4})\s?\^\s?\{?\s?[-−]1\s?\}?", r"/\1"),
        (r"(?<=/)\((\w{1,12})[ ·*⋅](\w{1,12})\)", r"\1/\2"),
        (r"\s?/\s?1[.,]73\s?m(?:2|²|\^2)", ""),  # of body surface: it goes without saying
        (r"\bmm\sHg\b", "mmHg"),
        (r"\bcm\sH2O\b", "cmH2O"),
        (r"\s?(?:°|degrees?)\s?(?:celsius|centigrade)|(?<=\d)\s?°\sC\b", " °C"),
        (r"\s?(?:°|degrees?)\s?fahrenheit|(?<=\d)\s?°\sF\b", " °F"),
    )
)
_MIXED = re.compile(r"(?<![\w./])(?:(\d{1,6})[ -]?)?(?:(\d{1,4})\s?/\s?(\d{1,4})|([½⅓⅔¼¾⅕⅛⅜⅝⅞]))(?![\w/.])")
_TEMPERATURES = frozenset({"degC", "degF"})
_TEMPERATURE = re.compile(r"(?<=\d)\s?([CF])\b")
_POWER = re.compile(r"(?<!10)(?<=[\d)}])\s?(?:\^|\*\*)(?=[\s({\d])")
_SPAN = re.compile(r"\s?(?:to|and|or|[-–—])\s?")
MAX_QUANTITIES = 16
MAX_IN_WORDS = 10**6


def check(given: str, task: Task) -> Check:
    """Key: ``{"value": number, "unit"?, "tolerance"?, "relative_tolerance"?, "decimals"?, "range"?: [low, high],
    "unit_required"?}``.

    Right within the larger of the tolerances (both inclusive; neither: equal to nine digits); ``decimals`` rounds the
    answer first (0: to an integer); with a ``range`` whatever lies in it is right. A unit that was left out is the
    key's, unless required; another unit is converted. Of a calculation the last result counts; otherwise all numbers
    that are given and not rejected (``5, not 7``) must be right, so that listing many is no answer. A bound (``> 5``)
    is no value.
    """
    given = plainly_spelled(given)
    unit = _unit(task)
    low, high = _bounds(task)
    if _POWER.search(given, _result_start(given)):
        return Check(0.0, "holds a power, which is not computed", read="a power")
    found = _read(given, unit)
    bounds = [each for each in found if _BOUND.search(given[max(0, each.start - 16) : each.start])]
    if bounds and task.answer.get("range") is None:
        return Check(0.0, "gives a bound, which is no value", read="a bound")
    if not found:
        return Check(0.0, "holds no number")
    if len(found) > MAX_QUANTITIES:
        return Check(0.0, f"holds {len(found)} numbers")
    read = ", ".join(_spelled(each) for each in found)
    expected = f"expected {_expected(task)}"
    for each in found:
        value = _in_unit(each, unit, required=task.answer.get("unit_required") is True)
        if value is None:
            return Check(0.0, f"read {read}: the unit does not fit, {expected}", read=read)
        if not low <= _rounded(value, task) <= high:
            several = "several numbers, not all right: " if len(found) > 1 else ""
            return Check(0.0, f"read {several}{read}, {expected}", read=read)
    return Check(1.0, f"read {read}, {expected}", read=read)


def _bounds(task: Task) -> tuple[float, float]:
    span = task.answer.get("range")
    if span is not None:
        if not isinstance(span, list | tuple) or len(span) != 2 or not all(map(_is_number, span)) or span[0] > span[1]:
            raise InvalidInput(f"answer.range of task {task.id!r} must be [low, high]; got {span!r}")
        low, high = float(span[0]), float(span[1])
    else:
        low = high = _value(task)
    absolute, relative = key_number(task, "tolerance", 0.0), key_number(task, "relative_tolerance", 0.0)
    assert absolute is not None and relative is not None
    low_slack, high_slack = (max(absolute, relative * abs(bound), 1e-9 * abs(bound)) for bound in (low, high))
    rounding = 1e-12 * max(abs(low), abs(high), 1.0)  # a difference of exactly the tolerance is within it
    return low - low_slack - rounding, high + high_slack + rounding


def _unit(task: Task) -> Unit:
    value, unit = task.answer.get("value"), task.answer.get("unit")
    if unit or not isinstance(value, str):
        return own_unit(plainly_spelled(str(unit or "")))
    return next((each.unit for each in quantities(value)), ())


def _value(task: Task) -> float:
    value = task.answer.get("value")
    if isinstance(value, str):
        found = quantities(value)
        if len(found) == 1:
            return found[0].value
    if not _is_number(value):
        raise InvalidInput(f"answer.value of task {task.id!r} must be a finite number; got {value!r}")
    return float(value)  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read(given: str, unit: Unit) -> list[Quantity]:
    fraction = _FRACTION.fullmatch(given)
    if fraction and int(fraction[2]):
        return [_plain(int(fraction[1]) / int(fraction[2]))]
    further = frozenset(name for name, _ in unit)
    if _TEMPERATURES & further:
        given = _TEMPERATURE.sub(r" °\1", given)
    found = quantities(given, further_units=further)
    found = [each for each in found if not _MARGIN.search(given[max(0, each.start - 4) : each.start])]
    rejected = [each for each in found if denied(given, each.start)]
    found = [each for each in found if each not in rejected]
    if not found and not rejected:
        return [_plain(float(value)) for value in sorted(_in_words(given))]
    for index, (each, following) in enumerate(itertools.pairwise(found)):
        if not each.unit and following.unit and _SPAN.fullmatch(given, each.end, following.start):
            found[index] = dataclasses.replace(each, unit=following.unit)  # 30 to 40 mm
    start = _result_start(given)
    return [each for each in found if each.start >= start] or found


def _result_start(given: str) -> int:
    """Where the last result of a calculation begins: behind the last sign of equality that a number follows."""
    signs = [match.end() for match in _AFTER_SIGN.finditer(given)]
    return signs[-1] if signs and _DIGIT.search(given, signs[-1]) else 0


def plainly_spelled(text: str) -> str:
    """A quantity in the one spelling that `quantities` reads, out of LaTeX, words and other countries' separators."""
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = _GROUPS.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    return _MIXED.sub(_decimal, text)


def _decimal(match: re.Match[str]) -> str:
    """``1 1/2`` and ``1½`` as ``1.5``; a fraction that stands alone (``120/80``) may be something else, and stays."""
    whole, over, under, sign = match.groups()
    if sign:
        return repr(int(whole or 0) + unicodedata.numeric(sign))
    proper = whole and 0 < int(over) < int(under)
    return repr(int(whole) + int(over) / int(under)) if proper else match[0]


def _in_words(text: str) -> set[int]:
    """Numbers in words: ``three``, ``twenty-one``, ``one hundred and five``."""
    found: list[int] = []
    joined = False
    for word in re.findall(r"[a-z]+", text.casefold()):
        value = _IN_WORDS.get(word)
        if word == "hundred":
            found = [*found[:-1], min(100 * found[-1], MAX_IN_WORDS)] if joined else [*found, 100]
        elif value and joined and value < _room(found[-1]):
            found[-1] += value
        elif value is not None:
            found.append(value)
        joined = value is not None or word == "hundred" or (joined and word == "and" and found[-1] >= 100)
    return set(found)


def _room(value: int) -> int:
    """What may still be added to a number in words: less than a hundred to hundreds, less than ten to tens."""
    return 0 if value < 20 else 100 if value % 100 == 0 else 10 if value % 10 == 0 else 0


def _plain(value: float) -> Quantity:
    return Quantity(value=value, resolution=0.0, unit=(), start=0, end=0, number_end=0)


def _in_unit(quantity: Quantity, unit: Unit, *, required: bool) -> float | None:
    if not quantity.unit and unit:
        return None if required else quantity.value
    if quantity.unit and not unit and quantity.unit != _PERCENT:
        return quantity.value  # the key does not care for a unit
    return convert(quantity.value, quantity.unit, unit)


def _rounded(value: float, task: Task) -> float:
    decimals = task.answer.get("decimals")
    if decimals is None:
        return value
    if isinstance(decimals, bool) or not isinstance(decimals, int) or not 0 <= decimals <= 12:
        raise InvalidInput(f"answer.decimals of task {task.id!r} must be an integer in [0, 12]; got {decimals!r}")
    return round(value, decimals)


def _expected(task: Task) -> str:
    span, unit = task.answer.get("range"), task.answer.get("unit") or ""
    return (f"{span[0]} to {span[1]} {unit}" if span is not None else f"{task.answer.get('value')} {unit}").rstrip()


def _spelled(quantity: Quantity) -> str:
    unit = " ".join(f"{name}^{power}" if power != 1 else name for name, power in quantity.unit)
    return f"{quantity.value:.12g} {unit}".rstrip()
