"""ModelOpt, NVIDIA's: FP8, and NVFP4, whose 8-bit scales ``weight_scale_2`` multiplies.

Source: its checkpoints (``hf_quant_config.json``) and the loaders of vLLM (``modelopt.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ferrum.graphs.weights.methods.fp4 import four_bits
from ferrum.graphs.weights.methods.layers import Layers, Method
from ferrum.graphs.weights.methods.scaled import read_scaled

_ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4")
_BLOCK = 128


def _faults(values: Mapping[str, Any]) -> list[str]:
    given = values.get("quant_algo")
    return [] if given in _ALGORITHMS else [f"quant_algo {given!s:.30} is not read yet"]


def _read(layers: Layers, values: Mapping[str, Any]) -> None:
    for name, _ in layers.ending("_scale_2"):
        codes, scales = layers.tensor(name), layers.tensor(f"{name}_scale")
        layers.meanings[name] = four_bits(layers, name, codes, scales, f"{name}_scale_2", "mul")
    read_scaled(layers, ("f8e4m3",), _BLOCK)


MODELOPT = Method(_faults, _read)
