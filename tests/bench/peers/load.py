"""Clients of an OpenAI-compatible server: prompts as token ids, streamed answers, one load for every server."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from tests.bench.peers.record import Failure

MODEL_NAME = "bench"  # both servers are started with it


@dataclass(frozen=True)
class Load:
    clients: int = 16
    prompt: int = 128
    new: int = 64
    requests: int = 1  # of each client, one after the other


@dataclass(frozen=True)
class Answer:
    """Seconds from the request to the first token and to the end; how many tokens came."""

    ttft: float
    seconds: float
    tokens: int
    prompt_tokens: int


def prompts(load: Load, vocab_size: int, seed: int) -> list[list[int]]:
    """Random ids, special ones at the vocabulary's end left out."""
    rng = random.Random(seed)
    return [[rng.randrange(256, vocab_size - 8) for _ in range(load.prompt)] for _ in range(load.clients * load.requests)]


async def events(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """The ``data:`` lines of a response's body, chunked or not."""
    status = await reader.readline()
    chunked = False
    while (header := (await reader.readline()).strip()) != b"":
        chunked |= header.lower().replace(b" ", b"") == b"transfer-encoding:chunked"
    if b" 200 " not in status:
        raise Failure(f"{status.decode().strip()}: {(await reader.read(500)).decode(errors='replace')}")
    rest = b""
    async for piece in _body(reader, chunked):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode()


async def _body(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    if not chunked:
        while piece := await reader.read(65536):
            yield piece
        return
    while size := int((await reader.readline()).split(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def ask(port: int, prompt: list[int], new: int) -> Answer:
    """One streamed completion of exactly ``new`` tokens."""
    body: dict[str, Any] = {
        "model": MODEL_NAME,
        "prompt": prompt,
        "max_tokens": new,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    try:
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        ttft, usage = 0.0, None
        async for text in events(reader):
            if text == "[DONE]":
                break
            event: dict[str, Any] = json.loads(text)
            if "error" in event:
                raise Failure(str(event["error"]))
            if event.get("choices") and not ttft:
                ttft = time.perf_counter() - started
            usage = event.get("usage") or usage
    finally:
        writer.close()
    if usage is None or not ttft:
        raise Failure("the answer had no tokens or no usage")
    if usage["completion_tokens"] != new or usage["prompt_tokens"] != len(prompt):
        raise Failure(f"{usage} instead of {len(prompt)} + {new} tokens")
    return Answer(ttft, time.perf_counter() - started, usage["completion_tokens"], usage["prompt_tokens"])


async def _all(port: int, load: Load, work: list[list[int]]) -> list[Answer]:
    async def client(index: int) -> list[Answer]:
        return [await ask(port, work[index * load.requests + i], load.new) for i in range(load.requests)]

    return [answer for answers in await asyncio.gather(*map(client, range(load.clients))) for answer in answers]


def drive(port: int, load: Load, vocab_size: int, seed: int = 0) -> dict[str, float]:
    """Output tokens/s, and percentiles of the time to first token in seconds."""
    work = prompts(load, vocab_size, seed)
    started = time.perf_counter()
    try:
        answers = asyncio.run(_all(port, load, work))
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        raise Failure(f"the server broke off: {error}") from error
    seconds = time.perf_counter() - started
    first = sorted(a.ttft for a in answers)
    return {
        "tokens_per_s": sum(a.tokens for a in answers) / seconds,
        "ttft_p50": statistics.median(first),
        "ttft_max": first[-1],
        "seconds": seconds,
    }
