"""The manifest of a finished plan."""

from __future__ import annotations

import json
import math
from typing import Protocol

from ferrum import __version__
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.plan import REPLICATE_ROWS, KvPlan, Plan, Tensor
from ferrum.codegen.plan_gpu import GpuPlan
from ferrum.codegen.render import templates_digest
from ferrum.codegen.target import GpuTarget, Target
from ferrum.pack.check import contract_hash
from ferrum.pack.launches import encode_table
from ferrum.pack.schema import (
    FORMAT_VERSION,
    STEP,
    CodeRecord,
    KernelRecord,
    Manifest,
    MemoryRecord,
    ModelRecord,
    ProgramRecord,
    Provenance,
    StateArray,
    StateRecord,
    TargetRecord,
    TensorRecord,
    TextRecord,
    TuningRecord,
)
from ferrum.pack.step import INPUTS, OUTPUTS

GRAPH_NAME, CONSTANTS_NAME, PLAN_NAME = f"{STEP}/graph.txt", f"{STEP}/constants", f"{STEP}/plan.json"
SELFTEST_NAME, LAYERS_NAME = f"{STEP}/selftest.json", f"{STEP}/layers.json"
_TILE_BYTES, _COUNTER_BYTES = 12, 64


class Stored(Protocol):
    """A plan for any machine."""

    @property
    def tensors(self) -> list[Tensor]: ...
    @property
    def kv(self) -> KvPlan: ...
    @property
    def vocab_size(self) -> int: ...


def tensor_records(plan: Stored) -> list[TensorRecord]:
    return [
        TensorRecord(name=t.name, shape=list(t.shape), format=t.format, layout=t.layout, offset=t.offset, nbytes=t.nbytes)
        for t in plan.tensors
    ]


def memory_record(plan: Plan) -> MemoryRecord:
    """The arena as a formula; rounding to cache lines is inside ``fixed``."""
    per_row = [sum(s.row_bytes for s in plan.slots if s.rows == rows) for rows in (0, 1)]
    private = REPLICATE_ROWS * sum(s.row_bytes for s in plan.slots)
    return MemoryRecord(
        fixed=_COUNTER_BYTES * (len(plan.launches) + len(plan.slots) + 4),
        per_token=per_row[0] + _TILE_BYTES,
        per_sample=per_row[1] + _TILE_BYTES,
        per_thread=plan.scratch_bytes + private,
    )


def kernel_records(plan: Plan) -> list[KernelRecord]:
    records = []
    for kernel in plan.kernels:
        calls = sum(call.kernel.symbol == kernel.symbol for call in plan.calls)
        cost = kernel.cost()
        records.append(
            KernelRecord(
                symbol=kernel.symbol,
                spec=kernel.stem,
                params=kernel.params,
                why=kernel.why(),
                calls=calls,
                weight_bytes=calls * cost.weight_bytes,
                flops_per_token=calls * cost.row_flops,
                bytes_per_token=calls * cost.row_bytes,
            )
        )
    return records


def plan_json(plan: Plan) -> bytes:
    """The launch table, the arena and the origin of each call, for ``explain``."""
    launches = [vars(launch) | {"weights": list(launch.weights)} for launch in plan.launches]
    calls = [
        {
            "symbol": c.kernel.symbol,
            "spec": c.kernel.stem,
            "inputs": list(c.inputs),
            "output": c.output,
            "params": list(c.params),
            "rows": c.rows,
            "origin": c.origin,
        }
        for c in plan.calls
    ]
    slots = [{"rows": "samples" if s.rows else "tokens", "row_bytes": s.row_bytes} for s in plan.slots]
    value = {
        "calls": calls,
        "launches": launches,
        "slots": slots,
        "scratch_bytes": plan.scratch_bytes,
        "logits_slot": plan.logits_slot,
    }
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def gpu_kernel_records(plan: GpuPlan) -> list[KernelRecord]:
    """Calls and costs are those of a step of one token; kernels of other size classes have none."""
    records = []
    for kernel in plan.kernels:
        uses = [v for call in plan.calls for v in call.variants if v.kernel.symbol == kernel.symbol]
        calls = sum(v.phase != "mixed" and v.fewest <= 1 for v in uses)
        first, cost = uses[0], kernel.cost()
        where = "" if first.class_rows == "one" else f"{first.class_rows} from {first.fewest} to {first.most or 'all'}: "
        records.append(
            KernelRecord(
                symbol=kernel.symbol,
                spec=kernel.stem,
                params=kernel.params,
                why=where + kernel.why(),
                calls=calls,
                weight_bytes=calls * cost.weight_bytes,
                flops_per_token=calls * cost.row_flops,
                bytes_per_token=calls * cost.row_bytes,
            )
        )
    return records


