"""The quality card as a member of a pack: numbers that are checked, and a member that only the finished file can make."""

from __future__ import annotations

import copy
from pathlib import Path

import msgspec
import pytest

from ferrum.errors import FerrumError
from ferrum.pack.quality import BAD_KL, BAD_TOP1, QUALITY_NAME, QualityCard, encode_quality, read_quality
from ferrum.pack.reader import open_pack
from ferrum.pack.writer import PackWriter
from tests.pack.forged import leaves, other_values
from tests.pack.helpers import MANIFEST_ROOM, MEMBERS, minimal_manifest, step_record, write_minimal_pack

CARD = QualityCard(
    measured="code", positions=128, kl_mean=0.01, kl_p99=0.25, top1=0.98, perplexity=21.5, perplexity_unquantized=21.0
)


def with_card(path: Path, card: QualityCard | bytes = CARD) -> Path:
    data = card if isinstance(card, bytes) else encode_quality(card)
    manifest = minimal_manifest(programs=[step_record(selftest="")])
    return write_minimal_pack(path, manifest=manifest, members={**MEMBERS, QUALITY_NAME: data})


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    with open_pack(with_card(tmp_path / "x.fpk"), trust=True) as pack:
        assert read_quality(pack) == CARD
    with open_pack(write_minimal_pack(tmp_path / "y.fpk"), trust=True) as pack:
        assert read_quality(pack) is None


def test_every_edit_is_refused_or_a_card_in_range(tmp_path: Path) -> None:
    whole = msgspec.to_builtins(CARD)
    edits = [(path[0], value) for path in leaves(whole) for value in [*other_values(whole[path[0]]), "x", None, [], -0.5, 1e308]]
    refused = 0
    for field, value in edits:
        forged = copy.deepcopy(whole) | {field: value}
        with open_pack(with_card(tmp_path / "x.fpk", msgspec.json.encode(forged)), trust=True) as pack:
            try:
                card = read_quality(pack)
            except FerrumError as error:
                assert error.code == "pack-damaged" and QUALITY_NAME in error.where and str(error).isprintable()
                refused += 1
            else:
                assert card is not None and 0 <= card.top1 <= 1 and card.kl_mean >= 0 and card.perplexity >= 1
                assert str(card).isprintable()
    assert len(edits) // 3 < refused < len(edits)
    for data in (b"", b"{}", b"[1]", b'{"kl_mean": NaN}', encode_quality(CARD)[:-1] + b',"x":1}'):
        with open_pack(with_card(tmp_path / "x.fpk", data), trust=True) as pack, pytest.raises(FerrumError, match="quality card"):
            read_quality(pack)


@pytest.mark.parametrize(
    ("changes", "bad"),
    [({}, False), ({"kl_mean": BAD_KL}, False), ({"kl_mean": BAD_KL + 0.01}, True), ({"top1": BAD_TOP1 - 0.01}, True)],
)
def test_bad_is_beyond_either_bound(changes: dict[str, float], bad: bool) -> None:
    assert msgspec.structs.replace(CARD, **changes).bad is bad


@pytest.mark.parametrize("nbytes", [10, 70_000, 3 << 20])
def test_a_proof_adds_members_to_a_file_that_is_as_if_they_had_always_been_there(tmp_path: Path, nbytes: int) -> None:
    """The hidden file is whole when it is judged, and whole again with what the judgement adds."""
    manifest, members = minimal_manifest(programs=[step_record(selftest="")]), {**MEMBERS, "weights": MEMBERS["weights"] * 4000}
    added = bytes(range(251)) * (nbytes // 251 + 1)
    seen = []

    def judge(hidden: Path) -> dict[str, bytes]:
        with open_pack(hidden, trust=True, check="full") as pack:
            seen.append(QUALITY_NAME in pack)
        return {QUALITY_NAME: added}

    paths = tmp_path / "added.fpk", tmp_path / "always.fpk"
    for path, late in zip(paths, (True, False), strict=True):
        with PackWriter(path, manifest_room=MANIFEST_ROOM) as writer:
            for name, data in [*members.items(), *([] if late else [(QUALITY_NAME, added)])]:
                writer.add(name, data)
            writer.finish(manifest, prove=judge if late else None, record=False)
    assert seen == [False] and paths[0].read_bytes() == paths[1].read_bytes()
    with open_pack(paths[0], trust=True, check="full") as pack:
        assert bytes(pack.member(QUALITY_NAME)) == added
