"""Models without a record whose own code `transformers` has: what the compiler must know of them before they are traced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ferrum.errors import FerrumError
from ferrum.graphs.weights.packed import packing_fault

TRACER = "transformers"
MAX_POSITIONS = 1 << 30
# What configurations call the longest sequence, and what it is taken for where none says so (ALiBi, recurrences).
LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
DEFAULT_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class TracedConfig:
    """``family`` is the model type, ``architecture`` the class of `transformers`, ``values`` all of ``config.json``, which only
    that class understands.

    ``max_model_len`` is the length in tokens that the model is compiled for (0: ``max_position_embeddings``).
    """

    family: str
    values: Mapping[str, Any]
    max_position_embeddings: int
    max_model_len: int = 0
    architecture: str = ""

    @property
    def longest(self) -> int:
        """Positions that the model knows."""
        return self.max_position_embeddings


def traced_config(values: Mapping[str, Any]) -> TracedConfig | None:
    """The model that ``values`` describe if `transformers` is there and has its code; code of a repository is never run.

    Raises FerrumError ``config-unsupported``.
    """
    kind, named = values.get("model_type"), values.get("architectures")
    if not isinstance(kind, str) or not isinstance(named, list):
        return None
    architecture = next((name for name in named if name in causal_classes()), "")
    if not architecture:
        return None
    if quantized := packing_fault(values):
        step = "use another checkpoint of this model"
        raise FerrumError("config-unsupported", f"unsupported: {quantized}", "config.json", step)
    inner = values.get("text_config")
    parts = (values, inner if isinstance(inner, dict) else {})
    longest = next((part[key] for part in parts for key in LENGTHS if key in part), DEFAULT_LENGTH)
    if not isinstance(longest, int) or not 0 < longest <= MAX_POSITIONS:
        what = f"unsupported: max_position_embeddings = {longest!r} is not an integer from 1 to {MAX_POSITIONS}"
        raise FerrumError("config-unsupported", what, "config.json", "use another checkpoint of this model")
    return TracedConfig(kind, values, longest, architecture=architecture)


def causal_classes() -> frozenset[str]:
    """The names of the causal language models of `transformers`; none if it is not installed."""
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ModuleNotFoundError:
        return frozenset()
    found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return frozenset(name for names in found for name in ((names,) if isinstance(names, str) else names))


def tracer() -> str:
    """Name and version of what traces, for the pack's provenance."""
    from importlib.metadata import version

    return f"{TRACER} {version(TRACER)}"
