"""The proof inside a pack: prompts with the interpreter's answers, computed from the stored weights, then run on the device."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ferrum.codegen.layouts import parse_layout
from ferrum.codegen.plan import Tensor
from ferrum.devices.base import Executor
from ferrum.devices.host import machine_arch, machine_features
from ferrum.devices.options import DeviceOptions
from ferrum.errors import FerrumError
from ferrum.graphs.interpret import reference_greedy
from ferrum.graphs.ir import Graph, Param
from ferrum.graphs.programs import program_of
from ferrum.pack.layers import LayerPoint, LayerTest
from ferrum.pack.pages import WINDOW, GivingBack, give_back
from ferrum.pack.programs import kv_groups
from ferrum.pack.reader import Pack, open_pack
from ferrum.pack.schema import ENCODE, SelfTest, SelfTestCase
from ferrum.pack.selftest import read_layers, read_selftest
from ferrum.proof.numbers import check_case, describe_case
from ferrum.proof.sketch import sketch, stored

# Largest error of a logit, relative to the largest one: rounding of activations to the products' formats, layer by layer.
# The same of a cache's format, by its name.
TOLERANCE = {"f32": 1e-3, "none": 4e-2, "bf16": 4e-2, "fp8": 4e-2, "int8": 1e-1}
_QUANTIZED_TOLERANCE = 1.5e-1
# Of the same tolerance, for values inside of the model: where a fault is looked for when logits are wrong, and what
# rounding never reaches where they are right.
_SUSPECT, _LIMIT = 0.5, 5
# Where activations are bytes, one token of a short prompt may be quite another inside of a model whose residual stream is
# ruled by a few huge values, and all end as they should: only a value that is no more like its reference than zeros is a fault.
_ALL_WRONG = 1.0
_TOP = 16
_SMALL_MODEL = 100_000_000  # parameters; of larger ones fewer tokens are followed, since each step decodes all weights
_EMULATED_MODEL = 20_000_000  # parameters; a step of larger ones takes minutes in emulation
_PROMPT_LENGTHS = (33, 1, 9)
_GREEDY, _GREEDY_LARGE = 8, 2


def tolerance(quant: str, kv_dtype: str) -> float:
    """Largest error of a logit that rounding explains."""
    return max(TOLERANCE.get(quant, _QUANTIZED_TOLERANCE), TOLERANCE.get(kv_dtype, 0.0))


class StoredWeights:
    """Parameters as float32, decoded from the packed bytes: quantization is the pack's, not an error of the kernels.

    ``mapped`` is the file of the pack, whose weights start at ``start``; pages that were read are given back.
    """

    def __init__(self, tensors: Sequence[Tensor], mapped: mmap.mmap, start: int) -> None:
        self.tensors = {t.name: t for t in tensors}
        self._mapped = mapped
        self._data = memoryview(mapped)[start:]
        self._read = 0.0

    def get(self, param: Param) -> NDArray[np.float32]:
        return self.rows(param, slice(None))

    def rows(self, param: Param, ids: slice | NDArray[np.integer]) -> NDArray[np.float32]:
        tensor = self.tensors[param.name]
        if not tensor.shape:
            at = tensor.offset
            return parse_layout(tensor.layout, tensor.format, ()).decode(self._data[at : at + tensor.nbytes])
        chosen = np.arange(*ids.indices(tensor.shape[0])) if isinstance(ids, slice) else ids
        if self._read >= WINDOW:
            give_back(self._mapped)
            self._read = 0.0
        self._read += tensor.nbytes * len(chosen) / tensor.shape[0]
        layout = parse_layout(tensor.layout, tensor.format, tensor.shape)
        return layout.decode(self._data[tensor.offset : tensor.offset + tensor.nbytes], chosen)


@dataclass(frozen=True)
class Reference:
    """What the interpreter says: the self-test, and for each of its cases the sketches of all values of tokens by name."""

    test: SelfTest
    sketches: list[dict[str, list[float]]]

    def layers(self, points: Mapping[str, LayerPoint]) -> LayerTest:
        """The test of the layers where a target shows them."""
        allowed = self.test.tolerance
        limit = _LIMIT * allowed if allowed < TOLERANCE["int8"] else _ALL_WRONG
        chosen = [[case[name] for name in points] for case in self.sketches]
        return LayerTest(tolerance=_SUSPECT * allowed, limit=limit, points=list(points.values()), sketches=chosen)


def make_reference(
    graph: Graph, weights: StoredWeights, allowed: float, vocab_size: int, parameters: int, max_len: int
) -> Reference:
    """Prompts of fixed random tokens (``allowed``: the largest error of a number) and what the interpreter makes of them: logits
    and what follows, or the embedding."""
    random = np.random.default_rng(2024)
    encodes = program_of(graph) == ENCODE
    steps = 0 if encodes else min(_GREEDY if parameters < _SMALL_MODEL else _GREEDY_LARGE, max_len - 1)
    prompts = [random.integers(0, vocab_size, min(n, max(1, max_len - _GREEDY))).tolist() for n in _PROMPT_LENGTHS]
    ends = np.cumsum([len(prompt) for prompt in prompts]).tolist()
    sketches: list[dict[str, list[float]]] = [{} for _ in prompts]
    shown = {v.name for node in graph.nodes for v in node.outputs if v.shape[:1] == ("tokens",) and v.dtype == "f32"}

    def observe(name: str, value: NDArray[np.generic]) -> None:
        if name in shown:
            for case, rows in zip(sketches, np.split(value.reshape(ends[-1], -1), ends[:-1]), strict=True):
                case[name] = stored(sketch(rows))

    greedy, rows = reference_greedy(graph, prompts, steps, weights, observe=observe)
    cases = []
    for tokens, continuation, row in zip(prompts, greedy, rows, strict=True):
        top = np.argsort(-np.abs(row) if encodes else -row, kind="stable")[:_TOP]
        cases.append(
            SelfTestCase(
                tokens=tokens,
                top_tokens=top.tolist(),
                top_logits=row[top].astype(float).tolist(),
                logit_norm=float(np.linalg.norm(row)),
                greedy=continuation,
            )
        )
    return Reference(SelfTest(tolerance=allowed, cases=cases), sketches)


def runs_here(arch: str, features: Sequence[str]) -> bool:
    return arch == machine_arch() and machine_features().issuperset(features)


def load_for_proof(pack: Pack, variant: str = "") -> Executor:
    """A variant of the pack's code on its device, with just enough memory for the self-test."""
    tokens = max(_PROMPT_LENGTHS) + _GREEDY
    length = min(tokens, pack.manifest.model.max_model_len)
    groups = kv_groups(pack.manifest)
    room = -(-length // groups[0].unit) * sum(group.unit_bytes for group in groups)
    options = DeviceOptions(
        max_seqs=1, max_tokens=tokens, max_model_len=length, kv_cache_bytes=room, prefault=False, variant=variant
    )
    if pack.manifest.target.device == "cpu":
        from ferrum.devices.cpu import CpuDevice

        return CpuDevice().load(pack, options)
    from ferrum.devices.emulate.device import EmulatedDevice

    return EmulatedDevice().load(pack, options)


def emulates(device: str, parameters: int) -> bool:
    """Whether a whole pack is run in emulation: small ones for a GPU."""
    return device != "cpu" and parameters <= _EMULATED_MODEL


def prove(path: Path, variant: str = "") -> float:
    """Run the self-test by a variant of the code on the device, or in emulation for a GPU's pack; the largest error seen.

    Raises FerrumError when the pack and the interpreter differ.
    """
    worst = 0.0
    with open_pack(path, trust=True) as pack, GivingBack(pack.address("weights"), pack.weights.nbytes):
        test, layers = read_selftest(pack), read_layers(pack, variant)
        executor = load_for_proof(pack, variant)
        try:
            for index, case in enumerate(test.cases):
                report = check_case(executor, case, index, test.tolerance, layers)
                worst = max(worst, report.error)
                if not report.passes(test.tolerance):
                    raise FerrumError(
                        "proof-failed",
                        f"code{f' {variant}' if len(pack.manifest.code) > 1 else ''} and interpreter differ: "
                        f"{describe_case(report, test.tolerance)}",
                        "stage prove",
                        "this is a fault of ferrum: report it with the model's config.json; --no-prove skips the check",
                    )
        finally:
            executor.close()
    return worst
