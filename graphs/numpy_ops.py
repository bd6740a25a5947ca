"""The numpy form of every op: the arithmetic of the interpreter, one function each, computed in the run's float type."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ferrum.graphs.ir import Graph, Node, Param, Shape
from ferrum.graphs.ops import GATES, axes

Array: TypeAlias = NDArray[Any]
Rows: TypeAlias = "NDArray[np.int64] | slice"

CHUNK_BYTES = 32 << 20


class Weights(Protocol):
    """Where parameters come from. Arrays are float32 (or float64), shaped as the parameter."""

    def get(self, param: Param) -> Array:
        """The whole parameter."""

    def rows(self, param: Param, ids: Rows) -> Array:
        """The rows ``ids`` (a slice with step 1, or a vector of indices) of the first axis."""


@dataclass
class KvState:
    """Keys and values of the tokens seen so far, ``[length, num_kv_heads, head_dim]`` by (layer, sequence)."""

    keys: dict[tuple[int, int], Array] = field(default_factory=dict)
    values: dict[tuple[int, int], Array] = field(default_factory=dict)

    def extend(self, layer: int, seq: int, k: Array, v: Array) -> tuple[Array, Array]:
        at = (layer, seq)
        if at in self.keys:
            k, v = np.concatenate([self.keys[at], k]), np.concatenate([self.values[at], v])
        self.keys[at], self.values[at] = k, v
        return k, v


@dataclass
class Run:
    """One execution: values by name, symbolic dims by name, and the paged state."""

    graph: Graph
    weights: Weights
    dtype: type[np.floating[Any]]
    env: dict[str, Array]
    dims: dict[str, int]
    params: dict[str, Param]
    kv: KvState
    query_start: Sequence[int]

    def get(self, name: str) -> Array:
        if name in self.env:
            return self.env[name]
        return self.weights.get(self.params[name]).astype(self.dtype, copy=False)

    def shape(self, shape: Shape) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else self.dims[dim] for dim in shape)

    def numpy_dtype(self, dtype: str) -> Any:
        return {"f32": self.dtype, "i32": np.int32, "i64": np.int64, "bool": np.bool_}[dtype]


Kernel: TypeAlias = Callable[[Run, Node], Array]


def unary(f: Callable[[Array], Array]) -> Kernel:
    return lambda run, node: f(run.get(node.inputs[0]))


def binary(f: Callable[[Array, Array], Array]) -> Kernel:
    return lambda run, node: f(run.get(node.inputs[0]), run.get(node.inputs[1]))


def with_value(f: Callable[[Array, float], Array]) -> Kernel:
    def kernel(run: Run, node: Node) -> Array:
        x = run.get(node.inputs[0])
        value: Any = node.attrs["value"]
        return f(x, value if x.dtype.kind == "f" else int(value))

    return kernel


def sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


def silu(x: Array) -> Array:
    return np.asarray(x * sigmoid(x))


def gelu(x: Array) -> Array:
    """x times the normal distribution's probability of less than x (Hendrycks & Gimpel, 2016), exactly."""
    return np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2))), x.dtype)


def gelu_tanh(x: Array) -> Array:
    """The approximation of ``gelu`` by tanh from the same paper."""
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), x.dtype)


_erf = np.vectorize(math.erf, otypes=[np.float64])
UNARY_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}


def gated(activation: str, gate: Array, up: Array) -> Array:
    """act(gate) * up; ``activation`` is a key of ``GATES``."""
    return np.asarray(UNARY_ACTIVATIONS[GATES[activation]](gate) * up)


def softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def full(run: Run, node: Node) -> Array:
    value: Any = node.attrs["value"]
    return np.full(run.shape(node.output.shape), value).astype(run.numpy_dtype(node.output.dtype))


def iota(run: Run, node: Node) -> Array:
    start, step = _int(node, "start"), _int(node, "step")
    size = run.shape(node.output.shape)[0]
    return (start + step * np.arange(size)).astype(run.numpy_dtype(node.output.dtype))


def _int(node: Node, name: str) -> int:
    value = node.attrs[name]
    assert isinstance(value, int)
    return value


def _float(node: Node, name: str) -> float:
    value = node.attrs[name]
    assert isinstance(value, float)
    return value


def cast(run: Run, node: Node) -> Array:
    return run.get(node.inputs[0]).astype(run.numpy_dtype(node.output.dtype))


def where(run: Run, node: Node) -> Array:
    c, x, y = (run.get(name) for name in node.inputs)
    return np.where(c, x, y)


def slice_axis(run: Run, node: Node) -> Array:
    x = run.get(node.inputs[0])
    index = [slice(None)] * x.ndim
    index[_int(node, "axis")] = slice(_int(node, "start"), _int(node, "end"))
    return x[tuple(index)]


