"""Runs single kernels: a plan of a few launches over slots, rendered, compiled and called without a model around it."""

from __future__ import annotations

import ctypes
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.alone import launch_alone, plan_alone, slot_alone
from ferrum.codegen.backend import Backend
from ferrum.codegen.kernels.cpu import CpuKernel
from ferrum.codegen.layouts import parse_layout, stored
from ferrum.codegen.plan import Tensor, place_tensors
from ferrum.codegen.render import render_step
from ferrum.codegen.target import Target
from ferrum.codegen.toolchains.cxx import CToolchain, find_compiler
from ferrum.codegen.views import row_axes, row_dims
from ferrum.devices.cpu import StepRecord, config_type
from ferrum.graphs.interpret import Rows, Weights, bind_dims
from ferrum.graphs.ir import Graph, Param, Shape
from ferrum.graphs.passes import layout

VOCAB = 16
MAX_ROWS = 64
THREADS = 2


@dataclass(frozen=True)
class Call:
    """A launch: slots it reads and writes (``residual`` and ``more`` after the first), byte offsets of its weights, whether its
    rows may be private to each thread."""

    kernel: CpuKernel
    input: int
    output: int
    weights: tuple[int, ...] = (0, 0, 0)
    in_private: bool = False
    residual: int = 0
    more: tuple[int, ...] = ()


