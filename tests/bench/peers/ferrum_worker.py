"""One prompt through a loaded pack with a clock around every launch; prints the time of each kind of kernel."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ferrum.devices.base import DeviceOptions
from ferrum.engine.load import load_model
from ferrum.engine.sampling import SamplingParams
from ferrum.engine.scheduler import EngineOptions


def launch_kinds(plan: dict[str, Any]) -> list[str]:
    """The kind of kernel of each launch: its symbol without the digest."""
    return [launch["symbol"].rpartition("_")[0] or launch["symbol"] for launch in plan["launches"]]


def main(order: dict[str, Any]) -> dict[str, float] | None:
    device = DeviceOptions(max_seqs=1, max_tokens=512, max_model_len=order["prompt"] + 16, num_threads=order["threads"])
    model = load_model(Path(order["pack"]), device_options=device, engine_options=EngineOptions(prefix_cache=False))
    try:
        profile = getattr(model.executor, "profile", None)
        plan = json.loads(bytes(model.pack.member("plan.json")))
        if profile is None or "launches" not in plan:
            return None
        kinds = launch_kinds(plan)
        seconds = np.zeros(len(kinds), np.float64)
        rng = random.Random(0)
        prompt = [rng.randrange(model.info.vocab_size) for _ in range(order["prompt"])]
        model.engine.add("warm", prompt[:64], SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True))
        _until_done(model.engine)
        profile(seconds)
        model.engine.add("measured", prompt, SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True))
        _until_done(model.engine)
        profile(None)
    finally:
        model.close()
    found: dict[str, float] = {}
    for kind, value in zip(kinds, seconds, strict=True):
        found[kind] = found.get(kind, 0.0) + float(value)
    return found


def _until_done(engine: Any) -> None:
    while not any(event.finish_reason for event in engine.step()):
        pass


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
