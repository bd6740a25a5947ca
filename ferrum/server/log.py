"""What the server says on stderr: a line for each request when asked, and faults of its own. Never a text, a key, an address
or a path that came from a request: routes are named by their pattern, errors by their code."""

from __future__ import annotations

import sys
import time
import traceback
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import msgspec

from ferrum.engine.reports import EngineStats

CLIENT_GONE = 499  # the status that nginx logs for a client that left before the answer
_FRAMES = 6


class Work(Protocol):
    """What a generating request did, as far as it came."""

    prompt_tokens: int
    cached_tokens: int
    first_token_seconds: float | None

    @property
    def completion_tokens(self) -> int: ...


@dataclass(slots=True)
class RequestRecord:
    """One request while it runs. ``error``: the code of the error that ended it.
    ``key``: the name of its key, never the key. ``seconds`` since it arrived."""

    id: str
    method: str
    route: str = "-"
    status: int = 0
    error: str = ""
    key: str = ""
    work: Work | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def fields(self) -> dict[str, object]:
        found: dict[str, object] = {"id": self.id, "method": self.method, "route": self.route, "status": self.status}
        if self.key:
            found["key"] = self.key
        if self.error:
            found["error"] = self.error
        if self.work is not None:
            found |= {
                "prompt_tokens": self.work.prompt_tokens,
                "cached_tokens": self.work.cached_tokens,
                "completion_tokens": self.work.completion_tokens,
            }
            if self.work.first_token_seconds is not None:
                found["ttft_s"] = round(self.work.first_token_seconds, 4)
        return found | {"seconds": round(self.seconds, 4)}


@dataclass(frozen=True)
class Log:
    """``requests``: whether requests and throughput are told. ``json``: one object a line instead of words."""

    requests: bool = False
    json: bool = False

    def request(self, record: RequestRecord) -> None:
        if self.requests:
            self._write("request", record.fields())

    def throughput(self, before: EngineStats, now: EngineStats, seconds: float) -> None:
        """The engine's work between two looks at it, if there was any."""
        decoded = now.num_decode_tokens - before.num_decode_tokens
        prefilled = now.num_prefill_tokens - before.num_prefill_tokens
        running = now.active_prefill + now.active_decode
        if not self.requests or not (decoded or prefilled or running or now.queue_depth):
            return
        self._write(
            "throughput",
            {
                "prefill_tokens_per_s": round(prefilled / seconds, 1),
                "decode_tokens_per_s": round(decoded / seconds, 1),
                "running": running,
                "waiting": now.queue_depth,
                "kv_used_percent": round(100 * now.blocks_used / max(1, now.blocks_total), 1),
            },
        )

    def failure(self, error: BaseException) -> None:
        """The kind of ``error`` and where it arose. Its text may hold parts of a request, so it is left out."""
        frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
        places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
        if self.json:
            self._write("failure", {"kind": type(error).__name__, "where": places})
        else:
            print(f"error: internal {type(error).__name__} · {places}", file=sys.stderr, flush=True)

    def warning(self, what: str) -> None:
        if self.json:
            self._write("warning", {"what": what})
        else:
            print(f"warning: {what}", file=sys.stderr, flush=True)

    def _write(self, event: str, fields: dict[str, object]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self.json:
            line = msgspec.json.encode({"time": now, "event": event, **fields}).decode()
        else:
            line = " ".join([now, event, *(f"{name}={value}" for name, value in fields.items())])
        print(line, file=sys.stderr, flush=True)
