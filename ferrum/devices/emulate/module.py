"""Compiled kernels and their launches on numpy arrays."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ferrum.devices.emulate import cuda, metal
from ferrum.devices.emulate.compiler import Checks, compile_unit, find_cxx
from ferrum.devices.emulate.memory import GuardedBuffer
from ferrum.errors import FerrumError

Language = Literal["cuda", "metal"]
Argument = NDArray[np.generic] | np.generic | GuardedBuffer | int


class Address(int):
    """An address for a pointer parameter: an int of another meaning would be a wild pointer."""


_REPORT_BYTES = 4096
_MAX_DYNAMIC = 256 << 10
_MAX_THREADS = 1024
_ORDERS = ("forward", "reverse", "random")
# The state of a launch is the library's own, and its handlers of signals are the process's.
_ONE_AT_A_TIME = threading.Lock()
# NaN in every float format and -1 in every integer; then numbers that maxima do not drop as they drop NaN.
_POISON = {"forward": 0xFF, "reverse": 0x7E, "random": 0xFF}


class KernelFault(FerrumError):
    """A kernel did what a device would not survive, or would answer with garbage: ``what`` says it, ``where`` names it."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__("kernel-fault", what, where, "the kernel's source is at fault: see templates/ and docs/debugging.md")


@dataclass(frozen=True)
class Schedule:
    """One legal way for a device to run a launch.

    ``order``: of threads, warps and blocks. ``copies``: asynchronous copies land at the call ("eager") or when they are
    waited for ("late"). ``stores``: what a block stored is seen by other blocks at once, or only after a fence ("late";
    costs a copy of all arrays per block). ``guard``: the side of arrays where an access out of bounds is caught to the byte.
    """

    order: Literal["forward", "reverse", "random"] = "forward"
    copies: Literal["eager", "late"] = "eager"
    stores: Literal["eager", "late"] = "eager"
    guard: Literal["end", "start"] = "end"
    seed: int = 1

    def __str__(self) -> str:
        seed = f"({self.seed})" if self.order == "random" else ""
        return f"{self.order}{seed}, {self.copies} copies, {self.stores} stores"


# What a kernel's test goes through. The first is the fastest.
SCHEDULES = (
    Schedule(),
    Schedule("forward", "late"),
    Schedule("reverse", "late", "late", "start"),
    Schedule("random", "eager", "late", seed=1),
    Schedule("random", "late", "eager", "start", seed=2),
)


@dataclass(frozen=True)
class Stats:
    """What a launch did: threads that ran, changes from one to another."""

    threads: int
    switches: int


class _Region(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_uint64), ("constant", ctypes.c_uint64)]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_bytes", ctypes.c_uint32),
        ("schedule", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("late_copies", ctypes.c_int32),
        ("late_stores", ctypes.c_int32),
        ("poison", ctypes.c_int32),
        ("num_regions", ctypes.c_int32),
        ("seconds", ctypes.c_int32),
        ("early", ctypes.c_int32),
        ("args", ctypes.c_void_p),
        ("regions", ctypes.c_void_p),
        ("shadow", ctypes.c_void_p),
        ("report", ctypes.c_void_p),
        ("threads", ctypes.c_uint64),
        ("switches", ctypes.c_uint64),
    ]


class _Kernel(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("enter", ctypes.c_void_p),
        ("shared_start", ctypes.c_void_p),
        ("shared_stop", ctypes.c_void_p),
        ("max_threads", ctypes.c_uint32),
        ("num_params", ctypes.c_int32),
        ("param_bytes", ctypes.POINTER(ctypes.c_int32)),
    ]


class Region(NamedTuple):
    """Global memory of a launch. ``constant``: no launch of a step writes it."""

    address: int
    nbytes: int
    constant: bool = False


@dataclass(frozen=True)
class KernelInfo:
    """A kernel of a module. ``params``: bytes of each parameter, 0 for a pointer, with ``metal.REFERENCE`` for a reference.
    ``shared``: bytes of static shared memory."""

    index: int
    params: tuple[int, ...]
    max_threads: int
    shared: int