def reduction(f: Callable[..., Array]) -> Kernel:
    return lambda run, node: f(run.get(node.inputs[0]), axis=_int(node, "axis"), keepdims=bool(node.attrs["keepdim"]))


def linear_rows(run: Run, x: Array, name: str) -> Array:
    """``x[..., K] @ weight[N, K].T``; a parameter is read in chunks of rows."""
    if name in run.env:
        return np.asarray(x @ run.env[name].T)
    param = run.params[name]
    rows, cols = (int(d) for d in param.value.shape)
    step = max(1, CHUNK_BYTES // (cols * np.dtype(run.dtype).itemsize))
    out = np.empty((*x.shape[:-1], rows), run.dtype)
    for start in range(0, rows, step):
        end = min(rows, start + step)
        part = run.weights.rows(param, slice(start, end)).astype(run.dtype, copy=False)
        np.matmul(x, part.T, out=out[..., start:end])
    return out


def linear(run: Run, node: Node) -> Array:
    out = linear_rows(run, run.get(node.inputs[0]), node.inputs[1])
    if node.attrs["has_bias"]:
        out = out + run.get(node.inputs[2])
    if node.attrs["activation"]:
        out = gated(str(node.attrs["activation"]), *np.split(out, 2, axis=-1))
    if node.attrs["has_residual"]:
        out = out + run.get(node.inputs[-1])
    return out


def embedding(run: Run, node: Node) -> Array:
    ids = run.get(node.inputs[0])
    table = node.inputs[1]
    if table in run.env:
        rows = run.env[table][ids]
    else:
        flat = run.weights.rows(run.params[table], ids.reshape(-1).astype(np.int64)).astype(run.dtype, copy=False)
        rows = flat.reshape(*ids.shape, flat.shape[-1])
    scale = _float(node, "scale")
    return rows if scale == 1.0 else rows * scale


def normalize(x: Array, weight: Array, eps: float) -> Array:
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight)


def rms_norm(run: Run, node: Node) -> Array:
    return normalize(run.get(node.inputs[0]), run.get(node.inputs[1]), _float(node, "eps"))


def layer_norm(run: Run, node: Node) -> Array:
    x, weight, *bias = (run.get(name) for name in node.inputs)
    out = normalize(x - np.mean(x, axis=-1, keepdims=True), weight, _float(node, "eps"))
    return out + bias[0] if bias else out


