"""Finished graphs of a few ops on a CPU: selected, planned, compiled and run, beside the interpreter.

Their values come from an ``embedding`` whose table the test draws, so that rows of any numbers are there.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.layouts import parse_layout, stored
from ferrum.codegen.plan import Plan, plan
from ferrum.codegen.policy import TargetPolicy
from ferrum.codegen.render import render_step
from ferrum.codegen.select import select
from ferrum.codegen.target import Target
from ferrum.codegen.toolchains.cxx import find_compiler
from ferrum.devices.cpu import StepRecord, config_type
from ferrum.graphs.interpret import ArrayWeights, interpret
from ferrum.graphs.ir import Graph
from ferrum.graphs.passes import layout
from ferrum.graphs.verify import verify
from tests.codegen.kernel_harness import MAX_ROWS, aligned

Arrays = Mapping[str, NDArray[Any]]


def planned(graph: Graph, target: Target, quant: str = "f32") -> Plan:
    laid_out = layout.run(verify(graph, paged=True), TargetPolicy(target, quant, {}))
    return plan(laid_out, select(laid_out, target, "f32", {}), target, "f32")


class Compiled:
    """A graph's code, loaded; ``run`` gives the rows of its first output."""

    def __init__(self, graph: Graph, weights: Arrays, target: Target, quant: str = "f32") -> None:
        self.graph, self.weights = graph, weights
        made = self.plan = planned(graph, target, quant)
        code = find_compiler(target.arch).compile(render_step(made, target, "0" * 64), target)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "step.so"
            path.write_bytes(code)
            self.lib = ctypes.CDLL(str(path))
        self.lib.ferrum_arena_bytes.restype = ctypes.c_int64
        self.lib.ferrum_slot.restype = ctypes.POINTER(ctypes.c_uint8)
        self.lib.ferrum_slot.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        self.lib.ferrum_step.argtypes = self.lib.ferrum_close.argtypes = [ctypes.c_void_p]
        self.stored = aligned(max([1, *(t.offset + t.nbytes for t in made.tensors)]))
        for tensor in made.tensors:
            param = made.graph.param(tensor.name)
            values = param.data if param.data is not None else weights[tensor.name]
            raw = stored(np.asarray(values, np.float32), parse_layout(tensor.layout, tensor.format, tensor.shape))
            self.stored[tensor.offset : tensor.offset + raw.size] = raw

    def run(
        self,
        tokens: Sequence[int],
        positions: Sequence[int] | None = None,
        threads: int = 2,
        starts: Sequence[int] | None = None,
    ) -> NDArray[Any]:
        """The first output ``[rows, width]``, float32 or int32: a row for each token, or for each sequence if there are samples.
        ``starts``: where the sequences begin, and the end of the last one (default: one sequence)."""
        rows, starts = len(tokens), starts or [0, len(tokens)]
        ends = [end - 1 for end in starts[1:]]
        cpus = np.full(threads, -1, np.int32)
        config = config_type(1)(weights=self.stored.ctypes.data, cpus=cpus.ctypes.data, max_blocks_per_seq=1, spin=100)
        config.max_tokens = config.max_seqs = config.max_samples = max(MAX_ROWS, rows)
        config.num_threads = threads
        arena = aligned(self.lib.ferrum_arena_bytes(ctypes.byref(config)))
        arena[:] = 0xFF  # what nobody writes is no number
        config.arena = arena.ctypes.data
        places = list(range(rows)) if positions is None else positions
        given = [np.array(values, np.int32) for values in (starts, tokens, places, ends)]
        start, ids, at, last = (array.ctypes.data for array in given)
        counts = {"num_tokens": rows, "num_seqs": len(ends), "num_samples": len(ends)}
        step = StepRecord(**counts, tokens=ids, positions=at, query_start=start, sample_rows=last)
        handle = ctypes.c_void_p()
        assert self.lib.ferrum_open(ctypes.byref(config), ctypes.byref(step), ctypes.byref(handle)) == 0
        self.lib.ferrum_step(handle)
        value = self.graph.values()[self.graph.outputs[0]]
        rows = len(ends) if value.shape[:1] == ("samples",) else rows
        width = next(call.row_bytes for call in self.plan.calls if call.output == value.name) // 4
        slot = self.lib.ferrum_slot(handle, self.plan.table.logits_slot)
        found = np.ctypeslib.as_array(slot, (rows * width * 4,)).copy().view(np.float32 if value.dtype == "f32" else np.int32)
        self.lib.ferrum_close(handle)
        return found.reshape(rows, width)

    def expected(
        self,
        tokens: Sequence[int],
        positions: Sequence[int] | None = None,
        starts: Sequence[int] | None = None,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> NDArray[Any]:
        """What the interpreter says, row by row."""
        rows, starts = len(tokens), starts or [0, len(tokens)]
        places = np.array(range(rows) if positions is None else positions, np.int32)
        inputs = {"tokens": np.array(tokens, np.int32), "positions": places}
        if any(value.name == "sample_rows" for value in self.graph.inputs):
            inputs["sample_rows"] = np.array(starts[1:], np.int32) - 1
        name = self.graph.outputs[0]
        weights = ArrayWeights(dict(self.weights))
        found = interpret(self.graph, inputs, weights, dtype, query_start=starts, wanted=(name,))[name]
        shape = self.graph.values()[name].shape
        if shape[:1] == ("samples",):
            return found
        axis = next((i for i, dim in enumerate(shape) if "tokens" in str(dim)), None)
        found = np.moveaxis(found, axis, 0) if axis is not None else np.broadcast_to(found, (rows, *found.shape))
        return found.reshape(rows, -1)
