"""Long constants beside a graph's text, which names them by digest: the file ``.constants`` of a dump, a member of a pack.

Each is its SHA-256 (32 bytes), how many numbers it has (8 bytes), and these as float64, little-endian; in the order of digests.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ferrum.errors import FerrumError
from ferrum.graphs.expressions.sources import Constant, Floats
from ferrum.graphs.ir import Graph
from ferrum.graphs.text import LONGEST_DATA, parse_graph, print_graph

SUFFIX = ".constants"
_HEAD = struct.Struct("<32sQ")


def encode_constants(graph: Graph) -> bytes:
    """The constants that the graph's text leaves out; empty when it holds all of them."""
    sources = [p.source for p in graph.params if isinstance(p.source, Constant)]
    found = {source.digest: source.values for source in sources if source.values.size > LONGEST_DATA}
    pieces = (_HEAD.pack(bytes.fromhex(digest), v.size) + v.astype("<f8").tobytes() for digest, v in sorted(found.items()))
    return b"".join(pieces)


def decode_constants(data: bytes, where: str) -> Mapping[str, Floats]:
    """Constants by digest. Raises FerrumError (graph-unreadable) for a file that ends too early or holds other numbers."""
    found: dict[str, Floats] = {}
    at = 0
    while at < len(data):
        head = data[at : at + _HEAD.size]
        digest, count = _HEAD.unpack(head) if len(head) == _HEAD.size else (b"", 0)
        at += _HEAD.size
        values = np.frombuffer(data[at : at + 8 * count], "u1")
        at += 8 * count
        constant = Constant(values.view("<f8")) if len(values) == 8 * count else None
        if constant is None or constant.digest != digest.hex():
            raise FerrumError("graph-unreadable", "the constants are damaged", where, "make the dump again")
        found[constant.digest] = constant.values
    return found


def save_graph(graph: Graph, path: Path) -> None:
    """The graph's text at ``path`` and, where it has long constants, these beside it."""
    path.write_text(print_graph(graph), encoding="utf-8")
    constants = encode_constants(graph)
    if constants:
        path.with_suffix(SUFFIX).write_bytes(constants)
    else:
        path.with_suffix(SUFFIX).unlink(missing_ok=True)


def read_graph(path: Path) -> Graph:
    """What ``save_graph`` wrote. Raises OSError, UnicodeDecodeError and FerrumError (graph-text, graph-unreadable)."""
    beside = path.with_suffix(SUFFIX)
    constants = decode_constants(beside.read_bytes(), str(beside)) if beside.exists() else {}
    return parse_graph(path.read_text(encoding="utf-8"), constants)