def rotate(x: Array, positions: Array, inv_freq: Array, seq_axis: int, rope_dim: int, scale: float) -> Array:
    """Rotary embedding of the first ``rope_dim`` columns, halves paired (x[i], x[i + rope_dim / 2])."""
    shape = [1] * x.ndim
    shape[seq_axis], shape[-1] = len(positions), rope_dim // 2
    angle = (positions.astype(x.dtype)[:, None] * inv_freq.astype(x.dtype)[None, :]).reshape(shape)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    half = rope_dim // 2
    a, b, rest = x[..., :half], x[..., half:rope_dim], x[..., rope_dim:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def rope(run: Run, node: Node) -> Array:
    x, inv_freq = run.get(node.inputs[0]), run.get(node.inputs[1])
    axis = _int(node, "seq_axis")
    return rotate(x, np.arange(x.shape[axis]), inv_freq, axis, _int(node, "rope_dim"), _float(node, "rope_scale"))


def attend(q: Array, k: Array, v: Array, allowed: Array | None, bias: Array | None, scale: float) -> Array:
    """Softmax attention on ``[..., heads, queries, head_dim]``; kv heads are shared by equal groups of heads."""
    times = q.shape[-3] // k.shape[-3]
    k, v = np.repeat(k, times, axis=-3), np.repeat(v, times, axis=-3)
    scores = (q @ np.swapaxes(k, -1, -2)) * scale
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    return np.asarray(softmax(scores).astype(q.dtype) @ v)


def causal(query: Array, key: Array, window: int) -> Array:
    """Which key position a query position sees: none ahead, and with a window only the last ``window`` ones."""
    distance = query[:, None] - key[None, :]
    return (distance >= 0) & ((distance < window) | (window == 0))


def sdpa(run: Run, node: Node) -> Array:
    q, k, v = (run.get(name) for name in node.inputs[:3])
    mask = run.get(node.inputs[3]) if len(node.inputs) == 4 else None
    at = np.arange(q.shape[-2])
    allowed = causal(at, at, 0) if node.attrs["is_causal"] else mask if mask is not None and mask.dtype == np.bool_ else None
    bias = mask if mask is not None and mask.dtype != np.bool_ else None
    return attend(q, k, v, allowed, bias, _float(node, "scale"))


def attention(run: Run, node: Node) -> Array:
    q, k, v = (np.swapaxes(run.get(name), 1, 2) for name in node.inputs)
    at = np.arange(q.shape[2])
    return np.swapaxes(attend(q, k, v, causal(at, at, _int(node, "window")), None, _float(node, "scale")), 1, 2)


def paged_attention(run: Run, node: Node) -> Array:
    """Ragged attention: each sequence's new tokens are rotated, stored and attend to all of the sequence's tokens."""
    hq, hkv, d, layer = (_int(node, key) for key in ("num_heads", "num_kv_heads", "head_dim", "layer"))
    qkv = run.get(node.inputs[0]).reshape(-1, hq + 2 * hkv, d)
    q, k, v = qkv[:, :hq], qkv[:, hq : hq + hkv], qkv[:, hq + hkv :]
    if node.attrs["qk_norm"]:
        q = normalize(q, run.get(node.inputs[2]), _float(node, "eps"))
        k = normalize(k, run.get(node.inputs[3]), _float(node, "eps"))
    positions, inv_freq = run.env["positions"], run.get(node.inputs[1])
    rope_dim, rope_scale = _int(node, "rope_dim"), _float(node, "rope_scale")
    q, k = (rotate(x, positions, inv_freq, 0, rope_dim, rope_scale) for x in (q, k))
    out = np.empty_like(q)
    for seq, (start, end) in enumerate(zip(run.query_start[:-1], run.query_start[1:], strict=True)):
        keys, values = run.kv.extend(layer, seq, k[start:end], v[start:end])
        allowed = causal(positions[start:end], np.arange(len(keys)), _int(node, "window"))
        heads = (q[start:end].swapaxes(0, 1), keys.swapaxes(0, 1), values.swapaxes(0, 1))
        out[start:end] = attend(*heads, allowed, None, _float(node, "scale")).swapaxes(0, 1)
    return out.reshape(-1, hq * d)


KERNELS: Mapping[str, Kernel] = {
    "full": full,
    "iota": iota,
    "add": binary(np.add),
    "sub": binary(np.subtract),
    "mul": binary(np.multiply),
    "div": binary(np.divide),
    "add_scalar": with_value(lambda x, v: x + v),
    "mul_scalar": with_value(lambda x, v: x * v),
    "pow_scalar": with_value(lambda x, v: x**v),
    "neg": unary(np.negative),
    "reciprocal": unary(lambda x: 1 / x),
    "sqrt": unary(np.sqrt),
    "rsqrt": unary(lambda x: 1 / np.sqrt(x)),
    "exp": unary(np.exp),
    "cos": unary(np.cos),
    "sin": unary(np.sin),
    "sigmoid": unary(sigmoid),
    **{op: unary(f) for op, f in UNARY_ACTIVATIONS.items()},
    "cast": cast,
    "lt": binary(np.less),
    "le": binary(np.less_equal),
    "gt": binary(np.greater),
    "ge": binary(np.greater_equal),
    "eq": binary(np.equal),
    "ne": binary(np.not_equal),
    "and": binary(np.logical_and),
    "or": binary(np.logical_or),
    "not": unary(np.logical_not),
    "where": where,
    "tril": lambda run, node: np.tril(run.get(node.inputs[0]), _int(node, "diagonal")),
    "triu": lambda run, node: np.triu(run.get(node.inputs[0]), _int(node, "diagonal")),
    "reshape": lambda run, node: run.get(node.inputs[0]).reshape(run.shape(node.output.shape)),
    "expand": lambda run, node: np.broadcast_to(run.get(node.inputs[0]), run.shape(node.output.shape)),
    "permute": lambda run, node: run.get(node.inputs[0]).transpose(axes(node.attrs, "order")),
    "slice": slice_axis,
    "cat": lambda run, node: np.concatenate([run.get(name) for name in node.inputs], axis=_int(node, "axis")),
    "repeat": lambda run, node: np.repeat(run.get(node.inputs[0]), _int(node, "times"), axis=_int(node, "axis")),
    "mean": reduction(np.mean),
    "sum": reduction(np.sum),
    "softmax": lambda run, node: softmax(run.get(node.inputs[0]), _int(node, "axis")),
    "matmul": binary(np.matmul),
    "sdpa": sdpa,
    "attention": attention,
    "rope": rope,
    "gated": lambda run, node: gated(str(node.attrs["activation"]), *(run.get(name) for name in node.inputs)),
    "embedding": embedding,
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "linear": linear,
    "paged_attention": paged_attention,
    "quantize": lambda run, node: run.get(node.inputs[0]),  # the oracle computes with the exact rows
    "gather_rows": lambda run, node: run.get(node.inputs[0])[run.get(node.inputs[1])],
}
