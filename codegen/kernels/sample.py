"""Sampling: penalties, bias, mask, top-k, top-p, min-p, temperature, seed, log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.base import Cost, Kernel
from ferrum.codegen.kernels.cases import Case, Written, counts, error, normal
from ferrum.codegen.kernels.cpu import CpuKernel
from ferrum.codegen.kernels.gpu import Geometry, GpuKernel, Scratch, per_row
from ferrum.codegen.target import GpuTarget
from ferrum.codegen.walk import Walk
from ferrum.graphs.ir import Node
from ferrum.pack.launches import Rows, Term
from ferrum.pack.step import MAX_LOGPROBS

_THREADS = 1024


@dataclass(frozen=True)
class Sample(Kernel):
    """``logits [samples, vocab_size] float32 ->`` the step's outputs."""

    stem: ClassVar[str] = "sample"
    vocab_size: int

    @property
    def args(self) -> tuple[str, ...]:
        names = (
            "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
            "draw", "num_logprobs", "penalty_start", "penalty_token", "penalty_count", "bias_start", "bias_token",
            "bias_value", "use_mask", "mask",
        )  # fmt: skip
        outputs = ("out_token", "out_logprob", "top_token", "top_logprob")
        inputs = (f"input:{name}" for name in names)
        return ("count", "value:0", *inputs, *(f"output:{name}" for name in outputs))

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


@dataclass(frozen=True)
class GpuSample(Sample, GpuKernel):
    """One block a row. Ranks and shares of probability are found without a sort: the logits' bits, 8 at a time, are counted and
    weighed, which leads to the very logit. Weights are whole numbers (2^40 is the largest logit's), so sums do not depend on
    their order.
    """

    threads: int

    @property
    def args(self) -> tuple[str, ...]:
        count, logits, *others = super().args
        return (count, logits, "scratch:adjusted_logits", *others)

    def geometry(self, rows: Rows) -> Geometry:
        return per_row(rows, self.threads)

    def scratch(self) -> dict[str, Scratch]:
        return {"adjusted_logits": Scratch((Term("samples", 4 * self.vocab_size),))}

    def reduced(self) -> GpuSample:
        return replace(self, vocab_size=min(self.vocab_size, 5000))

    def case(self, random: np.random.Generator, rows: int = 3, **_: Any) -> Case:
        """Greedy rows with log-probabilities; draws are compared with the CPU's elsewhere."""
        vocab = self.vocab_size
        logits = 3 * normal(random, rows, vocab)
        logits[1, : vocab // 2] = logits[1].max() + 1  # equal ones: the first is taken
        ones, zeros, none = np.ones(rows, np.float32), np.zeros(rows, np.float32), np.zeros(rows + 1, np.int32)
        inputs: dict[str, NDArray[np.generic]] = dict.fromkeys(("temperature", "min_p"), zeros)
        inputs |= dict.fromkeys(("presence_penalty", "frequency_penalty", "bias_value"), zeros)
        inputs |= dict.fromkeys(("top_p", "repetition_penalty"), ones)
        inputs |= dict.fromkeys(("top_k", "use_mask", "penalty_token", "penalty_count"), np.zeros(rows, np.int32))
        inputs |= dict.fromkeys(("seed", "draw"), np.zeros(rows, np.uint64))
        inputs |= dict.fromkeys(("bias_start", "penalty_start", "bias_token"), none)
        inputs["mask"] = np.zeros((rows, -(-vocab // 32)), np.uint32)
        inputs["num_logprobs"] = np.array([MAX_LOGPROBS, 0, -1], np.int32)
        token, top_token = np.full(rows, -1, np.int32), np.full((rows, MAX_LOGPROBS), -1, np.int32)
        logprob, top_logprob = np.zeros(rows, np.float32), np.zeros((rows, MAX_LOGPROBS), np.float32)
        outputs = {"out_token": token, "out_logprob": logprob, "top_token": top_token, "top_logprob": top_logprob}

        def judge(scratch: Written) -> float:
            expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
            best = np.argsort(-logits[0], kind="stable")[:MAX_LOGPROBS]
            same = np.array_equal(token, logits.argmax(-1)) and np.array_equal(top_token[0, : len(best)], best)
            got = np.concatenate([top_logprob[0, : len(best)], logprob[:2]])
            wanted = np.concatenate([expected[0, best], expected[[0, 1], token[:2]]]).astype(np.float32)
            return error(got, wanted) if same else float("inf")

        named = {f"input:{k}": v for k, v in inputs.items()} | {f"output:{k}": v for k, v in outputs.items()}
        return Case({"value:0": logits} | named, counts(rows, samples=rows), judge, "samples")


def on_cpu(walk: Walk, node: Node) -> None:
    walk.add(node, CpuSample(walk.width(node.inputs[0])), node.inputs[:1], (), 0, "")


def on_gpu(walk: Walk, node: Node) -> None:
    assert isinstance(walk.target, GpuTarget)
    kernel = GpuSample(walk.width(node.inputs[0]), min(_THREADS, walk.target.max_threads))
    walk.add(node, kernel, node.inputs[:1], (), 0, "")
