"""What the attention kernels for GPUs share: cache geometry, cases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.base import F32, Cost, c_float
from ferrum.codegen.kernels.cases import Case, Written, counts, error, poison, rows_in, values_of
from ferrum.codegen.kernels.gpu import GpuKernel
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE, PagedAttention
from ferrum.codegen.layouts import to_bf16, to_f32
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.pack.launches import RowCounts

Self = TypeVar("Self", bound="GpuAttention")
# (context length, new tokens) of each sequence
Lengths = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class GpuAttention(PagedAttention, GpuKernel):
    """``q [T, num_heads * head_dim]`` (rotated) over the cache ``-> act [T, num_heads * head_dim]`` in the format ``out``.

    ``block_bytes``: from one block of the cache to the next.
    """

    out: str
    block_bytes: int
    usual_lengths: ClassVar[Lengths] = ((300, 1), (1, 1), (45, 30), (17, 1))

    @property
    def head_bytes(self) -> int:
        """Keys and values of one KV head in one block."""
        return 2 * BLOCK_SIZE * self.head_dim * self.element_bytes

    def cost(self) -> Cost:
        width = self.num_heads * self.head_dim
        return Cost(0, width * (self.element_bytes + (2 if self.out == "bf16" else 4)), 0)

    def context(self) -> dict[str, object]:
        return {
            "group": self.group,
            "block_size": BLOCK_SIZE,
            "head_bytes": self.head_bytes,
            "key_bytes": self.head_bytes // 2,
            "q_stride": ActFormat(self.kv_dtype).row_stride(self.num_heads * self.head_dim),
            "stride": ActFormat(self.out).row_stride(self.num_heads * self.head_dim),
            "scale": c_float(self.softmax_scale),
            # the exponentials are powers of two: the scale carries log2(e)
            "scale_log2": c_float(self.softmax_scale * 1.4426950408889634),
        }

    def reduced(self: Self) -> Self:
        kv = min(self.num_kv_heads, 2)
        return replace(self, num_heads=self.group * kv, num_kv_heads=kv, block_bytes=2 * kv * self.head_bytes)

    def owns(self, new: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which sequences are the kernel's, by their new tokens."""
        return np.ones(len(new), bool)

    def prepare(self, arrays: dict[str, NDArray[np.generic]], rows: RowCounts) -> RowCounts:
        """Add the arrays that only this kernel reads; the rows of its launch."""
        return rows

    def case(self, random: np.random.Generator, lengths: Lengths = (), **_: Any) -> Case:
        """Sequences that are not the kernel's (one new token for prefill, several for decode) must be left alone."""
        paged = Paged(self, lengths or self.usual_lengths)
        arrays, q, pairs = paged.make(random)
        new = np.array([n for _, n in paged.lengths])
        rows = counts(int(new.sum()) + 3, len(new) + 1, blocks_per_seq=arrays[self.table].shape[1])
        rows, mask = self.prepare(arrays, rows), np.repeat(self.owns(new), new)

        def judge(scratch: Written) -> float:
            result, expected = arrays["result"], paged.expected(q, pairs)
            if (np.ascontiguousarray(result[~mask]).view(np.uint8) != 0xFF).any():
                return float("inf")
            return error(values_of(np.ascontiguousarray(result[mask]), expected.shape[1]), expected[mask])

        return Case(arrays, rows, judge)


@dataclass(frozen=True)
class Paged:
    """Sequences in a cache of shuffled blocks; what was never written is NaN."""

    kernel: GpuAttention
    lengths: Lengths

    def make(self, random: np.random.Generator) -> tuple[dict[str, NDArray[np.generic]], F32, list[tuple[F32, F32]]]:
        """The arrays, q as float32, and keys and values of every sequence."""
        kernel, heads = self.kernel, self.kernel.num_kv_heads
        dtype, d = np.uint16 if kernel.kv_dtype == "bf16" else np.float32, kernel.head_dim
        per_seq = max(-(-length // BLOCK_SIZE) for length, _ in self.lengths)
        tables = random.permutation(len(self.lengths) * per_seq).reshape(-1, per_seq).astype(np.int32)
        cache = np.full((tables.size, kernel.block_bytes), 0xFF, np.uint8)
        used = cache[:, : heads * kernel.head_bytes].view(dtype).reshape(tables.size, heads, 2, BLOCK_SIZE, d)
        pairs = []
        for (length, _), table in zip(self.lengths, tables, strict=True):
            raw = random.normal(size=(2, length, heads, d)).astype(np.float32)
            coded = to_bf16(raw).reshape(raw.shape) if dtype == np.uint16 else raw
            at = np.arange(length)
            used[table[at // BLOCK_SIZE], :, :, at % BLOCK_SIZE] = coded.transpose(1, 2, 0, 3)
            keys, values = to_f32(coded).reshape(raw.shape) if dtype == np.uint16 else raw
            pairs.append((keys, values))
        new = [n for _, n in self.lengths]
        tokens = sum(new)
        q, meant = rows_in(random.normal(size=(tokens, kernel.num_heads * d)).astype(np.float32), kernel.kv_dtype)
        starts = np.concatenate([[0], np.cumsum(new)]).astype(np.int32)
        positions = np.concatenate([np.arange(length - n, length) for length, n in self.lengths]).astype(np.int32)
        arrays: dict[str, NDArray[np.generic]] = {
            "value:0": q,
            "state": cache,
            "input:positions": positions,
            "input:query_start": starts,
            "input:context_len": np.array([length for length, _ in self.lengths], np.int32),
            kernel.table: tables,
            "input:num_seqs": np.array([len(new)], np.int32),
            "input:num_tokens": np.array([tokens], np.int32),
            "scratch:token_seq": np.repeat(np.arange(len(new)), new).astype(np.int32),
            "result": poison((tokens, ActFormat(kernel.out).row_stride(kernel.num_heads * d)), kernel.out),
        }
        return arrays, meant, pairs

    def expected(self, q: F32, pairs: list[tuple[F32, F32]]) -> F32:
        kernel, out, at = self.kernel, [], 0
        for (_, new), (keys, values) in zip(self.lengths, pairs, strict=True):
            rows = q[at : at + new].reshape(new, kernel.num_heads, kernel.head_dim)
            out.append(kernel.reference(rows, keys, values, kernel.softmax_scale, kernel.window).reshape(new, q.shape[1]))
            at += new
        return np.concatenate(out)
