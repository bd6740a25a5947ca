"""The member ``weights``: the bytes of today's families are what they were, and what plain joins of whole tensors give; codes of
a quantized checkpoint go into a pack as they are."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ferrum.codegen.backend import backend_of
from ferrum.codegen.layouts import Layout, RowLayout, TiledLayout, parse_format, parse_layout, stored
from ferrum.codegen.plan import Tensor
from ferrum.codegen.store import refuse_external, write_weights
from ferrum.codegen.target import parse_target
from ferrum.errors import FerrumError
from ferrum.graphs.expressions import expression as e
from ferrum.graphs.expressions.evaluate import Arrays, ExprRows
from ferrum.graphs.expressions.schemes import Q8
from ferrum.graphs.expressions.wide import Wide
from ferrum.graphs.expressions.words import Words
from ferrum.graphs.frontend.torch_export import import_module
from ferrum.graphs.ir import Graph
from ferrum.graphs.models.config import from_hf
from ferrum.graphs.models.registry import build, checkpoint_names
from ferrum.graphs.passes import layout as layout_pass
from ferrum.graphs.pipeline import run_pipeline
from ferrum.graphs.text import parse_graph

SIZES = {
    "vocab_size": 67, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True}, "mistral": {"sliding_window": 16},
    "qwen2": {"tie_word_embeddings": True}, "qwen3": {},
}  # fmt: skip
# SHA-256 of the member, first 16 digits, as it was when parameters were lists of names.
GOLDEN = {
    ("llama", "cpu-avx2", "f32"): "72e6224be90f577b", ("llama", "cpu-avx2", "none"): "183e54997aa1540b",
    ("llama", "cuda-sm89", "f32"): "231b72123773e438", ("llama", "cuda-sm89", "none"): "3fa16a83b075e502",
    ("mistral", "cpu-avx2", "f32"): "4a001cc7eb29c119", ("mistral", "cpu-avx2", "none"): "9392edd259009156",
    ("mistral", "cuda-sm89", "f32"): "3e1bf15b9214f857", ("mistral", "cuda-sm89", "none"): "92b04c50c59a588b",
    ("qwen2", "cpu-avx2", "f32"): "a5d5fecfe6916a56", ("qwen2", "cpu-avx2", "none"): "e6e3e80d1e659d8e",
    ("qwen2", "cuda-sm89", "f32"): "b23b0975d44f3362", ("qwen2", "cuda-sm89", "none"): "fd74672909188f47",
    ("qwen3", "cpu-avx2", "f32"): "3e811e2efd9a1064", ("qwen3", "cpu-avx2", "none"): "0e2696db2560d860",
    ("qwen3", "cuda-sm89", "f32"): "b2d36effa47f6a92", ("qwen3", "cuda-sm89", "none"): "ffad7cfe489d102a",
}  # fmt: skip


class Stored(Arrays):
    """Tensors of a graph: multiples of 1/256, so that no rounding differs from machine to machine."""

    def __init__(self, graph: Graph) -> None:
        random = np.random.default_rng(0)
        leaves = dict.fromkeys(leaf for p in graph.params if p.weight for leaf in e.tensors(p.weight))
        super().__init__({leaf.name: (random.integers(-512, 512, leaf.shape) / 256).astype(np.float32) for leaf in leaves})
        self.given_back = 0

    def give_back(self) -> None:
        self.given_back += 1


class Sink:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: Any) -> int:
        self.data += memoryview(data).cast("B")
        return len(self.data)

    def tell(self) -> int:
        return len(self.data)

    def pad_to(self, offset: int) -> None:
        assert offset >= len(self.data)
        self.data += bytes(offset - len(self.data))


@pytest.fixture(scope="module")
def graphs() -> dict[str, Graph]:
    found = {}
    for family, more in FAMILIES.items():
        name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
        config = from_hf(SIZES | {"model_type": family, "architectures": [f"{name}ForCausalLM"]} | more)
        found[family] = run_pipeline(import_module(build(config), config, family, checkpoint_names(config)))
    return found


def joined(name: str, arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """``a.q_proj+k_proj.weight``: the rows of both, by their names alone."""
    parts = itertools.product(*(part.split("+") for part in name.split(".")))
    return np.concatenate([arrays[".".join(part)] for part in parts])


@pytest.mark.parametrize("target", ["cpu-avx2", "cuda-sm89"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_hold_the_tensors(graphs: dict[str, Graph], family: str, target: str) -> None:
    graph, machine = graphs[family], parse_target(target)
    reader = Stored(graph)
    for quant in ("f32", "none", "int8", "int4-g32", "int4a-g32", *(["fp8"] if target.startswith("cuda") else [])):
        backend = backend_of(machine, quant, "bf16", {})
        laid_out = layout_pass.run(graph, backend.policy())
        made = backend.plan(laid_out, backend.select(laid_out))
        sink = Sink()
        write_weights(laid_out, made.tensors, reader, sink, 2)
        for tensor in made.tensors:
            param = laid_out.param(tensor.name)
            values = joined(tensor.name, reader.arrays) if param.weight else param.data
            assert values is not None
            layout = parse_layout(tensor.layout, tensor.format, tensor.shape)
            raw = stored(values.astype(np.float32), layout).tobytes()
            assert raw == sink.data[tensor.offset : tensor.offset + tensor.nbytes], tensor.name
        if quant in ("f32", "none"):  # others depend on how numpy sums errors
            assert hashlib.sha256(sink.data).hexdigest()[:16] == GOLDEN[family, target, quant]
    assert reader.given_back > 0


# a quantized checkpoint


def layouts(kind: str, n: int, k: int) -> list[Layout]:
    fmt = parse_format(kind)
    return [TiledLayout(n, k, fmt, 8, 4), TiledLayout(n, k, fmt, 4, 2, 2), RowLayout(n, k, fmt), RowLayout(n, k, fmt, 2)]


def q8_matrix(n: int, k: int) -> tuple[e.Expr, dict[str, NDArray[Any]]]:
    random = np.random.default_rng(n)
    units = random.integers(0, 256, (n, k // 32, 34), np.uint8)
    units[..., :2] = random.normal(size=(n, k // 32)).astype(np.float16)[..., None].view(np.uint8)
    return e.Dequant(Q8(32), (e.Tensor("w", (n, k // 32 * 34), "u8"),)), {"w": units.reshape(n, -1)}


def int4_matrix(n: int, k: int, scales: str = "f16") -> tuple[e.Expr, dict[str, NDArray[Any]]]:
    random = np.random.default_rng(n)
    low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    arrays: dict[str, NDArray[Any]] = {
        "words": random.integers(low, high, (k // 8, n), np.int32),
        "scales": random.normal(size=(k // 32, n)).astype(np.float16),
        "zeros": random.integers(low, high, (k // 32, n // 8), np.int32),
    }
    dtypes = ("i32", scales, "i32")
    parts = [e.Tensor(name, array.shape, dtype) for (name, array), dtype in zip(arrays.items(), dtypes, strict=True)]
    return e.permute(e.Dequant(Words(32, "gptq4v2"), tuple(parts)), (1, 0)), arrays


@pytest.mark.parametrize(("kind", "make"), [("int8-g32", q8_matrix), ("int4a-g32", int4_matrix)])
def test_codes_are_kept(kind: str, make: Any) -> None:
    """Without loss, where the format holds such blocks: joined from two tensors, padded, in halves, read in runs."""
    first, arrays = make(40, 96)
    expr = e.rows(e.cat([first, first], 0), 0, 10, 80)
    source = ExprRows(expr, Arrays(arrays))
    values = np.asarray(source.values(slice(0, 70)))
    for pieces in (source, Wide(source, 1000)):
        for layout in layouts(kind, 70, 96):
            raw = b"".join(np.ascontiguousarray(piece).tobytes() for piece in layout.encode(pieces, map))
            assert len(raw) == layout.nbytes
            assert layout.decode(raw).tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("expr", "kind"),
    [
        (q8_matrix(16, 64)[0], "int8-g64"), (q8_matrix(16, 64)[0], "int4a-g32"), (q8_matrix(16, 64)[0], "int6-g32"),
        (int4_matrix(16, 64, "f32")[0], "int4a-g32"), (int4_matrix(16, 64)[0], "int4-g32"),
        (e.mapped(q8_matrix(16, 64)[0], "mul", 2.0), "int8-g32"),
    ],
)  # fmt: skip
def test_other_blocks_are_quantized_anew(expr: e.Expr, kind: str) -> None:
    fmt = parse_format(kind)
    assert not fmt.holds(expr.type.blocked)
    source = ExprRows(expr, Arrays(q8_matrix(16, 64)[1] | int4_matrix(16, 64)[1]))
    values = np.ascontiguousarray(source.values(slice(0, 16)))
    layout = TiledLayout(16, 64, fmt, 8, 2)
    raw = b"".join(np.ascontiguousarray(piece).tobytes() for piece in layout.encode(source, map))
    assert raw == stored(values, layout).tobytes()


def test_a_transposed_matrix_is_written() -> None:
    graph = parse_graph(
        'graph g\ninput x: f32[batch, seq, 96]\nparam w: f32[70, 96] from(permute(t[96, 70], order=(1, 0))) format("bf16") '
        'layout(unit8x4h1)\ny: f32[batch, seq, 70] = linear(x, w) {activation="", has_bias=false, has_residual=false}\nreturn y\n'
    )
    reader, sink = Stored(graph), Sink()
    layout = parse_layout("unit8x4h1", "bf16", (70, 96))
    write_weights(graph, [Tensor("w", (70, 96), "bf16", layout.name, 64, layout.nbytes)], reader, sink, 2)
    assert sink.data[64 : 64 + layout.nbytes] == stored(np.ascontiguousarray(reader.arrays["t"].T), layout).tobytes()


def test_what_nothing_binds_is_refused() -> None:
    text = "graph g\nparam a: f32[2, 4] external(request)\nreturn a\n"
    with pytest.raises(FerrumError, match="a is bound at request and no device binds") as caught:
        refuse_external(parse_graph(text))
    assert caught.value.code == "parameter-external"
