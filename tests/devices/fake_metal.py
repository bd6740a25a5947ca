"""A stand-in for pyobjc's ``Metal`` and a GPU: the methods that the device uses, on this machine's memory.

Command buffers run when they are waited for (``late``) or when they are committed. A kernel is a Python function of (grid,
block, threadgroup bytes, addresses), looked up in ``kernels``. What the real framework would not survive raises
AssertionError: a command without barrier after another, a buffer that the encoder was not told of, an offset out of a buffer.
Messages take and give what pyobjc's metadata says of them (``metal_calls.py``).
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.devices.metal_calls import Messages, as_pyobjc

Kernel = Callable[[tuple[int, int, int], tuple[int, int, int], int, list[int]], None]


class Contents:
    def __init__(self, address: int) -> None:
        self.address = address

    def as_buffer(self, count: int) -> Any:
        return (ctypes.c_uint8 * count).from_address(self.address)


class FakeBuffer(Messages):
    helpers = frozenset({"at"})

    def __init__(self, memory: Any, address: int, nbytes: int) -> None:
        self.memory, self.address, self.nbytes = memory, address, nbytes

    def contents(self) -> Contents:
        return Contents(self.address)

    def length(self) -> int:
        return self.nbytes

    def at(self, offset: int, nbytes: int = 1) -> int:
        assert offset >= 0 and offset + nbytes <= self.nbytes, "out of the buffer"
        return self.address + offset


class Settings:
    """An object with setters only: ``setX_(value)`` keeps ``value`` under "X"."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    @classmethod
    def alloc(cls) -> Settings:
        return cls()

    def init(self) -> Settings:
        return self

    def __getattr__(self, name: str) -> Any:
        assert name.startswith("set") and name.endswith("_"), name
        return as_pyobjc(name, lambda value: self.values.__setitem__(name[3:-1], value))


@dataclass
class FakeError(Messages):
    text: str

    def localizedDescription(self) -> str:  # noqa: N802
        return self.text


@dataclass
class FakePipeline(Messages):
    symbol: str

    def staticThreadgroupMemoryLength(self) -> int:  # noqa: N802
        return 0


@dataclass
class Command(Messages):
    """One indirect command, as it was encoded."""

    most_buffers: int
    pipeline: FakePipeline | None = None
    bindings: dict[int, tuple[FakeBuffer, int]] = field(default_factory=dict)
    threadgroup: int = 0
    grid: tuple[int, int, int] = (0, 0, 0)
    block: tuple[int, int, int] = (0, 0, 0)
    barrier: bool = False

    def setComputePipelineState_(self, pipeline: FakePipeline) -> None:  # noqa: N802
        self.pipeline = pipeline

    def setKernelBuffer_offset_atIndex_(self, buffer: FakeBuffer, offset: int, index: int) -> None:  # noqa: N802
        assert index < self.most_buffers
        buffer.at(offset)
        self.bindings[index] = buffer, offset

    def setThreadgroupMemoryLength_atIndex_(self, nbytes: int, index: int) -> None:  # noqa: N802
        assert nbytes % 16 == 0 and index == 0
        self.threadgroup = nbytes

    def concurrentDispatchThreadgroups_threadsPerThreadgroup_(self, grid: Any, block: Any) -> None:  # noqa: N802
        self.grid, self.block = grid, block

    def setBarrier(self) -> None:  # noqa: N802
        self.barrier = True


class CommandList(Messages):
    def __init__(self, description: Settings, count: int) -> None:
        assert description.values["CommandTypes"] == 32 and not description.values["InheritBuffers"]
        self.commands = [Command(description.values["MaxKernelBufferBindCount"]) for _ in range(count)]

    def indirectComputeCommandAtIndex_(self, index: int) -> Command:  # noqa: N802
        return self.commands[index]


class FakeEncoder(Messages):
    def __init__(self, device: FakeDevice, commands: FakeCommands) -> None:
        self.device, self.commands = device, commands
        self.used: set[int] = set()
        self.set_pipelines: set[str] = set()
        self.current = ""

    def useResource_usage_(self, buffer: FakeBuffer, usage: int) -> None:  # noqa: N802
        self.used.add(buffer.address)

    def setComputePipelineState_(self, pipeline: FakePipeline) -> None:  # noqa: N802
        self.current = pipeline.symbol

    def dispatchThreadgroups_threadsPerThreadgroup_(self, grid: Any, block: Any) -> None:  # noqa: N802
        assert tuple(grid) == (0, 0, 0)
        self.set_pipelines.add(self.current)

    def executeCommandsInBuffer_withRange_(self, commands: CommandList, which: tuple[int, int]) -> None:  # noqa: N802
        chosen = commands.commands[which[0] : which[0] + which[1]]
        for command in chosen:
            assert command.pipeline is not None and command.barrier, "a command that does not wait for the one before"
            assert all(buffer.address in self.used for buffer, _ in command.bindings.values()), "a buffer that is not resident"
            if self.device.family < 1009:
                assert command.pipeline.symbol in self.set_pipelines
            self.commands.work.append(lambda command=command: self.device.run(command))

    def copyFromBuffer_sourceOffset_toBuffer_destinationOffset_size_(  # noqa: N802
        self, source: FakeBuffer, source_at: int, target: FakeBuffer, target_at: int, nbytes: int
    ) -> None:
        self.commands.work.append(lambda: ctypes.memmove(target.at(target_at, nbytes), source.at(source_at, nbytes), nbytes))

    def endEncoding(self) -> None:  # noqa: N802
        self.commands.encoding = False


