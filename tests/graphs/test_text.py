"""The text form: every graph comes back from its text, and no text makes the parser fail in another way than by an error."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferrum.errors import FerrumError
from ferrum.graphs.ir import Graph
from ferrum.graphs.text import parse_graph, print_graph
from tests.graphs.conftest import GOLDENS
from tests.graphs.strategies import GRAPHS

SMALL = """graph m
input tokens: i64[batch, seq]
param w: f32[8, 4] from(embed.weight)
param f: f32[2] data(1.0, -0.5)
x: f32[batch, seq, 4] = embedding(tokens, w) {scale=1.0} @ "embed model.py:3"
return x
"""


@settings(max_examples=150, deadline=None)
@given(GRAPHS)
def test_round_trip(graph: Graph) -> None:
    text = print_graph(graph)
    assert parse_graph(text) == graph
    assert print_graph(parse_graph(text)) == text


@pytest.mark.parametrize("name", ["inf0", "inf.w", "infinite", "nan1", "true_", "inf", "nan"])
def test_a_name_may_begin_like_a_number(name: str) -> None:
    graph = parse_graph(SMALL)
    graph = replace(graph, params=tuple(replace(p, layout=name) for p in graph.params))
    assert parse_graph(print_graph(graph)) == graph


def test_small_text_reads_as_it_looks() -> None:
    graph = parse_graph(SMALL)
    assert print_graph(graph) == SMALL
    assert graph.nodes[0].origin == "embed model.py:3"
    assert graph.nodes[0].attrs == {"scale": 1.0}
    assert graph.param("f").data.tolist() == [1.0, -0.5]  # type: ignore[union-attr]
    assert graph.inputs[0].shape == ("batch", "seq")


def test_ints_floats_and_bools_stay_apart() -> None:
    graph = parse_graph(SMALL.replace("{scale=1.0}", "{a=1, b=1.0, c=true, d=(1, 2), e=(1.0, 2.0), f=-inf}"))
    attrs = graph.nodes[0].attrs
    assert [type(attrs[k]) for k in "abc"] == [int, float, bool]
    assert [type(v) for v in attrs["d"] + attrs["e"]] == [int, int, float, float]  # type: ignore[operator]
    assert attrs["f"] == float("-inf")


# Where a text has numbers: what is found there, the number in it, its line.
NUMBERS = (
    ("i64[batch, seq]", "batch", 2), ("f32[8, 4]", "8", 3), ("from(embed.weight)", "embed.weight", 3), ("f32[2]", "2", 4),
    ("(1.0, -0.5)", "1.0", 4), ("(1.0, -0.5)", "-0.5", 4), ("[batch, seq, 4]", "4", 5), ("{scale=1.0}", "1.0", 5),
)  # fmt: skip
TOO_LARGE = ("9" * 20, "9" * 400, "-" + "9" * 400, "9" * 5000)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (SMALL.replace("graph m", "m"), 1),
        (SMALL.replace("i64[batch", "i64(batch"), 2),
        (SMALL.replace("from(embed.weight)", "from(a) from(b)"), 3),
        (SMALL.replace("from(embed.weight)", "from(a) data(1.0)"), 3),
        (SMALL.replace(" from(embed.weight)", ""), 3),
        (SMALL.replace("from(embed.weight)", "from(a, b)"), 3),
        (SMALL.replace("from(embed.weight)", "from(join(a[1], b[1]))"), 3),
        (SMALL.replace("from(embed.weight)", "from(cat(a[1], b[1]))"), 3),
        (SMALL.replace("from(embed.weight)", "from(cat(a[1], axis=1.0))"), 3),
        (SMALL.replace("from(embed.weight)", "from(cat(a[1], axis=0, axis=0))"), 3),
        (SMALL.replace("from(embed.weight)", 'from(dequant(a: u8[34], scheme="q9", size=32))'), 3),
        (SMALL.replace("from(embed.weight)", f"from({'stack(' * 70}a[1]{')' * 70})"), 3),
        (SMALL.replace("from(embed.weight)", "from(embed.weight) shard(0.5)"), 3),
        (SMALL.replace("(1.0, -0.5)", "(1.0, x)"), 4),
        (SMALL.replace("(1.0, -0.5)", '("0123")'), 4),
        *((SMALL.replace(place, place.replace(number, more)), line) for place, number, line in NUMBERS for more in TOO_LARGE),
        (SMALL.replace("{scale=1.0}", "{scale=1.0, scale=2.0}"), 5),
        (SMALL.replace("{scale=1.0}", "{scale=(1, 1.0)}"), 5),
        (SMALL.replace("= embedding", "embedding"), 5),
        (SMALL.replace("4] = ", "4.5] = "), 5),
        (SMALL + "y: f32[1] = neg(x)\n", 7),
        (SMALL.replace("embedding(tokens", "embedding(tok;ens"), 5),
    ],
)
def test_faults_name_their_line(text: str, line: int) -> None:
    with pytest.raises(FerrumError, match=f"line {line}") as caught:
        parse_graph(text)
    assert caught.value.code == "graph-text"


def test_a_text_without_return_is_cut_off() -> None:
    with pytest.raises(FerrumError, match="return"):
        parse_graph(SMALL.replace("return x\n", ""))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_text_is_refused_or_read(data: st.DataObject) -> None:
    text = (GOLDENS / "stages" / "10-fuse_residual.txt").read_text(encoding="utf-8")
    start = data.draw(st.integers(0, len(text) - 1))
    length = data.draw(st.integers(0, 20))
    filler = data.draw(st.text(alphabet='()[]{}:=,@".-1e9abc \n\\', max_size=6))
    try:
        parse_graph(text[:start] + filler + text[start + length :])
    except FerrumError as error:
        assert error.code == "graph-text"
