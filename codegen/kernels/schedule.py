"""Where each token of a step goes and which rows an attention block takes, found on the device once per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.kernels.base import Cost
from ferrum.codegen.kernels.cases import Case, Written, counts, exact
from ferrum.codegen.kernels.gpu import ONE, Geometry, GpuKernel, Scratch
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE
from ferrum.pack.launches import Rows, Term

I32 = NDArray[np.int32]
_THREADS = 128


def tile_tokens(group: int, warps: int) -> int:
    """Query tokens of one tile: with all heads of a group they fill 16 rows a warp."""
    return max(1, 16 * warps // group)


def slots_name(pool: int) -> str:
    """The slot with the places of a step's tokens in the blocks of group ``pool``."""
    return f"token_slot{pool or ''}"


@dataclass(frozen=True)
class Schedule(GpuKernel):
    """Fills ``token_seq [T]``, ``token_slot [T]`` (of group ``pool``) and ``tiles [ceil(T / tile_tokens) + seqs][4]``.

    A tile is (sequence, first token, tokens, 0): up to ``tile_tokens`` new tokens of a sequence that has several of them.
    Sequence s starts its tiles at floor(query_start[s] / tile_tokens) + s, which leaves room for all that came before and needs
    no sum over the sequences; places that stay free have no tokens.
    """

    stem: ClassVar[str] = "schedule"
    tile_tokens: int
    pool: int = 0

    @property
    def args(self) -> tuple[str, ...]:
        counts = ("input:num_tokens", "input:num_seqs")
        arrays = ("input:positions", "input:query_start", f"table:{self.pool}", "limit:blocks_per_seq")
        limits = ("limit:tokens", "limit:seqs")
        return (*counts, *arrays, *limits, "scratch:token_seq", f"scratch:{slots_name(self.pool)}", f"scratch:{self.tiles_name}")

    @property
    def tiles_name(self) -> str:
        """Their slot: layers with other groups of heads have tiles of another size."""
        return f"tiles{self.tile_tokens}"

    @property
    def tolerance(self) -> float:
        return 0.0

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
        return {"token_seq": Scratch(per_token), slots_name(self.pool): Scratch(per_token), self.tiles_name: Scratch(tiles)}

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

    def case(self, random: np.random.Generator, lengths: tuple[int, ...] = (1, 70, 1, 1, 33, 2), **_: Any) -> Case:
        """Query lengths of the sequences of a step, below the limits of the recording."""
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        tokens, seqs = int(starts[-1]), len(lengths)
        context = [int(random.integers(0, 50)) for _ in lengths]
        positions = np.concatenate([np.arange(c, c + n) for c, n in zip(context, lengths, strict=True)]).astype(np.int32)
        per_seq = -(-int(positions.max() + 1) // BLOCK_SIZE)
        tables = random.permutation(seqs * per_seq).reshape(seqs, per_seq).astype(np.int32)
        arrays = {"input:num_tokens": np.array([tokens], np.int32), "input:num_seqs": np.array([seqs], np.int32)}
        arrays |= {"input:positions": positions, "input:query_start": starts, f"table:{self.pool}": tables}

        def judge(scratch: Written) -> float:
            names = ("token_seq", slots_name(self.pool), self.tiles_name)
            seq, slot, tiles = (scratch[f"scratch:{name}"].view(np.int32) for name in names)
            expected = self.reference(positions, starts, tables, self.tile_tokens, len(tiles) // 4)
            same = np.array_equal(seq[:tokens], expected[0]) and np.array_equal(slot[:tokens], expected[1])
            return exact(same and np.array_equal(tiles.reshape(-1, 4), expected[2]))

        return Case(arrays, counts(tokens + 13, seqs + 3, blocks_per_seq=per_seq), judge)
