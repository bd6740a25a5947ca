"""Sampling: penalties, bias, mask, top-k, top-p, min-p, temperature, seed, log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ferrum.codegen.kernels.base import Cost, Kernel
from ferrum.codegen.kernels.cases import Case, Written, counts, exact
from ferrum.codegen.kernels.cpu import CpuKernel
from ferrum.codegen.kernels.gpu import ONE, Geometry, GpuKernel, Scratch
from ferrum.codegen.kernels.sample_case import PEAK, SampleCase, peaks_of
from ferrum.codegen.target import GpuTarget
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node
from ferrum.pack.launches import Rows, Term
from ferrum.pack.sampling import adjust_row
from ferrum.pack.step import MAX_LOGPROBS

# Of GPUs: threads of a block and the logits that it takes.
_THREADS = 512
_CHUNK = 4096
# Counters of a chunk: masses by their distance from the largest logit; and how many logits of one of them are listed.
BINS = 512
LISTED = 8192
_PART_WORDS = 4 + 3 * BINS

_ADJUST = ("repetition_penalty", "presence_penalty", "frequency_penalty", "penalty_start", "penalty_token", "penalty_count",
           "bias_start", "bias_token", "bias_value", "use_mask", "mask")  # fmt: skip
_DRAW = ("temperature", "top_k", "top_p", "min_p", "seed", "draw", "num_logprobs")
_OUTPUTS = ("output:out_token", "output:out_logprob", "output:top_token", "output:top_logprob")


def _inputs(*names: str) -> tuple[str, ...]:
    return tuple(f"input:{name}" for name in names)


@dataclass(frozen=True)
class Sample(Kernel):
    """``logits [samples, vocab_size] float32 ->`` the step's outputs."""

    stem: ClassVar[str] = "sample"
    vocab_size: int

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", "value:0", *_inputs(*_ADJUST, *_DRAW), *_OUTPUTS)

    def cost(self) -> Cost:
        return Cost(0, 4 * self.vocab_size, 2 * self.vocab_size)

    def why(self) -> str:
        return "sampled where the logits are, so that only token ids leave the device; a draw depends on seed and count alone"

    def context(self) -> dict[str, object]:
        return {"max_logprobs": MAX_LOGPROBS, "mask_words": -(-self.vocab_size // 32)}


@dataclass(frozen=True)
class CpuSample(Sample, CpuKernel):
    """A thread takes a row."""

    @property
    def thread_bytes(self) -> int:
        """Adjusted logits, then what is sorted."""
        return 4 * (-(-self.vocab_size // 64) * 64) + 8 * self.vocab_size


class GpuSampling(GpuKernel):
    """Kernels that share a row's chunks: blocks of ``threads`` (at least two warps), ``chunk`` logits each, whole warps."""

    vocab_size: int
    threads: int
    chunk: int

    @property
    def chunks(self) -> int:
        return -(-self.vocab_size // self.chunk)

    def geometry(self, rows: Rows) -> Geometry:
        return Geometry(((Term("one", self.chunks),), (Term(rows, 1),), ONE), (self.threads, 1, 1))


@dataclass(frozen=True)
class SamplePeaks(GpuSampling):
    """``logits [samples, vocab_size] float32 ->`` the same after mask, bias and penalties, for rows that have any, and of each
    chunk the largest adjusted and the largest raw logit.
    """

    stem: ClassVar[str] = "sample_peaks"
    vocab_size: int
    threads: int
    chunk: int

    @property
    def args(self) -> tuple[str, ...]:
        return ("count", "value:0", "scratch:adjusted_logits", "scratch:sample_peaks", *_inputs(*_ADJUST))

    def cost(self) -> Cost:
        return Cost(0, 4 * self.vocab_size, self.vocab_size)

    def why(self) -> str:
        return f"a row's {self.vocab_size} logits are adjusted and compared by {self.chunks} blocks"

    def context(self) -> dict[str, object]:
        return {"mask_words": -(-self.vocab_size // 32), "chunks": self.chunks}

    def scratch(self) -> dict[str, Scratch]:
        return {
            "adjusted_logits": Scratch((Term("samples", 4 * self.vocab_size),)),
            "sample_peaks": Scratch((Term("samples", 2 * 8 * self.chunks),)),
        }

    def reduced(self) -> SamplePeaks:
        return replace(self, vocab_size=min(self.vocab_size, 5000))

    def case(self, random: np.random.Generator, rows: int = 3, **_: Any) -> Case:
        """The first row as it is, the others with a mask, biases and penalties."""
        row = SampleCase(random, self.vocab_size, rows)
        row.adjust(range(1, rows))

        def judge(scratch: Written) -> float:
            found = scratch["scratch:sample_peaks"][: 16 * rows * self.chunks].view(PEAK).reshape(rows, 2, self.chunks)
            adjusted = scratch["scratch:adjusted_logits"].view(np.float32).reshape(-1, self.vocab_size)
            same = all(np.array_equal(found[r, 1], peaks_of(row.logits[r], self.chunk)) for r in range(rows))
            for r in range(rows):
                expected = adjust_row(row.logits[r], row.step, r)
                same = same and np.array_equal(found[r, 0], peaks_of(adjusted[r] if r else expected, self.chunk))
                # a bias may cancel most of a logit, of whose last digit more is left then
                same = same and bool(not r or np.allclose(adjusted[r], expected, rtol=1e-6, atol=2e-6))
            return exact(same)

        return Case({"value:0": row.logits} | row.inputs(_ADJUST), counts(rows, samples=rows), judge, "samples")


@dataclass(frozen=True)
class GpuSample(Sample, GpuSampling):
    """Blocks weigh a row's chunks and the last one to arrive draws. Ranks and shares of probability are found without a sort:
    masses, whole numbers (2^40 is the largest logit's) so that sums do not depend on their order, are counted by their distance
    from the largest logit, and in one such bin pivots, one a warp, lead to the very logit.
    """

    stem: ClassVar[str] = "sample"
    threads: int
    chunk: int

    @property
    def args(self) -> tuple[str, ...]:
        scratch = ("adjusted_logits", "sample_peaks", "sample_parts", "sample_list", "sample_arrivals")
        inputs = _inputs(*_DRAW, "penalty_start", "bias_start", "use_mask")
        return ("count", "value:0", *(f"scratch:{name}" for name in scratch), *inputs, *_OUTPUTS)

    def scratch(self) -> dict[str, Scratch]:
        return SamplePeaks(self.vocab_size, self.threads, self.chunk).scratch() | {
            "sample_parts": Scratch((Term("samples", 2 * 4 * self.chunks * _PART_WORDS),)),
            "sample_list": Scratch((Term("samples", 8 * min(self.vocab_size, LISTED)),)),
            "sample_arrivals": Scratch((Term("samples", 4),), zero=True),
        }

    def context(self) -> dict[str, object]:
        return super().context() | {"chunks": self.chunks}

    def reduced(self) -> GpuSample:
        return replace(self, vocab_size=min(self.vocab_size, 5000))

    def case(self, random: np.random.Generator, rows: int = 8, **_: Any) -> Case:
        """Greedy rows and rows of every limit, some masked, each with another number of log-probabilities."""
        row = SampleCase(random, self.vocab_size, rows)
        row.adjust(range(4, rows))
        row.limit()
        adjusted = np.stack([adjust_row(row.logits[r], row.step, r) for r in range(rows)])
        peaks = [[peaks_of(adjusted[r], self.chunk), peaks_of(row.logits[r], self.chunk)] for r in range(rows)]
        given = {"value:0": row.logits, "scratch:adjusted_logits": adjusted, "scratch:sample_peaks": np.array(peaks)}
        arrays = given | row.inputs((*_ADJUST, *_DRAW)) | row.outputs
        return Case(arrays, counts(rows, samples=rows), lambda _: row.judge(adjusted), "samples")


def on_cpu(walk: Walk, node: Node) -> None:
    walk.add(node, CpuSample(walk.width(node.inputs[0])), node.inputs[:1], (), 0, "")


def on_gpu(walk: Walk, node: Node) -> None:
    assert isinstance(walk.target, GpuTarget)
    shape = walk.width(node.inputs[0]), min(_THREADS, walk.target.max_threads), _CHUNK
    for kernel in (SamplePeaks(*shape), GpuSample(*shape)):
        walk.add(node, kernel, node.inputs[:1], (), 0, "")
