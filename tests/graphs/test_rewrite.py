"""The rewriting engine: order, names, dead and equal nodes, and patterns with several ways to match."""

from __future__ import annotations

import pytest

from ferrum.graphs.ir import Graph
from ferrum.graphs.rewrite import Match, P, Rules, Scope, rewrite
from ferrum.graphs.text import parse_graph, print_graph


def graph_of(*lines: str, out: str = "y") -> Graph:
    head = "graph m\ninput x: f32[seq, 4]\ninput z: f32[seq, 4]\nparam w: f32[4] from(w)\n"
    return parse_graph(head + "".join(line.replace("~", ": f32[seq, 4]") + "\n" for line in lines) + f"return {out}\n")


def lines_of(graph: Graph) -> list[str]:
    return [line.replace(": f32[seq, 4]", "~") for line in print_graph(graph).splitlines() if " = " in line or "return" in line]


NEGNEG: Rules = ((P("neg", P("neg", "a")), lambda s, m: m["a"]),)


def test_dead_and_equal_nodes_disappear() -> None:
    graph = graph_of("a~ = neg(x)", "b~ = neg(x)", "dead~ = exp(x)", "y~ = mul(a, b)")
    assert lines_of(rewrite(graph, ())) == ["a~ = neg(x)", "y~ = mul(a, a)", "return y"]
    assert rewrite(graph, ()).params == ()


def test_aliases_reach_users_and_outputs() -> None:
    graph = graph_of("a~ = neg(x)", "b~ = neg(a)", "c~ = exp(b)", "d~ = neg(c)", "y~ = neg(d)")
    assert lines_of(rewrite(graph, NEGNEG)) == ["c~ = exp(x)", "return c"]


def test_a_replacement_takes_over_the_name() -> None:
    def square(s: Scope, m: Match) -> str:
        return s.emit("pow_scalar", s.emit("neg", m["a"]), value=2.0)

    graph = graph_of("a~ = mul(x, x)", "y~ = exp(a)")
    assert lines_of(rewrite(graph, ((P("mul", "a", "a"), square),))) == [
        "a.1~ = neg(x)",
        "a~ = pow_scalar(a.1) {value=2.0}",
        "y~ = exp(a)",
        "return y",
    ]


def test_emitted_nodes_go_through_the_rules() -> None:
    rules: Rules = (*NEGNEG, (P("exp", "a"), lambda s, m: s.emit("neg", m["a"])))
    assert lines_of(rewrite(graph_of("a~ = neg(x)", "y~ = exp(a)", "u~ = sin(y)", out="u"), rules)) == ["u~ = sin(x)", "return u"]


def test_commutative_ops_match_in_both_orders_and_share_bindings() -> None:
    rules: Rules = ((P("mul", "a", P("exp", "a")), lambda s, m: s.emit("silu", m["a"])),)
    for text in ("y~ = mul(x, e)", "y~ = mul(e, x)"):
        assert lines_of(rewrite(graph_of("e~ = exp(x)", text), rules)) == ["y~ = silu(x)", "return y"]
    kept = graph_of("e~ = exp(x)", "y~ = mul(e, z)")
    assert rewrite(kept, rules).nodes == kept.nodes
    ordered: Rules = ((P("sub", "a", P("exp", "a")), lambda s, m: s.emit("silu", m["a"])),)
    swapped = graph_of("e~ = exp(x)", "y~ = sub(e, x)")
    assert rewrite(swapped, ordered).nodes == swapped.nodes


def test_none_tries_the_next_binding_and_the_next_rule() -> None:
    seen: list[str] = []

    def picky(s: Scope, m: Match) -> str | None:
        seen.append(m["a"])
        return s.emit("neg", m["a"]) if m["a"] == "z" else None

    assert lines_of(rewrite(graph_of("y~ = add(x, z)"), ((P("add", "a", "b"), picky),))) == ["y~ = neg(z)", "return y"]
    assert seen[:2] == ["x", "z"]


def test_attributes_are_compared() -> None:
    rules: Rules = ((P("pow_scalar", "a", value=2.0), lambda s, m: s.emit("mul", m["a"], m["a"])),)
    graph = graph_of("a~ = pow_scalar(x) {value=2.0}", "y~ = pow_scalar(a) {value=3.0}")
    assert lines_of(rewrite(graph, rules))[:2] == ["a~ = mul(x, x)", "y~ = pow_scalar(a) {value=3.0}"]


def test_tables_are_values_without_inputs_or_weights() -> None:
    graph = graph_of("c~ = full() {value=1.0}", "d~ = neg(c)", "e~ = mul(d, w)", "y~ = add(d, x)")
    scope = Scope(graph, ())
    for node in graph.nodes:
        scope.process(node)
    assert scope.tables == {"c", "d"}


def test_rules_that_never_end_are_noticed() -> None:
    swap: Rules = ((P("sub", "a", "b"), lambda s, m: s.emit("add", m["b"], m["a"])), (P("add", "a", "b"), lambda s, m: None))
    assert lines_of(rewrite(graph_of("y~ = sub(x, z)"), swap)) == ["y~ = add(z, x)", "return y"]

    def grow(s: Scope, m: Match) -> str | None:
        return None if s.node(m["a"], "neg") else s.emit("exp", s.emit("neg", m["a"]))

    with pytest.raises(AssertionError, match="do not come to an end"):
        rewrite(graph_of("y~ = exp(x)"), ((P("exp", "a"), grow), (P("neg", "a"), lambda s, m: s.emit("sin", m["a"]))))
