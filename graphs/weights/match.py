"""Does a checkpoint hold what a graph needs? Every missing, misshapen or surplus tensor is found at once."""

from __future__ import annotations

from collections.abc import Iterator

from ferrum.errors import FerrumError
from ferrum.graphs.expressions.evaluate import FLOATS
from ferrum.graphs.expressions.expression import tensors
from ferrum.graphs.ir import Graph
from ferrum.graphs.weights.checkpoint import Checkpoint

SHOWN = 4


class WeightsMismatch(FerrumError):
    """A checkpoint that does not fit the model; ``problems`` has one line for each tensor, the message the first few."""

    def __init__(self, problems: tuple[str, ...], where: str) -> None:
        self.problems = problems
        self.place = where
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        super().__init__("weights-mismatch", "; ".join(problems[:SHOWN]) + more, where, "check config.json and the weights")

    def __reduce__(self) -> tuple[type[WeightsMismatch], tuple[tuple[str, ...], str]]:  # type: ignore[override]
        return WeightsMismatch, (self.problems, self.place)


def problems(graph: Graph, checkpoint: Checkpoint, surplus: bool = True) -> Iterator[str]:
    """One line for each tensor that does not fit; ``surplus``: also for unread tensors of modules that are read."""
    read = (tensors(p.weight) for p in graph.params if p.weight is not None)
    wanted = dict.fromkeys(tensor for found in read for tensor in found)
    for tensor in wanted:
        if tensor.name not in checkpoint:
            yield f"{tensor.name} {list(tensor.shape)} is missing"
            continue
        dtype, found = checkpoint.info(tensor.name)
        allowed = FLOATS if tensor.dtype == "f32" else (tensor.dtype,)
        if dtype not in allowed:
            yield f"{tensor.name} is {dtype}, expected {'one of ' if len(allowed) > 1 else ''}{', '.join(allowed)}"
        if found != tensor.shape:
            yield f"{tensor.name} is {list(found)}, expected {list(tensor.shape)}"
    used = {tensor.name for tensor in wanted}
    modules = {name.rpartition(".")[0] for name in used}
    for name in checkpoint.names() if surplus else ():
        if name not in used and name not in checkpoint.aside and name.rpartition(".")[0] in modules:
            yield f"{name} {list(checkpoint.info(name)[1])} is there, but the model does not use it"


def match(graph: Graph, checkpoint: Checkpoint, surplus: bool = True) -> None:
    """Raises ``WeightsMismatch``: tensors that are missing, of another shape or dtype, or in a used module but not read."""
    found = tuple(problems(graph, checkpoint, surplus))
    if found:
        raise WeightsMismatch(found, f"checkpoint {checkpoint.folder.name}")
