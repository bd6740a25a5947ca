"""What `transformers` calls for attention, masks and experts while a model of its own is traced: functions of ours, each of
which leaves one node in the trace.

They are entered under one name through its three interfaces. The torch implementations are not needed for tracing; they make an
exported program run, and are what the nodes mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

NAME = "ferrum"
FAR = 1 << 20  # a place that any window or block of a mask lies before
SPAN = 1 << 18  # wider windows than this are none
SHARP = 1e4  # exp of its negative is 0

# Arguments of attention functions that change no result of a stateless evaluation.
SILENT = frozenset({
    "dropout", "position_ids", "cache_position", "use_cache", "output_attentions", "output_hidden_states", "position_embeddings",
    "past_key_values", "past_key_value", "return_dict", "num_items_in_batch", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q",
    "max_length_k", "sliding_window", "is_causal", "token_type_ids", "layer_idx", "output_router_logits", "logits_to_keep",
    "indices", "block_indices", "deterministic",
})  # fmt: skip


class Untraced(Exception):
    """A form of attention that no node stands for."""


@torch.library.custom_op("ferrum::attend", mutates_args=())
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    bias: Tensor | None,
    scale: float,
    softcap: float,
    window: int,
    causal: bool,
) -> Tensor:
    """[batch, heads, seq, width] → [batch, seq, heads, width of v]; kv heads are shared by equal groups of heads."""
    times = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    scores = (q @ k.transpose(2, 3)) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    distance = (torch.arange(q.shape[2]) + (k.shape[2] - q.shape[2]))[:, None] - torch.arange(k.shape[2])
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window:
        seen = seen & (distance.abs() < window)
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        wide = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return (torch.cat([scores, wide], -1).softmax(-1)[..., :-1] @ v).transpose(1, 2).contiguous()
    return (scores.softmax(-1) @ v).transpose(1, 2).contiguous()


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])


@torch.library.custom_op("ferrum::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, weight: Tensor, group: Tensor) -> Tensor:
    """x [rows, K], weight [groups, N, K], group [rows] → x[row] @ weight[group[row]].T."""
    return torch.einsum("rk,rnk->rn", x, weight[group])


@grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, group: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees, instead of a tensor that says so for each pair. ``chunk``: those of its own ``window`` places,
    counted from the first token, instead of the last ``window``.

    Code that computes attention itself takes it for that tensor, and gets one: 0 where a query sees a key, else the least number.
    So does ours where more than places decide: ``tokens`` [batch, seq] that the model itself counts, or a ``function`` of batch,
    head, query and key that is no window. What such a tensor means is recognized by its values, once it is in a graph.
    """

    causal: bool
    window: int
    sizes: tuple[Any, Any] = (0, 0)
    dtype: torch.dtype = torch.float32
    device: object = None
    batch: Any = 1
    chunk: bool = False
    tokens: Tensor | None = None
    function: Callable[..., Any] | None = None

    @property
    def of_places(self) -> bool:
        return self.tokens is None and self.function is None

    def tensor(self) -> Tensor:
        query, key = (torch.arange(size, device=self.device) for size in self.sizes)
        distance = query[:, None] - key
        seen = distance >= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        if self.function is not None:
            rows = torch.arange(self.batch, device=self.device)[:, None, None, None]
            seen = self.function(rows, torch.zeros_like(rows), query[:, None], key)
        elif self.chunk:
            seen = seen & (query[:, None] // self.window == key // self.window)
        elif self.window:
            seen = seen & (distance.abs() < self.window)
        seen = seen.expand(self.batch, 1, *self.sizes)
        if self.tokens is not None:
            seen = seen & (self.tokens != 0)[:, None, None]
        return torch.where(seen, 0.0, torch.finfo(self.dtype).min)

    @classmethod
    def __torch_function__(cls, function: Any, _: object, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda value: value.tensor() if isinstance(value, Mask) else value, (args, kwargs or {}))
        return function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.tensor(), name)

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor()[index]

    def __add__(self, other: Any) -> Tensor:
        return self.tensor() + other

    def __mul__(self, other: Any) -> Tensor:
        return self.tensor() * other

    def __lt__(self, other: Any) -> Tensor:
        return self.tensor() < other


