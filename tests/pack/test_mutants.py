"""More than 2,000 damaged and forged packs: each is refused with one line that names what is wrong, and nothing else happens.

All are opened with ``trust=True`` and ``check="full"``: what refuses them is the format, not the missing signature.
"""

from __future__ import annotations

import os
import random
import resource
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from ferrum.errors import FerrumError
from ferrum.pack import archive
from ferrum.pack.archive import Entry, central_header, end_records
from ferrum.pack.reader import open_pack
from tests.pack.build import Part, assemble, parts_of, with_manifest
from tests.pack.helpers import MEMBERS, write_minimal_pack

FIELDS = (
    *archive.LOCAL_FIELDS, *archive.CENTRAL_FIELDS, *archive.END_FIELDS, "SHA-256", "manifest", "central directory",
    "end of central directory", "bytes", "members", *MEMBERS, "step/selftest.json",
)  # fmt: skip
ROOM = 8192


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_minimal_pack(tmp_path_factory.mktemp("sound") / "sound.fpk", manifest_room=ROOM)


def refuse(path: Path, data: bytes | bytearray) -> FerrumError:
    """Write ``data`` and expect the one-line error."""
    path.write_bytes(data)
    try:
        open_pack(path, trust=True, check="full").close()
    except FerrumError as error:
        text = str(error)
        assert error.code in ("pack-damaged", "pack-too-new", "pack-section-unknown"), text
        assert text.isprintable() and str(path) in text and error.next_step
        assert any(field in text.replace(str(path), "") for field in FIELDS), text
        return error
    raise AssertionError("a damaged pack was opened")


def directory_of(data: bytes) -> int:
    return int(archive.END.unpack(data[-archive.END.size :])[6])


def bit_flips(data: bytes, rng: random.Random) -> Iterator[bytearray]:
    """700 anywhere, one in every byte of directory and end record, 200 in local headers, 100 in the manifest."""
    start = directory_of(data)
    heads = [data.find(name.encode()) + i for name in MEMBERS for i in range(-30, 40)]
    places = [rng.randrange(len(data)) for _ in range(700)] + list(range(start, len(data)))
    places += [rng.choice(heads) for _ in range(200)] + [16384 + rng.randrange(ROOM) for _ in range(100)]
    for place in places:
        out = bytearray(data)
        out[place] ^= 1 << rng.randrange(8)
        yield out


def cuts_and_splices(data: bytes, rng: random.Random) -> Iterator[bytes]:
    for _ in range(150):
        yield data[: rng.randrange(len(data))]
    for _ in range(50):
        yield data + rng.randbytes(rng.randrange(1, 100))
    for _ in range(150):  # a piece of the file over another place, or in between
        a, n = rng.randrange(len(data)), rng.choice((1, 4, 46, 500, 16384))
        b = rng.randrange(len(data))
        piece = data[a : a + n]
        for out in (data[:b] + piece + data[b + len(piece) :], data[:b] + piece + data[b:], data[:b] + data[b + n :]):
            if out != data:
                yield out


def forged_archives(parts: list[Part], rng: random.Random) -> Iterator[bytes]:
    """Headers and directory agree with each other and lie together."""
    names = [part.entry.name for part in parts]
    for index, part in enumerate(parts):
        entry = part.entry
        for name in (*names, "../x", "/etc/passwd", "a/../../b", "X", "con\x01", "", "a" * 300, "new"):
            if name != entry.name and name.isascii():
                yield assemble(changed(parts, index, replace(entry, name=name)))
        for size in (entry.nbytes + 1, max(entry.nbytes - 1, 0), 1 << 31, archive.FAR - 1, archive.FAR, 1 << 40, (1 << 64) - 1):
            if size != entry.nbytes:
                yield assemble(changed(parts, index, replace(entry, nbytes=size)))
        for crc in (0 if entry.crc else 1, entry.crc ^ 1):
            yield assemble(changed(parts, index, replace(entry, crc=crc)))
        for offset in (entry.offset + 1, entry.offset + 16384, 1 << 31, archive.FAR, 1 << 50):
            yield assemble(parts, [replace(e, offset=offset) if e is entry else e for e in entries(parts)])
        yield assemble(parts, [e for e in entries(parts) if e is not entry])
        yield assemble(parts, [*entries(parts), entry])
        yield assemble([p for p in parts if p is not part])
        yield assemble([*parts[:index], part, *parts[index:]])
        if part.data:
            yield assemble([*parts[:index], Part(entry, rng.randbytes(len(part.data))), *parts[index + 1 :]])
    for _ in range(60):
        a, b = rng.sample(range(len(parts)), 2)
        order = list(parts)
        order[a], order[b] = order[b], order[a]
        yield assemble(order)
        yield assemble(parts, entries(order))
        contents = list(parts)
        contents[a], contents[b] = replace(parts[a], data=parts[b].data), replace(parts[b], data=parts[a].data)
        yield assemble(contents)
        yield assemble(packed(order))  # the order changed with everything else right


