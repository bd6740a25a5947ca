"""What decoding should take on GPUs, from plans and machine code: ``make docs`` puts it into docs/targets.md.

A step of one sequence is its launches one after the other. Each takes what its bytes need at the card's reading speed or, where
that is more, what its instructions need at the rate at which they are issued; and between two launches there is a gap. The
constants are named in ``Card`` and shown above the table, so that a measurement can say which of them is wrong.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from ferrum.codegen.kernels.cases import counts
from ferrum.codegen.kernels.linear.small import SmallLinear
from ferrum.codegen.kernels.paged_attention import BLOCK_SIZE, PagedAttention
from ferrum.codegen.plan import Plan
from ferrum.codegen.render import render_kernels, templates_digest
from ferrum.codegen.static import find_tool
from ferrum.codegen.target import BY_NAME, GPU_TARGETS, GpuTarget
from ferrum.codegen.toolchains.gpu import find_gpu_toolchain
from ferrum.pack.launches import taken
from tests.bench.gpu_models import SHAPES

PAGE = Path("docs/targets.md")
CONTEXT = 256
MODELS = (("0.6b", "none"), ("4b", "none"), ("8b", "int4-g128"))
_BEGIN, _END = "<!-- predicted, stamp {} -->", "<!-- predicted ends -->"
_SCHEDULERS = 4  # of a multiprocessor: each issues one instruction of a warp a cycle
_LABEL = re.compile(r"^(\.L_x_\d+):")
_BRANCH = re.compile(r"BRA[\w.]* .*`\((\.L_x_\d+)\)")
_CODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+\S")


@dataclass(frozen=True)
class Card:
    """``read_gb_per_s``: of memory, at most; ``reached``: the share of it that a kernel of ours should reach.

    ``launch_us``: between the end of one kernel in a recording and the first byte of the next. ``ghz``: 0 where machine code is
    not known before the first load, so instructions cannot be counted.
    """

    name: str
    target: str
    read_gb_per_s: float
    reached: float
    launch_us: float
    ghz: float

    @property
    def warp_instructions_per_us(self) -> float:
        target = BY_NAME[self.target]
        assert isinstance(target, GpuTarget)
        return 1e3 * self.ghz * _SCHEDULERS * target.units


CARDS = (
    Card("H200", "cuda-sm90", 4300, 0.90, 2.0, 1.83),
    Card("RTX 4090", "cuda-sm89", 1008, 0.92, 2.4, 2.52),
    Card("B200", "cuda-sm100", 7200, 0.90, 2.0, 1.85),
    Card("M1 Max", "metal-m1", 400, 0.85, 3.0, 0),
    Card("M4 Max", "metal-m4", 546, 0.85, 2.5, 0),
)


@dataclass(frozen=True)
class Work:
    """Of some launches: bytes that cross memory, instructions of warps in products (0: not known)."""

    launches: float = 0
    nbytes: float = 0
    instructions: float = 0


def step_of(plan: Plan, context: int, instructions: dict[str, float]) -> Iterator[Work]:
    """One launch after the other of a greedy step of one sequence with ``context`` tokens."""
    rows = counts(1, blocks_per_seq=-(-context // BLOCK_SIZE))
    for launch, (_, kernel) in zip(plan.table.launches, plan.launched, strict=True):
        if taken(launch, "decode", rows):
            cost = kernel.cost()
            cache = kernel.num_kv_heads * kernel.head_bytes * context / BLOCK_SIZE if isinstance(kernel, PagedAttention) else 0
            yield Work(1, cost.weight_bytes + cost.row_bytes + cache, instructions.get(kernel.symbol, 0))


def loops(listing: str) -> Iterator[tuple[int, int]]:
    """(first, last line) of what a branch back repeats."""
    places: dict[str, int] = {}
    for number, line in enumerate(listing.splitlines()):
        if found := _LABEL.match(line):
            places[found[1]] = number
        elif (branch := _BRANCH.search(line)) and branch[1] in places:
            yield places[branch[1]], number


def count_instructions(listing: str, kernel: SmallLinear) -> float:
    """Of all warps of a launch: the loop over chunks as often as there are any, the rest once a warp."""
    lines = listing.splitlines()
    products = (lines[a : b + 1] for a, b in loops(listing) if any("HMMA" in line for line in lines[a:b]))
    whole, loop = _instructions(lines), min(map(_instructions, products), default=0)
    return kernel.blocks * (kernel.weight.chunks * loop + kernel.splits * kernel.warps * (whole - loop))


def _instructions(lines: list[str]) -> int:
    return sum(bool(_CODE.search(line)) for line in lines)


def instructions_of(plan: Plan, target: GpuTarget) -> dict[str, float]:
    """By symbol, for the products of one row; nothing for targets whose machine code is made elsewhere."""
    products = [k for k in plan.kernels if isinstance(k, SmallLinear) and k.row_tiles == 1]
    if target.device != "cuda" or not products:
        return {}
    code = find_gpu_toolchain(target).compile(render_kernels("predicted", products, target, "0" * 64), target)
    with tempfile.TemporaryDirectory(prefix="ferrum-predict-") as folder:
        path = Path(folder) / "step.cubin"
        path.write_bytes(code)
        text = subprocess.run([find_tool("nvdisasm"), "-c", str(path)], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\.text\.(\w+):", text, flags=re.M)[1:]
    listing = dict(zip(parts[0::2], parts[1::2], strict=True))
    return {kernel.symbol: count_instructions(listing[kernel.symbol], kernel) for kernel in products}


def microseconds(work: Work, card: Card) -> float:
    """Of one launch, without the gap."""
    reading = work.nbytes / (1e3 * card.read_gb_per_s * card.reached)
    return max(reading, work.instructions / card.warp_instructions_per_us if card.ghz else 0)


def whole_step(name: str, quant: str, card: Card, folder: Path) -> tuple[Work, float]:
    """All launches together and the step's microseconds. All layers are alike: two and three of them tell of any number."""
    from tests.bench.gpu_prepare import plan_of

    target = BY_NAME[card.target]
    assert isinstance(target, GpuTarget)
    config, found, counted = SHAPES[name], [], {}
    for layers in (3, 2):
        few = config | {"num_hidden_layers": layers}
        plan = plan_of(few, quant, target, folder / f"{name}-{layers}")[2]
        counted = counted or instructions_of(plan, target)
        steps = list(step_of(plan, CONTEXT, counted))
        sums = [sum(values) for values in zip(*map(astuple, steps), strict=True)]
        found.append([*sums, sum(microseconds(step, card) + card.launch_us for step in steps)])
    many = config["num_hidden_layers"]
    launches, nbytes, instructions, time = (two + (many - 2) * (three - two) for three, two in zip(*found, strict=True))
    return Work(launches, nbytes, instructions), time


