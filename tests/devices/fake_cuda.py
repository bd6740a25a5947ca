"""A stand-in for ``cuda.bindings.driver``: the same calls on this machine's memory, and a record of all of them.

Device memory is ordinary memory at real addresses. Streams run nothing until somebody waits (``late``), or at once: a host
buffer that changes while a copy is under way is found by the first, one that is read too early by the second. Capture builds
graphs; launching a graph in a stream enqueues what was captured. A kernel is a Python function of (grid, block, shared, args)
looked up in ``kernels`` by its symbol; its arguments are the 64-bit words of its parameters.

It checks what the real driver leaves undefined: memory out of an allocation, use after free, a call in a thread without a
context, allocation during capture, an executable graph that is launched after it was destroyed.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

Kernel = Callable[[tuple[int, int, int], tuple[int, int, int], int, list[int]], None]


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


class CUdevice_attribute(enum.IntEnum):
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUstream_flags(enum.IntEnum):
    CU_STREAM_NON_BLOCKING = 1


class CUevent_flags(enum.IntEnum):
    CU_EVENT_DISABLE_TIMING = 2


class CUstreamCaptureMode(enum.IntEnum):
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


class CUfunction_attribute(enum.IntEnum):
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


class CUlaunchAttributeID(enum.IntEnum):
    CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6


class CUlaunchAttribute:
    def __init__(self) -> None:
        self.id = 0
        self.value = SimpleNamespace()


_OTHER_FIELDS = ("sharedMemBytes", "hStream", "attrs", "numAttrs")


class CUlaunchConfig(SimpleNamespace):
    FIELDS = frozenset((*(f"{kind}Dim{axis}" for kind in ("grid", "block") for axis in "XYZ"), *_OTHER_FIELDS))

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in self.FIELDS, name
        super().__setattr__(name, value)


ENUMS = (
    CUresult, CUdevice_attribute, CUstream_flags, CUevent_flags, CUstreamCaptureMode, CUfunction_attribute, CUlaunchAttributeID,
)  # fmt: skip
OK = CUresult.CUDA_SUCCESS
Work = Callable[[], None]


@dataclass
class Stream:
    pending: list[Work] = field(default_factory=list)
    captured: list[Work] | None = None


@dataclass
class Event:
    """``reached`` counts the records that the stream has come to; an event that was never recorded is complete."""

    recorded: int = 0
    reached: int = 0
    stream: Stream | None = None


@dataclass
class Graph:
    work: list[Work]
    alive: bool = True


@dataclass
class FakeDriver:
    """``capability`` and ``memory`` of the one GPU; ``late``: work waits until it is asked for."""

    capability: tuple[int, int] = (8, 9)
    memory: int = 1 << 30
    late: bool = True
    count: int = 1
    kernels: dict[str, Kernel] = field(default_factory=dict)
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    allocated: dict[int, Any] = field(default_factory=dict)  # device memory: address -> buffer
    pinned: dict[int, Any] = field(default_factory=dict)
    live: dict[str, int] = field(default_factory=dict)
    shared_limit: dict[str, int] = field(default_factory=dict)
    failing: dict[str, CUresult] = field(default_factory=dict)
    libraries: list[int] = field(default_factory=list)
    bound: set[int] = field(default_factory=set)
    capturing: Stream | None = None

    CUresult = CUresult
    CUdevice_attribute = CUdevice_attribute
    CUstream_flags = CUstream_flags
    CUevent_flags = CUevent_flags
    CUstreamCaptureMode = CUstreamCaptureMode
    CUfunction_attribute = CUfunction_attribute
    CUlaunchAttributeID = CUlaunchAttributeID
    CUlaunchAttribute = CUlaunchAttribute
    CUlaunchConfig = CUlaunchConfig

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith("cu"):
            return value

        def call(*args: Any) -> Any:
            self.calls.append((name, args))
            if name in self.failing:
                return (self.failing[name], *[0] * NUM_VALUES.get(name, 0))
            if name in NEEDS_CONTEXT and threading.get_ident() not in self.bound:
                return (CUresult.CUDA_ERROR_INVALID_CONTEXT, *[0] * NUM_VALUES.get(name, 0))
            answer = value(*args)
            assert len(answer) == 1 + NUM_VALUES.get(name, 0), f"{name} returns {NUM_VALUES.get(name, 0)} values and a status"
            return answer

        return call

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    # devices

    def cuInit(self, Flags: int) -> Any:
        return (OK,)

    def cuDriverGetVersion(self) -> Any:
        return OK, 13000

    def cuDeviceGetCount(self) -> Any:
        return OK, self.count

    def cuDeviceGet(self, ordinal: int) -> Any:
        return OK, ordinal

    def cuDeviceGetName(self, length: int, dev: int) -> Any:
        return OK, b"Fake GPU".ljust(length, b"\0")

    def cuDeviceTotalMem(self, dev: int) -> Any:
        return OK, self.memory

    def cuDeviceGetAttribute(self, attrib: CUdevice_attribute, dev: int) -> Any:
        values = {75: self.capability[0], 76: self.capability[1], 16: 4}
        return OK, values[int(attrib)]

    def cuDevicePrimaryCtxRetain(self, dev: int) -> Any:
        self._count("context", 1)
        return OK, 77

    def cuDevicePrimaryCtxRelease(self, dev: int) -> Any:
        self._count("context", -1)
        return (OK,)

    def cuCtxSetCurrent(self, ctx: int) -> Any:
        self.bound.add(threading.get_ident())
        return (OK,)

    # code

    def cuLibraryLoadData(
        self, code: int, jitOptions: Any, jitOptionsValues: Any, numJitOptions: int, libraryOptions: Any,
        libraryOptionValues: Any, numLibraryOptions: int,
    ) -> Any:  # fmt: skip
        self.libraries.append(code)
        self._count("library", 1)
        return OK, 1

    def cuLibraryUnload(self, library: int) -> Any:
        self._count("library", -1)
        return (OK,)

    def cuLibraryGetKernel(self, library: int, name: bytes) -> Any:
        symbol = name.decode()
        return (OK, symbol) if symbol in self.kernels else (CUresult.CUDA_ERROR_NOT_FOUND, None)

    def cuKernelGetFunction(self, kernel: str) -> Any:
        return OK, kernel

    def cuFuncSetAttribute(self, hfunc: str, attrib: CUfunction_attribute, value: int) -> Any:
        self.shared_limit[hfunc] = value
        return (OK,)

    # memory

    def cuMemGetInfo(self) -> Any:
        return OK, self._left(), self.memory

    def cuMemAlloc(self, bytesize: int) -> Any:
        if self.capturing or bytesize <= 0:
            return CUresult.CUDA_ERROR_INVALID_VALUE, 0
        if bytesize > self._left():
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0
        return OK, self._new(self.allocated, bytesize)

    def cuMemFree(self, dptr: int) -> Any:
        del self.allocated[int(dptr)]
        return (OK,)

    def cuMemHostAlloc(self, bytesize: int, Flags: int) -> Any:
        return OK, self._new(self.pinned, bytesize)

    def cuMemFreeHost(self, p: int) -> Any:
        del self.pinned[int(p)]
        return (OK,)

    def cuMemsetD8Async(self, dstDevice: int, uc: int, N: int, hStream: Stream) -> Any:
        return self._enqueue(hStream, lambda: ctypes.memset(self._device(dstDevice, N), uc, N))

    def cuMemcpyHtoDAsync(self, dstDevice: int, srcHost: int, ByteCount: int, hStream: Stream) -> Any:
        return self._enqueue(
            hStream, lambda: ctypes.memmove(self._device(dstDevice, ByteCount), self._host(srcHost, ByteCount), ByteCount)
        )

    def cuMemcpyDtoHAsync(self, dstHost: int, srcDevice: int, ByteCount: int, hStream: Stream) -> Any:
        return self._enqueue(hStream, lambda: ctypes.memmove(dstHost, self._device(srcDevice, ByteCount), ByteCount))

    def cuMemcpyDtoDAsync(self, dstDevice: int, srcDevice: int, ByteCount: int, hStream: Stream) -> Any:
        return self._enqueue(
            hStream,
            lambda: ctypes.memmove(self._device(dstDevice, ByteCount), self._device(srcDevice, ByteCount), ByteCount),
        )

    # streams, events, graphs

    def cuStreamCreate(self, Flags: int) -> Any:
        self._count("stream", 1)
        return OK, Stream()

    def cuStreamDestroy(self, hStream: Stream) -> Any:
        assert not hStream.pending, "a stream is destroyed before its work is done"
        self._count("stream", -1)
        return (OK,)

    def cuStreamSynchronize(self, hStream: Stream) -> Any:
        assert hStream.captured is None, "a stream that is being captured cannot be waited for"
        return (self._drain(hStream),)

    def cuStreamBeginCapture(self, hStream: Stream, mode: CUstreamCaptureMode) -> Any:
        assert self.capturing is None
        self.capturing, hStream.captured = hStream, []
        return (OK,)

    def cuStreamEndCapture(self, hStream: Stream) -> Any:
        work, hStream.captured, self.capturing = hStream.captured, None, None
        assert work is not None
        self._count("graph", 1)
        return OK, Graph(work)

    def cuGraphInstantiate(self, hGraph: Graph, flags: int) -> Any:
        self._count("executable", 1)
        return OK, Graph(list(hGraph.work))

    def cuGraphDestroy(self, hGraph: Graph) -> Any:
        self._count("graph", -1)
        return (OK,)

    def cuGraphExecDestroy(self, hGraphExec: Graph) -> Any:
        hGraphExec.alive = False
        self._count("executable", -1)
        return (OK,)

    def cuGraphUpload(self, hGraphExec: Graph, hStream: Stream) -> Any:
        return (OK,)

    def cuGraphLaunch(self, hGraphExec: Graph, hStream: Stream) -> Any:
        assert hGraphExec.alive, "a graph is launched after it was destroyed"
        for work in hGraphExec.work:
            self._enqueue(hStream, work)
        return (OK,)

    def cuLaunchKernel(
        self, f: str, gridDimX: int, gridDimY: int, gridDimZ: int, blockDimX: int, blockDimY: int, blockDimZ: int,
        sharedMemBytes: int, hStream: Stream, kernelParams: int, extra: int,
    ) -> Any:  # fmt: skip
        grid, block = (gridDimX, gridDimY, gridDimZ), (blockDimX, blockDimY, blockDimZ)
        return self._launch(f, grid, block, sharedMemBytes, hStream, kernelParams)

    def cuLaunchKernelEx(self, config: CUlaunchConfig, f: str, kernelParams: int, extra: int) -> Any:
        assert config.numAttrs == len(config.attrs)
        grid = config.gridDimX, config.gridDimY, config.gridDimZ
        block = config.blockDimX, config.blockDimY, config.blockDimZ
        return self._launch(f, grid, block, config.sharedMemBytes, config.hStream, kernelParams)

    def cuEventCreate(self, Flags: int) -> Any:
        self._count("event", 1)
        return OK, Event()

    def cuEventDestroy(self, hEvent: Event) -> Any:
        self._count("event", -1)
        return (OK,)

    def cuEventRecord(self, hEvent: Event, hStream: Stream) -> Any:
        hEvent.recorded += 1
        hEvent.stream = hStream
        number = hEvent.recorded

        def reach() -> None:
            hEvent.reached = max(hEvent.reached, number)

        return self._enqueue(hStream, reach)

    def cuEventSynchronize(self, hEvent: Event) -> Any:
        status = OK
        while hEvent.stream is not None and hEvent.reached < hEvent.recorded and status == OK:
            status = self._run_one(hEvent.stream)
        return (status,)

    def cuEventElapsedTime(self, hStart: Event, hEnd: Event) -> Any:
        return OK, 1.0

    # how it works

    num_params: dict[str, int] = field(default_factory=dict)

    def _parameters(self, symbol: str, address: int) -> list[int]:
        count = self.num_params.get(symbol, 0)
        pointers = (ctypes.c_uint64 * max(count, 1)).from_address(address)
        return [ctypes.c_uint64.from_address(pointers[i]).value for i in range(count)]

    def _launch(
        self, f: str, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int, stream: Stream, params: int
    ) -> Any:
        # the parameters are read now, as the driver does: the caller may reuse their memory
        words = self._parameters(f, params)
        if shared > self.shared_limit.get(f, 48 << 10):
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        return self._enqueue(stream, lambda: self.kernels[f](grid, block, shared, words))

    def _left(self) -> int:
        return self.memory - sum(ctypes.sizeof(buffer) for buffer in self.allocated.values())

    def _count(self, what: str, change: int) -> None:
        self.live[what] = self.live.get(what, 0) + change
        assert self.live[what] >= 0, f"{what} freed twice"

    def _new(self, pool: dict[int, Any], nbytes: int) -> int:
        buffer = (ctypes.c_uint8 * nbytes)()
        ctypes.memset(buffer, 0xA5, nbytes)  # nothing is zero by itself
        pool[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def _device(self, address: int, nbytes: int) -> int:
        address = int(address)
        inside = any(start <= address and address + nbytes <= start + ctypes.sizeof(b) for start, b in self.allocated.items())
        assert inside, f"{nbytes} bytes at {address:#x} are not in device memory"
        return address

    def _host(self, address: int, nbytes: int) -> int:
        inside = any(start <= address and address + nbytes <= start + ctypes.sizeof(b) for start, b in self.pinned.items())
        assert inside, "a copy from memory that is not pinned"
        return address

    def _enqueue(self, stream: Stream, work: Callable[[], Any]) -> Any:
        if stream.captured is not None:
            stream.captured.append(work)
            return (OK,)
        stream.pending.append(work)
        return (OK if self.late else self._drain(stream),)

    def _run_one(self, stream: Stream) -> CUresult:
        stream.pending.pop(0)()
        return self.failing.get("kernel", OK)

    def _drain(self, stream: Stream) -> CUresult:
        status = OK
        while stream.pending:
            status = self._run_one(stream) or status
        return status

    def everything_freed(self) -> bool:
        return not self.allocated and not self.pinned and not any(self.live.values())


# Values that a call returns beside its status; none where it is not named.
NUM_VALUES = {
    "cuMemAlloc": 1, "cuMemHostAlloc": 1, "cuLibraryLoadData": 1, "cuLibraryGetKernel": 1, "cuGraphInstantiate": 1,
    "cuStreamEndCapture": 1, "cuMemGetInfo": 2, "cuStreamCreate": 1, "cuEventCreate": 1, "cuDeviceGetCount": 1,
    "cuKernelGetFunction": 1, "cuDevicePrimaryCtxRetain": 1, "cuEventElapsedTime": 1, "cuDriverGetVersion": 1, "cuDeviceGet": 1,
    "cuDeviceGetName": 1, "cuDeviceTotalMem": 1, "cuDeviceGetAttribute": 1,
}  # fmt: skip
NEEDS_CONTEXT = frozenset(
    name for name in vars(FakeDriver)
    if name.startswith(("cuMem", "cuStream", "cuEvent", "cuGraph", "cuLaunch", "cuLibrary", "cuKernel", "cuFunc"))
)  # fmt: skip


def parameter_names(driver: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Positional parameters of every call of the stand-in."""
    import inspect

    return {
        name: [p for p in inspect.signature(value).parameters if p != "self"]
        for name, value in vars(FakeDriver).items()
        if name.startswith("cu") and callable(value)
    }
