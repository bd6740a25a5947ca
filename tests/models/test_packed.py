"""GPTQ and AWQ folders, packed by their tools' formulas: the model that their formulas mean, and codes that stay as they are."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ferrum import LLM
from ferrum.codegen.driver import check_model, compile_model
from ferrum.codegen.layouts import parse_layout
from ferrum.codegen.options import CompileOptions
from ferrum.errors import FerrumError
from ferrum.graphs.weights import open_checkpoint
from ferrum.pack.reader import open_pack

TOKENS = [3, 1, 4, 15, 9, 26, 5, 35, 8]
GROUP = 32
# AutoAWQ, packing_utils.py: of eight columns, which lies at each place of a word, the lowest first
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Arrays = dict[str, NDArray[Any]]


def words(codes: NDArray[np.uint8], axis: int, order: tuple[int, ...] = tuple(range(8))) -> NDArray[np.int32]:
    """Eight neighbours along an axis in 32 bits."""
    lanes = np.moveaxis(codes, axis, -1).astype(np.uint32)
    lanes = lanes.reshape(*lanes.shape[:-1], -1, 8)[..., list(order)]
    packed = (lanes << (np.arange(8, dtype=np.uint32) * np.uint32(4))).sum(-1).astype(np.uint32)
    return np.ascontiguousarray(np.moveaxis(packed, -1, axis)).view(np.int32)


def packed(method: str, n: int, k: int, random: np.random.Generator) -> tuple[Arrays, NDArray[np.float32]]:
    """The tensors of a layer, and the weights ``[n, k]`` that they mean."""
    codes = random.integers(0, 16, (k, n), dtype=np.uint8)
    scales = (random.uniform(0.5, 1.5, (k // GROUP, n)) * 0.02).astype(np.float16)
    zeros = np.full((k // GROUP, n), 8, np.uint8) if method == "sym" else random.integers(1, 16, (k // GROUP, n), dtype=np.uint8)
    values = (codes.astype(np.float32) - np.repeat(zeros, GROUP, 0)) * np.repeat(scales, GROUP, 0).astype(np.float32)
    if method == "awq":
        return {"qweight": words(codes, 1, ORDER), "scales": scales, "qzeros": words(zeros, 1, ORDER)}, values.T
    stored = zeros if method == "gptq_v2" else zeros - np.uint8(1)
    index = (np.arange(k) // GROUP).astype(np.int32)
    return {"qweight": words(codes, 0), "scales": scales, "qzeros": words(stored, 1), "g_idx": index}, values.T


CONFIGS: dict[str, dict[str, Any]] = {
    "sym": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    "gptq_v2": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False, "checkpoint_format": "gptq_v2"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True},
}


def folder_of(method: str, folder: Path) -> tuple[Path, Arrays, torch.nn.Module]:
    """A packed folder, its weights by their own names, and the module that has them."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    random, tensors, meant = np.random.default_rng(1), load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if "_proj" in name]:
        parts, meant[name] = packed(method, *tensors.pop(name).shape, random)
        tensors |= {f"{name.removesuffix('weight')}{part}": array for part, array in parts.items()}
        model.state_dict()[name].copy_(torch.from_numpy(np.ascontiguousarray(meant[name])))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    values = json.loads((folder / "config.json").read_text()) | {"quantization_config": CONFIGS[method]}
    (folder / "config.json").write_text(json.dumps(values))
    return folder, meant, model


@pytest.mark.parametrize("method", ["awq", *(pytest.param(m, marks=pytest.mark.slow) for m in ("sym", "gptq_v2"))])
def test_a_packed_folder_keeps_its_codes(method: str, tmp_path: Path) -> None:
    folder, meant, model = folder_of(method, tmp_path / "model")
    pack = compile_model(CompileOptions(str(folder), output=tmp_path / "x.fpk"))  # proves itself against the interpreter
    with open_pack(pack, trust=True) as opened:
        for t in opened.manifest.tensors:
            if "_proj" in t.name:
                stem, _, kind = t.name.rpartition(".")
                head, _, joined = stem.rpartition(".")
                wanted = np.concatenate([meant[f"{head}.{part}.{kind}"] for part in joined.split("+")])
                found = parse_layout(t.layout, t.format, tuple(t.shape)).decode(opened.weights[t.offset : t.offset + t.nbytes])
                assert t.format == f"int4a-g{GROUP}" and found.tobytes() == np.ascontiguousarray(wanted).tobytes(), t.name
        block = "awq" if method == "awq" else "gptq"
        assert opened.manifest.provenance.blocks == f"{block} stays as it is (int4a-g{GROUP})"
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([TOKENS]), use_cache=False).logits[0].numpy()
    with LLM(str(pack), trust=True, max_num_seqs=1) as llm:
        assert np.abs(llm.logits(TOKENS) - logits).max() <= 0.05 * np.abs(logits).max()


@pytest.mark.parametrize("method", CONFIGS)
def test_words_mean_what_the_formula_says(method: str, tmp_path: Path) -> None:
    from ferrum.graphs.expressions.evaluate import ExprRows

    folder, meant, _ = folder_of(method, tmp_path / "model")
    assert check_model(CompileOptions(str(folder))) == ()
    with closing(open_checkpoint(folder)) as checkpoint:
        for name, values in meant.items():
            source = ExprRows(checkpoint.meanings[name], checkpoint)
            assert np.asarray(source.values(slice(3, 17))).tobytes() == np.ascontiguousarray(values[3:17]).tobytes()
            assert source.blocked is not None and (source.blocked.size, source.blocked.axis) == (GROUP, 1)


def test_what_is_packed_otherwise_is_refused(tmp_path: Path) -> None:
    folder, _, _ = folder_of("sym", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("g_idx"))
    save_file(tensors | {name: tensors[name][::-1].copy()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(FerrumError, match="groups values that are no neighbours") as caught:
        check_model(CompileOptions(str(folder)))
    assert caught.value.code == "format-unsupported"
    stem = name.removesuffix("g_idx")
    save_file(tensors | {f"{stem}scales": tensors[f"{stem}scales"][:1].copy()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(FerrumError, match="int4 scales of shape") as caught:
        check_model(CompileOptions(str(folder)))
    assert caught.value.code == "checkpoint-corrupt"
