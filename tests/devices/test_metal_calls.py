"""What the Metal device sends and what its stand-in answers, beside the metadata of the real pyobjc-framework-Metal.

The package exists for macOS only, but its metadata are Python text inside the wheel, which pip fetches on any system.
"""

from __future__ import annotations

import ast
import fcntl
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ferrum.devices import metal
from tests.devices.metal_calls import CALLS, as_pyobjc, message

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "pyobjc"
# The wheel of one Python stands for all: the text is the same.
OF_THE_MAC = ("--only-binary=:all:", "--platform", "macosx_11_0_universal2", "--python-version", "3.12")


def download(package: str) -> Path:
    """The wheel of ``package`` (``name==version``) for macOS; the test is skipped where no registry gives it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        name, _, version = package.partition("==")
        pattern = f"{name.replace('-', '_').lower()}-{version}-*.whl"
        if not list(CACHE.glob(pattern)):
            command = [sys.executable, "-m", "pip", "download", "--no-deps", *OF_THE_MAC, "--retries", "0", "--timeout", "10"]
            result = subprocess.run([*command, "--dest", str(CACHE), package], capture_output=True, check=False, timeout=120)
            if result.returncode:
                pytest.skip(f"{package} for macOS is not in build/pyobjc and pip could not download it")
        return next(CACHE.glob(pattern))


@pytest.fixture(scope="module")
def metadata() -> str:
    pin = re.search(r"^pyobjc-framework-Metal==\S+$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pin is not None
    with zipfile.ZipFile(download(pin[0])) as wheel:
        return wheel.read("Metal/_metadata.py").decode()


def arguments(metadata: str) -> dict[str, list[dict[int, str]]]:
    """By message, for each class that has it: the modifier of every argument that metadata name, by its place."""
    found: dict[str, list[dict[int, str]]] = {}
    for call in ast.walk(ast.parse(metadata)):
        match call:
            case ast.Call(func=ast.Name(id="r"), args=[_, ast.Constant(value=bytes(name)), ast.Dict() as record]):
                table = _entry(record, "arguments")
                places = zip(table.keys, table.values, strict=True) if isinstance(table, ast.Dict) else ()
                # the object and the message itself are the first two
                found.setdefault(name.decode(), []).append({_constant(key) - 2: _modifier(value) for key, value in places})
    return found


def _entry(record: ast.expr, name: str) -> ast.expr | None:
    assert isinstance(record, ast.Dict)
    return next(
        (v for k, v in zip(record.keys, record.values, strict=True) if isinstance(k, ast.Constant) and k.value == name), None
    )


def _constant(node: ast.expr | None) -> int:
    assert isinstance(node, ast.Constant)
    return int(node.value)


def _modifier(argument: ast.expr) -> str:
    value = _entry(argument, "type_modifier")
    return value.value.decode() if isinstance(value, ast.Constant) else ""


def test_every_message_is_answered_as_the_package_does(metadata: str) -> None:
    real = arguments(metadata)
    assert len(real) > 300, "the form of the metadata has changed"
    for name, outs in CALLS.items():
        for modifiers in real.get(name, [{}]):
            assert all(place < name.count(":") for place in modifiers), name
            # "o" comes back, "N" goes in and comes back
            assert tuple(i for i, modifier in sorted(modifiers.items()) if modifier in ("o", "N")) == outs, name
    assert {name for name, outs in CALLS.items() if outs} <= set(real), "what comes back is known from metadata alone"


def test_constants_have_the_package_s_values(metadata: str) -> None:
    values = {name: int(value) for name, value in re.findall(r"\$(MTL\w+)@(\d+)", metadata)}
    chips = {f"MTLGPUFamilyApple{chip.family - 1000}": chip.family for chip in metal._CHIPS.values()}
    languages = {f"MTLLanguageVersion{a}_{b}": metal.language_version((a, b)) for a, b in metal._SYSTEMS}
    ours = {
        "MTLResourceStorageModeShared": metal._SHARED,
        "MTLIndirectCommandTypeConcurrentDispatch": metal._CONCURRENT_DISPATCH,
        "MTLCommandBufferStatusError": metal._FAILED,
        "MTLGPUFamilyApple9": metal._INDIRECT_SETS_PIPELINES,
        **chips,
        **languages,
    }
    assert ours == {name: values[name] for name in ours}
    assert values["MTLResourceUsageRead"] | values["MTLResourceUsageWrite"] == metal._READ_WRITE


def test_the_device_sends_no_other_message() -> None:
    """Whatever has arguments is named like a message; the stand-in answers those of the table and no other."""
    tree = ast.parse(Path(str(metal.__file__)).read_text())
    sent = {message(node.attr) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.endswith("_")}
    foundation = {"fileURLWithPath:"}  # NSURL's
    assert {name for name in CALLS if ":" in name} == sent - foundation


def test_an_answer_of_another_shape_is_refused() -> None:
    """What the stand-in once did: a reflection that nobody asked for."""
    wrong = as_pyobjc("newComputePipelineStateWithDescriptor_options_reflection_error_", lambda *args: ("pipeline", None, None))
    with pytest.raises(AssertionError, match="returns 1 values"):
        wrong("device", "description", 0, None, None)
