"""``ferrum explain``: what is in a pack, what a stage does, what an error code means."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ferrum.cli.arguments import add_variant
from ferrum.cli.machine import known_roofs, taken_variant
from ferrum.cli.output import count, print_json, print_table, size
from ferrum.cli.quality import show_quality
from ferrum.errors import FerrumError, one_line
from ferrum.pack.programs import code_named
from ferrum.pack.proof import PROOF_NAME, KernelProof, decode_proof
from ferrum.pack.schema import BuildRecord, CodeRecord, KernelRecord, Manifest, ProgramRecord, StateRecord, TuningRecord
from ferrum.pack.static import STATIC_NAME, KernelStatic, decode_static, shortcomings

if TYPE_CHECKING:
    from ferrum.pack.reader import Pack

_SOURCES = (".c", ".cu", ".metal")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", metavar="PACK|STAGE|CODE", help="a .fpk, a compiler stage such as fuse_norm, or an error code")
    parser.add_argument("--kernel", metavar="NAME", default="", help="one kernel in full: parameters, cost, reason")
    parser.add_argument("--source", action="store_true", help="print the generated source (with --kernel: of that kernel)")
    parser.add_argument("--why", action="store_true", help="why each kernel was chosen")
    parser.add_argument("--graph", action="store_true", help="print the final graph's text")
    parser.add_argument("--quality", action="store_true", help="how far a pack with quantized numbers is from its model")
    add_variant(parser)


def run(args: argparse.Namespace) -> int:
    from ferrum.cli.error_codes import ERROR_CODES

    subject = args.subject
    stages = {} if Path(subject).is_file() else stage_texts()
    for table, kind in ((stages, "stage"), (ERROR_CODES, "error code")):
        if subject in table and not Path(subject).is_file():
            return _explain_word(subject, kind, table[subject], args.json)
    if subject.endswith(".fpk") and not Path(subject).is_file():
        raise FerrumError("pack-missing", "there is no such pack", subject, "check the path")
    if not Path(subject).is_file():
        step = "give a .fpk, a stage (" + ", ".join(stages) + ") or an error code"
        raise FerrumError("subject-unknown", "neither a pack nor a stage nor an error code", subject, step)
    return _explain_pack(args)


def stage_texts() -> dict[str, str]:
    """What each stage of the compiler does, by its name; empty where only the runtime is installed."""
    try:
        from ferrum.codegen.stages import STAGES
    except ModuleNotFoundError:
        return {}
    return {stage.name: stage.doc for stage in STAGES}


def _explain_word(word: str, kind: str, text: str, as_json: bool) -> int:
    if as_json:
        print_json({"name": word, "kind": kind, "text": text})
    else:
        print(f"{word} ({kind}): {text}")
    return 0


def _explain_pack(args: argparse.Namespace) -> int:
    from ferrum.pack.reader import open_pack

    # Nothing is executed here, so a pack from elsewhere may be looked at before it is trusted.
    with open_pack(args.subject, trust=True) as pack:
        manifest = pack.manifest
        code = shown_code(manifest, args.subject, args.variant)
        if args.quality:
            show_quality(pack, args.json)
        elif args.graph:
            print(_graph(pack), end="")
        elif args.source:
            name = next(name for name in code.members if name.endswith(_SOURCES))
            source = bytes(pack.member(name)).decode("utf-8")
            print(_function(source, _kernel(code, args.kernel).symbol) if args.kernel else source, end="")
        elif args.json:
            print_json(_as_json(manifest, code, args.kernel) | _records(pack, code, args.kernel))
        elif args.kernel:
            _print_kernel(_kernel(code, args.kernel))
        else:
            _print_pack(manifest, code, _graph(pack), args.why)
            if not args.why:
                _print_machine_code(pack)
    return 0


def shown_code(manifest: Manifest, path: str, variant: str = "") -> CodeRecord:
    """The variant of the code by its name, else the one that this machine takes, else the first."""
    return code_named(manifest, variant or taken_variant(manifest), path)


def _kernel(code: CodeRecord, name: str) -> KernelRecord:
    """By symbol or, when it is the only one, by spec."""
    kernels = _kernels(code)
    found = [k for k in kernels if k.symbol == name] or [k for k in kernels if k.spec == name]
    if not found:
        raise FerrumError(
            "kernel-unknown", "the pack has no such kernel", name, "one of " + ", ".join(k.symbol for k in kernels)
        )
    return found[0]


def _print_pack(manifest: Manifest, code: CodeRecord, graph: str, why: bool) -> None:
    model, target = manifest.model, manifest.target
    print(f"model    {model.name}: {model.family}, {count(model.num_parameters)} parameters, vocabulary {model.vocab_size}")
    print(f"         up to {model.max_model_len} tokens, weights {model.quant}, {size(manifest.weights_bytes)}")
    if blocks := manifest.provenance.blocks:
        print(f"         {one_line(blocks)}")
    if calibrated := manifest.provenance.calibrated:
        print(f"         calibrated: {one_line(calibrated)}")
    print(f"target   {target.name} ({target.arch}: {', '.join(target.features) or 'baseline'})")
    for each in manifest.code:
        print(_code(each, manifest))
    print(f"made by  {manifest.provenance.compiler}, pack format {manifest.format}")
    print(f"graph    {_graph_summary(graph)}")
    for state in manifest.states:
        print(_state(state))
    if len(manifest.code) > 1:
        print(f"below    {code.name}; others with --variant NAME")
    for program in manifest.programs:
        print(_program(program, code.programs[program.name], manifest))
    for record in manifest.tuning:
        if record.chosen:
            print(f"tuned    {record.format}: {record.rows} rows by {record.tiles} tiles, chunks of {record.chunk_kib} KiB")
    if generic := _generic(_kernels(code)):
        print(f"generic  {generic}")
    print()
    if why:
        for record in manifest.tuning:
            print(_tuning(record))
        for kernel in _kernels(code):
            print(f"{kernel.symbol}: {kernel.why}")
        return
    roof = known_roofs(manifest.target)
    rows = [_row(kernel, roof) for kernel in _kernels(code)]
    print_table(("KERNEL", "CALLS", "WEIGHTS", "FLOP/TOKEN", "BYTES/TOKEN", "FLOP/BYTE", "LIMIT AT 1 TOKEN"), rows)
    if roof:
        total = sum(_seconds(kernel, roof)[0] for kernel in _kernels(code))
        print(f"\nroofline of this machine: {1 / total:.0f} tokens/s for one sequence" if total else "")
    else:
        print("\nferrum bench measures this machine; then each kernel's roofline is shown")


def _generic(kernels: Sequence[KernelRecord]) -> str:
    """How many launches of a step are of kernels that are made for no pattern; empty: none."""
    calls = Counter({kernel.spec: 0 for kernel in kernels})
    for kernel in kernels:
        calls[kernel.spec] += kernel.calls if "generic: " in kernel.why else 0
    named = [f"{spec} {number}" for spec, number in sorted(calls.items()) if number]
    return f"{calls.total()} of {sum(k.calls for k in kernels)} calls: {', '.join(named)}" if named else ""


def _kernels(code: CodeRecord) -> list[KernelRecord]:
    """Of all programs, each once."""
    return list({kernel.symbol: kernel for build in code.programs.values() for kernel in build.kernels}.values())


def _code(code: CodeRecord, manifest: Manifest) -> str:
    """``code     avx2: cc 12.2, needs avx2, fma; proved, taken here``"""
    needs = f", needs {', '.join(code.features)}" if code.features else ""
    taken = len(manifest.code) > 1 and code.name == taken_variant(manifest)
    state = ", ".join(word for word, holds in (("proved", code.proved), ("taken here", taken)) if holds)
    return f"code     {code.name}: {code.toolchain}{needs}{'; ' if state else ''}{state}"


def _graph(pack: Pack) -> str:
    """Of all programs, one after the other."""
    return "".join(bytes(pack.member(program.graph)).decode("utf-8") for program in pack.manifest.programs)


def _state(state: StateRecord) -> str:
    """``state    kv (paged): 4 layers of k 2 x 64 bf16, v 2 x 64 bf16; 32768 bytes per block of 16 tokens``"""
    arrays = ", ".join(f"{a.name} {a.heads} x {a.width} {a.dtype}" for a in state.arrays)
    unit = {"slot": "sequence", "fixed": f"row, up to {state.rows}"}.get(state.kind, f"block of {state.unit} tokens")
    window = f", window {state.window}" if state.window else ""
    return f"state    {state.name} ({state.kind}{window}): {state.layers} layers of {arrays}; {state.unit_bytes} bytes per {unit}"


def _program(program: ProgramRecord, build: BuildRecord, manifest: Manifest) -> str:
    """What a call of the program takes of memory, as a formula."""
    memory = build.memory
    states = "".join(f" + {s.name} * {s.unit_bytes}" for s in manifest.states if s.name in program.states)
    return (
        f"program  {program.name}: weights {manifest.weights_bytes}{states} + {memory.fixed} + tokens * {memory.per_token}\n"
        f"         + samples * {memory.per_sample} + threads * {memory.per_thread} bytes"
    )


def _tuning(record: TuningRecord) -> str:
    times = ", ".join(
        f"{us / 1000:.2f} ms with {rows}" for rows, us in sorted(record.microseconds.items(), key=lambda pair: int(pair[0]))
    )
    mark = "chosen" if record.chosen else "tried "
    tiles = f", tiles from {record.amx_rows} rows on" if record.amx_rows else ""
    return f"{mark} {record.format} {record.rows} x {record.tiles}, {record.chunk_kib} KiB{tiles}: {times} rows"


def _row(kernel: KernelRecord, roof: dict[str, float]) -> tuple[str, ...]:
    moved = kernel.weight_bytes + kernel.bytes_per_token
    intensity = f"{kernel.flops_per_token / moved:.2f}" if moved else "-"
    limit = "-"
    if roof:
        seconds, what = _seconds(kernel, roof)
        limit = f"{what}, {seconds * 1e6:.1f} us"
    flops, moved_text = count(kernel.flops_per_token), size(kernel.bytes_per_token)
    return kernel.symbol, str(kernel.calls), size(kernel.weight_bytes), flops, moved_text, intensity, limit


def _seconds(kernel: KernelRecord, roof: dict[str, float]) -> tuple[float, str]:
    """Least time of all calls in a step of one token, and what bounds it."""
    memory = (kernel.weight_bytes + kernel.bytes_per_token) / (roof["read_gb_per_s"] * 1e9)
    rate = "bf16_tile_tflops" if kernel.params.get("amx_rows") == 1 and "bf16_tile_tflops" in roof else "f32_tflops"
    arithmetic = kernel.flops_per_token / (roof.get(rate, float("inf")) * 1e12)
    return max((memory, "memory"), (arithmetic, "arithmetic"))


def _machine_code(pack: Pack) -> list[KernelStatic]:
    return decode_static(pack.member(STATIC_NAME)).kernels if STATIC_NAME in pack else []


def _proofs(pack: Pack) -> list[KernelProof]:
    return decode_proof(pack.member(PROOF_NAME)).kernels if PROOF_NAME in pack else []


def _records(pack: Pack, code: CodeRecord, kernel: str) -> dict[str, Any]:
    """What a GPU's pack records beside its manifest, of one kernel or of all."""
    symbol = _kernel(code, kernel).symbol if kernel else ""
    found: dict[str, Any] = {}
    for name, records in (("machine_code", _machine_code(pack)), ("proof", _proofs(pack))):
        chosen = [record for record in records if symbol in ("", record.symbol)]
        if chosen:
            found[name] = msgspec.to_builtins(chosen)
    return found


