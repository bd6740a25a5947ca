"""Functions of a model's own files, replaced by ours while it is traced."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ferrum.graphs.frontend import expert_loops, recurrences

TABLE = {**recurrences.TABLE, **expert_loops.TABLE}


@contextmanager
def functions_of_ours(model: nn.Module) -> Iterator[None]:
    """The files of ``model``'s modules call the tables' functions; afterwards their own."""
    files = {type(module).__module__ for module in model.modules()} & sys.modules.keys()
    before: list[tuple[Any, str, Any]] = []
    for file in sorted(files):
        for path, ours in TABLE.items():
            *owners, name = path.split(".")
            owner: Any = sys.modules[file]
            for part in owners:
                owner = getattr(owner, part, None)
            if hasattr(owner, name):
                before.append((owner, name, getattr(owner, name)))
                setattr(owner, name, ours)
    try:
        yield
    finally:
        for owner, name, own in before:
            setattr(owner, name, own)
