"""From a model folder to its configuration, its module and the checkpoint's names, by the family's record."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum.errors import FerrumError
from ferrum.families import FAMILIES, NAMES, Family, family_of
from ferrum.graphs.expressions.expression import Expr, Tensor, rows
from ferrum.graphs.model_files import open_files
from ferrum.graphs.models.config import ModelConfig, from_hf
from ferrum.graphs.models.embedding import embedding_of
from ferrum.graphs.models.traced_config import TracedConfig, embedder_config, refuse_encoder, saved_config, traced_config
from ferrum.graphs.weights.checkpoint import Checkpoint
from ferrum.graphs.weights.heads import differ
from ferrum.graphs.weights.saved import saved_graph

if TYPE_CHECKING:
    from ferrum.graphs.models.blocks import Decoder

MAX_CONFIG_BYTES = 1 << 20
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def load_config(folder: Path) -> ModelConfig:
    """The configuration in ``folder``/config.json by a record; FerrumError if it is missing, not JSON, or unsupported."""
    return from_hf(config_values(folder))


def find_config(folder: Path, pooling: str = "") -> ModelConfig | TracedConfig:
    """As ``load_config``; a model that no record describes is one to trace, if `transformers` has its code, and so is one that
    embeds: because its folder says how its rows are pooled, or because a ``pooling`` is given. Of a model whose file holds its
    computation, whatever it is, only sizes are read."""
    values = config_values(folder)
    if saved_graph(folder) is not None and pooling:
        step = "leave it out, or give the model's folder of safetensors"
        raise FerrumError("bad-option", "a file that holds its computation does not embed", "--pooling", step)
    if saved_graph(folder) is not None:
        return saved_config(values)
    if (embedding := embedding_of(open_files(folder), pooling)) is not None:
        return embedder_config(values, embedding)
    try:
        return from_hf(values)
    except FerrumError as error:
        found = traced_config(values) if error.code == "model-unsupported" else None
        if found is None:
            refuse_encoder(values)
            raise
        return found


def config_values(path: Path) -> dict[str, Any]:
    """What the model's config.json holds; FerrumError if it is missing or no JSON object."""
    where, step = str(path / "config.json"), "check that the model folder is complete"
    data = open_files(path).read("config.json", MAX_CONFIG_BYTES)
    if data is None:
        raise FerrumError("config-unreadable", "there is no such file", where, step)
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FerrumError("config-unreadable", "is not JSON", where, step) from error
    if not isinstance(values, dict):
        raise FerrumError("config-unreadable", "is not a JSON object", where, step)
    return values


def build(config: ModelConfig, device: str = "meta") -> Decoder:
    """The module in evaluation mode, without weights; on the meta device it takes no memory, for tracing."""
    import torch

    from ferrum.graphs.models.blocks import Decoder

    with torch.device(device):
        module = Decoder(config)
    return module.eval()


def checkpoint_names(config: ModelConfig, families: tuple[Family, ...] = FAMILIES) -> Callable[[str], str]:
    """The family's map from our parameter names to the checkpoint's; KeyError for a parameter that has none of its own there."""
    family = family_of(config.family, families)
    assert family is not None
    return lambda parameter: tensor_name(family, parameter)


def tied_head(config: ModelConfig, checkpoint: Checkpoint | None) -> tuple[ModelConfig, dict[str, str]]:
    """A configuration whose head is the embedding, as the checkpoint has it: with a head of its own where it holds one that
    differs; and of the embedding, which may be stored as the head alone, the head's name."""
    names = checkpoint_names(config)
    embedding, head = names("embedding.weight"), names("lm_head.weight")
    if checkpoint is not None and any(differ(checkpoint, name, head) for name in (embedding, embedding.partition(".")[2])):
        return replace(config, tie_word_embeddings=False), {}
    return config, {embedding: head}


def checkpoint_sources(module: Decoder, families: tuple[Family, ...] = FAMILIES) -> Callable[[str], str | Expr]:
    """Where each parameter of ``module`` lies in the checkpoint: the name of its tensor, or a cut of one that holds several."""
    family = family_of(module.config.family, families)
    assert family is not None
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    cuts: dict[str, Expr] = {}
    for tensor, parts in family.joined.items():
        for layer in map(str, range(module.config.num_layers)) if "{}" in tensor else [""]:
            for kind in ("weight", "bias"):
                names = [_filled(part, layer, kind) for part in parts]
                if set(names) <= set(shapes):
                    cuts |= _cuts(_filled(tensor, layer, kind), {name: shapes[name] for name in names})
    return lambda parameter: cuts[parameter] if parameter in cuts else tensor_name(family, parameter)


def _filled(pattern: str, layer: str, kind: str) -> str:
    return pattern.replace("{}", layer).replace("*", kind)


def _cuts(tensor: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Expr]:
    """Parameters that lie one after the other along the first axis of ``tensor``."""
    inner = next(iter(shapes.values()))[1:]
    whole = Tensor(tensor, (sum(shape[0] for shape in shapes.values()), *inner))
    found, at = {}, 0
    for name, shape in shapes.items():
        found[name] = rows(whole, 0, at, at + shape[0])
        at += shape[0]
    return found


def tensor_name(family: Family, parameter: str) -> str:
    """The name in the checkpoint of ``layers.3.attention.query.weight``. KeyError: the record says none."""
    layer = next(iter(_LAYER.findall(parameter)), "")
    stem, _, kind = _LAYER.sub("{}", parameter, count=1).rpartition(".")
    return _filled({**NAMES, **family.tensors}[f"{stem}.*"], layer, kind)
