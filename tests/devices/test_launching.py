"""Layouts, buckets and arguments of launch-table devices, and what a bad table says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ferrum.devices.base import Limits, StateGroup, StepBuffers
from ferrum.devices.launching import (
    ArenaLayout,
    Pointer,
    Recordings,
    Resolver,
    StepLayout,
    StepMemory,
    bucket_sizes,
    choose_limits,
    device_bytes,
)
from ferrum.devices.options import DeviceOptions
from ferrum.devices.pools import Pool, Pools, blocks_within, with_blocks
from ferrum.errors import FerrumError
from ferrum.pack.launch_check import read_table
from ferrum.pack.launches import (
    ALIGNMENT,
    UPLOADED,
    ExternalArg,
    InputArg,
    IntArg,
    Launch,
    LaunchTable,
    LimitArg,
    Slot,
    SlotArg,
    StateArg,
    TableArg,
    Term,
    ThreadBlocks,
    Threads,
)
from ferrum.pack.programs import KvGroup, kv_groups
from ferrum.pack.reader import open_pack
from ferrum.pack.step import OUTPUTS
from tests.devices.null_model import launch_table, write_launch_pack
from tests.pack.helpers import minimal_manifest

LIMITS = Limits(
    max_tokens=48, max_seqs=5, max_samples=7, num_blocks=9, block_size=16, max_blocks_per_seq=3, vocab_size=70, max_adjust=100
)
TABLE = launch_table("", "code/step.cubin")
GROUPS = kv_groups(minimal_manifest())


def memory() -> StepMemory:
    layout = StepLayout.of(LIMITS)
    return StepMemory(layout, np.ones(layout.inputs.nbytes, np.uint8), np.ones(layout.outputs.nbytes, np.uint8))


def test_buffers_are_views_that_do_not_overlap() -> None:
    found = memory()
    plain = StepBuffers(LIMITS)
    for arrays, whole in ((UPLOADED, found.inputs), (OUTPUTS, found.outputs)):
        whole[:] = 0
        for i, array in enumerate(arrays):
            view, wanted = getattr(found.buffers, array.name), getattr(plain, array.name)
            assert view.shape == wanted.shape and view.dtype == wanted.dtype and view.flags.c_contiguous, array.name
            assert (view.ctypes.data - whole.ctypes.data) % ALIGNMENT == 0
            assert not view.any(), "two arrays share memory"
            view[...] = i + 1


def test_the_header_says_how_much_there_is() -> None:
    found = memory()
    found.buffers.num_tokens, found.buffers.num_seqs, found.buffers.num_samples = 11, 3, 2
    found.write_header()
    assert found.inputs[:20].view(np.int32).tolist() == [11, 3, 2, 3, 0]


def test_common_bytes_end_with_the_last_block_table_in_use() -> None:
    layout = StepLayout.of(LIMITS)
    table = layout.inputs.fields["block_table"]
    assert layout.common_bytes(2) == table.offset + 2 * 3 * 4
    rare = ("penalty_token", "penalty_count", "bias_token", "bias_value", "mask")
    for name, place in layout.inputs.fields.items():
        assert (place.offset >= layout.common_bytes(LIMITS.max_seqs)) == (name in rare), name


def test_rare_ranges_are_what_the_step_uses() -> None:
    found = memory()
    b, fields = found.buffers, found.layout.inputs.fields
    b.num_samples = 2
    assert found.rare_ranges() == []
    b.penalty_start[:3], b.bias_start[:3], b.use_mask[:3] = (0, 0, 3), (0, 2, 2), (0, 1, 0)
    assert found.rare_ranges() == [
        (fields["penalty_token"].offset, 12),
        (fields["penalty_count"].offset, 12),
        (fields["bias_token"].offset, 8),
        (fields["bias_value"].offset, 8),
        (fields["mask"].offset, 2 * 3 * 4),
    ]
    b.num_samples = 1
    assert [nbytes for _, nbytes in found.rare_ranges()] == [8, 8]


def test_the_arena_is_the_sum_of_aligned_slots() -> None:
    slots = [
        Slot(bytes=[Term("tokens", 10)]),
        Slot(bytes=[Term("samples", 4), Term("one", 3)], zero=True),
        Slot(bytes=[Term("seqs", 8, 2)]),
    ]
    arena = ArenaLayout.of(slots, LIMITS)
    assert arena.offsets == (0, 512, 768) and arena.zero == ((512, 31),) and arena.nbytes == 1024


@pytest.mark.parametrize("most", [1, 2, 3, 16, 17, 512])
def test_every_step_has_a_recording_that_holds_it(most: int) -> None:
    assert bucket_sizes(most)[-1] == most and list(bucket_sizes(most)) == sorted(set(bucket_sizes(most)))
    recordings = Recordings(Resolver(TABLE, replace(LIMITS, max_tokens=most), GROUPS))
    for tokens in range(1, most + 1):
        for seqs in range(1, min(tokens, LIMITS.max_seqs) + 1):
            found = recordings.all[recordings.find(tokens, seqs)]
            assert found.phase == ("decode" if tokens == seqs else "mixed")
            assert tokens <= found.tokens < max(2 * tokens, 2) and seqs <= found.rows.seqs


def test_grids_cover_the_bucket_and_arguments_are_places() -> None:
    launch = Launch(
        symbol="k",
        work=[[Term("tokens", 3, 8)], [Term("seqs", 1), Term("one", 2)], [Term("samples", 0)]],
        on=ThreadBlocks(block=[32, 2, 1], shared=7),
        args=[StateArg(64), SlotArg(1), InputArg("positions"), InputArg("num_seqs"), IntArg(-3)],
    )
    slots = [Slot(bytes=[Term("one", 1)]), Slot(bytes=[Term("one", 1)])]
    resolver = Resolver(msgspec.structs.replace(TABLE, slots=slots, launches=[launch]), LIMITS, GROUPS)
    step = resolver.recording("mixed", 32).launches[0]
    assert step.grid == (12, 7, 1) and step.block == (32, 2, 1) and step.shared == 7
    positions = resolver.layout.inputs.fields["positions"].offset
    assert step.args == (Pointer("kv", 64), Pointer("arena", 256), Pointer("inputs", positions), Pointer("inputs", 4), -3)


def test_classes_and_phases_choose_launches() -> None:
    def launch(symbol: str, **changes: object) -> Launch:
        return msgspec.structs.replace(TABLE.launches[0], symbol=symbol, phase="any", **changes)

    table = msgspec.structs.replace(
        TABLE,
        launches=[
            launch("small", class_rows="tokens", max_rows=8),
            launch("large", class_rows="tokens", min_rows=9),
            launch("both"),
            msgspec.structs.replace(TABLE.launches[0], symbol="decode_only", phase="decode"),
        ],
    )
    recordings = Recordings(Resolver(table, LIMITS, GROUPS))
    symbols = lambda tokens, seqs: [s.symbol for s in recordings.all[recordings.find(tokens, seqs)].launches]  # noqa: E731
    assert symbols(1, 1) == ["small", "both", "decode_only"]
    assert symbols(8, 2) == ["small", "both"]
    assert symbols(9, 2) == ["large", "both"]


def test_kv_memory_is_what_the_rest_leaves() -> None:
    manifest = minimal_manifest()
    options = DeviceOptions(max_seqs=4, max_tokens=16)
    whole = choose_limits(manifest, TABLE, options, 1 << 30)
    assert whole.num_blocks == 4 * whole.max_blocks_per_seq
    fixed = manifest.weights_bytes + device_bytes(TABLE, whole)
    tight = choose_limits(manifest, TABLE, options, fixed + 40 * kv_groups(manifest)[0].unit_bytes)
    assert tight.num_blocks == 36
    assert choose_limits(manifest, TABLE, replace(options, kv_cache_bytes=2560), 1 << 30).num_blocks == 10
    with pytest.raises(FerrumError, match="KV blocks"):
        choose_limits(manifest, TABLE, options, fixed)
    with pytest.raises(FerrumError) as error:
        choose_limits(manifest, TABLE, replace(options, kv_cache_bytes=1 << 20), fixed + 1000)
    assert error.value.code == "out-of-memory"


def test_a_budget_holds_as_many_sequences_in_every_pool() -> None:
    """Of a window they need what they hold of it at a time; where not even one fits, the longest that does."""
    groups = KvGroup(0, 16, 1, 1000), KvGroup(64, 16, 3, 3000)
    limits = replace(LIMITS, max_tokens=32, max_seqs=4, max_blocks_per_seq=100)
    whole = 100 * 1000 + 7 * 3000
    assert blocks_within(groups, limits, 10 * whole) == (400, 28) and blocks_within(groups, limits, 2 * whole) == (200, 14)
    assert blocks_within(groups, limits, whole - 1) == (99, 7) and blocks_within(groups, limits, 5 * 4000 + 1) == (5, 5)
    assert blocks_within(groups, limits, 3999) == (0, 0)
    numbers_only = KvGroup(0, 16, 0, 0), groups[1]
    assert blocks_within(numbers_only, limits, 3 * 7 * 3000) == (300, 21)
    pools = Pools.of(groups, with_blocks(limits, groups, 2 * whole, asked=True))
    assert pools.pools == (Pool(0, 1000, 200), Pool(200192, 3000, 14)) and pools.nbytes == 200192 + 14 * 3000
    with pytest.raises(FerrumError, match="1600 tokens need 1 MiB"):
        with_blocks(limits, groups, 3999, asked=True)


def test_places_in_the_second_group_are_behind_the_first() -> None:
    groups = KvGroup(0, 16, 1, 1000), KvGroup(64, 16, 3, 3000)
    limits = replace(LIMITS, groups=(StateGroup("window", 5, window=64),))
    args = [StateArg(128, group=1), TableArg(0), TableArg(1), LimitArg("blocks_per_seq", times=2)]
    launch = msgspec.structs.replace(TABLE.launches[0], args=args)
    resolver = Resolver(msgspec.structs.replace(TABLE, launches=[launch]), limits, groups)
    kv, first, second, row = resolver.recording("mixed", 8).launches[0].args
    table = resolver.layout.inputs.fields["block_table"]
    assert table.shape == (5, 2, 3) and resolver.layout.common_bytes(2) == table.offset + 2 * 2 * 3 * 4
    assert kv == Pointer("kv", 9216 + 128) and row == 6  # 9 blocks of 1000 bytes before it
    assert (first, second) == (Pointer("inputs", table.offset), Pointer("inputs", table.offset + 3 * 4))


def bad_launch(**changes: object) -> dict[str, object]:
    return {"launches": [msgspec.structs.replace(TABLE.launches[0], **changes)]}


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("logits_slot", {"logits_slot": 2}),
        ("logits_slot", {"launches": []}),
        ("code", {"code": "code/other"}),
        ("term", {"slots": [Slot(bytes=[Term("tokens", 1, 0)])] * 2}),
        ("term", {"slots": [Slot(bytes=[Term("tokens", 1 << 41)])] * 2}),
        ("launches[0]", bad_launch(symbol="a b")),
        ("launches[0]", bad_launch(on=ThreadBlocks(block=[64, 64, 1], shared=0))),
        ("launches[0]", bad_launch(work=[[Term("one", 1)]])),
        ("launches[0]", bad_launch(on=ThreadBlocks(block=[32, 1, 1], shared=-1))),
        ("launches[0]", bad_launch(args=[SlotArg(2)])),
        ("launches[0]", bad_launch(args=[StateArg(1 << 30)])),
        ("launches[0]", bad_launch(args=[StateArg(0, group=1)])),
        ("launches[0]", bad_launch(args=[TableArg(1)])),
        ("launches[0]", bad_launch(args=[TableArg(-1)])),
        ("launches[0]", bad_launch(args=[LimitArg("blocks_per_seq", times=2)])),
        ("launches[0]", bad_launch(args=[LimitArg("tokens", times=0)])),
        ("launches[0]", bad_launch(args=[InputArg("out_token")])),
        ("launches[0]", bad_launch(args=[IntArg(1 << 31)])),
        ("launches[0]", bad_launch(args=[ExternalArg("adapter")])),
        ("launches[0]", bad_launch(kind="collective")),
        ("launches[0]", bad_launch(on=Threads(private=[], sync="always"))),
    ],
)
def test_a_bad_table_is_named_by_its_field(tmp_path: Path, field: str, changes: dict[str, object]) -> None:
    path = write_launch_pack(tmp_path / "bad.fpk", "cuda", "sm_89", **changes)
    with open_pack(path, trust=True) as pack, pytest.raises(FerrumError) as error:
        read_table(pack)
    assert error.value.code == "pack-damaged" and field in error.value.where


@pytest.mark.parametrize(("code", "changes"), [("pack-version", {"version": 9}), ("contract-mismatch", {"contract": "x"})])
def test_a_table_of_another_pack_is_refused(tmp_path: Path, code: str, changes: dict[str, object]) -> None:
    path = write_launch_pack(tmp_path / "bad.fpk", "cuda", "sm_89", **changes)
    with open_pack(path, trust=True) as pack, pytest.raises(FerrumError) as error:
        read_table(pack)
    assert error.value.code == code


def test_a_grid_that_no_device_runs_is_refused() -> None:
    launch = msgspec.structs.replace(
        TABLE.launches[0], work=[[Term("one", 1)], [Term("tokens", 2000)], [Term("one", 1)]], phase="any"
    )
    table: LaunchTable = msgspec.structs.replace(TABLE, launches=[launch])
    with pytest.raises(FerrumError, match="grid"):
        Recordings(Resolver(table, LIMITS, GROUPS))
