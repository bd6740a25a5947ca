"""Batches on the server: one runs at a time, beside other requests, and goes on where it was after a restart.

What a batch did so far is the number of lines in its ``.part`` file, which is written in the order of the input.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from ferrum.errors import FerrumError
from ferrum.server.batch.files import FileStore
from ferrum.server.batch.lines import MAX_LINES, Answered, Stopped, answer_line, in_order, read_lines, whole_lines
from ferrum.server.state import ServerState

MAX_BATCHES = 1_000
WINDOW_SECONDS = 24 * 3600
RUNNING = ("validating", "in_progress", "finalizing", "cancelling")
_FINAL = ("completed", "failed", "cancelled", "expired")
_STAMPS = ("in_progress", "finalizing", "cancelling", *_FINAL)


class BatchRecord(msgspec.Struct, kw_only=True):
    """One batch. ``stamps``: when it came into each state. ``problem``: code and message of what made all of it fail."""

    id: str
    endpoint: str
    input_file_id: str
    created_at: int
    metadata: dict[str, str] | None = None
    owner: str = ""
    status: str = "validating"
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    problem: tuple[str, str] | None = None
    stamps: dict[str, int] = {}

    def enter(self, status: str) -> None:
        self.status = status
        self.stamps[status] = int(time.time())

    def shown(self) -> dict[str, object]:
        """As OpenAI's API has it."""
        code, message = self.problem or ("", "")
        errors = {"object": "list", "data": [{"code": code, "message": message, "param": None, "line": None}]}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": errors if self.problem else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.created_at + WINDOW_SECONDS,
            **{f"{name}_at": self.stamps.get(name) for name in _STAMPS},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.metadata,
        }


class Batches:
    """All batches of a server. ``width``: lines of a batch that run at once: half of the places, so that others have theirs."""

    def __init__(self, state: ServerState, store: FileStore) -> None:
        self.store = store
        self._state = state
        self._width = max(1, state.options.max_num_seqs // 2)
        self._live: dict[str, BatchRecord] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Go on with what an earlier server left."""
        left = [r for r in self.store.records(BatchRecord) if r.status in RUNNING]
        self._live = {r.id: r for r in sorted(left, key=lambda r: (r.created_at, r.id))}
        self._wake.set()
        self._task = asyncio.ensure_future(self._work())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def add(self, endpoint: str, input_file_id: str, metadata: dict[str, str] | None, owner: str) -> BatchRecord:
        """Queue a batch. Blocking. Raises FerrumError "files-full"."""
        if sum(1 for _ in self.store.records(BatchRecord)) >= MAX_BATCHES:
            raise FerrumError("files-full", f"there are {MAX_BATCHES} batches", "batches", "use another folder")
        record = BatchRecord(
            id=f"batch_{secrets.token_hex(12)}",
            endpoint=endpoint,
            input_file_id=input_file_id,
            created_at=int(time.time()),
            metadata=metadata,
            owner=owner,
        )
        self.store.save(record.id, record)
        return record

    def queue(self, record: BatchRecord) -> None:
        self._live[record.id] = record
        self._wake.set()

    def find(self, name: str, owner: str) -> BatchRecord | None:
        live = self._live.get(name)
        if live is not None:
            return live if live.owner == owner else None
        return self.store.find(name, BatchRecord, owner)

    def reads(self, file_id: str) -> bool:
        """Whether a batch that is not at its end reads this file."""
        return any(r.input_file_id == file_id for r in self._live.values())

    async def cancel(self, record: BatchRecord) -> None:
        """What runs comes to its end; nothing else begins."""
        if record.status in ("validating", "in_progress"):
            record.enter("cancelling")
            await self._save(record)

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for record in list(self._live.values()):
                try:
                    await self._run(record)
                except Stopped:
                    return
                except (OSError, FerrumError) as error:
                    record.problem = ("storage_failed", "the server could not read or write the batch's files")
                    record.enter("failed")
                    self._state.log.failure(error)
                with contextlib.suppress(OSError, FerrumError):
                    await self._save(record)
                del self._live[record.id]

    async def _save(self, record: BatchRecord) -> None:
        await self._state.in_thread(self.store.save, record.id, record)

    async def _run(self, record: BatchRecord) -> None:
        source = self.store.path(record.input_file_id)
        longest = self._state.options.max_body_bytes
        record.total = await self._state.in_thread(count_lines, source, longest)
        if not 0 < record.total <= MAX_LINES:
            record.problem = ("invalid_input", f"the file must have 1 to {MAX_LINES} lines")
            record.enter("failed")
            return
        if record.status == "validating":
            record.enter("in_progress")
        await self._save(record)
        part = self.store.folder / f"{record.id}.part"
        with part.open("a+b") as out, source.open("rb") as lines:
            out.seek(0)
            record.completed, record.failed = await self._state.in_thread(_counts, out)
            await self._answer(record, lines, out, longest)
        end = "cancelled" if record.status == "cancelling" else "completed"
        record.enter("finalizing")
        await self._state.in_thread(self._finish, record, part, end)

    async def _answer(self, record: BatchRecord, lines: IO[bytes], out: IO[bytes], longest: int) -> None:
        done = record.completed + record.failed

        def rest() -> Iterator[bytes]:
            for number, line in enumerate(read_lines(lines, longest)):
                if record.status == "cancelling":
                    return
                if number >= done:
                    yield line

        async def write(answered: Answered) -> None:
            await self._state.in_thread(_append, out, answered)
            if answered.good:
                record.completed += 1
            else:
                record.failed += 1

        async def answer(line: bytes) -> Answered:
            return await answer_line(self._state, line, record.endpoint, record.owner)

        await in_order(rest(), answer, write, self._width)

    def _finish(self, record: BatchRecord, part: Path, end: str) -> None:
        """Part what went well from what did not, into files of their own; killed on the way, it is done again."""
        places = {good: part.with_suffix(f".{name}") for good, name in ((True, "output"), (False, "errors"))}
        with part.open("rb") as lines, places[True].open("wb") as output, places[False].open("wb") as errors:
            for line in lines:
                (output if is_good(line) else errors).write(line)
        for good, place in places.items():
            if not place.stat().st_size:
                place.unlink()
                continue
            made = self.store.adopt(place, f"{record.id}_{'output' if good else 'error'}.jsonl", record.owner)
            if good:
                record.output_file_id = made.id
            else:
                record.error_file_id = made.id
        record.enter(end)
        self.store.save(record.id, record)
        part.unlink()


class _Status(msgspec.Struct):
    status_code: int


class _Outcome(msgspec.Struct):
    response: _Status | None = None


_outcome = msgspec.json.Decoder(_Outcome)


def is_good(line: bytes) -> bool:
    response = _outcome.decode(line).response
    return response is not None and response.status_code == 200


def count_lines(path: Path, longest: int) -> int:
    with path.open("rb") as stream:
        return sum(1 for _ in read_lines(stream, longest))


def _counts(out: IO[bytes]) -> tuple[int, int]:
    """Lines that are there already: good ones and others."""
    total = whole_lines(out)
    out.seek(0)
    good = sum(map(is_good, out))
    return good, total - good


def _append(out: IO[bytes], answered: Answered) -> None:
    out.write(answered.line + b"\n")
    out.flush()
