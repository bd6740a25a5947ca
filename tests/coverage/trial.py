"""One type of `transformers`: a tiny random model, checked, compiled for this CPU and compared in prompts, batches and chunks."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from ferrum import LLM, SamplingParams
from ferrum.codegen.driver import check_model, compile_model
from ferrum.codegen.options import CompileOptions
from ferrum.errors import FerrumError
from tests.coverage.outcomes import DIFFERS, FAULT, MISSING, RUNS, UNTRIED, Outcome
from tests.coverage.shrink import LONGEST, VOCAB, NoConfiguration, tiny_config
from tests.graphs.tiny_models import random_model

TOLERANCE = 1e-4
LENGTHS = (1, 2, 19, 64, 90)
CHUNKS = (64, 7, 1)
STEPS = 32
MOST_PARAMETERS = 20_000_000
SHOWN = 12


def prompts() -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(3, VOCAB, length).tolist() for length in LENGTHS]


@dataclass
class Reference:
    """What `transformers` says, each prefix anew."""

    model: Any

    def logits(self, tokens: list[int]) -> np.ndarray:
        with torch.no_grad():
            out = self.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        return np.asarray(out.float().numpy())

    def follow(self, prompt: list[int], found: list[int], tolerance: float) -> str:
        """Nothing if ``found`` are greedy tokens behind ``prompt``, each the best or nearly; else what is wrong."""
        pad = getattr(self.model.config, "pad_token_id", None)
        found = found[: found.index(pad)] if pad in found else found  # padding is no token of a prompt
        rows = self.logits([*prompt, *found])[len(prompt) - 1 : -1]
        for step, (row, token) in enumerate(zip(rows, found, strict=True)):
            short = float(row.max() - row[token])
            if short > 2 * tolerance * max(1.0, float(np.abs(row).max())):
                return f"after {len(prompt)} tokens, step {step}: token {token} is {short:.3g} below the best"
        return ""


def try_kind(kind: str) -> Outcome:
    """A causal language model. Never raises: what is raised is the outcome."""
    return guarded(tried, kind)


def guarded(trial: Callable[[str, Path], Outcome], kind: str) -> Outcome:
    """Never raises: what is raised is the outcome."""
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="ferrum-coverage-") as folder:
            warnings.simplefilter("ignore")
            return trial(kind, Path(folder))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = next((f for f in reversed(frames) if "site-packages" not in f.filename), frames[-1])
        what = str(error).splitlines()[0] if str(error) else ""
        return Outcome(kind, FAULT, (f"{type(error).__name__}: {what} ({Path(own.filename).name}:{own.lineno})",))


def tried(kind: str, folder: Path, chunks: Sequence[int] = CHUNKS) -> Outcome:
    """What comes of a type with prompts in ``chunks`` of tokens. Raises whatever a fault of ours raises."""
    try:
        model = model_of(kind, folder / "model")
    except NoConfiguration as reason:
        return Outcome(kind, UNTRIED, (str(reason),))
    refused = compiled(kind, CompileOptions(str(folder / "model"), quant="f32", output=folder / "model.fpk"))
    return refused or compared(kind, Reference(model), folder / "model.fpk", chunks)


def compiled(kind: str, options: CompileOptions) -> Outcome | None:
    """None, or why it is not compiled, as `ferrum check` says it."""
    try:
        compile_model(options)
    except FerrumError as refused:
        found = told(options)
        return Outcome(kind, MISSING if found else FAULT, found[:SHOWN] or (f"{refused.code}: {refused.what}",))
    return None


def told(options: CompileOptions) -> tuple[str, ...]:
    """What `ferrum check` says of a model that is not compiled: nothing would be a fault."""
    try:
        return tuple(map(str, check_model(options)))
    except FerrumError as error:
        return (f"{error.code}: {error.what}",)


def model_of(kind: str, folder: Path) -> Any:
    """A tiny model, saved. Raises ``NoConfiguration`` where `transformers` itself has none that runs."""
    config = tiny_config(kind)
    try:
        model = random_model(config)
        if (count := sum(p.numel() for p in model.parameters())) > MOST_PARAMETERS:
            raise NoConfiguration(f"a tiny configuration of {count:,} parameters")
        rows = Reference(model).logits(list(range(3, 13)))
        model.save_pretrained(folder)
    except NoConfiguration:
        raise
    except Exception as error:
        raise NoConfiguration(f"{type(error).__name__}: {' '.join(str(error).splitlines()[:1])}") from error
    if not np.isfinite(rows).all() or rows.shape != (10, VOCAB):
        raise NoConfiguration(f"logits of shape {list(rows.shape)}, {'finite' if np.isfinite(rows).all() else 'not all finite'}")
    return model


def compared(kind: str, reference: Reference, pack: Path, chunks: Sequence[int]) -> Outcome:
    """Logits of each prompt, then greedy tokens of all in one batch, in chunks of several sizes."""
    worst, wrong = 0.0, []
    for chunk in chunks:
        with LLM(str(pack), trust=True, max_num_seqs=len(LENGTHS), max_prefill_chunk=chunk) as llm:
            for prompt in prompts():
                wanted = reference.logits(prompt)
                error = np.abs(llm.logits(prompt) - wanted) / (1 + np.abs(wanted))
                worst = max(worst, float(error.max())) if np.isfinite(error).all() else float("inf")
                if not worst <= TOLERANCE:
                    return Outcome(kind, DIFFERS, (f"logits of {len(prompt)} tokens in chunks of {chunk} differ by {worst:.3g}",))
            steps = [min(STEPS, LONGEST - len(prompt)) for prompt in prompts()]
            params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in steps]
            for prompt, output in zip(prompts(), llm.generate(prompts(), params), strict=True):
                if fault := reference.follow(prompt, list(output.token_ids), TOLERANCE):
                    wrong.append(f"chunks of {chunk}, {fault}")
    return Outcome(kind, DIFFERS, tuple(wrong[:SHOWN])) if wrong else Outcome(kind, RUNS, (f"{worst:.1e}",))


def version() -> str:
    return str(transformers.__version__)
