"""What a pack is loaded with. Apart from ``base``, because the server names it too and never loads numpy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceOptions:
    """How a pack is loaded. Zeros mean "choose": threads from the machine, KV memory from what is free.

    ``prefault`` maps all weights before the first step asks for them; without it they come as they are read. ``variant``: of
    the pack's code, for a CPU; empty takes what FERRUM_VARIANT names, else the first that the machine has the features of.
    """

    max_seqs: int = 16
    max_tokens: int = 512
    max_samples: int = 0
    max_model_len: int = 0
    kv_cache_bytes: int = 0
    num_threads: int = 0
    prefault: bool = True
    variant: str = ""