def run(
    calls: Sequence[Call],
    row_bytes: Sequence[int],
    rows: int,
    inputs: dict[int, NDArray[np.generic]],
    weights: bytes,
    target: Target,
    tokens: NDArray[np.int32] | None = None,
) -> list[NDArray[np.uint8]]:
    """All slots' bytes ``[rows, row_bytes]`` after running ``calls`` on ``rows`` token rows; slot 0 is kept for logits."""
    launches = [launch_alone(c.kernel, [c.input, c.residual, *c.more], c.output, c.weights, c.in_private) for c in calls]
    slots = [slot_alone(4 * VOCAB, "samples"), *(slot_alone(n) for n in row_bytes)]
    plan = plan_alone([c.kernel for c in calls], launches, slots, VOCAB)
    code = compiled(find_compiler(target.arch), render_step(plan, target, "0" * 64), target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.so"
        path.write_bytes(code)
        return _call(ctypes.CDLL(str(path)), [4 * VOCAB, *row_bytes], rows, inputs, weights, tokens)


@cache
def compiled(compiler: CToolchain, source: str, target: Target) -> bytes:
    return compiler.compile(source, target)


def _call(
    lib: ctypes.CDLL,
    sizes: Sequence[int],
    rows: int,
    inputs: dict[int, NDArray[np.generic]],
    weights: bytes,
    tokens: NDArray[np.int32] | None,
) -> list[NDArray[np.uint8]]:
    lib.ferrum_arena_bytes.restype = ctypes.c_int64
    stored = aligned(len(weights))
    stored[:] = np.frombuffer(weights, np.uint8)
    cpus = np.full(THREADS, -1, np.int32)
    config = config_type(1)(weights=stored.ctypes.data, cpus=cpus.ctypes.data, max_blocks_per_seq=1, spin=100)
    config.max_tokens = config.max_seqs = config.max_samples = MAX_ROWS
    config.num_threads = THREADS
    arena = aligned(lib.ferrum_arena_bytes(ctypes.byref(config)))
    config.arena = arena.ctypes.data
    starts, at = [], 0
    for size in sizes:
        starts.append(at)
        at += -(-max(MAX_ROWS, THREADS * 8) * size // 64) * 64
    for slot, value in inputs.items():
        raw = np.ascontiguousarray(value).view(np.uint8).ravel()
        arena[starts[slot] : starts[slot] + raw.size] = raw
    ids = np.zeros(MAX_ROWS, np.int32) if tokens is None else tokens.astype(np.int32)
    query_start = np.array([0, rows], np.int32)
    step = StepRecord(num_tokens=rows, num_seqs=1, num_samples=0, tokens=ids.ctypes.data, query_start=query_start.ctypes.data)
    handle = ctypes.c_void_p()
    assert lib.ferrum_open(ctypes.byref(config), ctypes.byref(step), ctypes.byref(handle)) == 0
    lib.ferrum_step.argtypes = lib.ferrum_close.argtypes = [ctypes.c_void_p]
    lib.ferrum_step(handle)
    lib.ferrum_close(handle)
    return [arena[s : s + rows * size].copy().reshape(rows, size) for s, size in zip(starts, sizes, strict=True)]


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """Zeros at a multiple of 64 bytes."""
    raw = np.zeros(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


def in_rows(array: NDArray[Any], shape: Shape, rows: int) -> NDArray[Any]:
    """A value as it lies in memory: a row for each token, also of what is the same for all."""
    places = row_axes(shape)
    at = next((axis for axis, dim in enumerate(shape) if not isinstance(dim, int)), None)
    if at is None:
        return np.repeat(array[None], rows, axis=0)
    apart = array.reshape(*array.shape[:at], rows, -1, *array.shape[at + 1 :])  # of an axis 3 * tokens those of a token
    return np.moveaxis(apart, at, 0) if places[at] is not None else np.moveaxis(array, at, 0)


def from_rows(array: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """The inverse."""
    at = next((axis for axis, dim in enumerate(shape) if not isinstance(dim, int)), None)
    dims = row_dims(shape)
    if at is None:
        return array[0].reshape(dims)
    found = np.moveaxis(array.reshape(len(array), *dims), 0, at)
    return found if row_axes(shape)[at] is None else found.reshape(*found.shape[:at], -1, *found.shape[at + 2 :])


@dataclass(frozen=True)
class InMemory:
    """Weights as the bytes of a pack mean them."""

    tensors: Sequence[Tensor]
    data: bytes

    def get(self, param: Param) -> NDArray[np.float32]:
        return self.rows(param, slice(None))

    def rows(self, param: Param, ids: Rows) -> NDArray[np.float32]:
        t = next(t for t in self.tensors if t.name == param.name)
        data = self.data[t.offset : t.offset + t.nbytes]
        found: NDArray[np.float32] = parse_layout(t.layout, t.format, t.shape).decode(data)[ids]
        return found


def run_graph(graph: Graph, inputs: Mapping[str, NDArray[Any]], weights: Mapping[str, NDArray[np.float32]], target: Target,
              quant: str = "f32") -> tuple[dict[str, NDArray[Any]], Graph, Weights]:  # fmt: skip
    """The outputs of a graph of a few nodes over values and weights in memory, by the kernels that are chosen for them.

    Also the graph with formats and layouts, and its weights as they are stored.
    """
    backend = Backend(target, quant, "f32")
    laid_out = layout.run(graph, backend.policy())
    calls, types, tensors = backend.select(laid_out), laid_out.values(), place_tensors(laid_out)
    data = bytearray(tensors[-1].offset + tensors[-1].nbytes + 64 if tensors else 64)
    for t in tensors:
        data[t.offset : t.offset + t.nbytes] = stored(weights[t.name], parse_layout(t.layout, t.format, t.shape)).tobytes()
    offsets = {t.name: t.offset for t in tensors}
    rows = bind_dims(graph, inputs)["tokens"]
    slots: dict[str, int] = {}
    sizes: list[int] = []
    arrays: dict[int, NDArray[Any]] = {}
    for value in graph.inputs:
        given = inputs[value.name].astype(np.float32 if value.dtype == "f32" else np.int32)
        arrays[len(sizes) + 1] = in_rows(given, value.shape, rows)
        slots[value.name] = len(sizes) + 1
        sizes.append(4 * math.prod(row_dims(value.shape)))
    made = []
    for call in calls:
        assert isinstance(call.kernel, CpuKernel)
        slots[call.output] = len(sizes) + 1
        sizes.append(call.row_bytes)
        first, second, *more = (*(slots[name] for name in call.inputs), 0, 0)
        at = tuple(offsets[name] for name in call.params)
        made.append(Call(call.kernel, first, slots[call.output], at, residual=second, more=tuple(more)))
    raw = run(made, sizes, rows, arrays, bytes(data), target)
    out = {}
    for name in graph.outputs:
        found = np.ascontiguousarray(raw[slots[name]]).reshape(-1).view(np.float32 if types[name].dtype == "f32" else np.int32)
        out[name] = from_rows(found.reshape(rows, -1), types[name].shape)
    return out, laid_out, InMemory(tensors, bytes(data))