def _print_machine_code(pack: Pack) -> None:
    """Registers, shared memory and instructions of a GPU's kernels, and what trying them in emulation found."""
    errors = {proof.symbol: max(proof.errors.values()) for proof in _proofs(pack)}
    rows = []
    for kernel in _machine_code(pack):
        listed = ", ".join(f"{count} {name}" for name, count in kernel.instructions.items() if name not in ("STL", "LDL"))
        tried = f"{errors[kernel.symbol]:.1e}" if kernel.symbol in errors else "-"
        short = "; ".join(shortcomings(kernel))
        rows.append((kernel.symbol, str(kernel.registers), str(kernel.spills), size(kernel.shared), listed or "-", tried, short))
    if rows:
        print()
        print_table(("KERNEL", "REGISTERS", "SPILLS", "SHARED", "INSTRUCTIONS", "ERROR", ""), rows)


def _graph_summary(text: str) -> str:
    """``197 nodes: 85 linear, 57 rms_norm, ...`` from the text form."""
    import re
    from collections import Counter

    ops = Counter(m.group(1) for line in text.splitlines() if (m := re.match(r"\S+: \w+\[.*?\] = ([a-z_]\w*)\(", line)))
    listed = ", ".join(f"{n} {op}" for op, n in ops.most_common())
    return f"{sum(ops.values())} nodes: {listed}" if ops else f"{len(text.splitlines())} lines"


