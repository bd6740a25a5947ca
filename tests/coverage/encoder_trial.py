"""One encoder of `transformers`: a tiny random model that embeds, compiled for this CPU and compared, alone and in a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ferrum import LLM
from ferrum.codegen.options import CompileOptions
from tests.coverage.outcomes import DIFFERS, RUNS, UNTRIED, Outcome
from tests.coverage.shrink import NoConfiguration, tiny_config
from tests.coverage.trial import MOST_PARAMETERS, TOLERANCE, compiled, guarded, prompts
from tests.graphs.tiny_models import random_model


def try_encoder(kind: str) -> Outcome:
    """Never raises: what is raised is the outcome."""
    return guarded(tried, kind)


def tried(kind: str, folder: Path) -> Outcome:
    """The mean of a text's rows at length 1, beside that of `transformers`. Raises whatever a fault of ours raises."""
    try:
        model = model_of(kind, folder / "model")
    except NoConfiguration as reason:
        return Outcome(kind, UNTRIED, (str(reason),))
    options = CompileOptions(str(folder / "model"), quant="f32", output=folder / "model.fpk", pooling="mean")
    return compiled(kind, options) or compared(kind, model, folder / "model.fpk")


def model_of(kind: str, folder: Path) -> Any:
    """A tiny model, saved. Raises ``NoConfiguration`` where `transformers` itself has none that makes rows of tokens."""
    config = tiny_config(kind, decoder=False)
    try:
        model = random_model(config, auto=transformers.AutoModel)
        if (count := sum(p.numel() for p in model.parameters())) > MOST_PARAMETERS:
            raise NoConfiguration(f"a tiny configuration of {count:,} parameters")
        found = rows(model, list(range(3, 13)))
        model.save_pretrained(folder)
    except NoConfiguration:
        raise
    except Exception as error:
        raise NoConfiguration(f"{type(error).__name__}: {' '.join(str(error).splitlines()[:1])}") from error
    if not np.isfinite(found).all() or found.ndim != 2 or len(found) != 10:
        raise NoConfiguration(f"rows of shape {list(found.shape)}, {'finite' if np.isfinite(found).all() else 'not all finite'}")
    return model


def rows(model: Any, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(input_ids=torch.tensor([tokens])).last_hidden_state[0].float().numpy())


def compared(kind: str, model: Any, pack: Path) -> Outcome:
    means = [rows(model, prompt).mean(0) for prompt in prompts()]
    wanted = np.array([mean / np.linalg.norm(mean) for mean in means])
    with LLM(str(pack), trust=True, max_num_seqs=len(wanted)) as llm:
        together = llm.embed(prompts())
        alone = np.concatenate([llm.embed([prompt]) for prompt in prompts()])
    error = float(np.abs(together - wanted).max())
    if not error <= TOLERANCE:
        return Outcome(kind, DIFFERS, (f"embeddings differ by {error:.3g}",))
    if not np.array_equal(together, alone):
        return Outcome(kind, DIFFERS, ("an embedding depends on what else is in the step",))
    return Outcome(kind, RUNS, (f"{error:.1e}",))
