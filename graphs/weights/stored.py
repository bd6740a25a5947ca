"""A graph whose parameters are the model's tensors becomes one whose parameters are what a file stores of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from ferrum.graphs.expressions.expression import Expr, ExpressionFault, substituted
from ferrum.graphs.ir import Graph, Param
from ferrum.graphs.weights.gguf import is_gguf
from ferrum.graphs.weights.match import WeightsMismatch
from ferrum.graphs.weights.opened import open_checkpoint


def stored(graph: Graph, path: Path) -> Graph:
    """Raises ``WeightsMismatch`` with all tensors that have another shape."""
    if not is_gguf(path):
        return graph
    with closing(open_checkpoint(path)) as checkpoint:
        params, problems = [], []
        for param in graph.params:
            try:
                params.append(_stored(param, checkpoint.meanings))
            except ExpressionFault as fault:
                problems.append(str(fault))
    if problems:
        raise WeightsMismatch(tuple(problems), f"checkpoint {path.name}")
    return replace(graph, params=tuple(params))


def _stored(param: Param, meanings: Mapping[str, Expr]) -> Param:
    return param if param.weight is None else replace(param, source=substituted(param.weight, meanings))
