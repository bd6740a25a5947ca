"""What a decoder-only model is, in the glossary's words; ``from_hf`` is the only reader of Hugging Face's names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ferrum.errors import FerrumError
from ferrum.families import FAMILIES, Family, architectures, family_of
from ferrum.graphs.weights.packed import packing_fault

FULL = "full_attention"
SLIDING = "sliding_attention"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding over the whole head. ``scale`` multiplies cos and sin (1.0 except for yarn).

    ``original_max_position`` is the length that the model was trained at (llama3, yarn), in tokens.
    """

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The dimensions and switches of one model. ``layer_types`` holds ``full_attention`` or ``sliding_attention`` per layer.

    ``activation`` of the gate is silu, gelu or gelu_tanh.

    ``max_model_len`` is the length in tokens that the model is compiled for (0: ``max_position_embeddings``); only dynamic
    rope depends on it.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()
    torch_dtype: str = "float32"
    max_model_len: int = 0
    activation: str = "silu"

    @property
    def longest(self) -> int:
        """Positions that the model knows, with those that its rope reaches."""
        reached = int(self.max_position_embeddings * (self.rope.factor if self.rope.kind != "default" else 1))
        return max(reached, self.max_position_embeddings)

    def window(self, layer: int) -> int:
        """How many keys a query of ``layer`` sees, itself included; 0 means all."""
        return self.sliding_window or 0 if self.layer_types[layer] == SLIDING else 0


# ``hidden_act`` → the function that transformers computes under that name (transformers/activations.py).
_ACTIVATIONS: dict[str, str] = {
    **dict.fromkeys(("silu", "swish"), "silu"),
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_python_tanh", "gelu_new", "gelu_fast", "gelu_accurate"), "gelu_tanh"),
}
# Required keys of each rope kind beside theta; the rest have defaults.
_ROPE_KINDS: dict[str, tuple[str, ...]] = {
    "default": (), "linear": ("factor",), "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"), "yarn": (),
}


