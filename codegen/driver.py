"""The compiler: one straight list of stages from a model folder to a pack."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec

from ferrum.codegen.backend import Backend, Code, backend_of
from ferrum.codegen.kernels.linear.cpu import Blocking
from ferrum.codegen.layer_points import layer_points
from ferrum.codegen.manifest import (
    CONSTANTS_NAME,
    GRAPH_NAME,
    LAYERS_NAME,
    PLAN_NAME,
    SELFTEST_NAME,
    contract_of,
    count_parameters,
    make_manifest,
    plan_dump,
    plan_json,
    program_record,
)
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.plan import Plan, gpu_kernels
from ferrum.codegen.prove import Reference, StoredWeights, emulates, make_reference, prove, runs_here, tolerance
from ferrum.codegen.prove_kernels import Known, prove_kernels
from ferrum.codegen.render import kernel_source
from ferrum.codegen.store import copy_weights, refuse_external, write_weights
from ferrum.codegen.target import GpuTarget, Target, parse_target, parse_targets
from ferrum.codegen.text import licence_of, read_text
from ferrum.codegen.walk import Call
from ferrum.errors import FerrumError
from ferrum.graphs.constants import encode_constants, save_graph
from ferrum.graphs.findings import Finding
from ferrum.graphs.ir import Graph
from ferrum.graphs.models.config import ModelConfig
from ferrum.graphs.models.registry import build, checkpoint_sources, load_config
from ferrum.graphs.passes import layout
from ferrum.graphs.pipeline import STAGE_NAMES as GRAPH_STAGES
from ferrum.graphs.pipeline import load_graph, run_pipeline
from ferrum.graphs.survey import survey
from ferrum.graphs.text import print_graph
from ferrum.graphs.verify import verify
from ferrum.graphs.weights.checkpoint import Checkpoint, open_checkpoint
from ferrum.graphs.weights.match import match
from ferrum.pack.atomic import check_place
from ferrum.pack.launches import encode_table
from ferrum.pack.proof import PROOF_NAME, Proof
from ferrum.pack.schema import STEP, CodeRecord, ModelRecord, TuningRecord
from ferrum.pack.writer import PackWriter

# In order; each name is a dump's name and a value of --stop-after. --start-from takes those up to "select".
STAGES = (*GRAPH_STAGES, "layout", "select", "plan", "render", "build", "pack", "prove")
_LAYOUT = STAGES.index("layout")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Job:
    """What all stages read."""

    options: CompileOptions
    folder: Path
    target: Target | GpuTarget
    config: ModelConfig
    progress: Progress
    tuned: dict[str, Blocking] = field(default_factory=dict)
    tuning: list[TuningRecord] = field(default_factory=list)

    @property
    def backend(self) -> Backend:
        return backend_of(self.target, self.options.quant, self.options.kv, self.tuned)

    @property
    def name(self) -> str:
        return self.options.name or self.folder.resolve().name

    @property
    def output(self) -> Path:
        quant = "" if self.options.quant == "none" else f".{self.options.quant}"
        quant += f".kv-{self.options.kv_dtype}" if self.options.kv_dtype else ""
        return self.options.output or Path(f"{self.name}.{self.target.name}{quant}.fpk")

    @property
    def max_model_len(self) -> int:
        return self.config.max_model_len or self.config.max_position_embeddings

    def stops(self, stage: str) -> bool:
        return bool(self.options.stop_after) and STAGES.index(self.options.stop_after) <= STAGES.index(stage)

    def dump(self, stage: str, result: Graph | str, suffix: str = "txt") -> Path:
        """Where a stage's result is; written when the user asked for dumps or stops here."""
        folder = self.options.dump_dir or Path("build") / "dump" / self.name
        path = folder / f"{STAGES.index(stage) + 1:02d}-{stage}.{suffix}"
        if self.options.dump_dir or self.options.stop_after == stage:
            folder.mkdir(parents=True, exist_ok=True)
            if isinstance(result, Graph):
                save_graph(result, path)
            else:
                path.write_text(result, encoding="utf-8")
        return path


