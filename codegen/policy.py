"""Which number format and layout each weight gets on a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ferrum.codegen.kernels.linear.cpu import Blocking
from ferrum.codegen.layouts import Format, RowLayout, TiledLayout, fit_group, parse_format
from ferrum.codegen.layouts.activations import act_for
from ferrum.codegen.target import GpuTarget, Target
from ferrum.codegen.tuned import blocking
from ferrum.graphs.passes.layout import EMBEDDING, HEAD, Choice


@dataclass(frozen=True)
class TargetPolicy:
    """Formats by role: 4-bit packs keep the head (and a tied embedding) at more bits, where errors cost most."""

    target: Target | GpuTarget
    quant: str
    tuned: Mapping[str, Blocking] = field(default_factory=dict)

    def matrix(self, role: str, n: int, k: int, halves: int) -> Choice:
        cpu = self.target if isinstance(self.target, Target) else None
        fmt = parse_format({"none": "bf16", "int8": "int8-g128"}.get(self.quant, self.quant))
        if role in (EMBEDDING, HEAD) and fmt.bits == 4:
            fmt = Format("int6" if cpu else "int8", 128)
        if fmt.group:
            fmt = Format(fmt.kind, fit_group(fmt.group, k))
        if cpu:
            tiles = blocking(cpu, fmt, self.tuned).tiles
            return Choice(fmt.name, TiledLayout(n, k, fmt, cpu.lanes, tiles, halves).name, act_for(fmt, k, cpu.has_bf16_dot).name)
        return Choice(fmt.name, RowLayout(n, k, fmt, halves).name, "f32" if fmt.kind == "f32" else "bf16")
