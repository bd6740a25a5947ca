"""What is measured, and the goal of each line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ferrum.graphs.models.random_weights import SHAPES as KNOWN_SHAPES

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": KNOWN_SHAPES["qwen3-0.6b"],
    "qwen3-4b": KNOWN_SHAPES["qwen3-4b"],
    "llama-1.1b": KNOWN_SHAPES["tinyllama-1.1b"],
}
LLAMA, OPENVINO, TORCH, OURS = "llama.cpp", "OpenVINO", "torch", "ferrum"


@dataclass(frozen=True)
class Format:
    """ferrum's ``--quant`` beside the GGUF type of the nearest size and what OpenVINO reads."""

    name: str
    quant: str
    gguf: str
    openvino: str
    arithmetic: tuple[str, ...]


_FLOATS = ("f32_tflops", "bf16_tflops", "bf16_tile_tflops")
_BYTES = (*_FLOATS, "int8_tops", "int8_tile_tops")
FORMATS = {
    f.name: f
    for f in (
        Format("bf16", "none", "BF16", "F16", _FLOATS),
        Format("8 bit", "int8", "Q8_0", "Q8_0", _BYTES),
        Format("4 bit", "int4-g32", "Q4_0", "Q4_0", _BYTES),
    )
}


@dataclass(frozen=True)
class Case:
    """Prompt and new tokens of one sequence, and how many sequences run at once. ``new`` 1 is prefill alone."""

    prompt: int
    new: int
    sequences: int = 1

    @property
    def prefill(self) -> bool:
        return self.new <= 1

    @property
    def name(self) -> str:
        if self.prefill:
            return f"prefill {self.prompt}"
        context = f" at {self.prompt} tokens" if self.prompt >= 1024 else ""
        return f"decode, {self.sequences} sequence{'s' if self.sequences > 1 else ''}{context}"


SPEED = (Case(16, 48), Case(16, 32, 4), Case(16, 24, 16), Case(128, 1), Case(512, 1))
LARGE_SPEED = (Case(16, 16), Case(16, 12, 4), Case(16, 8, 16), Case(128, 1))
LONG_PREFILL = Case(4096, 1)
LONG_CONTEXT = Case(8192, 49)


@dataclass(frozen=True)
class Goal:
    """A bound on a ratio to ``peer``, or on a fact of the row when ``peer`` is empty."""

    sign: str  # ">=" or "<="
    bound: float
    peer: str = ""
    fact: str = ""

    @property
    def text(self) -> str:
        sign = {">=": "≥", "<=": "≤"}[self.sign]
        if self.peer:
            return f"{sign} {self.bound:g} × {self.peer}"
        return f"cost {sign} {self.bound:g} × arithmetic" if self.fact == GROWTH else f"{self.fact} {sign} {100 * self.bound:g} %"

    def met(self, value: float) -> bool:
        return value >= self.bound if self.sign == ">=" else value <= self.bound


BANDWIDTH, PEAK, ATTENTION, GROWTH, KEPT = "of bandwidth", "of peak", "attention", "growth", "kept"


def _speed_goals() -> dict[tuple[str, str], tuple[Goal, ...]]:
    decode = {"4 bit": (1.4, 2.5, 4.0), "8 bit": (1.3, 3.0, 5.0), "bf16": (1.0, 1.5, 3.0)}
    bandwidth = {"4 bit": 0.88, "8 bit": 0.90}
    prefill = {"4 bit": (1.3, 0.5), "8 bit": (1.3, 0.5), "bf16": (1.2, 0.8)}
    goals: dict[tuple[str, str], tuple[Goal, ...]] = {}
    for name in FORMATS:
        for case, bound in zip((Case(16, 2), Case(16, 2, 4), Case(16, 2, 16)), decode[name], strict=True):
            goals[case.name, name] = (Goal(">=", bound, LLAMA),)
        if name in bandwidth:
            goals[Case(16, 2).name, name] += (Goal(">=", bandwidth[name], fact=BANDWIDTH),)
        ratio, peak = prefill[name]
        for prompt in (128, 512):
            goals[Case(prompt, 1).name, name] = (Goal(">=", ratio, OPENVINO), Goal(">=", peak, fact=PEAK))
    return goals


SERVED_SPEED, SERVED_TTFT = "served, 16 clients", "served, 16 clients: TTFT p50"
START, MEMORY, STRESS = "start to first token", "peak memory", "decode with one core taken"
ONE_SHOT = "command line, one token in all"
# (line, format): goals; a line without an entry is shown without a verdict
GOALS: dict[tuple[str, str], tuple[Goal, ...]] = _speed_goals() | {
    (LONG_PREFILL.name, "4 bit"): (Goal("<=", 0.25, fact=ATTENTION), Goal("<=", 1.05, fact=GROWTH)),
    (LONG_CONTEXT.name, "4 bit"): (Goal(">=", 0.85, fact=BANDWIDTH),),
    (LONG_CONTEXT.name, "4 bit, KV int8"): (Goal(">=", 0.85, fact=BANDWIDTH),),
    (SERVED_SPEED, "4 bit"): (Goal(">=", 4.0, LLAMA),),
    (SERVED_TTFT, "4 bit"): (Goal("<=", 1 / 3, LLAMA),),
    (START, "4 bit"): (Goal("<=", 0.5, LLAMA),),
    (MEMORY, "4 bit"): (Goal("<=", 0.75, LLAMA),),
    (STRESS, "4 bit"): (Goal(">=", 0.45, fact=KEPT),),
}
# shapes other than the first: the same ratios within ten per cent
LARGE_SLACK = 0.9


def goals_for(shape: str, line: str, format_name: str) -> tuple[Goal, ...]:
    goals = GOALS.get((line, format_name), ())
    if shape == "qwen3-0.6b":
        return goals
    return tuple(Goal(g.sign, g.bound * (LARGE_SLACK if g.sign == ">=" else 1 / LARGE_SLACK), g.peer, g.fact) for g in goals)
