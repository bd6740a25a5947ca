"""The quality card of a pack: what the unquantized model makes of the texts that ferrum ships, and what the pack makes of them.

The model's side is one pass of the interpreter over the checkpoint, weight by weight, for all positions at once; so its cost
grows with the model as those of packing and of the proof do, and its memory does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ferrum.devices.cpu import CpuDevice
from ferrum.graphs.interpret import Array, Rows, SourceWeights, Weights, interpret
from ferrum.graphs.ir import Graph, Param
from ferrum.graphs.weights.checkpoint import Checkpoint
from ferrum.pack.pages import WINDOW, GivingBack
from ferrum.pack.quality import QualityCard
from ferrum.pack.reader import open_pack
from ferrum.proof.quality import Texts, compare, room_for, text_logits
from ferrum.text.sample_text import sample_tokens
from ferrum.text.tokenizer import Tokenizer

_TOKENS = 32  # of each text, so that the products of 128 rows take less than reading the weights does


class CheckpointWeights(SourceWeights):
    """Parameters as the checkpoint has them, in float32; pages that were read are given back."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self._checkpoint, self._read = checkpoint, 0

    def get(self, param: Param) -> Array:
        return self._seen(super().get(param))

    def rows(self, param: Param, ids: Rows) -> Array:
        return self._seen(super().rows(param, ids))

    def _seen(self, values: Array) -> Array:
        self._read += values.nbytes
        if self._read >= WINDOW:
            self._checkpoint.give_back()
            self._read = 0
        return values


@dataclass(frozen=True)
class Sample:
    """The texts, and the unquantized model's logits ``[positions, vocab]``."""

    texts: Texts
    logits: Array

    def beside_weights(self, graph: Graph, weights: Weights) -> QualityCard:
        """For a pack that cannot run here: only what its weights have lost."""
        return compare(self.logits, _logits(graph, self.texts, weights), self.texts, "weights")

    def beside_code(self, path: Path, variant: str = "") -> QualityCard:
        """For a pack of this CPU, by a variant of its code. ``path``: the finished file, even if hidden. Raises FerrumError."""
        with open_pack(path, trust=True) as pack, GivingBack(pack.address("weights"), pack.weights.nbytes):
            executor = CpuDevice().load(pack, replace(room_for(pack.manifest, self.texts), variant=variant))
            try:
                return compare(self.logits, text_logits(executor, self.texts), self.texts)
            finally:
                executor.close()


def read_sample(graph: Graph, checkpoint: Checkpoint, tokenizer: bytes, vocab_size: int, longest: int) -> Sample | None:
    """None for a model whose vocabulary has none of the texts' words, or that has no tokenizer."""
    ids = sample_tokens(Tokenizer(tokenizer), vocab_size, min(_TOKENS, longest)) if tokenizer else []
    if not ids:
        return None
    texts = Texts(ids)
    return Sample(texts, _logits(graph, texts, CheckpointWeights(checkpoint)))


def _logits(graph: Graph, texts: Texts, weights: Weights) -> Array:
    starts = texts.starts
    inputs = {
        "tokens": np.concatenate(texts.read).astype(np.int32),
        "positions": np.concatenate([np.arange(len(ids)) for ids in texts.read]).astype(np.int32),
        "sample_rows": np.arange(starts[-1], dtype=np.int32),
    }
    name = graph.outputs[0]
    return interpret(graph, inputs, weights, query_start=starts, wanted=(name,))[name]
