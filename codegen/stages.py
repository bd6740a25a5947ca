"""The compiler as one list of stages: first those of ``ferrum/graphs/pipeline.py``, once for a model, then those of each target.

A stage is data: its name (its dump's name, and what ``--stop-after`` and ``--start-from`` take), what it does in words
(``ferrum explain STAGE``), its scope, how it runs, how its result is written down and read back, and which ops a graph may
hold after it. ``codegen/driver.py`` is the loop over them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ferrum.codegen.backend import Built, Code
from ferrum.codegen.calibrate import calibrate, calibrated, calibration_key, read_texts
from ferrum.codegen.job import Job
from ferrum.codegen.manifest import contract_of, plan_dump
from ferrum.codegen.packing import Packing, Shared
from ferrum.codegen.plan import Plan
from ferrum.codegen.prove import runs_here
from ferrum.codegen.target import AnyCpu, Target
from ferrum.codegen.text import read_text
from ferrum.codegen.walk import Call
from ferrum.errors import FerrumError
from ferrum.graphs.constants import save_graph
from ferrum.graphs.findings import UnsupportedOps
from ferrum.graphs.ir import Graph
from ferrum.graphs.models.config import ModelConfig
from ferrum.graphs.models.registry import tied_head
from ferrum.graphs.models.traced_config import TracedConfig
from ferrum.graphs.ops import PAGED_OPS
from ferrum.graphs.passes import apart, layout
from ferrum.graphs.pipeline import PIPELINE, GraphStage, check_finished, legal, load_graph, run_stage
from ferrum.graphs.verify import verify
from ferrum.graphs.weights.checkpoint import Checkpoint
from ferrum.graphs.weights.saved import EXPORTED, saved_graph
from ferrum.graphs.weights.stored import listed, stored


@dataclass
class Work:
    """What stages hand on; each sets its own field. ``cleanup`` is closed when the command ends, however it ends.

    ``calibrated``: what has factors and what has not, where the model was calibrated.
    ``variants``: the work of each target that the pack has code for: this one itself, where it is of one.
    """

    job: Job
    pool: Executor
    shared: Shared
    cleanup: ExitStack
    checkpoint: Checkpoint | None = None
    calibrated: str = ""
    graph: Graph = field(init=False)
    laid_out: Graph = field(init=False)
    calls: list[Call] = field(init=False)
    plan: Plan = field(init=False)
    contract: str = field(init=False)
    source: str = field(init=False)
    building: Future[Code] = field(init=False)
    variants: list[Work] = field(init=False)
    packing: Packing = field(init=False)

    @property
    def built(self) -> Built:
        assert not isinstance(self.job.target, AnyCpu)
        return Built(self.job.target, self.plan, self.building.result())

    def on(self, job: Job) -> Work:
        """The work of a target on the same graph, which is not there yet when stages go on from a dump behind it."""
        other = self._alone(job)
        if isinstance(job.target, AnyCpu):
            other.variants = [self._alone(job.on(target, apart=True)) for target in job.target.variants]
        return other

    def _alone(self, job: Job) -> Work:
        other = Work(job, self.pool, self.shared, self.cleanup, self.checkpoint)
        if hasattr(self, "graph"):
            other.graph = self.graph
        other.variants = [other]
        return other


Dump = Callable[[Work, Path], Path]


@dataclass(frozen=True)
class Stage:
    """``dump(work, path)`` writes the result to ``path``, which has no suffix yet, and says where; ``load`` is its inverse.

    ``scope``: runs once for a model, for each variant of a target's code, or for each target.
    """

    name: str
    doc: str
    scope: Literal["model", "variant", "target"]
    run: Callable[[Work], None]
    dump: Dump | None = None
    load: Callable[[Work, Path], None] | None = None
    ops: frozenset[str] = frozenset()


def trace(job: Job) -> Graph:
    """A module as a graph: the record's, `transformers`' own, or a file's; its parameters are what the checkpoint stores.

    Raises ``UnsupportedOps``, ``WeightsMismatch``, FerrumError (export-failed).
    """
    with listed(job.folder) as checkpoint:
        twins: dict[str, str] = {}
        config = job.config
        if isinstance(config, ModelConfig) and config.tie_word_embeddings:
            config, twins = tied_head(config, checkpoint)
        try:
            return stored(_trace(job, config), checkpoint, twins)
        except UnsupportedOps as error:
            if error.graph is not None:
                error.graph = stored(error.graph, checkpoint, twins)
            raise


def _trace(job: Job, config: ModelConfig | TracedConfig) -> Graph:
    file = saved_graph(job.folder)
    if file is not None and file.suffix == EXPORTED:
        from ferrum.graphs.frontend.exported import import_exported

        return import_exported(file, job.name, job.max_model_len)
    if file is not None:
        from ferrum.graphs.frontend.onnx import import_onnx

        return import_onnx(file, job.name)
    if isinstance(config, TracedConfig):
        from ferrum.graphs.frontend.traced import trace_folder

        return trace_folder(config, job.folder, job.name)
    from ferrum.graphs.frontend.repeated import import_decoder

    return import_decoder(config, job.name)


def _place(path: Path, suffix: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_suffix(suffix)


def _text(suffix: str, text: Callable[[Work], str]) -> Dump:
    def dump(work: Work, path: Path) -> Path:
        path = _place(path, f".{suffix}")
        path.write_text(text(work), encoding="utf-8")
        return path

    return dump


def _dump_graph(work: Work, path: Path) -> Path:
    path = _place(path, ".txt")
    save_graph(work.graph, path)
    return path


def _loader(stage: GraphStage) -> Callable[[Work, Path], None]:
    def load(work: Work, path: Path) -> None:
        graph = legal(load_graph(path.with_suffix(".txt")), stage.ops, stage.name)
        work.graph = check_finished(graph) if stage is PIPELINE[-1] else graph

    return load


def _of_graph(stage: GraphStage) -> Stage:
    last = stage is PIPELINE[-1]

    def run(work: Work) -> None:
        if stage is PIPELINE[0]:
            work.graph = trace(work.job)
        if stage.faster and not work.job.options.fuse:
            return
        made = run_stage(stage, work.graph)
        work.graph = check_finished(made) if last else made

    return Stage(stage.name, stage.doc, "model", run, _dump_graph, _loader(stage), stage.ops)


def _layout(work: Work) -> None:
    work.graph = apart.run(work.graph, work.job.backend.policy())
    if work.job.options.calibration != "none":
        work.graph, work.calibrated = _calibrated(work)
    if work.job.options.tune:
        _tune(work.job, work.graph)
    work.laid_out = legal(verify(layout.run(work.graph, work.job.backend.policy()), "layout"), PAGED_OPS, "layout")


def _calibrated(work: Work) -> tuple[Graph, str]:
    """The graph with factors, and what has them; once for all variants and targets that quantize alike."""
    assert work.checkpoint is not None
    policy, known = work.job.backend.policy(), work.shared.calibrated
    key = calibration_key(work.graph, policy)
    if key not in known:
        texts = _texts(work, work.graph)
        work.job.progress("calibrate", 0, 1)
        made = calibrate(work.graph, policy, work.checkpoint, texts) if texts else work.graph
        known[key] = made, calibrated(made, bool(texts))
        work.job.progress("calibrate", 1, 1)
    return known[key]


def _texts(work: Work, graph: Graph) -> list[list[int]]:
    job = work.job
    return read_texts(job.options.calibration, read_text(job.folder).tokenizer, graph, job.max_model_len)


def _tune(job: Job, graph: Graph) -> None:
    """Measure blockings for the formats that the model has on its target, which must be this machine."""
    if isinstance(job.target, Target) and job.target.unit:
        what = "how units are cut that several CPUs read is not measured on one"
        raise FerrumError("bad-option", what, "--tune", "leave it out, or name one CPU as the target")
    if not isinstance(job.target, Target) or not runs_here(job.target.arch, job.target.requires):
        what = f"kernels for {job.target.name} cannot be measured on this machine"
        raise FerrumError("bad-option", what, "--tune", "leave it out, or compile on such a machine")
    from ferrum.codegen.tune import tune

    job.progress("tune", 0, 1)
    tuned, records = tune(job.target, layout.run(graph, job.backend.policy()).params)
    job.tuned.update(tuned)
    job.tuning.extend(records)
    job.progress("tune", 1, 1)


def _dump_layout(work: Work, path: Path) -> Path:
    path = _place(path, ".txt")
    save_graph(work.laid_out, path)
    return path


def _load_layout(work: Work, path: Path) -> None:
    """A dump of another target or of other formats is refused: kernels read weights as the target's layouts lay them."""
    path = path.with_suffix(".txt")
    graph = check_finished(legal(load_graph(path), PAGED_OPS, "layout"), PAGED_OPS)
    for param, wanted in layout.differing(graph, work.job.backend.policy()):
        what = f"{param.name} is {param.format or 'nothing'} as {param.layout or 'nothing'}, not {wanted}"
        raise FerrumError("bad-option", what, str(path), "start from layout, or give the dump's --target and --quant")
    work.graph = work.laid_out = graph
    if work.job.options.calibration != "none":
        work.calibrated = calibrated(graph, bool(_texts(work, graph)))


