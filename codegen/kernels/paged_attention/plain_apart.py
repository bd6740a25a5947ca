"""Attention over the paged cache on GPUs with every option: what ``apart.py`` is for CPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.base import F32, c_float
from ferrum.codegen.kernels.cases import Case, Written, counts, error, normal, poison, rows_in, values_of
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE
from ferrum.codegen.kernels.paged_attention.gpu import Lengths
from ferrum.codegen.kernels.paged_attention.plain import PlainAttention
from ferrum.codegen.layouts import to_bf16, to_f32
from ferrum.codegen.layouts.activations import ActFormat
from ferrum.graphs.numpy_attention import Rules, ragged


@dataclass(frozen=True)
class ApartAttention(PlainAttention):
    """Values have ``value_width`` numbers; ``softcap`` and ``operands`` are those of ``CpuAttend``."""

    value_width: int
    softcap: float
    operands: str
    usual_lengths: ClassVar[Lengths] = ((40, 1), (1, 1), (37, 30))

    @property
    def elements(self) -> bool:  # type: ignore[override]
        return bool(self.softcap)

    @property
    def args(self) -> tuple[str, ...]:
        return (*super().args, *(f"weight:{i}" for i in range(len(self.operands.split()))))

    @property
    def head_bytes(self) -> int:
        return BLOCK_SIZE * (self.head_dim + self.value_width) * self.element_bytes

    def why(self) -> str:
        return f"generic: q, k and v were made elsewhere; {super().why()}"

    def context(self) -> dict[str, object]:
        given = {name: f"weight_{i}" for i, name in enumerate(self.operands.split())}
        return super().context() | {
            "values": self.value_width,
            "softcap": c_float(self.softcap) if self.softcap else "",
            "sinks": given.get("sinks", ""),
            "slopes": given.get("slopes", ""),
            "numbers": [f"const float *{name}" for name in given.values()],
            "stride": ActFormat(self.out).row_stride(self.num_heads * self.value_width),
        }

    def reduced(self) -> ApartAttention:
        kv = min(self.num_kv_heads, 2)
        return replace(self, num_heads=self.group * kv, num_kv_heads=kv, block_bytes=2 * kv * self.head_bytes)

    def case(self, random: np.random.Generator, lengths: Lengths = (), **_: Any) -> Case:
        """Sequences in a cache of shuffled blocks; what was never written is NaN."""
        lengths = lengths or self.usual_lengths
        numbers = {f"weight:{i}": normal(random, self.num_heads) for i in range(len(self.operands.split()))}
        new = [n for _, n in lengths]
        tokens, per_seq = sum(new), max(-(-length // BLOCK_SIZE) for length, _ in lengths)
        tables = random.permutation(len(new) * per_seq).reshape(-1, per_seq).astype(np.int32)
        cache = np.full((tables.size, self.block_bytes), 0xFF, np.uint8)
        pairs = [self._fill(random, cache, table, length) for table, (length, _) in zip(tables, lengths, strict=True)]
        q, meant = rows_in(normal(random, tokens, self.num_heads * self.head_dim), self.kv_dtype)
        positions = np.concatenate([np.arange(length - n, length) for length, n in lengths]).astype(np.int32)
        result = poison((tokens, ActFormat(self.out).row_stride(self.num_heads * self.value_width)), self.out)
        arrays: dict[str, NDArray[np.generic]] = {
            "value:0": q, "state": cache, "input:positions": positions, self.table: tables, "result": result,
            "scratch:token_seq": np.repeat(np.arange(len(new)), new).astype(np.int32), **numbers,
        }  # fmt: skip
        given = dict(zip(self.operands.split(), numbers.values(), strict=True))
        rules = Rules(self.softmax_scale, True, self.window, self.softcap, given.get("sinks"), given.get("slopes"))
        rows = np.split(meant.reshape(tokens, self.num_heads, self.head_dim), np.cumsum(new)[:-1])
        wanted = np.concatenate([ragged(x, 0, k, v, rules, None, False) for x, (k, v) in zip(rows, pairs, strict=True)])

        def judge(scratch: Written) -> float:
            return error(values_of(result, self.num_heads * self.value_width), wanted.reshape(tokens, -1))

        return Case(arrays, counts(tokens, len(new), blocks_per_seq=per_seq), judge)

    def _fill(
        self, random: np.random.Generator, cache: NDArray[np.uint8], table: NDArray[np.int32], length: int
    ) -> tuple[F32, F32]:
        """Random keys and values of a sequence, written into its blocks."""
        kv, dtype = self.num_kv_heads, np.uint16 if self.kv_dtype == "bf16" else np.float32
        used = cache[:, : kv * self.head_bytes].view(dtype).reshape(len(cache), kv, -1)
        at, found, start = np.arange(length), [], 0
        for width in (self.head_dim, self.value_width):
            raw = normal(random, length, kv, width)
            coded = to_bf16(raw).reshape(raw.shape) if dtype is np.uint16 else raw
            part = used[:, :, start : start + BLOCK_SIZE * width].reshape(len(cache), kv, BLOCK_SIZE, width)
            part[table[at // BLOCK_SIZE], :, at % BLOCK_SIZE] = coded
            used[:, :, start : start + BLOCK_SIZE * width] = part.reshape(len(cache), kv, -1)
            found.append(to_f32(coded).reshape(raw.shape))
            start += BLOCK_SIZE * width
        return found[0], found[1]
