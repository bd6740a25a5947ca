"""How the kernels of a GPU pack were tried without a GPU: member ``code/proof.json``."""

from __future__ import annotations

import msgspec

PROOF_NAME = "code/proof.json"


class KernelProof(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One kernel of the pack. ``tried``: the symbol that ran, another one where sizes were reduced.

    ``errors``: the largest difference to the reference, relative to the largest value, under each schedule of the emulator.
    """

    symbol: str
    spec: str
    tried: str
    errors: dict[str, float]
    tolerance: float


class Proof(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """``whole_model``: whether a pack of these weights ran in emulation against the interpreter, from start to answer."""

    kernels: list[KernelProof]
    whole_model: bool


def decode_proof(data: bytes | memoryview) -> Proof:
    """Raises msgspec.ValidationError for anything else."""
    return msgspec.json.decode(data, type=Proof)
