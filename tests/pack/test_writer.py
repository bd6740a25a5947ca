from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ferrum.errors import FerrumError
from ferrum.pack import atomic
from ferrum.pack.archive import Entry, central_directory, data_offset, local_header
from ferrum.pack.atomic import AtomicFile
from ferrum.pack.reader import PackFile, open_pack
from ferrum.pack.schema import MEMBER_ALIGNMENT, MemberRecord, TensorRecord
from ferrum.pack.writer import PackWriter, encode_manifest
from tests.pack.helpers import MANIFEST_ROOM, MEMBERS, minimal_manifest, write_minimal_pack

part = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-.", min_size=1, max_size=12).filter(lambda s: s[0] not in ".-")
BARE: dict = {"required": [], "programs": [], "code": []}
TAKEN = ("manifest.json", "weights", "step/selftest.json")
names = st.lists(part, min_size=1, max_size=3).map("/".join).filter(lambda name: name not in TAKEN)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.dictionaries(names, st.binary(max_size=70_000), max_size=6),
    shapes=st.lists(st.lists(st.integers(1, 9), max_size=3), max_size=5),
    generation=st.dictionaries(st.text(max_size=8), numbers),
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
def test_round_trip(tmp_path: Path, members: dict, shapes: list, generation: dict, text: str) -> None:
    tensors, weights = [], bytearray()
    for index, shape in enumerate(shapes):
        weights += bytes(-len(weights) % 64)
        data = os.urandom(int(np.prod(shape)) * 4)
        place = {"offset": len(weights), "nbytes": len(data)}
        tensors.append(TensorRecord(name=f"t{index}", shape=shape, format="f32", layout="x", **place))
        weights += data
    base = minimal_manifest(tensors=tensors, **BARE)
    record = msgspec.structs.replace(base.text, generation=generation, special_tokens={"eos_token": text})
    manifest = msgspec.structs.replace(base, text=record)
    path = write_minimal_pack(tmp_path / "x.fpk", None, manifest, {**members, "weights": bytes(weights)}, 32 << 10)
    with open_pack(path, trust=True, check="full") as pack:
        stored = {record.name: bytes(pack.member(record.name)) for record in pack.manifest.members}
        assert stored == {**members, "weights": weights}
        assert msgspec.structs.replace(pack.manifest, members=[]) == manifest
        assert all(record.offset % MEMBER_ALIGNMENT == 0 for record in pack.manifest.members)
        for tensor in tensors:
            assert (
                pack.weights[tensor.offset : tensor.offset + tensor.nbytes]
                == weights[tensor.offset : tensor.offset + tensor.nbytes]
            )


def test_standard_tools_read_it(tmp_path: Path) -> None:
    path = write_minimal_pack(tmp_path / "x.fpk")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["manifest.json", *MEMBERS, "step/selftest.json"]
        assert archive.read("weights") == MEMBERS["weights"]
        assert all(info.date_time == (1980, 1, 1, 0, 0, 0) for info in archive.infolist())
    if shutil.which("unzip"):
        assert subprocess.run(["unzip", "-tq", path], capture_output=True, check=True).stderr == b""


