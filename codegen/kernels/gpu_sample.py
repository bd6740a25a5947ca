"""Sampling on GPUs: penalties, bias, mask, top-k, top-p, min-p, temperature, seed, log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ferrum.codegen.kernels.base import Cost
from ferrum.codegen.kernels.gpu_base import Geometry, GpuKernel, Scratch, per_row
from ferrum.pack.launches import Rows, Term
from ferrum.pack.step import MAX_LOGPROBS


@dataclass(frozen=True)
class GpuSample(GpuKernel):
    """``logits [samples, vocab_size] float32 ->`` the step's outputs; one block a row.

    Ranks and shares of probability are found without a sort: the logits' bits, 8 at a time, are counted and weighed, which
    leads to the very logit. Weights are whole numbers (2^40 is the largest logit's), so sums do not depend on their order.
    """

    stem: ClassVar[str] = "gpu_sample"
    vocab_size: int
    threads: int

    @property
    def args(self) -> tuple[str, ...]:
        names = (
            "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
            "draw", "num_logprobs", "penalty_start", "penalty_token", "penalty_count", "bias_start", "bias_token",
            "bias_value", "use_mask", "mask",
        )  # fmt: skip
        outputs = ("out_token", "out_logprob", "top_token", "top_logprob")
        inputs = (f"input:{name}" for name in names)
        return ("count", "value:0", "scratch:adjusted_logits", *inputs, *(f"output:{name}" for name in outputs))

    def geometry(self, rows: Rows) -> Geometry:
        return per_row(rows, self.threads)

    def scratch(self) -> dict[str, Scratch]:
        return {"adjusted_logits": Scratch((Term("samples", 4 * self.vocab_size),))}

    def cost(self) -> Cost:
        return Cost(0, 4 * self.vocab_size, 2 * self.vocab_size)

    def why(self) -> str:
        return "sampled where the logits are, so that only token ids leave the device; a draw depends on seed and count alone"

    def context(self) -> dict[str, object]:
        return {"max_logprobs": MAX_LOGPROBS, "mask_words": -(-self.vocab_size // 32)}
