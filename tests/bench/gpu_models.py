"""Models of true shapes for timing on a GPU: code from the compiler, random weights that are made on the device.

``gpu_prepare.py`` writes the code; nothing here needs a compiler or torch.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.layouts import RowLayout, parse_layout
from ferrum.devices.cuda import CudaExecutor
from ferrum.devices.cuda_driver import Driver, Gpu
from ferrum.devices.options import DeviceOptions
from ferrum.graphs.models.random_weights import SHAPES as SMALL_SHAPES
from ferrum.pack.schema import Manifest, TensorRecord

MAX_MODEL_LEN = 8192
SHAPES: dict[str, dict[str, Any]] = {
    "0.6b": SMALL_SHAPES["qwen3-0.6b"],
    "4b": SMALL_SHAPES["qwen3-4b"],
    "8b": SMALL_SHAPES["qwen3-4b"]
    | {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "tie_word_embeddings": False},
}
# Of each array, so many bytes are random; the rest repeats them.
_RANDOM_BYTES = 16 << 20
_DEVIATION = 0.02


@dataclass
class PreparedPack:
    """What the device reads of a pack, from a prepared folder; it has no weights."""

    path: Path

    def __post_init__(self) -> None:
        self.manifest = msgspec.json.decode((self.path / "manifest.json").read_bytes(), type=Manifest)
        self.weights = memoryview(b"")
        self._kept: dict[str, NDArray[np.uint8]] = {}

    def __contains__(self, name: str) -> bool:
        return (self.path / name).is_file()

    def member(self, name: str) -> memoryview:
        if name not in self._kept:
            self._kept[name] = np.fromfile(self.path / name, np.uint8)
        return self._kept[name].data

    def address(self, name: str) -> int:
        self.member(name)
        return int(self._kept[name].ctypes.data)


class RandomExecutor(CudaExecutor):
    """Its weights are random: normal with a deviation of 0.02, norms one. The KV cache is random too."""

    def __init__(self, driver: Driver, gpu: Gpu, pack: PreparedPack, options: DeviceOptions) -> None:
        self._tensors = pack.manifest.tensors
        super().__init__(driver, gpu, pack, options)  # type: ignore[arg-type]

    def _upload(self, weights: memoryview) -> None:
        random = np.random.default_rng(0)
        for tensor in self._tensors:
            for start, nbytes, piece in _pieces(tensor, random):
                self._repeat(self._at["weights"] + tensor.offset + start, nbytes, piece)
        kv = _bf16(random.standard_normal(1 << 20).astype(np.float32))
        self._repeat(self._at["kv"], sum(pool.num_blocks * pool.block_bytes for pool in self._pools), kv)

    def _repeat(self, target: int, nbytes: int, piece: NDArray[np.uint8]) -> None:
        """``piece`` over and over: copied once, then doubled on the device."""
        done = min(piece.nbytes, nbytes)
        with contextlib.ExitStack() as release:
            staged = self._pinned(done, release)
            release.callback(self._call, "cuStreamSynchronize", self._stream)
            staged[:] = piece[:done]
            self._call("cuMemcpyHtoDAsync", target, staged.ctypes.data, done, self._stream)
            while done < nbytes:
                size = min(done, nbytes - done)
                self._call("cuMemcpyDtoDAsync", target + done, target, size, self._stream)
                done += size


def _pieces(tensor: TensorRecord, random: np.random.Generator) -> list[tuple[int, int, NDArray[np.uint8]]]:
    """(offset, bytes, random bytes to repeat) of the parts of a stored array."""
    if len(tensor.shape) < 2:
        return [(0, tensor.nbytes, np.ones(tensor.nbytes // 4, np.float32).view(np.uint8))]
    rows = parse_layout(tensor.layout, tensor.format, tuple(tensor.shape))
    assert isinstance(rows, RowLayout)
    size = rows.scale_offset if rows.groups else tensor.nbytes
    count = min(size, _RANDOM_BYTES)
    if not rows.groups:
        values = (random.standard_normal(count * 8 // rows.format.bits) * _DEVIATION).astype(np.float32)
        return [(0, size, values.view(np.uint8) if rows.format.bits == 32 else _bf16(values))]
    # uniform integers of b bits deviate by 2^b / sqrt(12)
    scale = _DEVIATION * 12**0.5 / (1 << rows.format.bits)
    parts = [(0, size, random.integers(0, 256, count, dtype=np.uint8))]
    scales = rows.padded_n * rows.groups
    parts.append((rows.scale_offset, 2 * scales, np.full(min(scales, 4096), scale, np.float16).view(np.uint8)))
    if rows.format.kind == "int4a":
        parts.append((rows.zero_offset, scales, np.full(min(scales, 4096), 8, np.uint8)))
    return parts


def _bf16(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