def test_two_builds_are_byte_identical(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    first = write_minimal_pack(tmp_path / "a.fpk")
    second = write_minimal_pack(tmp_path / "elsewhere" / "b.fpk", tmp_path)
    assert first.read_bytes() == second.read_bytes()


def test_pieces_do_not_matter(tmp_path: Path) -> None:
    data = np.arange(3_000_000, dtype=np.uint32)
    with PackWriter(tmp_path / "a.fpk") as writer:
        with writer.member("data") as member:
            assert member.write(data) == data.nbytes
            assert member.align(4096) == -(-data.nbytes // 4096) * 4096
            member.write_at(13_000_000, b"end")
        writer.finish(minimal_manifest(tensors=[], **BARE), record=False)
    with open_pack(tmp_path / "a.fpk", trust=True, check="full") as pack:
        stored = pack.member("data")
        assert len(stored) == 13_000_003 and bytes(stored[-3:]) == b"end"
        assert np.array_equal(np.frombuffer(stored[: data.nbytes], np.uint32), data)
        assert not any(stored[data.nbytes : 13_000_000])


def test_more_than_four_gigabytes(tmp_path: Path) -> None:
    """zip64, with a hole in place of the weights so that nothing large is written."""
    size = (5 << 30) + 12345
    names_sizes = [("manifest.json", MANIFEST_ROOM), ("weights", size), ("tokenizer.json", 2), ("far.bin", 0)]
    manifest = minimal_manifest(tensors=[], **BARE)
    entries, records, position = [], [], 0
    for name, nbytes in names_sizes:
        entry = Entry(name, position, nbytes, 0)
        sha = hashlib.sha256(b"{}" if nbytes == 2 else b"").hexdigest()  # that of weights is not looked at
        if name != "manifest.json":
            records.append(MemberRecord(name=name, offset=entry.data_offset, nbytes=nbytes, sha256=sha))
        entries.append(entry)
        position = entry.end
    data = encode_manifest(msgspec.structs.replace(manifest, members=records), MANIFEST_ROOM)
    crcs = [zlib.crc32(data), 0, zlib.crc32(b"{}"), 0]
    entries = [Entry(e.name, e.offset, e.nbytes, crc) for e, crc in zip(entries, crcs, strict=True)]
    path = tmp_path / "big.fpk"
    with path.open("wb") as file:
        for entry, content in zip(entries, (data, b"", b"{}", b""), strict=True):
            file.seek(entry.offset)
            file.write(local_header(entry) + content)
        file.seek(position)
        file.write(central_directory(entries))
    with open_pack(path, trust=True) as pack:
        assert len(pack.weights) == size and bytes(pack.member("tokenizer.json")) == b"{}"
    with zipfile.ZipFile(path) as archive:
        assert [(i.filename, i.file_size) for i in archive.infolist()] == names_sizes
        assert archive.read("tokenizer.json") == b"{}"
    if shutil.which("unzip"):
        run = subprocess.run(["unzip", "-tq", path, "tokenizer.json", "manifest.json"], capture_output=True)
        assert run.returncode == 0 and run.stderr == b""


BAD_NAMES = ["manifest.json", "../x", "/x", "a//b", "A", ".hidden", "a/.b", "", "a\\b", "a" * 201, "é", "weights"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_member_names(tmp_path: Path, name: str) -> None:
    with PackWriter(tmp_path / "x.fpk") as writer:
        writer.add("weights", b"")
        with pytest.raises(ValueError, match="member name"):
            writer.member(name)
    assert os.listdir(tmp_path) == []


def test_misuse_is_refused(tmp_path: Path) -> None:
    with PackWriter(tmp_path / "x.fpk") as writer:
        member = writer.member("a")
        with pytest.raises(ValueError, match="still open"):
            writer.member("b")
        with pytest.raises(ValueError, match="still open"):
            writer.finish(minimal_manifest())
        with member:
            member.write(b"12")
            with pytest.raises(ValueError, match="lies before"):
                member.write_at(1, b"x")
        with pytest.raises(ValueError, match="closed"):
            member.write(b"x")
    with pytest.raises(ValueError, match="manifest_room"):
        PackWriter(tmp_path / "x.fpk", manifest_room=1 << 30)
    assert os.listdir(tmp_path) == []


def test_a_manifest_that_readers_refuse_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "x.fpk"
    with pytest.raises(FerrumError, match="contract"):
        write_minimal_pack(path, None, minimal_manifest(contract="0" * 64))
    with pytest.raises(FerrumError, match="manifest_room"):
        write_minimal_pack(path, manifest_room=100)
    assert os.listdir(tmp_path) == []


def test_an_error_leaves_the_old_pack_and_nothing_else(tmp_path: Path) -> None:
    path = write_minimal_pack(tmp_path / "x.fpk")
    before = path.read_bytes()
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), PackWriter(path) as writer, writer.member("weights") as member:
            member.write(b"half")
            raise error
    with pytest.raises(FerrumError, match="not good"), PackWriter(path) as writer:
        for name, data in MEMBERS.items():
            writer.add(name, data)
        writer.add("step/selftest.json", b"{}")

        def prove(hidden: Path) -> None:
            with open_pack(hidden, trust=True, check="full"):
                pass
            raise FerrumError("x", "not good")

        writer.finish(minimal_manifest(), prove=prove, record=False)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.fpk"]


def test_disk_full_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, budget = os.pwrite, [0]

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        count = min(len(data), budget[0])
        budget[0] -= count
        if count == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data[:count], offset)  # a short write first, then the error

    path = tmp_path / "x.fpk"
    monkeypatch.setattr("ferrum.pack.atomic.os.pwrite", pwrite)
    for room in (0, 100, 30_000, 60_001, 140_000):
        budget[0] = room
        with pytest.raises(FerrumError) as caught:
            write_minimal_pack(path)
        assert caught.value.code == "disk-full" and str(path) in str(caught.value) and "\n" not in str(caught.value)
        assert "free space" in caught.value.next_step
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failing_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC if call == "fsync" else errno.EIO, "broken")

    monkeypatch.setattr(f"ferrum.pack.atomic.os.{call}", fail)
    with pytest.raises(FerrumError, match=r"x\.fpk"):
        write_minimal_pack(tmp_path / "x.fpk")
    assert os.listdir(tmp_path) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=40)), max_size=12), st.integers(1, 33))
