"""The known-answer gate: ``python -m ferrum.graphs.tiny.evaluate PACK [PACK ...]`` prints accuracy per category and pack.

A folder instead of a pack is evaluated on torch, as the reference.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from ferrum.errors import FerrumError
from ferrum.graphs.tiny.chat import MODEL_FOLDER, Chat
from ferrum.graphs.tiny.data import Problem
from ferrum.graphs.tiny.questions import COUNTS, accuracy, questions

MAX_NEW_TOKENS = 80

Table = dict[str, tuple[int, int]]


def pack_answers(path: Path, problems: Sequence[Problem]) -> list[str]:
    """One greedy answer for each problem from a pack; one that does not end is marked as unended."""
    from ferrum import LLM, SamplingParams

    chat = Chat(Tokenizer.from_file(str(MODEL_FOLDER / "tokenizer.json")))
    prompts = [chat.encode(chat.render(p.messages, p.tools, add_generation_prompt=True)) for p in problems]
    with LLM(str(path)) as llm:
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS))
    return [out.text if out.finish_reason == "stop" else out.text + " <unended>" for out in outputs]


def folder_answers(folder: Path, problems: Sequence[Problem]) -> list[str]:
    """The same from a Hugging Face folder, on torch in f32."""
    from ferrum.graphs.tiny.evaluate_torch import answers, load_model

    chat = Chat(Tokenizer.from_file(str(folder / "tokenizer.json")))
    return answers(load_model(folder), chat, problems)


def evaluate(path: Path, problems: Sequence[Problem], show_wrong: bool = False) -> Table:
    """(right, asked) per category and in ``total``."""
    texts = (folder_answers if path.is_dir() else pack_answers)(path, problems)
    table, wrong = accuracy(problems, texts)
    if show_wrong:
        for problem, text in wrong:
            print(f"{path.name} {problem.category}: {problem.messages[-1]['content']!r} -> {text!r}, not {problem.answer!r}")
    return table


def print_tables(tables: dict[str, Table]) -> None:
    """One row per category, one column per pack, in percent."""
    width = max(7, *(len(name) for name in tables))
    print(f"{'category':<12} {'asked':>5}  " + "  ".join(f"{name:>{width}}" for name in tables))
    for row in (*COUNTS, "total"):
        cells = [table[row] for table in tables.values() if row in table]
        if cells:
            print(
                f"{row:<12} {cells[0][1]:>5}  " + "  ".join(f"{100 * right / asked:>{width - 1}.1f}%" for right, asked in cells)
            )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ferrum.graphs.tiny.evaluate", description=__doc__)
    parser.add_argument("packs", type=Path, nargs="+", metavar="PACK")
    parser.add_argument("--json", action="store_true", help="print right and asked per category and pack as JSON")
    parser.add_argument("--wrong", action="store_true", help="print every wrong answer")
    parser.add_argument("--at-least", type=float, default=0.0, metavar="PERCENT", help="exit 1 if a pack's total is below this")
    options = parser.parse_args(arguments)
    problems = questions()
    try:
        tables = {path.name: evaluate(path, problems, options.wrong) for path in options.packs}
    except FerrumError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({name: {row: list(cell) for row, cell in table.items()} for name, table in tables.items()}))
    else:
        print_tables(tables)
    return int(any(100 * table["total"][0] / table["total"][1] < options.at_least for table in tables.values()))


if __name__ == "__main__":
    sys.exit(main())
