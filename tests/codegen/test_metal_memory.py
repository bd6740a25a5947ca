"""Memory through which threadgroups of one launch pass numbers to each other is declared coherent in every Metal kernel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ferrum.codegen.render import TEMPLATES as FOLDER
from ferrum.devices.emulate import metal

TEMPLATES = sorted(path for language in ("metal", "gpu") for path in (FOLDER / language).rglob("*.j2"))
# A kernel's pointer to device memory that it may write, without atomics: (how it is qualified, its name).
_POINTER = re.compile(r"(coherent\(device\) )?\bdevice (?!const\b|atomic)[^*;,\n]*\*(?:\s*const)?\s*(\w+)")
# What a kernel only writes; whoever reads it is a later launch.
_RESULTS = {"out"}


def not_coherent(source: str) -> set[str]:
    """Pointers of a kernel that counts threadgroups, and so has one read what others wrote, that are not coherent."""
    if "thread_scope_device" not in source:
        return set()
    return {name for coherent, name in _POINTER.findall(source) if not coherent and name not in _RESULTS}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_shared_memory_is_coherent(path: Path) -> None:
    assert not_coherent(path.read_text()) == set()


def test_some_kernels_share_memory() -> None:
    """The rule has something to look at, and sees what it is about."""
    shared = [text for path in TEMPLATES if "thread_scope_device" in (text := path.read_text())]
    assert len(shared) >= 2
    for text in shared:
        assert not_coherent(text.replace("coherent(device) ", "")) >= {"part", "parts"}


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
