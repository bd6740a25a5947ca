"""ferrum: a model becomes one file that runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferrum.version import __version__

if TYPE_CHECKING:
    from ferrum.engine.params import SamplingParams
    from ferrum.llm import LLM
    from ferrum.structured.wish import Structured

__all__ = ["LLM", "SamplingParams", "Structured", "__version__", "compile"]

# Imported when asked for: `import ferrum` stays instant and never pulls in the compiler.
_LAZY = {
    "LLM": ("ferrum.llm", "LLM"),
    "SamplingParams": ("ferrum.engine.params", "SamplingParams"),
    "Structured": ("ferrum.structured.wish", "Structured"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)


def compile(
    model: str | Path,
    *,
    target: str = "cpu",
    quant: str = "keep",
    kv_dtype: str = "",
    activations: str = "auto",
    output: str | Path | None = None,
    max_model_len: int = 0,
    prove: bool = True,
) -> Path:
    """Compile a model folder, an alias or ``org/name`` on the hub into a pack; returns its path.

    ``target``, ``quant``, ``kv_dtype``, ``activations`` and ``max_model_len`` as in ``ferrum compile``. Raises FerrumError.
    """
    from ferrum.codegen.driver import compile_model
    from ferrum.codegen.options import CompileOptions
    from ferrum.hub import parse_name
    from ferrum.store import local_source

    name = parse_name(str(model))
    source = local_source(name)
    return compile_model(
        CompileOptions(
            model=str(source),
            target=target,
            quant=quant,
            kv_dtype=kv_dtype,
            activations=activations,
            max_model_len=max_model_len,
            output=Path(output) if output else None,
            prove=prove,
            revision=source.name if name.kind == "hub" else "",
            name=name.short,
        )
    )
