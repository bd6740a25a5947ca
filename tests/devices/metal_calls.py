"""How pyobjc answers what the Metal device asks: the messages that are sent, and which of their arguments come back.

An argument that pyobjc knows as "out" is given as None and returned behind the result; any other pointer is only passed on, even
where Metal writes to it. What is here is compared with the metadata of the real package (``test_metal_calls.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

# Of messages with out arguments: their places.
OUT_ARGUMENTS: dict[str, tuple[int, ...]] = {
    "newLibraryWithSource:options:error:": (2,),
    "newLibraryWithURL:error:": (1,),
    "newComputePipelineStateWithDescriptor:options:reflection:error:": (3,),
}
# Of these nothing but the result comes back.
_PLAIN = """
    alloc init name supportsFamily: recommendedMaxWorkingSetSize currentAllocatedSize maxBufferLength maxThreadgroupMemoryLength
    newCommandQueueWithMaxCommandBufferCount: newBufferWithLength:options: newBufferWithBytesNoCopy:length:options:deallocator:
    newIndirectCommandBufferWithDescriptor:maxCommandCount:options: newFunctionWithName: staticThreadgroupMemoryLength
    contents length localizedDescription commandBuffer commit waitUntilCompleted status error
    computeCommandEncoder blitCommandEncoder endEncoding useResource:usage: setComputePipelineState:
    dispatchThreadgroups:threadsPerThreadgroup: executeCommandsInBuffer:withRange:
    copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size: indirectComputeCommandAtIndex:
    setKernelBuffer:offset:atIndex: setThreadgroupMemoryLength:atIndex: setBarrier
    concurrentDispatchThreadgroups:threadsPerThreadgroup:
    setFastMathEnabled: setLanguageVersion: setComputeFunction: setSupportIndirectCommandBuffers:
    setCommandTypes: setInheritBuffers: setInheritPipelineState: setMaxKernelBufferBindCount:
"""
CALLS: dict[str, tuple[int, ...]] = OUT_ARGUMENTS | dict.fromkeys(_PLAIN.split(), ())


def message(method: str) -> str:
    """The message of a Python method: ``newLibraryWithURL_error_`` sends ``newLibraryWithURL:error:``."""
    return method.replace("_", ":")


def as_pyobjc(method: str, answer: Callable[..., Any]) -> Callable[..., Any]:
    """``answer`` held to what pyobjc takes and gives back for ``method``."""
    outs = CALLS[message(method)]

    @functools.wraps(answer)
    def send(*args: Any) -> Any:
        given = args[-message(method).count(":") :] if ":" in message(method) else ()
        assert len(given) == message(method).count(":"), f"{method} takes {message(method).count(':')} arguments"
        assert all(given[i] is None for i in outs), f"{method}: an out argument is given as None"
        result = answer(*args)
        back = len(result) - 1 if type(result) is tuple else 0
        assert back == len(outs), f"pyobjc returns {len(outs)} values behind the result of {method}"
        return result

    return send


class Messages:
    """A stand-in for an object of Objective-C: each public method but ``helpers`` is a message."""

    helpers: frozenset[str] = frozenset()

    def __init_subclass__(cls) -> None:
        for name, value in list(vars(cls).items()):
            if callable(value) and not name.startswith("_") and name not in cls.helpers:
                setattr(cls, name, as_pyobjc(name, value))
