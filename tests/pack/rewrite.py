"""A pack written again with other bytes in it: every hash is right, only its content is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from ferrum.pack.reader import open_pack
from ferrum.pack.writer import PackWriter

Edit = Callable[[dict[str, bytearray]], None]


def rewrite(source: Path, target: Path, edit: Edit) -> Path:
    """``edit`` changes the members' bytes by name. The result is signed by nobody and recorded nowhere."""
    with open_pack(source, trust=True) as pack:
        manifest = pack.manifest
        data = {record.name: bytearray(pack.member(record.name)) for record in manifest.members}
        tensors = len(manifest.tensors)
    edit(data)
    with PackWriter(target, manifest_room=(64 + tensors) * 16384) as writer:
        for name, content in data.items():
            writer.add(name, bytes(content))
        return writer.finish(msgspec.structs.replace(manifest, members=[]), record=False)


def turn_signs(source: Path, name: str, start: int, nbytes: int) -> Edit:
    """Flip the sign of each bf16 (or each byte's highest bit) in a piece of the tensor ``name``."""
    with open_pack(source, trust=True) as pack:
        tensor = next(t for t in pack.manifest.tensors if t.name == name)
    assert start + nbytes <= tensor.nbytes

    def edit(data: dict[str, bytearray]) -> None:
        for at in range(tensor.offset + start, tensor.offset + start + nbytes):
            data["weights"][at] ^= 0x80

    return edit
