"""The literal table ATen op → handler, with what is ignored and what to suggest for ops that are missing."""

from __future__ import annotations

from collections.abc import Mapping

from ferrum.graphs.frontend.aten import (
    Handler,
    add,
    addmm,
    arange,
    cat,
    choose,
    comparison,
    convert,
    divide,
    dropout,
    embedding,
    expand,
    filled,
    gelu,
    getitem,
    identity,
    layer_norm,
    linear,
    logical,
    masked_fill,
    matmul,
    multiply,
    permute,
    pieces,
    pow_of_scalar,
    pow_scalar,
    power,
    reduction,
    repeat_interleave,
    reshape,
    reversed_sub,
    rms_norm,
    sdpa,
    select,
    slice_axis,
    softmax,
    stack,
    tile,
    transpose,
    triangle,
    unary,
)

TABLE: Mapping[str, Handler] = {
    **dict.fromkeys(
        (
            "aten.alias.default",
            "aten.clone.default",
            "aten.contiguous.default",
            "aten.detach.default",
            "aten.detach_.default",
            "aten.lift_fresh_copy.default",
        ),
        identity,
    ),  # fmt: skip
    **dict.fromkeys(
        (
            "aten.to.dtype",
            "aten.to.dtype_layout",
            "aten.to.device",
            "aten.to.other",
            "aten._to_copy.default",
            "aten.type_as.default",
        ),
        convert,
    ),
    "aten.dropout.default": dropout,
    # arithmetic
    **dict.fromkeys(("aten.add.Tensor", "aten.add.Scalar"), add(1.0)),
    **dict.fromkeys(("aten.sub.Tensor", "aten.sub.Scalar"), add(-1.0)),
    **dict.fromkeys(("aten.rsub.Scalar", "aten.rsub.Tensor"), reversed_sub),
    **dict.fromkeys(("aten.mul.Tensor", "aten.mul.Scalar"), multiply),
    **dict.fromkeys(("aten.div.Tensor", "aten.div.Scalar"), divide),
    "aten.pow.Tensor_Scalar": pow_scalar,
    "aten.pow.Scalar": pow_of_scalar,
    "aten.square.default": power(2.0),
    "aten.neg.default": unary("neg"),
    "aten.reciprocal.default": unary("reciprocal"),
    "aten.sqrt.default": unary("sqrt"),
    "aten.rsqrt.default": unary("rsqrt"),
    "aten.exp.default": unary("exp"),
    "aten.cos.default": unary("cos"),
    "aten.sin.default": unary("sin"),
    "aten.sigmoid.default": unary("sigmoid"),
    "aten.silu.default": unary("silu"),
    "aten.gelu.default": gelu,
    # conditions
    **{f"aten.{op}.{kind}": comparison(op) for op in ("lt", "le", "gt", "ge", "eq", "ne") for kind in ("Tensor", "Scalar")},
    **dict.fromkeys(("aten.logical_and.default", "aten.bitwise_and.Tensor", "aten.__and__.Tensor"), logical("and")),
    **dict.fromkeys(("aten.logical_or.default", "aten.bitwise_or.Tensor", "aten.__or__.Tensor"), logical("or")),
    **dict.fromkeys(("aten.logical_not.default", "aten.bitwise_not.default"), logical("not")),
    **dict.fromkeys(("aten.where.self", "aten.where.ScalarSelf", "aten.where.ScalarOther", "aten.where.Scalar"), choose),
    **dict.fromkeys(("aten.masked_fill.Scalar", "aten.masked_fill.Tensor"), masked_fill),
    "aten.tril.default": triangle("tril"),
    "aten.triu.default": triangle("triu"),
    # sources
    **dict.fromkeys(("aten.arange.default", "aten.arange.start", "aten.arange.start_step"), arange),
    **dict.fromkeys(
        ("aten.full.default", "aten.full_like.default", "aten.new_full.default", "aten.scalar_tensor.default"), filled(None)
    ),
    **dict.fromkeys(("aten.ones.default", "aten.ones_like.default", "aten.new_ones.default"), filled(1.0)),
    **dict.fromkeys(("aten.zeros.default", "aten.zeros_like.default", "aten.new_zeros.default"), filled(0.0)),
    # form
    **dict.fromkeys(
        (
            "aten.view.default",
            "aten.reshape.default",
            "aten._unsafe_view.default",
            "aten.unsqueeze.default",
            "aten.squeeze.default",
            "aten.squeeze.dim",
            "aten.squeeze.dims",
            "aten.flatten.using_ints",
            "aten.unflatten.int",
            "aten.view_as.default",
        ),
        reshape,
    ),  # fmt: skip
    **dict.fromkeys(("aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default"), expand),
    "aten.repeat.default": tile,
    "aten.repeat_interleave.self_int": repeat_interleave,
    "aten.permute.default": permute,
    **dict.fromkeys(("aten.transpose.int", "aten.t.default", "aten.swapaxes.default", "aten.mT.default"), transpose),
    "aten.slice.Tensor": slice_axis,
    "aten.select.int": select,
    **dict.fromkeys(
        ("aten.chunk.default", "aten.split.Tensor", "aten.split.sizes", "aten.split_with_sizes.default", "aten.unbind.int"),
        pieces,
    ),
    "_operator.getitem": getitem,
    **dict.fromkeys(("aten.cat.default", "aten.concat.default"), cat),
    "aten.stack.default": stack,
    # along an axis
    "aten.mean.dim": reduction("mean"),
    "aten.sum.dim_IntList": reduction("sum"),
    **dict.fromkeys(("aten.softmax.int", "aten._softmax.default"), softmax),
    **dict.fromkeys(("aten.matmul.default", "aten.mm.default", "aten.bmm.default"), matmul),
    "aten.addmm.default": addmm,
    "aten.linear.default": linear,
    "aten.embedding.default": embedding,
    "aten.rms_norm.default": rms_norm,
    "aten.layer_norm.default": layer_norm,
    "aten.scaled_dot_product_attention.default": sdpa,
}

# ops without a tensor result that matters, and arithmetic on sizes (shapes are read off the results instead)
IGNORED = frozenset({
    "aten._assert_tensor_metadata.default", "aten._assert_scalar.default", "aten._assert_async.msg", "aten.sym_size.int",
    "aten.sym_numel.default", "aten.sym_constrain_range_for_size.default", "aten.sym_constrain_range.default",
})  # fmt: skip

# what to use instead, by the op's plain name
HALVES = "rope by halves (x * cos + rotated * sin)"
NEAREST: Mapping[str, str] = {
    **dict.fromkeys(("relu", "tanh", "softplus", "hardswish", "mish", "elu"), "silu or gelu"),
    **dict.fromkeys(("native_layer_norm", "group_norm", "batch_norm"), "layer_norm or rms_norm"),
    **dict.fromkeys(("view_as_complex", "view_as_real", "polar"), HALVES),
    **dict.fromkeys(("index_select", "gather"), "embedding"),
    **dict.fromkeys(("conv1d", "conv2d"), "linear"),
    "einsum": "linear or matmul",
    "baddbmm": "matmul",
    "outer": "a[:, None] * b",
    "cumsum": "arange",
    "index": "slice or embedding",
    "topk": "a dense MLP",
    "log_softmax": "logits without softmax",
    "floor_divide": "repeat_interleave",
}
