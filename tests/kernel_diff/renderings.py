"""What a tree renders for an entry of the zoo: its source in pieces, the order of launches, the plan without names."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.kernel_diff.c_source import entries, parse_c
from tests.kernel_diff.machine_code import REST
from tests.kernel_diff.text import Closure, Unit

_HASH = re.compile(r"_[0-9a-f]{10}(?=_|$)")


@dataclass(frozen=True)
class Summary:
    """All that is stored of a rendering: kernels in the order of their first launch, each a name for people and a digest of its
    text; the kernel of each launch; digests of the plan and of what no kernel uses (a CPU's library)."""

    kernels: tuple[tuple[str, str], ...]
    launches: tuple[int, ...]
    plan: str
    rest: str

    def plain(self) -> list[Any]:
        return [[f"{name} {digest}" for name, digest in self.kernels], " ".join(map(str, self.launches)), self.plan, self.rest]

    @staticmethod
    def of(plain: list[Any]) -> Summary:
        kernels, launches, plan, rest = plain
        return Summary(tuple(tuple(k.split()) for k in kernels), tuple(map(int, launches.split())), plan, rest)


@dataclass(frozen=True)
class Rendering:
    """``error`` is what the tree said instead of rendering."""

    source: str = ""
    plan: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @staticmethod
    def read(folder: Path) -> Rendering:
        if (folder / "error.txt").exists():
            return Rendering(error=(folder / "error.txt").read_text(encoding="utf-8").strip().splitlines()[-1])
        source = next(folder.glob("source.*")).read_text(encoding="utf-8")
        return Rendering(source, json.loads((folder / "plan.json").read_text(encoding="utf-8")))

    @cached_property
    def unit(self) -> Unit:
        return parse_c(self.source)

    @property
    def table(self) -> dict[str, Any]:
        """Launches and slots: of a GPU a table of its own beside the plan; empty in trees that did not dump it."""
        return next((t for t in (self.plan.get("table"), self.plan) if t and "launches" in t), {})

    @cached_property
    def launched(self) -> list[str]:
        """The kernel of each launch; without a table the kernels as they stand in the source."""
        return [launch["symbol"] for launch in self.table.get("launches", ())] or entries(self.source)

    @cached_property
    def symbols(self) -> list[str]:
        return list(dict.fromkeys(self.launched))

    def closure(self, symbol: str) -> Closure:
        if symbol != REST:
            return self.unit.closure([symbol])
        used = set(self.unit.reached(self.symbols))
        rest = [n for i, piece in enumerate(self.unit.pieces) if i not in used for n in sorted(piece.names)]
        return self.unit.closure(rest, frozenset(self.symbols))

    @cached_property
    def has_rest(self) -> bool:
        """Only a CPU's source is a whole library; what a GPU's has besides kernels is code of none."""
        return not entries(self.source)

    @cached_property
    def plan_lines(self) -> list[str]:
        """The plan, a launch or a slot a line; kernels are numbers."""
        if not self.table:
            return []
        number = {symbol: f"kernel {i}" for i, symbol in enumerate(self.symbols)}
        lines = [
            json.dumps({"kernel": number[launch["symbol"]]} | {k: v for k, v in sorted(launch.items()) if k != "symbol"})
            for launch in self.table["launches"]
        ]
        lines += [f"slot {json.dumps(slot, sort_keys=True)}" for slot in self.table.get("slots", ())]
        return [*lines, *(f"{k} = {self.table[k]}" for k in ("logits_slot", "scratch_bytes") if k in self.table)]

    @cached_property
    def summary(self) -> Summary:
        if self.error:
            return Summary((), (), self.error, "")
        index = {symbol: i for i, symbol in enumerate(self.symbols)}
        plan = hashlib.sha256("\n".join(self.plan_lines).encode()).hexdigest()[:12]
        return Summary(
            tuple((plain_name(symbol), self.closure(symbol).digest) for symbol in self.symbols),
            tuple(index[symbol] for symbol in self.launched),
            plan,
            self.closure(REST).digest if self.has_rest else "",
        )


def plain_name(symbol: str) -> str:
    """A kernel's name without the digest of its parameters."""
    return _HASH.sub("", symbol)
