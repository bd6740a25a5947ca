"""From calls to a launch table: where values live in the arena, what each launch gets, where barriers are, where weights lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from ferrum.codegen.kernels.base import Kernel, distinct
from ferrum.codegen.kernels.cpu import CpuKernel
from ferrum.codegen.kernels.gpu import GpuKernel
from ferrum.codegen.kernels.paged_attention import PagedAttention
from ferrum.codegen.kernels.recur import Recur
from ferrum.codegen.kv import Kept, kept_by_layer
from ferrum.codegen.layouts import parse_layout
from ferrum.codegen.target import GpuTarget, Target
from ferrum.codegen.views import row_dims
from ferrum.codegen.walk import Call, Variant
from ferrum.graphs.ir import Graph
from ferrum.pack import launches
from ferrum.pack.launches import LAUNCHES_VERSION, Arg, Launch, LaunchTable, Rows, SlotArg, Term, ThreadBlocks, Threads
from ferrum.pack.schema import TENSOR_ALIGNMENT


@dataclass(frozen=True)
class Tensor:
    """Where a parameter is stored in the member ``weights``."""

    name: str
    shape: tuple[int, ...]
    format: str
    layout: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class LayerKv:
    """The part of a KV block that a layer has; layers may differ. ``offset``: bytes of the layers of its group before it."""

    kept: Kept
    head_bytes: int
    offset: int

    @property
    def nbytes(self) -> int:
        return self.kept.heads * self.head_bytes


@dataclass(frozen=True)
class KvPlan:
    """The cache, by layer in the order of the step."""

    layers: dict[int, LayerKv]
    dtype: str

    @property
    def groups(self) -> list[list[LayerKv]]:
        """The layers of each group of blocks; the first, of what no query passes, may have none."""
        found: list[list[LayerKv]] = [[]]
        for layer in self.layers.values():
            found += [[] for _ in range(layer.kept.group + 1 - len(found))]
            found[layer.kept.group].append(layer)
        return found


@dataclass(frozen=True)
class Plan:
    """Everything the renderer and the manifest need; ``table`` is without contract and code until there is code.

    ``launched``: the call and the kernel of each launch of the table. ``width``: numbers of a row of the first output, logits or
    an embedding.
    """

    kernels: list[Kernel]
    calls: list[Call]
    table: LaunchTable
    launched: list[tuple[Call, Kernel]]
    tensors: list[Tensor]
    kv: KvPlan
    vocab_size: int
    width: int
    graph: Graph = field(repr=False)


def plan(graph: Graph, calls: list[Call], target: Target | GpuTarget, kv_dtype: str) -> Plan:
    """Lay out weights and arena and build the launch table."""
    tensors = place_tensors(graph)
    kv = plan_kv(graph, calls, kv_dtype)
    planner = _Planner(graph.outputs, calls, {t.name: t.offset for t in tensors}, kv, target)
    table, launched = planner.table()
    kernels = distinct(v.kernel for call in calls for v in call.variants)
    width = math.prod(row_dims(graph.values()[graph.outputs[0]].shape))
    return Plan(kernels, calls, table, launched, tensors, kv, vocabulary(graph), width, graph)


def vocabulary(graph: Graph) -> int:
    """How many ids there are for a token: those that have a logit; where none is drawn, the rows of the table of the tokens."""
    if (drawn := next((node for node in graph.nodes if node.op == "sample"), None)) is not None:
        count = graph.values()[drawn.inputs[0]].shape[1]
        assert isinstance(count, int)
        return count
    tables = (node.inputs[1] for node in graph.nodes if node.op == "embedding" and node.inputs[0] == "tokens")
    return next((graph.param(name).shape[0] for name in tables), 0)


def align(n: int, to: int = 64) -> int:
    return -(-n // to) * to


def thread_bytes(kernels: Iterable[Kernel]) -> int:
    """Scratch memory of a CPU thread."""
    return align(max((k.thread_bytes for k in kernels if isinstance(k, CpuKernel)), default=0), 4096)


def plan_kv(graph: Graph, calls: list[Call], dtype: str) -> KvPlan:
    """What each layer keeps, as the graph declares it, and the bytes that its attention kernels make of that."""
    kept = kept_by_layer(graph)
    head_bytes = {call.layer: call.kernel.head_bytes for call in calls if isinstance(call.kernel, PagedAttention | Recur)}
    layers: dict[int, LayerKv] = {}
    ends: dict[int, int] = {}
    for layer, of in kept.items():
        layers[layer] = LayerKv(of, head_bytes[layer], ends.get(of.group, 0))
        ends[of.group] = layers[layer].offset + layers[layer].nbytes
    return KvPlan(layers, dtype)


def gpu_kernels(plan: Plan) -> list[GpuKernel]:
    return [kernel for kernel in plan.kernels if isinstance(kernel, GpuKernel)]


def place_tensors(graph: Graph) -> list[Tensor]:
    """Weights in the order in which a step reads them, so that a step is one forward sweep through the file."""
    order: dict[str, None] = {}
    for node in graph.nodes:
        for name in node.inputs:
            order.setdefault(name, None)
    params = {p.name: p for p in graph.params}
    tensors, at = [], 0
    for name in order:
        if name not in params:
            continue
        param = params[name]
        nbytes = parse_layout(param.layout, param.format, param.shape).nbytes
        tensors.append(Tensor(name, param.shape, param.format, param.layout, at, nbytes))
        at += align(nbytes, TENSOR_ALIGNMENT)
    return tensors


@dataclass
class _Place:
    """A slot under construction: the largest row that lies in it, and the last call that needs it."""

    rows: Rows
    row_bytes: int
    free_after: int


class _Planner:
    """``outputs``: of the graph; those that lie in the arena are read after the step, the first of them through ``logits_slot``.

    ``fenced``: of each call, whether all threads have ended it before any starts the next.
    """

    def __init__(
        self, outputs: Sequence[str], calls: list[Call], offsets: dict[str, int], kv: KvPlan, target: Target | GpuTarget
    ) -> None:
        self.outputs, self.calls, self.offsets, self.kv = outputs, calls, offsets, kv
        self.early = isinstance(target, GpuTarget) and target.has_early_start
        self.private = _private(calls) if isinstance(target, Target) else set()
        self.cpu = isinstance(target, Target)
        shared = _read_shared(calls)
        self.fenced = [call.output not in self.private or call.output in shared for call in calls]
        self.last = self._last_uses()
        self.slots: list[_Place] = []
        self.place: dict[str, int] = {}

    def table(self) -> tuple[LaunchTable, list[tuple[Call, Kernel]]]:
        for i, call in enumerate(self.calls):
            if call.output:
                self._allot(i, call)
        self.scratch = _scratch(self.calls)
        slots = [launches.Slot(bytes=[Term(s.rows, s.row_bytes)]) for s in self.slots]
        made = [
            (call, variant.kernel, launch)
            for i, call in enumerate(self.calls)
            for variant in call.variants
            for launch in self._launches(i, variant)
        ]
        table = LaunchTable(
            version=LAUNCHES_VERSION,
            contract="",
            code="",
            slots=[*slots, *self.scratch.values()],
            launches=[launch for _, _, launch in made],
            logits_slot=self.place[self.outputs[0]],
        )
        return table, [(call, kernel) for call, kernel, _ in made]

    def _last_uses(self) -> dict[str, int]:
        """Index of the last call during which each value must stay.

        After a call that is not fenced, slow threads may still read its inputs until the next one that is.
        """
        last: dict[str, int] = {}
        following = len(self.calls) - 1
        for i in reversed(range(len(self.calls))):
            if self.fenced[i]:
                following = i
            for name in (*self.calls[i].inputs, self.calls[i].output):
                last.setdefault(name, following)
        return last | {name: len(self.calls) for name in self.outputs}

    def _unfenced(self, i: int) -> set[str]:
        """Values that a slow thread may still read when call ``i`` starts: inputs since the last fence."""
        names: set[str] = set()
        while i and not self.fenced[i - 1]:
            i -= 1
            names.update(self.calls[i].inputs)
        return names

    def _allot(self, i: int, call: Call) -> None:
        replaced = call.inputs[int(call.kernel.in_place[6:])] if call.kernel.in_place else ""
        if replaced and self.last[replaced] <= i and replaced not in self._unfenced(i):
            self.place[call.output] = self.place[replaced]
            self.slots[self.place[replaced]].free_after = self.last[call.output]
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

    def _launches(self, i: int, variant: Variant) -> list[Launch]:
        call, kernel = self.calls[i], variant.kernel
        if self.cpu:
            assert isinstance(kernel, CpuKernel)
            private = [at for at, name in enumerate(kernel.args) if self._is_private(call, kernel, name)]
            parts = [(suffix, "always" if sync == "shared" and self.fenced[i] else sync) for suffix, sync in kernel.parts]
            return [
                make_launch(kernel, self._bind(call), cpu_work(call.rows), Threads(private=private, sync=sync), suffix)
                for suffix, sync in parts
            ]
        assert isinstance(kernel, GpuKernel)
        geometry = kernel.geometry(call.rows)
        on = ThreadBlocks(block=list(geometry.block), shared=geometry.shared, early=self.early)
        launch = make_launch(kernel, self._bind(call), [list(axis) for axis in geometry.grid], on)
        return [
            replace(
                launch,
                phase=variant.phase,
                class_rows=variant.class_rows,
                min_rows=variant.fewest,
                max_rows=variant.most,
            )
        ]

    def _is_private(self, call: Call, kernel: CpuKernel, name: str) -> bool:
        if name == "result":
            return call.output in self.private
        return name == "value:0" and kernel.reads_private and call.inputs[0] in self.private

    def _bind(self, call: Call) -> Callable[[str], Arg]:
        """What a kernel's argument is in a call."""

        def bind(name: str) -> Arg:
            kind, _, what = name.partition(":")
            match kind:
                case "value":
                    return SlotArg(self.place[call.inputs[int(what)]])
                case "weight":
                    return launches.WeightsArg(self.offsets[call.params[int(what)]])
                case "result":
                    return SlotArg(self.place[call.output])
                case "scratch":
                    return SlotArg(len(self.slots) + list(self.scratch).index(what))
                case "state":
                    layer = self.kv.layers[call.layer]
                    return launches.StateArg(layer.offset, layer.kept.group)
                case "table":
                    return launches.TableArg(int(what))
                case "limit" if what == "blocks_per_seq":
                    return launches.LimitArg("blocks_per_seq", len(self.kv.groups))
            return step_arg(name, call.rows)

        return bind


