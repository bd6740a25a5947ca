"""A small decoder with many spellings of the same mathematics, for tests of the frontend and the passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Spelling:
    """One choice per idea; the defaults are how the built-in families write it."""

    norm: str = "pow"
    rope: str = "cat"
    tables: str = "buffer"
    mask: str = "is_causal"
    attention: str = "sdpa"
    kv_heads: str = "enable_gqa"
    mlp: str = "silu"
    heads: str = "view"
    linear: str = "module"
    residual: str = "x_first"


@dataclass(frozen=True)
class Sizes:
    vocab: int = 40
    hidden: int = 24
    inner: int = 36
    layers: int = 1
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    window: int = 0
    bias: bool = False
    qk_norm: bool = True
    tied: bool = True


class Norm(nn.Module):
    def __init__(self, size: int, spelling: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        if spelling in ("layer", "layer_written_out"):
            self.bias = nn.Parameter(torch.zeros(size))
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        eps = 1e-6
        match self.spelling:
            case "pow":
                return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * self.weight
            case "square":
                return self.weight * (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps))
            case "divide":
                return x / torch.sqrt(torch.square(x).mean(dim=-1, keepdim=True) + eps) * self.weight
            case "reciprocal":
                return x * (1.0 / torch.sqrt(eps + x.pow(2).mean(-1, keepdim=True))) * self.weight
            case "sum":
                return x * (((x**2).sum(-1, keepdim=True) / x.shape[-1] + eps) ** -0.5) * self.weight
            case "unsqueezed":
                return x * torch.rsqrt(x.pow(2).mean(-1) + eps).unsqueeze(-1) * self.weight
            case "weight_inside":
                return x * (torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * self.weight)
            case "float":
                y = x.to(torch.float32)
                y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
                return self.weight * y.type_as(x)
            case "functional":
                return F.rms_norm(x, self.weight.shape, self.weight, eps)
            case "layer":
                return F.layer_norm(x, self.weight.shape, self.weight, self.bias, eps)
            case "layer_unbiased":
                return F.layer_norm(x, self.weight.shape, self.weight, None, eps)
            case "layer_written_out":
                y = x - x.mean(-1, keepdim=True)
                return y / torch.sqrt(y.pow(2).mean(-1, keepdim=True) + eps) * self.weight + self.bias
        raise ValueError(self.spelling)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, spelling: str) -> Tensor:
    """x [.., seq, head_dim]; cos, sin [.., seq, head_dim] (halves: [.., seq, head_dim / 2])."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    match spelling:
        case "cat":
            return x * cos + torch.cat((-b, a), dim=-1) * sin
        case "commuted":
            return torch.cat((-1 * b, a), dim=-1) * sin + cos * x
        case "chunk":
            first, second = x.chunk(2, dim=-1)
            return torch.add(x * cos, torch.cat([second.neg(), first], dim=-1) * sin)
        case "halves":
            return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        case "halves_neg":
            return torch.cat((a * cos + (-b) * sin, a * sin + b * cos), dim=-1)
    raise ValueError(spelling)