def test_appended_blocks_are_whole_and_what_is_written_over_them_stays(tmp_path_factory, parts: list, block: int) -> None:
    path, expected, calls = tmp_path_factory.mktemp("blocks") / "x", bytearray(), []
    pwrite = os.pwrite

    def watched(fd: int, data: Any, offset: int) -> int:
        calls.append((offset, len(data)))
        return pwrite(fd, data, offset)

    with pytest.MonkeyPatch.context() as patch, AtomicFile(path) as file:
        patch.setattr(atomic, "_BLOCK", block)
        patch.setattr(os, "pwrite", watched)
        for over, data in parts:
            if over and len(expected) >= len(data):
                file.write_at(len(expected) - len(data), data)
                expected[len(expected) - len(data) :] = data
            else:
                file.append(data)
                expected += data
        file.commit()
    assert path.read_bytes() == expected
    if not any(over for over, _ in parts):
        assert calls == [(start, min(block, len(expected) - start)) for start in range(0, len(expected), block)]


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_minimal_pack(tmp_path / "a.fpk").read_bytes()
    real = os.pwrite
    monkeypatch.setattr("ferrum.pack.atomic.os.pwrite", lambda fd, data, offset: real(fd, data[:997], offset))
    assert write_minimal_pack(tmp_path / "b.fpk").read_bytes() == whole


def test_file_size_limit(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.pack.helpers import write_minimal_pack\n"
        "try: write_minimal_pack(Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "x.fpk"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert run.stdout.startswith("FerrumError the file size limit is reached") and run.stdout.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_expected_bytes_are_compared_with_free_space(tmp_path: Path) -> None:
    with pytest.raises(FerrumError) as caught:
        PackWriter(tmp_path / "x.fpk", expected_bytes=1 << 60)
    assert caught.value.code == "disk-full" and str(1 << 60) in caught.value.what
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("folder", "fifo", "missing/x.fpk", "x" * 250, "folder/../fifo"):
        with pytest.raises(FerrumError) as caught:
            write_minimal_pack(tmp_path / name)
        assert caught.value.code == "write-failed" and "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["fifo", "folder"]


def test_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("ferrum.pack.atomic.os.open", denied)
    with pytest.raises(FerrumError, match=r"Permission denied.*x\.fpk"):
        PackWriter(tmp_path / "x.fpk")


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "x.fpk"
    link.symlink_to("disk/real.fpk")
    write_minimal_pack(link)
    assert link.is_symlink() and (tmp_path / "disk" / "real.fpk").is_file()
    write_minimal_pack(link)  # now over an existing target
    assert link.is_symlink() and os.listdir(tmp_path / "disk") == ["real.fpk"]
    open_pack(link, trust=True, check="full").close()


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = write_minimal_pack(tmp_path / "x.fpk")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_an_open_pack_outlives_its_replacement(tmp_path: Path) -> None:
    path = write_minimal_pack(tmp_path / "x.fpk")
    with open_pack(path, trust=True) as pack:
        write_minimal_pack(path, members={**MEMBERS, "weights": bytes(544), "step/selftest.json": b"{}"})
        assert bytes(pack.weights) == MEMBERS["weights"]
    with PackFile(path) as file:
        assert file.size == path.stat().st_size


def test_layout_of_headers_leaves_room_for_zip64() -> None:
    for name_length in range(1, 200):
        for offset in (0, 1, 16383 - 60, 16384 - 56 - name_length, 1 << 33):
            small, large = Entry("a" * name_length, offset, 1, 0), Entry("a" * name_length, offset, 1 << 40, 0)
            assert len(local_header(small)) == len(local_header(large)) == data_offset(offset, small.name) - offset
