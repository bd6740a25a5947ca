"""Calibration: factors between activations and columns of quantized matrices, chosen by what quantizing loses with each.

The unquantized model reads some texts. Where a value reaches matrices that will be quantized, the size of each of its channels is
known then, and rows of these matrices are stored with several sets of factors, powers of the size. The set stays whose error,
weighted by the channel's mean square, is the least; where the target rounds activations to bytes, theirs counts too. Every number
that a choice depends on is exact or rounded in one way (``graphs/numpy_exact.py``, ``math.fsum``), so that packs have the same
bytes wherever they are made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.calibration_text import TEXTS
from ferrum.codegen.layouts import RowLayout, TiledLayout, parse_layout, stored
from ferrum.codegen.layouts.activations import parse_act
from ferrum.codegen.layouts.formats import F32
from ferrum.codegen.quality import CheckpointWeights
from ferrum.errors import FerrumError
from ferrum.graphs.expressions.evaluate import evaluate
from ferrum.graphs.expressions.quarters import MOST, factors_of, letters_of
from ferrum.graphs.interpret import interpret
from ferrum.graphs.ir import Graph
from ferrum.graphs.numpy_exact import KERNELS, unknown_op, whole
from ferrum.graphs.passes import layout, rescale
from ferrum.graphs.passes.rescale import Group
from ferrum.graphs.rewrite import live
from ferrum.graphs.text import print_graph
from ferrum.graphs.weights.checkpoint import Checkpoint
from ferrum.text.given_text import read_given
from ferrum.text.sample_text import pieces_of, tokens_of
from ferrum.text.tokenizer import Tokenizer

F64 = NDArray[np.float64]
Stored = TiledLayout | RowLayout
_POWERS, _HIGHEST = 8, 6  # candidates: the size of a channel to the power of 0 / 8 … 6 / 8
_ROWS = 128  # of a matrix, and of activations, that are rounded for each candidate
_TOKENS, _PIECES = 64, 16  # of a text that are read, and how many texts of a file
_BITS = 20  # of activations and errors that are squared and summed up: of 2 ** 13 of them float64 holds every sum


def calibrate(graph: Graph, policy: layout.LayoutPolicy, checkpoint: Checkpoint, texts: Sequence[Sequence[int]]) -> Graph:
    """``graph`` with factors. ``texts``: token ids of each. A graph of which some op has no exact arithmetic stays as it is."""
    groups = {group.value: group for group in rescale.find(graph).groups}
    if not groups or _unknown(graph, groups):
        return graph
    search = _Search(graph, groups, layout.choose(graph, policy), CheckpointWeights(checkpoint))
    search.run(texts, _last(graph, groups))
    checkpoint.give_back()
    return rescale.run(graph, search.chosen)


def calibration_key(graph: Graph, policy: layout.LayoutPolicy) -> str:
    """All that decides on factors but the checkpoint and the texts."""
    kinds = {name: (choice.format, choice.layout[:4], choice.act) for name, choice in layout.choose(graph, policy).items()}
    return f"{print_graph(graph)}{sorted(kinds.items())}"


def calibrated(graph: Graph, read: bool) -> str:
    """What of a graph, laid out or not, has factors, and why the rest has none; ``read``: whether there were texts."""
    graph = layout.undone(graph)
    found = rescale.find(graph)
    unknown = _unknown(graph, groups := {group.value: group for group in found.groups})
    others = f"{unknown} has no exact arithmetic" if unknown else "nothing gains"
    names = [name for group in groups.values() for name in group.readers]
    number = sum(map(rescale.scaled, graph.params))
    left = {others if read else "the model has no tokenizer for the texts": len(names) - number, **found.left}
    listed = [f"{count} without, as {reason}" for reason, count in left.items() if count]
    return "; ".join([f"{number} matrices have factors", *listed])


def read_texts(calibration: str, tokenizer: bytes, graph: Graph, longest: int) -> list[list[int]]:
    """Token ids of the texts that ferrum ships (``shipped``), or of pieces of a file that are spread evenly over it.

    None where the model has no tokenizer, or one that cannot spell them. Raises FerrumError (text-unreadable).
    """
    tables = [graph.param(node.inputs[1]) for node in graph.nodes if node.op == "embedding" and node.inputs[0] == "tokens"]
    if not tokenizer or len(tables) != 1:
        return []
    known, size, most = Tokenizer(tokenizer), tables[0].shape[0], min(_TOKENS, longest)
    if calibration == "shipped":
        return tokens_of(TEXTS, known, size, most)
    pieces = pieces_of(known, read_given(calibration), size, most)
    if not pieces:
        raise FerrumError("text-unreadable", "the text has fewer than two tokens", calibration, "give a longer one")
    return pieces[:: -(-len(pieces) // _PIECES)]


def _unknown(graph: Graph, groups: Iterable[str]) -> str:
    """An op that the groups' values depend on and that has no exact arithmetic."""
    nodes, _ = live(graph.nodes, groups)
    return next((op for node in nodes if (op := unknown_op(node))), "")