class Attention(nn.Module):
    def __init__(self, z: Sizes, s: Spelling) -> None:
        super().__init__()
        self.z, self.s = z, s
        self.q_proj = nn.Linear(z.hidden, z.heads * z.head_dim, bias=z.bias)
        self.k_proj = nn.Linear(z.hidden, z.kv_heads * z.head_dim, bias=z.bias)
        self.v_proj = nn.Linear(z.hidden, z.kv_heads * z.head_dim, bias=z.bias)
        self.o_proj = nn.Linear(z.heads * z.head_dim, z.hidden, bias=False)
        if z.qk_norm:
            self.q_norm, self.k_norm = Norm(z.head_dim, s.norm), Norm(z.head_dim, s.norm)

    def apply_linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        match self.s.linear:
            case "module":
                return layer(x)
            case "matmul":
                y = x @ layer.weight.t()
                return y if layer.bias is None else y + layer.bias
            case "flat":
                return layer(x.reshape(-1, x.shape[-1])).view(x.shape[0], x.shape[1], -1)
            case "addmm":
                flat = x.reshape(-1, x.shape[-1])
                y = flat @ layer.weight.t() if layer.bias is None else torch.addmm(layer.bias, flat, layer.weight.t())
                return y.view(x.shape[0], x.shape[1], -1)
        raise ValueError(self.s.linear)

    def split(self, x: Tensor, heads: int, norm: Norm | None) -> Tensor:
        batch, seq = x.shape[0], x.shape[1]
        match self.s.heads:
            case "view":
                x = x.view(batch, seq, heads, self.z.head_dim)
                return (x if norm is None else norm(x)).transpose(1, 2)
            case "unflatten":
                x = x.unflatten(-1, (heads, self.z.head_dim)).permute(0, 2, 1, 3)
                return x if norm is None else norm(x)
            case "contiguous":
                x = x.view(batch, seq, -1, self.z.head_dim).transpose(1, 2).contiguous()
                return x if norm is None else norm(x)
        raise ValueError(self.s.heads)

    def widen(self, x: Tensor) -> Tensor:
        """[batch, kv heads, seq, head_dim] → [batch, heads, seq, head_dim] (not for enable_gqa)."""
        times = self.z.heads // self.z.kv_heads
        batch, kv, seq, width = x.shape
        match self.s.kv_heads:
            case "enable_gqa":
                return x
            case "repeat_interleave":
                return x.repeat_interleave(times, dim=1)
            case "expand":
                return x[:, :, None].expand(batch, kv, times, seq, width).reshape(batch, kv * times, seq, width)
            case "stack":
                return x.unsqueeze(2).expand(-1, -1, times, -1, -1).flatten(1, 2)
        raise ValueError(self.s.kv_heads)

    def mask(self, seq: int) -> Tensor | None:
        """True where query i sees key j (bool), or 0 and -inf (float)."""
        w, s = self.z.window, self.s.mask
        i, j = torch.arange(seq)[:, None], torch.arange(seq)[None, :]
        if s == "is_causal" and not w:
            return None
        if s == "tril":
            m = torch.ones(seq, seq, dtype=torch.bool).tril()
            return m & ~torch.ones(seq, seq, dtype=torch.bool).tril(-w) if w else m
        if s == "triu":
            m = torch.full((seq, seq), float("-inf")).triu(1)
            return m + torch.full((seq, seq), float("-inf")).tril(-w) if w else m
        if s == "where":
            m = (i >= j) & (i < j + w) if w else i >= j
            return torch.where(m, 0.0, torch.finfo(torch.float32).min)[None, None]
        if s == "masked_fill":
            m = (j > i) | (j <= i - w) if w else j > i
            return torch.zeros(seq, seq).masked_fill(m, float("-inf"))[None, None].expand(1, 1, seq, seq)
        return ((i - j) >= 0) & ((i - j) < w) if w else j <= i

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale, mask = self.z.head_dim**-0.5, self.mask(q.shape[2])
        match self.s.attention:
            case "sdpa":
                gqa = self.s.kv_heads == "enable_gqa"
                return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=gqa)
            case "scaled_query":
                gqa = self.s.kv_heads == "enable_gqa"
                return F.scaled_dot_product_attention(q * scale, k, v, mask, is_causal=mask is None, scale=1.0, enable_gqa=gqa)
            case "default_scale":
                gqa = self.s.kv_heads == "enable_gqa"
                return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=gqa)
            case "written_out":
                scores = q @ k.transpose(2, 3) / self.z.head_dim**0.5
                assert mask is not None
                scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
                return F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v
        raise ValueError(self.s.attention)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        z = self.z
        q = self.split(self.apply_linear(self.q_proj, x), z.heads, self.q_norm if z.qk_norm else None)
        k = self.split(self.apply_linear(self.k_proj, x), z.kv_heads, self.k_norm if z.qk_norm else None)
        v = self.split(self.apply_linear(self.v_proj, x), z.kv_heads, None)
        q, k = rotate(q, cos, sin, self.s.rope), rotate(k, cos, sin, self.s.rope)
        y = self.attend(q, self.widen(k), self.widen(v))
        return self.o_proj(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], z.heads * z.head_dim))