def entries(parts: list[Part]) -> list[Entry]:
    return [part.entry for part in parts]


def changed(parts: list[Part], index: int, entry: Entry) -> list[Part]:
    return [*parts[:index], replace(parts[index], entry=entry), *parts[index + 1 :]]


def packed(parts: list[Part]) -> list[Part]:
    """The same members with offsets for their new order."""
    out, position = [], 0
    for part in parts:
        out.append(replace(part, entry=replace(part.entry, offset=position)))
        position = out[-1].entry.end
    return out


def zip64_lies(data: bytes, parts: list[Part], rng: random.Random) -> Iterator[bytes]:
    start = directory_of(data)
    directory = data[start : -archive.END.size]
    listed = entries(parts)
    far_end = archive.END64.pack(archive.END64_MAGIC, 44, 3 << 8 | 45, 45, 0, 0, 9, 9, len(directory), start)
    locator = archive.LOCATOR.pack(archive.LOCATOR_MAGIC, 0, start + len(directory), 1)
    for count, length, offset in ((9, len(directory), archive.FAR), (0xFFFF, archive.FAR, archive.FAR), (9, archive.FAR, start)):
        short = archive.END.pack(archive.END_MAGIC, 0, 0, count, count, length, offset, 0)
        yield data[:start] + directory + far_end + locator + short
        yield data[:start] + directory + locator + short
        yield data[:start] + directory + short
    for count in (0, 1, 8, 10, 1024, 1025, 65535):
        yield data[:start] + directory + end_records(count, start, len(directory))
    size = len(directory)
    for offset, length in ((0, start + size), (start - 46, size + 46), (start + 46, size - 46), (0, 0)):
        yield data[: start + len(directory)] + end_records(9, offset, length)
    for index, entry in enumerate(listed):  # a small size or offset hidden in a zip64 field
        plain = bytearray(central_header(entry))
        for values in ((entry.nbytes, entry.nbytes), (1 << 63, 1 << 63), (entry.nbytes,), ()):
            head = bytearray(plain)
            struct.pack_into("<2I", head, 20, archive.FAR, archive.FAR)
            extra = struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)
            struct.pack_into("<H", head, 30, len(extra))
            forged = b"".join(bytes(head) + extra if i == index else central_header(e) for i, e in enumerate(listed))
            yield data[:start] + forged + end_records(9, start, len(forged))
        for field, size in ((28, 2), (30, 2), (32, 2)):  # name, extra and comment lengths
            head = bytearray(plain)
            head[field : field + size] = rng.choice((b"\xff\xff", b"\0\1", b"\1\0"))
            forged = b"".join(bytes(head) if i == index else central_header(e) for i, e in enumerate(listed))
            yield data[:start] + forged + end_records(9, start, len(forged))


