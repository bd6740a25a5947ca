"""Trials: a GPU kernel alone, on random data, in emulation, against the reference of its spec.

``TRIALS`` has one function per spec. It makes the arrays that the kernel's arguments name, runs the kernel through a
``Bench`` and returns the error: the largest difference relative to the largest expected value, or infinity for results that
must be exact and are not. The tests draw shapes for it; ``prove`` runs it on the kernels of a pack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.emulate import SCHEDULES, Module, Schedule
from ferrum.codegen.kernels.gpu_attention import GpuAttention
from ferrum.codegen.kernels.gpu_base import GpuKernel, row_stride
from ferrum.codegen.kernels.gpu_convert import GpuConvert
from ferrum.codegen.kernels.gpu_decode_attention import GpuDecodeAttention
from ferrum.codegen.kernels.gpu_embedding import GpuEmbedding
from ferrum.codegen.kernels.gpu_gather_rows import GpuGatherRows
from ferrum.codegen.kernels.gpu_large_linear import GpuLargeLinear
from ferrum.codegen.kernels.gpu_layer_norm import GpuLayerNorm
from ferrum.codegen.kernels.gpu_matrix import GpuMatrix
from ferrum.codegen.kernels.gpu_prefill_attention import GpuPrefillAttention
from ferrum.codegen.kernels.gpu_rms_norm import GpuRmsNorm
from ferrum.codegen.kernels.gpu_rope_kv import GpuRopeKv
from ferrum.codegen.kernels.gpu_rope_table import GpuRopeTable
from ferrum.codegen.kernels.gpu_sample import MAX_LOGPROBS, GpuSample
from ferrum.codegen.kernels.gpu_schedule import GpuSchedule
from ferrum.codegen.kernels.gpu_small_linear import GpuSmallLinear
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE
from ferrum.codegen.layouts import stored, to_bf16, to_f32
from ferrum.pack.launches import RowCounts, Rows, total

F32 = NDArray[np.float32]
Arrays = Mapping[str, NDArray[np.generic]]
Random = np.random.Generator


def counts(tokens: int, seqs: int = 1, samples: int = 1, blocks_per_seq: int = 1) -> RowCounts:
    return RowCounts(tokens=tokens, samples=samples, seqs=seqs, blocks_per_seq=blocks_per_seq, adjust=64, mask_words=1)


@dataclass(frozen=True)
class Bench:
    """A compiled source and the schedule under which its kernels run."""

    module: Module
    schedule: Schedule = SCHEDULES[0]

    def run(self, kernel: GpuKernel, arrays: Arrays, rows: RowCounts, kind: Rows = "tokens") -> dict[str, NDArray[np.uint8]]:
        """Launch ``kernel`` for ``rows``; the bytes of its scratch afterwards. ``arrays`` by argument, results too.

        Counts come from ``rows`` unless they are among the arrays. Scratch that is not among them starts as poison, or as
        zeros where the kernel says so, and must then be zero again at the end.
        """
        scratch = {f"scratch:{name}": (s, total(s.terms, rows)) for name, s in kernel.scratch().items()}
        made = {name: np.full(size, 0 if s.zero else 0xFF, np.uint8) for name, (s, size) in scratch.items() if name not in arrays}
        args: list[Any] = []
        for arg in kernel.args:
            if arg in arrays or arg in made:
                args.append(arrays[arg] if arg in arrays else made[arg])
            elif arg.startswith("limit:"):
                args.append(int(getattr(rows, arg[6:])))
            else:
                args.append(np.array([getattr(rows, kind if arg == "count" else arg.removeprefix("input:num_"))], np.int32))
        geometry = kernel.geometry(kind)
        grid = [max(1, total(axis, rows)) for axis in geometry.grid]
        # kernels for CUDA may start early: before their wait they touch nothing that another kernel writes
        constant = [arg.startswith(("count", "input:", "weight:")) for arg in kernel.args]
        self.module.launch(
            kernel.symbol, grid=grid, block=geometry.block, args=args, shared=geometry.shared, schedule=self.schedule,
            constant=constant if self.module.language == "cuda" else None,
        )  # fmt: skip
        left = [name for name, (s, _) in scratch.items() if s.zero and name in made and made[name].any()]
        assert not left, f"{left[0]} is not left at zero"
        return made


def poison(shape: tuple[int, ...], kind: str) -> NDArray[np.generic]:
    """An array of NaN in the format ``kind`` (f32 or bf16): what a kernel must write, or must not read."""
    dtype = np.dtype(np.uint16 if kind == "bf16" else np.float32)
    return np.full(int(np.prod(shape)) * dtype.itemsize, 0xFF, np.uint8).view(dtype).reshape(shape)


def rows_in(x: F32, kind: str) -> tuple[NDArray[np.generic], F32]:
    """Rows as a kernel reads them in the format ``kind``, and the float32 values that they mean."""
    if kind == "f32":
        return x, x
    out = np.zeros((len(x), row_stride(kind, x.shape[1])), np.uint16)
    out[:, : x.shape[1]] = to_bf16(x)
    return out, to_f32(np.ascontiguousarray(out[:, : x.shape[1]]))


def values_of(rows: NDArray[np.generic], width: int) -> F32:
    """The float32 values of written rows; the padding behind them must be zero."""
    if rows.shape[1] > width and rows[:, width:].any():
        return np.full((len(rows), width), np.inf, np.float32)
    return to_f32(np.ascontiguousarray(rows[:, :width]))


def error(got: F32, expected: F32) -> float:
    """Largest difference relative to the largest value; infinity for anything that is not a number."""
    if not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - expected).max(initial=0.0) / max(float(np.abs(expected).max(initial=0.0)), 1e-30))


def exact(same: bool) -> float:
    return 0.0 if same else float("inf")


def try_linear(kernel: GpuMatrix, bench: Bench, random: Random, rows: int = 0, limit: int = 0) -> float:
    """``rows`` 0 takes as many as the size class allows, ``limit`` is the recording's rows."""
    if not rows:
        most = {GpuSmallLinear: 8 * getattr(kernel, "row_tiles", 1), GpuLargeLinear: 70}.get(type(kernel), 5)
        rows = most - 1 if most > 1 else 1
    layout = kernel.weight
    raw = stored(random.normal(size=(kernel.n, kernel.k)).astype(np.float32), layout)
    w = layout.decode(raw.data)
    x, meant = rows_in(random.normal(size=(rows, kernel.k)).astype(np.float32), kernel.act)
    bias = random.normal(size=kernel.n).astype(np.float32)
    residual = random.normal(size=(rows, kernel.n_out)).astype(np.float32)
    expected = kernel.reference(meant, w, bias if kernel.bias else None, residual if kernel.residual else None, kernel.activation)
    result = poison((rows, row_stride(kernel.out, kernel.n_out)), kernel.out)
    if kernel.residual:  # the sum takes the place of what it is added to
        result = residual = np.ascontiguousarray(residual)
    arrays = {"weight:0": raw, "value:0": x, "weight:1": bias, "value:1": residual, "result": result}
    arrays["count"] = np.array([rows], np.int32)
    bench.run(kernel, arrays, counts(max(rows, limit)))
    return error(values_of(result, kernel.n_out), expected)