class Prepared:
    """A launch whose arguments stay where they are: for many launches of the same kernels over the same memory."""

    def __init__(
        self,
        module: Module,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Address | int | np.generic],
        shared: int = 0,
        regions: Sequence[Region] = (),
        schedule: Schedule | None = None,
        seconds: int = 0,
        early: bool = False,
    ) -> None:
        """``args``: ``Address`` for pointers, numpy scalars or ints (int32) for values.

        ``regions``: for reports and late stores. ``early``: a thread that touches one that is not constant before it waits for
        the launch before (``griddepcontrol.wait``), or that never waits, is a fault; such a region fills whole pages.
        """
        schedule = schedule or SCHEDULES[0]
        self._module = module
        self._kernel = module.kernels[name]
        self._where = f"kernel {name}"
        x, y, z = _three(grid)
        block = _three(block)
        _check(name, self._kernel, (x, y, z), block, shared)
        addresses, self._keep = _values(name, self._kernel, args)
        self._args = (ctypes.c_void_p * len(addresses))(*addresses)
        self._regions = (_Region * len(regions))(*(_Region(*region) for region in regions))
        size = 3 * sum(region.nbytes for region in regions) if schedule.stores == "late" else 0
        self._shadow = np.zeros(size, np.uint8)
        self._report = ctypes.create_string_buffer(_REPORT_BYTES)
        self._launch = _Launch(
            grid=(x, y, z),
            block=block,
            dynamic_bytes=shared,
            schedule=_ORDERS.index(schedule.order),
            seed=schedule.seed,
            late_copies=schedule.copies == "late",
            late_stores=schedule.stores == "late",
            poison=_POISON[schedule.order],
            num_regions=len(regions),
            seconds=seconds,
            early=early,
            args=ctypes.addressof(self._args),
            regions=ctypes.addressof(self._regions),
            shadow=self._shadow.ctypes.data,
            report=ctypes.addressof(self._report),
        )

    def run(self) -> Stats:
        """Raises KernelFault."""
        self._shadow[:] = 0
        with _ONE_AT_A_TIME:
            failed = self._module.lib.ferrum_emulate_launch(self._kernel.index, ctypes.byref(self._launch))
        if failed:
            what, *where = self._report.value.decode("utf-8", "replace").split(" · ")
            raise KernelFault(with_lines(what, self._module.path), ", ".join([self._where, *where]))
        return Stats(self._launch.threads, self._launch.switches)


def with_lines(text: str, path: Path) -> str:
    """``text`` with its places in the code (``+0x…``) as lines of the source, where the system has a tool for it."""
    tool, places = shutil.which("addr2line"), list(dict.fromkeys(re.findall(r"\+0x[0-9a-f]+", text)))
    if not tool or not places:
        return text
    command = [tool, "-e", str(path), *(place[1:] for place in places)]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    for place, line in zip(places, lines, strict=False):
        if (found := re.search(r"([^/]+):(\d+)", line)) is not None:
            text = text.replace(place, f"line {found[2]}" if found[1] == "kernels" else f"{found[1]}:{found[2]}")
    return text


def _three(values: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*values, 1, 1)[:3]
    return int(x), int(y), int(z)


def _check(name: str, kernel: KernelInfo, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int) -> None:
    """What a driver refuses at the launch."""
    where = f"kernel {name}"
    threads = block[0] * block[1] * block[2]
    if min(grid) < 1 or min(block) < 1 or threads > _MAX_THREADS or block[2] > 64 or max(grid[1:]) > 65535:
        raise KernelFault(f"a launch of {grid} blocks of {block} threads", where)
    if kernel.max_threads and threads > kernel.max_threads:
        raise KernelFault(f"{threads} threads in a block, and the kernel's bound is {kernel.max_threads}", where)
    if shared + kernel.shared > _MAX_DYNAMIC:
        raise KernelFault(f"{shared} bytes of dynamic and {kernel.shared} of static shared memory", where)


def _values(name: str, kernel: KernelInfo, args: Sequence[Address | int | np.generic]) -> tuple[list[int], list[object]]:
    """The address of each argument's bytes, checked against the parameter it is for, and what has to be kept alive."""
    where = f"kernel {name}"
    if len(args) != len(kernel.params):
        raise KernelFault(f"{len(args)} arguments for {len(kernel.params)} parameters", where)
    addresses: list[int] = []
    keep: list[object] = []
    for i, (arg, size) in enumerate(zip(args, kernel.params, strict=True)):
        if isinstance(arg, Address) and size & metal.REFERENCE:
            addresses.append(arg)
            continue
        if isinstance(arg, Address) != (size == 0):
            raise KernelFault(f"argument {i} is {'a' if size else 'no'} pointer, and its parameter is not alike", where)
        raw = arg.to_bytes(8, "little") if isinstance(arg, Address) else _scalar(arg).tobytes()
        if size and len(raw) != size % metal.REFERENCE:
            raise KernelFault(f"argument {i} has {len(raw)} bytes, and its parameter {size % metal.REFERENCE}", where)
        value = ctypes.create_string_buffer(raw, max(len(raw), 8))
        keep.append(value)
        addresses.append(ctypes.addressof(value))
    return addresses, keep


