"""Where a model's attention keeps keys and values: the states that its graph declares, in the groups that share block ids."""

from __future__ import annotations

from dataclasses import dataclass

from ferrum.graphs.infer_state import KEEPS
from ferrum.graphs.ir import Graph


@dataclass(frozen=True)
class Kept:
    """The states of one attention: rows of ``heads`` x ``width`` keys and ``heads`` x ``value_width`` values. ``window`` 0: all
    rows are kept. With ``slot`` that of a recurrence: one for each sequence, of ``heads`` x ``width`` x ``value_width`` numbers.

    ``group`` 0 is that of states that keep all rows; each size of window has a group of its own, and slots have one.
    """

    group: int
    window: int
    heads: int
    width: int
    value_width: int
    slot: bool = False


def kept_by_layer(graph: Graph) -> dict[int, Kept]:
    """By the layers of a fused graph, in their order."""
    states = {state.name: state for state in graph.states}
    groups = {("paged", 0): 0}  # by kind and window
    found: dict[int, Kept] = {}
    for node in graph.nodes:
        if node.op in KEEPS:
            layer, names = node.attrs["layer"], node.attrs["states"]
            assert isinstance(layer, int) and isinstance(names, tuple)
            first, last = states[str(names[0])], states[str(names[-1])]
            heads, width = map(int, first.shape[:2])
            group = groups.setdefault((first.kind, first.limit), len(groups))
            found[layer] = Kept(group, first.limit, heads, width, int(last.shape[-1]), first.kind == "slot")
    return found
