"""Architecture names of config.json → our modules, imported when asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ferrum.errors import FerrumError
from ferrum.graphs.models.config import ModelConfig, from_hf

if TYPE_CHECKING:
    from ferrum.graphs.models.blocks import Decoder

MAX_CONFIG_BYTES = 1 << 20

# architecture → (module, class)
ARCHITECTURES: dict[str, tuple[str, str]] = {
    "LlamaForCausalLM": ("ferrum.graphs.models.llama", "LlamaForCausalLM"),
    "MistralForCausalLM": ("ferrum.graphs.models.mistral", "MistralForCausalLM"),
    "Qwen2ForCausalLM": ("ferrum.graphs.models.qwen2", "Qwen2ForCausalLM"),
    "Qwen3ForCausalLM": ("ferrum.graphs.models.qwen3", "Qwen3ForCausalLM"),
}
_BY_FAMILY = {path.rpartition(".")[2]: (path, name) for path, name in ARCHITECTURES.values()}


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

    path, name = _BY_FAMILY[config.family]
    with torch.device(device):
        module: Decoder = getattr(import_module(path), name)(config)
    return module.eval()


def checkpoint_names(config: ModelConfig) -> Callable[[str], str]:
    """The family's map from our parameter names to the checkpoint's."""
    path, _ = _BY_FAMILY[config.family]
    function: Callable[[str], str] = import_module(path).checkpoint_name
    return function
