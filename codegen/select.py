"""Which kernel computes which node on a target, with which formats and register blocks, and why: one literal table."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ferrum.codegen.kernels import embedding, gather_rows, layer_norm, quantize, rms_norm, sample
from ferrum.codegen.kernels.linear import choose as linear
from ferrum.codegen.kernels.linear.cpu import Blocking
from ferrum.codegen.kernels.paged_attention import choose as paged_attention
from ferrum.codegen.target import GpuTarget, Target
from ferrum.codegen.walk import Call, Walk
from ferrum.graphs.ir import Graph, Node

Choose = Callable[[Walk, Node], None]


def everywhere(choose: Choose) -> dict[str, Choose]:
    """One choice for all devices."""
    return {"cpu": choose, "cuda": choose, "metal": choose}


# op -> device -> what adds the calls of a node
OPS: Mapping[str, Mapping[str, Choose]] = {
    "embedding": everywhere(embedding.choose),
    "gather_rows": everywhere(gather_rows.choose),
    "layer_norm": everywhere(layer_norm.choose),
    "linear": {"cpu": linear.on_cpu, "cuda": linear.on_gpu, "metal": linear.on_gpu},
    "paged_attention": {"cpu": paged_attention.on_cpu, "cuda": paged_attention.on_gpu, "metal": paged_attention.on_gpu},
    "quantize": everywhere(quantize.choose),
    "rms_norm": everywhere(rms_norm.choose),
    "sample": {"cpu": sample.on_cpu, "cuda": sample.on_gpu, "metal": sample.on_gpu},
}


def select(graph: Graph, target: Target | GpuTarget, kv_dtype: str, tuned: Mapping[str, Blocking]) -> list[Call]:
    """Kernel calls of a laid-out graph, in execution order."""
    walk = Walk(graph, target, kv_dtype, tuned)
    for node in graph.nodes:
        if node.output.name not in walk.fused:
            OPS[node.op][target.device](walk, node)
    return walk.calls
