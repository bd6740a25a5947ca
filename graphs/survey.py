"""Everything that keeps a model from being compiled, found at once: ops, attention, weights."""

from __future__ import annotations

from collections.abc import Callable

from ferrum.graphs.findings import Finding, UnsupportedOps, grouped
from ferrum.graphs.ir import Graph
from ferrum.graphs.passes.page_attention import attention_findings
from ferrum.graphs.pipeline import run_pipeline
from ferrum.graphs.weights.checkpoint import Checkpoint
from ferrum.graphs.weights.match import problems


def survey(load: Callable[[], Graph], checkpoint: Checkpoint | None = None) -> tuple[Finding, ...]:
    """All findings of the model that ``load`` imports, and of ``checkpoint`` against it; empty when it can be compiled.

    A model with unsupported ops is looked at further: its other attention layers and all its known weights. Raises what
    ``load`` raises besides ``UnsupportedOps``.
    """
    found: list[Finding] = []
    try:
        graph: Graph | None = load()
    except UnsupportedOps as error:
        graph = error.graph
        found += error.findings
    if graph is None:
        return grouped(found)
    complete = not found
    if complete:
        try:
            run_pipeline(graph)
        except UnsupportedOps as error:
            found += error.findings
    else:
        found += attention_findings(run_pipeline(graph, stop_after="merge_linear"))
    if checkpoint is not None:
        found += [Finding(text, "", "checkpoint", "") for text in problems(graph, checkpoint, surplus=complete)]
    return grouped(found)