def table(folder: Path) -> str:
    """The constants and what follows from them, as Markdown."""
    lines = ["| GPU | target | reads GB/s, at most | of it reached | µs between launches | GHz |", "|---|---|---|---|---|---|"]
    for c in CARDS:
        lines.append(f"| {c.name} | `{c.target}` | {c.read_gb_per_s:,.0f} | {c.reached:.2f} | {c.launch_us} | {c.ghz or '–'} |")
    lines += ["", "| model | GPU | launches | GB | M instructions | µs of launches | µs of memory | tokens/s |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, quant in MODELS:
        for card in CARDS:
            work, time = whole_step(name, quant, card, folder)
            gaps, reading = work.launches * card.launch_us, work.nbytes / (1e3 * card.read_gb_per_s * card.reached)
            shown = f"{work.instructions / 1e6:.1f}" if work.instructions else "–"
            form = "bf16" if quant == "none" else quant
            lines.append(
                f"| {name} {form} | {card.name} | {work.launches:.0f} | {work.nbytes / 1e9:.2f} | {shown} | {gaps:.0f} "
                f"| {reading:.0f} | {1e6 / time:,.0f} |"
            )
    return "\n".join(lines)


def stamp() -> str:
    """Changes with what the table is made from: templates, kernels, planner, formats, targets, this file."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256("".join(map(templates_digest, ("cuda", "metal"))).encode())
    digest.update(repr((GPU_TARGETS, SHAPES)).encode())
    files = (*(root / "codegen/kernels").rglob("*.py"), root / "codegen/plan.py", root / "codegen/policy.py")
    for path in (*sorted(files), Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def stamp_of(page: str) -> str:
    """The stamp of the table on a page; empty where there is none."""
    found = re.search(_BEGIN.format("([0-9a-f]*)"), page)
    return found[1] if found else ""


def put(page: str, text: str) -> str:
    """The page with ``text`` in the place of the table that it has."""
    start, stop = page.index(_BEGIN.format(stamp_of(page))), page.index(_END)
    return f"{page[:start]}{_BEGIN.format(stamp())}\n{text}\n{page[stop:]}"


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    if stamp_of(page) != stamp():
        with tempfile.TemporaryDirectory(prefix="ferrum-predict-") as folder:
            PAGE.write_text(put(page, table(Path(folder))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
