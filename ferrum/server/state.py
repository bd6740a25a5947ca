"""What all requests of one server share. It is made once and handed to the routes; there are no globals."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from sanic import Request

from ferrum.engine.reports import EngineStats
from ferrum.pack.prompts import Prompts
from ferrum.pack.schema import TextRecord
from ferrum.server.backend import Backend
from ferrum.server.dialects.kept import KeptAnswers
from ferrum.server.errors import ApiError
from ferrum.server.log import Log
from ferrum.server.meters import Meter, make_meters
from ferrum.server.metrics import Metrics
from ferrum.server.options import ServeOptions
from ferrum.text.fim import find_infill
from ferrum.text.template_process import Template
from ferrum.text.tokenizer import Tokenizer
from ferrum.text.tool_calls import ToolFormat, find_format

if TYPE_CHECKING:
    from ferrum.server.batch.jobs import Batches
    from ferrum.server.traces import Traces
    from ferrum.structured.model import ModelGrammars

INLINE_CHARS = 4096  # texts up to this size are tokenized on the event loop: a few milliseconds
MIN_REFUSED_CHARS = 1 << 20
WORKERS = 2

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class About:
    """What clients may know of the model. ``quant``: the number format of its weights."""

    family: str = "unknown"
    num_parameters: int = 0
    quant: str = "unknown"


@dataclass
class ServerState:
    """``model_name``: what requests must name. ``fingerprint``: identifies the pack's code and weights.

    ``marks``: special tokens of reasoning and tool calls, which stay visible until they were understood.
    """

    options: ServeOptions
    backend: Backend
    tokenizer: Tokenizer
    template: Template | None
    text: TextRecord
    model_name: str
    fingerprint: str = "fp_unknown"
    about: About = field(default_factory=About)
    prompts: Prompts = field(default_factory=Prompts)
    created: int = field(default_factory=lambda: int(time.time()))
    metrics: Metrics = field(default_factory=Metrics)
    clock: Callable[[], float] = time.time
    draining: bool = False
    stats: EngineStats | None = None  # as last seen, at ``stats_time``
    stats_time: float = field(default_factory=time.monotonic)
    active: int = 0
    kept: KeptAnswers = field(default_factory=KeptAnswers)
    batches: Batches | None = None  # where there is a folder for them
    traces: Traces | None = None  # where there is a collector
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(WORKERS, "text"))
    grammar_pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "grammar"))

    def __post_init__(self) -> None:
        self.tool_format: ToolFormat | None = find_format(self.text.tool_format)
        marks = [self.text.reasoning_start, self.text.reasoning_end, *(self.tool_format.marks if self.tool_format else ())]
        self.marks: frozenset[int] = self.tokenizer.within(marks)
        as_json = self.options.log_format == "json"
        self.log = Log(requests=as_json or self.options.verbose > 0, json=as_json)
        self.infill = find_infill(self.tokenizer, self.text.special_tokens.get("bos_token", ""))
        self.meters = make_meters(self.options.keys)
        self._idle: asyncio.Event | None = None

    @property
    def status(self) -> str:
        if not self.backend.alive:
            return "unhealthy"
        return "draining" if self.draining else "healthy"

    @contextmanager
    def admitted(self, meter: Meter | None = None) -> Iterator[None]:
        """Counts a request that generates. Raises ApiError 503 while the server drains or has no engine, 429 when ``meter`` is
        at its limit."""
        self.check_open()
        self.active += 1
        try:
            with meter.admitted() if meter is not None else nullcontext():
                yield
        finally:
            self.active -= 1
            if not self.active and self._idle is not None:
                self._idle.set()

    def check_open(self) -> None:
        if self.draining or not self.backend.alive:
            self.metrics.rejected += 1
            if self.draining:
                raise ApiError(503, "the server is shutting down", code="shutting_down")
            raise ApiError(503, "the engine is not available", code="engine_unavailable")

    def patience(self) -> float:
        """Seconds until a full queue has likely moved on by a request: those that wait, at the pace of those that have ended."""
        ended = self.metrics.request_duration
        waiting = self.stats.queue_depth if self.stats is not None else 0
        each = ended.total / max(1, sum(ended.counts))
        return each * max(1, waiting) / max(1, self.backend.info.max_num_seqs)

    async def wait_idle(self, timeout: float) -> bool:
        """Wait until no request generates; False when some still do after ``timeout`` seconds."""
        if self.active:
            self._idle = asyncio.Event()
            try:
                await asyncio.wait_for(self._idle.wait(), timeout)
            except TimeoutError:
                return False
        return True

    async def off_loop(self, size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function``, which works through ``size`` characters: here if they are few, else in a thread."""
        return function(*args, **kwargs) if size <= INLINE_CHARS else await self.in_thread(function, *args, **kwargs)

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function``, which may block, in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool, lambda: function(*args, **kwargs))

    async def in_grammar_thread(self, function: Callable[[], T]) -> T:
        """Call ``function``, which makes a grammar: these wait for each other, and nothing else for them."""
        return await asyncio.get_running_loop().run_in_executor(self.grammar_pool, function)

    @cached_property
    def grammars(self) -> ModelGrammars:
        from ferrum.structured.model import ModelGrammars  # not above: the start is shorter without

        return ModelGrammars(self.tokenizer, self.text, self.backend.info.vocab_size)

    def close(self) -> None:
        """End the threads, and the processes of templates and grammars."""
        for pool in (self.pool, self.grammar_pool):
            pool.shutdown(wait=False, cancel_futures=True)
        if self.template is not None:
            self.template.close()
        if "grammars" in self.__dict__:
            self.grammars.close()

    @cached_property
    def max_chars(self) -> int:
        """A longer text is refused without tokenizing it: it cannot fit the context, or is far from what fits."""
        context = self.backend.info.max_model_len
        bound = max(MIN_REFUSED_CHARS, context * 16)  # texts have three to six characters for each token, seldom more
        return min(bound, context * self.tokenizer.most_chars or bound)

    def check_model(self, name: str | None) -> None:
        """Raises ApiError 404 for a name that is not the served one. No name means the only model there is."""
        if name and name != self.model_name:
            raise ApiError(404, f"the model {name!r} does not exist", param="model", code="model_not_found")

    def default(self, name: str, given: Any, otherwise: Any) -> Any:
        """``given`` by the request, else the model's own default, else ``otherwise``."""
        if given is not None:
            return given
        return self.text.generation.get(name, otherwise)


def state_of(request: Request) -> ServerState:
    state: ServerState = request.app.ctx.state
    return state