def _scalar(value: int | np.generic) -> np.generic:
    return np.int32(value) if isinstance(value, int) else value


class Module:
    """The kernels of one source. Launches of one process run one at a time."""

    def __init__(self, path: Path, language: Language = "cuda") -> None:
        self.path = path
        self.language = language
        self.lib = ctypes.CDLL(str(path))
        self.lib.ferrum_emulate_kernels.restype = ctypes.POINTER(_Kernel)
        self.lib.ferrum_emulate_launch.argtypes = [ctypes.c_int32, ctypes.c_void_p]
        table = self.lib.ferrum_emulate_kernels()
        self.kernels: dict[str, KernelInfo] = {}
        while name := table[len(self.kernels)].name:
            row = table[len(self.kernels)]
            params = tuple(max(0, row.param_bytes[i]) for i in range(row.num_params))
            shared = (row.shared_stop or 0) - (row.shared_start or 0)
            self.kernels[name.decode()] = KernelInfo(len(self.kernels), params, row.max_threads, shared)

    def launch(
        self,
        name: str,
        *,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Argument],
        shared: int = 0,
        schedule: Schedule | None = None,
        seconds: int = 60,
        constant: Sequence[bool] | None = None,
    ) -> Stats:
        """Run one kernel; arrays among ``args`` are in and out.

        ``args`` in the order of the parameters (Metal: of the buffer indices): a contiguous array (or a ``GuardedBuffer``,
        used in place) for a pointer, a numpy scalar of the parameter's size or an int (int32) for a value. ``shared``: bytes
        of dynamic shared (threadgroup) memory. ``seconds`` of processor time end a launch that does not end by itself.
        ``constant``: the launch is an early one (see ``Prepared``), and of each argument whether no launch writes it.
        Raises KernelFault.
        """
        schedule = schedule or SCHEDULES[0]
        buffers: list[GuardedBuffer] = []
        copies: list[tuple[NDArray[np.generic], GuardedBuffer]] = []
        plain: list[Address | int | np.generic] = []
        kept: list[bool] = []
        for arg, fixed in zip(args, constant or [False] * len(args), strict=True):
            if isinstance(arg, np.ndarray):
                if not arg.flags.c_contiguous:
                    raise ValueError("array arguments must be contiguous")
                buffer = GuardedBuffer(arg.nbytes, schedule.guard)
                buffer.data[:] = arg.reshape(-1).view(np.uint8)
                copies.append((arg, buffer))
            elif isinstance(arg, GuardedBuffer):
                buffer = arg
            else:
                plain.append(arg)
                continue
            buffers.append(buffer)
            kept.append(fixed)
            plain.append(Address(buffer.address))
        regions = [Region(buffer.address, buffer.nbytes, fixed) for buffer, fixed in zip(buffers, kept, strict=True)]
        stats = Prepared(self, name, grid, block, plain, shared, regions, schedule, seconds, constant is not None).run()
        for i, buffer in enumerate(buffers):
            if not buffer.intact():
                raise KernelFault(f"a store past the {buffer.nbytes} bytes of buffer {i}", f"kernel {name}")
        for arg, buffer in copies:
            if arg.flags.writeable:
                arg.reshape(-1).view(np.uint8)[:] = buffer.data
        return stats


def build(source: str, language: Language, *, checks: Checks = "none") -> Module:
    """Compile a rendered source for this machine's processor. Raises FerrumError when it does not compile.

    ``checks`` "races": two accesses of shared memory by different threads without a barrier between them are a fault,
    under every schedule. "bounds": with AddressSanitizer, which ends the process at the first access outside of an array,
    shared and local ones included; its library must have been loaded before the process began.
    """
    return Module(build_file(source, language, checks=checks), language)


def build_file(source: str, language: Language, *, checks: Checks = "none") -> Path:
    """The shared object of a source, in the cache."""
    translate, headers = (cuda.translate, cuda.HEADERS) if language == "cuda" else (metal.translate, metal.HEADERS)
    return compile_unit(translate(source), headers, find_cxx(language == "metal"), checks)
