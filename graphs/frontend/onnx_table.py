"""The literal table ONNX op → handler, with what to suggest for ops that are missing; ONNX Runtime's ops by their domain."""

from __future__ import annotations

from collections.abc import Mapping

from ferrum.graphs.frontend import builder, onnx_attention, onnx_form, onnx_math, onnx_packed
from ferrum.graphs.frontend.onnx_math import Handler, binary, built, folded, logical, reduced, unary

RUNTIME = "com.microsoft"
SKIP_LAYER, SKIP_ROOT = onnx_math.skip_norm(of_root=False), onnx_math.skip_norm(of_root=True)

TABLE: Mapping[str, Handler] = {
    # elements one by one
    **{name: unary(name.lower()) for name in
       ("Neg", "Reciprocal", "Sqrt", "Exp", "Cos", "Sin", "Tanh", "Log", "Erf", "Floor", "Abs", "Sigmoid")},
    **{name: binary(op) for name, op in {
        "Add": "add", "Mul": "mul", "Equal": "eq", "Less": "lt", "LessOrEqual": "le", "Greater": "gt", "GreaterOrEqual": "ge",
    }.items()},
    "Sub": onnx_math.subtract,
    "Div": onnx_math.divide,
    "Pow": onnx_math.power,
    "Mod": onnx_math.remainder,
    "Sum": folded("add"),
    "Min": folded("minimum"),
    "Max": folded("maximum"),
    "Clip": onnx_math.clip,
    "Relu": built(builder.relu),
    "Ceil": built(builder.ceil),
    "Softplus": built(builder.softplus),
    "LeakyRelu": onnx_math.leaky_relu,
    "Elu": onnx_math.elu,
    "Gelu": onnx_math.gelu,
    "And": logical("and"),
    "Or": logical("or"),
    "Not": logical("not"),
    "Where": onnx_math.choose,
    "IsNaN": onnx_math.not_a_number,
    "Cast": onnx_math.convert,
    "CastLike": onnx_math.like,
    "Dropout": onnx_form.identity,
    "Identity": onnx_form.identity,
    # sources
    "Constant": onnx_form.constant,
    "ConstantOfShape": onnx_form.filled,
    "Range": onnx_form.counted,
    "Shape": onnx_form.shape,
    "Size": onnx_form.size,
    # form
    "Reshape": onnx_form.reshape,
    "Flatten": onnx_form.flatten,
    "Squeeze": onnx_form.squeeze,
    "Unsqueeze": onnx_form.unsqueeze,
    "Transpose": onnx_form.transpose,
    "Expand": onnx_form.expand,
    "Tile": onnx_form.tile,
    "Concat": onnx_form.concat,
    "Split": onnx_form.split,
    "Slice": onnx_form.cut,
    "Pad": onnx_form.pad,
    "Trilu": onnx_form.triangle,
    # places
    "Gather": onnx_form.gather,
    "GatherElements": onnx_form.gather_elements,
    "GatherND": onnx_form.gather_nd,
    "ScatterElements": onnx_form.scatter_elements,
    # along axes
    "ReduceMean": reduced("mean"),
    "ReduceSum": reduced("sum"),
    "ReduceMax": reduced("max"),
    "ReduceMin": reduced("min"),
    "ReduceSumSquare": reduced("sum", squared=True),
    "ReduceL2": reduced("sum", squared=True, rooted=True),
    "ArgMax": onnx_math.extreme(largest=True),
    "ArgMin": onnx_math.extreme(largest=False),
    "TopK": onnx_math.topk,
    "CumSum": onnx_math.cumsum,
    "Softmax": onnx_math.softmax,
    "LogSoftmax": onnx_math.log_softmax,
    "LayerNormalization": onnx_math.layer_norm,
    "RMSNormalization": onnx_math.rms_norm,
    "SimplifiedLayerNormalization": onnx_math.rms_norm,  # of ONNX Runtime, though it says nothing of it
    # products
    "MatMul": onnx_math.matmul,
    "Gemm": onnx_math.gemm,
    "Conv": onnx_form.conv,
    # attention
    "Attention": onnx_attention.attention,
    "RotaryEmbedding": onnx_attention.rotary,
    f"{RUNTIME}:GroupQueryAttention": onnx_attention.grouped,
    f"{RUNTIME}:RotaryEmbedding": onnx_attention.rotary_of_runtime,
    f"{RUNTIME}:MatMulNBits": onnx_packed.matmul_of_blocks,
    f"{RUNTIME}:SimplifiedLayerNormalization": onnx_math.rms_norm,
    f"{RUNTIME}:SkipLayerNormalization": SKIP_LAYER,
    f"{RUNTIME}:SkipSimplifiedLayerNormalization": SKIP_ROOT,
    f"{RUNTIME}:Gelu": onnx_math.gelu,
    f"{RUNTIME}:FastGelu": onnx_math.fast_gelu,
    f"{RUNTIME}:QuickGelu": onnx_math.quick_gelu,
}  # fmt: skip

# what to use instead, by the op's plain name
NEAREST: Mapping[str, str] = {
    **dict.fromkeys(("If", "Loop", "Scan"), "an export without control flow, of one form of the model"),
    **dict.fromkeys(("NonZero", "Compress", "Unique"), "Where, with shapes that follow from sizes"),
    **dict.fromkeys(("ScatterND", "Scatter"), "ScatterElements, or Where"),
    **dict.fromkeys(("SequenceAt", "SequenceConstruct", "SplitToSequence", "ConcatFromSequence", "Optional"), "tensors"),
    **dict.fromkeys(("DequantizeLinear", "MatMulInteger", "DynamicQuantizeLinear", "QLinearMatMul", "MatMulIntegerToFloat"),
                    "float weights, or MatMulNBits"),
    **dict.fromkeys(("MultiHeadAttention", "DecoderMaskedMultiHeadAttention", "SparseAttention", "PagedAttention"),
                    "GroupQueryAttention, or ONNX's Attention"),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "the model's safetensors"),
    "Einsum": "MatMul and Transpose",
}  # fmt: skip
