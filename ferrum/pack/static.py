"""What a compiler made of each kernel, read from the machine code: member ``code/static.json`` of a CUDA pack."""

from __future__ import annotations

import msgspec

STATIC_NAME = "code/static.json"
# The instruction of griddepcontrol.wait: a kernel that is started early has it.
WAIT = "ACQBULK"


class KernelStatic(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One kernel. ``shared``: bytes of a block, static and dynamic. ``spills``: stores of registers to local memory.

    ``instructions``: how often each of the watched mnemonics is in the code; ``expected``: at least so often, by the spec.
    """

    symbol: str
    registers: int
    stack: int
    spills: int
    shared: int
    shared_limit: int
    instructions: dict[str, int]
    expected: dict[str, int]


class StaticProof(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    tools: str
    kernels: list[KernelStatic]


def decode_static(data: bytes | memoryview) -> StaticProof:
    """Raises msgspec.ValidationError for anything else."""
    return msgspec.json.decode(data, type=StaticProof)


def shortcomings(kernel: KernelStatic) -> list[str]:
    """What is not as the spec says, in words; empty for a sound kernel."""
    found = [
        f"{name} {kernel.instructions.get(name, 0)} times, {least} expected"
        for name, least in sorted(kernel.expected.items())
        if kernel.instructions.get(name, 0) < least
    ]
    # a hot kernel is one of which matrix instructions or copies are expected
    if kernel.expected.keys() - {WAIT} and kernel.spills:
        found.append(f"{kernel.spills} stores of registers to local memory")
    if kernel.shared > kernel.shared_limit:
        found.append(f"{kernel.shared} bytes of shared memory, {kernel.shared_limit} there")
    return found
