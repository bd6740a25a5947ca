"""The arrays of a step, written once: what the engine fills, what kernels read, what comes back.

Everything else is derived from ``StepInputs`` and ``StepOutputs``: the buffers that the engine writes, the record that the
generated C takes, the buffers of a launch table, the inputs and outputs of the program in the manifest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:  # a server reads packs too and needs no numpy
    import numpy as np
    from numpy.typing import NDArray

Rows = Literal["one", "tokens", "samples", "seqs", "groups", "blocks_per_seq", "adjust", "mask_words"]
ROWS: tuple[Rows, ...] = ("one", "tokens", "samples", "seqs", "groups", "blocks_per_seq", "adjust", "mask_words")
Dtype = Literal["int32", "uint32", "float32", "uint64"]

MAX_LOGPROBS = 20
GREEDY_BELOW = 1e-5  # a smaller temperature is greedy: logits divided by it would leave float32's range


class StepArray(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An array of a step in C order: the product of ``shape`` and ``width`` elements, and one more where ``plus_one``.

    ``source``: who fills an input, the engine, the output of another program (link) or the request.
    """

    name: str
    dtype: Dtype
    shape: tuple[Rows, ...]
    width: int = 1
    plus_one: bool = False
    source: Literal["engine", "link", "request"] = "engine"


def _array(dtype: Dtype, *shape: Rows, width: int = 1, plus_one: bool = False) -> Any:
    """The attribute's name becomes the array's."""
    return StepArray("", dtype, shape, width, plus_one)


class SamplingInputs:
    """What the drawing of tokens reads beside logits (``sampling.py``); one entry per sampled row."""

    temperature: NDArray[np.float32] = _array("float32", "samples")  # 0 is greedy
    top_k: NDArray[np.int32] = _array("int32", "samples")  # 0 is off
    top_p: NDArray[np.float32] = _array("float32", "samples")  # 1 is off
    min_p: NDArray[np.float32] = _array("float32", "samples")  # 0 is off
    repetition_penalty: NDArray[np.float32] = _array("float32", "samples")  # 1 is off; over prompt and output
    presence_penalty: NDArray[np.float32] = _array("float32", "samples")  # 0 is off; over output
    frequency_penalty: NDArray[np.float32] = _array("float32", "samples")  # 0 is off; over output
    seed: NDArray[np.uint64] = _array("uint64", "samples")  # with draw: the counter of the random stream
    draw: NDArray[np.uint64] = _array("uint64", "samples")  # index of the output token in its sequence
    num_logprobs: NDArray[np.int32] = _array("int32", "samples")  # -1: none, 0: chosen token only, up to MAX_LOGPROBS
    # rows' lists: row r owns penalty_start[r]:penalty_start[r+1]; count is how often the token is in the output
    penalty_start: NDArray[np.int32] = _array("int32", "samples", plus_one=True)
    penalty_token: NDArray[np.int32] = _array("int32", "adjust")
    penalty_count: NDArray[np.int32] = _array("int32", "adjust")
    bias_start: NDArray[np.int32] = _array("int32", "samples", plus_one=True)
    bias_token: NDArray[np.int32] = _array("int32", "adjust")
    bias_value: NDArray[np.float32] = _array("float32", "adjust")  # added to the logit
    # bit v of row r of the mask allows token v; read only where use_mask is 1
    use_mask: NDArray[np.int32] = _array("int32", "samples")
    mask: NDArray[np.uint32] = _array("uint32", "samples", "mask_words")


class StepInputs(SamplingInputs):
    # tokens of all sequences one after the other; the query tokens of sequence s are query_start[s]:query_start[s+1]
    tokens: NDArray[np.int32] = _array("int32", "tokens")
    positions: NDArray[np.int32] = _array("int32", "tokens")  # of each token in its sequence
    query_start: NDArray[np.int32] = _array("int32", "seqs", plus_one=True)
    context_len: NDArray[np.int32] = _array("int32", "seqs")  # KV length once this step's tokens are written
    # physical block ids by group of states: first those of blocks that no query passes, then those of ``Limits.groups``. Of a
    # window, what no query of the step sees is -1; a slot or a fixed place has the first entry only
    block_table: NDArray[np.int32] = _array("int32", "seqs", "groups", "blocks_per_seq")
    sample_rows: NDArray[np.int32] = _array("int32", "samples")  # the sampled rows: indices into tokens, ascending


class StepOutputs:
    out_token: NDArray[np.int32] = _array("int32", "samples")
    out_logprob: NDArray[np.float32] = _array("float32", "samples")  # of the raw distribution (before temperature)
    top_token: NDArray[np.int32] = _array("int32", "samples", width=MAX_LOGPROBS)  # descending
    top_logprob: NDArray[np.float32] = _array("float32", "samples", width=MAX_LOGPROBS)


class Sampling(SamplingInputs, StepOutputs):
    """All that the drawing of tokens reads beside logits, and all that it writes."""


def _arrays_of(owner: type) -> tuple[StepArray, ...]:
    found = ((name, value) for name, value in vars(owner).items() if isinstance(value, StepArray))
    return tuple(msgspec.structs.replace(value, name=name) for name, value in found)


SAMPLING = _arrays_of(SamplingInputs)
INPUTS = (*_arrays_of(StepInputs), *SAMPLING)
OUTPUTS = _arrays_of(StepOutputs)
# An encoder's step draws no tokens: a sequence is whole in it, and there is one row for each.
ENCODE_INPUTS = tuple(a for a in INPUTS if a.name in ("tokens", "positions", "sample_rows") or a.shape[0] == "seqs")
# by the rows of an array, what a step seldom uses the whole of
_SELDOM: dict[Rows, int] = {"blocks_per_seq": 1, "adjust": 2, "mask_words": 3}


def embedding_array(width: int) -> StepArray:
    """What an encoder's step gives: a row of each sequence."""
    return StepArray("embedding", "float32", ("samples",), width)


def by_use(arrays: tuple[StepArray, ...]) -> tuple[StepArray, ...]:
    """What every step needs first, lists that are mostly empty last: one run of bytes from the start holds what a step uses."""
    return tuple(sorted(arrays, key=lambda array: max(_SELDOM.get(axis, 0) for axis in array.shape)))


class RowCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows of each kind: those of a recording, or the limits themselves."""

    tokens: int
    samples: int
    seqs: int
    blocks_per_seq: int
    adjust: int
    mask_words: int
    groups: int = 1
    one: int = 1


def shape_of(array: StepArray, rows: RowCounts) -> tuple[int, ...]:
    """Its dimensions at the given limits."""
    leading = tuple(int(getattr(rows, axis)) for axis in array.shape)
    if array.plus_one:
        return (*leading[:-1], leading[-1] + 1)
    return (*leading, array.width) if array.width > 1 else leading