def _select(work: Work) -> None:
    work.calls = work.job.backend.select(work.laid_out)


def _calls_text(work: Work) -> str:
    """One line per call: what runs, where it came from, why."""
    return "".join(
        f"{c.kernel.symbol}  {c.output} <- {', '.join((*c.inputs, *c.params))}  # {c.kernel.why()}\n" for c in work.calls
    )


def _plan(work: Work) -> None:
    work.plan = work.job.backend.plan(work.laid_out, work.calls)
    work.contract = contract_of(work.plan, work.job.max_model_len)


def _render(work: Work) -> None:
    work.source = work.job.backend.render(work.plan, work.contract)


def _dump_source(work: Work, path: Path) -> Path:
    return _text(work.job.backend.suffix, lambda work: work.source)(work, path)


def _build(work: Work) -> None:
    """Only started: the code of several targets is made side by side."""
    work.job.progress("build", 0, 1)
    keep = work.job.options.dump_dir
    work.building = work.pool.submit(work.job.backend.build, work.plan, work.source, work.contract, keep)


def _dump_code(work: Work, path: Path) -> Path:
    """The member that runs, by its own suffix."""
    name, data = next(iter(work.building.result().members.items()))
    path = _place(path, Path(name).suffix)
    path.write_bytes(data)
    return path


