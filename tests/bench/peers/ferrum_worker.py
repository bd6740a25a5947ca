"""Prompts through a loaded pack, one after the other, each without a round of its own to warm up.

For long prompts, where ``ferrum bench`` would compute each twice. Prints what ``measure`` returns, for each (prompt, new).
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ferrum.devices.base import variant_of
from ferrum.devices.options import DeviceOptions
from ferrum.engine.engine import Engine
from ferrum.engine.load import LoadedModel, load_model
from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.pack.launch_check import read_table

PIECES = 3  # samples of one long generation


def launch_kinds(symbols: list[str]) -> list[str]:
    """The kind of kernel of each launch: its symbol without the digest."""
    return [re.sub("_[0-9a-f]{10}", "", symbol) for symbol in symbols]


def main(order: dict[str, Any]) -> list[dict[str, Any]]:
    longest = max(prompt + new for prompt, new in order["cases"])
    device = DeviceOptions(max_seqs=1, max_tokens=512, max_model_len=longest + 16, num_threads=order["threads"])
    model = load_model(Path(order["pack"]), device_options=device, engine_options=EngineOptions(prefix_cache=False))
    try:
        _generate(model.engine, model.info.vocab_size, 64, 2)
        return [measure(model, prompt, new) for prompt, new in order["cases"]]
    finally:
        model.close()


def measure(model: LoadedModel, prompt: int, new: int) -> dict[str, Any]:
    """``prefill``: tokens/s; ``decode``: tokens/s of equal parts; ``kernels``: seconds of each kind of kernel, if known."""
    profile = getattr(model.executor, "profile", None)
    kinds = launch_kinds([launch.symbol for launch in read_table(model.pack, variant_of(model.executor)).launches])
    seconds = np.zeros(len(kinds), np.float64)
    if profile is not None:
        profile(seconds)
    first, *steps = _generate(model.engine, model.info.vocab_size, prompt, new)
    if profile is not None:
        profile(None)
    kernels: dict[str, float] = {}
    for kind, value in zip(kinds, seconds, strict=True):
        kernels[kind] = kernels.get(kind, 0.0) + float(value)
    size = max(1, len(steps) // PIECES)
    parts = [steps[i : i + size] for i in range(0, len(steps) - size + 1, size)]
    return {
        "prefill": prompt / first,
        "decode": [len(part) / sum(part) for part in parts],
        "kernels": kernels if profile is not None else {},
    }


def _generate(engine: Engine, vocab_size: int, prompt: int, new: int) -> list[float]:
    """Seconds until the first token and of each later step."""
    rng = random.Random(prompt)
    params = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True)
    last = time.perf_counter()
    engine.add(f"{prompt}-{last}", [rng.randrange(vocab_size) for _ in range(prompt)], params)
    times: list[float] = []
    finished = False
    while not finished:
        for event in engine.step():
            now = time.perf_counter()
            times.append(now - last)
            last, finished = now, bool(event.finish_reason)
    return times


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
