"""Verdicts are what algebra says; where math-verify can read both sides, it is asked as an independent judge."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from rewards.answer_types import formula
from rewards.answer_types.reading import Check
from rewards.scorer import InvalidInput
from rl.types import Task
from tests.bounded import bounded_work


def check(given: str, value: Any, **key: Any) -> Check:
    return formula.check(given, Task(id="t", question="?", answer={"type": "formula", "value": value, **key}))


EQUAL = [
    ("(x+1)^2", "x^2+2x+1"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac12", "1/2"),
    (r"\sin^2 x + \cos^2 x", "1"),
    ("sqrt(8)", r"2\sqrt{2}"),
    (r"\sqrt[3]{27}", "3"),
    ("5!", "120"),
    (r"\binom{5}{2}", "10"),
    (r"\log_2 8", "3"),
    ("e^x", r"\exp(x)"),
    (r"\left|x\right|", "|x|"),
    (r"-\frac{b}{2a}", "-b/(2a)"),
    (r"2\pi r", r"r \cdot 2 \cdot \pi"),
    (r"\{1, 2\}", r"\{2, 1\}"),
    (r"(-\infty, 3]", r"(-\infty, 3]"),
    ("y = 2x + 1", "y = 1 + 2x"),
    ("x < 3", "3 > x"),
]
DIFFERENT = [
    ("(x+1)^2", "x^2+1"),
    (r"\frac{1}{3}", "0.333"),
    ("x^2", "2x"),
    (r"\sin x", r"\cos x"),
    (r"(-\infty, 3]", r"(-\infty, 3)"),
    ("(1, 2)", "(2, 1)"),
    (r"\{1, 2\}", r"\{1, 3\}"),
    ("x < 3", "x > 3"),
    ("a - b", "b - a"),
]


PAIRS = [(*pair, 1.0) for pair in EQUAL] + [(*pair, 0.0) for pair in DIFFERENT]


@pytest.mark.parametrize(("key", "given", "right"), PAIRS)
def test_what_is_equal_by_algebra_is_right(key: str, given: str, right: float) -> None:
    assert check(given, key).value == right


@pytest.mark.slow  # sympy takes seconds to begin with
@pytest.mark.parametrize(("key", "given", "right"), PAIRS)
def test_an_independent_judge_says_the_same(key: str, given: str, right: float) -> None:
    from math_verify import LatexExtractionConfig, parse, verify

    sides = [parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None) for text in (key, given)]
    assert verify(*sides, timeout_seconds=None) == bool(right)


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        # names as clinicians write them, which LaTeX parsers take apart
        ("BMI = weight/height^2", r"\frac{\text{weight}}{\text{height}^2}", 1.0),
        ("BMI = weight/height^2", "weight / height", 0.0),
        ("MAP = (SBP + 2*DBP)/3", "MAP = DBP + (SBP - DBP)/3", 1.0),
        ("MAP = (SBP + 2*DBP)/3", "MAP = SBP + (DBP - SBP)/3", 0.0),
        ("sqrt(height*weight/3600)", "sqrt(height)*sqrt(weight)/60", 1.0),
        ("6.1 + log10([HCO3]/(0.03*pCO2))", r"pK = 6.1 + \log \frac{[HCO_3^-]}{0.03 \times pCO_2}", 1.0),
        ("(140 - age)*weight/(72*SCr)", r"\frac{(140-\text{age})\times\text{weight}}{72\times S_{Cr}}", 1.0),
        ("U_Na * P_Cr / (P_Na * U_Cr)", r"\frac{U_{Na} P_{Cr}}{P_{Na} U_{Cr}}", 1.0),
        ("Na - (Cl + HCO3)", "Na - Cl - HCO3", 1.0),
        ("Na - (Cl + HCO3)", "Na - Cl + HCO3", 0.0),
        ("m*g*h", "mgh", 1.0),
        (r"\frac{1}{2}mv^2", "0.5 m v²", 1.0),
        ("C_0 e^{-kt}", "C_0*exp(-k*t)", 1.0),
        # equations, lists, wrappings
        ("y = 2x+1", "2x - y + 1 = 0", 1.0),
        ("y = 2x+1", "2x+1", 1.0),
        ("x = 1 or x = 2", "2, 1", 1.0),
        ("0 < x < 3", "3 > x > 0", 1.0),
        ("x < 3", "x <= 3", 0.0),
        (r"\pm 2", "2 and -2", 1.0),
        (r"\pm 2", "2", 0.0),
        ("x", "The result is $x$", 1.0),
        # numbers
        ("50%", "1/2", 1.0),
        (r"\sin 30^\circ", "0.5", 1.0),
        ("1234", "1,234", 1.0),
        ("2^10", "1024", 1.0),
        (r"\sqrt[3]{-8}", "-2", 1.0),
        (0.5, "1/2", 1.0),
        # nothing that is a formula
        ("x", "", 0.0),
        ("x", "x +", 0.0),
        ("x", "(x", 0.0),
        ("x", r"\write18{rm}", 0.0),
        ("x", "__import__('os').system('x')", 0.0),
    ],
)
def test_formulas_in_plain_notation_and_latex(key: Any, given: str, expected: float) -> None:
    assert check(given, key).value == expected


def test_names_are_positive_quantities_unless_the_key_says_otherwise() -> None:
    assert check("x", r"\sqrt{x^2}").value == 1.0
    assert check("x", r"\sqrt{x^2}", domain="real").value == 0.0
    assert check("|x|", r"\sqrt{x^2}", domain="real").value == 1.0


def test_a_tolerance_makes_a_decimal_right() -> None:
    assert check("1.414", r"\sqrt{2}").value == 0.0
    assert check("1.414", r"\sqrt{2}", tolerance=0.001).value == 1.0
    assert check("1.41", r"\sqrt{2}", tolerance=0.001).value == 0.0  # .0042 away
    assert check("141.4 x", r"100 \sqrt{2} x", relative_tolerance=0.001).value == 1.0


def test_variables_of_the_key_are_names_and_neither_constants_nor_products() -> None:
    assert check("e^2", "e*e").value == 1.0
    assert check("2.718281828459045235360287471", "e").value == 1.0
    assert check("2.718281828459045235360287471", "e", variables=["e"]).value == 0.0
    assert check("b a", "ab").value == 1.0
    assert check("b a", "ab", variables=["ab"]).value == 0.0


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ({"value": "(x"}, "must be a formula"),
        ({"value": "1/0"}, "it has no value"),
        ({"value": r"\int x dx"}, r"\\int is not known"),
        ({"value": "9^9^9^9"}, "too large"),
        ({"value": "x", "domain": "imaginary"}, "answer.domain"),
        ({"value": "x", "variables": {"x": 1}}, "answer.variables"),
        ({"value": "x", "tolerance": -1}, "answer.tolerance"),
        ({}, "answer.value"),
    ],
)
def test_a_key_that_is_no_formula_is_invalid_input(key: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        formula.check("x", Task(id="t", question="?", answer={"type": "formula", **key}))


HOSTILE = {
    "a tower of powers": "9**9**9**9",
    "a tower in LaTeX": "9^{9^{9^{9}}}",
    "powers of powers": "((((9^99)^99)^99)^99)",
    "factorials of factorials": "9!!!!!!!!!",
    "a large factorial": "(10^9)!",
    "a large binomial": r"\binom{10^9}{3}",
    "exponentials": "exp(exp(exp(exp(9))))",
    "a small power": "2^-10^9",
    "a huge exponent": "1.5^(10^1000+0.5)",
    "a huge complex exponent": "(1+i)^((10^1000+0.5)*i)",
    "brackets": "(" * 900,
    "closed brackets": "(" * 70 + "x" + ")" * 70,
    "bars": "|" * 149,
    "deep fractions": r"\frac{" * 70 + "x",
    "roots": r"\sqrt" * 149,
    "functions": "sin " * 149 + "x",
    "signs": "-" * 149 + "x",
    "exponents": "x^" * 74 + "x",
    "subscripts": "x_{" * 300,
    "texts": r"\text{" * 160,
    "large arguments": "tan(10^1200)+" * 17 + "1",
    "gammas": "(169.5)!+" * 20 + "1",
    "products": "abc " * 149,
    "alternatives": ",".join(["(x^x)^x"] * 16),
    "long numbers": "9" * 1_000,
    "thousands": "1" + ",234" * 240,
    "unicode digits": "٣",
    "a NUL byte": "x\x00",
    "a lone surrogate": "x\ud800",
    "too long": "x" * 10_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_formulas_are_answered_with_a_reason(name: str) -> None:
    for key in ("x", r"\{x, y, z, 1\}"):
        with bounded_work():
            answered = check(HOSTILE[name], key)
        assert answered.reason
        assert answered.value == 0.0


def test_formulas_are_checked_in_any_thread_and_under_a_deep_stack() -> None:
    """math-verify and whatever else keeps its bounds by signals fails here."""
    found: list[float] = []

    def deep(depth: int) -> None:
        found.append(check("a" + "+a" * 74, "75a").value) if depth == 0 else deep(depth - 1)

    threads = [threading.Thread(target=deep, args=(sys.getrecursionlimit() // 3,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1.0, 1.0]


def test_checking_formulas_needs_no_sympy() -> None:
    import subprocess

    code = (
        "import sys; from rl.types import Task; from rewards.answer_types import formula;"
        "print(formula.check('x+x', Task(id='t', question='', answer={'value': '2x'})).value, 'sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1.0 False\n"
