"""``ferrum run``: chat in the terminal, streaming; one answer with --prompt or from a pipe."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ferrum.cli.arguments import add_compile_choices, add_load_choices, add_model, find_pack
from ferrum.cli.chat import Chat
from ferrum.cli.options import fraction, is_interactive, non_negative, penalty, positive, temperature
from ferrum.cli.prompts import LEAVE, help_text, line_editing, prompt_of, read_prompt
from ferrum.errors import FerrumError

if TYPE_CHECKING:
    from ferrum.engine.params import SamplingParams
    from ferrum.llm import LLM
    from ferrum.structured.wish import Structured


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_compile_choices(parser)
    add_load_choices(parser)
    add = parser.add_argument
    add("--prompt", default=None, metavar="TEXT", help="answer this and end (default: chat, or the prompt from a pipe)")
    add("--system", default="", metavar="TEXT", help="system message")
    add("--max-tokens", type=positive, default=1024, metavar="N", help="longest answer in tokens (default 1024)")
    add("--stop", action="append", default=None, metavar="TEXT", help="end the answer at this text (repeatable)")
    add("--temperature", type=temperature, default=None, metavar="T", help="0 is greedy (default: the model's)")
    add("--top-k", type=non_negative, default=None, metavar="K", help="sample among the K likeliest tokens; 0 is all")
    add("--top-p", type=fraction, default=None, metavar="P", help="sample among the likeliest tokens of this total probability")
    add("--repeat-penalty", type=penalty, default=None, metavar="R", help="penalty for tokens that were there already; 1 is none")
    add("--seed", type=non_negative, default=None, metavar="N", help="make sampling repeatable")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json-schema", default=None, metavar="FILE", help="answer in JSON that keeps to the schema in this file")
    form.add_argument("--grammar", default=None, metavar="FILE", help="answer by the grammar in this file (Lark or GBNF)")
    thinking = parser.add_mutually_exclusive_group()
    thinking.add_argument(
        "--enable-thinking", dest="thinking", action="store_true", default=None, help="let the model reason first"
    )
    thinking.add_argument("--disable-thinking", dest="thinking", action="store_false", default=None, help="answer directly")
    add("--output-format", default="text", choices=("text", "jsonl"), help="jsonl: one JSON object for each piece (default text)")


def run(args: argparse.Namespace) -> int:
    from ferrum.hub import parse_name
    from ferrum.text.bounded_process import TEMPLATES, make_ready

    parse_name(args.model)  # a wrong name is said before a prompt is read
    prompt = _given_prompt(args)
    path = find_pack(args)
    make_ready(TEMPLATES)
    from ferrum.llm import LLM
    from ferrum.pack.reader import read_manifest

    with LLM(path, max_num_seqs=1, max_model_len=args.max_model_len, num_threads=args.threads, trust=args.trust) as llm:
        text = read_manifest(path).text
        chat = Chat(
            llm,
            _sampling(llm, args),
            (text.reasoning_start, text.reasoning_end),
            system=args.system,
            template={} if args.thinking is None else {"enable_thinking": args.thinking},
            jsonl=args.output_format == "jsonl" or args.json,
        )
        if prompt is not None:
            chat.answer(prompt)
            return 0
        return _converse(chat)


def _given_prompt(args: argparse.Namespace) -> str | None:
    """The one prompt of a one-shot run; None for a conversation."""
    if args.prompt is not None:
        text = str(args.prompt)
    elif sys.stdin.isatty():
        return None
    else:
        text = sys.stdin.read().rstrip("\r\n")  # the newline that ends a line is the shell's, not the prompt's
    if not text.strip():
        raise FerrumError("prompt-empty", "the prompt is empty", "--prompt or stdin", "give a text")
    return text


def _sampling(llm: LLM, args: argparse.Namespace) -> SamplingParams:
    """The model's defaults with the flags that were given in their place."""
    given = {
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "repetition_penalty": args.repeat_penalty,
        "seed": args.seed,
        "stop": tuple(args.stop) if args.stop else None,
        "structured": _structured(args),
    }
    return dataclasses.replace(llm.default_params, **{name: value for name, value in given.items() if value is not None})


def _structured(args: argparse.Namespace) -> Structured | None:
    """The form of answers that a file gives; its content is checked with the first one. Raises FerrumError."""
    from ferrum.structured.wish import Structured

    name, path = ("json", args.json_schema) if args.json_schema is not None else ("grammar", args.grammar)
    if path is None:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise FerrumError("grammar-refused", f"cannot read the file: {reason}", path, "give a readable file") from None
    return Structured(json=text) if name == "json" else Structured(grammar=text)


def _converse(chat: Chat) -> int:
    if is_interactive():
        print("/help lists the commands, /bye or Ctrl-D ends", file=sys.stderr)
        line_editing()
    while True:
        try:
            text = read_prompt()
        except EOFError:
            print()
            return 0
        if text in LEAVE:
            return 0
        if text == "/clear":
            chat.clear()
        elif text == "/help":
            print(help_text(), file=sys.stderr)
        elif prompt := prompt_of(text):
            _answer_or_report(chat, prompt)


def _answer_or_report(chat: Chat, text: str) -> None:
    """An answer that fails or is interrupted ends itself, not the conversation."""
    try:
        chat.answer(text)
    except KeyboardInterrupt:
        print("(interrupted)", file=sys.stderr)
    except FerrumError as error:
        print(f"error: {error}", file=sys.stderr)
