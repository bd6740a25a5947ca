"""GGUF files byte by byte, so that each of them can be wrong; mutants of a whole one."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import numpy as np

_NUMBERS = [0, 1, 2, 8, 9, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]
_KINDS = {"u32": (4, "<I"), "i32": (5, "<i"), "f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q")}


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(kind: str, given: Any) -> bytes:
    """Type and value: u32, i32, f32, bool, u64, str, or a list of one of them (``[str``)."""
    if kind == "str":
        return struct.pack("<I", 8) + text(given)
    if kind.startswith("["):
        parts = [value(kind[1:], item) for item in given]
        number = parts[0][:4] if parts else struct.pack("<I", 8 if kind == "[str" else _KINDS[kind[1:]][0])
        return struct.pack("<I", 9) + number + struct.pack("<Q", len(parts)) + b"".join(part[4:] for part in parts)
    number_, form = _KINDS[kind]
    return struct.pack("<I", number_) + struct.pack(form, given)


def tensor(name: str | bytes, dims: tuple[int, ...], kind: int, at: int) -> bytes:
    """``dims`` with the fastest first, as the file has them."""
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, at)


def file(
    pairs: list[tuple[str, bytes]], tensors: list[bytes], data: bytes, *, version: int = 3, alignment: int = 32,
    counts: tuple[int, int] | None = None,
) -> bytes:  # fmt: skip
    number = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, *number) + b"".join(text(key) + given for key, given in pairs)
    head += b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + data


def small() -> bytes:
    """A whole file: every kind of value, an array of arrays, tensors of a plain and of a blocked type."""
    pairs = [
        ("general.architecture", value("str", "llama")),
        ("llama.block_count", value("u32", 1)),
        ("llama.rope.freq_base", value("f32", 10000.0)),
        ("a.flag", value("bool", True)),
        ("a.long", value("u64", 1 << 40)),
        ("a.numbers", value("[i32", [1, -2, 3])),
        ("a.arrays", value("[[u32", [[1, 2], [3]])),
        ("tokenizer.ggml.tokens", value("[str", ["a", "b", "é", ""])),
    ]
    blocks = np.arange(4 * 34, dtype=np.uint8).tobytes()
    tensors = [tensor("x", (4, 2), 0, 0), tensor("y", (64, 2), 8, 32), tensor("z", (3,), 1, 192)]
    return file(pairs, tensors, np.arange(8, dtype="<f4").tobytes() + blocks + b"\0" * 24 + b"\0\x3c" * 3)


def mutant(raw: bytes, seed: int) -> bytes:
    """A copy with one to four changes, most of them in the header: bits, bytes, numbers, cuts, repeats."""
    chance, data = random.Random(seed), bytearray(raw)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data)) if data and chance.random() < 0.2 else chance.randrange(max(1, min(len(data), 600)))
        match chance.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at : at + 8] = struct.pack("<Q", chance.choice(_NUMBERS))
            case 2:
                data[at : at + 4] = struct.pack("<I", chance.choice([0, 7, 8, 9, 13, 41, 255, 1 << 31]))
            case 3:
                del data[at : at + chance.randint(1, 40)]
            case 4:
                data[at:at] = data[at : at + chance.randint(1, 64)]
            case _:
                del data[chance.randrange(len(data) + 1) :]
    return bytes(data)


def put(folder: Path, raw: bytes, name: str = "model.gguf") -> Path:
    path = folder / name
    path.write_bytes(raw)
    return path
