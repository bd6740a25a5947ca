"""Baselines with torch on the same GPU in the same run: cuBLASLt products, SDPA, and a compiled model with a static cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def available() -> str:
    """Why there are no baselines; empty when there are."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} does not use CUDA"
    return ""


def _milliseconds(work: Callable[[], Any], repeats: int = 20) -> float:
    for _ in range(3):
        work()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / repeats


def matmul_tflops(size: int = 8192) -> float:
    """bf16 products of square matrices of normal numbers."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _milliseconds(lambda: a @ b) / 1e9


def linear_us(n: int, k: int, rows: int) -> float:
    """Microseconds of ``[rows, k] @ [n, k].T`` in bf16, over weights that do not stay in the cache."""
    copies = max(2, min(32, (256 << 20) // (2 * n * k)))
    weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
    x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
    graph = _graph(lambda: [torch.nn.functional.linear(x, w) for w in weights])
    return 1e3 * _milliseconds(graph.replay) / copies


def attention_us(rows: int, context: int, heads: int, kv_heads: int, head_dim: int) -> float:
    """Microseconds of SDPA for one query token of each of ``rows`` sequences."""
    q = torch.randn(rows, heads, 1, head_dim, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(rows, kv_heads, context, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    attend = torch.nn.functional.scaled_dot_product_attention
    return 1e3 * _milliseconds(_graph(lambda: attend(q, k, v, enable_gqa=True)).replay)


def _graph(work: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def decode_tokens_per_s(config: dict[str, Any], rows: int, context: int = 256, steps: int = 32) -> float:
    """Greedy decoding of ``rows`` sequences: transformers' model under torch.compile with a static cache."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, StaticCache

    settings = Qwen3Config(**{key: value for key, value in config.items() if key not in ("architectures", "model_type")})
    settings._attn_implementation = "sdpa"
    with torch.device("cuda"), torch.no_grad():
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = Qwen3ForCausalLM(settings).eval()
        finally:
            torch.set_default_dtype(torch.float32)
        cache = StaticCache(config=settings, max_cache_len=context + steps + 8)
        tokens = torch.randint(0, settings.vocab_size, (rows, context))
        model(tokens, past_key_values=cache, cache_position=torch.arange(context), logits_to_keep=1)
        step = torch.compile(model, mode="reduce-overhead", fullgraph=True)
        token = tokens[:, -1:].clone()

        def one(at: int) -> None:
            position = torch.tensor([at])
            logits = step(token, past_key_values=cache, cache_position=position).logits
            token.copy_(logits[:, -1:].argmax(-1))

        for i in range(4):
            one(context + i)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for i in range(4, 4 + steps):
            one(context + i)
        torch.cuda.synchronize()
        return rows * steps / (time.perf_counter() - started)
