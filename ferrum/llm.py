"""``LLM``: a pack as a Python object, with the engine in this process.

>>> with LLM("qwen3-4b.cpu.fpk") as llm:
...     print(llm.generate("Once upon a time", SamplingParams(max_tokens=32))[0].text)
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ferrum.devices.options import DeviceOptions
from ferrum.engine.load import load_model
from ferrum.engine.options import EngineOptions
from ferrum.engine.outputs import Completion, Output, Piece, TokenLogprob
from ferrum.engine.params import SamplingParams
from ferrum.engine.reports import EngineInfo, EngineStats, TokenEvent
from ferrum.errors import FerrumError
from ferrum.pack.programs import require_step
from ferrum.pack.prompts import Prompts, read_prompts
from ferrum.structured.wish import Structured

if TYPE_CHECKING:
    from ferrum.structured.model import ModelGrammars
    from ferrum.text.stream import TextStream
    from ferrum.text.template_process import TemplateProcess
    from ferrum.text.tokenizer import Tokenizer

__all__ = ["LLM", "Completion", "Output", "Piece", "SamplingParams", "Structured", "TokenLogprob", "resolve_pack"]

MAX_QUEUE = 1 << 30  # a list of prompts is in memory anyway
TAIL_TOKENS = 32  # of a prompt, which tell whether it leaves a model within its reasoning
Prompt = str | Sequence[int]


def resolve_pack(name: str | os.PathLike[str], **request: Any) -> Path:
    """The pack that ``name`` means: a pack's path, or a model that is pulled and compiled first if it has no pack yet.

    ``request``: fields of ``ferrum.store.PackRequest``. Raises FerrumError.
    """
    text = os.fspath(name)
    if text.endswith(".fpk"):
        return Path(text)
    from ferrum import store

    return store.resolve_pack(text, store.PackRequest(**request))


class _NoText:
    """Stands for a text stream when the pack has no tokenizer: tokens are all there is."""

    stopped = False

    def feed(self, token: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


@dataclass
class _Choice:
    stream: TextStream | _NoText
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str = ""


@dataclass
class _Request:
    """A request under way. ``events`` were delivered and not yet consumed, perhaps by another thread's step."""

    id: str
    prompt: list[int]
    params: SamplingParams
    choices: list[_Choice]
    events: deque[TokenEvent] = field(default_factory=deque)
    cached_tokens: int = 0
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return all(c.finish_reason for c in self.choices)


