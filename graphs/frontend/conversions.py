"""Where a traced model's parameters lie in its checkpoint: `transformers`' own conversion rules, read as expressions.

Its rules rename tensors and make one of several (the experts of a layer, gate and up). What they would do to arrays is done here
to expressions, so that weights are still read tensor by tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from ferrum.graphs.expressions.expression import Expr, Stack, Tensor, cat, permute, rows
from ferrum.graphs.findings import Finding, UnsupportedOps

Shapes = Mapping[str, tuple[int, ...]]
Parts = dict[str, list[Expr]]  # by the rule's source pattern, in order


def stacked(operation: Any, parts: Parts) -> Parts:
    if operation.dim != 0:
        raise NotImplementedError
    return {pattern: [Stack(tuple(tensors))] for pattern, tensors in parts.items()}


def joined(operation: Any, parts: Parts) -> Parts:
    return {next(iter(parts)): [cat([tensor for tensors in parts.values() for tensor in tensors], operation.dim)]}


def transposed(operation: Any, parts: Parts) -> Parts:
    def turn(tensor: Expr) -> Expr:
        order = list(range(len(tensor.type.shape)))
        a, b = operation.dim0 % len(order), operation.dim1 % len(order)
        order[a], order[b] = order[b], order[a]
        return permute(tensor, tuple(order))

    return {pattern: [turn(tensor) for tensor in tensors] for pattern, tensors in parts.items()}


def taken_apart(operation: Any, parts: Parts) -> Parts:
    """Rows 0, 2, 4 … before rows 1, 3, 5 …"""
    ((pattern, (tensor,)),) = parts.items()
    size = tensor.type.shape[operation.dim]
    if operation.inverse or size % 2:
        raise NotImplementedError
    return {pattern: [cat([rows(tensor, operation.dim, first, size, 2) for first in (0, 1)], operation.dim)]}


OPERATIONS: Mapping[str, Callable[[Any, Parts], Parts]] = {
    "MergeModulelist": stacked,
    "Concatenate": joined,
    "Transpose": transposed,
    "Interleave": taken_apart,
}


def natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """Numbers in names are ordered as numbers."""
    return tuple((not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"[.]", name))


def parameter_sources(model: Any, shapes: Shapes) -> dict[str, Expr]:
    """By the parameter's name in ``model``: what it is of the checkpoint's tensors, whose shapes are ``shapes``.

    Raises ``UnsupportedOps`` for a rule that has no form as an expression.
    """
    from transformers import core_model_loading as loading
    from transformers.conversion_mapping import get_model_conversion_mapping

    rules = get_model_conversion_mapping(model)
    converters = [rule for rule in rules if isinstance(rule, loading.WeightConverter)]
    renamings = [rule for rule in rules if not isinstance(rule, loading.WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    known = model.state_dict()
    found: dict[str, Expr] = {}
    grouped: dict[str, Parts] = {}
    for name in sorted(shapes, key=natural):
        target, pattern = loading.rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if pattern is None:
            found[target] = Tensor(name, shapes[name])
        else:
            grouped.setdefault(target, {}).setdefault(pattern, []).append(Tensor(name, shapes[name]))
    for target, parts in grouped.items():
        rule = by_pattern[next(iter(parts))]
        names = [target.replace(rule.target_patterns[0], other) for other in rule.target_patterns]
        found.update(zip(names, converted(rule, parts), strict=True))
    return found


def converted(rule: Any, parts: Parts) -> list[Expr]:
    """What each of the rule's targets is of the tensors. Raises ``UnsupportedOps``."""
    parts = {pattern: parts[pattern] for pattern in rule.source_patterns if pattern in parts}
    *operations, last = rule.operations
    split = type(last).__name__ == "Chunk"
    for operation in operations if split else rule.operations:
        name = type(operation).__name__
        try:
            parts = OPERATIONS[name](operation, parts)
        except (KeyError, NotImplementedError):
            raise unconverted(name) from None
    if [len(tensors) for tensors in parts.values()] != [1]:
        raise unconverted("several tensors to one")
    ((source,),) = parts.values()
    count, size = len(rule.target_patterns), source.type.shape[last.dim] if split else 1
    if (count > 1) != split or (split and (last.num_shards_attribute is not None or size % count)):
        raise unconverted(type(last).__name__)
    step = size // count
    return [rows(source, last.dim, i * step, (i + 1) * step) for i in range(count)] if split else [source]


def unconverted(how: str) -> UnsupportedOps:
    return UnsupportedOps([Finding(f"weights that are converted by {how}", "", "checkpoint", "")], "weights")
