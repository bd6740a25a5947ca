"""The interpreter's arithmetic with sums that nothing rounds: no machine, library or number of threads changes a bit of it.

What is summed is first rounded to whole multiples of a power of two, so large a one that float64 holds every sum of products
exactly: then no order of adding, which BLAS and vector units choose, and no fused instruction makes a difference. Between sums
there is only what IEEE 754 rounds in one way, + - * / and square roots, element by element; exponentials, sines and cosines are
polynomials of these. A value differs from the interpreter's by about 2 ** -16 of the largest one of its row.

``KERNELS`` has the ops that can be computed so; ``interpret(.., kernels=KERNELS)`` in float64 runs graphs of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from ferrum.graphs import numpy_ops
from ferrum.graphs.ir import Node
from ferrum.graphs.numpy_attention import visible
from ferrum.graphs.numpy_run import Array, Kernel, Run
from ferrum.graphs.op_spec import integer, number
from ferrum.graphs.ops import GATES

BITS = 17  # of a factor: sums of 2 ** 19 products stay below 2 ** 53
_SHARES = 20  # bits of what a softmax gives a key before it is divided by their sum
_TERMS = 14  # of Taylor's series: below float64's rounding for the arguments that are left
_LOWEST = -700.0  # of an exponential's argument; its value is a number and adds nothing
# ln 2 and pi / 2 in two parts, of which the first times a number of 20 bits is exact
_LOG2_E = 1.4426950408889634
_LN2 = (6.93147180369123816490e-01, 1.90821492927058770002e-10)
_HALF_PI = (1.57079632673412561417, 6.07710050650619224932e-11)


def whole(x: Array, axes: int | tuple[int, ...] = -1, bits: int = BITS) -> tuple[Array, Array]:
    """``x`` as whole numbers of at most ``2 ** bits`` and the unit that they count, a power of two for all along ``axes``."""
    exponent = np.frexp(np.abs(x).max(axes, keepdims=True))[1] - bits
    return np.rint(x * np.ldexp(1.0, -exponent)), np.ldexp(1.0, exponent)


def product(x: Array, y: Array) -> Array:
    """``x [.., n, k] @ y [.., m, k]``, of the second the rows."""
    (a, unit), (b, other) = whole(x), whole(y)
    return np.asarray((a @ np.swapaxes(b, -1, -2)) * unit * np.swapaxes(other, -1, -2))


def mean(x: Array, bits: int) -> Array:
    """Over the last axis, of which a number keeps its first ``bits`` beside the largest one."""
    numbers, unit = whole(x, bits=bits)
    return np.asarray(numbers.sum(-1, keepdims=True) * unit / x.shape[-1])


def exp(x: Array) -> Array:
    x = np.maximum(x, _LOWEST)
    twos = np.rint(x * _LOG2_E)
    rest = (x - twos * _LN2[0]) - twos * _LN2[1]
    return np.asarray(_series(rest, 1, 1) * np.ldexp(1.0, twos.astype(np.int64)))


def sine_cosine(x: Array) -> tuple[Array, Array]:
    """Of angles below 2 ** 20."""
    quarters = np.rint(x * (2 / math.pi))
    rest = (x - quarters * _HALF_PI[0]) - quarters * _HALF_PI[1]
    square = -(rest * rest)
    sine, cosine = rest * _series(square, 2, 2), _series(square, 1, 2)
    at = quarters.astype(np.int64) % 4
    return (
        np.choose(at, [sine, cosine, -sine, -cosine]),
        np.choose(at, [cosine, -sine, -cosine, sine]),
    )


def _series(x: Array, first: int, step: int) -> Array:
    """1 + x / first .. (first + step - 1) * (1 + x / ..): Taylor's series of factorials, from the last term to the first."""
    out = np.ones_like(x)
    for n in range(_TERMS, -1, -1):
        low = first + n * step
        out = 1 + out * x / math.prod(range(low, low + step))
    return out


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + exp(-np.maximum(x, _LOWEST))))


def silu(x: Array) -> Array:
    return np.asarray(x * sigmoid(x))


def gelu_tanh(x: Array) -> Array:
    """x (1 + tanh(y)) / 2, which is x sigmoid(2 y)."""
    return np.asarray(x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))


_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"silu": silu, "gelu_tanh": gelu_tanh}


def gated(activation: str, gate: Array, up: Array) -> Array:
    return np.asarray(_ACTIVATIONS[GATES[activation]](gate) * up)


