"""Expressions as hypothesis draws them, and what they mean, by whole arrays."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import strategies as st
from numpy.typing import NDArray

from ferrum.graphs.expressions import expression as e
from ferrum.graphs.expressions.coded import Scaled
from ferrum.graphs.expressions.schemes import Q8, Ggml, dequantized
from ferrum.graphs.expressions.words import Words
from tests.gguf.maker import random_blocks

Tensors = dict[str, NDArray[Any]]


def whole(expr: e.Expr, arrays: Tensors) -> NDArray[Any]:
    """What an expression means, with plain numpy and nothing of the evaluator."""
    match expr:
        case e.Tensor():
            data = arrays[expr.name]
            return data if data.dtype != np.float16 else data.astype(np.float32)
        case e.Rows():
            return whole(expr.source, arrays)[(slice(None),) * expr.axis + (slice(expr.start, expr.stop, expr.step),)]
        case e.Cat():
            return np.concatenate([whole(part, arrays) for part in expr.parts], expr.axis)
        case e.Stack():
            return np.stack([whole(part, arrays) for part in expr.parts])
        case e.Reshape():
            return whole(expr.source, arrays).reshape(expr.shape)
        case e.Permute():
            return whole(expr.source, arrays).transpose(expr.order)
        case e.Map():
            x, value = whole(expr.source, arrays), np.float32(expr.value)
            return {"add": lambda: x + value, "mul": lambda: x * value, "exp": lambda: np.exp(x)}[expr.function]()
        case e.Factors():
            quarters = np.array([ord(c) - 96 if c.islower() else 64 - ord(c) if c.isupper() else 0 for c in expr.quarters])
            sizes = (2.0 ** (quarters / 4)).astype(np.float32)
            return np.moveaxis(np.moveaxis(whole(expr.source, arrays), expr.axis, -1) * sizes, -1, expr.axis)
        case e.Dequant(Q8(size=size)):
            units = whole(expr.parts[0], arrays)
            units = units.reshape(*units.shape[:-1], -1, size + 2)
            scale = np.ascontiguousarray(units[..., :2]).view(np.float16).astype(np.float32)
            values = np.ascontiguousarray(units[..., 2:]).view(np.int8).astype(np.float32) * scale
            return values.reshape(*values.shape[:-2], -1)
        case e.Dequant(Ggml(name=name)):
            return dequantize(whole(expr.parts[0], arrays), GGMLQuantizationType[name.upper()])
        case e.Dequant(Words(size=size, name="packed4")):
            words, scales, groups = (whole(part, arrays) for part in expr.parts)
            codes = np.array([[int(row[k // 8]) >> 4 * (k % 8) & 15 for k in range(8 * words.shape[1])] for row in words])
            return (codes.astype(np.float32) - 8) * scales[:, groups].astype(np.float32)
        case e.Dequant(Scaled(size=size)):
            codes, scales = (whole(part, arrays) for part in expr.parts)
            n, k = codes.shape[-2:]
            rows = np.repeat(scales, {n: 1, 1: n}.get(scales.shape[-2], size), -2)[..., :n, :]
            return codes.astype(np.float32) * np.repeat(rows, size or k, -1)[..., :k].astype(np.float32)
        case e.Dequant(Words(size=size)):
            words, scales, zeros = (whole(part, arrays) for part in expr.parts)
            codes = np.array([[int(words[k // 8, n]) >> 4 * (k % 8) & 15 for n in range(words.shape[1])]
                              for k in range(8 * words.shape[0])])  # fmt: skip
            points = np.array([[int(row[n // 8]) >> 4 * (n % 8) & 15 for n in range(words.shape[1])] for row in zeros])
            spread = [np.repeat(part, size, 0).astype(np.float32) for part in (points, scales)]
            return (codes.astype(np.float32) - spread[0]) * spread[1]
    raise AssertionError(expr)


class Made:
    """Expressions as hypothesis draws them, and the tensors that they read."""

    def __init__(self, data: st.DataObject, quantized: bool) -> None:
        self.draw = data.draw
        self.quantized = quantized
        self.random = np.random.default_rng(data.draw(st.integers(0, 1000)))
        self.arrays: Tensors = {}

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def add(self, array: NDArray[Any], dtype: str) -> e.Tensor:
        name = f"t{len(self.arrays)}"
        self.arrays[name] = array
        return e.Tensor(name, array.shape, dtype)

    def leaf(self) -> e.Expr:
        kinds = ["q8", "int4", "ggml", "float", "ordered", "scaled"]
        kind = self.draw(st.sampled_from(kinds)) if self.quantized else "float"
        if kind == "q8":
            size, outer = self.draw(st.sampled_from([2, 4])), [self.integer(1, 3) for _ in range(self.integer(1, 2))]
            units = self.random.integers(0, 256, (*outer, self.integer(1, 2), size + 2), np.uint8)
            units[..., :2] = self.random.normal(size=units.shape[:-1]).astype(np.float16)[..., None].view(np.uint8)
            return e.Dequant(Q8(size), (self.add(units.reshape(*outer, -1), "u8"),))
        if kind == "ggml":
            block, outer = (
                self.draw(st.sampled_from(["q4_0", "q4_1", "iq4_nl"])),
                [self.integer(1, 3) for _ in range(self.integer(1, 2))],
            )
            raw = random_blocks(block, math.prod(outer), 32 * self.integer(1, 2), self.integer(0, 99))
            return dequantized(block, self.add(raw.reshape(*outer, -1), "u8"))
        if kind == "ordered":
            n, k, groups = self.integer(1, 4), 8 * self.integer(1, 2), self.integer(1, 3)
            words = self.random.integers(np.iinfo(np.int32).min, np.iinfo(np.int32).max, (n, k // 8), np.int32)
            scales = self.random.normal(size=(n, groups)).astype(np.float16)
            index = self.random.integers(0, groups, k, np.int32)
            size = -(-k // groups)
            if -(-k // size) == groups:
                parts = self.add(words, "i32"), self.add(scales, "f16"), self.add(index, "i32")
                return e.Dequant(Words(size, "packed4"), parts)
        if kind == "scaled":
            outer = [self.integer(1, 3) for _ in range(self.integer(0, 1))]
            n, k, size = self.integer(1, 5), self.integer(1, 9), self.draw(st.sampled_from([0, 2, 3, 4]))
            rows = self.draw(st.sampled_from([1, n, *([-(-n // size)] if size else [])]))
            codes = self.random.integers(-128, 128, (*outer, n, k), np.int8)
            scales = self.random.normal(size=(*outer, rows, -(-k // (size or k)))).astype(np.float32)
            return e.Dequant(Scaled(size, "int8"), (self.add(codes, "i8"), self.add(scales, "f32")))
        if kind == "int4":
            k, n, size = 8 * self.integer(1, 2), 8, self.draw(st.sampled_from([4, 8]))
            low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
            words, zeros = (self.random.integers(low, high, shape, np.int32) for shape in ((k // 8, n), (k // size, n // 8)))
            scales = self.random.normal(size=(k // size, n)).astype(np.float16)
            scale = self.add(scales, self.draw(st.sampled_from(["f16", "f32"])))
            return e.Dequant(Words(size, "gptq4v2"), (self.add(words, "i32"), scale, self.add(zeros, "i32")))
        shape = tuple(self.integer(1, 5) for _ in range(self.integer(1, 3)))
        return self.add(self.random.normal(size=shape).astype(self.draw(st.sampled_from([np.float16, np.float32]))), "f32")

    def like(self, expr: e.Expr) -> e.Expr:
        """The same steps of other tensors."""
        if isinstance(expr, e.Tensor):
            return self.add(self.random.permutation(self.arrays[expr.name].reshape(-1)).reshape(expr.shape), expr.dtype)
        if isinstance(expr, e.Cat | e.Stack | e.Dequant):
            return replace(expr, parts=tuple(map(self.like, expr.parts)))
        return replace(expr, source=self.like(expr.source))

    def step(self, expr: e.Expr, build: bool) -> e.Expr:
        """One more step: by the class, or by the function that simplifies."""
        shape = expr.type.shape
        axis = self.integer(0, len(shape) - 1)
        steps = ["rows", "rows", "cat", "stack", "reshape", "permute", "map"]
        match self.draw(st.sampled_from(steps if self.quantized else [*steps, "factors"])):
            case "rows":
                start = self.integer(0, shape[axis] - 1)
                stop, step = self.integer(start + 1, shape[axis]), self.integer(1, 3)
                return (e.rows if build else e.Rows)(expr, axis, start, stop, step)
            case "cat":
                cut = e.Rows(expr, axis, 0, self.integer(1, shape[axis]))
                rest = [e.Rows(expr, axis, cut.stop, shape[axis])] if cut.stop < shape[axis] and self.draw(st.booleans()) else []
                parts = (cut, *rest, self.like(expr))
                return e.cat(parts, axis) if build else e.Cat(parts, axis)
            case "stack" if len(shape) < 4:
                return e.Stack((expr, self.like(expr)))
            case "reshape":
                dims = self.draw(st.permutations([*shape[:2], 1] if len(shape) < 3 else [shape[0] * shape[1], *shape[2:]]))
                new = (*dims, *shape[2:]) if len(shape) < 3 else tuple(dims)
                return (e.reshape if build else e.Reshape)(expr, new)
            case "map" if not self.quantized:
                function, value = self.draw(st.sampled_from(["add", "mul", "exp"])), self.draw(st.sampled_from([1.0, -0.5]))
                return (e.mapped if build else e.Map)(expr, function, 0.0 if function == "exp" else value)
            case "factors":
                letters = self.draw(st.text("0abdzABZ", min_size=shape[axis], max_size=shape[axis]))
                return (e.factors if build else e.Factors)(expr, axis, letters)
        order = tuple(self.draw(st.permutations(range(len(shape)))))
        return (e.permute if build else e.Permute)(expr, order)

    def tree(self, build: bool = False) -> e.Expr:
        expr = self.leaf()
        for _ in range(self.integer(0, 5)):
            expr = self.step(expr, build)
        return expr