def _last(graph: Graph, groups: Iterable[str]) -> list[str]:
    """Values that need all others of the groups."""
    last: list[str] = []
    needed: set[str] = set()
    for value in reversed(list(groups)):
        if value not in needed:
            last.append(value)
            needed |= live(graph.nodes, last)[1]
    return last


@dataclass
class _Search:
    """What a run of the model sees, value by value. ``chosen``: as ``rescale.run`` takes them."""

    graph: Graph
    groups: Mapping[str, Group]
    choices: Mapping[str, layout.Choice]
    weights: CheckpointWeights
    chosen: dict[str, list[int]] = field(default_factory=dict)

    def run(self, texts: Sequence[Sequence[int]], wanted: Sequence[str]) -> None:
        starts = [0, *np.cumsum([len(ids) for ids in texts]).tolist()]
        inputs = {
            "tokens": np.concatenate(texts).astype(np.int32),
            "positions": np.concatenate([np.arange(len(ids)) for ids in texts]).astype(np.int32),
            "sample_rows": np.arange(starts[-1], dtype=np.int32),
        }
        given = {value.name: inputs[value.name] for value in self.graph.inputs if value.name in inputs}
        interpret(
            self.graph, given, self.weights, np.float64, query_start=starts, observe=self.observe, wanted=wanted, kernels=KERNELS
        )

    def observe(self, name: str, x: F64) -> None:
        group = self.groups.get(name)
        if group is None or not np.isfinite(x).all():
            return
        x = x.reshape(-1, x.shape[-1])
        size, square = _sizes(x, group)
        matrices = [self.sample(name) for name in group.readers]
        act = parse_act(self.choices[group.readers[0]].act)
        some = x[:: -(-len(x) // _ROWS)]
        energy = sum(_squares(rows.astype(np.float64)) * times for rows, _, times in matrices) * (len(x) / len(some))
        least, best = math.inf, [0] * group.channels
        for power in range(_HIGHEST + 1):
            quarters = _quarters(size, power)
            factors = factors_of(letters_of(group.spread(quarters)))
            lost = [math.fsum(_errors(rows, how, factors) * square) * times for rows, how, times in matrices]
            if act.group:
                lost.append(math.fsum(_rounding(some, act.group, factors) * energy))
            if (total := math.fsum(lost)) < least:
                least, best = total, quarters
        if any(best):
            self.chosen[name] = best

    def sample(self, name: str) -> tuple[F32, Stored, float]:
        """Rows of a matrix, evenly spread, how they are stored, and how many each stands for."""
        param = self.graph.param(name)
        assert param.weight is not None
        n, k = param.shape
        step = -(-n // _ROWS)
        rows: F32 = evaluate(param.weight, self.weights.reader, (slice(0, n, step), slice(0, k, 1))).astype(np.float32)
        made = parse_layout(self.choices[name].layout, self.choices[name].format, param.shape)
        assert isinstance(made, Stored)
        return rows, replace(made, n=len(rows), halves=1), n / len(rows)


def _sizes(x: F64, group: Group) -> tuple[F64, F64]:
    """Of ``x`` [tokens, channels]: sums of magnitudes, for each channel of the makers, and of squares, for each of its own."""
    numbers, _ = whole(np.abs(x), (0, 1), _BITS)
    size = numbers.sum(0).reshape(group.outer, group.times, group.inner).sum(1).reshape(-1)
    return size, _squares(x)


def _quarters(size: F64, power: int) -> list[int]:
    """log2 of ``size`` ** (power / _POWERS) in quarters, around their mean. ``size``: whole numbers."""
    raised = np.ones_like(size)
    for _ in range(power):
        raised = raised * np.maximum(size, 1.0)
    # a number is below two to this power, and at least half of that
    halves = np.frexp(raised)[1].astype(np.int64)
    found = halves * 4 // _POWERS
    return np.clip(found - found.sum() // len(found), -MOST, MOST).tolist()


def _errors(matrix: F32, layout: Stored, factors: F32) -> F64:
    """What storing ``matrix`` [rows, K] times ``factors`` loses: for each column the sum of squares, without the factor."""
    scaled = matrix * factors
    lost = layout.decode(stored(scaled, layout).data) - scaled
    wide = factors.astype(np.float64)
    return _squares(lost.astype(np.float64)) / (wide * wide)


def _rounding(x: F64, group: int, factors: F32) -> F64:
    """What rounding ``x`` [tokens, channels] through ``factors`` to bytes loses: for each channel the sum of squares."""
    k, wide = x.shape[1], factors.astype(np.float64)
    groups = np.zeros((len(x), -(-k // group), group))
    groups.reshape(len(x), -1)[:, :k] = x / wide
    step = np.abs(groups).max(-1, keepdims=True) / 127
    lost = np.rint(np.divide(groups, step, out=np.zeros_like(groups), where=step > 0)) * step - groups
    return _squares(lost.reshape(len(x), -1)[:, :k]) * (wide * wide)


def _squares(x: F64) -> F64:
    """Of each column the sum of squares, which no order of adding changes."""
    numbers, unit = whole(x, (0, 1), _BITS)
    return np.asarray((numbers * numbers).sum(0) * unit.item() ** 2)
