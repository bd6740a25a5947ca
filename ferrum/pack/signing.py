"""Making keys and signatures: what the publisher of packs does. Whom to trust is in ``ferrum/pack/trust.py``."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ferrum.errors import FerrumError
from ferrum.pack.atomic import write_atomic
from ferrum.pack.names import is_label
from ferrum.pack.reader import PackFile
from ferrum.pack.trust import KEY_WORD, SIGNATURE_WORD, key_id_of, read_small_text, signature_path, signed_message

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def generate_key(path: Path, comment: str = "") -> str:
    """Write a new private key to ``path`` (PEM, mode 0600) and its public key to ``<path>.pub``; returns the key's id.

    Raises FerrumError when either file is already there: a key must not be lost to a slip.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    public = path.with_name(path.name + ".pub")
    for file in (path, public):
        if os.path.lexists(file):
            raise FerrumError("key-exists", "there is already a file", str(file), "choose another name")
    if not is_label(comment):
        raise FerrumError("key-invalid", "the comment is too long or not printable", str(path), "choose another comment")
    key = Ed25519PrivateKey.generate()
    raw = key.public_key().public_bytes_raw()
    write_atomic(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    line = f"{KEY_WORD} {base64.b64encode(raw).decode()} {comment}".rstrip() + "\n"
    write_atomic(public, line.encode(), 0o644)
    return key_id_of(raw)


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The key in a PEM file that ``generate_key`` wrote. FerrumError when it is another thing or others can read it."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = read_small_text(path)
    if text is None:
        raise FerrumError("key-invalid", "there is no such key", str(path), "check the path")
    if path.stat().st_mode & 0o077:
        raise FerrumError("key-invalid", "others can read the private key", str(path), "chmod 600 the file")
    try:
        key = load_pem_private_key(text.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise FerrumError("key-invalid", "not an unencrypted Ed25519 private key in PEM form", str(path), "check the path")
    return key


def sign_pack(path: Path, private_key: Ed25519PrivateKey | Path) -> Path:
    """Check every byte of the pack, then write ``<pack>.sig``; returns its path."""
    key = read_private_key(private_key) if isinstance(private_key, Path) else private_key
    with PackFile(path) as file:
        for member in file.manifest.members:
            file.check_member(member)
        signature = key.sign(signed_message(file.manifest_sha256))
    key_id = key_id_of(key.public_key().public_bytes_raw())
    target = signature_path(path)
    write_atomic(target, f"{SIGNATURE_WORD} {key_id} {base64.b64encode(signature).decode()}\n".encode())
    return target
