"""What became of a checkpoint's quantized weights: which lie in the pack as they were, and what the others are there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator

from ferrum.codegen.layouts import parse_format
from ferrum.graphs.expressions.expression import Dequant, Expr, inputs
from ferrum.graphs.expressions.floats import why_floats
from ferrum.graphs.expressions.words import Words
from ferrum.graphs.ir import Graph
from ferrum.graphs.passes.layout import blocks_of

# What a scheme is called by those who make such files, where it is not its own name.
_NAMES = {"q8": "q8_0"}
_ORDERED = " in an order of its own (desc_act)"


def kept_note(graph: Graph, unused: Collection[str] = ()) -> str:
    """``q8_0 stays as it is (int8-g32); q6_k becomes bf16``, the most values first; empty if nothing was quantized. ``unused``:
    tensors of the checkpoint that nothing is done with."""
    kept, others = _found(graph)
    words = [f"{block} stays as it is ({fmt})" for (block, fmt), _ in kept.most_common()]
    words += [f"{block} becomes {fmt}" + (f", because {why}" if why else "") for (block, fmt, why), _ in others.most_common()]
    if unused:
        kinds = ", ".join(sorted({name.rpartition(".")[2] for name in unused}))
        words.append(f"scales of activations and caches are not used ({kinds})")
    return "; ".join(words)


def kept_formats(graph: Graph) -> str:
    """The names of blocks that are kept and of the formats that others became, as ``q8_0+bf16``."""
    kept, others = _found(graph)
    names: Counter[str] = Counter()
    for (block, _), values in kept.items():
        names[block] += values
    for (_, fmt, _), values in others.items():
        names[fmt] += values
    return "+".join(name for name, _ in names.most_common())


def _found(graph: Graph) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str, str]]]:
    """Numbers of values by block and format that are kept, and by block, format and reason that are not."""
    kept: Counter[tuple[str, str]] = Counter()
    others: Counter[tuple[str, str, str]] = Counter()
    for param in graph.params:
        if param.weight is None or not param.format:
            continue
        fmt, why = parse_format(param.format), why_floats(param.weight)
        holds = fmt.holds(blocks_of(param))
        for block, values in _blocks(param.weight):
            if holds:
                kept[block, fmt.name] += values
            else:
                others[block, fmt.name, why] += values
    return kept, others


def _blocks(expr: Expr) -> Iterator[tuple[str, int]]:
    """The quantized tensors of an expression: what the format of their file calls the blocks, and how many values they are."""
    if isinstance(expr, Dequant):
        ordered = isinstance(expr.scheme, Words) and len(expr.parts[-1].type.shape) == 1
        yield _NAMES.get(expr.scheme.name, expr.scheme.name) + (_ORDERED if ordered else ""), math.prod(expr.type.shape)
    for part in inputs(expr):
        yield from _blocks(part)