def _shown(value: object) -> str:
    """A value of the file as an error shows it: no file makes a message of pages."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


_LARGEST = 1e30  # of what is no integer: products of a few of these, or of their reciprocals, are still floats


class _Reader:
    """Reads typed values and collects every fault, so that one error can name them all."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.values = values
        self.defaults = defaults
        self.faults: list[str] = []

    def raw(self, key: str) -> Any:
        return self.values[key] if key in self.values else self.defaults.get(key)

    def integer(self, key: str, low: int = 1, high: int = 1 << 24, default: int | None = None) -> int:
        value = self.raw(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.faults.append(f"{key} = {_shown(value)} is not an integer from {low} to {high}")
            return low
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.raw(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 / _LARGEST <= value <= _LARGEST:
            self.faults.append(f"{key} = {_shown(value)} is not within 1e-30…1e30")
            return 1.0
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.raw(key)
        if value is not None and not isinstance(value, bool):
            self.faults.append(f"{key} = {_shown(value)} is not true or false")
        return value is True

    def switch(self, name: str) -> bool:
        """A switch of a family's record."""
        return name == "always" or (name != "never" and self.flag(name))


def from_hf(config: Mapping[str, Any], families: tuple[Family, ...] = FAMILIES) -> ModelConfig:
    """The model that a Hugging Face ``config.json`` describes, if it is of one of ``families``.

    Raises FerrumError ``model-unsupported`` (architecture unknown) or ``config-unsupported``, which lists all bad values.
    """
    family = _family(config, families)
    read = _Reader(config, family.defaults)
    activation = _ACTIVATIONS.get(str(read.raw("hidden_act")), "")
    if not activation:
        read.faults.append(f"hidden_act = {_shown(read.raw('hidden_act'))} (supported: silu, gelu)")
    if quantized := packing_fault(config):
        read.faults.append(quantized)
    heads = read.integer("num_attention_heads", high=4096)
    kv_heads = read.integer("num_key_value_heads", high=4096, default=heads)
    if heads % kv_heads:
        read.faults.append(f"num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}")
    hidden = read.integer("hidden_size")
    head_dim = read.integer("head_dim", low=2, high=4096, default=max(hidden // heads, 2))
    if head_dim % 2:
        read.faults.append(f"head_dim = {head_dim} is odd")
    layers = read.integer("num_hidden_layers", high=4096)
    window, layer_types = _WINDOWS[family.window](read, layers)
    longest = read.integer("max_position_embeddings", high=1 << 30)
    result = ModelConfig(
        family=family.name,
        vocab_size=read.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=read.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=read.number("rms_norm_eps"),
        rope=_rope(read, longest, head_dim),
        max_position_embeddings=longest,
        tie_word_embeddings=read.flag("tie_word_embeddings"),
        attention_bias=read.switch(family.qkv_bias),
        attention_out_bias=read.switch(family.out_bias),
        mlp_bias=read.switch(family.mlp_bias),
        qk_norm=family.qk_norm,
        sliding_window=window,
        layer_types=layer_types,
        activation=activation,
        torch_dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
    )
    if read.faults:
        raise FerrumError("config-unsupported", "unsupported: " + "; ".join(read.faults), "config.json",
                          "use another checkpoint of this model, or see docs/adding-a-model.md")
    return result


def _family(config: Mapping[str, Any], families: tuple[Family, ...]) -> Family:
    known = architectures(families)
    named, kind = config.get("architectures"), config.get("model_type")
    named = [] if named is None else named
    if not isinstance(named, list) or not all(isinstance(name, str) for name in [*named, "" if kind is None else kind]):
        what = f"architectures = {_shown(named)} is not a list of names, or model_type = {_shown(kind)} is none"
        raise FerrumError("model-unsupported", what, "config.json", "supported: " + ", ".join(known))
    # what saved the inner part of a model alone names that part's class; whether a head is there its tensors say
    whole = [name.removesuffix("Model") + "ForCausalLM" if name.endswith("Model") else name for name in named]
    found = next((known[name] for name in whole if name in known), None)
    if found is None and not named:
        found = family_of(str(kind), families)
    if found is None:
        what = ", ".join(named) or str(kind)
        raise FerrumError("model-unsupported", f"unknown architecture {what}", "config.json architectures",
                          "supported: " + ", ".join(known))
    return found


def _no_window(read: _Reader, layers: int) -> tuple[int | None, tuple[str, ...]]:
    return None, (FULL,) * layers


def _every_layer(read: _Reader, layers: int) -> tuple[int | None, tuple[str, ...]]:
    if read.raw("sliding_window") is None:
        return _no_window(read, layers)
    return read.integer("sliding_window", high=1 << 30), (SLIDING,) * layers


def _upper_layers(read: _Reader, layers: int) -> tuple[int | None, tuple[str, ...]]:
    kinds = read.raw("layer_types")
    if not read.flag("use_sliding_window") or read.raw("sliding_window") is None:
        if isinstance(kinds, list) and SLIDING in kinds:
            read.faults.append("layer_types has sliding_attention but use_sliding_window is off")
        return _no_window(read, layers)
    window = read.integer("sliding_window", high=1 << 30)
    if kinds is None:
        first = read.integer("max_window_layers", low=0)
        return window, tuple(SLIDING if i >= first else FULL for i in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers or any(k not in (FULL, SLIDING) for k in kinds):
        read.faults.append(f"layer_types must hold {layers} times {FULL} or {SLIDING}")
        return window, (FULL,) * layers
    return window, tuple(kinds)


_WINDOWS: Mapping[str, Callable[[_Reader, int], tuple[int | None, tuple[str, ...]]]] = {
    "none": _no_window, "all": _every_layer, "upper": _upper_layers,
}


def _rope(read: _Reader, longest: int, head_dim: int) -> RopeConfig:
    """Old spelling (``rope_theta`` + ``rope_scaling``) and new (``rope_parameters``), with transformers' precedence."""
    given = read.raw("rope_scaling") or read.raw("rope_parameters") or {}
    if not isinstance(given, Mapping) or any(isinstance(v, Mapping) for v in given.values()):
        read.faults.append("rope_parameters is not one flat set of values")
        return RopeConfig()
    kind = str(given.get("rope_type", given.get("type", "default")))
    if kind not in _ROPE_KINDS:
        read.faults.append(f"rope type {_shown(kind)} (supported: {', '.join(_ROPE_KINDS)})")
        return RopeConfig()
    partial = given.get("partial_rotary_factor", read.raw("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        read.faults.append(f"partial_rotary_factor = {_shown(partial)} (supported: 1.0)")
    rope = _Reader(given, {"rope_theta": read.raw("rope_theta")})
    read.faults += [f"rope type {kind} needs {key}" for key in _ROPE_KINDS[kind] if given.get(key) is None]
    trained = "original_max_position_embeddings"
    rope.defaults = {**rope.defaults, trained: longest}
    # the old spelling has it beside the rope's values; 0 means none
    original = (read if read.raw(trained) else rope).integer(trained, low=0, high=1 << 30) or longest
    factor = rope.number("factor", default=longest / original if kind == "yarn" else 1.0)
    result = RopeConfig(
        kind=kind, theta=rope.number("rope_theta"), factor=factor, original_max_position=original,
        low_freq_factor=rope.number("low_freq_factor", 1.0), high_freq_factor=rope.number("high_freq_factor", 4.0),
        beta_fast=rope.number("beta_fast", 32.0), beta_slow=rope.number("beta_slow", 1.0),
        truncate=given.get("truncate", True) is not False, scale=_yarn_scale(rope, factor) if kind == "yarn" else 1.0,
    )
    read.faults += [f"rope {fault}" for fault in rope.faults]
    if kind == "dynamic" and head_dim <= 2:
        read.faults.append("dynamic rope needs head_dim > 2")
    if kind == "llama3" and result.high_freq_factor <= result.low_freq_factor:
        read.faults.append("rope high_freq_factor must be above low_freq_factor")
    return result


def _yarn_scale(rope: _Reader, factor: float) -> float:
    """The factor on cos and sin. Source: YaRN (arXiv 2309.00071), section 3.4, and DeepSeek's mscale pair."""
    if rope.raw("attention_factor") is not None:
        return rope.number("attention_factor")

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.raw("mscale") and rope.raw("mscale_all_dim"):
        return mscale(rope.number("mscale")) / mscale(rope.number("mscale_all_dim"))
    return mscale(1.0)
