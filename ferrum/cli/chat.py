"""A conversation in the terminal: what is remembered, what is left out when the context is full, and how answers are written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ferrum.cli.output import print_notes

if TYPE_CHECKING:
    from ferrum.engine.params import SamplingParams
    from ferrum.llm import LLM

DIM, PLAIN = "\033[2m", "\033[0m"
_ANSWER_SHARE = 4  # a quarter of the context is kept for the answer, or --max-tokens when that is less


class Chat:
    """A conversation with one model; ``answer`` streams to stdout and remembers both sides.

    ``tags``: the marks of the model's reasoning. ``template``: variables for its chat template.
    """

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        tags: tuple[str, str],
        *,
        system: str = "",
        template: dict[str, Any] | None = None,
        jsonl: bool = False,
    ) -> None:
        self.llm, self.params, self.tags = llm, params, tags
        self.jsonl = jsonl
        self.template = template or {}
        self.system = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, str]] = list(self.system)

    def clear(self) -> None:
        self.messages = list(self.system)

    def answer(self, text: str) -> None:
        """Say ``text`` and stream the answer, which is kept as far as it came when Ctrl-C cuts it. Raises FerrumError, and
        then the conversation is as before."""
        messages, prompt = self._fitted([*self.messages, {"role": "user", "content": text}])
        answer = _Answer(_write_json if self.jsonl else Writer().write)
        splitter = self._splitter(prompt)
        try:
            for piece in self.llm.stream(prompt, self.params):
                answer.tokens += len(piece.token_ids)
                answer.reason = piece.finish_reason
                for split in [splitter.feed(piece.text), *([splitter.finish()] if answer.reason else [])]:
                    answer.add(*split)
        except KeyboardInterrupt:
            answer.reason = "interrupted"
            raise
        finally:
            if answer.reason:
                self.messages = [*messages, {"role": "assistant", "content": answer.content}]
                self._end(answer, len(prompt))

    def _fitted(self, messages: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[int]]:
        """The messages without the oldest turns that leave no room for an answer, and their tokens."""
        context = self.llm.info.max_model_len
        room = min(self.params.max_tokens or context, max(1, context // _ANSWER_SHARE))
        kept, dropped = messages[len(self.system) :], 0
        while True:
            prompt = self.llm.chat_prompt([*self.system, *kept], **self.template)
            if len(prompt) + room <= context or len(kept) < 3:
                break
            kept, dropped = kept[2:], dropped + 1
        if dropped:
            turns = "the oldest turn was" if dropped == 1 else f"the {dropped} oldest turns were"
            print_notes([f"the context of {context} tokens is full, so {turns} left out; /clear forgets all"])
        return [*self.system, *kept], prompt

    def _end(self, answer: _Answer, prompt_tokens: int) -> None:
        if self.jsonl:
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": answer.tokens}
            print(json.dumps({"type": "done", "finish_reason": answer.reason, "usage": usage}), flush=True)
            return
        print(flush=True)
        if answer.reason == "length":
            full = answer.tokens < (self.params.max_tokens or self.llm.info.max_model_len)
            where = f"the context of {self.llm.info.max_model_len} tokens is full" if full else "cut at max-tokens"
            unfinished = answer.thought and not answer.content.strip()
            print_notes([where + (", before the reasoning came to its end" if unfinished else "")])

    def _splitter(self, prompt: list[int]) -> Any:
        """Separates what is thought from what is said, by the tags that the pack names."""
        from ferrum.text.reasoning import ReasoningSplitter, opening

        start, end = self.tags
        return ReasoningSplitter(start, end, opening(self.llm.tokenizer.decode(prompt[-32:], skip_special=False), start, end))


class _Answer:
    """One answer while it comes. ``reason``: why it ended."""

    def __init__(self, write: Callable[[str, str], None]) -> None:
        self._write = write
        self.content, self.reason = "", ""
        self.tokens = 0
        self.thought = False

    def add(self, thought: str, said: str, closes: bool) -> None:
        self.thought = self.thought or bool(thought)
        self.content = said if closes else self.content + said
        self._write("reasoning", thought)
        self._write("text", said)


def _write_json(kind: str, text: str) -> None:
    if text:
        print(json.dumps({"type": kind, "text": text}, ensure_ascii=False), flush=True)


class Writer:
    """Streams text; what a model thinks is dim in a terminal and left out elsewhere.

    Each piece ends the dimness that it began, so that however the program ends the terminal is as it was.
    """

    def __init__(self) -> None:
        self._thinking = False

    def write(self, kind: str, text: str) -> None:
        thinking = kind == "reasoning"
        if not text or (thinking and not sys.stdout.isatty()):
            return
        turned = "\n" if self._thinking and not thinking else ""
        self._thinking = thinking
        sys.stdout.write(f"{DIM}{text}{PLAIN}" if thinking else turned + text)
        sys.stdout.flush()