def try_embedding(kernel: GpuEmbedding, bench: Bench, random: Random) -> float:
    raw = stored(random.normal(size=(kernel.n, kernel.k)).astype(np.float32), kernel.weight)
    ids = np.array([0, kernel.n - 1, *random.integers(0, kernel.n, 5)], np.int32)
    result = poison((len(ids), kernel.k), "f32")
    bench.run(kernel, {"weight:0": raw, "input:tokens": ids, "result": result}, counts(len(ids)))
    table = kernel.weight.decode(raw.data)
    return error(result, kernel.reference(ids, table, kernel.scale))  # type: ignore[arg-type]


def try_rms_norm(kernel: GpuRmsNorm, bench: Bench, random: Random, rows: int = 3) -> float:
    x = (random.normal(size=(rows, kernel.k)) * 10.0 ** random.integers(-3, 3, (rows, 1))).astype(np.float32)
    w = random.normal(size=kernel.k).astype(np.float32)
    result = poison((rows, row_stride(kernel.act.kind, kernel.k)), kernel.act.kind)
    bench.run(kernel, {"value:0": x, "weight:0": w, "result": result}, counts(rows))
    return error(values_of(result, kernel.k), kernel.reference(x, w, kernel.eps))


def try_layer_norm(kernel: GpuLayerNorm, bench: Bench, random: Random, rows: int = 3) -> float:
    """Rows far from zero: a variance from sums of squares would show here."""
    x = (random.normal(size=(rows, kernel.k)) + 10.0 ** random.integers(-3, 3, (rows, 1))).astype(np.float32)
    w, b = (random.normal(size=kernel.k).astype(np.float32) for _ in range(2))
    result = poison((rows, row_stride(kernel.act.kind, kernel.k)), kernel.act.kind)
    bench.run(kernel, {"value:0": x, "weight:0": w, "weight:1": b, "result": result}, counts(rows))
    return error(values_of(result, kernel.k), kernel.reference(x, w, b if kernel.bias else None, kernel.eps))


