"""Models without a record, whose own code `transformers` has or whose file holds it: what the compiler must know of them before
they are traced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ferrum.errors import FerrumError
from ferrum.graphs.models.embedding import Embedding
from ferrum.graphs.weights.packed import packing_fault

TRACER = "transformers"
MAX_POSITIONS = 1 << 30
# What configurations call the longest sequence, and what it is taken for where none says so (ALiBi, recurrences).
LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
DEFAULT_LENGTH = 2048
# Types whose places are counted from behind the number of the padding token, which so many of their positions are lost to.
AFTER_PADDING = frozenset({
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta",
    "xlm-roberta-xl", "xmod",
})  # fmt: skip
DEFAULT_PAD = 1


@dataclass(frozen=True, slots=True)
class TracedConfig:
    """``family`` is the model type, ``architecture`` the class of `transformers`, ``values`` all of ``config.json``, which only
    that class understands. ``architecture`` is empty for a model whose computation its own file holds.

    ``max_model_len`` is the length in tokens that the model is compiled for (0: ``max_position_embeddings``). ``embedding``: the
    class gives a row for each token, and this is what becomes of them.
    """

    family: str
    values: Mapping[str, Any]
    max_position_embeddings: int
    max_model_len: int = 0
    architecture: str = ""
    embedding: Embedding | None = None

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
    return TracedConfig(kind, values, positions_of(kind, values), architecture=architecture)


def embedder_config(values: Mapping[str, Any], embedding: Embedding) -> TracedConfig:
    """The model that ``values`` describe as one whose rows are pooled: the part of it that has no head.

    Raises FerrumError (model-unsupported, config-unsupported).
    """
    kind = values.get("model_type")
    architecture = base_classes().get(kind, "") if isinstance(kind, str) else ""
    if not isinstance(kind, str) or not architecture:
        what = f"{TRACER} has no model of the type {str(kind)[:60]!r}, or is not installed"
        raise FerrumError("model-unsupported", what, "config.json", "pip install 'ferrum-infer[compile]', or use another model")
    longest = positions_of(kind, values)
    limit = min(embedding.max_seq_length or longest, longest)
    return TracedConfig(kind, values, longest, limit, architecture, embedding)


def refuse_encoder(values: Mapping[str, Any]) -> None:
    """Raises FerrumError (config-unsupported) for a model that gives a row for each token, of which nobody says what becomes."""
    named = values.get("architectures")
    name = next((name for name in named if name in encoder_classes()), "") if isinstance(named, list) else ""
    if name:
        what = f"{name} gives a row for each token, and no modules.json says how they become one embedding"
        step = "ferrum compile --pooling mean, or cls or last: the model's card says which"
        raise FerrumError("config-unsupported", what, "config.json", step)


def positions_of(kind: str, values: Mapping[str, Any]) -> int:
    """The longest sequence. Raises FerrumError (config-unsupported), also for weights in a form that cannot be read."""
    if quantized := packing_fault(values):
        step = "use another checkpoint of this model"
        raise FerrumError("config-unsupported", f"unsupported: {quantized}", "config.json", step)
    return length_of(values, kind)


def saved_config(values: Mapping[str, Any]) -> TracedConfig:
    """Of a model whose file holds its computation. Raises FerrumError ``config-unsupported``."""
    kind = values.get("model_type")
    known = kind if isinstance(kind, str) and kind.isidentifier() else "unknown"
    return TracedConfig(known, values, length_of(values, known))


def length_of(values: Mapping[str, Any], kind: str) -> int:
    """The longest sequence that a configuration names. Raises FerrumError ``config-unsupported``."""
    inner = values.get("text_config")
    parts = (values, inner if isinstance(inner, dict) else {})
    longest = next((part[key] for part in parts for key in LENGTHS if key in part), DEFAULT_LENGTH)
    pad = values.get("pad_token_id", DEFAULT_PAD)
    before = pad + 1 if kind in AFTER_PADDING and isinstance(pad, int) else 0
    if not isinstance(longest, int) or not 0 < longest - before <= MAX_POSITIONS:
        said = f"max_position_embeddings = {str(longest)[:40]}"
        what = f"unsupported: {said} is not an integer from {before + 1} to {MAX_POSITIONS}"
        raise FerrumError("config-unsupported", what, "config.json", "use another checkpoint of this model")
    return longest - before


def base_classes() -> Mapping[str, str]:
    """By model type the class of `transformers` without a head; none if it is not installed."""
    try:
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
    except ModuleNotFoundError:
        return {}
    return {kind: names if isinstance(names, str) else names[0] for kind, names in MODEL_MAPPING_NAMES.items()}


def encoder_classes() -> frozenset[str]:
    """The names of the classes of `transformers` whose tokens see each other, with a head for masked tokens and without."""
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
    except ModuleNotFoundError:
        return frozenset()
    heads = {kind: names for kind, names in MODEL_FOR_MASKED_LM_MAPPING_NAMES.items() if isinstance(names, str)}
    bases = base_classes()
    return frozenset([*heads.values(), *(bases[kind] for kind in heads if kind in bases)])


def causal_classes() -> frozenset[str]:
    """The names of the causal language models of `transformers`; none if it is not installed."""
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ModuleNotFoundError:
        return frozenset()
    found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return frozenset(name for names in found for name in ((names,) if isinstance(names, str) else names))


def tracer(config: TracedConfig) -> str:
    """Name and version of what traces, for the pack's provenance."""
    from importlib.metadata import version

    return f"{TRACER} {version(TRACER)}" if config.architecture else "the model's own file"
