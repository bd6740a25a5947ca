"""Who may bring machine code here: packs built on this machine, packs signed by a trusted key, packs the user allows.

What is trusted is the SHA-256 of the manifest's bytes (with its padding); the manifest carries the SHA-256 of every
other member. Records are files ``<state>/built/<sha256>``, trusted keys are ``<config>/trusted/*.pub``; both folders must
belong to the user (or root) and be closed to writing by others.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ferrum import env
from ferrum.errors import FerrumError
from ferrum.pack.atomic import write_atomic
from ferrum.pack.names import is_sha256

_DOMAIN = b"ferrum pack signature 1\0"
SIGNATURE_WORD = "ferrum-signature-1"
KEY_WORD = "ferrum-ed25519"
_MAX_TEXT = 4096  # bytes of a key or signature file
_MAX_KEYS = 1000


@dataclass(frozen=True)
class TrustState:
    """Why a pack may be opened. ``key`` names the trusted key of a signature: ``file name (key id)``."""

    kind: Literal["built-here", "signed", "allowed"]
    key: str = ""


def default_state_dir() -> Path:
    """Where this user's records are."""
    return env.home()


def default_config_dir() -> Path:
    """Where this user's folder of trusted keys is."""
    return env.home()


def record_built(manifest_sha256: str, state_dir: Path, name: str) -> None:
    """Note that this machine built the pack with this manifest; ``name`` is only for people who look."""
    if not is_sha256(manifest_sha256):
        raise ValueError("not a SHA-256")
    folder = state_dir / "built"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError as error:
        raise FerrumError(
            "trust-folder-unwritable",
            f"cannot record that the pack was built here: {error.strerror}",
            str(folder),
            "set FERRUM_HOME to a folder that you can write to",
        ) from None
    write_atomic(folder / manifest_sha256, f"{name}\n".encode(errors="replace"), 0o600)


def is_recorded(manifest_sha256: str, state_dir: Path) -> bool:
    """Whether the pack with this manifest was built here. FerrumError when others could have written the record."""
    folder = state_dir / "built"
    try:
        if not stat.S_ISREG((folder / manifest_sha256).lstat().st_mode):
            return False
    except OSError:
        return False
    _require_private(folder)
    return True


def require_trust(
    path: Path, manifest_sha256: str, trust: bool, state_dir: Path | None = None, config_dir: Path | None = None
) -> TrustState:
    """Why the pack may be opened; FerrumError when nothing speaks for it."""
    if is_recorded(manifest_sha256, state_dir or default_state_dir()):
        return TrustState("built-here")
    if trust:
        return TrustState("allowed")
    return verify_signature(path, manifest_sha256, config_dir)


def signature_path(path: Path) -> Path:
    """``x.fpk`` → ``x.fpk.sig``."""
    return path.with_name(path.name + ".sig")


def verify_signature(path: Path, manifest_sha256: str, config_dir: Path | None = None) -> TrustState:
    """The state "signed" if ``<pack>.sig`` is a valid signature by a trusted key; FerrumError otherwise."""
    where = signature_path(path)
    text = read_small_text(where)
    if text is None:
        raise FerrumError(
            "pack-not-trusted",
            "a pack holds machine code, and this one was not built here and has no signature",
            str(path),
            "get it with its .sig file and trust the key, or pass --trust",
        )
    key_id, signature = _parse_signature(text, where)
    for file, raw in trusted_keys(config_dir).items():
        if key_id_of(raw) == key_id:
            if not _is_valid(raw, signature, manifest_sha256):
                raise FerrumError(
                    "pack-signature-invalid",
                    "the signature does not fit the pack",
                    str(where),
                    "get the pack and its .sig file again",
                )
            return TrustState("signed", f"{file} ({key_id})")
    raise FerrumError(
        "pack-not-trusted", f"the pack is signed by the key {key_id}, which is not trusted here", str(where),
        "put the key's .pub file into the folder of trusted keys, or pass --trust",
    )  # fmt: skip


def trusted_keys(config_dir: Path | None = None) -> dict[str, bytes]:
    """File name → raw public key (32 bytes) of all keys in ``<config>/trusted``; FerrumError for a bad file or folder."""
    folder = (config_dir or default_config_dir()) / "trusted"
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".pub"))
    except OSError:
        return {}
    _require_private(folder)
    if len(names) > _MAX_KEYS:
        raise FerrumError("key-invalid", f"{len(names)} keys are too many", str(folder), f"keep at most {_MAX_KEYS}")
    return {name: read_public_key(folder / name) for name in names}


def read_public_key(path: Path) -> bytes:
    """The 32 raw bytes of a ``.pub`` file: ``ferrum-ed25519 <base64> [comment]``."""
    words = (read_small_text(path) or "").split()
    raw = _base64(words[1]) if len(words) >= 2 and words[0] == KEY_WORD else b""
    if len(raw) != 32:
        raise FerrumError("key-invalid", "not a public key of ferrum", str(path), "get the key again, or remove the file")
    return raw


def key_id_of(raw: bytes) -> str:
    """16 hexadecimal digits that name a public key: the start of its SHA-256."""
    return hashlib.sha256(raw).hexdigest()[:16]


def signed_message(manifest_sha256: str) -> bytes:
    """What is signed; the prefix keeps a signature made for another purpose from fitting here."""
    return _DOMAIN + bytes.fromhex(manifest_sha256)


def _is_valid(raw: bytes, signature: bytes, manifest_sha256: str) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, signed_message(manifest_sha256))
    except (InvalidSignature, ValueError):
        return False
    return True


def _parse_signature(text: str, where: Path) -> tuple[str, bytes]:
    words = text.split(" ")
    if len(words) == 3 and words[0] == SIGNATURE_WORD and words[2].endswith("\n"):
        signature = _base64(words[2][:-1])
        if len(words[1]) == 16 and words[1].isalnum() and len(signature) == 64:
            return words[1], signature
    raise FerrumError("pack-signature-invalid", "the file is not a signature of ferrum", str(where), "get the .sig file again")


def _base64(text: str) -> bytes:
    """The decoded bytes; none unless ``text`` is their only spelling (the last letter can carry bits that mean nothing)."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return data if base64.b64encode(data).decode() == text else b""


def read_small_text(path: Path) -> str | None:
    """A small ASCII file; None when there is none. FerrumError when it is large, not regular or not ASCII."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FerrumError("file-unreadable", f"cannot read: {reason}", str(path), "check its permissions") from None
    try:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        data = os.read(fd, _MAX_TEXT + 1) if regular else b""
    except OSError as error:
        raise FerrumError("file-unreadable", f"cannot read: {error.strerror}", str(path), "check the disk") from None
    finally:
        os.close(fd)
    if not regular or len(data) > _MAX_TEXT or not data.isascii():
        raise FerrumError("file-unreadable", f"not an ASCII file of at most {_MAX_TEXT} bytes", str(path), "get it again")
    return data.decode("ascii")


def _require_private(folder: Path) -> None:
    info = folder.stat()
    if info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022:
        raise FerrumError(
            "trust-folder-unsafe", "others can write to the folder that says what is trusted", str(folder), "chmod 700 the folder"
        )
