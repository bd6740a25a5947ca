"""Quantized weights of a file stay in the pack as they are: the same codes, scales and least values, in another order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from ferrum import LLM
from ferrum.codegen.driver import compile_model
from ferrum.codegen.kept import kept_formats, kept_note
from ferrum.codegen.layouts import RowLayout, TiledLayout, parse_format, parse_layout
from ferrum.codegen.options import CompileOptions
from ferrum.codegen.policy import TargetPolicy
from ferrum.codegen.store import source_of
from ferrum.codegen.target import parse_target
from ferrum.graphs.expressions.evaluate import Arrays, ExprRows
from ferrum.graphs.expressions.expression import Tensor
from ferrum.graphs.expressions.schemes import dequantized
from ferrum.graphs.ir import Graph
from ferrum.graphs.passes import layout as layout_pass
from ferrum.graphs.pipeline import run_pipeline
from ferrum.graphs.weights import open_checkpoint
from ferrum.pack.reader import Pack, open_pack
from tests.gguf.maker import random_blocks
from tests.gguf.test_models import TOKENS, blocky_llama, graph_of, wanted_of

# What each type is as a format of a CPU and of a GPU; "" where none holds it.
EXACT = {
    "q4_0": ("int4s-g32", "int4s-g32"), "q4_1": ("int4m-g32", ""), "q5_0": ("int6-g32", "int8-g32"),
    "q8_0": ("int8-g32", "int8-g32"), "iq4_nl": ("int8-g32", "int8-g32"), "q1_0": ("int4s-g128", "int4s-g128"),
    "q5_1": ("", ""), "q4_k": ("", ""), "q6_k": ("", ""), "q8_k": ("", ""), "tq2_0": ("", ""), "mxfp4": ("", ""),
}  # fmt: skip
KEPT = {
    "token_embd": "q4_1", "output": "q8_0", "attn_q": "q4_0", "attn_k": "q4_0", "attn_v": "q4_0", "attn_output": "q5_0",
    "ffn_gate": "q4_1", "ffn_up": "q4_1", "ffn_down": "q8_0", "": "",
}  # fmt: skip


def source(kind: str, n: int, k: int) -> tuple[ExprRows, NDArray[np.uint8]]:
    raw = random_blocks(kind, n, k)
    return ExprRows(dequantized(kind, Tensor("w", raw.shape, "u8")), Arrays({"w": raw})), raw


@pytest.mark.parametrize("kind", EXACT)
def test_the_smallest_format_that_holds_them_is_taken(kind: str) -> None:
    blocked = source(kind, 8, 512)[0].blocked
    for target, wanted in zip(("cpu-avx2", "cuda-sm89", "metal-m1"), (*EXACT[kind], EXACT[kind][1]), strict=True):
        found = TargetPolicy(parse_target(target), "keep").exact(blocked)
        assert (found.name if found else "") == wanted
        choice = TargetPolicy(parse_target(target), "keep").matrix("head", 8, 512, 1, blocked)
        assert choice.format == (wanted or "bf16")
        assert TargetPolicy(parse_target(target), "int8").matrix("head", 8, 512, 1, blocked).format == "int8-g128"


def fields_of(kind: str, raw: NDArray[np.uint8], row: int, k: int) -> tuple[int, list[bytes]]:
    """A value's code as the file means it, and the halves of its block, from the definitions of the types."""
    size, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
    block, i = raw[row].reshape(-1, nbytes)[k // size], k % size
    if kind == "q8_0":
        return int(block[2:].view(np.int8)[i]), [block[:2].tobytes()]
    at = {"q4_0": 2, "q4_1": 4, "q5_0": 6}[kind]
    nibble = int(block[at + i % 16]) >> (4 if i >= 16 else 0) & 15
    if kind == "q5_0":
        return (nibble | (int(block[2:6].view(np.uint32)[0]) >> i & 1) << 4) - 16, [block[:2].tobytes()]
    halves = [block[:2].tobytes(), *([block[2:4].tobytes()] if kind == "q4_1" else [])]
    return nibble - (8 if kind == "q4_0" else 0), halves


def stored_at(raw: bytes, layout: TiledLayout, row: int, k: int) -> tuple[int, list[bytes]]:
    """The same from a pack, as the table in ``layouts/tiled.py`` says."""
    bits, rows, mins = layout.format.bits, layout.unit_rows, layout.format.mins
    unit, r = divmod(row, rows)
    at = unit * layout.unit_bytes + k // 32 * layout.span_bytes
    halves = [raw[at + 2 * (part * rows + r) :][:2] for part in range(1 + mins)]
    values, i = at + 2 * rows * (1 + mins), k % 32
    if bits == 8:
        return raw[values + (i // 4 * rows + r) * 4 + i % 4] - 128, halves
    if bits == 4:
        return (raw[values + (i // 8 * rows + r) * 4 + i % 4] >> i % 8 // 4 * 4 & 15) - (0 if mins else 8), halves
    word = i // 16 * 3
    low = raw[values + ((word + i % 16 // 8) * rows + r) * 4 + i % 4] >> i % 8 // 4 * 4 & 15
    high = raw[values + ((word + 2) * rows + r) * 4 + i % 4] >> i % 16 // 4 * 2 & 3
    return (low | high << 4) - 32, halves


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q8_0"])
def test_every_code_scale_and_least_value_is_the_file_s(kind: str) -> None:
    rows, raw = source(kind, 37, 96)
    raw.reshape(37, 3, -1)[:, 1, :2] = np.float16(6e-8).tobytes()[0], 0x80  # a scale that is a denormal, and negative
    layout = TiledLayout(37, 96, parse_format(EXACT[kind][0]), 8, 2)
    data = b"".join(np.ascontiguousarray(piece).tobytes() for piece in layout.encode(rows, map))
    for row in range(37):
        for k in range(96):
            assert stored_at(data, layout, row, k) == fields_of(kind, raw, row, k), (row, k)
    assert layout.decode(data).tobytes() == np.asarray(rows.values(slice(0, 37))).tobytes()


@pytest.mark.parametrize("kind", ["q4_0", "q5_0", "q8_0"])
def test_rows_of_a_gpu_hold_them_too(kind: str) -> None:
    rows, _ = source(kind, 37, 96)
    layout = RowLayout(37, 96, parse_format(EXACT[kind][1]), 1)
    data = b"".join(np.ascontiguousarray(piece).tobytes() for piece in layout.encode(rows, map))
    assert layout.decode(data).tobytes() == np.asarray(rows.values(slice(0, 37))).tobytes()


def laid_out(path: Path, target: str, quant: str = "keep") -> Graph:
    return layout_pass.run(run_pipeline(graph_of(path)), TargetPolicy(parse_target(target), quant))


def test_of_a_mixed_file_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    _, path = blocky_llama(tmp_path / "model.gguf", KEPT | {"ffn_down": "q6_k", "attn_v": "q8_0"})
    graph = laid_out(path, "cpu-avx2")
    note = kept_note(graph)
    assert "q4_1 stays as it is (int4m-g32)" in note and "q8_0 stays as it is (int8-g32)" in note
    assert "q6_k becomes bf16" in note and "q4_0 becomes bf16, because cat makes floats of blocks" in note
    assert kept_formats(graph).split("+")[:2] == ["q4_1", "bf16"]
    assert "q4_1 becomes bf16" in kept_note(laid_out(path, "cuda-sm89"))
    assert "stays" not in kept_note(laid_out(path, "cpu-avx2", "int8"))


def decoded(opened: Pack) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The weights of a pack as float32."""
    for t in opened.manifest.tensors:
        layout = parse_layout(t.layout, t.format, tuple(t.shape))
        yield t.name, layout.decode(opened.weights[t.offset : t.offset + t.nbytes])


def check_weights(pack: Path, path: Path) -> tuple[int, int]:
    """Each weight of a pack means the bits that its file means; the bytes of its matrices and of the file's blocks."""
    params = {param.name: param for param in run_pipeline(graph_of(path)).params}
    with closing(open_checkpoint(path)) as checkpoint, open_pack(pack, trust=True) as opened:
        for name, found in decoded(opened):
            values = source_of(params[name], checkpoint).values(slice(0, params[name].shape[0] if params[name].shape else 1))
            assert found.tobytes() == np.asarray(values, np.float32).tobytes(), name
        blocks = sum(checkpoint.read(name).nbytes for name in checkpoint.names() if checkpoint.info(name)[0] == "u8")
        return sum(t.nbytes for t in opened.manifest.tensors if len(t.shape) == 2), blocks


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_pack_of_a_quantized_file(tied: bool, tmp_path: Path) -> None:
    """Every kept format in one model, and none is lost: not in embeddings, nor where rows are permuted or matrices are joined."""
    model, path = blocky_llama(tmp_path / "model.gguf", KEPT | ({"token_embd": "q8_0"} if tied else {}), tied)
    pack = compile_model(CompileOptions(str(path), output=tmp_path / "x.fpk"))  # proves itself against the interpreter
    nbytes, blocks = check_weights(pack, path)
    q5_0 = 256 * 256 // 32 * 4  # six bits for five
    assert nbytes <= 1.001 * blocks + q5_0
    wanted = wanted_of(model)[0]
    with LLM(str(pack), trust=True, max_num_seqs=1) as llm:
        assert np.abs(llm.logits(TOKENS[0]) - wanted).max() <= 0.05 * np.abs(wanted).max()
    with open_pack(pack, trust=True) as opened:
        assert set(opened.manifest.model.quant.split("+")) == {"q4_0", "q4_1", "q5_0", "q8_0"}
        assert "becomes" not in opened.manifest.provenance.blocks


@pytest.mark.slow
def test_blocks_beside_unrounded_activations_give_the_dequantized_model(tmp_path: Path) -> None:
    model, path = blocky_llama(tmp_path / "model.gguf", KEPT)
    pack = compile_model(CompileOptions(str(path), activations="f32", kv_dtype="f32", output=tmp_path / "x.fpk"))
    wanted = wanted_of(model)[0]
    with LLM(str(pack), trust=True, max_num_seqs=1) as llm:
        assert np.abs(llm.logits(TOKENS[0]) - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cuda-sm89", "metal-m1"])
def test_a_gpu_s_pack_of_a_quantized_file(target: str, tmp_path: Path) -> None:
    kinds = {"token_embd": "q8_0", "output": "q4_0", "ffn_down": "q5_0", "": "q4_0"}
    model, path = blocky_llama(tmp_path / "model.gguf", kinds)
    pack = compile_model(CompileOptions(str(path), target=target, output=tmp_path / "x.fpk"))
    check_weights(pack, path)
    wanted = wanted_of(model)[0]
    with LLM(str(pack), device="emulate", trust=True, max_num_seqs=1) as llm:
        assert np.abs(llm.logits(TOKENS[0]) - wanted).max() <= 0.05 * np.abs(wanted).max()