def _pack(work: Work) -> None:
    builds = [each.built for each in work.variants]
    work.job.progress("build", 1, 1)
    contract, *others = [each.contract for each in work.variants]
    assert work.checkpoint is not None and all(other == contract for other in others), "variants of the code read other weights"
    said = work.variants[0].calibrated
    work.packing = Packing(work.job, builds, contract, work.checkpoint, work.shared, said)
    work.cleanup.callback(work.packing.close)
    work.packing.write()
    if not work.job.options.prove or work.job.options.stop_after == "pack":
        work.packing.finish()


def _packed(work: Work, path: Path) -> Path:
    return work.job.output


def _prove(work: Work) -> None:
    if not work.job.options.prove:
        return
    work.job.progress("prove", 0, 2)
    work.packing.add_reference(work.variants[0].graph)
    work.job.progress("prove", 1, 2)
    work.packing.finish()
    work.job.progress("prove", 2, 2)


_MACHINE: tuple[Stage, ...] = (
    Stage(
        "layout",
        "Each weight gets a logical number format (bf16, int8, int4-g32 ...) and the physical layout that every kernel of the "
        "target reads; a quantize converts rows before a product that wants others (graphs/passes/layout.py). Before that, "
        "joined matrices of which a checkpoint has quantized parts in several ways are taken apart where each can stay as it is "
        "(graphs/passes/apart.py). Calibrated, large channels of activations become smaller by a factor and the columns of the "
        "matrices that read them larger, so that rounding these loses less (codegen/calibrate.py, graphs/passes/rescale.py).",
        "variant", _layout, _dump_layout, _load_layout, PAGED_OPS,
    ),
    Stage(
        "select",
        "A kernel is chosen for every node from one table of ops and devices, and the reason is kept: ferrum explain PACK --why "
        "(codegen/select.py).",
        "variant", _select, _text("txt", _calls_text),
    ),
    Stage(
        "plan",
        "Arena offsets, workspace as a function of tokens, and the table of launches (codegen/plan.py).",
        "variant", _plan, _text("json", lambda work: plan_dump(work.plan).decode()),
    ),
    Stage(
        "render",
        "jinja2 templates become C, CUDA or Metal with the model's dimensions as constants (codegen/render.py, templates/).",
        "variant", _render, _dump_source,
    ),
    Stage(
        "build",
        "The compiler of the target makes its code; sources and the command to repeat a failure are kept (codegen/toolchains).",
        "variant", _build, _dump_code,
    ),
    Stage(
        "pack",
        "Weights are streamed tensor by tensor into their final layout; the file appears under its name only when whole "
        "(codegen/packing.py, codegen/store.py).",
        "target", _pack, _packed,
    ),
    Stage(
        "prove",
        "The pack is opened and run against the graph interpreter; prompts, logits and tolerances stay inside the file for "
        "ferrum verify --numeric (codegen/prove.py).",
        "target", _prove, _packed,
    ),
)  # fmt: skip

STAGES: tuple[Stage, ...] = (*map(_of_graph, PIPELINE), *_MACHINE)
STAGE_NAMES = tuple(stage.name for stage in STAGES)
