"""Where a model's attention keeps keys and values: the states that its graph declares, in the groups that share block ids."""

from __future__ import annotations

from dataclasses import dataclass

from ferrum.graphs.infer_state import KEEPS
from ferrum.graphs.ir import Graph


@dataclass(frozen=True)
class Kept:
    """The states of one attention: rows of ``heads`` x ``width`` keys and ``heads`` x ``value_width`` values. ``window`` 0: all
    rows are kept.

    ``group`` 0 is that of states that keep all rows; each size of window has a group of its own.
    """

    group: int
    window: int
    heads: int
    width: int
    value_width: int


def kept_by_layer(graph: Graph) -> dict[int, Kept]:
    """By the layers of a fused graph, in their order."""
    states = {state.name: state for state in graph.states}
    groups = {0: 0}  # by window
    found: dict[int, Kept] = {}
    for node in graph.nodes:
        if node.op in KEEPS:
            layer, names = node.attrs["layer"], node.attrs["states"]
            assert isinstance(layer, int) and isinstance(names, tuple)
            keys, values = (states[str(name)] for name in names)
            heads, width = map(int, keys.shape)
            group = groups.setdefault(keys.limit, len(groups))
            found[layer] = Kept(group, keys.limit, heads, width, int(values.shape[1]))
    return found