class FakeCommands(Messages):
    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.work: list[Callable[[], Any]] = []
        self.encoding = False
        self.state = 0
        self.fault = ""

    def _encoder(self) -> FakeEncoder:
        assert not self.encoding, "one encoder at a time"
        self.encoding = True
        return FakeEncoder(self.device, self)

    def computeCommandEncoder(self) -> FakeEncoder:  # noqa: N802
        return self._encoder()

    def blitCommandEncoder(self) -> FakeEncoder:  # noqa: N802
        return self._encoder()

    def commit(self) -> None:
        assert not self.encoding
        self.state = 2
        self.device.committed.append(self)
        assert len(self.device.committed) <= self.device.most_commands, "asking for this command buffer would have waited"
        if not self.device.late:
            self.waitUntilCompleted()

    def waitUntilCompleted(self) -> None:  # noqa: N802
        assert self.state >= 2, "waiting for what was never committed"
        while self.state < 4:
            first = self.device.committed.pop(0)
            for work in first.work:
                work()
            first.fault = self.device.fault
            first.state = 5 if first.fault else 4

    def status(self) -> int:
        return self.state

    def error(self) -> FakeError:
        return FakeError(f"{self.fault}\nand more")


class FakeLibrary(Messages):
    def __init__(self, device: FakeDevice) -> None:
        self.device = device

    def newFunctionWithName_(self, name: str) -> str | None:  # noqa: N802
        return name if name in self.device.kernels else None


@dataclass
class FakeDevice(Messages):
    """``family`` is what ``supportsFamily`` reaches; ``number_args`` are the indices of int32 parameters."""

    helpers = frozenset({"run"})
    kernels: dict[str, Kernel]
    number_args: tuple[int, ...] = ()
    late: bool = True
    family: int = 1007
    memory: int = 1 << 30
    no_copy: bool = True
    fault: str = ""
    source: str = ""
    language: int = 0
    most_commands: int = 0
    committed: list[FakeCommands] = field(default_factory=list)
    buffers: list[FakeBuffer] = field(default_factory=list)

    def name(self) -> str:
        return "Fake M1"

    def supportsFamily_(self, family: int) -> bool:  # noqa: N802
        return family <= self.family

    def recommendedMaxWorkingSetSize(self) -> int:  # noqa: N802
        return self.memory

    def currentAllocatedSize(self) -> int:  # noqa: N802
        return 0

    def maxBufferLength(self) -> int:  # noqa: N802
        return self.memory

    def maxThreadgroupMemoryLength(self) -> int:  # noqa: N802
        return 64 << 10

    def newCommandQueueWithMaxCommandBufferCount_(self, count: int) -> FakeDevice:  # noqa: N802
        self.most_commands = count
        return self

    def commandBuffer(self) -> FakeCommands:  # noqa: N802
        return FakeCommands(self)

    def newLibraryWithSource_options_error_(self, source: str, options: Any, error: Any) -> Any:  # noqa: N802
        self.source, self.language = source, options.values["LanguageVersion"]
        return (None, FakeError("program_source:1: expected ';'\nmore")) if "broken" in source else (FakeLibrary(self), None)

    def newComputePipelineStateWithDescriptor_options_reflection_error_(  # noqa: N802
        self, description: Settings, options: int, reflection: Any, error: Any
    ) -> Any:
        assert description.values["SupportIndirectCommandBuffers"] is True
        return FakePipeline(description.values["ComputeFunction"]), None

    def newBufferWithLength_options_(self, nbytes: int, options: int) -> FakeBuffer | None:  # noqa: N802
        if nbytes > self.memory:
            return None
        memory = (ctypes.c_uint8 * nbytes)()
        self.buffers.append(FakeBuffer(memory, ctypes.addressof(memory), nbytes))
        return self.buffers[-1]

    def newBufferWithBytesNoCopy_length_options_deallocator_(  # noqa: N802
        self, memory: Any, nbytes: int, options: int, deallocator: Any
    ) -> FakeBuffer | None:
        address = ctypes.addressof(memory)
        assert address % 4096 == 0 and nbytes % 16384 == 0, "not whole pages"
        return FakeBuffer(memory, address, nbytes) if self.no_copy else None

    def newIndirectCommandBufferWithDescriptor_maxCommandCount_options_(  # noqa: N802
        self, description: Settings, count: int, options: int
    ) -> CommandList:
        return CommandList(description, count)

    def run(self, command: Command) -> None:
        addresses = [buffer.address + offset for _, (buffer, offset) in sorted(command.bindings.items())]
        args = [ctypes.c_int32.from_address(a).value if i in self.number_args else a for i, a in enumerate(addresses)]
        assert command.pipeline is not None
        self.kernels[command.pipeline.symbol](command.grid, command.block, command.threadgroup, args)


class FakeApi:
    """The module ``Metal``."""

    MTLCompileOptions = Settings
    MTLComputePipelineDescriptor = Settings
    MTLIndirectCommandBufferDescriptor = Settings


@contextlib.contextmanager
def pool() -> Iterator[None]:
    yield
