"""The passes as one list of data. A stage's name is its dump file's name and the value that ``--stop-after`` takes; ``doc`` is
what ``ferrum explain`` prints of it, and ``ops`` are those that a graph may hold after it.

Stages behind these, which know the machine, are in ``ferrum/codegen/stages.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ferrum.errors import FerrumError
from ferrum.graphs.constants import read_graph, save_graph
from ferrum.graphs.ir import Graph
from ferrum.graphs.ops import OPS, PAGED_OPS
from ferrum.graphs.passes import (
    canonicalize,
    fuse_attention,
    fuse_maps,
    fuse_mlp,
    fuse_norm,
    fuse_paged,
    fuse_residual,
    fuse_rope,
    merge_linear,
    page_attention,
    tail,
)
from ferrum.graphs.verify import verify

MAX_TEXT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class GraphStage:
    """``faster``: nothing but speed depends on it; a compile may leave it out."""

    name: str
    doc: str
    run: Callable[[Graph], Graph]
    ops: frozenset[str]
    faster: bool = False


def as_imported(graph: Graph) -> Graph:
    """The frontend has already run: this stage only checks and dumps what it made."""
    return graph


# Ops that no frontend makes, by the pass that does; an ``attend`` is also what a trace of transformers has.
_ROPE = frozenset({"rope"})
_GATED = _ROPE | {"gated"}
_STATES = _GATED | {"write", "read", "view", "paged_recur"}
_TAIL = _STATES | {"gather_rows", "sample"}
_PAGED = frozenset({"paged_attention", "paged_attend"})
_PLAIN = frozenset(OPS) - _TAIL - _PAGED - {"quantize"}
FINISHED = PAGED_OPS - {"quantize"}

PIPELINE: tuple[GraphStage, ...] = (
    GraphStage(
        "import",
        "The model's torch module is traced by torch.export on the meta device (no weights are loaded) and each ATen operation "
        "becomes one of ours through one literal table (graphs/frontend). Everything unsupported is listed at once.",
        as_imported,
        _PLAIN,
    ),
    GraphStage(
        "canonicalize",
        "One spelling for each idea, so that later patterns have one form to match: casts that change nothing, views of views "
        "and constants that can be folded are removed; products, sums and exponentials become linear, mean, sub, rsqrt, silu "
        "and repeat where they are that (graphs/passes/canonicalize.py).",
        canonicalize.run,
        _PLAIN,
    ),
    GraphStage(
        "fuse_norm",
        "x * rsqrt(mean(x^2) + eps) * weight becomes one rms_norm node, or one layer_norm where the mean was taken off before "
        "(graphs/passes/fuse_norm.py).",
        fuse_norm.run,
        _PLAIN,
        faster=True,
    ),
    GraphStage(
        "fuse_rope",
        "Slices, negation, concatenation and cos/sin products become one rope node, whose positions are a value "
        "(graphs/passes/fuse_rope.py).",
        fuse_rope.run,
        _PLAIN | _ROPE,
        faster=True,
    ),
    GraphStage(
        "fuse_attention",
        "Scaled dot-product attention, its mask recognised by evaluating it, becomes one attend node with window and scale as "
        "attributes, between permutes of heads: permute, attend, permute (graphs/passes/fuse_attention.py).",
        fuse_attention.run,
        _PLAIN | _ROPE,
    ),
    GraphStage(
        "fuse_mlp",
        "silu(gate) * up, or gelu, becomes one gated node (graphs/passes/fuse_mlp.py).",
        fuse_mlp.run,
        _PLAIN | _GATED,
        faster=True,
    ),
    GraphStage(
        "merge_linear",
        "Projections that read the same input are joined: Q, K and V in one matrix, of whose columns each takes a slice, gate "
        "and up in another with its activation. Only the "
        "parameter's expression changes here; rows are joined when the pack is written (graphs/passes/merge_linear.py).",
        merge_linear.run,
        _PLAIN | _GATED,
        faster=True,
    ),
    GraphStage(
        "page_attention",
        "Stateless attention over [batch, seq] becomes ragged [tokens] that write keys and values into states and attend to "
        "them: write, attend. A plain torch model gets continuous batching here, without knowing of it. A model that embeds "
        "keeps nothing: its attends are over the ragged tokens themselves "
        "(graphs/passes/page_attention.py).",
        page_attention.run,
        _PLAIN | _STATES,
    ),
    GraphStage(
        "tail",
        "A gather_rows lets only rows that are sampled reach the final norm and the LM head, and the drawing of tokens becomes "
        "one sample node: the parameters of sampling are its inputs, tokens and log-probabilities its outputs. In a model that "
        "embeds all behind its pool is on one row of each sequence "
        "(graphs/passes/tail.py).",
        tail.run,
        _PLAIN | _TAIL,
    ),
    GraphStage(
        "fuse_residual",
        "add(linear(x), residual) becomes a linear that adds in place (graphs/passes/fuse_residual.py).",
        fuse_residual.run,
        _PLAIN | _TAIL,
        faster=True,
    ),
    GraphStage(
        "fuse_maps",
        "Whatever pointwise ops are left become map nodes: an expression over elements in one pass over them, with neighbours in "
        "one map where only it reads them (graphs/passes/fuse_maps.py).",
        fuse_maps.run,
        _PLAIN | _TAIL,
    ),
    GraphStage(
        "fuse_paged",
        "Q/k norms, rotation, the writes and the attention become paged_attention, which one kernel computes; where queries, "
        "keys and values come about in another way, the writes and the attention become paged_attend "
        "(graphs/passes/fuse_paged.py).",
        fuse_paged.run,
        _PLAIN | _TAIL | _PAGED,
    ),
)
STAGE_NAMES = tuple(stage.name for stage in PIPELINE)


def stage_index(name: str, option: str) -> int:
    if name not in STAGE_NAMES:
        raise FerrumError("stage-unknown", f"no stage is called {name!r}", option, f"one of {', '.join(STAGE_NAMES)}")
    return STAGE_NAMES.index(name)


def run_pipeline(graph: Graph, start_from: str = "", stop_after: str = "", dump: Path | None = None) -> Graph:
    """``graph`` after the stages from ``start_from`` to ``stop_after`` (both included; empty: the first, the last).

    ``graph`` is what enters the stage ``start_from``. With ``dump`` each stage's result is written to that folder as
    ``NN-stage.txt``. Every result is verified. Raises ``UnsupportedOps`` when the model cannot be paged, ``FerrumError``
    (stage-unknown, graph-invalid).
    """
    first = stage_index(start_from, "--start-from") if start_from else 0
    last = stage_index(stop_after, "--stop-after") if stop_after else len(PIPELINE) - 1
    if first > last:
        raise FerrumError("stage-unknown", f"{start_from} comes after {stop_after}", "--start-from", "name an earlier stage")
    if dump is not None:
        dump.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(PIPELINE[first : last + 1], first + 1):
        graph = run_stage(stage, graph)
        if dump is not None:
            save_graph(graph, dump / f"{number:02d}-{stage.name}.txt")
    return check_finished(graph) if last == len(PIPELINE) - 1 else graph


def run_stage(stage: GraphStage, graph: Graph) -> Graph:
    """``graph`` after a stage, verified. Raises ``FerrumError`` (graph-invalid), ``UnsupportedOps``."""
    return legal(verify(stage.run(graph), stage.name), stage.ops, stage.name)


def legal(graph: Graph, ops: frozenset[str], stage: str) -> Graph:
    """``graph`` itself. Raises ``FerrumError`` (graph-invalid) when it holds an op that belongs behind the stage."""
    found = next((node for node in graph.nodes if node.op not in ops), None)
    if found is not None:
        what = f"{found.output.name} = {found.op}: no graph has this op yet"
        raise FerrumError("graph-invalid", what, f"graph {graph.name} after {stage}", "start from a later stage")
    return graph


def check_finished(graph: Graph, ops: frozenset[str] = FINISHED) -> Graph:
    """``graph`` itself. Raises ``UnsupportedOps`` for an op or a form of the whole that no plan can be made for."""
    causes = page_attention.Causes()
    for node in graph.nodes:
        if node.op not in ops:
            causes.add(node)
    causes.findings += fuse_paged.form_findings(graph) + tail.form_findings(graph)
    causes.tell(f"graph {graph.name}")
    return graph


def load_graph(path: Path) -> Graph:
    """A verified graph from its text form. Raises ``FerrumError`` (graph-text, graph-invalid, graph-unreadable)."""
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise FerrumError("graph-unreadable", f"larger than {MAX_TEXT_BYTES} bytes", str(path), "use a dump of this compiler")
        graph = read_graph(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise FerrumError("graph-unreadable", f"cannot be read: {reason}", str(path), "name a dump of this compiler") from error
    return verify(graph, path.name)
