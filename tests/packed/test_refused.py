"""Packed tensors and configurations that are wrong in any way: one line that names what, or the model that they mean."""

from __future__ import annotations

import copy
import json
import mmap
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ferrum.errors import FerrumError
from ferrum.graphs.expressions.evaluate import evaluate, whole
from ferrum.graphs.expressions.expression import Tensor
from ferrum.graphs.weights.checkpoint import Checkpoint
from ferrum.graphs.weights.packed import packing_fault, unpacked
from ferrum.graphs.weights.safetensors import DTYPES, TensorInfo
from tests.packed.folders import METHODS, Method
from tests.packed.layers import Made

SETTINGS = settings(max_examples=20, deadline=None)
Arrays = dict[str, tuple[str, NDArray[Any]]]
NAMES = {str(storage): ours for storage, ours in (
    (torch.float32, "f32"), (torch.float16, "f16"), (torch.bfloat16, "bf16"), (torch.float8_e4m3fn, "f8e4m3"),
    (torch.float8_e5m2, "f8e5m2"), (torch.int64, "i64"), (torch.int32, "i32"), (torch.int8, "i8"), (torch.uint8, "u8"),
)}  # fmt: skip
STORAGE: Mapping[str, Any] = {ours: storage for ours, storage in DTYPES.values()}


@dataclass
class InMemory:
    arrays: Arrays
    map: mmap.mmap

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        made = {}
        for name, (dtype, array) in self.arrays.items():
            made[name] = TensorInfo(dtype, STORAGE[dtype], array.shape, 0, array.nbytes)
        return made

    def read(self, name: str) -> NDArray[Any]:
        return self.arrays[name][1]


def experts(n: int, k: int) -> Made:
    blocks = torch.randint(0, 256, (2, n, k // 32, 16), dtype=torch.uint8)
    exponents = torch.randint(122, 125, blocks.shape[:3], dtype=torch.uint8)
    return Made({"up_proj_blocks": blocks, "up_proj_scales": exponents}, torch.empty(0))


ALL = METHODS | {"mxfp4": Method({"quant_method": "mxfp4"}, [experts])}


def checkpoint_of(arrays: Arrays) -> Checkpoint:
    file = InMemory(arrays, mmap.mmap(-1, 1))
    return Checkpoint(Path("model"), (file,), dict.fromkeys(arrays, file))


def stored(tensor: torch.Tensor) -> tuple[str, NDArray[Any]]:
    ours = NAMES[str(tensor.dtype)]
    data = tensor.contiguous().view(torch.uint8) if ours.startswith("f8") else tensor
    return ours, (data.view(torch.int16).numpy().view(np.uint16) if ours == "bf16" else data.numpy())


@cache
def layers_of(method: str) -> Arrays:
    """A layer of each kind, one beside the other."""
    torch.manual_seed(0)
    made = [maker(32, ALL[method].hidden) for maker in ALL[method].makers]
    return {f"a.{i}.{rest}": stored(tensor) for i, layer in enumerate(made) for rest, tensor in layer.tensors.items()}


def opened(config: Any, arrays: Arrays) -> str:
    """What is said of it; nothing where all weights have values."""
    values = {"quantization_config": config}
    if fault := packing_fault(values):
        return fault
    checkpoint = checkpoint_of(arrays)
    try:
        read = unpacked(checkpoint, values)
        assert read.model_shapes().keys() == read.meanings.keys()
        for expr in read.meanings.values():
            with np.errstate(all="ignore"):
                if not isinstance(expr, Tensor):
                    evaluate(expr, checkpoint, whole(expr.type.shape))
    except FerrumError as error:
        assert error.code in ("checkpoint-corrupt", "format-unsupported", "dtype-unsupported"), error.code
        assert "\n" not in str(error) and len(str(error)) < 400
        return str(error)
    return ""


@pytest.mark.parametrize("method", ALL)
def test_as_they_are_nothing_is_said(method: str) -> None:
    assert opened(ALL[method].config, layers_of(method)) == ""


def mutated(draw: Callable[[st.SearchStrategy[Any]], Any], dtype: str, array: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    """Another shape, another type or other numbers."""
    how = draw(st.sampled_from(["cut", "grow", "axis", "dtype", "values", "scalar"]))
    if how == "dtype":
        other = draw(st.sampled_from(sorted(STORAGE)))
        return other, np.zeros(array.shape, STORAGE[other])
    if how == "values":
        raw = draw(st.binary(min_size=array.nbytes, max_size=array.nbytes)) if array.nbytes < 1024 else b"\xff" * array.nbytes
        return dtype, np.frombuffer(raw, array.dtype).reshape(array.shape)
    if how == "scalar" or not array.ndim:
        return dtype, np.zeros((), array.dtype)
    axis = draw(st.integers(0, array.ndim - 1))
    if how == "axis":
        return dtype, array[None] if draw(st.booleans()) else array.reshape(-1)
    if how == "cut":
        return dtype, array.take(range(draw(st.integers(0, array.shape[axis]))), axis)
    return dtype, np.concatenate([array, array[(slice(None),) * axis + (slice(0, 1),)]], axis)


@pytest.mark.parametrize("method", ALL)
@SETTINGS
@given(st.data())
def test_wrong_tensors_never_end_in_a_traceback(method: str, data: st.DataObject) -> None:
    arrays = dict(layers_of(method))
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(sorted(arrays)))
        if data.draw(st.booleans()):
            arrays[name] = mutated(data.draw, *arrays[name])
        else:
            del arrays[name]
    opened(ALL[method].config, arrays)


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 300), st.floats(), st.text(max_size=4), st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), st.lists(st.dictionaries(st.text(max_size=2), st.none())),
)  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """All (table, key) of a configuration."""
    if not isinstance(value, dict):
        return []
    return [(value, key) for key in value] + [place for inner in value.values() for place in places(inner)]


