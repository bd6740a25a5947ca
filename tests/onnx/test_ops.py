"""Every op of the table against ONNX's own reference, on values that depend on tokens and on values that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from ferrum.graphs.findings import UnsupportedOps
from ferrum.graphs.frontend.onnx import import_onnx
from ferrum.graphs.frontend.onnx_table import TABLE
from ferrum.graphs.verify import verify
from tests.onnx.maker import IDS, TOKENS, evaluated, model, node, nodes, put

RANDOM = np.random.default_rng(11)
TABLES = {"table": RANDOM.standard_normal((64, 6)).astype(np.float32)}
X = node("Gather", ["table", "input_ids"], ["x"])  # [batch, seq, 6]


def numbers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return np.abs(floats(*shape)) + 0.5


Case = tuple[str, list[str], dict[str, Any], dict[str, np.ndarray]]
A: dict[str, np.ndarray] = {"a": floats(6)}
ELEMENTWISE: list[Case] = [
    *((op, ["x"], {}, {}) for op in ("Neg", "Exp", "Cos", "Sin", "Tanh", "Erf", "Floor", "Ceil", "Abs", "Sigmoid", "Relu",
                                     "Softplus", "Identity", "Dropout", "Reciprocal")),
    *((op, ["squares"], {}, {}) for op in ("Sqrt", "Log")),
    *((op, ["x", "a"], {}, A) for op in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Sum")),
    *((op, ["a", "x"], {}, {"a": np.float32(2.5)}) for op in ("Add", "Sub", "Mul", "Div", "Pow")),
    *((op, ["x", "a"], {}, {"a": np.float32(2.0)}) for op in ("Sub", "Div", "Pow")),
    ("Pow", ["squares", "a"], {}, A),
    ("Mod", ["x", "a"], {}, {"a": positive(6)}),
    ("Clip", ["x", "a", "b"], {}, {"a": np.float32(-0.5), "b": np.float32(0.7)}),
    ("LeakyRelu", ["x"], {"alpha": 0.2}, {}),
    ("Elu", ["x"], {"alpha": 0.7}, {}),
    ("Gelu", ["x"], {}, {}),
    ("Gelu", ["x"], {"approximate": "tanh"}, {}),
]  # fmt: skip
FORM: list[Case] = [
    ("Reshape", ["x", "s"], {}, {"s": numbers(0, 0, 2, 3)}),
    ("Reshape", ["x", "s"], {}, {"s": numbers(0, -1, 2, 3)}),
    ("Reshape", ["x", "s"], {}, {"s": numbers(-1, 6)}),
    ("Flatten", ["x"], {"axis": 2}, {}),
    ("Flatten", ["x"], {"axis": -1}, {}),
    ("Unsqueeze", ["x", "s"], {}, {"s": numbers(1, -1)}),
    ("Transpose", ["x"], {"perm": [2, 0, 1]}, {}),
    ("Transpose", ["x"], {}, {}),
    ("Expand", ["x", "s"], {}, {"s": numbers(3, 1, 1, 1)}),
    ("Tile", ["x", "s"], {}, {"s": numbers(1, 1, 2)}),
    ("Concat", ["x", "x"], {"axis": -1}, {}),
    ("Concat", ["x", "x"], {"axis": 1}, {}),
    ("Slice", ["x", "s", "e", "d"], {}, {"s": numbers(1), "e": numbers(1 << 40), "d": numbers(2)}),
    ("Slice", ["x", "s", "e", "d", "t"], {}, {"s": numbers(1), "e": numbers(6), "d": numbers(-1), "t": numbers(2)}),
    ("Slice", ["x", "s", "e", "d", "t"], {}, {"s": numbers(-1), "e": numbers(-(1 << 40)), "d": numbers(2), "t": numbers(-1)}),
    ("Slice", ["x", "s", "e"], {}, {"s": numbers(0, 0), "e": numbers(1 << 62, 1 << 62)}),
    ("Pad", ["x", "s", "v"], {}, {"s": numbers(0, 0, 1, 0, 0, 2), "v": np.float32(0.5)}),
    ("Pad", ["x", "s", "", "d"], {}, {"s": numbers(2, 1), "d": numbers(2)}),
    ("Gather", ["x", "s"], {"axis": 2}, {"s": np.int64(-2)}),
    ("Gather", ["x", "s"], {"axis": 2}, {"s": numbers(2, 3, 4)}),
    ("Gather", ["x", "s"], {"axis": 2}, {"s": numbers(4, 0, -1)}),
    ("Cast", ["x"], {"to": TensorProto.DOUBLE}, {}),
    ("CastLike", ["x", "a"], {}, A),
    ("Trilu", ["x", "s"], {"upper": 0}, {"s": np.int64(-1)}),
    ("Trilu", ["x"], {}, {}),
]
ALONG: list[Case] = [
    *((op, ["x", "s"], {"keepdims": keep}, {"s": numbers(-1)}) for op in
      ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceSumSquare", "ReduceL2") for keep in (0, 1)),
    ("ReduceMean", ["x", "s"], {}, {"s": numbers(1, 2)}),
    ("ReduceMean", ["x"], {}, {}),
    ("ReduceSum", ["x"], {"noop_with_empty_axes": 1}, {}),
    ("CumSum", ["x", "s"], {}, {"s": np.int64(2)}),
    ("Softmax", ["x"], {}, {}),
    ("Softmax", ["x"], {"axis": 1}, {}),
    ("LogSoftmax", ["x"], {"axis": -1}, {}),
    ("LayerNormalization", ["x", "a", "b"], {"epsilon": 1e-3}, {"a": floats(6), "b": floats(6)}),
    ("LayerNormalization", ["x", "a"], {}, A),
    ("RMSNormalization", ["x", "a"], {"epsilon": 1e-3}, A),
    ("MatMul", ["x", "a"], {}, {"a": floats(6, 5)}),
    ("MatMul", ["x", "a"], {}, A),
    ("MatMul", ["a", "b"], {}, {"a": floats(6), "b": floats(6, 3)}),
    ("Conv", ["turned", "a", "b"], {"pads": [2, 0], "group": 6}, {"a": floats(6, 1, 3), "b": floats(6)}),
    ("Conv", ["turned", "a"], {"pads": [1, 1], "dilations": [2]}, {"a": floats(4, 6, 3)}),
]  # fmt: skip


def compared(made: Any, tmp_path: Path) -> None:
    path = put(tmp_path, made)
    wanted = ReferenceEvaluator(made).run(None, {IDS.name: TOKENS})[0]
    graph = verify(import_onnx(path))
    found = evaluated(graph, path)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, np.asarray(wanted, np.float32), rtol=1e-5, atol=1e-5)


def case_model(case: Case, opset: int = 23) -> Any:
    op, inputs, attributes, tensors = case
    made = [X]
    made += [node("Mul", ["x", "x"], ["squares"])] if "squares" in inputs else []
    made += [node("Transpose", ["x"], ["turned"], perm=[0, 2, 1])] if "turned" in inputs else []
    made.append(node(op, inputs, ["made"], **attributes))
    if {"x", "squares", "turned"} & set(inputs):
        made.append(node("Identity", ["made"], ["logits"]))
    else:
        made += [node("ReduceSum", ["made"], ["total"]), node("Add", ["x", "total"], ["logits"])]
    return model(made, TABLES | tensors, opset=opset)


@pytest.mark.parametrize("case", [*ELEMENTWISE, *FORM, *ALONG], ids=lambda case: case[0])
def test_an_op_is_what_onnx_says(case: Case, tmp_path: Path) -> None:
    compared(case_model(case), tmp_path)


@pytest.mark.parametrize("op", ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"])
def test_comparisons_choose(op: str, tmp_path: Path) -> None:
    text = f"""
        c = {op}(x, a)
        n = Not(c)
        every = Or(c, n)
        both = And(every, c)
        logits = Where(both, x, a)
    """
    compared(model([X, *nodes(text)], TABLES | A), tmp_path)


def test_parts_of_an_axis(tmp_path: Path) -> None:
    text = """
        p, q = Split(x, s) axis=-1
        r, t = Split(q) axis=2 num_outputs=2
        logits = Concat(t, p, r) axis=2
    """
    compared(model([X, *nodes(text)], TABLES | {"s": numbers(2, 4)}), tmp_path)


def test_the_largest_and_where_they_are(tmp_path: Path) -> None:
    text = """
        v, i = TopK(x, k) axis=-1
        m = ArgMax(x) axis=2
        n = ArgMin(x) axis=2
        places = Concat(i, m, n) axis=2
        g = GatherElements(x, places) axis=2
        logits = Concat(v, g) axis=2
    """
    compared(model([X, *nodes(text)], TABLES | {"k": numbers(3)}), tmp_path)


def test_values_are_put_where_places_say(tmp_path: Path) -> None:
    text = """
        m = ArgMax(x) axis=2
        y = Mul(x, x)
        v = GatherElements(y, m) axis=2
        s = ScatterElements(x, m, v) axis=2
        logits = ScatterElements(s, m, v) axis=2 reduction="add"
    """
    compared(model([X, *nodes(text)], TABLES), tmp_path)


@pytest.mark.parametrize(("alpha", "beta", "turned"), [(1.0, 1.0, 0), (0.5, 2.0, 1)])
def test_gemm(alpha: float, beta: float, turned: int, tmp_path: Path) -> None:
    text = f"""
        flat = Reshape(x, s)
        logits = Gemm(flat, b, c) alpha={alpha} beta={beta} transB={turned}
    """
    tensors = {"s": numbers(-1, 6), "b": floats(5, 6) if turned else floats(6, 5), "c": floats(5)}
    compared(model([X, *nodes(text)], TABLES | tensors), tmp_path)


SHAPES = """
    shape = Shape(x)
    seq = Shape(input_ids) start=1 end=2
    b = Gather(shape, zero)
    b1 = Unsqueeze(b, axis)
    rows = Mul(b1, seq)
    flat = Concat(rows, six) axis=0
    y = Reshape(x, flat)
    b2 = Div(rows, seq)
    back = Concat(b2, seq, minus) axis=0
    z = Reshape(y, back)
    n = Squeeze(seq, axis)
    at = Range(zero, n, one)
    place = Cast(at) to=1
    column = Unsqueeze(place, last)
    zeros = ConstantOfShape(seq)
    nothing = Unsqueeze(zeros, last)
    w = Add(z, column)
    v = Add(w, nothing)
    unknown = Equal(back, minus)
    wide = Where(unknown, six, back)
    count = Size(input_ids)
    amount = Cast(count) to=1
    u = Expand(v, wide)
    logits = Div(u, amount)
