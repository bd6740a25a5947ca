"""Sliding windows in emulation: what is behind a window is NaN while a step runs, and the answers are those of the full cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ferrum.devices.emulate.device import EmulatedDevice
from ferrum.devices.options import DeviceOptions
from ferrum.engine.engine import Engine
from ferrum.engine.options import EngineOptions
from ferrum.pack.reader import Pack, open_pack
from tests.codegen.folders import compile_folder
from tests.engine.oracle import drain
from tests.engine.windows import Poisoned, answers, blocks_of_emulator, greedy, keep_everything, prompt_of, said, save_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
WINDOW, CHUNK, LENGTH = 40, 32, 512


@contextmanager
def device(pack: Pack, **changes: Any) -> Iterator[Poisoned]:
    options = DeviceOptions(**{"max_seqs": 2, "max_tokens": CHUNK, "max_model_len": LENGTH, **changes})
    executor = EmulatedDevice().load(pack, options)
    try:
        yield Poisoned(executor, blocks_of_emulator(executor))
    finally:
        executor.close()


@pytest.mark.parametrize(
    ("target", "quant", "mixed"),
    [
        ("cuda-sm80", "none", True), ("metal-m1", "none", True),
        *(pytest.param("cuda-sm80", quant, False, marks=pytest.mark.sweep) for quant in ("none", "f32")),
    ],
)
def test_released_blocks_are_never_read(target: str, quant: str, mixed: bool, tmp_path: Path) -> None:
    """Decoding, prefill and the plain kernel; with float32 there are no matrix instructions and the last one does all."""
    folder = save_model(tmp_path, WINDOW, mixed, LENGTH, head_dim=64)
    prompts = [prompt_of(1, 100), prompt_of(2, 20)]
    with open_pack(compile_folder(folder, quant, target)) as pack:
        with device(pack) as released:
            found = answers(released, prompts, 3)
            assert released.passed and 16 * released.held[1] <= WINDOW + CHUNK + 2 * 16
            engine = Engine(released, EngineOptions())  # type: ignore[arg-type]
            heard = []  # alone: rows of a larger step may be multiplied by another kernel
            for i in range(2):  # the second goes on from the first one's prefix
                engine.add(str(i), prompts[0], greedy(3))
                (events,) = drain(engine).values()
                heard.append(said(events))
                assert events[0].cached_tokens == 96 * i
            assert heard[0] == heard[1] and [token for token, _, _ in heard[0]] == [token for token, _, _ in found[0]]
        with pytest.MonkeyPatch.context() as patch:
            keep_everything(patch)
            with device(pack) as full:
                assert answers(full, prompts, 3) == found and not full.passed
