"""Memory through which threadgroups of one launch pass numbers to each other is declared coherent in every Metal kernel."""

from __future__ import annotations

import re

import pytest

from ferrum.codegen.kernels.sample import GpuSample
from ferrum.codegen.render import TEMPLATES as FOLDER
from ferrum.codegen.render import kernel_source
from ferrum.codegen.target import BY_NAME
from ferrum.devices.emulate import metal

TEMPLATES = sorted((FOLDER / "metal").glob("*.j2"))
# Kernels of a template that both kinds of GPU have, which says coherent in words of its own: as they are rendered.
COMMON = {"sample": kernel_source(GpuSample(777, 128, 256), BY_NAME["metal-m1"])}
SOURCES = {path.name: path.read_text() for path in TEMPLATES} | COMMON
# A kernel's pointer to device memory that it may write, without atomics: (how it is qualified, its name).
_POINTER = re.compile(r"(coherent\(device\) )?\bdevice (?!const\b|atomic)[^*;,\n]*\*(?:\s*const)?\s*(\w+)")
# What a kernel only writes; whoever reads it is a later launch.
_RESULTS = {"out", "out_token", "out_logprob", "top_token", "top_logprob"}


def not_coherent(source: str) -> set[str]:
    """Pointers of a kernel that counts threadgroups, and so has one read what others wrote, that are not coherent."""
    if "thread_scope_device" not in source:
        return set()
    return {name for coherent, name in _POINTER.findall(source) if not coherent and name not in _RESULTS}


@pytest.mark.parametrize("name", SOURCES)
def test_shared_memory_is_coherent(name: str) -> None:
    assert not_coherent(SOURCES[name]) == set()


def test_some_kernels_share_memory() -> None:
    """The rule has something to look at, and sees what it is about."""
    shared = [text for text in SOURCES.values() if "thread_scope_device" in text]
    assert len(shared) >= 3
    for text in shared:
        assert "parts" in not_coherent(text.replace("coherent(device) ", ""))
    assert {path.stem for path in (FOLDER / "gpu").glob("*.j2") if "gpu.fence" in path.read_text()} == set(COMMON)


_SHARES = """
#include <metal_stdlib>
using namespace metal;
kernel void share(device float *out [[buffer(0)]], coherent(device) device float *parts [[buffer(1)]],
                  uint group [[threadgroup_position_in_grid]]) {
  coherent(device) device float *own = parts + group;
  *own = 1.0f;
  out[group] = parts[0];
}
"""


def test_the_check_of_a_source_follows_pointers_to_shared_memory() -> None:
    """A pointer made of a coherent one is coherent too, which the rule on names alone would not see."""
    assert metal.check(_SHARES) == ""
    assert "coherent_device" in metal.check(_SHARES.replace("  coherent(device) device float *own", "  device float *own"))