class Mlp(nn.Module):
    def __init__(self, z: Sizes, s: Spelling) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(z.hidden, z.inner, bias=z.bias)
        self.up_proj = nn.Linear(z.hidden, z.inner, bias=z.bias)
        self.down_proj = nn.Linear(z.inner, z.hidden, bias=z.bias)
        self.spelling = s.mlp

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        match self.spelling:
            case "silu":
                y = F.silu(gate) * up
            case "commuted":
                y = up * F.silu(gate)
            case "sigmoid":
                y = gate * torch.sigmoid(gate) * up
            case "exp":
                y = up * (gate / (1 + torch.exp(-gate)))
            case "gelu":
                y = F.gelu(gate) * up
            case "gelu_tanh":
                y = F.gelu(gate, approximate="tanh") * up
            case _:
                raise ValueError(self.spelling)
        return self.down_proj(F.dropout(y, 0.1, self.training))


class Layer(nn.Module):
    def __init__(self, z: Sizes, s: Spelling) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(z.hidden, s.norm), Attention(z, s)
        self.post_attention_layernorm, self.mlp = Norm(z.hidden, s.norm), Mlp(z, s)
        self.residual = s.residual

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y = self.self_attn(self.input_layernorm(x), cos, sin)
        x = x + y if self.residual == "x_first" else y.add(x)
        y = self.mlp(self.post_attention_layernorm(x))
        return x + y if self.residual == "x_first" else y + x


class Scratch(nn.Module):
    """tokens [batch, seq] → logits [batch, seq, vocab]."""

    def __init__(self, sizes: Sizes | None = None, spelling: Spelling | None = None) -> None:
        super().__init__()
        z, s = sizes or Sizes(), spelling or Spelling()
        self.z, self.s = z, s
        self.embed_tokens = nn.Embedding(z.vocab, z.hidden)
        self.layers = nn.ModuleList(Layer(z, s) for _ in range(z.layers))
        self.norm = Norm(z.hidden, s.norm)
        self.lm_head = nn.Linear(z.hidden, z.vocab, bias=False)
        if z.tied:
            self.lm_head.weight = self.embed_tokens.weight
        if s.tables != "computed":
            freq = torch.from_numpy(self.constants()["inv_freq"])
            self.register_buffer("inv_freq", freq.to(self.embed_tokens.weight.device), persistent=False)

    def constants(self) -> dict[str, np.ndarray]:
        return {"inv_freq": frequencies(self.z.head_dim)}

    def rope_tables(self, seq: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(seq)
        match self.s.tables:
            case "buffer":
                angles = positions[:, None] * self.inv_freq
            case "product":
                angles = (positions[None, :, None].float() @ self.inv_freq[None, None, :])[None]
            case "computed":
                width = self.z.head_dim
                freq = 1.0 / (100.0 ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
                angles = positions.unsqueeze(1).to(torch.float32) * freq
            case _:
                raise ValueError(self.s.tables)
        if not self.s.rope.startswith("halves"):
            angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        cos, sin = self.rope_tables(tokens.shape[1])
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))


def frequencies(head_dim: int) -> np.ndarray:
    """Radians per position, computed in float64 and stored as float32."""
    return (100.0 ** -(np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)


def build(sizes: Sizes | None = None, spelling: Spelling | None = None, device: str = "meta") -> Scratch:
    with torch.device(device):
        return Scratch(sizes, spelling).eval()


def combinations() -> dict[str, Spelling]:
    """Every spelling of every idea at least once; ideas are combined, because they do not touch each other."""
    choices = {
        "norm": ("square", "divide", "reciprocal", "sum", "unsqueezed", "weight_inside", "float", "functional"),
        "rope": ("commuted", "chunk", "halves", "halves_neg"),
        "tables": ("product", "computed", "buffer"),
        "mask": ("tril", "triu", "where", "masked_fill", "compare"),
        "kv_heads": ("repeat_interleave", "expand", "stack", "enable_gqa"),
        "mlp": ("commuted", "sigmoid", "exp"),
        "heads": ("unflatten", "contiguous", "view"),
        "linear": ("matmul", "flat", "addmm"),
        "residual": ("y_first", "x_first"),
        "attention": ("sdpa", "scaled_query", "default_scale", "sdpa", "written_out"),
    }
    table = {}
    for i in range(max(map(len, choices.values()))):
        spelling = Spelling(**{idea: options[i % len(options)] for idea, options in choices.items()})
        if spelling.attention == "written_out" and spelling.kv_heads == "enable_gqa":
            spelling = replace(spelling, kv_heads="expand")
        table["-".join((spelling.norm, spelling.rope, spelling.mask, spelling.attention))] = spelling
    return table


SPELLINGS = MappingProxyType(combinations())