def try_convert(kernel: GpuConvert, bench: Bench, random: Random, rows: int = 3) -> float:
    x = random.normal(size=(rows, kernel.k)).astype(np.float32)
    result = poison((rows, row_stride(kernel.act.kind, kernel.k)), kernel.act.kind)
    bench.run(kernel, {"value:0": x, "result": result}, counts(rows))
    return error(values_of(result, kernel.k), kernel.reference(x, kernel.act))


def try_gather_rows(kernel: GpuGatherRows, bench: Bench, random: Random) -> float:
    x, rows = random.normal(size=(7, kernel.k)).astype(np.float32), np.array([0, 4, 6], np.int32)
    result = poison((3, kernel.k), "f32")
    bench.run(kernel, {"value:0": x, "input:sample_rows": rows, "result": result}, counts(7, samples=3), "samples")
    return exact(np.array_equal(result, kernel.reference(x, rows)))


def try_rope_table(kernel: GpuRopeTable, bench: Bench, random: Random) -> float:
    positions = np.array([0, 1, 31, 1000, 100_000], np.int32)
    frequency = (10000.0 ** -np.linspace(0, 1, kernel.half, dtype=np.float32)).astype(np.float32)
    result = poison((len(positions), 2 * kernel.half), "f32")
    bench.run(kernel, {"input:positions": positions, "weight:0": frequency, "result": result}, counts(len(positions)))
    return error(result, kernel.reference(positions, frequency, kernel.scale))  # type: ignore[arg-type]


