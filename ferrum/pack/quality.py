"""How far a pack with quantized numbers is from its model: member ``step/quality.json``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ferrum.pack.check import damaged
from ferrum.pack.reader import Pack
from ferrum.pack.schema import Manifest

QUALITY_NAME = "step/quality.json"

# What a pack may lose before it is called bad. On average over text, the cross entropy grows by about the divergence, and a
# model of half as many parameters loses about 0.05 of its own, 0.1 to 0.15 nats of two to three: beyond that, the smaller
# model unquantized would be the better choice (docs/quantization-formats.md has the numbers).
BAD_KL = 0.15  # nats for each token, mean
# Beyond this every seventh answer goes another way at each token: sums and facts change.
BAD_TOP1 = 0.85

Nats = Annotated[float, Meta(ge=0, le=1e6)]
Perplexity = Annotated[float, Meta(ge=1, le=1e300)]


class QualityCard(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The pack beside the numbers of its checkpoint in float32, both after every token of the texts that ferrum ships.

    ``measured``: by the pack's own ``code``, with all that rounds; or by the interpreter from its stored ``weights``, where the
    code could not run when it was made: then nothing that rounds activations or the cache is in it.
    ``kl``: divergence KL(model || pack) for each token in nats. ``top1``: share of positions whose likeliest token is the same.
    """

    measured: Literal["code", "weights"]
    positions: Annotated[int, Meta(ge=1, le=1 << 20)]
    kl_mean: Nats
    kl_p99: Nats
    top1: Annotated[float, Meta(ge=0, le=1)]
    perplexity: Perplexity
    perplexity_unquantized: Perplexity

    @property
    def bad(self) -> bool:
        return self.kl_mean > BAD_KL or self.top1 < BAD_TOP1

    def __str__(self) -> str:
        return f"KL {self.kl_mean:.2g} nats a token, top-1 {100 * self.top1:.1f} %"


def are_quantized(formats: Iterable[str]) -> bool:
    """Whether one of the formats, of weights or of a cache, is no plain floating-point number."""
    return not {"f32", "bf16", "f16"}.issuperset(formats)


def is_quantized(manifest: Manifest) -> bool:
    return are_quantized([*(t.format for t in manifest.tensors), *(a.dtype for s in manifest.states for a in s.arrays)])


def encode_quality(card: QualityCard) -> bytes:
    return msgspec.json.encode(card, order="sorted")


def read_quality(pack: Pack) -> QualityCard | None:
    """The card of a pack, every number checked; None for a pack without one. Raises FerrumError."""
    if QUALITY_NAME not in pack:
        return None
    try:
        return msgspec.json.decode(pack.member(QUALITY_NAME), type=QualityCard)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise damaged(f"not a quality card: {error}", f"{pack.path}: {QUALITY_NAME}") from None
