"""What differs between kinds of machine, for the driver: policy, selection, plan, rendering, code. One backend per target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ferrum.codegen import manifest, plan, plan_gpu, render, select, select_gpu
from ferrum.codegen.kernels.base import Kernel
from ferrum.codegen.kernels.linear import Blocking
from ferrum.codegen.layer_points import cpu_points, gpu_points
from ferrum.codegen.static import static_record
from ferrum.codegen.target import GpuTarget, Target
from ferrum.codegen.toolchains.cxx import find_compiler
from ferrum.codegen.toolchains.gpu import find_gpu_toolchain
from ferrum.errors import FerrumError
from ferrum.graphs.ir import Graph
from ferrum.graphs.passes.layout import LayoutPolicy
from ferrum.pack.launches import LAUNCHES_NAME, encode_table
from ferrum.pack.layers import LayerPoint
from ferrum.pack.schema import KernelRecord, MemoryRecord
from ferrum.pack.static import STATIC_NAME


class AnyCall(Protocol):
    """A node on a machine, as the dump of the stage ``select`` shows it."""

    @property
    def kernel(self) -> Kernel: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def output(self) -> str: ...
    @property
    def params(self) -> tuple[str, ...]: ...


class AnyPlan(Protocol):
    """What the driver and the manifest read of a plan, whatever the machine."""

    @property
    def kernels(self) -> Sequence[Kernel]: ...
    @property
    def tensors(self) -> list[plan.Tensor]: ...
    @property
    def kv(self) -> plan.KvPlan: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def graph(self) -> Graph: ...


@dataclass(frozen=True)
class Code:
    """Members of the pack that hold code and what belongs to it, in order; which a device opens; the compiler's version."""

    members: Mapping[str, bytes]
    entry: str
    toolchain: str

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.members.values()))


class Backend(Protocol):
    """The machine stages of one target. ``suffix`` is that of a rendered source; ``plan_dump`` is all of a plan, ``plan_json``
    what of it a pack has as a member of its own."""

    @property
    def suffix(self) -> str: ...
    def policy(self) -> LayoutPolicy: ...
    def select(self, graph: Graph) -> Sequence[AnyCall]: ...
    def plan(self, graph: Graph, calls: Sequence[AnyCall]) -> AnyPlan: ...
    def plan_json(self, made: AnyPlan) -> bytes: ...
    def plan_dump(self, made: AnyPlan) -> bytes: ...
    def render(self, made: AnyPlan, contract: str) -> str: ...
    def build(self, made: AnyPlan, source: str, contract: str, keep: Path | None) -> Code: ...
    def memory(self, made: AnyPlan) -> MemoryRecord: ...
    def kernels(self, made: AnyPlan) -> list[KernelRecord]: ...
    def points(self, made: AnyPlan) -> dict[str, LayerPoint]: ...


@dataclass(frozen=True)
class CpuBackend:
    """One C source, one shared object."""

    target: Target
    quant: str
    kv_dtype: str
    tuned: Mapping[str, Blocking] = field(default_factory=dict)
    suffix: str = "c"

    def policy(self) -> LayoutPolicy:
        return select.CpuLayoutPolicy(self.target, self.quant, self.tuned)

    def select(self, graph: Graph) -> Sequence[AnyCall]:
        return select.select(graph, self.target, self.kv_dtype, self.tuned)

    def plan(self, graph: Graph, calls: Sequence[AnyCall]) -> AnyPlan:
        return plan.plan(graph, [c for c in calls if isinstance(c, select.Call)])

    def plan_json(self, made: AnyPlan) -> bytes:
        return manifest.plan_json(_cpu(made))

    def plan_dump(self, made: AnyPlan) -> bytes:
        return self.plan_json(made)

    def render(self, made: AnyPlan, contract: str) -> str:
        return render.render_step(_cpu(made), self.target, contract)

    def build(self, made: AnyPlan, source: str, contract: str, keep: Path | None) -> Code:
        toolchain = find_compiler(self.target.arch)
        code = toolchain.compile(source, self.target, keep)
        return Code({"code/step.so": code, "code/step.c": source.encode()}, "code/step.so", toolchain.version)

    def memory(self, made: AnyPlan) -> MemoryRecord:
        return manifest.memory_record(_cpu(made))

    def kernels(self, made: AnyPlan) -> list[KernelRecord]:
        return manifest.kernel_records(_cpu(made))

    def points(self, made: AnyPlan) -> dict[str, LayerPoint]:
        return cpu_points(_cpu(made))


@dataclass(frozen=True)
class GpuBackend:
    """One source with all kernels, the machine code where it can be made here, a table of launches."""

    target: GpuTarget
    quant: str

    @property
    def suffix(self) -> str:
        return "cu" if self.target.device == "cuda" else "metal"

    def policy(self) -> LayoutPolicy:
        return select_gpu.GpuLayoutPolicy(self.quant)

    def select(self, graph: Graph) -> Sequence[AnyCall]:
        return select_gpu.select_gpu(graph, self.target, self.quant)

    def plan(self, graph: Graph, calls: Sequence[AnyCall]) -> AnyPlan:
        chosen = [c for c in calls if isinstance(c, select_gpu.GpuCall)]
        return plan_gpu.plan_gpu(graph, chosen, self.target, self.quant)

    def plan_json(self, made: AnyPlan) -> bytes:
        return manifest.gpu_plan_json(_gpu(made))

    def plan_dump(self, made: AnyPlan) -> bytes:
        return manifest.gpu_plan_dump(_gpu(made))

    def render(self, made: AnyPlan, contract: str) -> str:
        return render.render_kernels(made.graph.name, _gpu(made).kernels, self.target, contract)

    def build(self, made: AnyPlan, source: str, contract: str, keep: Path | None) -> Code:
        toolchain = find_gpu_toolchain(self.target)
        code = toolchain.compile(source, self.target, keep)
        name = toolchain.member
        members = {name: code} | {f"code/step.{self.suffix}": source.encode()}
        members[LAUNCHES_NAME] = encode_table(plan_gpu.finished_table(_gpu(made), contract, name))
        if record := static_record(code, _gpu(made), self.target):
            members[STATIC_NAME] = record
        return Code(members, LAUNCHES_NAME, toolchain.version)

    def memory(self, made: AnyPlan) -> MemoryRecord:
        return plan_gpu.gpu_memory(_gpu(made))

    def kernels(self, made: AnyPlan) -> list[KernelRecord]:
        return manifest.gpu_kernel_records(_gpu(made))

    def points(self, made: AnyPlan) -> dict[str, LayerPoint]:
        return gpu_points(_gpu(made))


def _cpu(made: AnyPlan) -> plan.Plan:
    assert isinstance(made, plan.Plan)
    return made


def _gpu(made: AnyPlan) -> plan_gpu.GpuPlan:
    assert isinstance(made, plan_gpu.GpuPlan)
    return made


def backend_of(target: Target | GpuTarget, quant: str, kv_dtype: str, tuned: Mapping[str, Blocking]) -> Backend:
    """Raises FerrumError for a format of weights or of the cache that the target has no kernels for."""
    if isinstance(target, Target):
        if quant == "fp8":
            what = f"{target.name} has no kernels for weights in fp8"
            raise FerrumError("bad-option", what, "--quant", "use int8, or a cuda or metal target")
        return CpuBackend(target, quant, kv_dtype, tuned)
    if kv_dtype not in ("bf16", "f32"):
        what = f"{target.name} has no kernels for a cache in {kv_dtype}"
        raise FerrumError("bad-option", what, "--kv-dtype", "leave it out, or use bf16")
    return GpuBackend(target, quant)
