"""The compiler: a loop over the stages from a model folder to a pack."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from ferrum.codegen.backend import backend_of
from ferrum.codegen.job import Job, Progress, open_job
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.packing import Shared
from ferrum.codegen.select import lacking
from ferrum.codegen.stages import STAGE_NAMES, STAGES, Work, trace
from ferrum.codegen.store import refuse_external
from ferrum.codegen.target import parse_targets
from ferrum.errors import FerrumError
from ferrum.graphs.findings import Finding
from ferrum.graphs.model_files import open_files
from ferrum.graphs.survey import survey
from ferrum.graphs.weights.match import match
from ferrum.graphs.weights.opened import open_checkpoint

# The first stage of a target: what comes before is done once.
_MACHINE = next(number for number, stage in enumerate(STAGES) if stage.scope != "model")
# Code of several targets is made side by side; packs are written one after the other, since they share weights and proofs.
_PACK = STAGE_NAMES.index("pack")


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
    first, end = _span(options)
    for variant in (variant for target in targets for variant in target.variants):  # what it lacks is told before tracing
        backend_of(variant, options.quant, options.kv, {}, options.activations)
    job = open_job(replace(options, target=targets[0].name), progress or (lambda stage, done, total: None))
    with ExitStack() as cleanup:
        pool = cleanup.enter_context(ThreadPoolExecutor(options.jobs or os.cpu_count() or 1))
        work = Work(job, pool, Shared(), cleanup)
        if end > _MACHINE:  # before tracing: a damaged download is told at once
            work.checkpoint = cleanup.enter_context(closing(open_checkpoint(job.folder)))
            open_files(job.folder).read("tokenizer.json")
        if 0 < first <= _MACHINE:
            _resume(work, first - 1)
        paths = [_run(work, range(first, min(end, _MACHINE)))]
        if work.checkpoint is not None:
            works = [work.on(job.on(target, apart=len(targets) > 1)) for target in targets]
            if first > _MACHINE:
                for each in works[0].variants:
                    _resume(each, first - 1)
            match(refuse_external(works[0].variants[0].graph), work.checkpoint, not job.traced)
            for numbers in (range(max(first, _MACHINE), min(end, _PACK)), range(_PACK, end)):
                paths = [_run(each, numbers) for each in works] if numbers else paths
        return [path for path in paths if path is not None]


def check_model(options: CompileOptions) -> tuple[Finding, ...]:
    """Everything that keeps a model from being compiled, at once; empty when it can be."""
    job = open_job(options, lambda stage, done, total: None)
    with closing(open_checkpoint(job.folder)) as checkpoint:
        return survey(lambda: trace(job), checkpoint, lambda graph: lacking(graph, job.target.device), not job.traced)


def _span(options: CompileOptions) -> tuple[int, int]:
    """The number of the first stage to run and of the one that no longer is."""
    for option, value in (("--stop-after", options.stop_after), ("--start-from", options.start_from)):
        if value and value not in STAGE_NAMES:
            raise FerrumError("stage-unknown", f"no stage is called {value!r}", option, "one of " + ", ".join(STAGE_NAMES))
    first = STAGE_NAMES.index(options.start_from) if options.start_from else 0
    end = STAGE_NAMES.index(options.stop_after) + 1 if options.stop_after else len(STAGES)
    if first and STAGES[first - 1].load is None:
        last = max(number for number, stage in enumerate(STAGES) if stage.load is not None) + 1
        what = f"{options.start_from} has no input in text form"
        raise FerrumError("stage-unknown", what, "--start-from", f"start from {STAGE_NAMES[last]} or earlier")
    if first >= end:
        what = f"{options.start_from} comes after {options.stop_after}"
        raise FerrumError("stage-unknown", what, "--start-from", "name an earlier stage")
    return first, end


def _dump_path(job: Job, number: int) -> Path:
    """Where a stage's result is, without its suffix."""
    return job.dump_folder / f"{number + 1:02d}-{STAGE_NAMES[number]}"


def _resume(work: Work, number: int) -> None:
    load = STAGES[number].load
    assert load is not None
    load(work, _dump_path(work.job, number))


def _run(work: Work, numbers: Sequence[int]) -> Path | None:
    """Run some stages one after the other; where the last one left its result, if it did."""
    path, job = None, work.job
    for number in numbers:
        stage = STAGES[number]
        if stage.scope == "model":
            job.progress("graph", number - numbers[0], len(numbers))
        wanted = job.options.dump_dir or job.options.stop_after == stage.name or number == len(STAGES) - 1
        for each in work.variants if stage.scope == "variant" else [work]:
            stage.run(each)
            if stage.dump is not None and wanted:
                path = stage.dump(each, _dump_path(each.job, number))
    if numbers and numbers[0] < _MACHINE:
        job.progress("graph", len(numbers), len(numbers))
    return path
