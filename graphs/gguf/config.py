"""A GGUF file's metadata as the ``config.json`` that the model had."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ferrum.errors import FerrumError
from ferrum.graphs.gguf.architectures import ARCHITECTURES, Architecture, architecture_of
from ferrum.graphs.weights.gguf import Gguf
from ferrum.graphs.weights.safetensors import fault

# Keys behind the architecture's name that say what others say too, or nothing that changes a result.
_KNOWN = frozenset({
    "vocab_size", "rope.dimension_count", "attention.key_length", "attention.value_length", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned", "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scale_linear", "tensor_data_layout",
    "use_parallel_residual",
})  # fmt: skip
_NEUTRAL = {"rope.scaling.attn_factor": 1.0, "attention.causal": True}
_PATTERN = "attention.sliding_window_pattern"
# rope_freqs is the reciprocal of what Llama 3.1 and later do to frequencies; the trained length is not written down.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_TRAINED = (8192, 4096, 2048, 16384, 32768)


def require_architecture(model: Gguf) -> Architecture:
    """Raises FerrumError (model-unsupported)."""
    record = architecture_of(model.architecture)
    if record is None:
        known = ", ".join(record.name for record in ARCHITECTURES)
        what = f"unknown architecture {model.architecture[:60]!r}"
        raise FerrumError("model-unsupported", what, f"{model.path.name} general.architecture", f"supported in GGUF: {known}")
    return record


class _Metadata:
    """Values of one architecture. Raises FerrumError (checkpoint-corrupt) for those of a wrong kind."""

    def __init__(self, model: Gguf) -> None:
        self.model = model
        self.prefix = f"{model.architecture}."

    def value(self, key: str) -> Any:
        """A number or a switch, floats as the shortest decimal of their float32; None when there is none. A list that says one
        thing for all layers is that thing."""
        value = self.model.get(self.prefix + key, (int, float, bool, np.ndarray))
        if isinstance(value, np.ndarray):
            if value.size == 0 or (value != value[0]).any():
                what = f"{self.prefix}{key} differs from layer to layer"
                raise FerrumError("config-unsupported", f"unsupported: {what}", self.model.path.name, "use another model")
            value = value[0].item()
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def need(self, key: str) -> int:
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
            raise fault(self.model.path, f"metadata {self.prefix}{key}", f"is {str(value)[:40]}, not a size")
        return value


def config_of(model: Gguf) -> dict[str, Any]:
    """Raises FerrumError: model-unsupported, config-unsupported, checkpoint-corrupt."""
    record, data = require_architecture(model), _Metadata(model)
    _refuse_unknown(model, record, data)
    found = {key: value for key, name in record.keys.items() if (value := data.value(name)) is not None}
    config = {"architectures": [record.model], "model_type": record.kind, "dtype": "bfloat16", **record.fixed, **found}
    if not config.get("sliding_window", True):
        config["sliding_window"] = None  # 0 means none
    names = {name for file in model.files for name in file.tensors}
    config |= {key: name in names for key, name in record.switches.items()}
    config["tie_word_embeddings"] = "output.weight" not in names
    config["vocab_size"] = _vocab_size(model)
    heads, hidden = data.need("attention.head_count"), data.need("embedding_length")
    width = data.value("attention.key_length") or hidden // heads
    if (data.value("attention.value_length") or width) != width or (not record.head_dim and width != hidden // heads):
        what = f"unsupported: heads of {width} for keys and {data.value('attention.value_length')} for values"
        raise FerrumError("config-unsupported", what, model.path.name, "use another checkpoint of this model")
    if record.head_dim:
        config["head_dim"] = width
    config |= _rope(model, data, width, config) | _scale(record, data, width) | _windows(model, data)
    ids = {name: model.get(f"tokenizer.ggml.{name}", int) for name in ("bos_token_id", "eos_token_id")}
    return config | {name: value for name, value in ids.items() if value is not None and 0 <= value < config["vocab_size"]}


def _windows(model: Gguf, data: _Metadata) -> dict[str, Any]:
    """Which layers see a window, where the file says: one truth value for each, or every how many layers one sees all."""
    pattern = model.get(data.prefix + _PATTERN, (np.ndarray, int))
    if pattern is None:
        return {}
    layers = data.need("block_count")
    slides = pattern.astype(bool) if isinstance(pattern, np.ndarray) else np.arange(layers) % max(pattern, 1) < pattern - 1
    if slides.shape != (layers,):
        raise fault(model.path, f"metadata {data.prefix}{_PATTERN}", f"has not one value for each of {layers} layers")
    return {"layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides]}


def _refuse_unknown(model: Gguf, record: Architecture, data: _Metadata) -> None:
    """What nobody reads could be what makes this model another one."""
    given = {key[len(data.prefix) :]: value for key, value in model.files[0].metadata.items() if key.startswith(data.prefix)}
    read = _KNOWN | set(record.keys.values()) | ({_PATTERN} if "sliding_window" in record.keys else set())
    unread = {key: value for key, value in sorted(given.items()) if key not in read and _NEUTRAL.get(key) != value}
    matter = {key: value.any() if isinstance(value, np.ndarray) else bool(value) for key, value in unread.items()}
    wrong = [f"{data.prefix}{key} = {str(value)[:40]}" for key, value in unread.items() if matter[key]]
    if wrong:
        step = "use another checkpoint of this model, or see docs/adding-a-model.md"
        raise FerrumError("config-unsupported", "unsupported: " + "; ".join(wrong[:8]), model.path.name, step)


def _vocab_size(model: Gguf) -> int:
    info = next((file.tensors["token_embd.weight"] for file in model.files if "token_embd.weight" in file.tensors), None)
    if info is None or len(info.shape) != 2:
        raise fault(model.path, "tensor token_embd.weight", "is missing, or is no matrix")
    return info.shape[0]


def _scale(record: Architecture, data: _Metadata, width: int) -> dict[str, Any]:
    """Gemma 2 and 3 scale queries by the head's width, but for their largest sizes, which the format tells by their layers."""
    if record.name not in ("gemma2", "gemma3"):
        return {}
    largest = data.need("block_count") == {"gemma2": 46, "gemma3": 62}[record.name]
    return {"query_pre_attn_scalar": data.need("embedding_length") // data.need("attention.head_count") if largest else width}


def _rope(model: Gguf, data: _Metadata, width: int, config: dict[str, Any]) -> dict[str, Any]:
    """``rope_scaling`` and, where only a part of each head turns, its share."""
    found: dict[str, Any] = {}
    turned = data.value("rope.dimension_count") or width
    if turned != width:
        found["partial_rotary_factor"] = turned / width
    kind = str(model.get(f"{data.prefix}rope.scaling.type", str, "none"))
    factor = data.value("rope.scaling.factor") or data.value("rope.scale_linear")
    if kind == "linear" and factor not in (None, 1.0):
        found["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        found["rope_scaling"] = _yarn(data, factor)
    elif kind not in ("none", "linear"):
        what = f"unsupported: {data.prefix}rope.scaling.type = {kind[:40]} (supported: none, linear, yarn)"
        raise FerrumError("config-unsupported", what, model.path.name, "use another checkpoint of this model")
    for file in model.files:
        if "rope_freqs.weight" in file.tensors:
            factors = np.asarray(file.read("rope_freqs.weight"), np.float64).reshape(-1)
            found["rope_scaling"] = _llama3(model, factors, float(config.get("rope_theta", 10000.0)), turned)
        if "rope_factors_long.weight" in file.tensors:
            what = "unsupported: rope_factors_long, which depend on the length (longrope)"
            raise FerrumError("config-unsupported", what, model.path.name, "use another checkpoint of this model")
    return found


def _yarn(data: _Metadata, factor: float | None) -> dict[str, Any]:
    names = {
        "factor": factor, "original_max_position_embeddings": data.value("rope.scaling.original_context_length"),
        "attention_factor": data.value("rope.scaling.yarn_attn_factor"), "beta_fast": data.value("rope.scaling.yarn_beta_fast"),
        "beta_slow": data.value("rope.scaling.yarn_beta_slow"),
    }  # fmt: skip
    return {"rope_type": "yarn", **{name: value for name, value in names.items() if value is not None}}


def _llama3(model: Gguf, factors: np.ndarray, theta: float, turned: int) -> dict[str, Any]:
    """The scaling whose factors on wavelengths are ``factors``. Raises FerrumError (config-unsupported) when it is none."""
    if factors.size == turned // 2 and np.isfinite(factors).all() and theta > 0:
        wavelengths = 2 * math.pi * theta ** (np.arange(0, turned, 2) / turned)
        factor = float(factors.max())
        for trained in _TRAINED:
            smooth = np.clip((trained / wavelengths - 1.0) / 3.0, 0.0, 1.0)
            if np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
                return {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": trained, **_LLAMA3}
    what = "unsupported: rope_freqs.weight, which are not those of Llama 3"
    raise FerrumError("config-unsupported", what, model.path.name, "use another checkpoint of this model")
