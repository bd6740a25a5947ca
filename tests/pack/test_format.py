"""docs/pack-format.md, implemented a second time from its text alone: both writers must agree on every byte."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import zlib
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ferrum.pack.check import contract_hash
from ferrum.pack.reader import open_pack
from ferrum.pack.schema import TensorRecord
from tests.pack.helpers import MANIFEST_ROOM, MEMBERS, SELFTEST, minimal_manifest, paged_state, write_minimal_pack


def stranger_writes(members: dict[str, bytes], manifest: dict[str, object]) -> bytes:
    out = bytearray()
    central = bytearray()
    records = []
    position = -(-(30 + 13 + 26) // 16384) * 16384 + MANIFEST_ROOM
    for name, data in members.items():
        position = -(-(position + 30 + len(name) + 26) // 16384) * 16384
        records.append({"name": name, "offset": position, "nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        position += len(data)
    text = json.dumps({**manifest, "members": records}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    text = re.sub(r"(?<=\de-)0+(?=\d)", "", text)  # Python writes 1e-06
    for name, data in {"manifest.json": text.encode().ljust(MANIFEST_ROOM), **members}.items():
        start, n = len(out), len(name)
        room = -(-(start + 30 + n + 26) // 16384) * 16384 - start - 30 - n
        common = struct.pack("<HHHHIIIHH", 0, 0, 0, 0x21, zlib.crc32(data), len(data), len(data), n, 0)[:-2]
        out += b"PK\x03\x04" + struct.pack("<H", 20) + common + struct.pack("<H", room) + name.encode()
        out += struct.pack("<HHH", 0xD935, room - 4, 16384) + bytes(room - 6) + data
        central += b"PK\x01\x02" + struct.pack("<HH", 0x032D, 20) + common + struct.pack("<HHHHII", 0, 0, 0, 0, 0x81A40000, start)
        central += name.encode()
    count = len(members) + 1
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count, count, len(central), len(out), 0)
    return bytes(out + central + end)


def test_the_description_is_complete(tmp_path: Path) -> None:
    path = write_minimal_pack(tmp_path / "x.fpk")
    members = {**MEMBERS, "step/selftest.json": msgspec.json.encode(SELFTEST)}
    assert path.read_bytes() == stranger_writes(members, msgspec.to_builtins(minimal_manifest()))


def test_contract_of_the_description() -> None:
    tensor = TensorRecord(name="embed", shape=[16, 8], format="f32", layout="plain", offset=64, nbytes=512)
    described = (
        b'{"max_model_len":64,"states":[{"arrays":[{"dtype":"f32","heads":1,"name":"k","width":8},'
        b'{"dtype":"f32","heads":1,"name":"v","width":8}],"checkpoint":0,"group":0,"kind":"paged","layers":1,"name":"kv",'
        b'"rows":0,"unit":4,"unit_bytes":256,"window":0}],"tensors":[{"format":"f32","layout":"plain","name":"embed",'
        b'"nbytes":512,"offset":64,"shape":[16,8],"shard":null}],"vocab_size":16}'
    )
    assert contract_hash([tensor], [paged_state()], 16, 64) == hashlib.sha256(described).hexdigest()


def test_signature_of_the_description(tmp_path: Path) -> None:
    path = write_minimal_pack(tmp_path / "x.fpk")
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = key.public_key().public_bytes_raw()
    digest = hashlib.sha256(path.read_bytes()[16384 : 16384 + MANIFEST_ROOM]).digest()
    signature = base64.b64encode(key.sign(b"ferrum pack signature 1\0" + digest)).decode()
    (tmp_path / "x.fpk.sig").write_text(f"ferrum-signature-1 {hashlib.sha256(public).hexdigest()[:16]} {signature}\n")
    (tmp_path / "trusted").mkdir(mode=0o700)
    (tmp_path / "trusted" / "me.pub").write_text(f"ferrum-ed25519 {base64.b64encode(public).decode()} my key\n")
    with open_pack(path, check="full", state_dir=tmp_path, config_dir=tmp_path) as pack:
        assert pack.trust.kind == "signed"
