"""Rules on the machine code of CUDA kernels, read from a listing of ``nvdisasm``: what needs no GPU to be known about speed.

A kernel that starts early may touch nothing that another launch writes before its wait; nothing loops over compare-and-swap; what
the inner loop of a product spends on a kilobyte of weights, and how much of that only moves registers; how many blocks fit on a
multiprocessor at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ferrum.codegen.kernels.base import UNWRITTEN
from ferrum.codegen.kernels.gpu import GpuKernel
from ferrum.codegen.target import GpuTarget
from ferrum.devices.cuda_archs import parse_arch
from ferrum.pack.static import WAIT

_LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^(\.L\w*):", re.M)
_TARGET = re.compile(r"`\((\.L\w+)\)")
_REGISTER = re.compile(r"\b(U?R)(\d+)\b")
_PARAMETER = re.compile(r"c\[0x0\]\[0x([0-9a-f]+)\]")
_ADDRESS = re.compile(r"\[(U?R)(\d+)(?:\.U?64|\.U32)?[^\]]*\]")
# Where a kernel's parameters start in the constant memory of its launch.
_PARAMETERS = {7: 0x160, 8: 0x160, 9: 0x210, 10: 0x380, 12: 0x380}
_STORES = ("STG", "ST", "RED", "ATOM", "ATOMG", "REDG", "UBLKRED")
_LOADS = ("LDG", "LD", "LDGSTS")
_MOVES = ("MOV", "IMAD.MOV", "UMOV", "CS2R", "R2UR", "IMAD.U32", "SEL.MOV")
# What a multiprocessor has, by compute capability: registers, bytes of shared memory, threads, blocks. From 8.0 on a block costs
# 1 KiB more, which the tools count from 9.0 on.
_UNITS = {
    (7, 5): (65536, 64 << 10, 1024, 16),
    (8, 0): (65536, 164 << 10, 2048, 32),
    (8, 6): (65536, 100 << 10, 1536, 16),
    (8, 7): (65536, 164 << 10, 1536, 16),
    (8, 9): (65536, 100 << 10, 1536, 24),
    (9, 0): (65536, 228 << 10, 2048, 32),
    (10, 0): (65536, 228 << 10, 2048, 32),
    (10, 3): (65536, 228 << 10, 2048, 32),
    (12, 0): (65536, 100 << 10, 1536, 24),
    (12, 1): (65536, 100 << 10, 1536, 24),
}
_BLOCK_SHARED = 1 << 10
_REGISTERS_AT_ONCE = 256  # of a warp


@dataclass(frozen=True)
class Instruction:
    """``guarded``: it depends on a predicate. ``to``: the index that it may jump to, -1 for none."""

    name: str
    operands: str
    guarded: bool
    to: int

    @property
    def stem(self) -> str:
        return self.name.partition(".")[0]


def read(listing: str) -> list[Instruction]:
    """The instructions of one function."""
    places: dict[str, int] = {}
    found: list[re.Match[str]] = []
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            places[label[1]] = len(found)
        if match := _LINE.search(line):
            found.append(match)
    made = []
    for predicate, name, operands in (match.groups() for match in found):
        target = _TARGET.search(operands)
        guarded = bool(predicate) or bool(re.match(r"!?U?P\d", operands))
        made.append(Instruction(name, operands, guarded, places.get(target[1], -1) if target else -1))
    return made


def before_wait(code: Sequence[Instruction]) -> list[int]:
    """Indices of what may run before the wait of an early start, in order; without a wait, of everything."""
    seen: set[int] = set()
    left = [0]
    while left:
        at = left.pop()
        while at < len(code) and at not in seen and code[at].stem != WAIT:
            seen.add(at)
            one = code[at]
            if one.stem == "BRA":
                left.append(one.to)
            if one.stem in ("BRA", "EXIT", "RET") and not one.guarded:
                break
            at += 1
    return sorted(seen)


def early_loads(code: Sequence[Instruction]) -> int:
    """How many loads from memory are in what may run before the wait."""
    return sum(code[at].stem in _LOADS for at in before_wait(code))


def capability(target: GpuTarget) -> tuple[int, int]:
    parsed = parse_arch(target.arch)
    assert parsed is not None
    return parsed[0]


def parameters(kernel: GpuKernel, target: GpuTarget) -> dict[int, str]:
    """The argument at each word of the launch's constants: pointers have eight bytes, limits four."""
    at = _PARAMETERS[capability(target)[0]]
    found: dict[int, str] = {}
    for name in kernel.args:
        size = 4 if name.startswith("limit:") else 8
        at = -(-at // size) * size
        found |= dict.fromkeys(range(at, at + size, 4), name)
        at += size
    return found


def early_faults(kernel: GpuKernel, code: Sequence[Instruction], target: GpuTarget) -> list[str]:
    """What ``kernel`` does before its wait that needs it: stores, and loads through a pointer to what launches write.

    Follows, in the order of the text, which parameters each register was computed from.
    """
    names, faults = parameters(kernel, target), []
    origin: dict[tuple[str, int], frozenset[str]] = {}
    for at in before_wait(code):
        one = code[at]
        if one.stem in _STORES:
            faults.append(f"{one.name} before the wait")
        if one.stem in _LOADS:
            kind, number = _ADDRESS.findall(one.operands)[-1]
            read_from = origin.get((kind, int(number)), frozenset()) | origin.get((kind, int(number) + 1), frozenset())
            wrong = sorted(name for name in read_from if not name.startswith((*UNWRITTEN, "limit:")))
            faults += [f"{one.name} through {name} before the wait" for name in wrong]
        _follow(one, names, origin)
    return faults


def _follow(one: Instruction, names: dict[int, str], origin: dict[tuple[str, int], frozenset[str]]) -> None:
    """What the register that ``one`` writes is computed from; a loaded value is nobody's pointer."""
    first, _, rest = one.operands.partition(",")
    result = _REGISTER.fullmatch(first.strip().removesuffix(".reuse"))
    if not result:
        return
    wide = ".64" in one.name or ".WIDE" in one.name or one.stem in ("LDG", "LDS")
    source: frozenset[str] = frozenset()
    if one.stem not in ("LDG", "LD", "LDS", "LDL"):
        for word in _PARAMETER.findall(rest):
            source |= {names[int(word, 16)]} if int(word, 16) in names else frozenset()
        for place, operand in enumerate(rest.split(",")):
            pair = wide and not (".WIDE" in one.name and place < 2)  # such a product is of two single registers, and adds a pair
            for kind, number in _REGISTER.findall(operand):
                for n in range(int(number), int(number) + (2 if pair else 1)):
                    source |= origin.get((kind, n), frozenset())
    before = origin.get((result[1], int(result[2])), frozenset()) if one.guarded else frozenset()
    for n in range(int(result[2]), int(result[2]) + (2 if wide else 1)):
        origin[result[1], n] = source | before


def swaps(code: Sequence[Instruction]) -> list[str]:
    """Compare-and-swap: an atomic operation that the machine does not have is a loop over it."""
    return [one.name for one in code if one.stem.startswith("ATOM") and (".CAS" in one.name or ".CAST" in one.name)]


def matrix_loop(code: Sequence[Instruction]) -> Sequence[Instruction]:
    """The loop with the most matrix instructions, the shortest of such; empty where no loop has any."""
    loops = [code[one.to : i + 1] for i, one in enumerate(code) if one.stem == "BRA" and 0 <= one.to <= i]
    return max(filter(_products, loops), key=lambda loop: (_products(loop), -len(loop)), default=())


def _products(loop: Sequence[Instruction]) -> int:
    return sum(one.stem == "HMMA" for one in loop)


@dataclass(frozen=True)
class Loop:
    """The inner loop of a product: instructions of a warp for 1,024 bytes of weights, and the share of them that only moves."""

    per_kb: float
    moves: float


def inner_loop(code: Sequence[Instruction], products_per_kb: int) -> Loop:
    """``products_per_kb``: matrix instructions that 1,024 bytes need; the loop may hold several times as many."""
    loop = matrix_loop(code)
    moves = sum(one.name.startswith(_MOVES) for one in loop)
    return Loop(len(loop) * products_per_kb / max(1, _products(loop)), moves / max(1, len(loop)))


def blocks_per_unit(target: GpuTarget, threads: int, registers: int, shared: int) -> int:
    """How many blocks of a kernel are on a multiprocessor at once; ``shared``: static and dynamic bytes of a block."""
    all_registers, all_shared, most_threads, most_blocks = _UNITS[capability(target)]
    warps = -(-threads // 32)
    of_warp = -(-registers * 32 // _REGISTERS_AT_ONCE) * _REGISTERS_AT_ONCE
    by_registers = all_registers // (warps * of_warp)
    taken = shared + (_BLOCK_SHARED if (8, 0) <= capability(target) < (9, 0) else 0)
    return min(by_registers, all_shared // max(1, taken), most_threads // (32 * warps), most_blocks)