def linear(run: Run, node: Node) -> Array:
    x, param = run.get(node.inputs[0]), run.params[node.inputs[1]]
    n, k = param.shape
    assert k <= 1 << (53 - 2 * BITS)
    step = max(1, numpy_ops.CHUNK_BYTES // (8 * k))
    out = np.empty((*x.shape[:-1], n))
    for low in range(0, n, step):
        high = min(n, low + step)
        out[..., low:high] = product(x, run.weights.rows(param, slice(low, high)).astype(np.float64))
    if node.attrs["has_bias"]:
        out += run.get(node.inputs[2])
    if node.attrs["activation"]:
        out = gated(str(node.attrs["activation"]), *np.split(out, 2, axis=-1))
    return out + run.get(node.inputs[-1]) if node.attrs["has_residual"] else out


def normalized(x: Array, weight: Array, eps: float) -> Array:
    numbers, unit = whole(x)
    squares = mean(numbers * numbers, 2 * BITS) * unit * unit
    return np.asarray(x / np.sqrt(squares + eps) * weight)


def rms_norm(run: Run, node: Node) -> Array:
    return normalized(run.get(node.inputs[0]), run.get(node.inputs[1]), number(node.attrs, "eps"))


def layer_norm(run: Run, node: Node) -> Array:
    x, weight, *bias = run.all(node)
    out = normalized(x - mean(x, 2 * BITS), weight, number(node.attrs, "eps"))
    return out + bias[0] if bias else out


def rotate(x: Array, positions: Array, inv_freq: Array, rope_dim: int, scale: float) -> Array:
    """``x`` [tokens, heads, width], halves paired."""
    sine, cosine = (part[:, None] * scale for part in sine_cosine(positions[:, None] * inv_freq))
    half = rope_dim // 2
    a, b, rest = x[..., :half], x[..., half:rope_dim], x[..., rope_dim:]
    return np.concatenate([a * cosine - b * sine, b * cosine + a * sine, rest], axis=-1)


def attention(q: Array, k: Array, v: Array, scale: float, window: int) -> Array:
    """One sequence from its first token: queries [n, heads, width], keys and values [n, kv heads, width].

    Matrices of one head are so small that a library's threads would wait for each other longer than they compute.
    """
    times = q.shape[1] // k.shape[1]
    (a, a_unit), (b, b_unit), (values, unit) = whole(q), whole(np.repeat(k, times, axis=1)), whole(np.repeat(v, times, 1), (0, 2))
    scores = np.einsum("ihd,jhd->hij", a, b) * (a_unit.transpose(1, 0, 2) * b_unit.transpose(1, 2, 0) * scale)
    at = np.arange(len(q))
    scores = np.where(visible(at, at, True, window), scores, -np.inf)
    shares = np.rint(exp(scores - scores.max(-1, keepdims=True)) * (1 << _SHARES))
    total = shares.sum(-1).T[..., None]
    return np.asarray(np.einsum("hij,jhd->ihd", shares, values) * unit / total)


def paged_attention(run: Run, node: Node) -> Array:
    a = node.attrs
    hq, hkv, d = (integer(a, key) for key in ("num_heads", "num_kv_heads", "head_dim"))
    qkv = run.get(node.inputs[0]).reshape(-1, hq + 2 * hkv, d)
    q, k, v = qkv[:, :hq], qkv[:, hq : hq + hkv], qkv[:, hq + hkv :]
    if a["qk_norm"]:
        q, k = (normalized(x, run.get(name), number(a, "eps")) for x, name in zip((q, k), node.inputs[2:4], strict=True))
    turned = run.env["positions"], run.get(node.inputs[1]), integer(a, "rope_dim"), number(a, "rope_scale")
    q, k = (rotate(x, *turned) for x in (q, k))
    out = np.empty_like(q)
    for low, high in run.sequences.spans("tokens"):
        out[low:high] = attention(q[low:high], k[low:high], v[low:high], number(a, "scale"), integer(a, "window"))
    return out.reshape(-1, hq * d)


# Of the interpreter's own those that compute nothing, or an element from an element.
_SAME = (
    "embedding", "gather_rows", "reshape", "permute", "slice", "cat", "expand", "add", "sub", "mul", "div", "add_scalar",
    "mul_scalar",
)  # fmt: skip
KERNELS: Mapping[str, Kernel] = {
    **{op: numpy_ops.KERNELS[op] for op in _SAME},
    "linear": linear,
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "paged_attention": paged_attention,
    "silu": numpy_ops.unary(silu),
    "gelu_tanh": numpy_ops.unary(gelu_tanh),
    "gated": lambda run, node: gated(str(node.attrs["activation"]), *run.all(node)),
}


def unknown_op(node: Node) -> str:
    """What of a node cannot be computed so; empty where nothing is in the way."""
    gate = GATES.get(str(node.attrs.get("activation", "")), "silu")
    if node.op not in KERNELS or gate not in _ACTIVATIONS:
        return node.op if node.op not in KERNELS else f"{node.op} with {gate}"
    return ""
