"""Everything that keeps a model from being compiled, found at once: ops, attention, weights."""

from __future__ import annotations

from collections.abc import Callable

from ferrum.graphs.findings import Finding, UnsupportedOps, grouped
from ferrum.graphs.ir import Graph
from ferrum.graphs.passes import page_attention, tail
from ferrum.graphs.pipeline import run_pipeline
from ferrum.graphs.weights.checkpoint import Checkpoint
from ferrum.graphs.weights.match import problems

Judge = Callable[[Graph], list[Finding]]


def survey(
    load: Callable[[], Graph], checkpoint: Checkpoint | None = None, judge: Judge | None = None, surplus: bool = True
) -> tuple[Finding, ...]:
    """All findings of the model that ``load`` imports, and of ``checkpoint`` against it; empty when it can be compiled.

    ``judge`` says what a target has against a finished graph. ``surplus``: whether unread tensors are findings, too. A model with
    unsupported ops is looked at further: its other attention layers and all its known weights. Raises what ``load`` raises
    besides ``UnsupportedOps``.
    """
    found: list[Finding] = []
    try:
        graph: Graph | None = load()
    except UnsupportedOps as error:
        graph = error.graph
        found += error.findings
    if graph is None:
        return grouped(found)
    complete, finished = not found, False
    if complete:
        try:
            made = run_pipeline(graph)
            finished = True
            found += judge(made) if judge else []
        except UnsupportedOps as error:
            found += error.findings
    if found and not finished:  # attention of later layers, and what only the last stages would say of it
        known = {(f.what, f.source) for f in found}
        merged = run_pipeline(graph, stop_after="merge_linear")
        more = page_attention.attention_findings(merged, page_attention.judge_of(merged))
        if complete:
            more += tail.end_findings(merged)
        found += [f for f in more if (f.what, f.source) not in known]
    if checkpoint is not None:
        found += [Finding(text, "", "checkpoint", "") for text in problems(graph, checkpoint, surplus=surplus and complete)]
    return grouped(found)
