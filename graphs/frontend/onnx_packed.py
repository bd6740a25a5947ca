"""Products with matrices that a file stores in blocks of few bits: their codes and scales stay what they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ferrum.graphs.expressions.expression import Dequant, Expr, Tensor, reshape
from ferrum.graphs.expressions.words import Words
from ferrum.graphs.frontend.builder import Unsupported
from ferrum.graphs.ir import Param, Value
from ferrum.graphs.onnx.file import OnnxNode
from ferrum.graphs.onnx.tensors import OnnxTensor

if TYPE_CHECKING:
    from ferrum.graphs.frontend.onnx import Importer

WORD = 32


def stored(imp: Importer, node: OnnxNode, at: int) -> OnnxTensor:
    found = imp.file.tensors.get(node.inputs[at]) if imp.given(node, at) else None
    if found is None:
        raise Unsupported(f"{node.op} whose input {at} is computed", "a stored tensor")
    return found


def words(tensor: OnnxTensor, shape: tuple[int, int]) -> Expr:
    """Bytes as words of 32 bits, whose lowest byte is the first (``ferrum.graphs.onnx.checkpoint`` lists them so)."""
    if tensor.dtype != "u8" or math.prod(tensor.shape) != 4 * math.prod(shape):
        raise Unsupported(f"{tensor.name[:80]} of {tensor.dtype} {list(tensor.shape)}", f"{4 * math.prod(shape)} bytes")
    return Tensor(tensor.name, shape, "i32")


def matmul_of_blocks(imp: Importer, node: OnnxNode) -> str:
    """MatMulNBits: x @ W.T of W [N, K] in blocks along K, each a row of bytes and a scale; zero points 2^(bits - 1) if none are
    stored."""
    bits, size, k, n = (node.integer(key, default) for key, default in (("bits", 4), ("block_size", 0), ("K", 0), ("N", 0)))
    if bits not in (4, 8) or min(size, k, n) < 1 or k % size or k * bits % WORD or imp.given(node, 4):
        raise Unsupported(f"MatMulNBits of {bits} bits, K {k} in blocks of {size}", "4 or 8 bits, whole blocks, no g_idx")
    codes, scales = stored(imp, node, 1), stored(imp, node, 2)
    groups = k // size
    if scales.dtype not in ("f16", "f32") or math.prod(scales.shape) != n * groups:
        raise Unsupported(f"scales of {scales.dtype} {list(scales.shape)}", f"f16 or f32 [{n}, {groups}]")
    factors = reshape(Tensor(scales.name, scales.shape, "f16" if scales.dtype == "f16" else "f32"), (n, groups))
    parts: tuple[Expr, ...] = (words(codes, (n, k * bits // WORD)), factors)
    scheme = f"packed{bits}"
    if imp.given(node, 3):
        if bits != 4 or groups * bits % WORD:
            raise Unsupported(f"zero points of {groups} blocks of {bits} bits", "none, or of 4 bits for a multiple of 8 blocks")
        scheme = "awq4v"
        parts = (*parts, words(stored(imp, node, 3), (n, groups * bits // WORD)))
    weight = imp.scope.add_param(Param(Value(codes.name, "f32", (n, k)), Dequant(Words(size, scheme), parts)))
    bias = [imp.tensor(node, 5, "f32")] if imp.given(node, 5) else []
    return imp.emit("linear", imp.tensor(node, 0, "f32"), weight, *bias, has_bias=bool(bias), has_residual=False, activation="")
