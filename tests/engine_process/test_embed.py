"""An engine's process whose pack embeds: rows over the socket, refusals, and requests that nobody waits for any more."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from ferrum import LLM, SamplingParams
from ferrum.engine.options import EngineOptions
from ferrum.engine_process.client import EngineClient
from ferrum.errors import FerrumError
from tests.encode.test_packs import ids, pack_of


async def work() -> list[bytes]:
    client = await EngineClient.start(pack_of("bert"), engine_options=EngineOptions(max_queue=40))
    try:
        rows = list(await asyncio.gather(*(client.embed(ids(3 + n, n)) for n in range(20))))
        rows.append(await client.embed(ids(5, 1), 7))
        for refused, code in (
            (client.embed([]), "prompt-empty"),
            (client.embed(ids(65, 0)), "prompt-too-long"),
            (client.embed(ids(5, 0), 33), "invalid-parameter"),
        ):
            with pytest.raises(FerrumError) as error:
                await refused
            assert error.value.code == code
        with pytest.raises(FerrumError, match="embeds and never generates"):
            async for _ in client.generate([3, 4], SamplingParams(max_tokens=1)):
                pass
        left = asyncio.ensure_future(client.embed(ids(60, 0)))
        await asyncio.sleep(0)
        left.cancel()
        assert await client.drain(5) and client.num_active == 0
        stats = await client.stats()
        assert stats.queue_depth == 0 and stats.num_requests >= 21
        return rows
    finally:
        await client.close()


def test_rows_come_over_the_socket() -> None:
    rows = asyncio.run(work())
    with LLM(pack_of("bert")) as llm:
        wanted = llm.embed([ids(3 + n, n) for n in range(20)])
        np.testing.assert_array_equal([np.frombuffer(row, "<f4") for row in rows[:-1]], wanted)
        np.testing.assert_array_equal(np.frombuffer(rows[-1], "<f4"), llm.embed([ids(5, 1)], dimensions=7)[0])
