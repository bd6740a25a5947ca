"""A decoder of a record as a graph: layers that are alike are traced once and written down as often as the model has them.

Tracing costs a quarter of a second a layer, and all but the first few layers say nothing new. So a short model is traced that has
every kind of layer behind another layer, and its last layers are repeated in the graph: values get fresh names, parameters
those of the layer that they stand for. What layers share (angles, masks) they read where the first of them made it. The graph is
the one that tracing all layers gives, by test.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from ferrum.graphs.expressions.expression import Expr, Tensor
from ferrum.graphs.frontend.torch_export import import_module
from ferrum.graphs.ir import Graph, Node, Param
from ferrum.graphs.models.config import ModelConfig
from ferrum.graphs.models.registry import build, checkpoint_sources

_LAYER = re.compile(r"layers\.(\d+)(?=[. ])")
_NUMBER = re.compile(r"\.\d+$")
Sources = Callable[[str], str | Expr]


def import_decoder(config: ModelConfig, name: str = "model") -> Graph:
    """The graph of the module that ``config`` describes; errors as ``import_module``."""
    kinds = config.layer_types
    count = layers_to_trace(kinds)
    short = build(replace(config, num_layers=count, layer_types=kinds[:count]))
    graph = import_module(short, config, name, checkpoint_sources(short))
    if count == len(kinds):
        return graph
    whole = build(config)
    pattern = [*range(count), *(max(i for i in range(count) if kinds[i] == kind) for kind in kinds[count:])]
    shapes = {parameter: tuple(tensor.shape) for parameter, tensor in whole.named_parameters()}
    return repeat_layers(graph, pattern, Renamed(checkpoint_sources(short), checkpoint_sources(whole), shapes))


def layers_to_trace(kinds: Sequence[str]) -> int:
    """How many layers from the first on show every kind of layer behind another one."""
    firsts = {kind: i for i, kind in reversed([*enumerate(kinds)][1:])}
    return 1 + max(firsts.values(), default=0)


@dataclass(frozen=True)
class Renamed:
    """From a parameter of a layer to that of another: ``short`` and ``whole`` say where those of both models lie."""

    short: Sources
    whole: Sources
    shapes: Mapping[str, tuple[int, ...]]

    def layer(self, number: int) -> dict[str, str]:
        """The parameters of a traced layer: name in the graph → name in the module."""
        own = [name for name in self.shapes if name.startswith(f"layers.{number}.")]
        return {found if isinstance(found := self.short(name), str) else name: name for name in own}

    def param(self, old: Param, module_name: str) -> Param:
        found = self.whole(module_name)
        if not isinstance(found, str):
            return Param(replace(old.value, name=module_name), found)
        return Param(replace(old.value, name=found), Tensor(found, self.shapes[module_name]))


def repeat_layers(graph: Graph, pattern: Sequence[int], renamed: Renamed) -> Graph:
    """``graph`` of the first layers with layer ``i`` as a copy of ``pattern[i]``, which for those that it has is ``i`` itself."""
    before, *layers, after = _parts(graph)
    ends = [layer[-1].output.name for layer in layers]
    params = {param.name: param for param in graph.params}
    copier = Copier()
    for node in (*before, *chain(*layers)):
        copier.add(node, copier.names)
    end = copier.names[ends[-1]]
    for number in range(len(layers), len(pattern)):
        of = pattern[number]
        here = copier.names | {ends[of - 1]: end}
        for old, module_name in renamed.layer(of).items():
            new = renamed.param(params[old], module_name.replace(f"layers.{of}.", f"layers.{number}.", 1))
            copier.params.append(new)
            here[old] = new.name
        for node in layers[of]:
            if all(here.get(name) == copier.names.get(name) for name in node.inputs):
                continue  # nothing of the layer is in it: a mask, which the first such layer made for all
            copier.add(replace(node, origin=node.origin.replace(f"layers.{of}", f"layers.{number}", 1)), here)
        end = here[ends[of]]
    copier.names[ends[-1]] = end
    for node in after:
        copier.add(node, copier.names)
    last = max(i for i, param in enumerate(graph.params) if param.name in renamed.layer(len(layers) - 1))
    every = (*graph.params[: last + 1], *copier.params, *graph.params[last + 1 :])
    return replace(graph, params=every, nodes=tuple(copier.nodes), outputs=tuple(copier.names[name] for name in graph.outputs))


@dataclass
class Copier:
    """Nodes under names that count anew; ``names``: of a value of the traced graph, and its first copy."""

    names: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)
    numbers: Counter[str] = field(default_factory=Counter)

    def add(self, node: Node, names: dict[str, str]) -> None:
        """A copy of ``node``, which reads what ``names`` says; its values' names are put there."""
        inputs = tuple(names.get(name, name) for name in node.inputs)
        outputs = tuple(replace(value, name=self.fresh(value.name)) for value in node.outputs)
        names.update((old.name, new.name) for old, new in zip(node.outputs, outputs, strict=True))
        self.nodes.append(replace(node, inputs=inputs, outputs=outputs))

    def fresh(self, name: str) -> str:
        stem = _NUMBER.sub("", name)
        self.numbers[stem] += 1
        return f"{stem}.{self.numbers[stem] - 1}" if self.numbers[stem] > 1 else stem


def _parts(graph: Graph) -> list[list[Node]]:
    """Nodes before the layers, of each layer, and behind them."""
    numbers = [int(found[1]) if (found := _LAYER.match(node.origin)) else -1 for node in graph.nodes]
    first = next(i for i, number in enumerate(numbers) if number >= 0)
    last = max(i for i, number in enumerate(numbers) if number >= 0)
    inside = numbers[first : last + 1]
    assert inside == sorted(inside), "nodes of layers are mixed with each other, or with those of no layer"
    layers = [[node for node, number in zip(graph.nodes, numbers, strict=True) if number == i] for i in range(inside[-1] + 1)]
    return [[*graph.nodes[:first]], *layers, [*graph.nodes[last + 1 :]]]
