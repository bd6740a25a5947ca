"""What the decoder families share, as plain mathematics: stateless, full causal attention, no cache, no batching tricks.

Every idea has one spelling here, so that tracing gives few kinds of operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ferrum.graphs.models.config import ModelConfig
from ferrum.graphs.models.rope import inverse_frequencies

# The function of the MLP's gate, by the name in ``ModelConfig.activation``.
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Rotary(nn.Module):
    """cos and sin [seq, head_dim] of positions 0..seq-1. ``inv_freq`` has no data on the meta device: see ``constants``."""

    inv_freq: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.scale = config.rope.scale
        inv_freq = torch.empty(config.head_dim // 2)
        if inv_freq.device.type != "meta":
            inv_freq = torch.from_numpy(inverse_frequencies(config)).to(inv_freq.device)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, seq: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(seq, device=self.inv_freq.device)
        angles = positions[:, None] * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return (cos, sin) if self.scale == 1.0 else (cos * self.scale, sin * self.scale)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-rotation: dimension i turns with dimension i + head_dim / 2. x is [batch, heads, seq, head_dim]."""
    half = x.shape[-1] // 2
    swapped = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + swapped * sin


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.head_dim, self.num_heads, self.num_kv_heads = config.head_dim, config.num_heads, config.num_kv_heads
        self.window = config.window(layer)
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = nn.Linear(config.hidden_size, q_size, bias=config.attention_bias)
        self.key = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.value = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.out = nn.Linear(q_size, config.hidden_size, bias=config.attention_out_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.qk_norm = config.qk_norm

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, seq = x.shape[0], x.shape[1]
        q = self.query(x).view(batch, seq, self.num_heads, self.head_dim)
        k = self.key(x).view(batch, seq, self.num_kv_heads, self.head_dim)
        v = self.value(x).view(batch, seq, self.num_kv_heads, self.head_dim)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        scale = self.head_dim**-0.5
        if self.window:
            mask = window_mask(seq, self.window, x.device)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(batch, seq, self.num_heads * self.head_dim))


def window_mask(seq: int, window: int, device: torch.device) -> Tensor:
    """True [seq, seq] where query i may see key j: i - window < j <= i."""
    positions = torch.arange(seq, device=device)
    distance = positions[:, None] - positions
    return (distance >= 0) & (distance < window)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """tokens int64 [batch, seq] → logits [batch, seq, vocab_size]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary = Rotary(config)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        cos, sin = self.rotary(tokens.shape[1])
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))

    def constants(self) -> dict[str, np.ndarray]:
        """The values of the buffers, by qualified name: float32 ``rotary.inv_freq`` [head_dim / 2]."""
        return {"rotary.inv_freq": inverse_frequencies(self.config)}