class LLM:
    """A loaded model. Usable as a context manager and from several threads, which then share its steps.

    ``model``: a pack's path or a model's name. ``device``: "auto" is the one that the pack was compiled for, and this CPU for
    a model's name; "cpu", "cuda", "metal"; "emulate" runs a GPU's pack on the CPU. ``quant``: for a model that must be
    compiled. ``max_model_len`` 0: as compiled. ``kv_cache_memory``: bytes, 0 chooses. ``trust``: open a pack that was neither
    built here nor signed by a trusted key. Raises FerrumError.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        device: str = "auto",
        *,
        quant: str = "keep",
        kv_dtype: str = "",
        activations: str = "auto",
        max_num_seqs: int = 16,
        max_num_batched_tokens: int = 512,
        max_prefill_chunk: int = 0,
        max_model_len: int = 0,
        kv_cache_memory: int = 0,
        num_threads: int = 0,
        prefix_cache: bool = True,
        trust: bool = False,
    ) -> None:
        self._lock = threading.Lock()
        self._requests: dict[str, _Request] = {}
        self._count = 0
        self._closed = False
        self._model = load_model(
            resolve_pack(
                model,
                quant=quant,
                kv_dtype=kv_dtype,
                activations=activations,
                target=device if device in ("cuda", "metal") else "cpu",
            ),
            device=device,
            trust=trust,
            device_options=DeviceOptions(
                max_seqs=max_num_seqs,
                max_tokens=max_num_batched_tokens,
                max_model_len=max_model_len,
                kv_cache_bytes=kv_cache_memory,
                num_threads=num_threads,
            ),
            engine_options=EngineOptions(max_prefill_chunk=max_prefill_chunk, max_queue=MAX_QUEUE, prefix_cache=prefix_cache),
        )

    @property
    def info(self) -> EngineInfo:
        """Sizes and memory of what was loaded."""
        return self._model.info

    @cached_property
    def tokenizer(self) -> Tokenizer:
        from ferrum.text.tokenizer import Tokenizer

        pack = self._model.pack
        if "tokenizer.json" not in pack:
            step = "give token ids, or compile a folder that has a tokenizer.json"
            raise FerrumError("no-tokenizer", "the pack has no tokenizer, so it takes no text", str(pack.path), step)
        data = pack.member("tokenizer.json")
        return Tokenizer(data)

    @cached_property
    def chat_template(self) -> TemplateProcess:
        """Raises FerrumError when the pack has none."""
        from ferrum.text.template_process import pack_templates

        pack = self._model.pack
        made = pack_templates(pack)
        if made is None:
            require_step(pack.manifest, str(pack.path))  # of one that only embeds, that is to be said
            raise FerrumError("no-chat-template", "the pack has no chat template", str(pack.path), "give a prompt to generate")
        return made

    @cached_property
    def default_params(self) -> SamplingParams:
        """The model's own generation defaults; used when a call gives no parameters."""
        known = SamplingParams.__dataclass_fields__
        given = self._model.pack.manifest.text.generation
        defaults: dict[str, Any] = {k: v for k, v in given.items() if k in known}
        if given.get("do_sample") is False:
            defaults["temperature"] = 0.0
        return SamplingParams(**defaults)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Output]:
        """Continue one prompt or many, each a text or token ids; the outputs are in the same order.

        ``params``: one for all or one each; a ``max_tokens`` beyond the context's end means up to that end. Raises
        FerrumError before anything runs if a prompt or its parameters are refused.
        """
        many = _prompt_list(prompts)
        if params is None or isinstance(params, SamplingParams):
            params = [params or self.default_params] * len(many)
        each = list(params)
        if len(each) != len(many):
            raise FerrumError("invalid-parameter", f"{len(each)} parameters for {len(many)} prompts", "params")
        requests: list[_Request] = []
        try:
            for prompt, one in zip(many, each, strict=True):
                requests.append(self._add(prompt, one))
            while running := [r for r in requests if not r.done]:
                for _ in self._advance(running):
                    pass
            return [_output(request) for request in requests]
        finally:
            for request in requests:
                self._drop(request)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Piece]:
        """Continue one prompt piece by piece; leaving the iterator early ends the request. The first piece raises FerrumError."""
        request = self._add(prompt, params or self.default_params)
        try:
            while not request.done:
                for _, piece in self._advance([request]):
                    yield piece
        finally:
            self._drop(request)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Output:
        """The answer to a conversation. For pieces of it: ``stream(chat_prompt(messages))``."""
        return self.generate([self.chat_prompt(messages, tools=tools, **options)], params)[0]

    def chat_prompt(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None, **options: Any
    ) -> list[int]:
        """Token ids of a conversation up to where the answer begins; ``options`` such as ``enable_thinking``.

        ``messages`` and ``tools`` as in OpenAI's chat API. Raises FerrumError for what the template refuses.
        """
        text = self.chat_template.render(messages, tools=tools, options=options)
        return self.tokenizer.encode(text, special=False)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Raw logits ``[len(token_ids), vocab_size]`` after every token; for evaluation. Only while nothing else runs."""
        with self._lock:
            self._check_open()
            return self._model.generator.logits(token_ids)

    def embed(
        self, texts: Prompt | Sequence[Prompt], *, dimensions: int = 0, prompt_name: str | None = None
    ) -> NDArray[np.float32]:
        """Embeddings ``[len(texts), width]`` of texts, or of token ids as they are; one text gives one row.

        ``dimensions``: only so many numbers of each, at length 1 again. ``prompt_name``: which of the model's prompts goes before
        each text, "" for none; without it its default one, if it has one. Raises FerrumError before anything runs if a text is
        refused, as too long, say.
        """
        encoder, prompts, many = self._model.encoder, self._prompts, _prompt_list(texts)
        ids = [self.tokenizer.encode(prompts.before(t, prompt_name)) if isinstance(t, str) else list(t) for t in many]
        rows: dict[str, NDArray[np.float32]] = {}
        with self._lock:
            self._check_open()
            try:
                for number, tokens in enumerate(ids):
                    encoder.add(str(number), tokens, dimensions)
                while encoder.has_work:
                    rows.update((row.request_id, row.values) for row in encoder.step())
            finally:
                for number in range(len(ids)):
                    encoder.abort(str(number))
        width = dimensions or self.info.embedding_width
        return np.array([rows[str(number)] for number in range(len(ids))], np.float32).reshape(len(ids), width)

    def stats(self) -> EngineStats:
        with self._lock:
            return self._model.engine.stats()

    def close(self) -> None:
        """Free the device and the pack; safe to call twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._model.close()
                for name in ("chat_template", "_grammars"):
                    if name in self.__dict__:
                        self.__dict__[name].close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @cached_property
    def _prompts(self) -> Prompts:
        return read_prompts(self._model.pack)

    def _add(self, prompt: Prompt, params: SamplingParams) -> _Request:
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if params.structured is not None:
            params = replace(params, structured=None, grammar=self._grammar(prompt, params.structured))
        choices = [_Choice(self._text_stream(tokens, params)) for _ in range(params.n)]
        with self._lock:
            self._check_open()
            self._count += 1
            request_id = str(self._count)
            self._model.generator.add(request_id, tokens, self._for_engine(len(tokens), params))
            request = self._requests[request_id] = _Request(request_id, tokens, params, choices)
        return request

    @cached_property
    def _grammars(self) -> ModelGrammars:
        from ferrum.structured.model import ModelGrammars

        return ModelGrammars(self.tokenizer, self._model.pack.manifest.text, self.info.vocab_size)

    def _grammar(self, prompt: Prompt, wish: Structured) -> str:
        """A text is continued at once; token ids, as ``chat_prompt`` makes them, may be answered by reasoning first."""
        tail = "" if isinstance(prompt, str) else self.tokenizer.decode(list(prompt[-TAIL_TOKENS:]), skip_special=False)
        return self._grammars.content(wish, "structured", tail)

    def _text_stream(self, tokens: list[int], params: SamplingParams) -> TextStream | _NoText:
        from ferrum.text.stream import TextStream

        if "tokenizer.json" not in self._model.pack and not params.stop:
            return _NoText()
        return TextStream(self.tokenizer, params.stop, context=tokens)

    def _for_engine(self, num_prompt: int, params: SamplingParams) -> SamplingParams:
        """``params`` within the context's length, with the ids of stop strings that are special tokens."""
        if params.stop:
            ids = [i for i in self.tokenizer.stop_ids(params.stop) if i < self.info.vocab_size]
            params = replace(params, stop_token_ids=(*params.stop_token_ids, *ids))
        room = self.info.max_model_len - num_prompt
        if params.max_tokens is None or room < 1 or params.max_tokens <= room:
            return params
        return replace(params, max_tokens=room, min_tokens=min(params.min_tokens, room))

    def _advance(self, requests: list[_Request]) -> Iterator[tuple[_Request, Piece]]:
        """What has come for ``requests`` since the last call; runs a step if nothing has.

        A step serves all requests of this model; events of those not named here are kept for whoever asks for them.
        """
        with self._lock:
            self._check_open()
            if not any(r.events or r.error for r in requests):
                self._step()
            batches = [(r, list(r.events)) for r in requests if r.events or r.error]
            for request, _ in batches:
                request.events.clear()
        for request, events in batches:
            if request.error is not None and not events:
                raise request.error
            for event in events:
                choice = request.choices[event.index]
                if not choice.finish_reason:
                    yield request, self._take(request, choice, event)

    def _step(self) -> None:
        try:
            events = self._model.generator.step()
        except Exception as error:
            for request in self._requests.values():
                request.error = error
            raise
        for event in events:
            self._requests[event.request_id].events.append(event)
        for request_id, failure in self._model.engine.failures:
            self._requests[request_id].error = failure
        self._model.engine.failures.clear()

    def _take(self, request: _Request, choice: _Choice, event: TokenEvent) -> Piece:
        """Turn a token into text; a stop string ends the choice in the engine too."""
        if event.index == 0:
            request.cached_tokens = event.cached_tokens
        text = "" if event.finish_reason == "stop" else choice.stream.feed(event.token)
        reason = event.finish_reason
        if reason:
            text += choice.stream.finish()
        if choice.stream.stopped and reason != "stop":
            if not reason:
                with self._lock:
                    self._model.engine.abort(request.id, event.index)
            reason = "stop"
        choice.text.append(text)
        choice.token_ids.append(event.token)
        logprobs = None
        if event.logprob is not None:
            logprobs = [TokenLogprob(event.token, event.logprob, event.top)]
            choice.logprobs += logprobs
        choice.finish_reason = reason
        return Piece(event.index, text, [event.token], reason, logprobs)

    def _drop(self, request: _Request) -> None:
        """Forget a request, ending what is left of it."""
        with self._lock:
            if self._requests.pop(request.id, None) is not None and not self._closed:
                self._model.engine.abort(request.id)

    def _check_open(self) -> None:
        if self._closed:
            raise FerrumError("model-closed", "the model was closed")


def _prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    items = list(prompts)
    if items and all(isinstance(item, (int, np.integer)) for item in items):
        return [items]  # type: ignore[list-item]
    return items  # type: ignore[return-value]


def _output(request: _Request) -> Output:
    wanted = request.params.logprobs is not None
    return Output(
        request.prompt,
        request.cached_tokens,
        [
            Completion(i, "".join(c.text), c.token_ids, c.finish_reason, c.logprobs if wanted else None)
            for i, c in enumerate(request.choices)
        ],
    )
