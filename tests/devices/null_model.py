"""The null device's model as a launch table, for devices that run launches: two kernels, written in Python.

``null_write`` puts every token into its slot of the KV memory, ``null_sample`` reads the history of every sampled row back
through the block table and samples from ``null_logits`` of it. A device that copies too little, too late, to the wrong place,
or that takes a recording that is too small, gives other tokens than the null device.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from ferrum.devices.base import Limits, StepBuffers
from ferrum.devices.launching import StepLayout
from ferrum.devices.null import null_logits
from ferrum.pack.launches import (
    LAUNCHES_NAME,
    LAUNCHES_VERSION,
    InputArg,
    Launch,
    LaunchTable,
    LimitArg,
    OutputArg,
    Slot,
    SlotArg,
    StateArg,
    Term,
    ThreadBlocks,
    WeightsArg,
    encode_table,
)
from ferrum.pack.sampling import sample_reference
from ferrum.pack.schema import TargetRecord
from tests.pack.helpers import (
    MAX_MODEL_LEN,
    MEMBERS,
    VOCAB_SIZE,
    code_record,
    minimal_manifest,
    paged_state,
    step_record,
    write_minimal_pack,
)

BLOCK_SIZE = 4
BYTES_PER_BLOCK = 4 * BLOCK_SIZE
ONE = [Term("one", 1)]
ARGS = [InputArg("num_tokens"), OutputArg("out_token"), StateArg(0), SlotArg(1), WeightsArg(512), LimitArg("blocks_per_seq")]
NUM_ARGS = len(ARGS)
NUMBER_ARGS = (5,)


def launch_table(contract: str, code: str) -> LaunchTable:
    def launch(symbol: str, rows: str, shared: int, phase: str = "any") -> Launch:
        grid = [[Term(rows, 1)], ONE, ONE]  # type: ignore[arg-type]
        on = ThreadBlocks(block=[32, 1, 1], shared=shared)
        return Launch(symbol=symbol, work=grid, args=list(ARGS), on=on, phase=phase)  # type: ignore[arg-type]

    return LaunchTable(
        version=LAUNCHES_VERSION,
        contract=contract,
        code=code,
        slots=[Slot(bytes=[Term("tokens", 12)], zero=True), Slot(bytes=[Term("samples", 4 * VOCAB_SIZE)])],
        launches=[
            launch("null_write", "tokens", 0, "mixed"),
            launch("null_write_one", "seqs", 0, "decode"),
            launch("null_sample", "samples", 60 << 10),
        ],
        logits_slot=1,
    )


def write_launch_pack(path: Path, device: str, arch: str, member: str = "code/step.cubin", **table: object) -> Path:
    """A pack of the null model for ``device``; ``table`` replaces fields of its launch table."""
    manifest = minimal_manifest(
        programs=[step_record(selftest="")],
        code=[code_record(LAUNCHES_NAME, member, launches=LAUNCHES_NAME)],
        required=["weights", "programs", "code"],
        target=TargetRecord(name=f"{device}-{arch}", device=device, arch=arch, features=[]),
        states=[paged_state(width=1, unit=BLOCK_SIZE, unit_bytes=BYTES_PER_BLOCK, dtype="i32")],
    )
    full = msgspec.structs.replace(launch_table(manifest.contract, member), **table)
    members = {name: data for name, data in MEMBERS.items() if not name.startswith(("code/", "tokenizer", "chat"))}
    return write_minimal_pack(
        path, manifest=manifest, members={member: bytes(64), LAUNCHES_NAME: encode_table(full), **members}
    )


def array_at(address: int, nbytes: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


class NullKernels:
    """The kernels; ``limits`` are set once the model is loaded. ``launched`` lists (symbol, grid) of all launches."""

    def __init__(self, weights: bytes = MEMBERS["weights"]) -> None:
        self.limits: Limits | None = None
        self.weights = weights
        self.launched: list[tuple[str, tuple[int, int, int]]] = []

    def table(self) -> dict[str, object]:
        return {name: getattr(self, f"_{name}") for name in ("null_write", "null_write_one", "null_sample")}

    def _null_write_one(self, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int, args: list[int]) -> None:
        b = self._buffers(args)
        assert b.num_tokens == b.num_seqs
        self._write("null_write_one", grid, args)

    def _null_write(self, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int, args: list[int]) -> None:
        b = self._buffers(args)
        assert b.num_tokens > b.num_seqs
        self._write("null_write", grid, args)

    def _write(self, symbol: str, grid: tuple[int, int, int], args: list[int]) -> None:
        self.launched.append((symbol, grid))
        b = self._buffers(args)
        assert 0 < b.num_tokens <= grid[0] < max(2 * b.num_tokens, 2), "the recording does not fit the step"
        assert bytes(array_at(args[4], 32)) == self.weights[512:544], "the weights are not there"
        assert args[5] == b.limits.max_blocks_per_seq
        kv = self._kv(args, b.limits)
        for s in range(b.num_seqs):
            at = slice(b.query_start[s], b.query_start[s + 1])
            blocks, slots = np.divmod(b.positions[at], BLOCK_SIZE)
            kv[b.block_table[s, 0, blocks], slots] = b.tokens[at]

    def _null_sample(self, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int, args: list[int]) -> None:
        self.launched.append(("null_sample", grid))
        b = self._buffers(args)
        assert b.num_samples <= grid[0]
        logits = array_at(args[3], 4 * VOCAB_SIZE * b.limits.max_samples).view(np.float32).reshape(-1, VOCAB_SIZE)
        starts = b.query_start[: b.num_seqs + 1]
        kv = self._kv(args, b.limits)
        for row in range(b.num_samples):
            at = int(b.sample_rows[row])
            s = int(np.searchsorted(starts, at, side="right")) - 1
            blocks, slots = np.divmod(np.arange(int(b.positions[at]) + 1), BLOCK_SIZE)
            logits[row] = null_logits(kv[b.block_table[s, 0, blocks], slots], VOCAB_SIZE)
        sample_reference(logits, b)

    def _kv(self, args: list[int], limits: Limits) -> np.ndarray:
        return array_at(args[2], limits.num_blocks * BYTES_PER_BLOCK).view(np.int32).reshape(-1, BLOCK_SIZE)

    def _buffers(self, args: list[int]) -> StepBuffers:
        """The step as the kernels see it: views of the device's memory."""
        assert self.limits is not None
        layout = StepLayout.of(self.limits)
        inputs, outputs = array_at(args[0], layout.inputs.nbytes), array_at(args[1], layout.outputs.nbytes)
        buffers = StepBuffers(self.limits)
        for buffer, memory in ((layout.inputs, inputs), (layout.outputs, outputs)):
            for name, field in buffer.fields.items():
                setattr(buffers, name, field.view(memory))
        header = inputs[:16].view(np.int32)
        buffers.num_tokens, buffers.num_seqs, buffers.num_samples = (int(n) for n in header[:3])
        return buffers


def histories() -> Iterator[list[int]]:
    """Prompts of many lengths."""
    random = np.random.default_rng(4)
    for length in (1, 2, 3, 4, 5, 8, 9, 17, 31, MAX_MODEL_LEN - 8):
        yield random.integers(0, VOCAB_SIZE, length).tolist()
