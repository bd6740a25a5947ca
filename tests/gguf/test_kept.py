"""Quantized weights of a file stay in the pack as they are: the same codes, scales and least values, in another order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from functools import cache
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
from ferrum.graphs.passes import apart
from ferrum.graphs.passes import layout as layout_pass
from ferrum.graphs.pipeline import run_pipeline
from ferrum.graphs.weights import open_checkpoint
from ferrum.pack.reader import Pack, open_pack
from tests.gguf.maker import random_blocks
from tests.gguf.test_models import TOKENS, blocky_llama, graph_of, wanted_of

# What each type is as a format of a CPU and of a GPU; "" where none holds it.
EXACT = {
    "q4_0": ("int4s-g32", "int4s-g32"), "q4_1": ("int4m-g32", ""), "q5_0": ("int5-g32", "int8-g32"), "q5_1": ("int5m-g32", ""),
    "q8_0": ("int8-g32", "int8-g32"), "iq4_nl": ("int8-g32", "int8-g32"), "q1_0": ("int4s-g128", "int4s-g128"),
    "q4_k": ("int4k-g32", ""), "q5_k": ("int5k-g32", ""), "q6_k": ("int6k-g16", ""),
    "q3_k": ("", ""), "q8_k": ("", ""), "tq2_0": ("", ""), "mxfp4": ("", ""),
}  # fmt: skip
EVERY = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k")
# Rows of q and k are permuted, gate and up are joined, and the value's are in other blocks than those that it is joined with.
MIXED = {
    "token_embd": "q4_1", "output": "q6_k", "attn_q": "q4_k", "attn_k": "q4_k", "attn_v": "q5_0", "attn_output": "q5_k",
    "ffn_gate": "q4_0", "ffn_up": "q4_0", "ffn_down": "q8_0", "": "",
}  # fmt: skip
KEPT = {
    "token_embd": "q4_1", "output": "q8_0", "attn_q": "q4_0", "attn_k": "q4_0", "attn_v": "q5_0", "attn_output": "q5_1",
    "ffn_gate": "q4_1", "ffn_up": "q4_1", "ffn_down": "q8_0", "": "",
}  # fmt: skip
MEDIUM = {  # as files called Q4_K_M are made, and a Q5_K
    "token_embd": "q4_k", "output": "q6_k", "attn_q": "q4_k", "attn_k": "q4_k", "attn_v": "q6_k", "attn_output": "q5_k",
    "ffn_gate": "q4_k", "ffn_up": "q4_k", "ffn_down": "q6_k", "": "",
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
        assert TargetPolicy(parse_target(target), "int8").matrix("head", 8, 512, 1, blocked).format == "int8-g64"


def fields_of(kind: str, raw: NDArray[np.uint8], row: int, k: int) -> tuple[int, list[bytes], list[int]]:
    """A value's code as the file means it, the halves of its block and its group's whole numbers, by the types' definitions."""
    size, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
    block, i = raw[row].reshape(-1, nbytes)[k // size], k % size
    if kind == "q6_k":
        part, at = i % 128 // 32, i // 128
        nibble = int(block[64 * at + 32 * (part % 2) + i % 32]) >> part // 2 * 4 & 15
        high = int(block[128 + 32 * at + i % 32]) >> 2 * part & 3
        return (nibble | high << 4) - 32, [block[208:].tobytes()], [int(block[192:208].view(np.int8)[i // 16])]
    if kind in ("q4_k", "q5_k"):
        group, at = i // 32, 16 if kind == "q4_k" else 48
        nibble = int(block[at + i // 64 * 32 + i % 32]) >> i % 64 // 32 * 4 & 15
        high = int(block[16 + i % 32]) >> group & 1 if kind == "q5_k" else 0
        packed = [int(byte) for byte in block[4:16]]
        if group < 4:
            numbers = [packed[group] & 63, packed[group + 4] & 63]
        else:
            numbers = [packed[group + 4] & 15 | packed[group - 4] >> 6 << 4, packed[group + 4] >> 4 | packed[group] >> 6 << 4]
        return nibble | high << 4, [block[:2].tobytes(), (-block[2:4].view(np.float16)).tobytes()], numbers
    if kind == "q8_0":
        return int(block[2:].view(np.int8)[i]), [block[:2].tobytes()], []
    mins, five = kind.endswith("1"), kind.startswith("q5")
    first = 4 if mins else 2
    at = first + 4 * five
    code = int(block[at + i % 16]) >> (4 if i >= 16 else 0) & 15
    code |= (int(block[first:at].view(np.uint32)[0]) >> i & 1) << 4 if five else 0
    halves = [block[:2].tobytes(), *([block[2:4].tobytes()] if mins else [])]
    return code - (0 if mins else 16 if five else 8), halves, []


def packed_at(raw: bytes, at: int, rows: int, i: int, bits: int) -> int:
    """Number ``i`` of a row's that lie from ``at`` on, words of ``rows`` rows beside each other."""
    if bits == 8:
        return raw[at + i // 4 * rows * 4 + i % 4]
    words, per_step = {4: (1, 8), 5: (5, 32), 6: (3, 16)}[bits]
    step, quad = at + i // per_step * words * rows * 4 + i % 4, i % per_step // 4
    low = raw[step + quad // 2 * rows * 4] >> quad % 2 * 4 & 15
    if bits == 4:
        return low
    width = bits - 4
    return low | (raw[step + (words - 1) * rows * 4] >> quad * width & (1 << width) - 1) << 4


def stored_at(raw: bytes, layout: TiledLayout, row: int, k: int) -> tuple[int, list[bytes], list[int]]:
    """The same from a pack, as the table in ``layouts/tiled.py`` says."""
    fmt, rows, mins = layout.format, layout.unit_rows, layout.format.mins
    span = 256 if fmt.stepped else 32
    unit, r = divmod(row, rows)
    at = unit * layout.unit_bytes + k // span * layout.span_bytes
    halves = [raw[at + 2 * (part * rows + r) :][:2] for part in range(1 + mins)]
    at, numbers = at + 2 * rows * (1 + mins), []
    if fmt.stepped:
        group, bits = k % 256 // fmt.group, 6 if mins else 8
        numbers = [packed_at(raw, at + 4 * r, rows, group + 8 * part, bits) for part in range(1 + mins)]
        numbers = numbers if mins else [(numbers[0] + 128) % 256 - 128]
        at += 2 * bits * rows
    zero = 0 if mins else {8: 128, 6: 32, 5: 16, 4: 8}[fmt.bits]
    return packed_at(raw, at + 4 * r, rows, k % span, fmt.bits) - zero, halves, numbers


@pytest.mark.parametrize("kind", EVERY)
def test_every_code_scale_and_least_value_is_the_file_s(kind: str) -> None:
    n, k = (19, 512) if kind.endswith("k") else (37, 96)
    rows, raw = source(kind, n, k)
    blocks = raw.reshape(n, k // gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]][0], -1)
    at = 208 if kind == "q6_k" else 0
    blocks[:, 1, at : at + 2] = np.float16(6e-8).tobytes()[0], 0x80  # a scale that is a denormal, and negative
    layout = TiledLayout(n, k, parse_format(EXACT[kind][0]), 8, 2)
    data = b"".join(np.ascontiguousarray(piece).tobytes() for piece in layout.encode(rows, map))
    for row in range(n):
        for column in range(k):
            assert stored_at(data, layout, row, column) == fields_of(kind, raw, row, column), (row, column)
    assert layout.decode(data).tobytes() == np.asarray(rows.values(slice(0, n))).tobytes()


@pytest.mark.parametrize("kind", ["q4_0", "q5_0", "q8_0"])
def test_rows_of_a_gpu_hold_them_too(kind: str) -> None:
    rows, _ = source(kind, 37, 96)
    layout = RowLayout(37, 96, parse_format(EXACT[kind][1]), 1)
    data = b"".join(np.ascontiguousarray(piece).tobytes() for piece in layout.encode(rows, map))
    assert layout.decode(data).tobytes() == np.asarray(rows.values(slice(0, 37))).tobytes()


@cache
def finished(path: Path) -> Graph:
    return run_pipeline(graph_of(path))


def laid_out(path: Path, target: str, quant: str = "keep") -> Graph:
    policy = TargetPolicy(parse_target(target), quant)
    return layout_pass.run(apart.run(finished(path), policy), policy)


def test_of_a_mixed_file_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    _, path = blocky_llama(tmp_path / "model.gguf", KEPT | {"ffn_down": "q3_k", "ffn_gate": "q4_0"})
    graph = laid_out(path, "cpu-avx2")
    note = kept_note(graph)
    assert "q8_0 stays as it is (int8-g32)" in note and "q5_0 stays as it is (int5-g32)" in note
    assert "q3_k becomes bf16" in note and "q4_1 becomes bf16, because cat makes floats of blocks" in note
    assert "bf16" in kept_formats(graph).split("+")
    assert "q4_1 becomes bf16" in kept_note(laid_out(path, "cuda-sm89"))
    assert "stays" not in kept_note(laid_out(path, "cpu-avx2", "int8"))


def test_joined_matrices_in_several_blocks_are_taken_apart_where_that_keeps_them(tmp_path: Path) -> None:
    _, path = blocky_llama(tmp_path / "model.gguf", MEDIUM)
    kept = laid_out(path, "cpu-avx2")
    (attention,) = (node for node in kept.nodes if node.op == "paged_attention")
    joined = kept.producers()[attention.inputs[0]]
    assert joined.op == "cat" and [kept.values()[name].shape[-1] for name in joined.inputs] == [384, 128]
    assert "becomes" not in kept_note(kept) and set(kept_formats(kept).split("+")) == {"q4_k", "q5_k", "q6_k"}
    for target, quant in (("cpu-avx2", "int8"), ("cuda-sm89", "keep")):
        assert not [node for node in laid_out(path, target, quant).nodes if node.op == "cat"]
    _, same = blocky_llama(tmp_path / "same.gguf", MEDIUM | {"attn_v": "q4_k"})
    assert not [node for node in laid_out(same, "cpu-avx2").nodes if node.op == "cat"]


def decoded(opened: Pack) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The weights of a pack as float32."""
    for t in opened.manifest.tensors:
        layout = parse_layout(t.layout, t.format, tuple(t.shape))
        yield t.name, layout.decode(opened.weights[t.offset : t.offset + t.nbytes])


def check_weights(pack: Path, path: Path) -> tuple[int, int]:
    """Each weight of a pack means the bits that its file means; the bytes of its matrices and of the file's blocks."""
    with closing(open_checkpoint(path)) as checkpoint, open_pack(pack, trust=True) as opened:
        params = {param.name: param for param in laid_out(path, opened.manifest.target.name).params}
        for name, found in decoded(opened):
            values = source_of(params[name], checkpoint).values(slice(0, params[name].shape[0] if params[name].shape else 1))
            assert found.tobytes() == np.asarray(values, np.float32).tobytes(), name
        blocks = sum(checkpoint.read(name).nbytes for name in checkpoint.names() if checkpoint.info(name)[0] == "u8")
        return sum(t.nbytes for t in opened.manifest.tensors if len(t.shape) == 2), blocks


@pytest.mark.parametrize(
    ("kinds", "tied"),
    [
        pytest.param(MIXED, False, id="mixed"), pytest.param(KEPT, False, id="blocks of 32", marks=pytest.mark.sweep),
        pytest.param(MEDIUM, False, id="medium", marks=pytest.mark.sweep),
        pytest.param(KEPT | {"token_embd": "q8_0"}, True, id="blocks of 32, tied", marks=pytest.mark.slow),
        pytest.param(MEDIUM | {"token_embd": "q6_k"}, True, id="medium, tied", marks=pytest.mark.slow),
        pytest.param(MEDIUM | {"token_embd": "q5_k", "ffn_down": "q5_1"}, False, id="more", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_pack_of_a_quantized_file(kinds: dict[str, str], tied: bool, tmp_path: Path) -> None:
    """No block is lost: not in embeddings, nor where rows are permuted or matrices are joined."""
    model, path = blocky_llama(tmp_path / "model.gguf", kinds, tied)
    pack = compile_model(CompileOptions(str(path), output=tmp_path / "x.fpk"))  # proves itself against the interpreter
    nbytes, blocks = check_weights(pack, path)
    assert nbytes <= 1.001 * blocks
    wanted = wanted_of(model)[0]
    with LLM(str(pack), trust=True, max_num_seqs=1) as llm:
        assert np.abs(llm.logits(TOKENS[0]) - wanted).max() <= 0.05 * np.abs(wanted).max()
    with open_pack(pack, trust=True) as opened:
        used = {kind for name, kind in kinds.items() if name and not (tied and name == "output")}
        assert set(opened.manifest.model.quant.split("+")) == used
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
