"""What an engine says: sampled tokens, its gauges, what was loaded, and that its queue is full."""

from __future__ import annotations

import msgspec

from ferrum.errors import FerrumError


class TokenEvent(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One sampled token of choice ``index`` of a request.

    ``finish_reason``: "" while it goes on, "stop" when ``token`` is an end or stop token (it belongs to the token ids and
    the usage, not to the text), "length". ``logprob`` and ``top`` ((token, logprob), descending) as far as asked for.
    ``cached_tokens``: prompt tokens that were not computed because the prefix cache had them. ``queue_us``: with a choice's first
    token, the microseconds that it waited for a place.
    """

    request_id: str
    index: int
    token: int
    finish_reason: str = ""
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    cached_tokens: int = 0
    queue_us: int = 0


class PoolStats(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Places of one group of states. ``kind``: as in ``StateGroup``; ``cached``: of which the content is known."""

    kind: str
    total: int
    used: int
    cached: int = 0


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Gauges of now, and counters (``num_*``, ``prefix_cache_*``) since the start."""

    queue_depth: int
    active_prefill: int
    active_decode: int
    current_batch_size: int  # sequences in the last step
    blocks_total: int
    blocks_used: int
    prefix_cache_entries: int
    num_requests: int
    num_rejected: int
    num_tokens_generated: int
    num_preemptions: int
    num_iterations: int
    num_prefill_tokens: int
    num_decode_tokens: int
    prefix_cache_hits: int
    prefix_cache_misses: int
    prefix_cache_evictions: int
    prefix_cache_saved_tokens: int
    pools: tuple[PoolStats, ...] = ()  # of models that keep more than blocks


class WindowInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The blocks of the layers that see ``window`` tokens."""

    window: int
    num_blocks: int
    bytes_per_block: int


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was loaded. ``max_model_len``: most tokens (prompt and output) of one sequence, also bounded by the KV memory.

    ``num_blocks`` and ``bytes_per_block`` are those of the layers without a window; ``kv_bytes`` counts all blocks.
    ``embedding_width``: numbers of an embedding, of a pack that makes these and nothing else; 0 of one that generates.
    """

    model: str
    device: str
    vocab_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_queue: int
    num_blocks: int
    block_size: int
    bytes_per_block: int
    weight_bytes: int
    kv_bytes: int
    prefix_cache: bool
    windows: list[WindowInfo] = []
    embedding_width: int = 0


def queue_full(unfinished: int) -> FerrumError:
    """Said by the client, which counts too, or by the engine."""
    return FerrumError("queue-full", f"the queue is full: {unfinished} sequences run or wait", "", "try again later")