def test_two_thousand_mutants(tmp_path: Path, sound: Path) -> None:
    data, parts, rng = sound.read_bytes(), parts_of(sound), random.Random(2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = 0
    for kind in (
        bit_flips(data, rng),
        cuts_and_splices(data, rng),
        forged_archives(parts, rng),
        zip64_lies(data, parts, rng),
    ):
        for mutant in kind:
            if bytes(mutant) != data:
                refuse(tmp_path / "mutant.fpk", mutant)
                count += 1
    assert count > 2000
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 2 * len(data) + (64 << 20)


def test_forged_manifests_never_raise_anything_else(tmp_path: Path, sound: Path) -> None:
    """Random edits of the JSON with a CRC-32 that fits: opened or refused by name, never another exception."""
    parts, rng = parts_of(sound), random.Random(3)
    words = 'null -1 1e400 99999999999999999999999 [] {} "" 9223372036854775807 "\\ud800" 1.5 true "\\u0000" [[[[ NaN 0 ,'
    pieces = [word.encode() for word in words.split()]
    refused = 0
    for _ in range(600):

        def edit(text: bytes) -> bytes:
            spans = [i for i, c in enumerate(text) if c in b":,["]
            a = rng.choice(spans) + 1
            b = min(i for i, c in enumerate(text) if i >= a and c in b",]}") if rng.random() < 0.7 else a + rng.randrange(1, 9)
            return text[:a] + rng.choice(pieces) + text[b:]

        path = tmp_path / "mutant.fpk"
        path.write_bytes(with_manifest(parts, edit))
        try:
            open_pack(path, trust=True, check="full").close()
        except FerrumError as error:
            assert str(error).isprintable() and "manifest" in str(error)
            refused += 1
    assert refused > 400


def edits() -> Iterator[tuple[str, object, str]]:
    """(path in the manifest, new value, what the error names)."""
    big = 1 << 62
    yield from (("states.0.unit", 0, "states[0].unit"), ("states.0.unit_bytes", 0, "states[0].unit_bytes"))
    yield "model.vocab_size", big, "vocab_size"
    yield from (
        ("code.0.programs.step.memory.per_token", -1, "per_token"),
        ("model.name", "a\nb", "model.name"),
        ("target.features", ["\x1b[2J"], "target.features"),
    )
    yield from (("reader_min", 3, "reader_min"), ("reader_min", 0, "reader_min"), ("format", 0, "reader_min"))
    yield from (("required", ["weights", "lasers"], "lasers"), ("required", ["text", "text"], "required"))
    yield from (("programs.0.selftest", "x", "selftest"), ("contract", "0" * 64, "contract"))
    yield "text.eos_token_ids", [16], "text"
    yield from (("text.bos_token_id", -1, "text"), ("surprise", 1, "surprise"), ("model.surprise", 1, "surprise"))
    for value in ([0], [-1], [1 << 40, 1 << 40], [1] * 9, [17, 8], [big]):
        yield "tensors.0.shape", value, "shape" if value != [17, 8] else "nbytes"
    for value in (-64, 1, 32, 576, big):
        yield "tensors.0.offset", value, "offset"
    yield from (("tensors.0.nbytes", value, "nbytes") for value in (0, -1, 511, big))
    yield from (("tensors.0.nbytes", 544, "overlaps"), ("tensors.1.offset", 0, "overlaps"), ("tensors.1.offset", 448, "overlaps"))
    yield from (("members.0.name", value, "name") for value in ("../x", "step/plan.json"))
    yield from (("tensors.1.name", value, "name") for value in ("embed", "", "a b", "é", "\x7f", "a" * 1025))
    yield "tensors.1.format", "\x1b", "format"
    yield from (("members.0.offset", value, "offset") for value in (0, -16384, 5, 49152, big))
    yield from (("members.0.nbytes", value, "nbytes") for value in (-1, 12, big))
    yield from (("members.0.sha256", value, "sha256") for value in ("", "F" * 64, "0" * 63))
    yield from (("members.0.sha256", "0" * 64, "graph.txt"), ("members", [], "required"))
    yield "code.0.programs.step.kernels.0.calls", 1.5, "calls"
    yield from (("states.0.kind", "lava", "kind"), ("states.0.window", 7, "window"), ("programs.0.states", ["x"], "states"))
    yield from (("code.0.programs", {}, "code[0]"), ("code.0.members", ["x"], "code[0]"), ("code.0.proved", 1, "proved"))
    yield from ((f"code.0.programs.step.{name}", "x", name) for name in ("plan", "launches", "layers"))
    yield "code.0.programs.step.entry", "step/plan.json", "code[0]"


@pytest.mark.parametrize("field, value, named", list(edits()), ids=lambda x: str(x)[:30])
def test_every_field_is_checked_and_named(tmp_path: Path, sound: Path, field: str, value: object, named: str) -> None:
    def edit(text: bytes) -> bytes:
        manifest = msgspec.json.decode(text)
        record, keys = manifest, field.split(".")
        for key in keys[:-1]:
            record = record[int(key)] if isinstance(record, list) else record[key]
        record[int(keys[-1]) if isinstance(record, list) else keys[-1]] = value
        return msgspec.json.encode(manifest, order="sorted")

    error = refuse(tmp_path / "forged.fpk", with_manifest(parts_of(sound), edit))
    assert named in str(error).replace(str(tmp_path), "")


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: b" " + text,
        lambda text: text + b"\n",
        lambda text: text + b" {}",
        lambda text: text.replace(b'"format":2', b'"format": 2'),
        lambda text: text.replace(b'"format":2', b'"format":2,"format":2'),
        lambda text: text.replace(b'"contract"', b'"\\u0063ontract"'),
        lambda text: b'{"x":' + b"[" * 3000,
        lambda text: b'{"format":2,"reader_min":1,"required":[],"x":' + b"[" * 1500 + b"]" * 1500 + b"}",
        lambda text: text[:-1],
        lambda text: b"\xff" + text[1:],
        lambda text: b"",
    ],
)
def test_only_canonical_json_is_a_manifest(tmp_path: Path, sound: Path, edit: object) -> None:
    error = refuse(tmp_path / "forged.fpk", with_manifest(parts_of(sound), edit))
    assert "manifest" in str(error)


