"""What a kernel spec is: frozen parameters, a symbol derived from them, arguments, a cost, a reference and a template."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.layouts.base import MatrixLayout

F32 = NDArray[np.float32]
# How the arguments begin that no launch of a step writes: they may be read before the wait of an early start.
UNWRITTEN = ("count", "input:", "table:", "weight:")


# What marks a parameter of few kernels: those that leave it as it is have the symbols that they would have without it.
OPTIONAL = {"optional": True}


@dataclass(frozen=True)
class Cost:
    """Work of one launch: weight bytes once, and per row the bytes of activations moved and the operations."""

    weight_bytes: int = 0
    row_bytes: int = 0
    row_flops: int = 0


@dataclass(frozen=True)
class Kernel(ABC):
    """One specialised kernel. Subclasses add parameters; ``stem`` is their template's name.

    ``args`` names what the kernel gets, in order:

    ================  ===================================================================
    count             the number of rows (tokens or samples) of this step
    input:NAME        an array of the step's inputs or a word of the header
    output:NAME       an array of the step's outputs
    value:I           the I-th value that the call reads
    weight:I          the I-th stored tensor that the call reads
    result            the rows that the call writes
    scratch:NAME      a scratch slot
    state             the layer's part of the KV cache
    limit:ROWS        int32: rows by the limits
    ================  ===================================================================

    A GPU's function has them as its parameters, pointers but for the limits. A CPU's reads slots and offsets from its launch
    record, and the rest from the context.
    """

    stem: ClassVar[str] = ""
    elements: ClassVar[bool] = False  # whether its text calls functions of ``templates/common/elements.h``

    @property
    def params(self) -> dict[str, int | float | str | bool]:
        """The parameters as plain values, for the manifest and the symbol; of a matrix how it lies and its format."""
        used = (f for f in fields(self) if "optional" not in f.metadata or getattr(self, f.name) != f.default)
        values = {f.name: getattr(self, f.name) for f in used}
        plain = {name: v if isinstance(v, (bool, int, float, str)) else v.name for name, v in values.items()}
        matrix = next((v for v in values.values() if isinstance(v, MatrixLayout)), None)
        return plain if matrix is None else plain | {"format": matrix.format.name}

    @property
    def symbol(self) -> str:
        """A C identifier derived from every parameter: equal kernels share code, different ones never clash."""
        text = ";".join(f"{k}={v!r}" for k, v in sorted(self.params.items()))
        return f"{self.stem}_{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    @property
    @abstractmethod
    def args(self) -> tuple[str, ...]:
        """What the kernel gets, in order."""

    @property
    def in_place(self) -> str:
        """The argument whose rows the result may take the place of: the same thread reads and writes each value."""
        return ""

    @abstractmethod
    def cost(self) -> Cost:
        """The work of one launch."""

    @abstractmethod
    def why(self) -> str:
        """One sentence: why this kernel and these numbers."""

    def context(self) -> dict[str, object]:
        """Names that the template reads, besides the parameters."""
        return {}

    def template_context(self) -> dict[str, object]:
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"symbol": self.symbol} | self.context()


def c_float(value: float) -> str:
    """A C literal (without suffix) that reads back as the same float32."""
    text = f"{float(np.float32(value)):.9g}"
    return text if "." in text or "e" in text else text + ".0"


def factor(scale: float) -> str:
    """What multiplies a C expression by ``scale``; nothing for 1."""
    return "" if scale == 1.0 else f" * {c_float(scale)}f"


AnyKernel = TypeVar("AnyKernel", bound=Kernel)


def distinct(kernels: Iterable[AnyKernel]) -> list[AnyKernel]:
    """Kernels in order of first appearance, one of each symbol."""
    return list({kernel.symbol: kernel for kernel in kernels}.values())
