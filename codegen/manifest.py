"""The manifest of a finished plan."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from functools import partial

from ferrum.codegen.backend import Built, member_of
from ferrum.codegen.kept import kept_note
from ferrum.codegen.kernels.cpu import REPLICATE_ROWS
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE
from ferrum.codegen.kv import Kept
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.plan import Plan, thread_bytes
from ferrum.codegen.render import templates_digest
from ferrum.codegen.target import AnyTarget, GpuTarget, Target
from ferrum.graphs.ir import Graph
from ferrum.graphs.programs import program_of
from ferrum.pack.check import contract_hash
from ferrum.pack.launches import ALIGNMENT, Rows, encode_table
from ferrum.pack.schema import (
    ENCODE,
    FORMAT_VERSION,
    BuildRecord,
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
from ferrum.pack.step import INPUTS, OUTPUTS, StepArray, embedding_array
from ferrum.version import __version__

# Members of a program, each in a folder of its name.
GRAPH, CONSTANTS, PLAN, SELFTEST, LAYERS = "graph.txt", "constants", "plan.json", "selftest.json", "layers.json"
CALLED: tuple[Rows, ...] = ("tokens", "seqs", "samples")  # what a call is a number of
# Of a CPU's step: a query tile for each token and sequence, a counter for each launch and slot.
_TILE_BYTES, _COUNTER_BYTES = 12, 64
CHECKPOINT = 1024  # tokens between copies of a recurrence's state, which later prompts may go on from


def tensor_records(plan: Plan) -> list[TensorRecord]:
    return [
        TensorRecord(name=t.name, shape=list(t.shape), format=t.format, layout=t.layout, offset=t.offset, nbytes=t.nbytes)
        for t in plan.tensors
    ]


def memory_record(plan: Plan, target: Target | GpuTarget) -> MemoryRecord:
    """The arena as a formula: bytes that grow with sequences count as samples, of which a sequence has one; rounding and all
    that is of one size are inside ``fixed``.
    """
    slots = plan.table.slots
    terms = [term for slot in slots for term in slot.bytes]

    def rate(*rows: Rows) -> int:
        return sum(-(-t.times // t.per) for t in terms if t.rows in rows)

    fixed, per_token, per_sample = rate("one"), rate("tokens"), rate("samples", "seqs")
    if isinstance(target, GpuTarget):
        fixed += ALIGNMENT * len(slots)
        return MemoryRecord(fixed=fixed, per_token=per_token, per_sample=per_sample, per_thread=0)
    return MemoryRecord(
        fixed=fixed + _COUNTER_BYTES * (len(plan.table.launches) + len(slots) + 4),
        per_token=per_token + _TILE_BYTES,
        per_sample=per_sample + _TILE_BYTES,
        per_thread=thread_bytes(plan.kernels) + REPLICATE_ROWS * (per_token + per_sample),
    )


def kernel_records(plan: Plan) -> list[KernelRecord]:
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


def plan_json(plan: Plan) -> bytes:
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


def plan_dump(plan: Plan) -> bytes:
    """Calls and the table of launches, for people; in a pack they are two members."""
    value = json.loads(plan_json(plan)) | {"table": json.loads(encode_table(plan.table))}
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def state_records(plan: Plan) -> list[StateRecord]:
    """One state for all layers that keep alike, as the graph declares it; a block holds tokens of every layer of its group."""
    sizes: dict[Kept, list[int]] = {}
    for layer in plan.kv.layers.values():
        sizes.setdefault(layer.kept, []).append(layer.nbytes)
    return [
        StateRecord(
            name=f"kv{index or ''}",
            kind="slot" if kept.slot else "window" if kept.window else "paged",
            group=kept.group,
            layers=len(nbytes),
            arrays=state_arrays(kept, plan.kv.dtype),
            unit=BLOCK_SIZE,
            unit_bytes=sum(nbytes),
            window=kept.window,
            checkpoint=CHECKPOINT if kept.slot else 0,
        )
        for index, (kept, nbytes) in enumerate(sizes.items())
    ]


def state_arrays(kept: Kept, dtype: str) -> list[StateArray]:
    if kept.slot:
        return [StateArray(name="recurrence", heads=kept.heads, width=kept.width * kept.value_width, dtype="f32")]
    sizes = (("k", kept.width), ("v", kept.value_width))
    return [StateArray(name=name, heads=kept.heads, width=width, dtype=dtype) for name, width in sizes]


def contract_of(plan: Plan, max_model_len: int) -> str:
    """What code and manifest of a plan both carry."""
    return contract_hash(tensor_records(plan), state_records(plan), plan.vocab_size, max_model_len)


def program_arrays(graph: Graph) -> tuple[list[StepArray], list[StepArray]]:
    """What a call of the program takes and gives: the arrays that the graph declares, and those that say whose states it has."""
    given = {value.name for value in graph.inputs}
    inputs = [array for array in INPUTS if array.name in given or array.shape[0] == "seqs"]
    if program_of(graph) == ENCODE:
        return inputs, [embedding_array(int(graph.values()[graph.outputs[0]].shape[-1]))]
    return inputs, [array for array in OUTPUTS if array.name in graph.outputs]


def program_member(graph: Graph, name: str) -> str:
    """The name of a member of the program that ``graph`` is of."""
    return f"{program_of(graph)}/{name}"


def program_record(plan: Plan, has_selftest: bool = False, has_constants: bool = False) -> ProgramRecord:
    inputs, outputs = program_arrays(plan.graph)
    name = partial(program_member, plan.graph)
    return ProgramRecord(
        name=program_of(plan.graph),
        graph=name(GRAPH),
        constants=name(CONSTANTS) if has_constants else "",
        rows=[rows for rows in CALLED if any(array.shape[0] == rows for array in (*inputs, *outputs))],
        inputs=inputs,
        outputs=outputs,
        states=[state.name for state in state_records(plan)],
        selftest=name(SELFTEST) if has_selftest else "",
        whole=program_of(plan.graph) == ENCODE,
    )


def code_record(
    built: Built, target: AnyTarget, members: Collection[str] = (), layers: str = "", proved: bool = False
) -> CodeRecord:
    """A variant of the code of a pack for ``target``. ``members``: those beside what the compiler made; ``layers``: the member
    with the values of its layers."""
    plan, code = built.plan, built.code
    build = BuildRecord(
        entry=code.entry,
        launches=code.launches,
        plan=member_of(built.target, program_member(plan.graph, PLAN)),
        memory=memory_record(plan, built.target),
        kernels=kernel_records(plan),
        layers=layers,
    )
    return CodeRecord(
        name=built.target.variant,
        features=[feature for feature in built.target.requires if feature not in target.requires],
        programs={program_of(plan.graph): build},
        members=[*code.members, *members],
        toolchain=code.toolchain,
        proved=proved,
    )


def make_manifest(
    plan: Plan,
    options: CompileOptions,
    target: AnyTarget,
    model: ModelRecord,
    text: TextRecord,
    program: ProgramRecord,
    code: list[CodeRecord],
    tuning: list[TuningRecord],
    source_sha256: str,
    has_text: bool,
    traced_by: str = "",
    unused: Collection[str] = (),
    calibrated: str = "",
) -> Manifest:
    """Everything but the members, which the writer fills in. ``traced_by``: whose module it is, if it is no record's;
    ``unused``: tensors of the checkpoint that nothing is done with; ``calibrated``: what has factors and what has not."""
    blocks = kept_note(plan.graph, unused)
    chosen = {
        "quant": options.quant,
        **({"blocks": blocks} if blocks else {}),
        **({"calibrated": calibrated} if calibrated else {}),
        "target": target.name,
        "max_model_len": str(model.max_model_len),
        "kv_dtype": options.kv,
        **({"traced_by": traced_by} if traced_by else {}),
        **({} if options.activations == "auto" else {"activations": options.activations}),
        **({} if options.fuse else {"fuse": "no"}),
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
        code=code,
        tuning=tuning,
        text=text,
        endpoints=endpoints_of(program.name, has_text),
        provenance=Provenance(
            compiler=f"ferrum {__version__}",
            templates_sha256=templates_digest(target.device),
            source_sha256=source_sha256,
            options=chosen,
        ),
        members=[],
    )


def endpoints_of(program: str, has_text: bool) -> list[str]:
    """What a server may offer."""
    if program == ENCODE:
        return ["embeddings"]
    return ["chat.completions", "completions"] if has_text else ["completions"]


def count_parameters(plan: Plan) -> int:
    return sum(math.prod(t.shape) for t in plan.tensors)
