"""rescale: a factor for each channel between what makes a value and the matrices that read it; the function stays the same.

Quantized numbers that share a scale are rounded alike, whatever they are multiplied with. Where a channel of activations is
large, its column of weights is made larger before rounding, and what makes the channel smaller by the same factor: the weight of
a norm, the rows of an attention's values (heads that share them are scaled alike), the rows of ``up`` in a gated product. Both
are part of the parameters' expressions. Which factors, someone measures (codegen/calibrate.py).

Method: J. Lin et al., "AWQ: activation-aware weight quantization", 2023.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ferrum.graphs.expressions.expression import Factors, factors
from ferrum.graphs.expressions.quarters import letters_of
from ferrum.graphs.ir import Graph, Node, Param
from ferrum.graphs.op_spec import integer

NORMS = ("rms_norm", "layer_norm")


@dataclass(frozen=True)
class Maker:
    """A parameter that makes the channels, from ``first`` along its first axis."""

    param: str
    first: int


@dataclass(frozen=True)
class Group:
    """A value and what reads it. Its last axis is ``[outer, times, inner]``: along ``times`` the makers' channels are the same.

    ``readers``: matrices whose columns are the value's channels.
    """

    value: str
    readers: tuple[str, ...]
    makers: tuple[Maker, ...]
    outer: int
    times: int
    inner: int

    @property
    def channels(self) -> int:
        """Of the makers: those that have a factor of their own."""
        return self.outer * self.inner

    def spread(self, quarters: Sequence[int]) -> list[int]:
        """Those of the makers' channels for each of the value's."""
        rows = [list(quarters[at * self.inner : (at + 1) * self.inner]) for at in range(self.outer)]
        return [one for row in rows for _ in range(self.times) for one in row]


@dataclass(frozen=True)
class Found:
    """``left``: why matrices have no factors, and how many for each reason."""

    groups: tuple[Group, ...]
    left: Mapping[str, int]


def find(graph: Graph) -> Found:
    """What can be scaled in a finished graph. The head, which is a matrix of another format, is not looked at."""
    seen, groups, left = _Seen(graph), [], Counter[str]()
    products = [node for node in graph.nodes if node.op == "linear" and node.output.name not in graph.outputs]
    for value in dict.fromkeys(node.inputs[0] for node in products):
        readers = [node for node in products if node.inputs[0] == value]
        found = seen.group(value, readers)
        if isinstance(found, Group):
            groups.append(found)
        else:
            left[found] += len(readers)
    others = Counter(node.op for node in graph.nodes if node.op in ("grouped_linear", "conv"))
    left.update({f"of {op}": number for op, number in others.items()})
    return Found(tuple(groups), dict(left))


class _Seen:
    """A graph's values with who makes and reads them."""

    def __init__(self, graph: Graph) -> None:
        self.outputs, self.makers, self.users = set(graph.outputs), graph.producers(), graph.users()
        self.params = {param.name: param for param in graph.params}

    def group(self, value: str, readers: Sequence[Node]) -> Group | str:
        """The group of a value, or why it is none."""
        node, names = self.makers.get(value), tuple(dict.fromkeys(reader.inputs[1] for reader in readers))
        others = [user for user in self.users[value] if user not in readers] + [r for r in readers if value in r.inputs[1:]]
        if others or value in self.outputs:
            return f"their input is read by {others[0].op if others else 'the user'} too"
        if not all(map(self.own, names)):
            return "their weights are shared or constant"
        if node is None:
            return "of an input"
        width = self.params[names[0]].shape[-1]
        if node.op in NORMS:
            return self.made(value, names, [(name, 0) for name in node.inputs[1:]], (width, 1, 1))
        if node.op == "linear" and node.attrs["activation"] and not node.attrs["has_residual"]:
            return self.made(value, names, [(name, width) for name in node.inputs[1:]], (width, 1, 1))
        if node.op == "paged_attention":
            return self.of_attention(value, names, node)
        return f"their input is made by {node.op}"

    def of_attention(self, value: str, names: tuple[str, ...], node: Node) -> Group | str:
        joined = self.makers.get(node.inputs[0])
        plain = joined is not None and joined.op == "linear" and not joined.attrs["activation"]
        if joined is None or not plain or joined.attrs["has_residual"] or self.users[node.inputs[0]] != (node,):
            return "attention reads what several products make"
        hq, hkv, d = (integer(node.attrs, key) for key in ("num_heads", "num_kv_heads", "head_dim"))
        return self.made(value, names, [(name, (hq + hkv) * d) for name in joined.inputs[1:]], (hkv, hq // hkv, d))

    def made(
        self, value: str, names: tuple[str, ...], makers: Sequence[tuple[str, int]], shape: tuple[int, int, int]
    ) -> Group | str:
        if not all(self.own(name) for name, _ in makers):
            return "what makes their input is shared or constant"
        return Group(value, names, tuple(Maker(*maker) for maker in makers), *shape)

    def own(self, name: str) -> bool:
        """Whether a parameter is the checkpoint's and has one user, so that nothing else sees a factor."""
        param = self.params.get(name)
        return param is not None and param.weight is not None and not param.format and len(self.users[name]) == 1


def scaled(param: Param) -> bool:
    """Whether the columns of a matrix have factors."""
    expr = param.weight
    while isinstance(expr, Factors):
        if expr.axis == len(param.shape) - 1 > 0:
            return True
        expr = expr.source
    return False


def run(graph: Graph, chosen: Mapping[str, Sequence[int]]) -> Graph:
    """``graph`` with factors. ``chosen``: by a group's value, for each of the makers' channels by how many quarters of an octave
    readers' columns grow; values that are not there stay as they are."""
    params = {param.name: param for param in graph.params}
    for group in find(graph).groups:
        quarters = chosen.get(group.value)
        if quarters is None:
            continue
        for name in group.readers:
            params[name] = _with(params[name], len(params[name].shape) - 1, letters_of(group.spread(quarters)))
        for maker in group.makers:
            before = "0" * maker.first
            letters = before + letters_of(-n for n in quarters)
            params[maker.param] = _with(params[maker.param], 0, letters)
    return replace(graph, params=tuple(params[param.name] for param in graph.params))


def _with(param: Param, axis: int, letters: str) -> Param:
    assert param.weight is not None
    return replace(param, source=factors(param.weight, axis, letters))
