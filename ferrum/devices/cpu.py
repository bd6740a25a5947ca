"""The CPU device: a generated shared object, a pinned pool inside it, weights read where the pack is mapped."""

from __future__ import annotations

import _ctypes
import ctypes
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferrum import env
from ferrum.devices.base import Limits, StepBuffers
from ferrum.devices.host import cpu_quota, default_threads, free_memory, machine_arch, machine_features, tiles_note
from ferrum.devices.options import DeviceOptions
from ferrum.devices.pools import Pools, with_blocks
from ferrum.devices.prefault import Prefault
from ferrum.devices.topology import usable_cpus
from ferrum.errors import FerrumError
from ferrum.pack.check import damaged
from ferrum.pack.layers import LayerPoint
from ferrum.pack.programs import StepProgram, step_program
from ferrum.pack.reader import Pack
from ferrum.pack.schema import Manifest
from ferrum.pack.step import INPUTS, OUTPUTS

ABI = 6
# Spins of a waiting thread before it yields; a phase of a step lasts tens of microseconds.
_SPIN = 3000
_ALL = (1 << 31) - 1  # launches: more than any step has
_TILE_ROUNDS = 500_000  # of four products of tiles each: some hundredths of a second
# Share of the free memory that the KV cache may take when no size is given.
_KV_SHARE = 0.5


class KvPool(ctypes.Structure):
    """The blocks of one group of states."""

    _fields_ = [("kv", ctypes.c_void_p), ("num_blocks", ctypes.c_int64)]


@cache
def config_type(groups: int) -> type[ctypes.Structure]:
    """What the generated code is opened with, field by field as in its header, with a pool for each group."""
    numbers = ("max_tokens", "max_seqs", "max_samples", "max_blocks_per_seq", "num_threads", "spin")
    fields: list[tuple[str, Any]] = [(name, ctypes.c_void_p) for name in ("weights", "arena", "cpus")]
    fields += [*((name, ctypes.c_int32) for name in numbers), ("pools", KvPool * groups)]
    return type("Config", (ctypes.Structure,), {"_fields_": fields})


class StepRecord(ctypes.Structure):
    """One step's counts and arrays, in the order of the generated header."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("num_tokens", "num_seqs", "num_samples", "unused")),
        *((array.name, ctypes.c_void_p) for array in (*INPUTS, *OUTPUTS)),
    ]


def _code_file(code: memoryview) -> tuple[int, str]:
    """An open file with ``code`` and a path under which the loader can read it: in memory on Linux, else temporary.

    The file stays open as long as the code is loaded: the loader knows libraries by path, and a path that is used again
    for other code would give the old one.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("ferrum-step", os.MFD_CLOEXEC)
        path = f"/proc/self/fd/{fd}"
    else:
        fd, path = tempfile.mkstemp(suffix=".so")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(code)
    return fd, path


class Library:
    """The pack's shared object, with the signatures of its entry points."""

    def __init__(self, pack: Pack, program: StepProgram) -> None:
        where = f"{pack.path.name}: {program.build.entry}"
        self._fd, path = _code_file(pack.member(program.build.entry))
        try:
            self.lib = ctypes.CDLL(path)
        except OSError as error:
            os.close(self._fd)
            raise FerrumError(
                "code-unloadable", f"the code cannot be loaded: {error}", where, "compile the pack on this machine"
            ) from None
        try:
            self._declare()
            self._check(pack, where, program.width)
        except BaseException:
            self.close()
            raise

    def _declare(self) -> None:
        lib = self.lib
        lib.ferrum_arena_bytes.restype = ctypes.c_int64
        lib.ferrum_arena_bytes.argtypes = [ctypes.c_void_p]
        lib.ferrum_open.restype = ctypes.c_int32
        lib.ferrum_open.argtypes = [ctypes.c_void_p, ctypes.POINTER(StepRecord), ctypes.POINTER(ctypes.c_void_p)]
        lib.ferrum_step.restype = lib.ferrum_close.restype = lib.ferrum_copy_block.restype = lib.ferrum_profile.restype = None
        lib.ferrum_step.argtypes = lib.ferrum_close.argtypes = lib.ferrum_logits.argtypes = [ctypes.c_void_p]
        lib.ferrum_profile.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        lib.ferrum_copy_block.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_int64]
        lib.ferrum_range.restype = None
        lib.ferrum_range.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]
        lib.ferrum_slot.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        lib.ferrum_logits.restype = lib.ferrum_slot.restype = ctypes.c_void_p
        lib.ferrum_roof_read.restype = lib.ferrum_roof_dot.restype = ctypes.c_double
        lib.ferrum_roof_read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        lib.ferrum_roof_dot.argtypes = [ctypes.c_void_p, ctypes.c_int32]
        if hasattr(lib, "ferrum_roof_tile"):
            lib.ferrum_roof_tile.restype = ctypes.c_double
            lib.ferrum_roof_tile.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64]

    def _check(self, pack: Pack, where: str, width: int) -> None:
        abi = self.lib.ferrum_abi()
        contract = ctypes.cast(self.lib.ferrum_contract, ctypes.c_char_p).value or b""
        if abi != ABI:
            raise FerrumError(
                "pack-version", f"the code speaks ABI {abi} and this ferrum speaks {ABI}", where, "compile the pack again"
            )
        if contract.decode("ascii", "replace") != pack.manifest.contract or self.lib.ferrum_width() != width:
            raise FerrumError("contract-mismatch", "code and weights do not belong together", where, "compile the pack again")

    def close(self) -> None:
        """Unload the code; nothing of it may run any more."""
        _ctypes.dlclose(self.lib._handle)
        os.close(self._fd)