@dataclass
class Shared:
    """What targets of one command share: by contract the packs and what the interpreter says of them; proofs of kernels.

    ``ran``: what of packs ran whole in emulation (see ``_emulated``); ``errors``: of kernels that did.
    """

    packs: dict[str, Path] = field(default_factory=dict)
    references: dict[str, Reference] = field(default_factory=dict)
    ran: set[tuple[str, ...]] = field(default_factory=set)
    errors: Known = field(default_factory=dict)


def compile_model(options: CompileOptions, progress: Progress | None = None) -> Path:
    """Compile a model folder for one target; the pack's path, or the last dump's with ``stop_after``.

    ``progress(stage, done, total)`` is called along the way. Raises FerrumError for everything that is the user's to mend.
    """
    return compile_targets(options, progress)[-1]


def compile_targets(options: CompileOptions, progress: Progress | None = None) -> list[Path]:
    """Compile a model folder for every target in ``options.target``, which may be a list with commas.

    The model is traced and its checkpoint opened once; weights that lie alike are encoded once and copied after that.
    """
    targets = parse_targets(options.target)
    if len(targets) > 1 and (options.output or options.stop_after or options.start_from):
        what = f"one of them cannot serve {len(targets)} targets"
        raise FerrumError("bad-option", what, "-o, --stop-after, --start-from", "compile for one target at a time")
    for target in targets:  # what a target lacks is told before tracing
        backend_of(target, options.quant, options.kv, {})
    job = _open_job(replace(options, target=targets[0].name), progress or (lambda stage, done, total: None))
    if job.stops(GRAPH_STAGES[-1]):
        return [job.dump(options.stop_after, _graph_stages(job))]
    with closing(open_checkpoint(job.folder)) as checkpoint:  # before tracing: a damaged download is told at once
        graph = _graph_stages(job)
        match(refuse_external(graph), checkpoint)
        jobs = [replace(job, target=target, options=replace(options, target=target.name)) for target in targets]
        return _machine_stages(jobs, graph, checkpoint)


def check_model(options: CompileOptions) -> tuple[Finding, ...]:
    """Everything that keeps a model from being compiled, at once; empty when it can be."""
    job = _open_job(options, lambda stage, done, total: None)
    with closing(open_checkpoint(job.folder)) as checkpoint:
        return survey(lambda: _traced(job), checkpoint)


def _traced(job: Job) -> Graph:
    from ferrum.graphs.frontend.torch_export import import_module

    module = build(job.config)
    return import_module(module, job.config, job.name, checkpoint_sources(module))


def _open_job(options: CompileOptions, progress: Progress) -> Job:
    for option, value in (("--stop-after", options.stop_after), ("--start-from", options.start_from)):
        if value and value not in STAGES:
            raise FerrumError("stage-unknown", f"no stage is called {value!r}", option, "one of " + ", ".join(STAGES))
    if options.start_from and STAGES.index(options.start_from) > _LAYOUT + 1:
        raise FerrumError(
            "stage-unknown", f"{options.start_from} has no input in text form", "--start-from", "start from select or earlier"
        )
    target = parse_target(options.target)
    folder = Path(options.model)
    if not folder.is_dir():
        raise FerrumError(
            "model-not-found", "there is no such model folder", str(folder), "give a folder with config.json and *.safetensors"
        )
    config = load_config(folder)
    longest = int(config.max_position_embeddings * (config.rope.factor if config.rope.kind != "default" else 1))
    if options.max_model_len > max(longest, config.max_position_embeddings):
        what = f"the model knows positions up to {longest} and {options.max_model_len} were asked for"
        raise FerrumError("bad-option", what, "--max-model-len", "give a smaller length")
    job = Job(options, folder, target, replace(config, max_model_len=options.max_model_len), progress)
    if not options.stop_after:
        check_place(job.output)
    return job


