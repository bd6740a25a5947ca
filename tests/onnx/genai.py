"""A tiny Llama as ONNX Runtime's model builder writes one: its own ops, a cache as inputs and outputs, codes of four bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from tests.onnx.maker import IDS, RUNTIME, model, node, nodes

PROJECTIONS = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
               "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}  # fmt: skip
LENGTHS = """
    counted = ReduceSum(attention_mask, row) keepdims=1
    before = Sub(counted, row)
    lengths = Cast(before) to=6
    shape = Shape(attention_mask)
    whole = Gather(shape, place) axis=0
    total = Cast(whole) to=6
"""
BLOCK = 32


def packed(weight: np.ndarray, middle: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """[N, K] in blocks of 32 along K: bytes of two codes, scales, zero points of a row in bytes, and the values."""
    n, k = weight.shape
    blocks = weight.reshape(n, k // BLOCK, BLOCK)
    zeros = np.full((n, k // BLOCK), 8) if middle else (np.arange(n * k // BLOCK) % 5 + 5).reshape(n, k // BLOCK)
    scales = (np.abs(blocks).max(2) / 7).astype(np.float32)
    codes = np.clip(np.round(blocks / scales[..., None]) + zeros[..., None], 0, 15).astype(np.uint8)
    values = ((codes.astype(np.float32) - zeros[..., None]) * scales[..., None]).reshape(n, k)
    halves = codes.reshape(n, k // BLOCK, BLOCK // 2, 2)
    points = np.concatenate([zeros, zeros[:, : zeros.shape[1] % 2]], 1).reshape(n, -1, 2).astype(np.uint8)
    return halves[..., 0] | halves[..., 1] << 4, scales, points[..., 0] | points[..., 1] << 4, values


def tables(config: Any) -> dict[str, np.ndarray]:
    width = config.head_dim
    theta = config.rope_parameters["rope_theta"]
    angles = np.arange(config.max_position_embeddings)[:, None] * theta ** -(np.arange(0, width, 2) / width)
    return {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}


class Builder:
    """``quantize``: "", "middle" (zero points of 8 are not stored) or "points"."""

    def __init__(self, inner: torch.nn.Module, quantize: str = "") -> None:
        self.inner = inner
        self.quantize = quantize
        self.config: Any = inner.config
        self.weights = {name: value.detach().numpy() for name, value in inner.state_dict().items()}
        self.tensors = {"row": np.array([1], np.int64), "place": np.int64(1), **tables(self.config)}
        self.nodes: list[onnx.NodeProto] = []

    def built(self) -> onnx.ModelProto:
        """The model; with ``quantize`` the module's weights become what the codes say."""
        config = self.config
        self.tensors["embed"] = self.weights["model.embed_tokens.weight"]
        self.text(f"{LENGTHS}\nr0 = Gather(embed, input_ids)")
        added = ""
        for layer in range(config.num_hidden_layers):
            self.layer(layer, added)
            added = f"down{layer}"
        self.norm("model.norm.weight", f"r{2 * config.num_hidden_layers - 1}", added, "last", "end")
        self.product("lm_head", "last", "logits")
        past = [
            batch_of(f"past_key_values.{i}.{kind}", config) for i in range(config.num_hidden_layers) for kind in ("key", "value")
        ]
        mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"])
        present = [f"present.{i}.{kind}" for i in range(config.num_hidden_layers) for kind in ("key", "value")]
        return model(self.nodes, self.tensors, [IDS, mask, *past], outputs=["logits", *present])

    def text(self, lines: str) -> None:
        self.nodes += nodes(lines)

    def layer(self, i: int, added: str) -> None:
        prefix, config = f"model.layers.{i}", self.config
        rest = "r0" if not i else f"r{2 * i}"
        self.norm(f"{prefix}.input_layernorm.weight", "r0" if not i else f"r{2 * i - 1}", added, f"n{i}", rest)
        for name in "qkv":
            self.product(f"{prefix}.{PROJECTIONS[name]}", f"n{i}", f"{name}{i}")
        cache = [f"past_key_values.{i}.{kind}" for kind in ("key", "value")]
        made = [f"a{i}", f"present.{i}.key", f"present.{i}.value"]
        self.nodes.append(node(
            "GroupQueryAttention", [f"q{i}", f"k{i}", f"v{i}", *cache, "lengths", "total", "cos", "sin"], made, RUNTIME,
            num_heads=config.num_attention_heads, kv_num_heads=config.num_key_value_heads, do_rotary=1, local_window_size=-1,
        ))  # fmt: skip
        self.product(f"{prefix}.{PROJECTIONS['o']}", f"a{i}", f"o{i}")
        self.norm(f"{prefix}.post_attention_layernorm.weight", rest, f"o{i}", f"m{i}", f"r{2 * i + 1}")
        for name in ("gate", "up"):
            self.product(f"{prefix}.{PROJECTIONS[name]}", f"m{i}", f"{name}{i}")
        self.text(f"""
            s{i} = Sigmoid(gate{i})
            act{i} = Mul(gate{i}, s{i})
            h{i} = Mul(act{i}, up{i})
        """)
        self.product(f"{prefix}.{PROJECTIONS['down']}", f"h{i}", f"down{i}")

    def norm(self, name: str, x: str, added: str, out: str, rest: str) -> None:
        self.tensors[name] = self.weights[name]
        eps = self.config.rms_norm_eps
        if not added:
            self.text(f"{out} = SimplifiedLayerNormalization({x}, {name}) epsilon={eps} axis=-1 stash_type=1")
        else:
            self.text(f"{out}, , , {rest} = {RUNTIME}:SkipSimplifiedLayerNormalization({x}, {added}, {name}) epsilon={eps}")

    def product(self, name: str, x: str, out: str) -> None:
        weight = self.weights[f"{name}.weight"]
        if not self.quantize:
            self.tensors[f"{name}.weight"] = np.ascontiguousarray(weight.T)
            self.text(f"{out} = MatMul({x}, {name}.weight)")
            return
        codes, scales, points, values = packed(weight, self.quantize == "middle")
        stored = {"codes": codes, "scales": scales, "points": points}
        kept = [key for key in stored if key != "points" or self.quantize == "points"]
        self.tensors |= {f"{name}.{key}": stored[key] for key in kept}
        names = [x, *(f"{name}.{key}" for key in kept)]
        n, k = weight.shape
        self.nodes.append(node("MatMulNBits", names, [out], RUNTIME, K=k, N=n, bits=4, block_size=BLOCK))
        with torch.no_grad():
            self.inner.get_submodule(name).weight.copy_(torch.from_numpy(values))


def batch_of(name: str, config: Any) -> onnx.ValueInfoProto:
    shape = ["batch", config.num_key_value_heads, "past", config.head_dim]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
