"""Static proof: registers, spills, shared memory and watched instructions of every kernel of a cubin.

``cuobjdump`` and ``nvdisasm`` come from the package index; without them a pack is made without the record.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import msgspec

from ferrum.codegen.kernels.gpu import GpuKernel
from ferrum.codegen.plan import Plan, gpu_kernels
from ferrum.codegen.target import GpuTarget
from ferrum.errors import FerrumError
from ferrum.pack.launches import ThreadBlocks
from ferrum.pack.static import WAIT, KernelStatic, StaticProof

# Matrix instructions (16-bit, integer), asynchronous copies, matrix loads, accesses to local memory, the wait of an early start.
WATCHED = ("HMMA", "IMMA", "QMMA", "LDGSTS", "LDSM", "STL", "LDL", WAIT)
_USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
_SECTION = re.compile(r"^\.text\.(\w+):", re.M)
_INSTRUCTION = re.compile(r"\*/\s+(?:@!?U?P\w+ )?(" + "|".join(WATCHED) + r")\b")


@cache
def find_tool(name: str) -> str:
    """The path of a CUDA binary tool: from the package index, else on PATH; empty when it is in neither."""
    for folder in sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin"), reverse=True):
        if (folder / name).is_file():
            return str(folder / name)
    return shutil.which(name) or ""


def _run(tool: str, *args: str) -> str:
    result = subprocess.run([find_tool(tool), *args], capture_output=True, text=True, check=False)
    if result.returncode:
        raise FerrumError(
            "toolchain-failed", f"{tool} failed: {result.stderr.strip()[:200]}", find_tool(tool), "use another version"
        )
    return result.stdout


def listings(code: bytes) -> dict[str, str]:
    """The instructions of each function of a cubin, as ``nvdisasm`` writes them."""
    with tempfile.TemporaryDirectory(prefix="ferrum-cubin-") as folder:
        path = Path(folder) / "step.cubin"
        path.write_bytes(code)
        parts = _SECTION.split(_run("nvdisasm", "-c", str(path)))[1:]
    return dict(zip(parts[0::2], parts[1::2], strict=True))


def inspect(code: bytes, kernels: dict[str, tuple[GpuKernel, int]], target: GpuTarget) -> StaticProof:
    """What the cubin ``code`` has of each kernel; ``kernels``: by symbol, with the dynamic shared bytes of its launches."""
    with tempfile.TemporaryDirectory(prefix="ferrum-cubin-") as folder:
        path = Path(folder) / "step.cubin"
        path.write_bytes(code)
        usage = {
            m[1]: tuple(map(int, m.groups()[1:])) for m in _USAGE.finditer(_run("cuobjdump", "--dump-resource-usage", str(path)))
        }
    listing = listings(code)
    records = []
    for symbol, (kernel, dynamic) in sorted(kernels.items()):
        registers, stack, static = usage[symbol]
        found = Counter(_INSTRUCTION.findall(listing[symbol]))
        records.append(
            KernelStatic(
                symbol=symbol,
                registers=registers,
                stack=stack,
                spills=found["STL"],
                shared=static + dynamic,
                shared_limit=target.shared_bytes,
                instructions=dict(sorted(found.items())),
                expected=_expected(kernel, target),
            )
        )
    return StaticProof(tools=" ".join(_version(tool) for tool in ("cuobjdump", "nvdisasm")), kernels=records)


def _expected(kernel: GpuKernel, target: GpuTarget) -> dict[str, int]:
    """What the kernel counts on, without the instructions that the target does not have."""
    lacking = {name for name, there in (("HMMA", target.has_bf16), ("LDGSTS", target.has_async_copy)) if not there}
    found = {name: count for name, count in kernel.expects().items() if name not in lacking}
    return found | ({WAIT: 1} if target.has_early_start else {})


@cache
def _version(tool: str) -> str:
    found = re.search(r"V([\d.]+)", _run(tool, "--version"))
    return f"{tool} {found[1] if found else ''}".strip()


def static_record(code: bytes, plan: Plan, target: GpuTarget) -> bytes:
    """The member ``code/static.json`` of a CUDA pack; empty where there is no machine code or no tool to read it."""
    if target.device != "cuda" or not find_tool("cuobjdump") or not find_tool("nvdisasm"):
        return b""
    dynamic: dict[str, int] = {}
    for launch in plan.table.launches:
        if isinstance(launch.on, ThreadBlocks):
            dynamic[launch.symbol] = max(launch.on.shared, dynamic.get(launch.symbol, 0))
    kernels = {kernel.symbol: (kernel, dynamic[kernel.symbol]) for kernel in gpu_kernels(plan)}
    return msgspec.json.encode(inspect(code, kernels, target), order="sorted")
