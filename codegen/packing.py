"""The last two stages: all of a target goes into one file, which appears under its name only when it is whole and proved."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from ferrum.codegen.backend import Built, member_of
from ferrum.codegen.job import Job
from ferrum.codegen.kept import kept_formats
from ferrum.codegen.layer_points import layer_points
from ferrum.codegen.manifest import (
    CONSTANTS,
    GRAPH,
    LAYERS,
    PLAN,
    SELFTEST,
    code_record,
    count_parameters,
    make_manifest,
    plan_json,
    program_member,
    program_record,
)
from ferrum.codegen.plan import Plan, gpu_kernels
from ferrum.codegen.policy import KEEP
from ferrum.codegen.prove import Reference, StoredWeights, emulates, make_reference, prove, runs_here, tolerance
from ferrum.codegen.prove_kernels import Known, prove_kernels
from ferrum.codegen.quality import Sample, read_sample
from ferrum.codegen.render import common_source, kernel_source
from ferrum.codegen.store import copy_weights, write_weights
from ferrum.codegen.target import GpuTarget
from ferrum.codegen.text import licence_of, read_text
from ferrum.graphs.constants import encode_constants
from ferrum.graphs.ir import Graph
from ferrum.graphs.models.traced_config import TracedConfig, tracer
from ferrum.graphs.programs import program_of
from ferrum.graphs.text import print_graph
from ferrum.graphs.weights.checkpoint import Checkpoint
from ferrum.pack.launches import encode_table
from ferrum.pack.prompts import PROMPTS_NAME, Prompts, encode_prompts
from ferrum.pack.proof import PROOF_NAME, Proof
from ferrum.pack.quality import QUALITY_NAME, QualityCard, are_quantized, encode_quality
from ferrum.pack.schema import ENCODE, Manifest, ModelRecord
from ferrum.pack.writer import PackWriter
from ferrum.text.template_process import TEMPLATE_MEMBERS


@dataclass
class Shared:
    """What targets of one command share: by contract the packs and what the interpreter says of them; proofs of kernels.

    ``ran``: what of packs ran whole in emulation (see ``_emulated``); ``errors``: of kernels that did. ``samples``: by graph what
    the unquantized model says; ``cards``: by contract those of weights alone; ``calibrated``: graphs with factors by what decides
    on these.
    """

    packs: dict[str, Path] = field(default_factory=dict)
    references: dict[str, Reference] = field(default_factory=dict)
    ran: set[tuple[str, ...]] = field(default_factory=set)
    errors: Known = field(default_factory=dict)
    samples: dict[str, Sample | None] = field(default_factory=dict)
    cards: dict[str, QualityCard] = field(default_factory=dict)
    calibrated: dict[str, tuple[Graph, str]] = field(default_factory=dict)


class Packing:
    """A pack under construction. ``finish`` makes it visible; ``close`` before that leaves nothing behind."""

    def __init__(
        self, job: Job, builds: Sequence[Built], contract: str, checkpoint: Checkpoint, shared: Shared, calibrated: str = ""
    ) -> None:
        self.calibrated = calibrated
        self.job, self.builds, self.contract = job, builds, contract
        self.checkpoint, self.shared = checkpoint, shared
        self.text = read_text(job.folder)
        self.plan = plan = builds[0].plan  # weights, graph and states are those of all
        size = plan.tensors[-1].offset + plan.tensors[-1].nbytes + sum(built.code.nbytes for built in builds)
        self.writer = PackWriter(job.output, _manifest_room(builds), expected_bytes=size)
        self._layers: dict[str, str] = {}  # by variant the member with values of its layers
        self._proof: list[str] = []
        self._has_constants = False
        self._sample: Sample | None = None  # what the finished pack is to be measured on

    def close(self) -> None:
        self.writer.abort()

    def write(self) -> None:
        """All members but what the proof adds."""
        writer, graph = self.writer, self.plan.graph
        writer.add(self._name(GRAPH), print_graph(graph).encode())
        if constants := encode_constants(graph):
            writer.add(self._name(CONSTANTS), constants)
            self._has_constants = True
        for built in self.builds:
            writer.add(member_of(built.target, self._name(PLAN)), plan_json(built.plan))
            for name, data in built.code.members.items():
                writer.add(name, data)
        if self.text.tokenizer:
            writer.add("tokenizer.json", self.text.tokenizer)
        if prompts := self._prompts():
            writer.add(PROMPTS_NAME, encode_prompts(prompts))
        for name, source in self.text.templates.items():
            writer.add(TEMPLATE_MEMBERS[name], source.encode())
        with writer.member("weights") as sink:
            if self.contract in self.shared.packs:
                copy_weights(self.shared.packs[self.contract], sink)
            else:
                progress = partial(self.job.progress, "pack")
                write_weights(graph, self.plan.tensors, self.checkpoint, sink, self.job.options.jobs, progress)

    def _prompts(self) -> Prompts | None:
        """What goes before texts, where the model has such texts."""
        config = self.job.config
        embedding = config.embedding if isinstance(config, TracedConfig) else None
        if embedding is None or not embedding.prompts:
            return None
        return Prompts(prompts=dict(embedding.prompts), default=embedding.default_prompt)

    def _name(self, member: str) -> str:
        return program_member(self.plan.graph, member)

    def add_reference(self, graph: Graph) -> None:
        """What the interpreter makes of ``graph``, which has no formats yet, and how GPU kernels fared in emulation."""
        options, shared, parameters = self.job.options, self.shared, count_parameters(self.plan)
        reference = shared.references.get(self.contract) or make_reference(
            graph,
            self._stored_weights(),
            tolerance("f32" if options.activations == "f32" else options.quant, options.kv),
            self.plan.vocab_size,
            parameters,
            self.job.max_model_len,
        )
        shared.references[self.contract] = reference
        self.writer.add(self._name(SELFTEST), msgspec.json.encode(reference.test, order="sorted"))
        self._add_layers(reference)
        if isinstance(self.job.target, GpuTarget):
            whole = emulates(self.job.target.device, parameters)
            kernels = prove_kernels(gpu_kernels(self.plan), self.job.target, shared.errors)
            self.writer.add(PROOF_NAME, msgspec.json.encode(Proof(kernels=kernels, whole_model=whole), order="sorted"))
            self._proof.append(PROOF_NAME)
        formats = {tensor.format for tensor in self.plan.tensors}
        if program_of(graph) != ENCODE and are_quantized({*formats, options.kv} if self._here else formats):
            self._add_quality(graph)

    def _add_layers(self, reference: Reference) -> None:
        """Values of layers, once for all variants that show the same ones in the same places."""
        added: dict[bytes, str] = {}
        for built in self.builds:
            data = msgspec.json.encode(reference.layers(layer_points(built.plan)), order="sorted")
            if data not in added:
                added[data] = member_of(built.target, self._name(LAYERS))
                self.writer.add(added[data], data)
            self._layers[built.target.variant] = added[data]

    def _add_quality(self, graph: Graph) -> None:
        """The card of weights alone, where the code cannot run here; else what the finished pack is measured on."""
        shared, text = self.shared, print_graph(graph)
        if text not in shared.samples:
            sizes = self.plan.vocab_size, self.job.max_model_len
            shared.samples[text] = read_sample(graph, self.checkpoint, self.text.tokenizer, *sizes)
        sample = shared.samples[text]
        if self._here:
            self._sample = sample
        elif sample is not None:
            if self.contract not in shared.cards:
                shared.cards[self.contract] = sample.beside_weights(graph, self._stored_weights())
            self.writer.add(QUALITY_NAME, encode_quality(shared.cards[self.contract]))

    def finish(self) -> Path:
        """The finished file runs against its self-test, where it has one and this machine can, before it becomes visible."""
        self.writer.finish(self._manifest(), prove=self._prover())
        self.shared.packs[self.contract] = self.job.output
        return self.job.output

    def _manifest(self) -> Manifest:
        job, shown = self.job, bool(self._emulated())
        here = self._here
        codes = [
            code_record(
                built,
                job.target,
                self._proof,
                self._layers.get(built.target.variant, ""),
                proved=bool(self._layers) and (shown or built.target.variant in here),
            )
            for built in self.builds
        ]
        return make_manifest(
            self.plan,
            job.options,
            job.target,
            _model_record(job, self.plan),
            self.text.record,
            program_record(self.plan, bool(self._layers), self._has_constants),
            codes,
            job.tuning,
            source_sha256=self.checkpoint.digest(),
            has_text=bool(self.text.tokenizer),
            traced_by=tracer(job.config) if isinstance(job.config, TracedConfig) else "",
            unused=self.checkpoint.unused,
            calibrated=self.calibrated,
        )

    def _stored_weights(self) -> StoredWeights:
        """The weights of the unfinished pack, mapped until nothing refers to them."""
        path, start = self.writer.written("weights")
        with path.open("rb") as file:
            return StoredWeights(self.plan.tensors, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), start)

    @property
    def _here(self) -> list[str]:
        """The variants of the code that this machine can run, in their order."""
        return [built.target.variant for built in self.builds if runs_here(self.job.target.arch, built.target.requires)]

    def _prover(self) -> Callable[[Path], dict[str, bytes]] | None:
        """The check of the finished, still hidden file; None when there is nothing to check or this machine cannot run it.

        Of packs whose kernels, launches and weights are the same to the letter, one runs whole in emulation.
        """
        emulated = self._emulated()
        if not self._layers or emulated in self.shared.ran or not (emulated or self._here):
            return None
        if emulated:
            self.shared.ran.add(emulated)
        return self._proved

    def _proved(self, path: Path) -> dict[str, bytes]:
        """The members that only a finished pack can make."""
        here = self._here or [self.builds[0].target.variant]
        for variant in here:
            prove(path, variant)
        return {QUALITY_NAME: encode_quality(self._sample.beside_code(path, here[0]))} if self._sample else {}

    def _emulated(self) -> tuple[str, ...]:
        """All that a run in emulation depends on; nothing where the pack is not emulated."""
        target, plan = self.job.target, self.plan
        if not isinstance(target, GpuTarget) or not emulates(target.device, count_parameters(plan)):
            return ()
        kernels = (kernel_source(kernel, target) for kernel in plan.kernels)
        return self.contract, encode_table(plan.table).decode(), common_source(target), *kernels


def _manifest_room(builds: Sequence[Built]) -> int:
    """Bytes kept for the manifest: it grows with the number of tensors and kernels."""
    kernels = sum(len(built.plan.kernels) for built in builds)
    return -(-(64 * 1024 + 400 * len(builds[0].plan.tensors) + 4096 * kernels) // 16384) * 16384


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
        quant=kept_formats(made.graph) if options.quant == KEEP else options.quant,
    )
