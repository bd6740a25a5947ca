"""Does a checkpoint hold what a graph needs? Every missing, misshapen or surplus tensor is found at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ferrum.errors import FerrumError
from ferrum.graphs.ir import Graph, Param, Shape
from ferrum.graphs.numpy_run import Array, Rows
from ferrum.graphs.weights.checkpoint import Checkpoint

USABLE = ("f32", "bf16", "f16", "f64")
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


def split_rows(graph: Graph) -> dict[str, tuple[int, ...]]:
    """How many rows each source of a joined parameter must have, where the graph says so."""
    producers = graph.producers()
    params = {p.name: p for p in graph.params}
    rows: dict[str, tuple[int, ...]] = {}
    split: tuple[int, ...]
    for node in graph.nodes:
        if node.op == "linear" and node.attrs["activation"]:
            half = int(node.output.shape[-1])
            split, linear = (half, half), node
        elif node.op == "paged_attention" and node.inputs[0] in producers:
            q, kv, d = (int(node.attrs[key]) for key in ("num_heads", "num_kv_heads", "head_dim"))  # type: ignore[arg-type]
            split, linear = (q * d, kv * d, kv * d), producers[node.inputs[0]]
        else:
            continue
        for name in linear.inputs[1:]:
            if name in params and len(params[name].sources) == len(split):
                rows[name] = split
    return rows


def expected(param: Param, rows: tuple[int, ...] | None) -> dict[str, Shape]:
    """The shapes of a parameter's sources. Without ``rows`` a joined parameter's first axis is left out of the shape."""
    shape = param.value.shape
    if len(param.sources) == 1:
        return {param.sources[0]: shape}
    if rows is not None:
        return {name: (n, *shape[1:]) for name, n in zip(param.sources, rows, strict=True)}
    return {name: ("rows", *shape[1:]) for name in param.sources}


def problems(graph: Graph, checkpoint: Checkpoint, surplus: bool = True) -> Iterator[str]:
    """One line for each tensor that does not fit; ``surplus``: also for unread tensors of modules that are read."""
    rows = split_rows(graph)
    used: set[str] = set()
    for param in graph.params:
        total = 0
        for name, shape in expected(param, rows.get(param.name)).items():
            used.add(name)
            if name not in checkpoint:
                yield f"{name} {list(shape)} is missing"
                continue
            dtype, found = checkpoint.info(name)
            total += found[0] if found else 0
            if dtype not in USABLE:
                yield f"{name} is {dtype}, expected one of {', '.join(USABLE)}"
            if len(found) != len(shape) or any(a not in ("rows", b) for a, b in zip(shape, found, strict=True)):
                yield f"{name} is {list(found)}, expected {list(shape)}"
        if len(param.sources) > 1 and rows.get(param.name) is None and total != param.value.shape[0]:
            yield f"{', '.join(param.sources)} have {total} rows, expected {param.value.shape[0]}"
    modules = {name.rpartition(".")[0] for name in used}
    for name in checkpoint.names() if surplus else ():
        if name not in used and name.rpartition(".")[0] in modules:
            yield f"{name} {list(checkpoint.info(name)[1])} is there, but the model does not use it"


def match(graph: Graph, checkpoint: Checkpoint) -> None:
    """Raises ``WeightsMismatch``: tensors that are missing, of another shape or dtype, or in a used module but not read."""
    found = tuple(problems(graph, checkpoint))
    if found:
        raise WeightsMismatch(found, f"checkpoint {checkpoint.folder.name}")


def to_float(data: Array, dtype: str) -> Array:
    """``data`` as float32 (f64 stays); bf16 bits are the upper half of a float32."""
    if dtype == "bf16":
        return (data.astype(np.uint32) << 16).view(np.float32)
    if dtype not in USABLE:
        raise FerrumError("dtype-unsupported", f"weights of {dtype} cannot be read as floats", "", f"one of {', '.join(USABLE)}")
    return data if dtype in ("f32", "f64") else data.astype(np.float32)


class CheckpointWeights:
    """A checkpoint as the interpreter reads it: whole parameters or chosen rows, converted as they are read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def get(self, param: Param) -> Array:
        if param.data is not None:
            return np.asarray(param.data, np.float64).reshape([int(d) for d in param.value.shape])
        parts = [to_float(self.checkpoint.read(name), self.checkpoint.info(name)[0]) for name in param.sources]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def rows(self, param: Param, ids: Rows) -> Array:
        if param.data is not None:
            return np.asarray(self.get(param)[ids])
        if isinstance(ids, slice):
            return self._range(param, ids.start or 0, int(param.value.shape[0]) if ids.stop is None else ids.stop)
        return self._picked(param, ids)

    def _range(self, param: Param, start: int, stop: int) -> Array:
        pieces, at = [], 0
        for name in param.sources:
            dtype, shape = self.checkpoint.info(name)
            low, high = max(start - at, 0), min(stop - at, shape[0])
            if low < high:
                pieces.append(to_float(self.checkpoint.read(name)[low:high], dtype))
            at += shape[0]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _picked(self, param: Param, ids: NDArray[np.int64]) -> Array:
        out = np.empty((len(ids), *(int(d) for d in param.value.shape[1:])), np.float32)
        at = 0
        for name in param.sources:
            dtype, shape = self.checkpoint.info(name)
            here = (ids >= at) & (ids < at + shape[0])
            out[here] = to_float(self.checkpoint.read(name)[ids[here] - at], dtype)
            at += shape[0]
        return out
