"""The machine stages of a target, for the driver: policy, selection, plan, rendering, code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from ferrum.codegen.kernels.linear.cpu import Blocking
from ferrum.codegen.plan import Plan, gpu_kernels, plan
from ferrum.codegen.policy import TargetPolicy
from ferrum.codegen.render import SUFFIXES, render_kernels, render_step
from ferrum.codegen.select import select
from ferrum.codegen.static import static_record
from ferrum.codegen.target import GpuTarget, Target
from ferrum.codegen.toolchains.cxx import find_compiler
from ferrum.codegen.toolchains.gpu import find_gpu_toolchain
from ferrum.codegen.walk import Call
from ferrum.errors import FerrumError
from ferrum.graphs.ir import Graph
from ferrum.graphs.passes.layout import LayoutPolicy
from ferrum.pack.launches import LAUNCHES_NAME, encode_table
from ferrum.pack.static import STATIC_NAME


@dataclass(frozen=True)
class Code:
    """Members of the pack that hold code and what belongs to it, in order; which a device opens and which has the launches; the
    compiler's version."""

    members: Mapping[str, bytes]
    entry: str
    launches: str
    toolchain: str

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.members.values()))


@dataclass(frozen=True)
class Built:
    """The plan and the code of one target: all of a pack's, or a variant."""

    target: Target | GpuTarget
    plan: Plan
    code: Code


def member_of(target: Target | GpuTarget, name: str) -> str:
    """What a member is called that each variant of the code has of its own."""
    folder, _, last = name.rpartition("/")
    return name if target.variant == "main" else f"{folder}/{target.variant}/{last}"


@dataclass(frozen=True)
class Backend:
    """The machine stages of one target. ``suffix`` is that of a rendered source."""

    target: Target | GpuTarget
    quant: str
    kv_dtype: str
    tuned: Mapping[str, Blocking] = field(default_factory=dict)
    activations: str = "auto"

    @property
    def suffix(self) -> str:
        return SUFFIXES[self.target.device]

    def policy(self) -> LayoutPolicy:
        return TargetPolicy(self.target, self.quant, self.tuned, self.activations)

    def select(self, graph: Graph) -> list[Call]:
        return select(graph, self.target, self.kv_dtype, self.tuned, self.activations)

    def plan(self, graph: Graph, calls: list[Call]) -> Plan:
        return plan(graph, calls, self.target, self.kv_dtype)

    def render(self, made: Plan, contract: str) -> str:
        if isinstance(self.target, Target):
            return render_step(made, self.target, contract)
        return render_kernels(made.graph.name, gpu_kernels(made), self.target, contract)

    def build(self, made: Plan, source: str, contract: str, keep: Path | None) -> Code:
        """The code's members: what runs, its source, the table of launches and what is known of the machine code."""
        if isinstance(self.target, Target):
            compiler, name = find_compiler(self.target.arch, self.target.amx), member_of(self.target, "code/step.so")
            code, version = compiler.compile(source, self.target, keep), compiler.version
        else:
            toolchain = find_gpu_toolchain(self.target)
            name, code, version = toolchain.member, toolchain.compile(source, self.target, keep), toolchain.version
        launches = member_of(self.target, LAUNCHES_NAME)
        members = {name: code, member_of(self.target, f"code/step.{self.suffix}"): source.encode()}
        members[launches] = encode_table(replace(made.table, contract=contract, code=name))
        if isinstance(self.target, GpuTarget) and (record := static_record(code, made, self.target)):
            members[STATIC_NAME] = record
        return Code(members, name if isinstance(self.target, Target) else launches, launches, version)


def backend_of(
    target: Target | GpuTarget, quant: str, kv_dtype: str, tuned: Mapping[str, Blocking], activations: str = "auto"
) -> Backend:
    """Raises FerrumError for a format of weights, activations or the cache that the target has no kernels for."""
    if isinstance(target, Target):
        if quant == "fp8":
            what = f"{target.name} has no kernels for weights in fp8"
            raise FerrumError("bad-option", what, "--quant", "use int8, or a cuda or metal target")
        return Backend(target, quant, kv_dtype, tuned, activations)
    if activations == "f32" and quant != "f32":
        what = f"{target.name} multiplies matrices with activations in bf16 only"
        raise FerrumError("bad-option", what, "--activations", "leave it out, or use a cpu target")
    if kv_dtype not in ("bf16", "f32"):
        what = f"{target.name} has no kernels for a cache in {kv_dtype}"
        raise FerrumError("bad-option", what, "--kv-dtype", "leave it out, or use bf16")
    return Backend(target, quant, kv_dtype)
