"""Makes the tables of docs/checkpoints.md: ``python -m ferrum.graphs.gguf.reference FILE`` (`make docs`)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from ferrum.families import architectures as recorded
from ferrum.graphs.expressions.ggml.table import BLOCKS
from ferrum.graphs.gguf.architectures import ARCHITECTURES, Architecture
from ferrum.graphs.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer


def filled(page: str) -> str:
    """The page with its tables made anew."""
    tables = {"models": _models(), "blocks": _blocks(), "pieces": _pieces()}
    for name, lines in tables.items():
        pattern = re.compile(rf"(<!-- made: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = "\n".join(lines)
        page = pattern.sub(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page)  # type: ignore[misc]
    return page


def _models() -> Iterable[str]:
    yield "| `general.architecture` | as | imported | what is undone |"
    yield "|---|---|---|---|"
    for record in ARCHITECTURES:
        way = "by a record" if record.model in recorded() else "traced"
        yield f"| `{record.name}` | {record.model} | {way} | {', '.join(_undone(record)) or '–'} |"


def _undone(record: Architecture) -> Iterable[str]:
    if record.permuted:
        yield "rows of q and k in pairs"
    if record.shifted:
        yield "norms of 1 + w"
    if record.transposed:
        yield "transposed matrices"


def _blocks() -> Iterable[str]:
    yield "| type | values | bytes | bits a value | values a scale | least values |"
    yield "|---|---|---|---|---|---|"
    for name, block in BLOCKS.items():
        bits = f"{8 * block.nbytes / block.size:.4g}"
        yield f"| {name.upper()} | {block.size} | {block.nbytes} | {bits} | {block.group} | {'yes' if block.mins else '–'} |"


def _pieces() -> Iterable[str]:
    groups: dict[PreTokenizer, list[str]] = {}
    for name, pre in PRE_TOKENIZERS.items():
        groups.setdefault(pre, []).append(f"`{name}`" if name else "none")
    yield "| `tokenizer.ggml.pre` that cut alike | a word that is a token is that one |"
    yield "|---|---|"
    for pre, names in groups.items():
        yield f"| {', '.join(names)} | {'yes' if pre.whole else '–'} |"


def main() -> None:
    path = Path(sys.argv[1])
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
