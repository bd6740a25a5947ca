"""What an engine is started with."""

from __future__ import annotations

from dataclasses import dataclass

from ferrum.errors import FerrumError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Limits of the scheduler; 0 means "as much as the device was loaded for".

    ``max_num_seqs``: sequences that run at once. ``max_num_batched_tokens``: tokens in a step. ``max_prefill_chunk``:
    prompt tokens of one sequence in a step. ``max_model_len``: prompt and output of one sequence. ``max_queue``: sequences
    that may wait, beyond ``max_num_seqs`` that run, before requests are refused.
    """

    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    max_prefill_chunk: int = 0
    max_model_len: int = 0
    max_queue: int = 1024
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_prefill_chunk", "max_model_len", "max_queue"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise FerrumError("invalid-option", f"{name} must be a whole number, 0 or more", name)
        if self.max_queue < 1:
            raise FerrumError("invalid-option", "max_queue must be at least 1", "max_queue")
