"""Counters and histograms in Prometheus' text format (version 0.0.4), written by hand: it is a few lines."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from ferrum.engine.reports import EngineInfo, EngineStats

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_COUNTS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


HELP = {
    "ferrum_prefix_cache_entries": "Full KV blocks that later prompts may share.",
    "ferrum_prefix_cache_bytes": "Memory of the blocks that later prompts may share.",
    "ferrum_admission_queue_depth": "Sequences that wait for a place.",
    "ferrum_admission_active_prefill": "Sequences whose prompt is being computed.",
    "ferrum_admission_active_decode": "Sequences that generate.",
    "ferrum_admission_current_batch_size": "Sequences in the last step.",
    "ferrum_kv_blocks_used": "KV blocks in use.",
    "ferrum_kv_blocks": "KV blocks that there are.",
    "ferrum_kv_bytes": "Memory of all KV blocks.",
    "ferrum_kv_used_bytes": "Memory of the KV blocks in use.",
    "ferrum_prefix_cache_hits_total": "Prompts of which a part was in the cache.",
    "ferrum_prefix_cache_misses_total": "Prompts of which nothing was in the cache.",
    "ferrum_prefix_cache_evictions_total": "Cached blocks that were given up for others.",
    "ferrum_prefix_cache_saved_prefill_tokens_total": "Prompt tokens that were not computed again.",
    "ferrum_admission_rejected_requests_total": "Requests that were answered 429 or 503.",
    "ferrum_engine_requests_total": "Requests that the engine took.",
    "ferrum_engine_tokens_generated_total": "Tokens that were generated.",
    "ferrum_engine_preemptions_total": "Sequences that gave their blocks back and were computed again.",
    "ferrum_engine_iterations_total": "Forward passes.",
    "ferrum_engine_prefill_tokens_total": "Prompt tokens that were computed.",
    "ferrum_engine_decode_tokens_total": "Tokens that were computed one a step.",
    "ferrum_engine_ttft_seconds": "Time from a request's admission to its first token.",
    "ferrum_engine_tpot_seconds": "Mean time between the tokens of one choice.",
    "ferrum_engine_itl_seconds": "Time between two tokens of one choice.",
    "ferrum_engine_queue_seconds": "Time that a choice waited for a place.",
    "ferrum_engine_request_prompt_tokens": "Tokens of a request's prompts.",
    "ferrum_engine_request_generation_tokens": "Tokens of a request's answer.",
    "ferrum_state_places": "Places of a group of states that a sequence keeps beside KV blocks.",
    "ferrum_state_places_used": "Places of a group of states that sequences have now.",
    "ferrum_engine_request_duration_seconds": "Time from a request's admission to its end.",
}


def describe(name: str, kind: str) -> list[str]:
    return [f"# HELP {name} {HELP[name]}", f"# TYPE {name} {kind}"]


class Histogram:
    """Numbers in buckets; ``bounds`` ascend, and one bucket more takes the rest."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str) -> list[str]:
        lines = describe(name, "histogram")
        running = 0
        for bound, count in zip((*map(_number, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {running}')
        return [*lines, f"{name}_sum {_number(self.total)}", f"{name}_count {running}"]


@dataclass
class Metrics:
    """What the server itself counts; the engine counts the rest. ``rejected``: answers 429 and 503 before the engine."""

    requests: int = 0
    rejected: int = 0
    ttft: Histogram = field(default_factory=lambda: Histogram(_LONG))
    tpot: Histogram = field(default_factory=lambda: Histogram(_SHORT))
    itl: Histogram = field(default_factory=lambda: Histogram(_SHORT))
    request_duration: Histogram = field(default_factory=lambda: Histogram(_LONG))
    queue: Histogram = field(default_factory=lambda: Histogram(_LONG))
    prompt_tokens: Histogram = field(default_factory=lambda: Histogram(_COUNTS))
    generation_tokens: Histogram = field(default_factory=lambda: Histogram(_COUNTS))


def render(metrics: Metrics, stats: EngineStats, info: EngineInfo) -> str:
    """The page. Bytes count whole blocks."""
    windows = list(zip(info.windows, (pool for pool in stats.pools if pool.kind == "window"), strict=True))
    used = info.bytes_per_block * stats.blocks_used + sum(w.bytes_per_block * pool.used for w, pool in windows)
    cached = info.bytes_per_block * stats.prefix_cache_entries + sum(w.bytes_per_block * pool.cached for w, pool in windows)
    gauges = {
        "ferrum_prefix_cache_entries": stats.prefix_cache_entries,
        "ferrum_prefix_cache_bytes": cached,
        "ferrum_admission_queue_depth": stats.queue_depth,
        "ferrum_admission_active_prefill": stats.active_prefill,
        "ferrum_admission_active_decode": stats.active_decode,
        "ferrum_admission_current_batch_size": stats.current_batch_size,
        "ferrum_kv_blocks_used": stats.blocks_used,
        "ferrum_kv_blocks": stats.blocks_total,
        "ferrum_kv_bytes": info.kv_bytes,
        "ferrum_kv_used_bytes": used,
    }
    counters = {
        "ferrum_prefix_cache_hits_total": stats.prefix_cache_hits,
        "ferrum_prefix_cache_misses_total": stats.prefix_cache_misses,
        "ferrum_prefix_cache_evictions_total": stats.prefix_cache_evictions,
        "ferrum_prefix_cache_saved_prefill_tokens_total": stats.prefix_cache_saved_tokens,
        "ferrum_admission_rejected_requests_total": stats.num_rejected + metrics.rejected,
        "ferrum_engine_requests_total": stats.num_requests,
        "ferrum_engine_tokens_generated_total": stats.num_tokens_generated,
        "ferrum_engine_preemptions_total": stats.num_preemptions,
        "ferrum_engine_iterations_total": stats.num_iterations,
        "ferrum_engine_prefill_tokens_total": stats.num_prefill_tokens,
        "ferrum_engine_decode_tokens_total": stats.num_decode_tokens,
    }
    lines = [line for name, value in gauges.items() for line in (*describe(name, "gauge"), f"{name} {value}")]
    lines += [line for name, value in counters.items() for line in (*describe(name, "counter"), f"{name} {value}")]
    lines += _pools(stats)
    for name in ("ttft", "tpot", "itl", "request_duration", "queue"):
        histogram: Histogram = getattr(metrics, name)
        lines += histogram.lines(f"ferrum_engine_{name}_seconds")
    lines += metrics.prompt_tokens.lines("ferrum_engine_request_prompt_tokens")
    lines += metrics.generation_tokens.lines("ferrum_engine_request_generation_tokens")
    return "\n".join(lines) + "\n"


def _pools(stats: EngineStats) -> list[str]:
    """Two gauges for each group of states; nothing for a model that has none."""
    if not stats.pools:
        return []
    labels = [f'{{group="{i}",kind="{pool.kind}"}}' for i, pool in enumerate(stats.pools)]
    names = ("ferrum_state_places", "total"), ("ferrum_state_places_used", "used")
    return [
        line
        for name, value in names
        for line in (
            *describe(name, "gauge"),
            *(f"{name}{label} {getattr(pool, value)}" for label, pool in zip(labels, stats.pools, strict=True)),
        )
    ]


def _number(value: float) -> str:
    return f"{value:.9g}"
