"""A graph whose parameters are the model's tensors becomes one whose parameters are what a file stores of them."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ferrum.errors import FerrumError
from ferrum.graphs.expressions.expression import Expr, ExpressionFault, Tensor, substituted, tensors
from ferrum.graphs.ir import Graph, Param
from ferrum.graphs.weights.checkpoint import Checkpoint
from ferrum.graphs.weights.match import WeightsMismatch
from ferrum.graphs.weights.opened import open_checkpoint


@contextmanager
def listed(path: Path) -> Iterator[Checkpoint | None]:
    """The model's tensors, as far as they are there: what is wrong with them is told when they are opened to be read."""
    try:
        checkpoint = open_checkpoint(path)
    except FerrumError:
        checkpoint = None
    try:
        yield checkpoint
    finally:
        if checkpoint is not None:
            checkpoint.close()


def stored(graph: Graph, checkpoint: Checkpoint | None, twins: Mapping[str, str] | None = None) -> Graph:
    """``twins``: of a tensor that need not be there, the one that is the same.

    Raises ``WeightsMismatch`` with all tensors that have another shape.
    """
    if checkpoint is None:
        return graph
    meanings = _meanings(graph, checkpoint, twins or {})
    params, problems = [], []
    for param in graph.params:
        try:
            params.append(_stored(param, meanings))
        except ExpressionFault as fault:
            problems.append(str(fault))
    if problems:
        raise WeightsMismatch(tuple(problems), f"checkpoint {checkpoint.folder.name}")
    return replace(graph, params=tuple(params))


def _stored(param: Param, meanings: Mapping[str, Expr]) -> Param:
    return param if param.weight is None else replace(param, source=substituted(param.weight, meanings))


def _meanings(graph: Graph, checkpoint: Checkpoint, twins: Mapping[str, str]) -> dict[str, Expr]:
    """What the graph's tensors are of those stored, some of which go by another name: a twin's, or one without the prefix that a
    model has and its inner part alone has not."""
    found: dict[str, Expr] = {}
    known: Container[str] = checkpoint.meanings or checkpoint.where
    for param in graph.params:
        for tensor in tensors(param.weight) if param.weight is not None else ():
            names = (tensor.name, tensor.name.partition(".")[2], twins.get(tensor.name, ""))
            name = next((other for other in names if other in known), tensor.name)
            if name in checkpoint.meanings:
                found[tensor.name] = checkpoint.meanings[name]
            elif name != tensor.name:
                found[tensor.name] = Tensor(name, tensor.shape, tensor.dtype)
    return found