def _graph_stages(job: Job) -> Graph:
    """The graph after the last graph stage that is to run, traced from the model or read from a dump."""
    options, start = job.options, job.options.start_from
    job.progress("graph", 0, 1)
    if start and STAGES.index(start) > 0:
        previous = STAGES[STAGES.index(start) - 1]
        graph = load_graph(
            job.dump(previous, "")
            if not options.dump_dir
            else options.dump_dir / f"{STAGES.index(previous) + 1:02d}-{previous}.txt"
        )
    else:
        graph = _traced(job)
    if not start or start in GRAPH_STAGES:
        stop = options.stop_after if options.stop_after in GRAPH_STAGES else ""
        graph = run_pipeline(graph, start, stop, options.dump_dir)
    job.progress("graph", 1, 1)
    return graph


def _machine_stages(jobs: list[Job], graph: Graph, checkpoint: Checkpoint) -> list[Path]:
    """Code for all targets is compiled side by side, packs are written one after the other."""
    shared, finished = Shared(), []
    with ThreadPoolExecutor(jobs[0].options.jobs or os.cpu_count() or 1) as pool:
        started = [(job, _code_stages(job, graph, pool)) for job in jobs]
        for job, made in started:
            if isinstance(made, Path):
                return [made]
            plan, source, contract, building = made
            if len(jobs) == 1:
                job.progress("build", 0, 1)
            code = building.result()
            job.progress("build", 1, 1)
            if job.stops("build"):
                return [job.dump("render", source, job.backend.suffix)]
            finished.append(_pack(job, graph, plan, code, contract, checkpoint, shared))
    return finished


def _code_stages(job: Job, graph: Graph, pool: ThreadPoolExecutor) -> Path | tuple[Plan, str, str, Future[Code]]:
    """Plan, source, contract and the code under way; or the dump of the last stage that was to run."""
    options = job.options
    laid_out = graph
    if options.tune:
        _tune(job, graph)
    backend = job.backend
    if options.start_from != "select":
        laid_out = verify(layout.run(graph, backend.policy()), "layout")
    path = job.dump("layout", laid_out)
    if job.stops("layout"):
        return path
    calls = backend.select(laid_out)
    path = job.dump("select", _calls_text(calls))
    if job.stops("select"):
        return path
    made = backend.plan(laid_out, calls)
    path = job.dump("plan", plan_dump(made).decode(), "json")
    if job.stops("plan"):
        return path
    contract = contract_of(made, job.max_model_len)
    source = backend.render(made, contract)
    path = job.dump("render", source, backend.suffix)
    if job.stops("render"):
        return path
    return made, source, contract, pool.submit(backend.build, made, source, contract, options.dump_dir)


def _tune(job: Job, graph: Graph) -> None:
    """Measure blockings for the formats that the model has on its target, which must be this machine."""
    if not isinstance(job.target, Target) or not runs_here(job.target.arch, job.target.requires):
        what = f"kernels for {job.target.name} cannot be measured on this machine"
        raise FerrumError("bad-option", what, "--tune", "leave it out, or compile on such a machine")
    from ferrum.codegen.tune import tune

    job.progress("tune", 0, 1)
    tuned, records = tune(job.target, layout.run(graph, job.backend.policy()).params)
    job.tuned.update(tuned)
    job.tuning.extend(records)
    job.progress("tune", 1, 1)


def _calls_text(calls: Sequence[Call]) -> str:
    """One line per call: what runs, where it came from, why."""
    return "".join(f"{c.kernel.symbol}  {c.output} <- {', '.join((*c.inputs, *c.params))}  # {c.kernel.why()}\n" for c in calls)


