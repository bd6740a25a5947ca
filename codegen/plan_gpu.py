"""From calls to a launch table: where values live in the arena, what each launch gets, where weights lie."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from ferrum.codegen.kernels.base import distinct
from ferrum.codegen.kernels.gpu_base import GpuKernel
from ferrum.codegen.kernels.gpu_sample import GpuSample
from ferrum.codegen.plan import KvPlan, Tensor, place_tensors
from ferrum.codegen.select_gpu import GpuCall, GpuSelector, Variant
from ferrum.codegen.target import GpuTarget
from ferrum.graphs.ir import Graph
from ferrum.pack import launches
from ferrum.pack.launches import ALIGNMENT, LAUNCHES_VERSION, Arg, LaunchTable, Rows, Term
from ferrum.pack.schema import MemoryRecord


@dataclass
class _Place:
    """A slot under construction: the largest row that lies in it, and the last call that needs it."""

    rows: Rows
    row_bytes: int
    free_after: int


@dataclass(frozen=True)
class GpuPlan:
    """Everything the renderer and the manifest need; ``table`` is without contract and code until there is code."""

    kernels: list[GpuKernel]
    calls: list[GpuCall]
    table: LaunchTable
    tensors: list[Tensor]
    kv: KvPlan
    vocab_size: int
    graph: Graph = field(repr=False)


def plan_gpu(graph: Graph, calls: list[GpuCall], target: GpuTarget, quant: str) -> GpuPlan:
    """Lay out weights and arena and build the launch table."""
    tensors = place_tensors(graph)
    selector = GpuSelector(graph, target, quant)
    sample = calls[-1].kernel
    assert isinstance(sample, GpuSample)
    kv = next(n.attrs for n in graph.nodes if n.op == "paged_attention")
    layers = sum(n.op == "paged_attention" for n in graph.nodes)
    heads, dim = int(kv["num_kv_heads"]), int(kv["head_dim"])  # type: ignore[arg-type]
    return GpuPlan(
        kernels=distinct(v.kernel for call in calls for v in call.variants),  # type: ignore[arg-type]
        calls=calls,
        table=_Planner(graph, calls, {t.name: t.offset for t in tensors}, selector.layer_bytes, target.has_early_start).table(),
        tensors=tensors,
        kv=KvPlan(layers, heads, dim, selector.kv_dtype, selector.layer_bytes),
        vocab_size=sample.vocab_size,
        graph=graph,
    )


def finished_table(plan: GpuPlan, contract: str, code: str) -> LaunchTable:
    """The launch table of a pack whose member ``code`` holds the kernels."""
    return msgspec.structs.replace(plan.table, contract=contract, code=code)


class _Planner:
    def __init__(self, graph: Graph, calls: list[GpuCall], offsets: dict[str, int], layer_bytes: int, early: bool) -> None:
        self.calls, self.offsets, self.layer_bytes, self.early = calls, offsets, layer_bytes, early
        self.logits = graph.outputs[0]
        self.last = _last_uses(calls, self.logits)
        self.slots: list[_Place] = []
        self.place: dict[str, int] = {}

    def table(self) -> LaunchTable:
        for i, call in enumerate(self.calls):
            self._allot(i, call)
        scratch = _scratch(self.calls)
        names = {name: len(self.slots) + i for i, name in enumerate(scratch)}
        slots = [launches.Slot(bytes=[Term(s.rows, s.row_bytes)]) for s in self.slots]
        launched = [self._launch(call, variant, names) for call in self.calls for variant in call.variants]
        return LaunchTable(
            version=LAUNCHES_VERSION,
            contract="",
            code="",
            slots=[*slots, *scratch.values()],
            launches=launched,
            logits_slot=self.place[self.logits],
        )

    def _allot(self, i: int, call: GpuCall) -> None:
        if not call.output:
            return
        residual = call.inputs[1] if "value:1" in call.kernel.args and getattr(call.kernel, "residual", False) else ""
        if residual and self.last[residual] <= i:
            # the sum takes the place of what it is added to: each value is read and written by the same thread
            self.place[call.output] = self.place[residual]
            self.slots[self.place[residual]].free_after = self.last[call.output]
        else:
            self.place[call.output] = self._take(call.rows, call.row_bytes, i, self.last[call.output])

    def _take(self, rows: Rows, row_bytes: int, now: int, until: int) -> int:
        """A free slot of the same kind, grown if needed (the one nearest in size), or a new one."""
        free = [i for i, s in enumerate(self.slots) if s.rows == rows and s.free_after < now]
        if free:
            best = min(free, key=lambda i: (max(0, row_bytes - self.slots[i].row_bytes), self.slots[i].row_bytes))
            self.slots[best] = _Place(rows, max(row_bytes, self.slots[best].row_bytes), until)
            return best
        self.slots.append(_Place(rows, row_bytes, until))
        return len(self.slots) - 1

    def _launch(self, call: GpuCall, variant: Variant, scratch: dict[str, int]) -> launches.Launch:
        geometry = variant.kernel.geometry(call.rows)
        return launches.Launch(
            symbol=variant.kernel.symbol,
            grid=[list(axis) for axis in geometry.grid],
            block=list(geometry.block),
            shared=geometry.shared,
            args=[self._arg(name, call, scratch) for name in variant.kernel.args],
            phase=variant.phase,
            class_rows=variant.class_rows,
            min_rows=variant.fewest,
            max_rows=variant.most,
            early=self.early,
        )

    def _arg(self, name: str, call: GpuCall, scratch: dict[str, int]) -> Arg:
        kind, _, what = name.partition(":")
        match kind:
            case "count":
                return launches.InputArg(f"num_{call.rows}")
            case "input":
                return launches.InputArg(what)
            case "output":
                return launches.OutputArg(what)
            case "value":
                return launches.SlotArg(self.place[call.inputs[int(what)]])
            case "weight":
                return launches.WeightsArg(self.offsets[call.params[int(what)]])
            case "result":
                return launches.SlotArg(self.place[call.output])
            case "scratch":
                return launches.SlotArg(scratch[what])
            case "kv":
                return launches.KvArg(call.layer * self.layer_bytes)
            case "limit":
                return launches.LimitArg(what)  # type: ignore[arg-type]
        raise AssertionError(name)


def _last_uses(calls: list[GpuCall], logits: str) -> dict[str, int]:
    """Index of the last call that needs each value; logits are read after the step."""
    last: dict[str, int] = {}
    for i, call in enumerate(calls):
        for name in (*call.inputs, call.output):
            last[name] = i
    return last | {logits: len(calls)}


def _scratch(calls: list[GpuCall]) -> dict[str, launches.Slot]:
    """One slot for each name: launches follow each other, so all kernels may share it. Terms of equal rows: the largest."""
    found: dict[str, dict[tuple[Rows, int], int]] = {}
    zero: dict[str, bool] = {}
    for call in calls:
        for variant in call.variants:
            for name, scratch in variant.kernel.scratch().items():
                terms = found.setdefault(name, {})
                for term in scratch.terms:
                    terms[term.rows, term.per] = max(term.times, terms.get((term.rows, term.per), 0))
                zero[name] = scratch.zero
    return {
        name: launches.Slot(bytes=[Term(rows, times, per) for (rows, per), times in terms.items()], zero=zero[name])
        for name, terms in found.items()
    }


def gpu_memory(plan: GpuPlan) -> MemoryRecord:
    """The arena as a formula: bytes that grow with sequences count as samples, of which a sequence has one."""
    terms = [term for slot in plan.table.slots for term in slot.bytes]

    def rate(*rows: Rows) -> int:
        return sum(-(-t.times // t.per) for t in terms if t.rows in rows)

    return MemoryRecord(
        fixed=rate("one") + ALIGNMENT * len(plan.table.slots),
        per_token=rate("tokens"),
        per_sample=rate("samples", "seqs"),
        per_thread=0,
    )
