"""What a file does not say: which of its inputs are what, and which of its stored floats are numbers of the model's own.

A file calls weights and tables (frequencies, cosines, masks) initializers alike. A table is what is computed with places; a
weight meets what is computed of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ferrum.graphs.dims import Dim
from ferrum.graphs.frontend.builder import Unsupported
from ferrum.graphs.frontend.onnx_held import Empty, Held, sizes
from ferrum.graphs.ir import Value
from ferrum.graphs.onnx.file import OnnxFile, OnnxNode, OnnxValue

if TYPE_CHECKING:
    from ferrum.graphs.frontend.onnx import Importer

TOKENS = ("input_ids", "tokens", "input_tokens", "ids")
_PAST = re.compile(r"past")
_PRESENT = re.compile(r"present|past|updated")

# inputs


def tokens(imp: Importer, given: OnnxValue) -> Held:
    """Integers [batch, seq]."""
    fits = len(given.shape) == 2 and given.dtype in ("i64", "i32") and all(isinstance(dim, str) for dim in given.shape)
    if not fits or "tokens" in imp.scope.types:
        shape = [str(dim) for dim in given.shape]
        raise Unsupported(f"input {given.name} of {given.dtype or 'another type'} {shape}", "one integer input [batch, seq]")
    value = Value("tokens", given.dtype, ("batch", "seq"))
    imp.inputs.append(value)
    imp.scope.types["tokens"] = value
    imp.scope.taken.add("tokens")
    return "tokens"


def mask(imp: Importer, given: OnnxValue) -> Held:
    """Of whole sequences without padding: ones."""
    if len(given.shape) != 2:
        raise Unsupported(f"a mask {given.name} of {len(given.shape)} axes", "attention_mask [batch, seq]")
    return imp.constant(1.0, ("batch", "seq"), given.dtype if given.dtype in ("i64", "i32", "bool") else "f32")


def places(imp: Importer, given: OnnxValue) -> Held:
    """0, 1, 2 … of each sequence; several such rows count along several axes of a picture, and in text alike."""
    shape: tuple[Dim, ...] = (*given.shape[:-2], *("batch", "seq")[max(0, 2 - len(given.shape)) :])
    if not shape or not all(isinstance(dim, int) for dim in shape[:-2]):
        raise Unsupported(f"positions {given.name} of {len(given.shape)} axes", "position_ids [batch, seq]")
    row = imp.emit("iota", shape=("seq",), dtype="i64", start=0, step=1)
    row = imp.reshape(row, (*(1 for _ in shape[:-1]), "seq"))
    return row if len(shape) == 1 else imp.emit("expand", row, shape=shape)


def past(imp: Importer, given: OnnxValue) -> Held:
    """What came before: a sequence begins with nothing. Which axis counts its tokens is the one beside batch that has no size."""
    open_axes = [axis for axis, dim in enumerate(given.shape) if axis and isinstance(dim, str)]
    if len(open_axes) != 1 or not given.shape:
        shape = [str(dim) for dim in given.shape]
        raise Unsupported(f"a past {given.name} of {shape}", "past_key_values [batch, heads, past, width]: past of any size")
    return Empty(tuple(0 if axis in open_axes else "batch" if not axis else dim for axis, dim in enumerate(given.shape)), "f32")


INPUTS: tuple[tuple[re.Pattern[str], Callable[[Importer, OnnxValue], Held]], ...] = (
    (re.compile(rf"^({'|'.join(TOKENS)})$"), tokens),
    (re.compile(r"attention_mask$"), mask),
    (re.compile(r"position_ids$|cache_position$"), places),
    (_PAST, past),
    (re.compile(r"^(num_)?logits_to_keep$"), lambda imp, given: sizes(0)),  # all
)


def held(imp: Importer, given: OnnxValue, alone: bool) -> Held:
    """What stands for an input. Raises Unsupported."""
    found = next((make for pattern, make in INPUTS if pattern.search(given.name)), None)
    if found is None and not alone:
        known = "input_ids, attention_mask, position_ids, past_key_values"
        raise Unsupported(f"the input {given.name[:80]}", known)
    return (found or tokens)(imp, given)


def logits(file: OnnxFile) -> OnnxValue | None:
    """The output that is neither a cache nor another state."""
    named = [value for value in file.outputs if value.name == "logits"]
    left = [value for value in file.outputs if not _PRESENT.match(value.name)]
    return next(iter(named or left), None)


# stored floats

MOVES = frozenset({
    "Gather", "Slice", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Concat", "Cast", "Identity", "Split", "Flatten",
})  # fmt: skip
# Inputs that are tables whatever they meet, by op.
OF_PLACES: Mapping[str, tuple[int, ...]] = {"RotaryEmbedding": (1, 2, 3), "GroupQueryAttention": (7, 8)}
ADDED = frozenset({"Add", "Sub", "Sum"})
LEARNED_AXES = 2  # of what is learned for each place


@dataclass(frozen=True)
class Made:
    """What a value is made of: ``stored`` floats that are nothing yet; ``picked``, ``mixed``: how places had a part in it."""

    tokens: bool = False
    places: bool = False
    picked: bool = False
    mixed: bool = False
    stored: frozenset[str] = frozenset()


def tables(file: OnnxFile) -> frozenset[str]:
    """The stored floats that are numbers of the model's own."""
    made: dict[str, Made] = {value.name: input_made(value) for value in file.inputs}
    made |= {name: Made(stored=frozenset({name})) for name, t in file.tensors.items() if t.dtype[0] in "fb" and t.dtype != "bool"}
    found: set[str] = set()
    for node in file.nodes:
        given = [made.get(name, Made()) for name in node.inputs]
        always = [one for at, one in enumerate(given) if at in OF_PLACES.get(node.op, ())]
        found.update(name for one in always for name in one.stored)
        if node.op in ("Shape", "Size"):
            result = Made(places=True)
        elif any(one.tokens for one in given):
            found.update(name for one in given if is_table(file, node, one) for name in one.stored)
            result = Made(tokens=True)
        else:
            result = combined(node, given)
        made.update(dict.fromkeys(node.outputs, result))
    return frozenset(found)


def input_made(value: OnnxValue) -> Made:
    return Made(places=True) if re.search("mask|position|past|keep", value.name) else Made(tokens=True)


def combined(node: OnnxNode, given: list[Made]) -> Made:
    """Without tokens: floats that places pick from, or that are computed with."""
    stored = frozenset[str]().union(*(one.stored for one in given))
    of_places = any(one.places for one in given)
    moved = node.op in MOVES
    before = Made(picked=any(one.picked for one in given), mixed=any(one.mixed for one in given), places=of_places, stored=stored)
    if not stored or not of_places:
        return before
    return replace(before, picked=True) if moved else replace(before, mixed=True)


def is_table(file: OnnxFile, node: OnnxNode, one: Made) -> bool:
    """Whether what meets tokens in ``node`` is a table: a value for each place that is added is learned, others are computed."""
    if not one.picked or one.mixed:
        return one.mixed
    return node.op not in ADDED or any(len(file.tensors[name].shape) > LEARNED_AXES for name in one.stored)
