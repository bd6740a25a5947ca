"""Where each token of a step goes and which rows an attention block takes, found on the device once per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.base import Cost
from ferrum.codegen.kernels.gpu_base import ONE, Geometry, GpuKernel, Scratch
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE
from ferrum.pack.launches import Rows, Term

I32 = NDArray[np.int32]
_THREADS = 128


@dataclass(frozen=True)
class GpuSchedule(GpuKernel):
    """Fills ``token_seq [T]``, ``token_slot [T]`` and ``tiles [ceil(T / tile_tokens) + seqs][4]``.

    A tile is (sequence, first token, tokens, 0): up to ``tile_tokens`` new tokens of a sequence that has several of them.
    Sequence s starts its tiles at floor(query_start[s] / tile_tokens) + s, which leaves room for all that came before and needs
    no sum over the sequences; places that stay free have no tokens.
    """

    stem: ClassVar[str] = "gpu_schedule"
    tile_tokens: int

    @property
    def args(self) -> tuple[str, ...]:
        counts = ("input:num_tokens", "input:num_seqs")
        arrays = ("input:positions", "input:query_start", "input:block_table", "limit:blocks_per_seq")
        limits = ("limit:tokens", "limit:seqs")
        return (*counts, *arrays, *limits, "scratch:token_seq", "scratch:token_slot", "scratch:tiles")

    @property
    def tiles(self) -> tuple[Term, ...]:
        """How many tiles there may be."""
        return Term("tokens", 1, self.tile_tokens), Term("seqs", 1)

    def geometry(self, rows: Rows) -> Geometry:
        """A thread for each token and tile; there are never more tiles than tokens and sequences together."""
        return Geometry(((Term("tokens", 1, _THREADS), Term("seqs", 1, _THREADS)), ONE, ONE), (_THREADS, 1, 1))

    def scratch(self) -> dict[str, Scratch]:
        per_token = (Term("tokens", 4),)
        tiles = tuple(Term(t.rows, 16, t.per) for t in self.tiles)
        return {"token_seq": Scratch(per_token), "token_slot": Scratch(per_token), "tiles": Scratch(tiles)}

    def cost(self) -> Cost:
        return Cost(0, 16, 8)

    def why(self) -> str:
        return f"the device finds its own work list, {self.tile_tokens} tokens a tile: nothing is decided by the host in a step"

    def context(self) -> dict[str, object]:
        return {"threads": _THREADS, "block_size": BLOCK_SIZE}

    @staticmethod
    def reference(positions: I32, query_start: I32, block_table: I32, tile_tokens: int, num_tiles: int) -> tuple[I32, I32, I32]:
        """token_seq, token_slot and the tiles."""
        lengths = np.diff(query_start)
        seq = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
        slot = block_table[seq, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        tiles = np.zeros((num_tiles, 4), np.int32)
        for s, length in enumerate(lengths):
            for i in range(-(-length // tile_tokens) if length > 1 else 0):
                first = i * tile_tokens
                tiles[query_start[s] // tile_tokens + s + i, :3] = s, query_start[s] + first, min(tile_tokens, length - first)
        return seq, slot.astype(np.int32), tiles
