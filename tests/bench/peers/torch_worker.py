"""Runs with the peers' Python: tokens/s of transformers in bfloat16 for each (prompt, new)."""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main(order: dict[str, Any]) -> list[float]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(order["threads"])
    model = AutoModelForCausalLM.from_pretrained(order["folder"], dtype=torch.bfloat16).eval()
    vocab = model.config.vocab_size
    speeds = []
    with torch.inference_mode():
        model(torch.randint(vocab, (1, 8)))
        for prompt, new in order["cases"]:
            started = time.perf_counter()
            out = model(torch.randint(vocab, (1, prompt)), use_cache=True, logits_to_keep=1)
            seconds = time.perf_counter() - started
            if new <= 1:
                speeds.append(prompt / seconds)
                continue
            started = time.perf_counter()
            for _ in range(new):
                token = out.logits[:, -1:].argmax(-1)
                out = model(token, past_key_values=out.past_key_values, use_cache=True)
            speeds.append(new / (time.perf_counter() - started))
    return speeds


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