@pytest.mark.parametrize("method", ALL)
@SETTINGS
@given(st.data())
def test_wrong_configurations_never_end_in_a_traceback(method: str, data: st.DataObject) -> None:
    config = copy.deepcopy(ALL[method].config)
    table, key = data.draw(st.sampled_from(places(config)))
    table[key] = data.draw(JUNK)
    assert "\n" not in opened(config, layers_of(method))


@pytest.mark.parametrize(
    ("method", "part", "words"),
    [
        ("gptq", ".qzeros", r"a\.0\.qzeros is missing"),
        ("gptq", ".scales", r"a\.0\.scales is missing"),
        ("awq", ".qzeros", r"awq: a\.0 has no qzeros \(zero_point = false\), which is not read yet"),
        ("compressed-tensors", ".weight_scale", r"a\.0\.weight_scale is missing"),
        ("compressed-tensors", ".weight_shape", r"a\.0\.weight_shape is missing"),
        ("fp8", ".weight_scale_inv", r"a\.0\.weight is f8e4m3 and has no scales that are read"),
        ("bitsandbytes", ".weight.absmax", r"a\.0\.weight\.absmax is missing"),
        ("bitsandbytes", ".weight.quant_state.bitsandbytes__nf4", r"a\.0\.weight is u8 and has no scales that are read"),
    ],
)
def test_what_is_missing_is_named(method: str, part: str, words: str) -> None:
    arrays = {name: array for name, array in layers_of(method).items() if name != f"a.0{part}"}
    assert re.search(words, opened(ALL[method].config, arrays))


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        (".g_idx", np.full(64, 2, np.int32), "a.6.g_idx is not the group of each of 64 values, of 2 groups"),
        (".g_idx", np.full(64, -1, np.int32), "a.6.g_idx is not the group"),
        (".scales", np.zeros((3, 32), np.float16), "a.6: 3 groups of 64 values"),
    ],
)
def test_groups_that_are_not_there_are_refused(part: str, values: NDArray[Any], words: str) -> None:
    arrays = dict(layers_of("gptq"))
    arrays[f"a.6{part}"] = (arrays[f"a.6{part}"][0], values)
    assert words in opened(METHODS["gptq"].config, arrays)


def test_states_of_bitsandbytes_are_not_believed() -> None:
    name = "a.0.weight.quant_state.bitsandbytes__nf4"
    for text in ("{", json.dumps({"blocksize": 0, "shape": [32, 64]}), json.dumps({"blocksize": 64, "shape": [1 << 40, 64]}),
                 json.dumps({"blocksize": 64, "shape": [-32, -64]}), " " * 5000):  # fmt: skip
        arrays = layers_of("bitsandbytes") | {name: ("u8", np.frombuffer(text.encode(), np.uint8))}
        assert opened(METHODS["bitsandbytes"].config, arrays)
