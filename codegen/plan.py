"""From calls to a plan: where values live in the arena, which barriers are needed, where weights lie."""

from __future__ import annotations

from dataclasses import dataclass, field

from ferrum.codegen.kernels.base import Kernel, distinct
from ferrum.codegen.kernels.linear import Linear
from ferrum.codegen.kernels.paged_attention import PagedAttention
from ferrum.codegen.layouts import parse_layout
from ferrum.codegen.select import Call
from ferrum.graphs.ir import Graph
from ferrum.pack.schema import TENSOR_ALIGNMENT

REPLICATE_ROWS = 8
SYNC_ALWAYS, SYNC_IF_SHARED, SYNC_IF_PREFILL = 0, 1, 2


@dataclass(frozen=True)
class Tensor:
    """Where a parameter is stored in the member ``weights``."""

    name: str
    shape: tuple[int, ...]
    format: str
    layout: str
    offset: int
    nbytes: int


@dataclass
class Slot:
    """A piece of the arena: ``row_bytes`` for each of the step's tokens (rows 0) or samples (rows 1)."""

    rows: int
    row_bytes: int
    free_after: int


@dataclass(frozen=True)
class Launch:
    """A row of the generated launch table."""

    symbol: str
    rows: int
    input: int
    in_private: int
    output: int
    residual: int
    layer: int
    sync: int
    weights: tuple[int, int, int]


@dataclass(frozen=True)
class KvPlan:
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    layer_block_bytes: int

    @property
    def bytes_per_block(self) -> int:
        return self.num_layers * self.layer_block_bytes


@dataclass(frozen=True)
class Plan:
    """Everything the renderer and the manifest need."""

    kernels: list[Kernel]
    calls: list[Call]
    launches: list[Launch]
    slots: list[Slot]
    tensors: list[Tensor]
    kv: KvPlan
    vocab_size: int
    logits_slot: int
    scratch_bytes: int
    tile_tokens: int
    graph: Graph = field(repr=False)


def plan(graph: Graph, calls: list[Call]) -> Plan:
    """Lay out weights and arena and build the launch table."""
    tensors = place_tensors(graph)
    kernels = distinct(call.kernel for call in calls)
    attention = [k for k in kernels if isinstance(k, PagedAttention)]
    logits = next(c for c in calls if c.output == graph.outputs[0])
    assert isinstance(logits.kernel, Linear)
    vocab = logits.kernel.n
    launches, slots, logits_slot = _launch(calls, {t.name: t.offset for t in tensors}, graph.outputs[0])
    panel = max((k.panel_bytes for k in kernels if isinstance(k, Linear)), default=0)
    return Plan(
        kernels=kernels,
        calls=calls,
        launches=launches,
        slots=slots,
        tensors=tensors,
        kv=_plan_kv(calls),
        vocab_size=vocab,
        logits_slot=logits_slot,
        scratch_bytes=_align(max(panel, 4 * _align(vocab) + 8 * vocab), 4096),
        tile_tokens=min((k.tile_tokens for k in attention), default=1),
        graph=graph,
    )


def _align(n: int, to: int = 64) -> int:
    return -(-n // to) * to


def _plan_kv(calls: list[Call]) -> KvPlan:
    """All layers share one block geometry: the largest head count and head size among them."""
    kernels = [c.kernel for c in calls if isinstance(c.kernel, PagedAttention)]
    assert len({(k.num_kv_heads, k.head_bytes) for k in kernels}) <= 1, "layers differ in their KV geometry"
    first = kernels[0]
    return KvPlan(len(kernels), first.num_kv_heads, first.head_dim, first.kv_dtype, first.num_kv_heads * first.head_bytes)


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
        at += _align(nbytes, TENSOR_ALIGNMENT)
    return tensors


def _sync_of(call: Call) -> int:
    return SYNC_IF_SHARED if call.kernel.row_wise else SYNC_ALWAYS


def _last_uses(calls: list[Call], outputs: tuple[str, ...]) -> dict[str, int]:
    """Index of the last call during which each value must stay.

    After a replicated row-wise call there may be no barrier, so its inputs must outlive the next call that has one.
    """
    barrier_after = [0] * len(calls)
    following = len(calls) - 1
    for i in reversed(range(len(calls))):
        if _sync_of(calls[i]) == SYNC_ALWAYS:
            following = i
        barrier_after[i] = following
    last: dict[str, int] = {}
    for i, call in enumerate(calls):
        for name in (*call.inputs, call.output):
            last[name] = barrier_after[i]
    return last | dict.fromkeys(outputs, len(calls))


def _unfenced(calls: list[Call], i: int) -> set[str]:
    """Values that a slow thread may still read when call ``i`` starts: inputs since the last certain barrier."""
    names: set[str] = set()
    for call in reversed(calls[:i]):
        if _sync_of(call) == SYNC_ALWAYS:
            break
        names.update(call.inputs)
    return names


def _launch(calls: list[Call], offsets: dict[str, int], logits: str) -> tuple[list[Launch], list[Slot], int]:
    last = _last_uses(calls, (logits,))
    slots: list[Slot] = []
    place: dict[str, int] = {}
    private: set[str] = set()
    launches: list[Launch] = []
    for i, call in enumerate(calls):
        kernel = call.kernel
        residual = isinstance(kernel, Linear) and kernel.residual
        if residual and last[call.inputs[1]] <= i and call.inputs[1] not in _unfenced(calls, i):
            # the sum takes the place of what it is added to
            place[call.output] = place[call.inputs[1]]
            slots[place[call.output]].free_after = last[call.output]
        else:
            place[call.output] = _take_slot(slots, 0 if call.rows == "tokens" else 1, call.row_bytes, i, last[call.output])
        if kernel.row_wise:
            private.add(call.output)
        source = call.inputs[0] if call.inputs else ""
        weights = [offsets[name] for name in call.params]
        second = place[call.inputs[1]] if len(call.inputs) > 1 else 0
        base = Launch(
            symbol=kernel.symbol,
            rows=0 if call.rows == "tokens" else 1,
            input=place.get(source, 0),
            in_private=int(source in private),
            output=place[call.output],
            residual=second,
            layer=call.layer,
            sync=_sync_of(call),
            weights=(*weights, *[0] * (3 - len(weights))),  # type: ignore[arg-type]
        )
        if isinstance(kernel, PagedAttention):
            write = {"symbol": f"{kernel.symbol}_kv_write", "sync": SYNC_IF_PREFILL}
            launches.append(Launch(**{**vars(base), **write}))
        launches.append(base)
    sample = Launch("sample_rows", 1, place[logits], 0, 0, 0, 0, SYNC_ALWAYS, (0, 0, 0))
    return [*launches, sample], slots, place[logits]


def _take_slot(slots: list[Slot], rows: int, row_bytes: int, now: int, until: int) -> int:
    """A free slot of the same kind, grown if needed (the one nearest in size), or a new one."""
    free = [i for i, s in enumerate(slots) if s.rows == rows and s.free_after < now]
    if free:
        best = min(free, key=lambda i: (max(0, row_bytes - slots[i].row_bytes), abs(slots[i].row_bytes - row_bytes)))
        slots[best] = Slot(rows, max(row_bytes, slots[best].row_bytes), until)
        return best
    slots.append(Slot(rows, row_bytes, until))
    return len(slots) - 1
