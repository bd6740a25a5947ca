"""Weights on their way into a pack: read mapped, encoded chunk by chunk on several threads, written in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from ferrum.codegen.layouts import Array, TiledLayout, encode_units, gather_units, parse_tiled, to_f32
from ferrum.codegen.plan import Tensor
from ferrum.graphs.ir import Graph, Param

# Source values per chunk: small enough to stay in a core's cache while a dozen passes go over it.
_CHUNK_VALUES = 1 << 18


class Reader(Protocol):
    """A checkpoint: arrays by name, mapped; bfloat16 as uint16 bits."""

    def read(self, name: str) -> Array: ...


class Sink(Protocol):
    def write(self, data: Any) -> int: ...
    def tell(self) -> int: ...
    def pad_to(self, offset: int) -> None: ...


class JoinedRows:
    """Several arrays one below the other, joined only for the rows that are asked for."""

    def __init__(self, parts: Sequence[Array]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(p) for p in parts)])

    def __getitem__(self, rows: slice) -> Array:
        pieces = []
        for part, start in zip(self.parts, self.starts, strict=False):
            low, high = max(rows.start - start, 0), min(rows.stop - start, len(part))
            if low < high:
                pieces.append(to_f32(part[low:high]))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def source_rows(param: Param, reader: Reader) -> JoinedRows:
    if param.data is not None:
        return JoinedRows([np.array(param.data, np.float32)])
    return JoinedRows([reader.read(name) for name in param.sources])


def write_weights(
    graph: Graph, tensors: list[Tensor], reader: Reader, sink: Sink, jobs: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write every tensor at its offset. Memory: a few chunks per job."""
    params = {p.name: p for p in graph.params}
    total = sum(t.nbytes for t in tensors)
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        for tensor in tensors:
            sink.pad_to(tensor.offset)
            rows = source_rows(params[tensor.name], reader)
            if tensor.layout == "rows":
                sink.write(np.ascontiguousarray(rows[slice(0, tensor.shape[0])], np.float32))
            else:
                layout = parse_tiled(tensor.layout, tensor.format, (tensor.shape[0], tensor.shape[1]))
                _write_tiled(rows, layout, sink, pool)
            if progress:
                progress(tensor.offset + tensor.nbytes, total)
        sink.pad_to(-(-sink.tell() // 64) * 64)


def _write_tiled(rows: JoinedRows, layout: TiledLayout, sink: Sink, pool: ThreadPoolExecutor) -> None:
    """Encoded runs of units in order; at most two per core are under way."""
    step = max(1, _CHUNK_VALUES // (layout.unit_rows * layout.padded_k))

    def encode(first: int) -> Array:
        return encode_units(gather_units(rows, layout, first, min(step, layout.units - first)), layout)  # type: ignore[arg-type]

    pending: deque[Future[Array]] = deque()
    for first in range(0, layout.units, step):
        pending.append(pool.submit(encode, first))
        if len(pending) > 2 * (os.cpu_count() or 1):
            sink.write(pending.popleft().result())
    while pending:
        sink.write(pending.popleft().result())
