"""Rotary frequencies of every rope kind, computed in float64 and stored as float32."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ferrum.graphs.models.config import ModelConfig, RopeConfig

Frequencies = NDArray[np.float64]


def inverse_frequencies(config: ModelConfig) -> NDArray[np.float32]:
    """Radians per position, float32 [head_dim / 2]. Source: transformers' modeling_rope_utils and the papers named below."""
    return _KINDS[config.rope.kind](config).astype(np.float32)


def _powers(theta: float, dim: int) -> Frequencies:
    return 1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)


def _default(config: ModelConfig) -> Frequencies:
    return _powers(config.rope.theta, config.head_dim)


def _linear(config: ModelConfig) -> Frequencies:
    return _default(config) / config.rope.factor


def _dynamic(config: ModelConfig) -> Frequencies:
    """NTK-aware base of the compiled length. One base serves all positions, because cached keys cannot be rotated again."""
    rope, dim, trained = config.rope, config.head_dim, config.max_position_embeddings
    length = max(config.max_model_len, trained)
    stretch = rope.factor * length / trained - (rope.factor - 1)
    return _powers(rope.theta * stretch ** (dim / (dim - 2)), dim)


def _llama3(config: ModelConfig) -> Frequencies:
    """Long waves are slowed by ``factor``, short ones kept, and those between are blended (Llama 3.1)."""
    rope, inv_freq = config.rope, _default(config)
    turns = rope.original_max_position * inv_freq / (2 * math.pi)  # full turns over the trained length
    blend = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0)
    return (1 - blend) * inv_freq / rope.factor + blend * inv_freq


def _yarn(config: ModelConfig) -> Frequencies:
    """Per-dimension ramp between interpolation and extrapolation. Source: YaRN, arXiv 2309.00071, section 3.2."""
    rope, dim = config.rope, config.head_dim
    low, high = _ramp_ends(rope, dim)
    ramp = np.clip((np.arange(dim // 2, dtype=np.float64) - low) / (high - low), 0.0, 1.0)
    inv_freq = _default(config)
    return inv_freq / rope.factor * ramp + inv_freq * (1 - ramp)


def _ramp_ends(rope: RopeConfig, dim: int) -> tuple[float, float]:
    def dimension(turns: float) -> float:
        return dim * math.log(rope.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return low, high if high != low else high + 0.001  # transformers' guard against a ramp of no width


_KINDS: dict[str, Callable[[ModelConfig], Frequencies]] = {
    "default": _default, "linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn,
}
