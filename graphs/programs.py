"""Which program of a pack a graph is."""

from __future__ import annotations

from ferrum.graphs.ir import Graph
from ferrum.pack.schema import ENCODE, STEP


def program_of(graph: Graph) -> str:
    """A graph that makes one row of each sequence is an encoder's: it keeps nothing, and a sequence enters it whole."""
    return ENCODE if any(node.op == "pool" for node in graph.nodes) else STEP