"""


def test_shapes_are_computed_with_sizes(tmp_path: Path) -> None:
    """batch and seq go through the ops that exporters write for shapes, and come out as names."""
    known = {"zero": np.int64(0), "one": np.int64(1), "axis": numbers(0), "last": numbers(1)}
    known |= {"six": numbers(6), "minus": numbers(-1)}
    compared(model([X, *nodes(SHAPES)], TABLES | known), tmp_path)


@pytest.mark.parametrize("flat", [False, True], ids=["heads", "columns"])
@pytest.mark.parametrize("attributes", [{"is_causal": 1}, {"is_causal": 1, "scale": 0.3}, {"is_causal": 1, "softcap": 2.0}, {}])
def test_attention_of_opset_23(attributes: dict[str, Any], flat: bool, tmp_path: Path) -> None:
    tensors = {"wq": floats(6, 16), "wk": floats(6, 8), "wv": floats(6, 8), "s": numbers(0, 0, -1, 4)}
    made = [X, *(node("MatMul", ["x", f"w{n}"], [n]) for n in "qkv")]
    names, heads = list("qkv"), {"q_num_heads": 4, "kv_num_heads": 2}
    if not flat:
        made += [node("Reshape", [n, "s"], [f"{n}4"]) for n in "qkv"]
        made += [node("Transpose", [f"{n}4"], [f"{n}t"], perm=[0, 2, 1, 3]) for n in "qkv"]
        names, heads = [f"{n}t" for n in "qkv"], {}
    made.append(node("Attention", names, ["y"], **heads, **attributes))
    made.append(node("Identity", ["y"], ["logits"]))
    compared(model(made, TABLES | tensors, opset=23), tmp_path)


@pytest.mark.parametrize("attributes", [{}, {"interleaved": 1}, {"rotary_embedding_dim": 4}])
def test_rotation_of_opset_23(attributes: dict[str, Any], tmp_path: Path) -> None:
    width = attributes.get("rotary_embedding_dim", 8)
    angles = np.arange(32)[:, None] * 0.3 ** np.arange(width // 2)
    tensors = {"w": floats(6, 16), "cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    known = {"zero": np.int64(0), "one": np.int64(1)}
    text = """
        q = MatMul(x, w)
        shape = Shape(input_ids)
        n = Gather(shape, one)
        at = Range(zero, n, one)
        places = Expand(at, shape)
    """
    turned = node("RotaryEmbedding", ["q", "cos", "sin", "places"], ["logits"], num_heads=2, **attributes)
    compared(model([X, *nodes(text), turned], TABLES | tensors | known, opset=23), tmp_path)


def test_what_is_not_in_the_table_is_found_all_at_once(tmp_path: Path) -> None:
    body = helper.make_graph([], "body", [], [])
    text = """
        y = Mish(x)
        z = Mish(y)
        t = my.own:Thing(x)
        s = Softmax(z)
        logits = NonZero(x)
    """
    made = [X, node("If", ["c"], ["i"], then_branch=body, else_branch=body), *nodes(text)]
    with pytest.raises(UnsupportedOps) as caught:
        import_onnx(put(tmp_path, model(made, TABLES | {"c": np.array(True)})))
    found = {finding.what: finding for finding in caught.value.findings}
    assert set(found) == {"If of ONNX", "Mish of ONNX", "my.own:Thing of ONNX", "NonZero of ONNX"}
    assert found["If of ONNX"].module == "the_If" and "without control flow" in found["If of ONNX"].nearest
    assert found["Mish of ONNX"].count == 2 and "Where" in found["NonZero of ONNX"].nearest


@pytest.mark.parametrize("name", ["use_cache_branch", "pixel_values"])
def test_an_input_that_is_not_known_is_found(name: str, tmp_path: Path) -> None:
    other = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
    with pytest.raises(UnsupportedOps, match=f"the input {name} .*nearest: input_ids, attention_mask"):
        import_onnx(put(tmp_path, model([node("Gather", ["table", "input_ids"], ["logits"])], TABLES, [IDS, other])))


def test_a_batch_of_one_size_is_found(tmp_path: Path) -> None:
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, "seq"])
    with pytest.raises(UnsupportedOps, match=r"input input_ids of i64 \['1', 'seq'\] .*nearest: one integer input"):
        import_onnx(put(tmp_path, model([node("Gather", ["table", "input_ids"], ["logits"])], TABLES, [ids])))


def test_every_op_of_onnx_is_tried_here_or_by_whole_models() -> None:
    """An op of the table that no case has would be one that nobody compared."""
    text = Path(__file__).read_text(encoding="utf-8")
    missing = [op for op in TABLE if ":" not in op and f'"{op}"' not in text and f" {op}(" not in text and op not in WHOLE]
    assert missing == []


WHOLE = ("Constant", "IsNaN", "GatherND", "SimplifiedLayerNormalization")
