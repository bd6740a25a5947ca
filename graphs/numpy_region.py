"""Operations with a body and with several outputs in numpy: ``map``, ``scan``, ``split``, ``topk``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from ferrum.graphs.ir import Node, Region
from ferrum.graphs.numpy_run import Array, Kernel, Run
from ferrum.graphs.op_spec import axes, integer


def run_region(run: Run, region: Region, values: Iterable[Array], kernels: Mapping[str, Kernel]) -> list[Array]:
    """The region's outputs for ``values``; it sees nothing else."""
    types = {value.name: value for value in region.inputs} | {v.name: v for node in region.nodes for v in node.outputs}
    inner = replace(run, env=dict(zip((v.name for v in region.inputs), values, strict=True)), types=types, params={})
    for node in region.nodes:
        results = kernels[node.op](inner, node)
        results = results if isinstance(results, tuple) else (results,)
        inner.env.update(zip((v.name for v in node.outputs), results, strict=True))
    return [inner.env[name] for name in region.outputs]


def map_elements(run: Run, node: Node, kernels: Mapping[str, Kernel]) -> tuple[Array, ...]:
    """Every op of the region works element by element, so that whole arrays do as well."""
    values = [np.asarray(x) for x in run.all(node)]
    shape = np.broadcast_shapes(*(x.shape for x in values))
    return tuple(np.broadcast_to(y, shape) for y in run_region(run, node.regions[0], values, kernels))


def scan(run: Run, node: Node, kernels: Mapping[str, Kernel]) -> tuple[Array, ...]:
    carried, scanned, ragged = integer(node.attrs, "carried"), integer(node.attrs, "scanned"), bool(node.attrs["ragged"])
    values = run.all(node)
    state, rows, rest = values[:carried], values[carried : carried + scanned], values[carried + scanned :]
    spans = list(run.sequences.spans(run.types[node.inputs[carried]].shape[0])) if ragged else [(0, len(rows[0]))]
    ends: list[list[Array]] = []
    steps: list[list[Array]] = []
    for seq, (start, end) in enumerate(spans):
        now = [x[seq] for x in state] if ragged else list(state)
        for i in range(start, end):
            out = run_region(run, node.regions[0], (*now, *(x[i] for x in rows), *rest), kernels)
            now = out[:carried]
            steps.append(out[carried:])
        ends.append(now)
    final = [np.stack(parts) for parts in zip(*ends, strict=True)] if ragged else ends[0]
    if steps:
        return (*final, *(np.stack(parts) for parts in zip(*steps, strict=True)))
    return (*final, *(np.empty(run.shape(v.shape), run.numpy_dtype(v.dtype)) for v in node.outputs[carried:]))


def split(run: Run, node: Node) -> tuple[Array, ...]:
    sizes = axes(node.attrs, "sizes")
    return tuple(np.split(run.get(node.inputs[0]), np.cumsum(sizes[:-1]), axis=integer(node.attrs, "axis")))


def topk(run: Run, node: Node) -> tuple[Array, Array]:
    x = run.get(node.inputs[0])
    at = np.argsort(-x, axis=-1, kind="stable")[..., : integer(node.attrs, "k")]
    return np.take_along_axis(x, at, -1), at.astype(np.int32)
