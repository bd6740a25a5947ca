"""The toy models of tests/graphs behind an engine, on the interpreter, and what each request gives alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np

from ferrum.codegen.interpreter import InterpreterExecutor, Programs
from ferrum.devices.base import Limits, StepBuffers
from ferrum.engine.engine import Engine
from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.engine.reports import TokenEvent
from ferrum.graphs.interpret import Array, ArrayWeights, interpret
from ferrum.graphs.passes import page_attention, tail
from tests.engine.listener import LISTENER, MIXED, WINDOW, plain_listener
from tests.engine.oracle import drain
from tests.graphs import toys

LISTENERS = {"cross": LISTENER, "mixed": MIXED}
MODELS = ("decoder", "window", "convolution", *LISTENERS)


@cache
def programs(model: str) -> Programs:
    if model in LISTENERS:
        graph = LISTENERS[model]
        return Programs(tail.run(graph), ArrayWeights(toys.arrays_of(toys.ENCODE, graph)), toys.ENCODE)
    if model == "convolution":
        return Programs(tail.run(toys.CONVOLUTION), ArrayWeights(toys.arrays_of(toys.CONVOLUTION)))
    stateless = _decoder(model)
    return Programs(tail.run(page_attention.run(stateless)), ArrayWeights(toys.arrays_of(stateless)))


@cache
def _decoder(model: str) -> toys.Graph:
    return toys.decoder((0, 0) if model == "decoder" else (WINDOW, 0, WINDOW))


def frames(seed: int) -> Array:
    rows = np.random.default_rng(seed).standard_normal((1 + seed % toys.FRAMES, toys.HIDDEN))
    return rows.astype(np.float32)


def plain_logits(model: str, tokens: list[int], heard: int) -> Array:
    """Logits of every token, without states."""
    if model in LISTENERS:
        arrays = toys.arrays_of(toys.ENCODE, LISTENERS[model])
        return plain_listener(arrays, tokens, frames(heard).astype(np.float64), model == "mixed")
    if model == "convolution":
        return toys.plain_convolution(toys.arrays_of(toys.CONVOLUTION), tokens)
    graph = _decoder(model)
    weights = ArrayWeights(toys.arrays_of(graph))
    return np.asarray(interpret(graph, {"tokens": np.array([tokens])}, weights, np.float64)["logits"][0])


class OverlappingInterpreter(InterpreterExecutor):
    """Steps that are started ahead. Each runs when it is started: an order that every device keeps."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.other = StepBuffers(self.limits)
        self.under_way: list[StepBuffers] = []
        self.num_ahead = 0

    def begin(self, ahead: bool = False) -> None:
        if ahead:
            self.num_ahead += 1
            self.buffers.tokens[: self.buffers.num_tokens] = self.under_way[-1].out_token[: self.buffers.num_tokens]
        assert len(self.under_way) == ahead, "two steps under way"
        self.step()
        self.under_way.append(self.buffers)
        self.buffers, self.other = self.other, self.buffers

    def finish(self) -> StepBuffers:
        return self.under_way.pop(0)


@dataclass(frozen=True)
class Setup:
    """How an engine is made; ``checkpoints``: places for copies of slots beside those of ``max_seqs`` sequences."""

    model: str
    options: EngineOptions = field(default_factory=EngineOptions)
    checkpoint: int = 8
    checkpoints: int = 16
    window_blocks: int = 0  # of each window; 0: as many as blocks
    overlapping: bool = False
    block_size: int = 4
    num_blocks: int = 128
    max_seqs: int = 8
    max_tokens: int = 64
    max_samples: int = 8

    def engine(self) -> Engine:
        limits = Limits(
            max_tokens=self.max_tokens,
            max_seqs=self.max_seqs,
            max_samples=self.max_samples,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            max_blocks_per_seq=self.num_blocks,
            vocab_size=toys.VOCAB,
            max_adjust=1024,
        )
        slot_bytes = sum(4 * int(np.prod(s.shape)) for s in programs(self.model).step.states if s.kind == "slot")
        kind = OverlappingInterpreter if self.overlapping else InterpreterExecutor
        executor = kind(
            programs(self.model),
            limits,
            checkpoint=self.checkpoint,
            checkpoint_bytes=self.checkpoints * slot_bytes,
            window_blocks=self.window_blocks,
        )
        return Engine(executor, self.options)


Said = tuple[int, float | None, tuple[tuple[int, float], ...]]


def said(events: list[TokenEvent]) -> list[Said]:
    """Tokens and the logprobs of nearly all tokens, whose bits are compared."""
    return [(e.token, e.logprob, e.top) for e in events]


def greedy(max_tokens: int = 8, **changes: object) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, logprobs=20, **changes)  # type: ignore[arg-type]


def add(engine: Engine, model: str, name: str, prompt: list[int], heard: int, params: SamplingParams, **more: object) -> None:
    inputs = {"frames": frames(heard)} if model in LISTENERS else {}
    engine.add(name, prompt, params, inputs=inputs, **more)  # type: ignore[arg-type]


def alone(model: str, prompt: list[int], heard: int, params: SamplingParams, index: int = 0) -> list[Said]:
    """What choice ``index`` says when nobody else is there and nothing is cached."""
    asked = params.max_tokens or 0, params.temperature, params.seed
    return _alone(model, tuple(prompt), heard if model in LISTENERS else 0, *asked, index)


@cache
def _alone(
    model: str, prompt: tuple[int, ...], heard: int, max_tokens: int, temperature: float, seed: int | None, index: int
) -> list[Said]:
    engine = Setup(model, EngineOptions(prefix_cache=False)).engine()
    params = greedy(max_tokens) if seed is None else sampled(max_tokens, seed, temperature, n=index + 1)
    add(engine, model, "x", list(prompt), heard, params)
    for other in range(index):
        engine.abort("x", other)
    return said(drain(engine)["x", index])


def sampled(max_tokens: int, seed: int, temperature: float = 1.0, n: int = 1) -> SamplingParams:
    return SamplingParams(
        temperature=temperature, seed=seed, max_tokens=max_tokens, ignore_eos=True, logprobs=20, n=n
    )  # fmt: skip


prompt_of = partial(lambda seed, length: np.random.default_rng(seed).integers(0, toys.VOCAB, length).tolist())
