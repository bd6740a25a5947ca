"""The engine in its own process: the same tokens, clear ends, nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from ferrum.devices.options import DeviceOptions
from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.engine.reports import TokenEvent
from ferrum.engine_process.client import EngineClient
from ferrum.engine_process.spawn import spawn
from ferrum.errors import FerrumError
from tests.engine.null_pack import EOS, VOCAB_SIZE, write_null_pack
from tests.engine.oracle import expected

ENDLESS = SamplingParams(max_tokens=190, n=64, ignore_eos=True)  # with one sequence at a time: 12,160 steps
RNG = np.random.default_rng(4)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_null_pack(tmp_path_factory.mktemp("pack") / "null.fpk")


def with_client(pack: Path, body: Callable[[EngineClient], Awaitable[None]], **options: object) -> None:
    async def main() -> None:
        client = await EngineClient.start(pack, device="null", trust=True, **options)  # type: ignore[arg-type]
        try:
            await body(client)
        finally:
            await client.close()
        assert client.process.returncode is not None

    asyncio.run(main())


async def collect(client: EngineClient, prompt: list[int], params: SamplingParams) -> dict[int, list[TokenEvent]]:
    found: dict[int, list[TokenEvent]] = {}
    async with client.generate(prompt, params) as generation:
        async for event in generation:
            found.setdefault(event.index, []).append(event)
    return found


async def until_idle(client: EngineClient) -> None:
    while True:
        stats = await client.stats()
        if not stats.blocks_used and not stats.queue_depth:
            return
        await asyncio.sleep(0.01)


def test_tokens_are_those_of_the_oracle(pack: Path) -> None:
    async def body(client: EngineClient) -> None:
        assert client.info.vocab_size == VOCAB_SIZE and client.info.max_model_len == 200
        assert client.info.kv_bytes == client.info.num_blocks * client.info.bytes_per_block
        prompts = [RNG.integers(1, VOCAB_SIZE, 5 + 9 * i).tolist() for i in range(6)]
        many = [SamplingParams(temperature=0.8, seed=i, n=1 + i % 2, max_tokens=20, logprobs=2) for i in range(6)]
        results = await asyncio.gather(*(collect(client, p, q) for p, q in zip(prompts, many, strict=True)))
        for prompt, params, result in zip(prompts, many, results, strict=True):
            for index in range(params.n):
                tokens, reason = expected(prompt, params, 20, (EOS,), index, VOCAB_SIZE)
                events = result[index]
                assert [e.token for e in events] == tokens and events[-1].finish_reason == reason
                assert all(e.logprob is not None and len(e.top) == 2 for e in events)
        assert client.num_active == 0
        assert (await client.stats()).num_requests == 6

    with_client(pack, body)


def test_works_on_uvloop(pack: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        client = await EngineClient.start(pack, device="null", trust=True)
        assert len((await collect(client, [1, 2], SamplingParams(max_tokens=3, ignore_eos=True)))[0]) == 3
        await client.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_a_refused_request_says_why_and_harms_nobody(pack: Path) -> None:
    async def body(client: EngineClient) -> None:
        with pytest.raises(FerrumError) as caught:
            await collect(client, [1] * 201, SamplingParams())
        assert caught.value.code == "prompt-too-long" and caught.value.where == "prompt"
        assert await collect(client, [1], SamplingParams(max_tokens=1))
        assert (await client.stats()).num_rejected == 1 and client.num_active == 0

    with_client(pack, body)


def test_a_full_queue_is_told_without_waiting_for_the_engine(pack: Path) -> None:
    async def body(client: EngineClient) -> None:
        os.kill(client.process.pid, signal.SIGSTOP)
        try:
            held = [client.generate([1], SamplingParams(max_tokens=9, n=2, ignore_eos=True)) for _ in range(2)]
            with pytest.raises(FerrumError) as caught:
                client.generate([1], SamplingParams(max_tokens=2))
            assert caught.value.code == "queue-full"
            held[0].abort(1)
            held.append(client.generate([1], SamplingParams(max_tokens=2, ignore_eos=True)))
        finally:
            os.kill(client.process.pid, signal.SIGCONT)
        assert [len([e async for e in g]) for g in held] == [9, 18, 2]
        assert (await client.stats()).num_rejected == 1

    with_client(pack, body, engine_options=EngineOptions(max_num_seqs=1, max_queue=3))


def test_leaving_a_request_frees_it(pack: Path) -> None:
    """By abort, by the end of a with block, by a cancelled task, by losing the last reference."""

    async def body(client: EngineClient) -> None:
        generation = client.generate([1, 2, 3], ENDLESS)
        first = await anext(generation)
        generation.abort(first.index)
        assert first.index not in {e.index for e in await generation.batch()}
        client.abort(generation.request_id)
        assert [e async for e in generation] == [] and await generation.batch() == []
        async with client.generate([1, 2, 3], ENDLESS) as generation:
            await anext(generation)
        task = asyncio.create_task(collect(client, [1, 2, 3], ENDLESS))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await anext(client.generate([1, 2, 3], ENDLESS))
        await asyncio.sleep(0.01)
        assert client.num_active == 0
        await until_idle(client)
        assert (await client.stats()).num_tokens_generated < 4 * 64 * 190

    with_client(pack, body, engine_options=EngineOptions(max_num_seqs=1))


def test_a_thousand_disconnects_leave_nothing(pack: Path) -> None:
    """Queued, in prefill, in decode, of several choices; those that stay get what they should."""

    async def leave(client: EngineClient, number: int) -> None:
        params = SamplingParams(max_tokens=60, n=1 + number % 3, ignore_eos=True)
        async with client.generate([1 + number % 90] * (1 + number % 130), params) as generation:
            for _ in range(number % 4):
                if not await generation.batch():
                    return
            await asyncio.sleep(0)

    async def body(client: EngineClient) -> None:
        params = SamplingParams(temperature=0, max_tokens=60)
        staying = [asyncio.create_task(collect(client, [5, 6, i], params)) for i in range(8)]
        for wave in range(10):
            await asyncio.gather(*(leave(client, wave * 100 + i) for i in range(100)))
        for i, task in enumerate(staying):
            assert [e.token for e in (await task)[0]] == expected([5, 6, i], params, 60, (EOS,), 0, VOCAB_SIZE)[0]
        assert client.num_active == 0
        await until_idle(client)
        assert (await client.stats()).num_requests == 1008

    with_client(pack, body, device_options=DeviceOptions(max_seqs=8, max_tokens=32, kv_cache_bytes=60 * 256))


def test_a_timeout_of_a_wait_does_not_end_the_request(pack: Path) -> None:
    async def body(client: EngineClient) -> None:
        async with client.generate([1, 2], SamplingParams(max_tokens=100, ignore_eos=True)) as generation:
            count = 0
            while count < 100:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(anext(generation), 1e-4)
                    count += 1
            assert [e async for e in generation] == []

    with_client(pack, body)


def test_a_dead_engine_fails_everybody_with_a_reason(pack: Path) -> None:
    async def body(client: EngineClient) -> None:
        os.kill(client.process.pid, signal.SIGSTOP)
        waiting = [asyncio.create_task(collect(client, [1], ENDLESS)) for _ in range(3)]
        stats = asyncio.create_task(client.stats())
        await asyncio.sleep(0.01)
        os.kill(client.process.pid, signal.SIGKILL)
        for result in await asyncio.gather(*waiting, stats, return_exceptions=True):
            assert isinstance(result, FerrumError) and result.code == "engine-died" and "signal 9" in result.what
        await client.wait_ended()
        assert not client.alive and client.num_active == 0
        with pytest.raises(FerrumError, match="ended unexpectedly"):
            client.generate([1], ENDLESS)

    with_client(pack, body)


def test_draining_finishes_what_runs_and_refuses_the_rest(pack: Path) -> None:
    async def body(client: EngineClient) -> None:
        running = asyncio.create_task(collect(client, [1], SamplingParams(max_tokens=50, ignore_eos=True)))
        await asyncio.sleep(0)
        assert await client.drain(60)
        assert len((await running)[0]) == 50
        with pytest.raises(FerrumError) as caught:
            client.generate([1], ENDLESS)
        assert caught.value.code == "engine-draining"

    with_client(pack, body)


def test_draining_gives_up_and_closing_fails_what_runs(pack: Path) -> None:
    async def body(client: EngineClient) -> None:
        running = asyncio.create_task(collect(client, [1], ENDLESS))
        await asyncio.sleep(0.05)
        assert not await client.drain(0.01)
        await client.close()
        with pytest.raises(FerrumError) as caught:
            await running
        assert caught.value.code == "engine-closed" and client.process.returncode == 0

    with_client(pack, body, engine_options=EngineOptions(max_num_seqs=1))


def test_errors_of_loading_reach_the_caller(pack: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.fpk"
    broken.write_bytes(pack.read_bytes()[:5000])
    cases: list[tuple[Path, str, DeviceOptions, str]] = [
        (broken, "null", DeviceOptions(), "broken.fpk"),
        (tmp_path / "none.fpk", "null", DeviceOptions(), "none.fpk"),
        (pack, "abacus", DeviceOptions(), "device"),
        (pack, "null", DeviceOptions(max_seqs=0), "max_seqs"),
        (pack, "null", DeviceOptions(max_model_len=1000), "max_model_len"),
    ]

    async def main() -> None:
        for path, device, options, where in cases:
            with pytest.raises(FerrumError, match=where):
                await EngineClient.start(path, device=device, trust=True, device_options=options)

    asyncio.run(main())


def test_a_process_that_nobody_speaks_with_is_ended() -> None:
    with pytest.raises(KeyboardInterrupt), spawn() as engine:
        assert engine.process.poll() is None
        raise KeyboardInterrupt
    assert engine.process.returncode is not None
    engine.close()


def test_a_process_may_be_spawned_before_its_client(pack: Path) -> None:
    async def main() -> None:
        client = await EngineClient.start(pack, engine, device="null", trust=True)
        assert client.process is engine.process
        assert await collect(client, [1], SamplingParams(max_tokens=2))
        await client.close()

    with spawn() as engine:
        asyncio.run(main())
    assert engine.process.returncode == 0


def test_signals_of_the_terminal_do_not_end_the_engine(pack: Path) -> None:
    async def body(client: EngineClient) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(client.process.pid, number)
        assert os.getpgid(client.process.pid) != os.getpgid(0), "nor reach it while it loads its modules"
        assert await collect(client, [1], SamplingParams(max_tokens=2))

    with_client(pack, body)


PARENT = """
import asyncio, sys
from ferrum.engine_process.client import EngineClient
from ferrum.engine.params import SamplingParams

async def main():
    client = await EngineClient.start(sys.argv[1], device="null", trust=True)
    client.generate([1], SamplingParams(max_tokens=190, n=64, ignore_eos=True))
    print(client.process.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_the_engine_ends_with_its_parent(pack: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(pack)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    engine = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the engine outlived its parent"
        time.sleep(0.02)


def test_neither_compiler_nor_torch_is_loaded(pack: Path) -> None:
    code = (
        "import sys; import ferrum.engine_process.main, ferrum.engine_process.client, ferrum.llm\n"
        "llm = ferrum.llm.LLM(sys.argv[1], 'null', trust=True); llm.generate('hi', ferrum.llm.SamplingParams(max_tokens=2))\n"
        "bad = {'torch', 'onnx', 'ferrum.graphs', 'ferrum.codegen', 'multiprocessing', 'transformers'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code, str(pack)], check=True, timeout=100)


def test_a_wrong_call_of_the_process_is_a_usage_error() -> None:
    done = subprocess.run([sys.executable, "-m", "ferrum.engine_process.main"], capture_output=True, timeout=60)
    assert done.returncode == 2 and b"error:" in done.stderr
