"""What a request brings beside its tokens: checked against what the device declares, and digested."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferrum.devices.base import RequestArray, StateGroup
from ferrum.errors import FerrumError

Inputs: TypeAlias = Mapping[str, NDArray[np.float32]]
NO_INPUTS: Inputs = MappingProxyType({})


def checked_inputs(groups: tuple[StateGroup, ...], inputs: Mapping[str, ArrayLike]) -> Inputs:
    """What a request brings, as the groups declare it: all of it or nothing. Raises FerrumError "invalid-parameter"."""
    declared = {array.name: array for group in groups for array in group.inputs}
    if inputs and inputs.keys() != declared.keys():
        what = f"a request brings {_names(declared)}, not {_names(inputs)}"
        raise FerrumError("invalid-parameter", what, "inputs")
    return {name: _checked_rows(declared[name], rows) for name, rows in inputs.items()}


def digest(inputs: Inputs) -> bytes:
    """SHA-256 over names, shapes and numbers; empty for no inputs."""
    found = sha256()
    for name, rows in sorted(inputs.items()):
        found.update(f"{len(name)} {name} {rows.shape} ".encode() + np.ascontiguousarray(rows, "<f4").tobytes())
    return found.digest() if inputs else b""


def _checked_rows(array: RequestArray, rows: ArrayLike) -> NDArray[np.float32]:
    try:
        found = np.array(rows, np.float32)
    except (TypeError, ValueError):
        raise FerrumError("invalid-parameter", f"{array.name} must be numbers", "inputs") from None
    if found.ndim != 2 or found.shape[1] != array.width or not 1 <= len(found) <= array.max_rows:
        what = f"{array.name} takes 1 to {array.max_rows} rows of {array.width} numbers, not an array {list(found.shape)}"
        raise FerrumError("invalid-parameter", what, "inputs")
    return found


def _names(arrays: Mapping[str, object]) -> str:
    return ", ".join(sorted(arrays)) or "no inputs"