def step_arg(name: str, rows: Rows) -> Arg:
    """A kernel's argument that is the same in every call on ``rows``."""
    kind, _, what = name.partition(":")
    match kind:
        case "count":
            return launches.InputArg(f"num_{rows}")
        case "input":
            return launches.InputArg(what)
        case "output":
            return launches.OutputArg(what)
        case "limit":
            return launches.LimitArg(what)  # type: ignore[arg-type]
    raise AssertionError(name)


def make_launch(
    kernel: Kernel, bind: Callable[[str], Arg], work: list[list[Term]], on: ThreadBlocks | Threads, suffix: str = ""
) -> Launch:
    """A launch of ``kernel``, or of the part of it that ``suffix`` names; ``bind`` says what each of its arguments is."""
    return Launch(symbol=f"{kernel.symbol}{suffix}", work=work, args=[bind(name) for name in kernel.args], on=on)


def cpu_work(rows: Rows) -> list[list[Term]]:
    return [[Term(rows, 1)]]


def _private(calls: list[Call]) -> set[str]:
    """Values that every thread of a CPU computes for itself when rows are few."""
    return {call.output for call in calls if isinstance(call.kernel, CpuKernel) and call.kernel.row_wise}


def _read_shared(calls: list[Call]) -> set[str]:
    """Values that some kernel for CPUs reads where all threads have them in common."""
    names: set[str] = set()
    for call in calls:
        kernel = call.kernel
        names.update(call.inputs[1:] if isinstance(kernel, CpuKernel) and kernel.reads_private else call.inputs)
    return names


def _scratch(calls: list[Call]) -> dict[str, launches.Slot]:
    """One slot for each name: launches follow each other, so all kernels may share it. Terms of equal rows: the largest."""
    found: dict[str, dict[tuple[Rows, int], int]] = {}
    zero: dict[str, bool] = {}
    for kernel in (v.kernel for call in calls for v in call.variants):
        for name, scratch in kernel.scratch().items() if isinstance(kernel, GpuKernel) else ():
            terms = found.setdefault(name, {})
            for term in scratch.terms:
                terms[term.rows, term.per] = max(term.times, terms.get((term.rows, term.per), 0))
            zero[name] = scratch.zero
    return {
        name: launches.Slot(bytes=[Term(rows, times, per) for (rows, per), times in terms.items()], zero=zero[name])
        for name, terms in found.items()
    }