class CpuExecutor:
    """A model on the CPU. ``limits`` are fixed at load; the KV cache is reserved then and touched as it is used.

    ``variant``: the name of the pack's code that runs.
    """

    def __init__(self, pack: Pack, program: StepProgram, options: DeviceOptions) -> None:
        self._handle = ctypes.c_void_p()
        manifest = pack.manifest
        cpus = usable_cpus()
        threads = options.num_threads or default_threads(len(cpus), cpu_quota())
        # More threads than cores share them, and fewer leave the others to somebody: pinning would only make that worse.
        self._cpus = np.array(cpus if threads == len(cpus) else [-1] * threads, np.int32)
        self.limits = choose_limits(manifest, program, options, threads)
        self.buffers = StepBuffers(self.limits)
        self.variant = program.code.name
        self._library = Library(pack, program)
        try:
            self._open(pack, program, options, threads, len(cpus))
        except BaseException:
            self._library.close()
            raise

    def _open(self, pack: Pack, program: StepProgram, options: DeviceOptions, threads: int, cpus: int) -> None:
        self.pools = Pools.of(program.groups, self.limits)
        self._kv = _reserve(self.pools.nbytes)
        # Spinning helps only while every thread has a core of its own.
        self._config = self._make_config(pack, threads, _SPIN if threads <= cpus else 0)
        self._arena = _reserve(self._library.lib.ferrum_arena_bytes(ctypes.byref(self._config)))
        self._config.arena = self._arena.ctypes.data
        self._step = StepRecord(**{array.name: getattr(self.buffers, array.name).ctypes.data for array in (*INPUTS, *OUTPUTS)})
        error = self._library.lib.ferrum_open(ctypes.byref(self._config), ctypes.byref(self._step), ctypes.byref(self._handle))
        if error:
            raise FerrumError(
                "device-failed", f"the worker threads cannot start: {os.strerror(error)}", "cpu", "lower the number of threads"
            )
        self._run = self._library.lib.ferrum_step
        self._logits = self._map_logits(program.width)
        self._prefault = Prefault(pack.address("weights"), pack.weights.nbytes if options.prefault else 0)

    def _make_config(self, pack: Pack, threads: int, spin: int) -> ctypes.Structure:
        limits, pools = self.limits, self.pools.pools
        return config_type(len(pools))(
            weights=pack.address("weights"),
            cpus=self._cpus.ctypes.data,
            max_tokens=limits.max_tokens,
            max_seqs=limits.max_seqs,
            max_samples=limits.max_samples,
            max_blocks_per_seq=limits.max_blocks_per_seq,
            num_threads=threads,
            spin=spin,
            pools=tuple(KvPool(self._kv.ctypes.data + pool.start, pool.num_blocks) for pool in pools),
        )

    def _map_logits(self, width: int) -> NDArray[np.float32]:
        shape = (self.limits.max_samples, width)
        start = self._library.lib.ferrum_logits(self._handle) - self._arena.ctypes.data
        return self._arena[start : start + 4 * shape[0] * shape[1]].view(np.float32).reshape(shape)

    def step(self) -> None:
        """Run the step that ``buffers`` describe."""
        buffers, step = self.buffers, self._step
        step.num_tokens, step.num_seqs, step.num_samples = buffers.num_tokens, buffers.num_seqs, buffers.num_samples
        self._run(self._handle)

    def logits(self) -> NDArray[np.float32]:
        return self._logits[: self.buffers.num_samples]

    def copy_block(self, source: int, target: int) -> None:
        self._library.lib.ferrum_copy_block(self._handle, 0, source, target)

    def copy_place(self, group: int, source: int, target: int) -> None:
        self._library.lib.ferrum_copy_block(self._handle, 1 + group, source, target)

    def step_through(self, points: Sequence[LayerPoint]) -> Iterator[NDArray[np.float32]]:
        """See ``SteppingExecutor``. Each point costs a start of the threads, so this is not how a step is served."""
        lib, tokens, first = self._library.lib, self.buffers.num_tokens, 0
        try:
            for point in points:
                address = lib.ferrum_slot(self._handle, point.slot)
                start = (address or 0) - self._arena.ctypes.data
                if not address or start + tokens * point.row_bytes > self._arena.nbytes:
                    raise damaged(f"slot {point.slot} of the arena does not hold {point}", "points of the layers")
                lib.ferrum_range(self._handle, first, point.launch + 1)
                self.step()
                first = point.launch + 1
                yield point.rows(self._arena[start:], tokens)
            lib.ferrum_range(self._handle, first, _ALL)
            self.step()
        finally:
            lib.ferrum_range(self._handle, 0, _ALL)

    def profile(self, seconds: NDArray[np.float64] | None) -> None:
        """Add each launch's time to ``seconds [launches]`` in the steps to come, in the order of the plan; None ends it."""
        self._profile = seconds  # the code writes there as long as it is set
        self._library.lib.ferrum_profile(self._handle, None if seconds is None else seconds.ctypes.data)

    def measure_roofs(self) -> dict[str, float]:
        """What this machine gives the same threads: GB/s of reading, and 10^12 operations/s of each dot product."""
        data = np.ones(256 << 20, np.uint8)
        lib = self._library.lib
        read = max(lib.ferrum_roof_read(self._handle, data.ctypes.data, data.nbytes) for _ in range(5))
        dots = [max(lib.ferrum_roof_dot(self._handle, kind) for _ in range(3)) for kind in range(3)]
        found = {
            "read_gb_per_s": read / 1e9,
            "f32_tflops": dots[0] / 1e12,
            "bf16_tflops": dots[1] / 1e12,
            "int8_tops": dots[2] / 1e12,
        }
        if hasattr(lib, "ferrum_roof_tile"):
            tiles = [max(lib.ferrum_roof_tile(self._handle, kind, _TILE_ROUNDS) for _ in range(3)) for kind in range(2)]
            found |= {"bf16_tile_tflops": tiles[0] / 1e12, "int8_tile_tops": tiles[1] / 1e12}
        return found

    def close(self) -> None:
        if self._handle:
            self._prefault.close()
            self._library.lib.ferrum_close(self._handle)
            self._handle = ctypes.c_void_p()
            self._library.close()


