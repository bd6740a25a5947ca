"""What `transformers` calls for recurrences while a model of its own is traced: one literal table, function of a module → ours.

A trace of many tokens has neither a first state nor a form for one token, so each of its scans becomes one node, ``recur``:

    state = decay * state, then state += key ⊗ value, by the delta rule key ⊗ (beta * (value - state · key));  out = state · query

for each head, with a state [key width, value width]. What a function computes before and behind that stays in the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ferrum.graphs.frontend.registered import Untraced


@torch.library.custom_op("ferrum::recur", mutates_args=())
def recur(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor | None) -> Tensor:
    """q, k [batch, seq, heads, K], v [.., V], decay [.., K] or [.., 1], beta [batch, seq, heads] → [batch, seq, heads, V]."""
    state = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1])
    out = torch.empty_like(v)
    for t in range(q.shape[1]):
        state = state * decay[:, t, ..., None]
        value = v[:, t]
        if beta is not None:
            value = beta[:, t, :, None] * (value - (state * k[:, t, ..., None]).sum(-2))
        state = state + k[:, t, ..., None] * value[:, :, None]
        out[:, t] = (state * q[:, t, ..., None]).sum(-2)
    return out


@recur.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor | None) -> Tensor:
    return v.new_empty(v.shape)


def from_nothing(state: object) -> None:
    """Raises ``Untraced`` for a scan that goes on from a state: a trace has none."""
    if state is not None:
        raise Untraced("a recurrence that goes on from a state of its own")


def selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: object,
) -> Any:
    """Mamba: hidden_states and dt [batch, channels, seq], A [channels, N], B and C [batch, N, seq]; a channel is a head."""
    if delta_bias is not None:
        dt = dt + delta_bias[..., None]
    if delta_softplus:
        dt = F.softplus(dt)
    step = dt.transpose(1, 2).unsqueeze(-1)
    key = step * B.transpose(1, 2).unsqueeze(2)
    query = C.transpose(1, 2).unsqueeze(2).expand(key.shape)
    value = hidden_states.transpose(1, 2).unsqueeze(-1)
    out = torch.ops.ferrum.recur(query, key, value, torch.exp(A * step), None).squeeze(-1).transpose(1, 2)
    if D is not None:
        out = out + hidden_states * D[None, :, None]
    if z is not None:
        out = out * F.silu(z)
    return (out, None) if return_last_state else out


def state_space_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int = 0,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **_: object,
) -> Any:
    """Mamba 2: hidden_states [batch, seq, heads, V], dt [batch, seq, heads], A [heads], B and C [batch, seq, groups, K]."""
    from_nothing(initial_states)
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = F.softplus(dt)
    if tuple(dt_limit) != (0.0, float("inf")):
        dt = torch.clamp(dt, min=dt_limit[0], max=dt_limit[1])
    heads = hidden_states.shape[2]
    key, query = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (B, C))
    out = torch.ops.ferrum.recur(query, key, hidden_states * dt[..., None], torch.exp(A * dt)[..., None], None)
    if D is not None:
        out = out + D[..., None] * hidden_states
    return (out, None) if return_final_states else out


def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int = 0,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **_: object,
) -> tuple[Tensor, None]:
    """Gated delta rule and Kimi's: query and key [batch, seq, key heads, K], value [.., heads, V], g the logarithm of the decay
    of a head [.., heads] or of each of its keys [.., heads, K]."""
    from_nothing(initial_state)
    times = value.shape[2] // key.shape[2]
    query, key = (x if times == 1 else x.repeat_interleave(times, dim=2) for x in (query, key))
    if use_qk_l2norm_in_kernel:
        query, key = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (query, key))
    decay = torch.exp(g)
    decay = decay if decay.ndim == key.ndim else decay[..., None]
    return torch.ops.ferrum.recur(query * query.shape[-1] ** -0.5, key, value, decay, beta), None


def gated_scan(
    self: Any, hidden_states: Tensor, recurrent_gate: Tensor, reset: Tensor, recurrent_states: Tensor | None, **_: object
) -> tuple[Tensor, None]:
    """RG-LRU, a number for each channel [batch, seq, channels]: state = gate * state + input, from nothing where ``reset`` is."""
    from_nothing(recurrent_states)
    value, gate = hidden_states[..., None], (recurrent_gate * ~reset)[..., None]
    one = torch.ones_like(value)
    return torch.ops.ferrum.recur(one, one, value, gate, None).squeeze(-1), None


def lightning_attention(self: Any, hidden_states: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
    """MiniMax: a decay for each head, the same at every token."""
    batch, seq, _width = hidden_states.shape
    heads = self.act_fn(self.qkv_proj(hidden_states)).reshape(batch, seq, self.num_attention_heads, -1)
    decay = torch.exp(-self.slope_rate).reshape(1, 1, -1, 1).expand(batch, seq, -1, 1)
    out = self.norm(torch.ops.ferrum.recur(*heads.split(self.head_dim, -1), decay, None).flatten(2))
    return self.out_proj(torch.sigmoid(self.output_gate(hidden_states)) * out), None


# By the name in the file of the model's modules: a function, or a method of a class.
TABLE: Mapping[str, Callable[..., Any]] = {
    "mamba_selective_scan": selective_scan,
    "mamba2_chunk_scan": state_space_scan,
    "torch_chunk_gated_delta_rule": delta_rule,
    "chunk_kimi_delta_attention": delta_rule,
    "RecurrentGemmaRglru._rnn_scan": gated_scan,
    "MiniMaxLightningAttention.forward": lightning_attention,
}
