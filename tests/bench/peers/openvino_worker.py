"""Runs with the peers' Python: converts a GGUF file once, or measures tokens/s of each (prompt, new)."""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main(order: dict[str, Any]) -> list[float]:
    import numpy as np
    import openvino
    import openvino_genai

    if "convert" in order:
        openvino_genai.LLMPipeline(order["convert"], "CPU", enable_save_ov_model=True)
        return []
    pipeline = openvino_genai.LLMPipeline(order["folder"], "CPU", INFERENCE_NUM_THREADS=order["threads"])
    rng = np.random.default_rng(0)

    def measure(prompt: int, new: int) -> float:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new
        config.ignore_eos, config.do_sample = True, False
        ids = rng.integers(256, 30000, (1, prompt)).astype(np.int64)
        started = time.perf_counter()
        result = pipeline.generate(openvino.Tensor(ids), config)
        seconds = time.perf_counter() - started
        assert len(result.tokens[0]) == new
        return prompt / seconds if new <= 1 else 1000 / float(result.perf_metrics.get_tpot().mean)

    measure(64, 4)
    speeds = []
    for prompt, new in order["cases"]:
        if new <= 1:
            measure(prompt, 1)  # the first prompt of a length prepares its kernels
        speeds.append(measure(prompt, new))
    return speeds


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
