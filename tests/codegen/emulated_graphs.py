"""Finished graphs of a few ops in emulation: what ``small_graphs.py`` and ``kernel_harness.run_graph`` are for CPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.backend import Backend
from ferrum.codegen.kernels.base import distinct
from ferrum.codegen.kernels.cases import Bench, counts
from ferrum.codegen.kernels.gpu import GpuKernel
from ferrum.codegen.layouts import parse_layout, stored
from ferrum.codegen.plan import place_tensors
from ferrum.codegen.render import render_kernels
from ferrum.codegen.target import BY_NAME, GpuTarget
from ferrum.codegen.views import row_dims
from ferrum.codegen.walk import Call
from ferrum.devices.emulate import SCHEDULES, build, metal
from ferrum.graphs.interpret import Weights, bind_dims
from ferrum.graphs.ir import Graph
from ferrum.graphs.passes import layout
from ferrum.graphs.verify import verify
from ferrum.pack.launches import RowCounts
from tests.codegen.kernel_harness import InMemory, from_rows, in_rows
from tests.codegen.small_graphs import Arrays, Compiled

GPUS = ("cuda-sm89", "metal-m1")
_SCHEDULE = SCHEDULES[4]  # another order of threads and blocks; stores that land late would copy all arrays for every block


def gpu(name: str) -> GpuTarget:
    target = BY_NAME[name]
    assert isinstance(target, GpuTarget)
    return target


class Launches:
    """The calls of a graph for a GPU, compiled for emulation; ``run`` gives the bytes of each value."""

    def __init__(self, graph: Graph, weights: Arrays, target: GpuTarget, quant: str = "f32") -> None:
        backend = Backend(target, quant, "f32")
        self.graph = layout.run(graph, backend.policy())
        self.calls = backend.select(self.graph)
        self.tensors = place_tensors(self.graph)
        source = render_kernels("test", distinct(map(kernel_of, self.calls)), target, "0" * 64)
        assert target.device == "cuda" or metal.check(source) == ""
        self.bench = Bench(build(source, "cuda" if target.device == "cuda" else "metal"), _SCHEDULE)
        self.stored: dict[str, NDArray[np.uint8]] = {}
        for tensor in self.tensors:
            param = self.graph.param(tensor.name)
            values = param.data if param.data is not None else weights[tensor.name]
            self.stored[tensor.name] = stored(values, parse_layout(tensor.layout, tensor.format, tensor.shape))

    def run(self, given: Arrays, step: Arrays, rows: RowCounts) -> dict[str, NDArray[Any]]:
        """``given``: values by name, a row for each token; ``step``: arrays of the step."""
        values: dict[str, NDArray[Any]] = dict(given)
        scratch: dict[str, NDArray[np.uint8]] = {}
        for call in self.calls:
            kernel = kernel_of(call)
            arrays = {f"input:{name}": array for name, array in step.items()} | scratch
            arrays |= {f"value:{i}": values[name] for i, name in enumerate(call.inputs)}
            arrays |= {f"weight:{i}": self.stored[name] for i, name in enumerate(call.params)}
            size = max(1, int(getattr(rows, call.rows)) * call.row_bytes)
            values[call.output] = arrays["result"] = np.full(size, 0xFF, np.uint8)
            scratch |= self.bench.run(kernel, arrays, rows, call.rows)
        return values

    def memory(self) -> Weights:
        data = bytearray(max([64, *(t.offset + t.nbytes for t in self.tensors)]))
        for tensor in self.tensors:
            data[tensor.offset : tensor.offset + tensor.nbytes] = self.stored[tensor.name].tobytes()
        return InMemory(self.tensors, bytes(data))


def kernel_of(call: Call) -> GpuKernel:
    assert isinstance(call.kernel, GpuKernel)
    return call.kernel


def run_graph(
    graph: Graph, inputs: Arrays, weights: Arrays, target: GpuTarget, quant: str = "f32"
) -> tuple[dict[str, NDArray[Any]], Graph, Weights]:
    """As ``kernel_harness.run_graph``."""
    made, rows = Launches(graph, weights, target, quant), bind_dims(graph, inputs)["tokens"]
    given = {}
    for value in graph.inputs:
        array = inputs[value.name].astype(np.float32 if value.dtype == "f32" else np.int32)
        given[value.name] = np.ascontiguousarray(in_rows(array, value.shape, rows))
    found = made.run(given, {}, counts(rows))
    out = {}
    types = made.graph.values()
    for name in graph.outputs:
        value = types[name]
        row = found[name].view(np.float32 if value.dtype == "f32" else np.int32).reshape(rows, -1)
        out[name] = from_rows(row, value.shape)
    return out, made.graph, made.memory()


class Emulated(Compiled):
    """A graph over rows of tables, as ``Compiled`` has it, for a GPU."""

    def __init__(self, graph: Graph, weights: Arrays, target: GpuTarget, quant: str = "f32") -> None:
        self.graph, self.weights = graph, weights
        self.made = Launches(verify(graph, paged=True), weights, target, quant)

    def run(
        self,
        tokens: Sequence[int],
        positions: Sequence[int] | None = None,
        threads: int = 0,
        starts: Sequence[int] | None = None,
    ) -> NDArray[Any]:
        rows, starts = len(tokens), starts or [0, len(tokens)]
        seqs = len(starts) - 1
        step = {
            "tokens": np.array(tokens, np.int32),
            "positions": np.array(range(rows) if positions is None else positions, np.int32),
            "query_start": np.array(starts, np.int32),
            "sample_rows": np.array([end - 1 for end in starts[1:]], np.int32),
        }
        value = self.graph.values()[self.graph.outputs[0]]
        found = self.made.run({}, step, counts(rows, seqs, seqs))[value.name]
        width = math.prod(row_dims(value.shape))
        return found.view(np.float32 if value.dtype == "f32" else np.int32).reshape(-1, width)
