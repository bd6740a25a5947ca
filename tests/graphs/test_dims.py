"""Sizes: normal form is sound (equal forms, equal numbers), keeps what the functions mean, and comes back from its text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferrum.errors import FerrumError
from ferrum.graphs.dims import (
    Dim,
    DimExpr,
    DimFault,
    add,
    ceil_divide,
    evaluate,
    floor_divide,
    largest,
    multiply,
    print_dim,
    smallest,
    substitute,
    subtract,
    symbols,
)
from ferrum.graphs.text import parse_graph
from tests.graphs.strategies import DIM_EXPRESSIONS

NAMES = ("batch", "seq", "tokens", "frames", "max")
SIZES = st.fixed_dictionaries({name: st.integers(1, 50) for name in NAMES})


def read(text: str) -> Dim:
    return parse_graph(f"graph m\ninput x: f32[{text}]\nreturn x\n").inputs[0].shape[0]


@settings(max_examples=300, deadline=None)
@given(DIM_EXPRESSIONS, DIM_EXPRESSIONS, st.integers(1, 9), SIZES)
def test_what_the_functions_mean(a: Dim, b: Dim, n: int, sizes: dict[str, int]) -> None:
    x, y = evaluate(a, sizes), evaluate(b, sizes)
    assert evaluate(add(a, b), sizes) == x + y
    assert evaluate(subtract(a, b), sizes) == x - y
    assert evaluate(multiply(a, b), sizes) == x * y
    assert evaluate(floor_divide(a, n), sizes) == x // n
    assert evaluate(ceil_divide(a, n), sizes) == math.ceil(x / n)
    assert evaluate(largest(a, b), sizes) == max(x, y)
    assert evaluate(smallest(a, b), sizes) == min(x, y)
    assert evaluate(substitute(a, {"tokens": multiply("batch", "seq")}), sizes) == evaluate(
        a, {**sizes, "tokens": sizes["batch"] * sizes["seq"]}
    )
    assert symbols(a) <= set(NAMES)


@settings(max_examples=300, deadline=None)
@given(DIM_EXPRESSIONS)
def test_the_text_comes_back(dim: Dim) -> None:
    assert read(print_dim(dim)) == dim


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("2 * tokens + 1", "1 + tokens * 2"),
        ("(seq + 1) * (seq - 1)", "seq * seq - 1"),
        ("(2 * seq + 6) // 2", "seq + 3"),
        ("(4 * seq + 6) // 4", "seq + 1"),
        ("(2 * seq + 1) // 4", "seq // 2"),
        ("seq // 2 // 3", "seq // 6"),
        ("(3 * seq) // 2", "seq + seq // 2"),
        ("max(seq, seq + 2, seq - 1)", "seq + 2"),
        ("min(seq, max(seq, frames), seq)", "min(max(frames, seq), seq)"),
        ("max(max(seq, 3), frames, 2)", "max(frames, 3, seq)"),
        ("seq - seq", "0"),
        ("(seq - frames) * 0 + seq", "seq"),
        ("seq // seq", "1"),
    ],
)
def test_normal_form(left: str, right: str) -> None:
    assert read(left) == read(right)


def test_simple_sizes_stay_numbers_and_names() -> None:
    assert add("seq", 0) == "seq" and multiply(2, 3) == 6 and subtract(add("seq", 1), 1) == "seq"
    assert isinstance(add("seq", 1), DimExpr) and str(add("seq", 1)) == "seq + 1"
    with pytest.raises(ValueError, match="seq \\+ 1"):
        int(add("seq", 1))  # type: ignore[call-overload]


def test_names_are_written_as_everywhere() -> None:
    assert print_dim(add("two words", 1), repr) == "'two words' + 1"
    assert read('"two words" + 1') == add("two words", 1)
    assert read('"max" + max(max, 1)') == add("max", largest("max", 1))


@pytest.mark.parametrize(
    "text",
    ["seq // 0", "seq // (0 - 1)", "seq +", "max()", "max(seq", "seq ** 2", "1.5 * seq", "(" * 40 + "seq" + ")" * 40, "seq -1"],
)
def test_what_is_no_size_is_one_line(text: str) -> None:
    with pytest.raises(FerrumError) as caught:
        read(text)
    assert caught.value.code == "graph-text"


def test_expressions_are_bounded() -> None:
    products, sums = (sign.join(f"(a{i} + b{i})" for i in range(200)) for sign in (" * ", " + "))
    for text in (products, sums, "a" + " // a // b" * 400):
        with pytest.raises(FerrumError, match="more than 100 parts"):
            read(text)
    with pytest.raises(DimFault):
        floor_divide("seq", 0)


def test_a_product_divided_by_one_of_its_factors_is_the_rest() -> None:
    assert floor_divide(multiply(4, "tokens"), "tokens") == 4
    assert floor_divide(add(multiply(6, "a", "b"), multiply(2, "b")), multiply(2, "b")) == add(multiply(3, "a"), 1)
    assert str(floor_divide(add("a", 1), "a")) == "(a + 1) // a"