class Places(np.ndarray[Any, Any]):
    """Places of queries and keys as a mask's function takes them: it calls a few methods of tensors on what it computes."""

    device: Any = None

    def new_ones(self, shape: Any, dtype: object = None) -> np.ndarray[Any, Any]:
        return np.ones(shape, bool).view(Places)

    def new_zeros(self, shape: Any, dtype: object = None) -> np.ndarray[Any, Any]:
        return np.zeros(shape, bool).view(Places)

    def to(self, *_: object) -> Places:
        return self


def seen(function: Callable[..., Any], query: int, keys: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    try:
        found = function(0, 0, np.full(keys.shape, query).view(Places), keys.view(Places))
    except Exception as error:
        raise Untraced("a mask that depends on more than places") from error
    if isinstance(found, Tensor):
        raise Untraced("a mask that depends on more than places")
    return np.broadcast_to(np.asarray(found, bool), keys.shape)


def mask_of(function: Callable[..., Any]) -> Mask:
    """The mask whose value for a pair of places is ``function(batch, head, query, key)``, recognized by its values."""
    keys = np.arange(FAR - SPAN, FAR + SPAN)
    at = seen(function, FAR, keys)
    ahead, behind = at[SPAN + 1 :], at[:SPAN]
    window = 0 if behind.all() else int(behind[::-1].argmin()) + 1
    masks = [Mask(not ahead.any(), window)]
    if window and masks[0].causal:  # the query before the first key that the last one sees: is it the end of a chunk?
        before = seen(function, FAR - window, np.arange(FAR - window - SPAN, FAR - window))
        masks.append(Mask(True, int(before[::-1].argmin()) + 1, chunk=True))
    found = next((mask for mask in masks if lets_through(mask, function)), None)
    if found is None:
        raise Untraced("a mask that is neither causal nor a window")
    return found


def lets_through(mask: Mask, function: Callable[..., Any]) -> bool:
    """Whether ``mask`` is what ``function`` says, at places around its borders."""
    window = mask.window
    for query in (0, 1, 2, 7, max(0, window - 1), window, window + 1, FAR // 2 + 3, FAR):
        near = np.arange(max(0, query - SPAN), query + SPAN)
        distance = np.abs(query // window - near // window) * window if mask.chunk else np.abs(query - near)
        wanted = distance < (window or FAR * FAR)
        if (seen(function, query, near) != (wanted & (near <= query) if mask.causal else wanted)).any():
            return False
    return True


def mask_function(
    *,
    q_length: Any,
    kv_length: Any,
    mask_function: Callable[..., Any],
    attention_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: object = None,
    batch_size: Any = 1,
    **_: object,
) -> Mask:
    """``transformers``' signature."""
    try:
        found = mask_of(mask_function)
    except Untraced:
        found = Mask(False, 0, function=mask_function)
    sizes = (q_length, kv_length)
    return replace(found, sizes=sizes, dtype=dtype, device=device, batch=batch_size, tokens=attention_mask)


def attention_function(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Mask | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """``transformers``' signature. Without a mask the module says whether it is causal; a tensor is added to the scores."""
    unknown = sorted(name for name, option in options.items() if option is not None and name not in SILENT)
    if unknown:
        raise Untraced(f"attention with {', '.join(unknown)}")
    all_chosen(module, key, options)
    causal = options.get("is_causal")
    mask = Mask(bool(getattr(module, "is_causal", True) if causal is None else causal), 0)
    bias = position_bias
    if isinstance(attention_mask, Mask) and not attention_mask.of_places:
        attention_mask = attention_mask.tensor()
    if isinstance(attention_mask, Mask):
        mask = attention_mask
    elif attention_mask is not None:
        mask = Mask(False, 0)
        added = added_mask(attention_mask, query.dtype)
        bias = added if bias is None else bias + added
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask.chunk:
        if softcap or not mask.causal:
            raise Untraced("attention within chunks with a soft cap or to later tokens")
        query, key = apart(query, key, mask.window, scale)
    out = torch.ops.ferrum.attend(query, key, value, s_aux, bias, scale, float(softcap or 0), mask.window, mask.causal)
    return out, None


def all_chosen(module: Any, key: Tensor, options: Mapping[str, Any]) -> None:
    """Where a model attends to the keys that an indexer has chosen: it chooses all of a sequence that is short enough. The trace
    holds for those, and what the indexer computes leaves no node in it. Raises ``Untraced`` if the trace itself is longer."""
    if options.get("indices") is not None:
        most = module.config.index_topk
    elif options.get("block_indices") is not None:
        most = module.config.index_topk_blocks * module.config.index_block_size
    else:
        return
    if key.shape[2] > most:
        raise Untraced(f"attention to {most} chosen tokens")


def apart(query: Tensor, key: Tensor, chunk: int, scale: float) -> tuple[Tensor, Tensor]:
    """Queries and keys of [.., tokens, width] with two columns more, which add 0 within a chunk and -SHARP to the scores of keys
    of the chunk before: of the last ``chunk`` tokens, others there are none."""
    odd = (torch.arange(query.shape[2], device=query.device) // chunk % 2).to(query.dtype)
    sides = torch.stack([odd, 1 - odd], -1)[None, None]
    added = [x.expand(*rows.shape[:3], 2) for x, rows in ((sides * (-SHARP / scale), query), (sides.flip(-1), key))]
    return torch.cat([query, added[0]], -1), torch.cat([key, added[1]], -1)


def added_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of truth values as what is added to the scores."""
    if mask.dtype != torch.bool:
        return mask
    return torch.where(mask, torch.zeros((), dtype=dtype), torch.full((), torch.finfo(dtype).min, dtype=dtype))


def experts_function(
    self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, *_: object, **__: object
) -> Tensor:
    """``transformers``' signature: each token's rows go through the experts that its indices name, one row for each pair."""
    tokens, count, width = hidden_states.shape[0], top_k_index.shape[-1], hidden_states.shape[-1]
    group = top_k_index.reshape(-1)
    rows = hidden_states.unsqueeze(1).expand(tokens, count, width).reshape(-1, width)
    first = "gate_up_proj" if self.has_gate else "up_proj"
    rows = expert_product(self, rows, first, group)
    rows = self._apply_gate(rows) if self.has_gate else self.act_fn(rows)
    rows = expert_product(self, rows, "down_proj", group)
    if self.has_post_expert_norm:
        rows = self.post_expert_norm(rows)
    weighted = rows * top_k_weights.reshape(-1, 1)
    return weighted.reshape(tokens, count, -1).sum(dim=1).to(hidden_states.dtype)


def expert_product(experts: Any, rows: Tensor, name: str, group: Tensor) -> Tensor:
    weight = getattr(experts, name)
    out = torch.ops.ferrum.grouped_linear(rows, weight.transpose(1, 2) if experts.is_transposed else weight, group)
    return out + getattr(experts, f"{name}_bias")[group] if experts.has_bias else out


def number_tensor(tensor: Callable[..., Tensor], data: Any, **how: Any) -> Tensor:
    """``torch.tensor``, of which one number is an op of the trace: as a constant on the meta device it would be lost."""
    return torch.full((), data, **how) if isinstance(data, bool | int | float) else tensor(data, **how)


@contextmanager
def registered() -> Iterator[None]:
    """``transformers`` knows the functions of this file by ``NAME``; afterwards it does not."""
    from transformers import masking_utils
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    entered = (
        (ALL_ATTENTION_FUNCTIONS, attention_function),
        (masking_utils.ALL_MASK_ATTENTION_FUNCTIONS, mask_function),
        (ALL_EXPERTS_FUNCTIONS, experts_function),
    )
    validated = torch.distributions.Distribution._validate_args
    packed, tensor, chunked = masking_utils.find_packed_sequence_indices, torch.tensor, masking_utils.chunked_overlay
    for interface, function in entered:
        interface.register(NAME, function)
    masking_utils.find_packed_sequence_indices = lambda *_, **__: None  # one sequence is one row here
    masking_utils.chunked_overlay = lambda size, _: chunked(size, np.zeros(1, np.int64))  # which begins with its first token
    torch.tensor = lambda data, **how: number_tensor(tensor, data, **how)
    torch.distributions.Distribution.set_default_validate_args(False)  # it asks numbers of a trace
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(validated)
        masking_utils.find_packed_sequence_indices, torch.tensor, masking_utils.chunked_overlay = packed, tensor, chunked
        for interface, _ in entered:
            type(interface)._global_mapping.pop(NAME, None)
