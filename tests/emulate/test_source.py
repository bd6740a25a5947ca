"""What is found in a source, what is changed in it, and how a source that does not compile is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from ferrum.devices.emulate import build, cuda, metal
from ferrum.devices.emulate.source import blank, matching, split_arguments, without_comments
from ferrum.errors import FerrumError
from tests.emulate.sources import text

CUDA = """
// __global__ void commented(int *x) {}
template <class T> __global__ void generic(T *x) { __shared__ T y[4]; }
__device__ float helper() { __shared__ float part[32]; return part[0]; }
extern "C" __global__ void __launch_bounds__(32 * 4, 2) first(float *x, int n /* , ( */) {
  extern __shared__ __align__(16) unsigned char bytes[];
  __shared__ __align__(16) float a[4], b[4];
  if (n) { x[0] = a[0]; }
}
__global__ void declared(int *x);
__global__ __launch_bounds__(64) void second() {}
"""


def test_kernels_of_a_cuda_source() -> None:
    found = cuda.find_kernels(blank(CUDA))
    assert [(k.name, k.max_threads) for k in found] == [("first", "32 * 4"), ("second", "64")]
    assert CUDA[found[0].start] == "{" and CUDA[found[0].stop] == "}" and CUDA[found[0].stop + 1] == "\n"


def test_a_translated_cuda_source_differs_in_its_shared_declarations_only() -> None:
    lines, made = without_comments(CUDA).splitlines(), cuda.translate(CUDA).splitlines()
    assert len(lines) == len(CUDA.splitlines()) and "commented" not in lines[1] and 'extern "C"' in lines[4]
    start = made.index('#line 1 "kernels"') + 1
    changed = {i: new for i, (old, new) in enumerate(zip(lines, made[start:], strict=False)) if old != new}
    assert changed == {
        2: lines[2].replace("__shared__", "EMU_SHARED(0)"),
        3: lines[3].replace("__shared__", "EMU_SHARED(0)"),
        5: "  unsigned char *const bytes = (unsigned char *)emu.dynamic;",
        6: lines[6].replace("__shared__", "EMU_SHARED(1)"),
    }


def test_kernels_of_a_metal_source() -> None:
    found = metal.find_kernels(blank(text("rows.metal")))
    assert [(k.name, k.max_threads) for k in found] == [("rms_norm", "0"), ("softmax", "32")]


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ("device float *x", "has no attribute"),
        ("device float *x [[buffer(1)]]", "buffer indices are"),
        ("device float *x [[texture(0)]]", "texture is not known"),
        ("threadgroup float *x [[threadgroup(1)]]", "one threadgroup buffer"),
    ],
)
def test_metal_parameters_that_no_launch_can_give(params: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        metal.translate(f"kernel void k({params}) {{}}")


def test_brackets_and_commas() -> None:
    assert matching("a(b(c)d)e", 1) == 7
    with pytest.raises(ValueError, match="no bracket"):
        matching("(()", 0)
    assert split_arguments("f(a, b), vec<int, 4> c, d[1, 2]") == ["f(a, b)", " vec<int, 4> c", " d[1, 2]"]


def test_a_source_that_does_not_compile() -> None:
    with pytest.raises(FerrumError) as caught:
        build("extern \"C\" __global__ void k(int *x) {\n  x[0] = nothing;\n}", "cuda")
    assert caught.value.code == "toolchain-failed" and "kernels:2" in caught.value.what
    saved = Path(caught.value.where)
    assert "nothing" in saved.read_text() and (saved.parent / "stderr.txt").exists()
    assert caught.value.next_step.startswith("repeat with: cd ")
