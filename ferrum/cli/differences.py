"""Where two packs differ by what they say of themselves, from the model to the size of the file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest

from ferrum.cli.output import count, size
from ferrum.pack.programs import build_of, require_step
from ferrum.pack.reader import Pack
from ferrum.pack.schema import KernelRecord, Manifest, TensorRecord

Differences = list[tuple[str, str, str]]
_AROUND = 40  # characters on each side of a difference


def differences(first: Pack, second: Pack) -> Differences:
    """(what, of the first pack, of the second) for everything in which they differ; what decides most comes first."""
    sides = dict(_facts(first)), dict(_facts(second))
    found = [(what, left, sides[1][what]) for what, left in sides[0].items() if left != sides[1][what]]
    return [*found, *_firsts(first, second), *_sizes(first, second)]


def _facts(pack: Pack) -> Iterator[tuple[str, str]]:
    manifest = pack.manifest
    model, target, made = manifest.model, manifest.target, manifest.provenance
    yield "model", f"{model.name} ({model.family})"
    yield "source", " ".join(filter(None, (model.source, model.revision)))
    yield "checkpoint", made.source_sha256[:12]
    yield "vocabulary", str(model.vocab_size)
    yield "longest sequence", f"{model.max_model_len} tokens"
    yield "target", f"{target.name} ({', '.join(target.features) or 'baseline'})"
    yield "weights", model.quant
    yield "blocks", made.blocks
    yield "formats", _formats(manifest)
    yield "states", "; ".join(f"{s.kind} {', '.join(f'{a.name} {a.dtype}' for a in s.arrays)}" for s in manifest.states)
    yield "activations", made.options.get("activations", "auto")
    yield "fused", made.options.get("fuse", "yes")
    yield "code", ", ".join(code.name for code in manifest.code)
    yield "toolchain", "; ".join(dict.fromkeys(code.toolchain for code in manifest.code))
    yield "made by", f"{made.compiler}, templates {made.templates_sha256[:12]}"


def _formats(manifest: Manifest) -> str:
    """``int8-g64 1.02 M, f32 5.1 K``: values by number format, the most first."""
    values: Counter[str] = Counter()
    for tensor in manifest.tensors:
        values[tensor.format] += math.prod(tensor.shape)
    return ", ".join(f"{fmt} {count(number)}" for fmt, number in values.most_common())


def _firsts(first: Pack, second: Pack) -> Differences:
    """The first line of the graph, the first tensor and the first kernel that are not the same."""
    graphs = [bytes(p.member(require_step(p.manifest, str(p.path)).graph)).decode("utf-8").splitlines() for p in (first, second)]
    kernels = [build_of(p.manifest, path=str(p.path)).kernels for p in (first, second)]
    tensors = [p.manifest.tensors for p in (first, second)]
    texts = {
        "graph, first": graphs,
        "tensor, first": [[_tensor(t) for t in side] for side in tensors],
        "kernel, first": [[_kernel(k) for k in side] for side in kernels],
    }
    found = []
    for what, (left, right) in texts.items():
        pair = next((pair for pair in zip_longest(left, right, fillvalue="-") if pair[0] != pair[1]), None)
        if pair is not None:
            found.append((what, *_clipped(*pair)))
    if len(kernels[0]) != len(kernels[1]):
        found.append(("kernels", str(len(kernels[0])), str(len(kernels[1]))))
    return found


def _clipped(left: str, right: str) -> tuple[str, str]:
    """Both cut to what is around their first difference, with the beginning, which names what they are of."""
    same = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    begin, end = (0, same + _AROUND) if same <= 2 * _AROUND else (same - _AROUND // 2, same + _AROUND)

    def cut(text: str) -> str:
        head = f"{text[:_AROUND]}…" if begin else ""
        return f"{head}{text[begin:end]}{'…' if len(text) > end else ''}"

    return cut(left), cut(right)


def _tensor(tensor: TensorRecord) -> str:
    return f"{tensor.name} {tensor.format} {tensor.layout} {' x '.join(map(str, tensor.shape))}"


def _kernel(kernel: KernelRecord) -> str:
    return f"{kernel.spec} {', '.join(f'{name} {value}' for name, value in kernel.params.items())}, {kernel.calls} calls"


def _sizes(first: Pack, second: Pack) -> Differences:
    files = [pack.path.stat().st_size for pack in (first, second)]
    weights = [pack.manifest.weights_bytes for pack in (first, second)]
    pairs = {"size": files, "weights' size": weights}
    return [(what, size(left), size(right)) for what, (left, right) in pairs.items() if left != right]