def _print_kernel(kernel: KernelRecord) -> None:
    print(f"{kernel.symbol} ({kernel.spec}), {kernel.calls} calls in a step")
    for name, value in kernel.params.items():
        print(f"  {name} = {value}")
    print(f"  reads {size(kernel.weight_bytes)} of weights in a step")
    print(f"  {count(kernel.flops_per_token)} FLOP and {size(kernel.bytes_per_token)} of activations per token")
    print(f"  why: {kernel.why}")


def _as_json(manifest: Manifest, code: CodeRecord, kernel: str) -> Any:
    if kernel:
        return msgspec.to_builtins(_kernel(code, kernel))
    table: dict[str, Any] = msgspec.to_builtins(manifest)
    table["tensors"] = len(manifest.tensors)
    return table


def _function(source: str, symbol: str) -> str:
    """The text of one C function: from the line that defines it to its closing brace in the first column."""
    lines = source.splitlines()
    for start, line in enumerate(lines):
        if f"{symbol}(" in line and not line.rstrip().endswith(";") and not line.startswith((" ", "\t", "//", "/*", "*")):
            start -= lines[start - 1].startswith('extern "C"')  # a GPU's kernel has its bounds on the line before
            end = next((i for i in range(start, len(lines)) if lines[i].startswith("}")), len(lines) - 1)
            return "\n".join(lines[start : end + 1]) + "\n"
    raise FerrumError(
        "kernel-unknown", "the source has no function of this name", symbol, "ferrum explain PACK --source prints all"
    )
