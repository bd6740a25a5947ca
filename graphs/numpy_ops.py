"""The numpy form of every op: the arithmetic of the interpreter, one function each, computed in the run's float type."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from ferrum.graphs.ir import Node
from ferrum.graphs.numpy_attention import attend, paged_attend, paged_attention, rope, sdpa
from ferrum.graphs.numpy_index import conv, cumsum, gather, grouped_linear, pad, put, scatter, sort, take
from ferrum.graphs.numpy_pool import pool
from ferrum.graphs.numpy_recur import paged_recur, recur
from ferrum.graphs.numpy_region import map_elements, scan, split, topk
from ferrum.graphs.numpy_run import Array, Kernel, Run, normalize, softmax
from ferrum.graphs.numpy_sample import sample
from ferrum.graphs.numpy_state import read, short_conv, view, write
from ferrum.graphs.op_spec import integer, number
from ferrum.graphs.ops import GATES, OPS

CHUNK_BYTES = 32 << 20


def unary(f: Callable[[Array], Array]) -> Kernel:
    return lambda run, node: f(run.get(node.inputs[0]))


def of_arrays(f: Callable[..., Array]) -> Kernel:
    """An op that is a function of arrays and attributes: what its record says."""
    return lambda run, node: f(*run.all(node), **node.attrs)


def with_value(f: Callable[[Array, float], Array]) -> Kernel:
    def kernel(run: Run, node: Node) -> Array:
        x = run.get(node.inputs[0])
        value = number(node.attrs, "value")
        return f(x, value if x.dtype.kind == "f" else int(value))

    return kernel


def sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


def silu(x: Array) -> Array:
    return np.asarray(x * sigmoid(x))


def erf(x: Array) -> Array:
    """The error function, exactly."""
    return np.asarray(_erf(x), x.dtype)


def gelu(x: Array) -> Array:
    """x times the normal distribution's probability of less than x (Hendrycks & Gimpel, 2016), exactly."""
    return np.asarray(0.5 * x * (1 + erf(x / math.sqrt(2))), x.dtype)


def gelu_tanh(x: Array) -> Array:
    """The approximation of ``gelu`` by tanh from the same paper."""
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), x.dtype)


_erf = np.vectorize(math.erf, otypes=[np.float64])
UNARY_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}


def gated(activation: str, gate: Array, up: Array) -> Array:
    """act(gate) * up; ``activation`` is a key of ``GATES``."""
    return np.asarray(UNARY_ACTIVATIONS[GATES[activation]](gate) * up)


def full(run: Run, node: Node) -> Array:
    return np.full(run.shape(node.output.shape), number(node.attrs, "value")).astype(run.numpy_dtype(node.output.dtype))


def iota(run: Run, node: Node) -> Array:
    start, step = integer(node.attrs, "start"), integer(node.attrs, "step")
    size = run.shape(node.output.shape)[0]
    return (start + step * np.arange(size)).astype(run.numpy_dtype(node.output.dtype))


def cast(run: Run, node: Node) -> Array:
    return run.get(node.inputs[0]).astype(run.numpy_dtype(node.output.dtype))


def slice_axis(run: Run, node: Node) -> Array:
    x = run.get(node.inputs[0])
    index = [slice(None)] * x.ndim
    index[integer(node.attrs, "axis")] = slice(integer(node.attrs, "start"), integer(node.attrs, "end"))
    return x[tuple(index)]


def linear_rows(run: Run, x: Array, name: str) -> Array:
    """``x[..., K] @ weight[N, K].T``; a parameter is read in chunks of rows."""
    if run.each_row and x.ndim > 1 and x.size:
        flat = [linear_rows(run, row, name) for row in x.reshape(-1, x.shape[-1])]
        return np.stack(flat).reshape(*x.shape[:-1], -1)
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
    scale = number(node.attrs, "scale")
    return rows if scale == 1.0 else rows * scale


def rms_norm(run: Run, node: Node) -> Array:
    return normalize(run.get(node.inputs[0]), run.get(node.inputs[1]), number(node.attrs, "eps"))


def layer_norm(run: Run, node: Node) -> Array:
    x, weight, *bias = (run.get(name) for name in node.inputs)
    out = normalize(x - np.mean(x, axis=-1, keepdims=True), weight, number(node.attrs, "eps"))
    return out + bias[0] if bias else out


KERNELS: Mapping[str, Kernel] = {
    **{name: of_arrays(spec.numpy) for name, spec in OPS.items() if spec.numpy is not None},
    "full": full,
    "iota": iota,
    "add_scalar": with_value(lambda x, v: x + v),
    "mul_scalar": with_value(lambda x, v: x * v),
    "pow_scalar": with_value(lambda x, v: x**v),
    "sigmoid": unary(sigmoid),
    **{op: unary(f) for op, f in UNARY_ACTIVATIONS.items()},
    "erf": unary(erf),
    "cast": cast,
    "reshape": lambda run, node: run.get(node.inputs[0]).reshape(run.shape(node.output.shape)),
    "expand": lambda run, node: np.broadcast_to(run.get(node.inputs[0]), run.shape(node.output.shape)),
    "slice": slice_axis,
    "cumsum": cumsum,
    "sort": sort,
    "take": take,
    "gather": gather,
    "scatter": scatter(put),
    "scatter_add": scatter(np.add.at),
    "pad": pad,
    "grouped_linear": grouped_linear,
    "conv": conv,
    "softmax": lambda run, node: softmax(run.get(node.inputs[0]), integer(node.attrs, "axis")),
    "map": lambda run, node: map_elements(run, node, KERNELS),
    "scan": lambda run, node: scan(run, node, KERNELS),
    "split": split,
    "topk": topk,
    "write": write,
    "read": read,
    "view": view,
    "sdpa": sdpa,
    "attend": attend,
    "rope": rope,
    "short_conv": short_conv,
    "gated": lambda run, node: gated(str(node.attrs["activation"]), *(run.get(name) for name in node.inputs)),
    "embedding": embedding,
    "rms_norm": rms_norm,
    "layer_norm": layer_norm,
    "linear": linear,
    "paged_attend": paged_attend,
    "paged_attention": paged_attention,
    "pool": pool,
    "recur": recur,
    "paged_recur": paged_recur,
    "sample": sample,
}
