"""Which number format and layout each weight gets on a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ferrum.codegen.kernels.linear.cpu import Blocking
from ferrum.codegen.layouts import Format, RowLayout, TiledLayout, fit_group, parse_format
from ferrum.codegen.layouts.activations import act_for
from ferrum.codegen.target import GpuTarget, Target
from ferrum.codegen.tuned import blocking
from ferrum.graphs.expressions.expression import Blocked
from ferrum.graphs.passes.layout import EMBEDDING, HEAD, Choice

# The user's word for a checkpoint's own blocks, and the formats of a target that hold some exactly, the fewest bits first.
KEEP = "keep"
_EXACT_ON_GPUS = ("int4s", "int4a", "int8", "fp8")
_EXACT_ON_CPUS = ("int4s", "int4a", "int4k", "int4m", "int5", "int5k", "int5m", "int6", "int6k", "int8")
_EXACT = {"cpu": _EXACT_ON_CPUS, "cuda": _EXACT_ON_GPUS, "metal": _EXACT_ON_GPUS}
# What we quantize to where 8 bits are asked for, on every target; activations of CPUs are rounded in the same groups
# (docs/quantization-formats.md has why).
INT8 = Format("int8", 64)
_NAMED = {"none": "bf16", KEEP: "bf16", "int8": INT8.name}
# The head of 4-bit packs: where errors cost most.
_HEADS = {"cpu": Format("int6", 128), "cuda": INT8, "metal": INT8}
_GROUPS = {"cpu": (16, 32, 64, 128), "cuda": (0, 32, 64, 128), "metal": (0, 32, 64, 128)}  # that kernels have steps for


@dataclass(frozen=True)
class TargetPolicy:
    """Formats by role: 4-bit packs keep the head (and a tied embedding) at more bits, where errors cost most.

    ``quant`` "keep": blocks of the checkpoint whose codes and scales a format of the target holds exactly stay as they are,
    all else is bf16. ``activations`` "f32": products on CPUs read them unrounded.
    """

    target: Target | GpuTarget
    quant: str
    tuned: Mapping[str, Blocking] = field(default_factory=dict)
    activations: str = "auto"

    def matrix(self, role: str, n: int, k: int, halves: int, blocked: Blocked | None) -> Choice:
        cpu = self.target if isinstance(self.target, Target) else None
        fmt = self.exact(blocked) or self._chosen(role, k)
        if cpu:
            rows, tiles = cpu.unit or (cpu.lanes, blocking(cpu, fmt, self.tuned).tiles)
            act = act_for(fmt, k, cpu.rounds_to_bf16, self.activations == "f32")
            return Choice(fmt.name, TiledLayout(n, k, fmt, rows, tiles, halves).name, act.name)
        return Choice(fmt.name, RowLayout(n, k, fmt, halves).name, "f32" if fmt.kind == "f32" else "bf16")

    def apart(self, blocked: Sequence[Blocked | None]) -> bool:
        """Where some of them can be kept, on machines that can join the results."""
        return isinstance(self.target, Target) and any(self.exact(each) for each in blocked)

    def exact(self, blocked: Blocked | None) -> Format | None:
        """The smallest format of the target that holds a checkpoint's blocks as they are; None if they are not to be kept."""
        if self.quant != KEEP or blocked is None or blocked.size not in _GROUPS[self.target.device]:
            return None
        formats = (Format(kind, blocked.size) for kind in _EXACT[self.target.device])
        return next((fmt for fmt in formats if fmt.holds(blocked)), None)

    def _chosen(self, role: str, k: int) -> Format:
        fmt = parse_format(_NAMED.get(self.quant, self.quant))
        if role in (EMBEDDING, HEAD) and fmt.bits == 4:
            fmt = _HEADS[self.target.device]
        return Format(fmt.kind, fit_group(fmt.group, k)) if fmt.group else fmt
