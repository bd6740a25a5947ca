"""Files of a model's folder by names that a file of it gives."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ferrum.errors import FerrumError
from ferrum.pack.names import check_relative_path


def inside(folder: Path, name: str) -> Path:
    """The regular file ``name`` of ``folder``. A link may lead to the hub cache's blobs beside ``folder``, nowhere else."""
    check_relative_path(name, folder.name)
    root = Path(os.path.realpath(folder))
    target = Path(os.path.realpath(root / name))
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parent.parent / "blobs")
    if not any(target.is_relative_to(allowed) for allowed in roots):
        raise FerrumError(
            "bad-path", f"{name!r} leads out of its folder through a link", folder.name, "use a plain copy of the file"
        )
    try:
        mode = target.stat().st_mode
    except OSError as error:
        raise FerrumError("checkpoint-unreadable", f"cannot be read: {error.strerror}", name, "download it again") from None
    if not stat.S_ISREG(mode):
        raise FerrumError("bad-path", f"{name!r} is not a regular file", folder.name, "use a plain copy of the file")
    return target