def try_rope_kv(kernel: GpuRopeKv, bench: Bench, random: Random, rows: int = 5) -> float:
    heads, kv, d = kernel.num_heads, kernel.num_kv_heads, kernel.head_dim
    x = random.normal(size=(rows, heads + 2 * kv, d)).astype(np.float32)
    angle = random.uniform(0, 6, (rows, kernel.rope_dim // 2)).astype(np.float32)
    table = np.concatenate([np.cos(angle), np.sin(angle)], -1)
    norms = [random.normal(size=d).astype(np.float32) for _ in range(2)]
    q = poison((rows, row_stride(kernel.kv_dtype, heads * d)), kernel.kv_dtype)
    blocks = rows  # each token in a block of its own, at another place
    slots = (random.permutation(blocks) * BLOCK_SIZE + random.integers(0, BLOCK_SIZE, rows)).astype(np.int32)
    cache = np.full((blocks, kernel.block_bytes), 0xFF, np.uint8)
    arrays = {"value:0": x.reshape(rows, -1), "value:1": table, "weight:0": norms[0], "weight:1": norms[1]}
    bench.run(kernel, arrays | {"scratch:token_slot": slots, "kv": cache, "result": q}, counts(rows))
    turned = [
        kernel.reference(x[:, part], norm if kernel.qk_norm else None, table, kernel.rope_dim, kernel.eps)
        for part, norm in ((slice(0, heads), norms[0]), (slice(heads, heads + kv), norms[1]))
    ]
    size = 2 if kernel.kv_dtype == "bf16" else 4
    layer = cache[:, : kv * 2 * BLOCK_SIZE * d * size].view(np.uint16 if size == 2 else np.float32)
    found = layer.reshape(blocks, kv, 2, BLOCK_SIZE, d)
    written = found[slots // BLOCK_SIZE, :, :, slots % BLOCK_SIZE]  # token, head, key or value, channel
    untouched = int((cache != 0xFF).sum()) <= 2 * rows * kv * d * size
    worst = [
        error(values_of(q, heads * d), turned[0].reshape(rows, -1)),
        error(to_f32(np.ascontiguousarray(written[:, :, 0])), turned[1]),
        error(to_f32(np.ascontiguousarray(written[:, :, 1])), x[:, heads + kv :]),
    ]
    return max(worst) if untouched else float("inf")


def try_schedule(kernel: GpuSchedule, bench: Bench, random: Random, lengths: tuple[int, ...] = (1, 70, 1, 1, 33, 2)) -> float:
    """Query lengths of the sequences of a step, below the limits of the recording."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens, seqs = int(starts[-1]), len(lengths)
    context = [int(random.integers(0, 50)) for _ in lengths]
    positions = np.concatenate([np.arange(c, c + n) for c, n in zip(context, lengths, strict=True)]).astype(np.int32)
    per_seq = -(-int(positions.max() + 1) // BLOCK_SIZE)
    tables = random.permutation(seqs * per_seq).reshape(seqs, per_seq).astype(np.int32)
    rows = counts(tokens + 13, seqs + 3, blocks_per_seq=per_seq)
    arrays = {"input:num_tokens": np.array([tokens], np.int32), "input:num_seqs": np.array([seqs], np.int32)}
    arrays |= {"input:positions": positions, "input:query_start": starts, "input:block_table": tables}
    scratch = {name: found.view(np.int32) for name, found in bench.run(kernel, arrays, rows).items()}
    tiles = scratch["scratch:tiles"].reshape(-1, 4)
    expected = kernel.reference(positions, starts, tables, kernel.tile_tokens, len(tiles))
    same = np.array_equal(scratch["scratch:token_seq"][:tokens], expected[0])
    same = same and np.array_equal(scratch["scratch:token_slot"][:tokens], expected[1])
    # the first number of a tile without tokens means nothing
    return exact(same and np.array_equal(tiles[:, 1:], expected[2][:, 1:]) and np.array_equal(tiles[:, 0], expected[2][:, 0]))


def try_sample(kernel: GpuSample, bench: Bench, random: Random) -> float:
    """Greedy rows with log-probabilities; draws are compared with the CPU's elsewhere."""
    rows, vocab = 3, kernel.vocab_size
    logits = random.normal(0, 3, (rows, vocab)).astype(np.float32)
    logits[1, : vocab // 2] = logits[1].max() + 1  # equal ones: the first is taken
    ones, none = np.ones(rows, np.float32), np.zeros(rows, np.float32)
    starts = np.zeros(rows + 1, np.int32)
    arrays: dict[str, NDArray[np.generic]] = {f"input:{name}": none for name in ("temperature", "min_p")}
    arrays |= {f"input:{name}": none for name in ("presence_penalty", "frequency_penalty", "bias_value")}
    arrays |= {f"input:{name}": ones for name in ("top_p", "repetition_penalty")}
    arrays |= {f"input:{name}": np.zeros(rows, np.int32) for name in ("top_k", "use_mask", "penalty_token", "penalty_count")}
    arrays |= {"input:seed": np.zeros(rows, np.uint64), "input:draw": np.zeros(rows, np.uint64), "input:bias_start": starts}
    arrays |= {
        "input:penalty_start": starts,
        "input:bias_token": starts,
        "input:mask": np.zeros((rows, -(-vocab // 32)), np.uint32),
    }
    arrays |= {"input:num_logprobs": np.array([MAX_LOGPROBS, 0, -1], np.int32), "value:0": logits}
    token, top_token = np.full(rows, -1, np.int32), np.full((rows, MAX_LOGPROBS), -1, np.int32)
    logprob, top_logprob = np.zeros(rows, np.float32), np.zeros((rows, MAX_LOGPROBS), np.float32)
    outputs = {"out_token": token, "out_logprob": logprob, "top_token": top_token, "top_logprob": top_logprob}
    bench.run(kernel, arrays | {f"output:{k}": v for k, v in outputs.items()}, counts(rows, samples=rows), "samples")
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    best = np.argsort(-logits[0], kind="stable")[:MAX_LOGPROBS]
    same = np.array_equal(token, logits.argmax(-1)) and np.array_equal(top_token[0, : len(best)], best)
    got = np.concatenate([top_logprob[0, : len(best)], logprob[:2]])
    wanted = np.concatenate([expected[0, best], expected[[0, 1], token[:2]]]).astype(np.float32)
    return error(got, wanted) if same else float("inf")


@dataclass(frozen=True)
class Paged:
    """Sequences in a cache of shuffled blocks: ``(context length, new tokens)`` of each; what was never written is NaN."""

    kernel: GpuAttention
    lengths: tuple[tuple[int, int], ...]

    def make(self, random: Random) -> tuple[dict[str, NDArray[np.generic]], F32, list[tuple[F32, F32]]]:
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
            "kv": cache,
            "input:positions": positions,
            "input:query_start": starts,
            "input:context_len": np.array([length for length, _ in self.lengths], np.int32),
            "input:block_table": tables,
            "input:num_seqs": np.array([len(new)], np.int32),
            "input:num_tokens": np.array([tokens], np.int32),
            "scratch:token_seq": np.repeat(np.arange(len(new)), new).astype(np.int32),
            "result": poison((tokens, row_stride(kernel.out, kernel.num_heads * d)), kernel.out),
        }
        return arrays, meant, pairs

    def expected(self, q: F32, pairs: list[tuple[F32, F32]]) -> F32:
        kernel, out, at = self.kernel, [], 0
        for (_, new), (keys, values) in zip(self.lengths, pairs, strict=True):
            rows = q[at : at + new].reshape(new, kernel.num_heads, kernel.head_dim)
            out.append(kernel.reference(rows, keys, values, kernel.softmax_scale, kernel.window).reshape(new, q.shape[1]))
            at += new
        return np.concatenate(out)


def try_attention(kernel: GpuAttention, bench: Bench, random: Random, lengths: tuple[tuple[int, int], ...] = ()) -> float:
    """Sequences that are not the kernel's (one new token for prefill, several for decode) must be left alone."""
    if not lengths and isinstance(kernel, GpuPrefillAttention):
        lengths = ((130, 70), (9, 1), (40, 40))
    if not lengths:
        lengths = ((300, 1), (1, 1), (45, 30), (17, 1))
    if isinstance(kernel, GpuDecodeAttention) and kernel.max_seqs:
        lengths = lengths[: kernel.max_seqs]
    paged = Paged(kernel, lengths)
    arrays, q, pairs = paged.make(random)
    new = np.array([n for _, n in lengths])
    rows = counts(int(new.sum()) + 3, len(lengths) + 1, blocks_per_seq=arrays["input:block_table"].shape[1])
    own = np.ones(len(new), bool)
    if isinstance(kernel, GpuPrefillAttention):
        own = new > 1
        tiles = total(GpuSchedule(kernel.tile_tokens).tiles, rows)
        starts, positions = arrays["input:query_start"], arrays["input:positions"]
        schedule = GpuSchedule.reference(positions, starts, arrays["input:block_table"], kernel.tile_tokens, tiles)  # type: ignore[arg-type]
        arrays["scratch:tiles"] = schedule[2]
    elif isinstance(kernel, GpuDecodeAttention):
        own = new == 1
        if kernel.max_seqs:
            rows = replace_seqs(rows, min(rows.seqs, kernel.max_seqs))
    else:
        arrays["count"] = arrays["input:num_tokens"]
    bench.run(kernel, arrays, rows)
    mask = np.repeat(own, new)
    result, expected = arrays["result"], paged.expected(q, pairs)
    if (np.ascontiguousarray(result[~mask]).view(np.uint8) != 0xFF).any():
        return float("inf")
    return error(values_of(np.ascontiguousarray(result[mask]), expected.shape[1]), expected[mask])


def replace_seqs(rows: RowCounts, seqs: int) -> RowCounts:
    return counts(rows.tokens, seqs, rows.samples, rows.blocks_per_seq)


Trial = Callable[[Any, Bench, Random], float]
TRIALS: dict[type, Trial] = {
    GpuEmbedding: try_embedding,
    GpuRmsNorm: try_rms_norm,
    GpuLayerNorm: try_layer_norm,
    GpuConvert: try_convert,
    GpuGatherRows: try_gather_rows,
    GpuRopeTable: try_rope_table,
    GpuRopeKv: try_rope_kv,
    GpuSchedule: try_schedule,
    GpuSample: try_sample,
    GpuAttention: try_attention,
    GpuMatrix: try_linear,
}


def trial_of(kernel: GpuKernel) -> Callable[[Any, Bench, Random], float]:
    """The trial of a kernel's spec or of what it is derived from."""
    return next(TRIALS[base] for base in type(kernel).__mro__ if base in TRIALS)


def tolerance(kernel: GpuKernel) -> float:
    """Rounding to bfloat16 somewhere between input and result, or float32 throughout."""
    kinds = {str(kernel.params.get(name, "")) for name in ("act", "out", "kv_dtype")}
    return 1e-2 if "bf16" in kinds or isinstance(kernel, GpuLargeLinear) else 1e-3


def reduced(kernel: GpuKernel) -> GpuKernel:
    """A kernel of the same code for smaller numbers, where the shape allows: what emulation has time for."""
    if isinstance(kernel, (GpuMatrix, GpuEmbedding)):
        layout = kernel.weight
        n = min(layout.n, 16 * layout.halves * 3 + 5 * layout.halves)
        k = layout.k if layout.k <= 512 else 512 if layout.k % 512 == 0 else 512 - 8
        group = layout.format.group
        k = -(-k // group) * group if group and layout.k % group == 0 else k
        return replace(kernel, n=n, k=k, weight=replace(layout, n=n, k=k))
    if isinstance(kernel, (GpuRmsNorm, GpuLayerNorm, GpuConvert, GpuGatherRows)):
        return replace(kernel, k=min(kernel.k, 1024))
    if isinstance(kernel, (GpuAttention, GpuRopeKv)):
        heads = max(1, kernel.num_heads // kernel.num_kv_heads)
        kv = min(kernel.num_kv_heads, 2)
        size = 2 * BLOCK_SIZE * kernel.head_dim * (2 if kernel.kv_dtype == "bf16" else 4) * kv
        return replace(kernel, num_heads=heads * kv, num_kv_heads=kv, block_bytes=2 * size)
    if isinstance(kernel, GpuSample):
        return replace(kernel, vocab_size=min(kernel.vocab_size, 5000))
    return kernel
