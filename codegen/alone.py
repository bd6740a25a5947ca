"""Launches of CPU kernels without a model around them, for the tuner and for tests."""

from __future__ import annotations

from collections.abc import Sequence

from ferrum.codegen.kernels.base import Kernel, distinct
from ferrum.codegen.kernels.cpu import CpuKernel
from ferrum.codegen.plan import KvPlan, Plan, cpu_work, make_launch, step_arg
from ferrum.codegen.walk import Call, Variant
from ferrum.graphs.ir import Graph
from ferrum.pack.launches import LAUNCHES_VERSION, Arg, Launch, LaunchTable, Rows, Slot, SlotArg, Term, Threads, WeightsArg


def launch_alone(
    kernel: CpuKernel, values: Sequence[int], result: int, weights: Sequence[int] = (), private: bool = False
) -> Launch:
    """A launch on tokens: slots of its values and its result, offsets of its weights. ``private``: the first value is."""

    def bind(name: str) -> Arg:
        kind, _, what = name.partition(":")
        match kind:
            case "value":
                return SlotArg(values[int(what)])
            case "weight":
                return WeightsArg(weights[int(what)])
            case "result":
                return SlotArg(result)
        return step_arg(name, "tokens")

    own = [i for i, name in enumerate(kernel.args) if (name == "value:0" and private) or (name == "result" and kernel.row_wise)]
    return make_launch(kernel, bind, cpu_work("tokens"), Threads(private=own, sync="shared" if kernel.row_wise else "always"))


def slot_alone(row_bytes: int, rows: Rows = "tokens") -> Slot:
    return Slot(bytes=[Term(rows, row_bytes)])


def plan_alone(kernels: Sequence[Kernel], launches: Sequence[Launch], slots: Sequence[Slot], vocab_size: int) -> Plan:
    """A plan of just these launches, each of one of the kernels; the first slot has the logits."""
    table = LaunchTable(version=LAUNCHES_VERSION, contract="", code="", slots=list(slots), launches=list(launches), logits_slot=0)
    by_symbol = {kernel.symbol: kernel for kernel in kernels}
    launched = [(Call((Variant(k),), (), "", (), "tokens", 0), k) for k in (by_symbol[launch.symbol] for launch in launches)]
    graph = Graph("alone", (), (), (), ())
    return Plan(distinct(kernels), [], table, launched, [], KvPlan({}, "f32"), vocab_size, vocab_size, graph)
