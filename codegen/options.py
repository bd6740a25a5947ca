"""What the user asked the compiler for; one frozen record that every stage reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ferrum.errors import FerrumError

KV_DTYPES = ("bf16", "int8", "f32")
ACTIVATIONS = ("auto", "f32")
POOLINGS = ("mean", "cls", "last", "max", "mean_sqrt_len", "weighted_mean")
QUANTS = ("keep", "none", "f32", "fp8", "int8", "int4-g128", "int4-g32", "int4a-g128", "int4a-g32")


@dataclass(frozen=True)
class CompileOptions:
    """``model`` is a local folder (names and aliases are resolved before). ``max_model_len`` 0 takes the model's own.

    ``quant``: ``keep`` stores what a checkpoint has quantized as it is, where the target has a format for it, and all else, as
    ``none`` does everything, in bfloat16; ``fp8`` exists on GPUs only. ``kv_dtype`` is the cache's format; empty takes bf16, or
    f32 with f32 weights. ``activations``: what products on CPUs read; ``auto`` rounds them to what the instructions for the
    weights take (8 bits beside integers), ``f32`` does not and is slower.
    ``start_from`` names a stage whose dumped input is read from ``dump_dir``; ``stop_after`` names the last stage to run.
    ``calibrate``: the text that a model reads before its weights are quantized (``codegen/calibrate.py``): ``auto`` is
    ``shipped`` where weights are quantized anew and ``none`` elsewhere; anything else is a file.
    ``jobs`` 0 uses every core. ``tune`` measures blockings of the products on this machine first. Without ``fuse`` stages that
    only make things faster are left out. ``pooling``: how one row is made of those of a sequence, where a model is to embed and
    its folder does not say that.
    """

    model: str
    target: str = "cpu"
    quant: str = "keep"
    max_model_len: int = 0
    kv_dtype: str = ""
    activations: str = "auto"
    calibrate: str = "auto"
    output: Path | None = None
    dump_dir: Path | None = None
    stop_after: str = ""
    start_from: str = ""
    jobs: int = 0
    prove: bool = True
    tune: bool = False
    fuse: bool = True
    pooling: str = ""
    revision: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if self.quant not in QUANTS:
            raise FerrumError(
                "bad-option", f"no quantization is called {self.quant!r}", "--quant", "use one of " + ", ".join(QUANTS)
            )
        if self.kv_dtype and self.kv_dtype not in KV_DTYPES:
            what = f"no format of the KV cache is called {self.kv_dtype!r}"
            raise FerrumError("bad-option", what, "--kv-dtype", "use one of " + ", ".join(KV_DTYPES))
        if self.activations not in ACTIVATIONS:
            what = f"no format of activations is called {self.activations!r}"
            raise FerrumError("bad-option", what, "--activations", "use one of " + ", ".join(ACTIVATIONS))
        if self.calibrate not in ("auto", "none") and not self.rounds:
            what = f"no weights are quantized by --quant {self.quant}, so there is nothing to calibrate"
            raise FerrumError("bad-option", what, "--calibrate", "leave it out, or use --quant int4-g32")
        if self.pooling and self.pooling not in POOLINGS:
            what = f"no pooling is called {self.pooling!r}"
            raise FerrumError("bad-option", what, "--pooling", "use one of " + ", ".join(POOLINGS))
        if self.max_model_len < 0:
            raise FerrumError("bad-option", "a context length cannot be negative", "--max-model-len", "give 1 or more tokens")

    @property
    def rounds(self) -> bool:
        """Whether weights are quantized anew in groups that share a scale."""
        return self.quant.startswith("int")

    @property
    def calibration(self) -> str:
        """``shipped``, a file, or ``none``."""
        if self.calibrate != "auto":
            return self.calibrate
        return "shipped" if self.rounds else "none"

    @property
    def kv(self) -> str:
        """The cache's format."""
        return self.kv_dtype or ("f32" if self.quant == "f32" else "bf16")