def _pack(job: Job, graph: Graph, made: Plan, code: Code, contract: str, checkpoint: Checkpoint, shared: Shared) -> Path:
    options = job.options
    text = read_text(job.folder)
    size = made.tensors[-1].offset + made.tensors[-1].nbytes
    with PackWriter(job.output, _manifest_room(made), expected_bytes=size + code.nbytes) as writer:
        writer.add(GRAPH_NAME, print_graph(made.graph).encode())
        if constants := encode_constants(made.graph):
            writer.add(CONSTANTS_NAME, constants)
        writer.add(PLAN_NAME, plan_json(made))
        for name, data in code.members.items():
            writer.add(name, data)
        code_members = list(code.members)
        if text.tokenizer:
            writer.add("tokenizer.json", text.tokenizer)
        if text.template:
            writer.add("chat_template.jinja", text.template.encode())
        with writer.member("weights") as sink:
            if contract in shared.packs:
                copy_weights(shared.packs[contract], sink)
            else:
                progress = partial(job.progress, "pack")
                write_weights(made.graph, made.tensors, checkpoint, sink, options.jobs, progress)
        reference = None
        if options.prove and not job.stops("pack"):
            job.progress("prove", 0, 2)
            reference = shared.references.get(contract) or make_reference(
                graph,
                _weights_of(writer, made),
                tolerance(options.quant, options.kv),
                made.vocab_size,
                count_parameters(made),
                job.max_model_len,
            )
            shared.references[contract] = reference
            writer.add(SELFTEST_NAME, msgspec.json.encode(reference.test, order="sorted"))
            writer.add(LAYERS_NAME, msgspec.json.encode(reference.layers(layer_points(made)), order="sorted"))
            if isinstance(job.target, GpuTarget):
                whole = emulates(job.target.device, count_parameters(made))
                proof = Proof(kernels=prove_kernels(gpu_kernels(made), job.target, shared.errors), whole_model=whole)
                writer.add(PROOF_NAME, msgspec.json.encode(proof, order="sorted"))
                code_members.append(PROOF_NAME)
            job.progress("prove", 1, 2)
        manifest = make_manifest(
            made,
            options,
            job.target,
            _model_record(job, made),
            text.record,
            program_record(made, job.target, reference is not None, bool(constants)),
            CodeRecord(name="main", features=[], entry={STEP: code.entry}, members=code_members, toolchain=code.toolchain),
            job.tuning,
            source_sha256=checkpoint.digest(),
            has_text=bool(text.tokenizer),
        )
        writer.finish(manifest, prove=_prover(job, made, contract, reference is not None, shared))
    shared.packs[contract] = job.output
    job.progress("prove", 2, 2)
    return job.output


def _prover(job: Job, made: Plan, contract: str, has_test: bool, shared: Shared) -> Callable[[Path], None] | None:
    """The check of the finished, still hidden file; None when there is nothing to check or this machine cannot run it.

    Of packs whose kernels, launches and weights are the same to the letter, one runs whole in emulation.
    """
    emulated = _emulated(job, made, contract)
    if not has_test or emulated in shared.ran or not (emulated or runs_here(job.target.arch, job.target.requires)):
        return None
    if emulated:
        shared.ran.add(emulated)
    return lambda path: (prove(path), None)[1]


def _emulated(job: Job, made: Plan, contract: str) -> tuple[str, ...]:
    """All that a run in emulation depends on; nothing where the pack is not emulated."""
    whole = emulates(job.target.device, count_parameters(made))
    if not whole or not isinstance(job.target, GpuTarget):
        return ()
    return contract, encode_table(made.table).decode(), *(kernel_source(kernel, job.target) for kernel in made.kernels)


def _weights_of(writer: PackWriter, made: Plan) -> StoredWeights:
    """The weights of an unfinished pack, mapped until nothing refers to them."""
    path, start = writer.written("weights")
    with path.open("rb") as file:
        return StoredWeights(made.tensors, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), start)


def _manifest_room(made: Plan) -> int:
    """Bytes kept for the manifest: it grows with the number of tensors and kernels."""
    return -(-(64 * 1024 + 400 * len(made.tensors) + 4096 * len(made.kernels)) // 16384) * 16384


def _model_record(job: Job, made: Plan) -> ModelRecord:
    options = job.options
    return ModelRecord(
        name=job.name,
        family=job.config.family,
        source=options.name,
        revision=options.revision,
        licence=licence_of(job.folder),
        num_parameters=count_parameters(made),
        vocab_size=made.vocab_size,
        max_model_len=job.max_model_len,
        quant=options.quant,
    )
