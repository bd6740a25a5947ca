"""The passes as one list. A stage's name is its dump file's name and the value that ``--stop-after`` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ferrum.errors import FerrumError
from ferrum.graphs.constants import read_graph, save_graph
from ferrum.graphs.findings import UnsupportedOps
from ferrum.graphs.ir import Graph
from ferrum.graphs.ops import PAGED_OPS
from ferrum.graphs.passes import (
    canonicalize,
    fuse_attention,
    fuse_mlp,
    fuse_norm,
    fuse_paged,
    fuse_residual,
    fuse_rope,
    merge_linear,
    page_attention,
)
from ferrum.graphs.verify import verify

MAX_TEXT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    run: Callable[[Graph], Graph]


def as_imported(graph: Graph) -> Graph:
    """The frontend has already run: this stage only checks and dumps what it made."""
    return graph


PIPELINE: tuple[Stage, ...] = (
    Stage("import", as_imported),
    Stage("canonicalize", canonicalize.run),
    Stage("fuse_norm", fuse_norm.run),
    Stage("fuse_rope", fuse_rope.run),
    Stage("fuse_attention", fuse_attention.run),
    Stage("fuse_mlp", fuse_mlp.run),
    Stage("merge_linear", merge_linear.run),
    Stage("page_attention", page_attention.run),
    Stage("fuse_residual", fuse_residual.run),
    Stage("fuse_paged", fuse_paged.run),  # a machine stage: CPUs and GPUs fuse alike today
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
        graph = verify(stage.run(graph), stage.name)
        if dump is not None:
            save_graph(graph, dump / f"{number:02d}-{stage.name}.txt")
    return check_finished(graph) if last == len(PIPELINE) - 1 else graph


def check_finished(graph: Graph) -> Graph:
    """``graph`` itself. Raises ``UnsupportedOps`` for an op or a form of the whole that no plan can be made for."""
    rest = [page_attention.finding(node) for node in graph.nodes if node.op not in PAGED_OPS]
    rest += fuse_paged.form_findings(graph)
    if rest:
        raise UnsupportedOps(rest, f"graph {graph.name}")
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