def test_a_huge_manifest_is_refused_before_it_is_read(tmp_path: Path) -> None:
    size = 1 << 34
    entry = Entry("manifest.json", 0, size, 0)
    path = tmp_path / "huge.fpk"
    with path.open("wb") as file:  # a hole: reading it would take seconds and 16 GiB
        file.write(archive.local_header(entry))
        file.seek(entry.end)
        file.write(archive.central_directory([entry]))
    with pytest.raises(FerrumError, match=r"more than a manifest may have.*manifest\.json: size"):
        open_pack(path, trust=True)


def test_manifest_check_leaves_only_weights_unhashed(tmp_path: Path, sound: Path) -> None:
    data, path = sound.read_bytes(), tmp_path / "x.fpk"
    for part in parts_of(sound)[1:]:
        if part.data:
            out = bytearray(data)
            out[part.entry.data_offset] ^= 1
            path.write_bytes(out)
            if part.entry.name == "weights":
                open_pack(path, trust=True).close()
            else:
                with pytest.raises(FerrumError, match=part.entry.name):
                    open_pack(path, trust=True)


def test_things_that_are_no_packs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("hello\n" * 5000)
    (tmp_path / "short").write_text("hello")
    (tmp_path / "zeros").write_bytes(bytes(100_000))
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    names = ("fifo", "empty", "text", "short", "zeros", "dangling", "loop", "missing", ".", "text/x", "a\0b", "x" * 300)
    for name in names:
        with pytest.raises(FerrumError) as caught:
            open_pack(f"{tmp_path}/{name}", trust=True)
        assert str(caught.value).isprintable() and caught.value.next_step
    with pytest.raises(FerrumError, match="not a regular file"):
        open_pack("/dev/null", trust=True)


def test_an_unreadable_disk_is_one_line(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("ferrum.pack.reader.os.preadv", fail)
    with pytest.raises(FerrumError, match=r"Input/output error.*check the disk"):
        open_pack(sound, trust=True)


def test_a_file_that_shrinks_while_it_is_read(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ferrum.pack.reader.os.preadv", lambda *_: 0)
    with pytest.raises(FerrumError, match="the file ends within"):
        open_pack(sound, trust=True)


def test_closed_packs_and_views(sound: Path) -> None:
    pack = open_pack(sound, trust=True)
    view = pack.weights
    assert view.readonly and "weights" in pack and "nothing" not in pack
    with pytest.raises(FerrumError, match="no member 'nothing'"):
        pack.member("nothing")
    pack.close()
    pack.close()
    assert bytes(view) == MEMBERS["weights"]  # still mapped for those who hold a view
    with pytest.raises(FerrumError, match="closed"):
        pack.address("weights")
