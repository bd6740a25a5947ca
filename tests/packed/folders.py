"""Small models whose layers are packed, each kind of a method in one folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from ferrum import LLM
from tests.packed.layers import E5M2, Compressed, Made, Maker, Tensors, awq, bnb4, bnb8, fp8, gptq, nvfp4

TOKENS = [3, 1, 4, 15, 9, 26, 5, 35, 8]
BF16 = torch.bfloat16


def ct(format: str, cpu: str = "", gpu: str = "", dtype: torch.dtype = BF16, ordered: bool = False, **args: Any) -> Compressed:
    return Compressed(format, args, dtype, cpu, gpu, ordered)


INT, FLOAT = {"type": "int"}, {"type": "float"}
COMPRESSED = [
    ct("pack-quantized", "int4s-g{}", "int4s-g{}", num_bits=4, strategy="group", group_size=32, **INT),
    ct("pack-quantized", "int4a-g{}", "int4a-g{}", num_bits=4, strategy="group", group_size=32, symmetric=False, **INT),
    ct("pack-quantized", "int4s-g{}", "int4s-g{}", num_bits=4, strategy="channel", **INT),
    ct("pack-quantized", "int8-g{}", "int8-g{}", num_bits=8, strategy="group", group_size=32, **INT),
    ct("int-quantized", "int8-g{}", "int8-g{}", num_bits=8, strategy="channel", **INT),
    ct("float-quantized", "", "fp8", num_bits=8, strategy="channel", **FLOAT),
    ct("float-quantized", "", "fp8", num_bits=8, strategy="tensor", **FLOAT),
    ct("nvfp4-pack-quantized", num_bits=4, strategy="tensor_group", group_size=16, **FLOAT),
    ct("mxfp4-pack-quantized", "int5-g{}", "int8-g{}", num_bits=4, strategy="group", group_size=32, **FLOAT),
    ct("float-quantized", num_bits=8, strategy="block", block_structure=[32, 32], **FLOAT),
    ct("pack-quantized", dtype=torch.float32, num_bits=4, strategy="group", group_size=32, **INT),
    ct("pack-quantized", "int4s-g{}", "int4s-g{}", num_bits=3, strategy="group", group_size=32, **INT),
    ct("mxfp8-quantized", num_bits=8, strategy="group", group_size=32, scale_dtype=torch.uint8, **FLOAT),
    ct("pack-quantized", "int5-g{}", "int8-g{}", num_bits=5, strategy="group", group_size=32, **INT),
]  # fmt: skip
# bits, group, symmetric, format
_WIDE = [
    (5, 64, True, "int5"), (5, 128, True, "int5"), (6, 64, True, "int6"), (6, 128, True, "int6"), (7, 64, True, "int8"),
    (3, 128, False, "int4a"), (4, 64, False, "int4a"), (4, 128, True, "int4s"), (4, 64, True, "int4s"), (8, 64, True, "int8"),
    (8, 128, True, "int8"), (2, 64, True, "int4s"),
]  # fmt: skip
WIDE = [
    ct("pack-quantized", f"{kind}-g{group}", f"{'int8' if kind in ('int5', 'int6') else kind}-g{group}",
       num_bits=bits, strategy="group", group_size=group, symmetric=sym, **INT)
    for bits, group, sym, kind in _WIDE
]  # fmt: skip


@dataclass(frozen=True)
class Method:
    config: dict[str, Any]
    makers: list[Maker]
    hidden: int = 64
    inner: int = 96


def _groups(makers: list[Compressed]) -> dict[str, Any]:
    groups = {f"group_{i}": maker.config() for i, maker in enumerate(makers)}
    for group in groups.values():
        group["weights"] = {key: value for key, value in group["weights"].items() if key != "scale_dtype"}
    return {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups, "ignore": ["lm_head"],
            "quantization_status": "compressed", "sparsity_config": {}, "kv_cache_scheme": None}  # fmt: skip


METHODS: dict[str, Method] = {
    "gptq": Method(
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False, "dynamic": {"-:.*lm_head": {}}},
        [gptq(4, 32), gptq(4, 32, sym=True), gptq(8, 32, sym=True), gptq(3, 32), gptq(2, 32, sym=True), gptq(4, -1),
         gptq(4, 32, ordered=True), gptq(8, 32), gptq(4, 32, scales=torch.float32)],
    ),
    "gptq_v2": Method(
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}, [gptq(4, 32, v2=True)]
    ),
    "awq": Method({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}, [awq(32)]),
    "awq gemv": Method({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}, [awq(32, across=False)]),
    "compressed-tensors": Method(_groups(COMPRESSED), list(COMPRESSED)),
    "wide groups": Method(_groups(WIDE), list(WIDE), hidden=128, inner=256),
    "fp8": Method(
        {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"},
        [fp8((32, 32)), fp8((32, 32), E5M2), fp8((1, 32), static=True), fp8((128, 128))],
    ),
    "fp8 of tensors": Method(
        {"quant_method": "fp8", "activation_scheme": "static"}, [fp8(None, suffix="weight_scale", static=True), fp8(None)]
    ),
    "modelopt": Method(
        {"quant_method": "modelopt", "quant_algo": "NVFP4"}, [nvfp4, fp8(None, suffix="weight_scale", static=True)]
    ),
    "auto-round": Method(
        {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4, "group_size": 32, "sym": True},
        [gptq(4, 32, sym=True), gptq(8, 32, sym=True)],
    ),
    "bitsandbytes": Method(
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        [bnb4(64, nested=True), bnb4(64, nested=False), bnb4(128, nested=True, kind="fp4"), bnb8],
    ),
}  # fmt: skip


@dataclass
class Folder:
    path: Path
    made: dict[str, Made]
    model: torch.nn.Module

    def stored(self) -> Tensors:
        return load_file(self.path / "model.safetensors")

    def store(self, tensors: Tensors) -> None:
        save_file(tensors, self.path / "model.safetensors", {"format": "pt"})

    def configure(self, quantization: Any) -> None:
        values = json.loads((self.path / "config.json").read_text()) | {"quantization_config": quantization}
        (self.path / "config.json").write_text(json.dumps(values))


def _part(name: str) -> tuple[int, int]:
    """Matrices that are joined are packed alike: the layer, and which of its four it belongs to."""
    kinds = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "gate_proj": 2, "up_proj": 2, "down_proj": 3}
    return int(name.split(".")[2]), kinds[name.split(".")[-2]]


def folder_of(method: Method, path: Path, pick: int | None = None) -> Folder:
    """A Llama of as many layers as all kinds need, or with one kind only; its weights are what the packed tensors mean."""
    torch.manual_seed(0)
    makers = method.makers if pick is None else [method.makers[pick]]
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=method.hidden, intermediate_size=method.inner, num_hidden_layers=max(1, -(-len(makers) // 4)),
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(path)
    folder, tensors = Folder(path, {}, model), load_file(path / "model.safetensors")
    for name in [name for name in tensors if "_proj" in name]:
        layer, part = _part(name)
        made = makers[(4 * layer + part) % len(makers)](*tensors.pop(name).shape)
        tensors |= {f"{name.removesuffix('weight')}{rest}": tensor.clone().contiguous() for rest, tensor in made.tensors.items()}
        folder.made[name] = made
        model.state_dict()[name].copy_(made.values)
    folder.store(tensors)
    folder.configure(method.config)
    return folder


def check_answers(pack: Path, folder: Folder) -> None:
    """A pack with activations in float32 says what `transformers` says of the dequantized model."""
    with torch.no_grad():
        ids = folder.model.generate(torch.tensor([TOKENS]), max_new_tokens=24, do_sample=False)  # type: ignore[operator]
        wanted = folder.model(input_ids=ids, use_cache=False).logits[0].numpy()
    with LLM(str(pack), trust=True, max_num_seqs=1) as llm:
        found = np.asarray(llm.logits(ids[0].tolist()))
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert found.argmax(-1)[len(TOKENS) - 1 : -1].tolist() == ids[0, len(TOKENS) :].tolist()
