"""A batch without a server: the same routes over an engine that this process starts, from one file into another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import msgspec

from ferrum.engine_process.spawn import EngineProcess, spawn
from ferrum.errors import FerrumError
from ferrum.server.batch.jobs import is_good
from ferrum.server.batch.lines import Answered, Stopped, answer_line, in_order, read_lines, whole_lines
from ferrum.server.lifecycle import load_text, make_state, start_engine
from ferrum.server.options import ServeOptions
from ferrum.server.state import ServerState

Told = Callable[[int, int], None]  # lines that are answered, and those of them that went well


class _Named(msgspec.Struct):
    custom_id: Any = None


_named = msgspec.json.Decoder(_Named)


def run_batch(pack: Path, options: ServeOptions, source: Path, target: Path, told: Told) -> None:
    """Answer the lines of ``source`` into ``target``, in order, after those that it holds already. Raises FerrumError."""

    async def work(engine: EngineProcess) -> None:
        backend = await start_engine(pack, options, engine)
        try:
            state = make_state(options, backend, await asyncio.to_thread(load_text, pack, options.trust))
            try:
                await answer_file(state, source, target, told)
            finally:
                state.pool.shutdown(wait=False, cancel_futures=True)
                if state.template is not None:
                    state.template.close()
        finally:
            await backend.close()

    with spawn() as engine:
        asyncio.run(work(engine))


async def answer_file(state: ServerState, source: Path, target: Path, told: Told) -> None:
    """As ``run_batch``, over what runs already."""
    with source.open("rb") as stream, target.open("a+b") as out:
        out.seek(0)
        whole_lines(out)
        out.seek(0)
        lines = read_lines(stream, state.options.max_body_bytes)
        done = good = 0
        for answered in out:
            check_same(next(lines, None), answered, target)
            done, good = done + 1, good + is_good(answered)
        told(done, good)

        async def write(answered: Answered) -> None:
            nonlocal done, good
            append(out, answered)
            done, good = done + 1, good + answered.good
            told(done, good)

        try:
            await in_order(lines, lambda line: answer_line(state, line), write, state.options.max_num_seqs)
        except Stopped:
            raise FerrumError("engine-died", "the engine process ended unexpectedly", "", "repeat the command to go on") from None


def append(out: IO[bytes], answered: Answered) -> None:
    """A line whole or, when the program is killed here, in a part that the next run removes."""
    out.write(answered.line + b"\n")
    out.flush()


def check_same(line: bytes | None, answered: bytes, target: Path) -> None:
    """Raises FerrumError when ``answered``, of an earlier run, does not answer ``line``."""
    if line is None or _name(line) != _name(answered):
        what = "the file holds other answers than this input's first ones"
        raise FerrumError("batch-output", what, str(target), "name another output, or remove this one")


def _name(line: bytes) -> str | None:
    try:
        found = _named.decode(line).custom_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if isinstance(found, str) else None
