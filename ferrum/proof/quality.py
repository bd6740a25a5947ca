"""How far one model's answers are from another's: logits after every token of some texts, and what their difference is called."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ferrum.devices.base import Executor
from ferrum.devices.options import DeviceOptions
from ferrum.errors import FerrumError
from ferrum.pack.programs import kv_groups
from ferrum.pack.quality import QualityCard
from ferrum.pack.schema import Manifest

_LARGEST = 600.0  # nats: of a perplexity that a double holds


@dataclass(frozen=True)
class Texts:
    """Token ids of some texts; all but each one's last are read, and each of those predicts the one behind it."""

    ids: list[list[int]]

    @property
    def read(self) -> list[list[int]]:
        return [ids[:-1] for ids in self.ids]

    @property
    def next(self) -> NDArray[np.int64]:
        """What each position should predict, one text after the other."""
        return np.concatenate([ids[1:] for ids in self.ids]).astype(np.int64)

    @property
    def starts(self) -> list[int]:
        """Where each text's positions begin, and where the last ones end."""
        return [0, *np.cumsum([len(ids) - 1 for ids in self.ids]).tolist()]


def room_for(manifest: Manifest, texts: Texts, threads: int = 0) -> DeviceOptions:
    """How a pack is loaded that reads all texts in one step and nothing else."""
    groups, count, longest = kv_groups(manifest), len(texts.ids), max(map(len, texts.read))
    blocks = max(2, -(-longest // groups[0].unit))  # of a slot each sequence has two
    return DeviceOptions(
        max_seqs=count,
        max_tokens=texts.starts[-1],
        max_samples=texts.starts[-1],
        max_model_len=longest,
        kv_cache_bytes=count * blocks * sum(group.unit_bytes for group in groups),
        num_threads=threads,
        prefault=False,
    )


def text_logits(executor: Executor, texts: Texts) -> NDArray[np.float32]:
    """Logits ``[positions, vocab]`` of a pack that was loaded with ``room_for``, in one step; a view, until the next one."""
    b, starts = executor.buffers, texts.starts
    blocks = -(-max(map(len, texts.read)) // executor.limits.block_size)
    b.num_tokens, b.num_seqs = starts[-1], len(texts.ids)
    b.query_start[: len(starts)] = starts
    for s, tokens in enumerate(texts.read):
        at = slice(starts[s], starts[s + 1])
        b.tokens[at] = tokens
        b.positions[at] = np.arange(len(tokens))
        b.context_len[s] = len(tokens)
        for group, places in enumerate(_places(executor, s, blocks)):
            b.block_table[s, group, : len(places)] = places
    b.sample(range(starts[-1]))
    executor.step()
    return executor.logits()


def _places(executor: Executor, s: int, blocks: int) -> Iterable[NDArray[np.int32]]:
    """What sequence ``s`` has of each group: as many ``blocks`` as any other, or one slot."""
    limits = executor.limits
    own = np.arange(s * blocks, (s + 1) * blocks, dtype=np.int32)
    for kind, count in (("paged", limits.num_blocks), *((group.kind, group.count) for group in limits.groups)):
        places = np.array([s], np.int32) if kind == "slot" else own
        if places[-1] >= count:
            what = f"{count} places for {blocks} blocks of each of the texts"
            raise FerrumError("memory-too-small", what, "quality", "give the device more memory")
        yield places


@dataclass
class Distance:
    """How far logits are from a reference's, position by position, over any number of texts."""

    divergence: list[float] = field(default_factory=list)  # KL(reference || found), nats
    losses: list[tuple[float, float]] = field(default_factory=list)  # nats of the next token: the reference's, the other's
    agree: int = 0  # positions whose likeliest token is the same

    def add(self, reference: NDArray[np.float32], found: NDArray[np.float32], texts: Texts) -> None:
        """One step's logits ``[positions, vocab]`` of both. Raises FerrumError where one is not finite."""
        for right, other, token in zip(reference, found, texts.next, strict=True):
            p, q = right - right.max(), other - other.max()
            weights = np.exp(p)
            sums = [float(e.sum(dtype=np.float64)) for e in (weights, np.exp(q))]
            self.divergence.append(float((weights * (p - q)).sum(dtype=np.float64)) / sums[0] + math.log(sums[1] / sums[0]))
            self.losses.append((math.log(sums[0]) - float(p[token]), math.log(sums[1]) - float(q[token])))
            self.agree += int(right.argmax() == other.argmax())
        if not (np.isfinite(self.divergence).all() and np.isfinite(self.losses).all()):
            what = "a logit of the texts is not a finite number"
            step = "this is a fault of ferrum: report it with the model's config.json"
            raise FerrumError("proof-failed", what, "quality", step)


def compare(
    reference: NDArray[np.float32], found: NDArray[np.float32], texts: Texts, measured: Literal["code", "weights"] = "code"
) -> QualityCard:
    """``found`` beside ``reference``, both logits ``[positions, vocab]``. Raises FerrumError where one is not finite."""
    distance = Distance()
    distance.add(reference, found, texts)
    return card_of(distance, measured)


def card_of(distance: Distance, measured: Literal["code", "weights"] = "code") -> QualityCard:
    """What is said of at least one position."""
    losses = np.asarray(distance.losses)
    unquantized, perplexity = (math.exp(min(float(loss), _LARGEST)) for loss in losses.mean(0))
    return QualityCard(
        measured=measured,
        positions=len(losses),
        kl_mean=_short(max(0.0, float(np.mean(distance.divergence)))),
        kl_p99=_short(max(0.0, float(np.quantile(distance.divergence, 0.99)))),
        top1=_short(distance.agree / len(losses)),
        perplexity=max(1.0, _short(perplexity)),
        perplexity_unquantized=max(1.0, _short(unquantized)),
    )


def _short(value: float) -> float:
    """Four digits, so that the last bits of sums do not show."""
    return float(f"{value:.4g}")
