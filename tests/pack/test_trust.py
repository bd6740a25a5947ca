from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ferrum.errors import FerrumError
from ferrum.pack import signing, trust
from ferrum.pack.reader import PackFile, open_pack, read_manifest
from tests.pack.helpers import minimal_manifest, write_minimal_pack


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A pack that came from elsewhere."""
    return write_minimal_pack(tmp_path / "x.fpk")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def trust_key(home: Path, key: Path) -> None:
    (home / "trusted").mkdir(mode=0o700, exist_ok=True)
    public = key.with_name(key.name + ".pub")
    (home / "trusted" / public.name).write_bytes(public.read_bytes())


def refused(pack: Path, home: Path) -> FerrumError:
    with pytest.raises(FerrumError) as caught:
        open_pack(pack, state_dir=home, config_dir=home)
    assert str(caught.value).isprintable() and caught.value.next_step
    return caught.value


def test_a_foreign_pack_is_refused(pack: Path, home: Path) -> None:
    error = refused(pack, home)
    assert error.code == "pack-not-trusted" and "--trust" in error.next_step
    with open_pack(pack, trust=True, state_dir=home, config_dir=home) as opened:
        assert opened.trust.kind == "allowed"
    assert read_manifest(pack).model.name == "minimal"  # describing needs no trust


def test_a_pack_built_here_is_opened(pack: Path, home: Path) -> None:
    old = os.umask(0)
    try:
        built = write_minimal_pack(pack.with_name("built.fpk"), home)
    finally:
        os.umask(old)
    with open_pack(built, state_dir=home) as opened:
        assert opened.trust.kind == "built-here"
        record = home / "built" / opened.manifest_sha256
    assert record.read_text() == "built.fpk\n"
    assert record.stat().st_mode & 0o777 == 0o600 and record.parent.stat().st_mode & 0o777 == 0o700
    os.rename(built, pack)  # its name does not matter, its bytes do
    open_pack(pack, state_dir=home).close()
    write_minimal_pack(pack, None, minimal_manifest(endpoints=["chat"]))
    assert refused(pack, home).code == "pack-not-trusted"


def test_default_folders_follow_the_environment(pack: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRUM_HOME", str(home))
    assert trust.default_state_dir() == trust.default_config_dir() == home
    with PackFile(pack) as file:
        trust.record_built(file.manifest_sha256, trust.default_state_dir(), pack.name)
    open_pack(pack).close()


def test_records_that_others_could_have_written_do_not_count(pack: Path, home: Path) -> None:
    write_minimal_pack(pack, home)
    (home / "built").chmod(0o777)
    error = refused(pack, home)
    assert error.code == "trust-folder-unsafe" and str(home / "built") in str(error)
    write_minimal_pack(pack, home)  # the next build closes the folder again
    open_pack(pack, state_dir=home).close()


def test_a_record_must_be_a_file(pack: Path, home: Path) -> None:
    (home / "built").mkdir(mode=0o700)
    with PackFile(pack) as file:
        (home / "built" / file.manifest_sha256).symlink_to("/etc/hostname")
    assert refused(pack, home).code == "pack-not-trusted"


def test_signature_of_a_trusted_key(pack: Path, home: Path, tmp_path: Path) -> None:
    key_id = signing.generate_key(tmp_path / "release", "for tests")
    assert signing.sign_pack(pack, tmp_path / "release") == tmp_path / "x.fpk.sig"
    assert key_id in refused(pack, home).what  # signed, but nobody trusts the key yet
    trust_key(home, tmp_path / "release")
    with open_pack(pack, state_dir=home, config_dir=home) as opened:
        assert opened.trust == trust.TrustState("signed", f"release.pub ({key_id})")


def test_signature_of_another_pack_or_purpose(pack: Path, home: Path, tmp_path: Path) -> None:
    signing.generate_key(tmp_path / "release")
    trust_key(home, tmp_path / "release")
    other = write_minimal_pack(tmp_path / "y.fpk", None, minimal_manifest(endpoints=["chat"]))
    signing.sign_pack(other, tmp_path / "release")
    os.rename(tmp_path / "y.fpk.sig", tmp_path / "x.fpk.sig")
    assert refused(pack, home).code == "pack-signature-invalid"
    key = signing.read_private_key(tmp_path / "release")
    with PackFile(pack) as file:
        bare = key.sign(bytes.fromhex(file.manifest_sha256))  # without the domain prefix
    text = signing.sign_pack(pack, key).read_text().split(" ")
    (tmp_path / "x.fpk.sig").write_text(f"{text[0]} {text[1]} {trust.base64.b64encode(bare).decode()}\n")
    assert refused(pack, home).code == "pack-signature-invalid"


def test_every_bit_of_a_signature_counts(pack: Path, home: Path, tmp_path: Path) -> None:
    signing.generate_key(tmp_path / "release")
    trust_key(home, tmp_path / "release")
    sig = signing.sign_pack(pack, tmp_path / "release")
    good = sig.read_bytes()
    for place in range(len(good)):
        for bit in range(8):
            sig.write_bytes(good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :])
            refused(pack, home)
    for bad in (b"", good[:-1], good + b"\n", good * 2, b"x" * 5000, good.replace(b" ", b"\t")):
        sig.write_bytes(bad)
        refused(pack, home)
    sig.write_bytes(good)
    open_pack(pack, state_dir=home, config_dir=home).close()


def test_a_signature_file_that_is_no_file(pack: Path, home: Path) -> None:
    os.mkfifo(f"{pack}.sig")
    assert refused(pack, home).code == "file-unreadable"
    os.unlink(f"{pack}.sig")
    os.mkdir(f"{pack}.sig")
    assert refused(pack, home).code == "file-unreadable"


def test_a_damaged_pack_is_not_signed(pack: Path, tmp_path: Path) -> None:
    data = bytearray(pack.read_bytes())
    data[read_manifest(pack).members[4].offset] ^= 1
    pack.write_bytes(data)
    with pytest.raises(FerrumError, match="SHA-256.*weights"):
        signing.sign_pack(pack, Ed25519PrivateKey.generate())
    assert not (tmp_path / "x.fpk.sig").exists()


def test_keys(tmp_path: Path, home: Path) -> None:
    key_id = signing.generate_key(tmp_path / "k", "Jane, release key")
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    assert trust.key_id_of(trust.read_public_key(tmp_path / "k.pub")) == key_id
    with pytest.raises(FerrumError, match="already"):
        signing.generate_key(tmp_path / "k")
    with pytest.raises(FerrumError, match="printable"):
        signing.generate_key(tmp_path / "l", "a\nb")
    (tmp_path / "k").chmod(0o644)
    with pytest.raises(FerrumError, match="others can read"):
        signing.read_private_key(tmp_path / "k")
    (tmp_path / "m").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    (tmp_path / "m").chmod(0o600)
    with pytest.raises(FerrumError, match="Ed25519"):
        signing.read_private_key(tmp_path / "m")
    with pytest.raises(FerrumError, match="no such key"):
        signing.read_private_key(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "ssh-ed25519 AAAA", "ferrum-ed25519 AAAA", "ferrum-ed25519 !", "é", "ferrum-ed25519"])
def test_a_bad_trusted_key_is_named(pack: Path, home: Path, tmp_path: Path, text: str) -> None:
    signing.generate_key(tmp_path / "k")
    signing.sign_pack(pack, tmp_path / "k")
    trust_key(home, tmp_path / "k")
    (home / "trusted" / "bad.pub").write_text(text)
    assert "bad.pub" in str(refused(pack, home))


def test_an_open_folder_of_keys_does_not_count(pack: Path, home: Path, tmp_path: Path) -> None:
    signing.generate_key(tmp_path / "k")
    signing.sign_pack(pack, tmp_path / "k")
    trust_key(home, tmp_path / "k")
    (home / "trusted").chmod(0o777)
    assert refused(pack, home).code == "trust-folder-unsafe"


def test_a_home_that_cannot_be_written_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(FerrumError) as caught:
        write_minimal_pack(tmp_path / "x.fpk", tmp_path / "home")
    assert caught.value.code == "trust-folder-unwritable" and "FERRUM_HOME" in caught.value.next_step
    assert os.listdir(tmp_path) == ["home"]
