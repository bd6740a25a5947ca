"""From a model folder to its configuration, its module and the checkpoint's names, by the family's record."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ferrum.errors import FerrumError
from ferrum.families import FAMILIES, NAMES, Family, family_of
from ferrum.graphs.models.config import ModelConfig, from_hf

if TYPE_CHECKING:
    from ferrum.graphs.models.blocks import Decoder

MAX_CONFIG_BYTES = 1 << 20
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


def load_config(folder: Path) -> ModelConfig:
    """The configuration in ``folder``/config.json; FerrumError if it is missing, not JSON, or unsupported."""
    path = folder / "config.json"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise FerrumError("config-unreadable", f"larger than {MAX_CONFIG_BYTES} bytes", str(path), "check the download")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        what = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else "is not JSON"
        if isinstance(error, FileNotFoundError):
            what = "there is no such file"
        raise FerrumError("config-unreadable", what, str(path), "check that the model folder is complete") from error
    if not isinstance(values, dict):
        raise FerrumError("config-unreadable", "is not a JSON object", str(path), "check that the model folder is complete")
    return from_hf(values)


def build(config: ModelConfig, device: str = "meta") -> Decoder:
    """The module in evaluation mode, without weights; on the meta device it takes no memory, for tracing."""
    import torch

    from ferrum.graphs.models.blocks import Decoder

    with torch.device(device):
        module = Decoder(config)
    return module.eval()


def checkpoint_names(config: ModelConfig, families: tuple[Family, ...] = FAMILIES) -> Callable[[str], str]:
    """The family's map from our parameter names to the checkpoint's; KeyError for a parameter that has none there."""
    family = family_of(config.family, families)
    assert family is not None
    return lambda parameter: tensor_name(family, parameter)


def tensor_name(family: Family, parameter: str) -> str:
    """The name in the checkpoint of ``layers.3.attention.query.weight``. KeyError: the record says none."""
    layer = next(iter(_LAYER.findall(parameter)), "")
    stem, _, part = _LAYER.sub("{}", parameter, count=1).rpartition(".")
    table = {**NAMES, **family.tensors}
    return table[f"{stem}.*"].replace("*", part).replace("{}", layer)
