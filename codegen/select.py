"""Which kernel computes which node on a target, with which formats and register blocks, and why: one literal table."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ferrum.codegen.generic import GENERIC
from ferrum.codegen.kernels import embedding, gather_rows, layer_norm, quantize, rms_norm, sample
from ferrum.codegen.kernels.linear import choose as linear
from ferrum.codegen.kernels.linear.cpu import Blocking
from ferrum.codegen.kernels.paged_attention import choose as paged_attention
from ferrum.codegen.moves import in_order, put_in_order
from ferrum.codegen.target import GpuTarget, Target
from ferrum.codegen.views import row_dims
from ferrum.codegen.walk import Call, Choose, Walk, apart, everywhere
from ferrum.graphs.findings import Finding, UnsupportedOps
from ferrum.graphs.ir import Graph, Node
from ferrum.graphs.passes.layout import PRODUCTS

# op -> device -> what adds the calls of a node
OPS: Mapping[str, Mapping[str, Choose]] = {
    "embedding": everywhere(embedding.choose),
    "gather_rows": everywhere(gather_rows.choose),
    "layer_norm": everywhere(layer_norm.choose),
    "linear": apart(linear.on_cpu, linear.on_gpu),
    "paged_attention": apart(paged_attention.on_cpu, paged_attention.on_gpu),
    "quantize": everywhere(quantize.choose),
    "rms_norm": everywhere(rms_norm.choose),
    "sample": apart(sample.on_cpu, sample.on_gpu),
    **GENERIC,
}
NORMS = ("rms_norm", "layer_norm")
_MATRICES = (*PRODUCTS, "embedding")  # ops whose second input lies as products read it
_ONE_RUN = frozenset({"linear", "quantize", "embedding", "sample"})  # ops whose kernels know rows of one run only


def lacking(graph: Graph, device: str) -> list[Finding]:
    """What a finished graph has and no kernel of the device computes."""
    found = []
    matrices = {node.inputs[1] for node in graph.nodes if node.op in _MATRICES}
    for node in graph.nodes:
        module, _, source = node.origin.rpartition(" ")
        if node.op not in _MATRICES and matrices.intersection(node.inputs):
            found.append(Finding(f"{node.op} of a matrix that lies as products read it", module, source, "a copy of it"))
        if device not in OPS.get(node.op, {}):
            nearest = "--target cpu" if "cpu" in OPS.get(node.op, {}) else ""
            found.append(Finding(f"{node.op}, for which {device} has no kernel", module, source, nearest))
        elif node.op in _ONE_RUN and several_runs(node):
            found.append(Finding(f"{node.op} of several rows a token, for which {device} has no kernel", module, source, ""))
    return found


def several_runs(node: Node) -> bool:
    """Whether a token has several rows in the op's result."""
    return math.prod(row_dims(node.output.shape)[:-1]) > 1


def reads_views(node: Node) -> bool:
    """Whether the op's kernel reads values wherever their elements lie; all others get rows in order."""
    return node.op in GENERIC or node.op == "embedding" or (node.op in NORMS and several_runs(node))


def select(
    graph: Graph, target: Target | GpuTarget, kv_dtype: str, tuned: Mapping[str, Blocking], activations: str = "auto"
) -> list[Call]:
    """Kernel calls of a laid-out graph, in execution order. Raises ``UnsupportedOps`` where the device has no kernel."""
    if found := lacking(graph, target.device):
        raise UnsupportedOps(found, f"graph {graph.name} on {target.name}")
    walk = Walk(graph, target, kv_dtype, tuned, activations)
    for node in graph.nodes:
        if node.output.name not in walk.fused:
            if not reads_views(node):
                put_in_order(walk, node)
            OPS[node.op][target.device](walk, node)
    assert in_order(walk, graph.outputs[0], "") == graph.outputs[0], "the logits are moved elements of another value"
    return walk.calls