def gpu_plan_json(plan: GpuPlan) -> bytes:
    """The origin of each call and its kernels, for ``explain``; launches are a member of their own."""
    calls = [
        {
            "kernels": [
                {"symbol": v.kernel.symbol, "phase": v.phase, "rows": v.class_rows, "fewest": v.fewest, "most": v.most}
                for v in c.variants
            ],
            "spec": c.kernel.stem,
            "inputs": list(c.inputs),
            "output": c.output,
            "params": list(c.params),
            "rows": c.rows,
            "origin": c.origin,
        }
        for c in plan.calls
    ]
    return json.dumps({"calls": calls}, sort_keys=True, separators=(",", ":")).encode()


def gpu_plan_dump(plan: GpuPlan) -> bytes:
    """Calls and the table of launches, for people; in a pack they are two members."""
    value = json.loads(gpu_plan_json(plan)) | {"table": json.loads(encode_table(plan.table))}
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def state_records(plan: Stored) -> list[StateRecord]:
    kv = plan.kv
    arrays = [StateArray(name=name, heads=kv.num_kv_heads, width=kv.head_dim, dtype=kv.dtype) for name in ("k", "v")]
    paged = StateRecord(
        name="kv", kind="paged", group=0, layers=kv.num_layers, arrays=arrays, unit=BLOCK_SIZE, unit_bytes=kv.bytes_per_block
    )
    return [paged]


def contract_of(plan: Stored, max_model_len: int) -> str:
    """What code and manifest of a plan both carry."""
    return contract_hash(tensor_records(plan), state_records(plan), plan.vocab_size, max_model_len)


def program_record(
    plan: Stored, memory: MemoryRecord, kernels: list[KernelRecord], has_selftest: bool, has_constants: bool
) -> ProgramRecord:
    return ProgramRecord(
        name=STEP,
        graph=GRAPH_NAME,
        constants=CONSTANTS_NAME if has_constants else "",
        plan=PLAN_NAME,
        rows=["tokens", "seqs", "samples"],
        inputs=list(INPUTS),
        outputs=list(OUTPUTS),
        states=[state.name for state in state_records(plan)],
        memory=memory,
        kernels=kernels,
        selftest=SELFTEST_NAME if has_selftest else "",
        layers=LAYERS_NAME if has_selftest else "",
    )


def make_manifest(
    plan: Stored,
    options: CompileOptions,
    target: Target | GpuTarget,
    model: ModelRecord,
    text: TextRecord,
    program: ProgramRecord,
    code: CodeRecord,
    tuning: list[TuningRecord],
    source_sha256: str,
    has_text: bool,
) -> Manifest:
    """Everything but the members, which the writer fills in."""
    chosen = {
        "quant": options.quant,
        "target": target.name,
        "max_model_len": str(model.max_model_len),
        "kv_dtype": options.kv,
    }
    return Manifest(
        format=FORMAT_VERSION,
        reader_min=FORMAT_VERSION,
        required=["weights", "programs", "code", *(["text"] if has_text else [])],
        model=model,
        target=TargetRecord(name=target.name, device=target.device, arch=target.arch, features=list(target.requires)),
        contract=contract_of(plan, model.max_model_len),
        tensors=tensor_records(plan),
        states=state_records(plan),
        programs=[program],
        code=[code],
        tuning=tuning,
        text=text,
        endpoints=["chat.completions", "completions"] if has_text else ["completions"],
        provenance=Provenance(
            compiler=f"ferrum {__version__}",
            templates_sha256=templates_digest(target.device),
            source_sha256=source_sha256,
            options=chosen,
        ),
        members=[],
    )


def count_parameters(plan: Stored) -> int:
    return sum(math.prod(t.shape) for t in plan.tensors)