def _reserve(nbytes: int) -> NDArray[np.uint8]:
    """Zeroed, page-aligned memory that is committed when it is touched; large pages where the system gives them."""
    try:
        memory = mmap.mmap(-1, max(nbytes, mmap.PAGESIZE))
    except (OSError, ValueError, OverflowError):
        raise FerrumError(
            "out-of-memory",
            f"{nbytes >> 20} MiB cannot be reserved",
            "cpu",
            "give a smaller --kv-cache-memory or --max-num-batched-tokens",
        ) from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def choose_limits(manifest: Manifest, program: StepProgram, options: DeviceOptions, threads: int) -> Limits:
    """Capacities that fit: KV blocks for every sequence at full length, less when memory or the user says so.

    Raises FerrumError when not even one sequence of the context length fits.
    """
    model, memory, unit = manifest.model, program.build.memory, program.groups[0].unit
    max_samples = options.max_samples or options.max_seqs
    fixed = memory.fixed + options.max_tokens * memory.per_token + max_samples * memory.per_sample + threads * memory.per_thread
    budget = options.kv_cache_bytes or int(max(0, free_memory() - fixed) * _KV_SHARE)
    length = options.max_model_len or model.max_model_len
    limits = Limits(
        max_tokens=max(options.max_tokens, length) if program.record.whole else options.max_tokens,
        max_seqs=options.max_seqs,
        max_samples=max_samples,
        num_blocks=0,
        block_size=unit,
        max_blocks_per_seq=-(-length // unit),
        vocab_size=model.vocab_size,
        max_adjust=max(1 << 16, max_samples * 1024),
    )
    if program.record.whole:  # nothing is kept
        return replace(limits, num_blocks=limits.max_blocks_per_seq * limits.max_seqs)
    return with_blocks(limits, program.groups, budget, options.kv_cache_bytes > 0)


class CpuDevice:
    """Loads packs for this CPU."""

    name = "cpu"

    def load(self, pack: Pack, options: DeviceOptions) -> CpuExecutor:
        """Raises FerrumError when the pack was made for another machine or memory cannot fit."""
        target, features = pack.manifest.target, machine_features()
        missing = sorted(set(target.features) - features)
        if target.device != self.name or target.arch != machine_arch() or missing:
            lacks = f", which lacks {', '.join(missing)}" if missing and target.arch == machine_arch() else ""
            lacks += f" ({note})" if lacks and (note := tiles_note()) else ""
            raise FerrumError(
                "wrong-machine",
                f"the pack is for {target.name} and this is {machine_arch()}{lacks}",
                pack.path.name,
                "compile with --target cpu on this machine",
            )
        wanted = options.variant or env.get("FERRUM_VARIANT")
        return CpuExecutor(pack, step_program(pack.manifest, pack.path.name, features, wanted), options)
