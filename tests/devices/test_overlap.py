"""The engine over devices whose steps overlap: whatever it starts ahead, the tokens are those of the null device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ferrum.devices.base import Executor
from ferrum.devices.null import NullExecutor
from ferrum.devices.options import DeviceOptions
from ferrum.engine.engine import Engine
from ferrum.engine.options import EngineOptions
from ferrum.engine.params import SamplingParams
from ferrum.pack.reader import open_pack
from tests.devices.conftest import OPENERS
from tests.devices.null_model import BYTES_PER_BLOCK, write_launch_pack
from tests.pack.helpers import VOCAB_SIZE

Open = Callable[[DeviceOptions], Executor]


@pytest.fixture(params=[name for name in OPENERS if name != "null"])
def open_device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    metal = request.param.startswith("metal")
    kind = ("metal", "apple-m1", "code/step.metal") if metal else ("cuda", "sm_89", "code/step.cubin")
    with open_pack(write_launch_pack(tmp_path / "null.fpk", *kind), trust=True) as pack:
        loaded: list[Executor] = []

        def load(options: DeviceOptions) -> Executor:
            loaded.append(OPENERS[request.param](pack, options))
            return loaded[-1]

        yield load
        for executor in loaded:
            executor.close()


def random_params(random: np.random.Generator) -> SamplingParams:
    """Steady rows mostly; some whose next row needs the token first."""
    return SamplingParams(
        temperature=float(random.choice([0.0, 0.9])),
        seed=int(random.integers(1 << 40)),
        max_tokens=int(random.integers(1, 12)),
        repetition_penalty=float(random.choice([1.0, 1.0, 1.0, 1.2])),
        min_tokens=0,
        logit_bias={3: 1.5} if random.integers(4) == 0 else {},
        ignore_eos=bool(random.integers(2)),
        logprobs=2 if random.integers(3) == 0 else None,
    )


def run(engine: Engine, seed: int) -> tuple[dict[str, list[tuple[int, str, object]]], Counter[str]]:
    """Requests that come and are aborted at set steps of their own; their events, and how often each step was started."""
    random = np.random.default_rng(seed)
    found: dict[str, list[tuple[int, str, object]]] = {}
    started: Counter[str] = Counter()
    begin = getattr(engine.executor, "begin", None)
    if begin is not None:

        def counted(ahead: bool = False) -> None:
            started["ahead" if ahead else "fresh"] += 1
            begin(ahead)

        engine.executor.begin = counted  # type: ignore[attr-defined]
    for wave in range(4):
        for i in range(int(random.integers(1, 6))):
            name = f"{wave}-{i}"
            prompt = random.integers(0, VOCAB_SIZE, int(random.integers(1, 20))).tolist()
            engine.add(name, prompt, random_params(random))
            found[name] = []
        victim, after = f"{wave}-0", int(random.integers(1, 6))
        while engine.has_work:
            for event in engine.step():
                found[event.request_id].append((event.token, event.finish_reason, event.top and event.top[0][0]))
            if len(found[victim]) == after:
                engine.abort(victim)
    assert engine.stats().blocks_used == 0
    return found, started


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("blocks", [12, 64])
def test_every_mix_of_requests_is_as_on_the_null_device(open_device: Open, seed: int, blocks: int) -> None:
    options = DeviceOptions(max_seqs=4, max_tokens=16, kv_cache_bytes=blocks * BYTES_PER_BLOCK)
    executor = open_device(options)
    eos = (5,)
    found, started = run(Engine(executor, EngineOptions(), eos_token_ids=eos), seed)
    wanted, _ = run(Engine(NullExecutor(executor.limits), EngineOptions(), eos_token_ids=eos), seed)
    assert found == wanted
    assert started["ahead"] > 0


def test_steady_decode_is_started_ahead(open_device: Open) -> None:
    executor = open_device(DeviceOptions(max_seqs=4, max_tokens=16))
    engine = Engine(executor)
    _, started = {}, Counter()
    begin = executor.begin  # type: ignore[attr-defined]
    executor.begin = lambda ahead=False: (started.update([ahead]), begin(ahead))[1]  # type: ignore[attr-defined]
    for i in range(3):
        engine.add(str(i), [1, 2, i], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    while engine.has_work:
        engine.step()
    assert started == Counter({True: 19, False: 1})


def test_logits_between_requests(open_device: Open) -> None:
    """A request that ends by a stop token leaves a step under way."""
    executor = open_device(DeviceOptions(max_seqs=2, max_tokens=16))
    engine = Engine(executor, eos_token_ids=range(VOCAB_SIZE))
    engine.add("a", [1, 2, 3], SamplingParams(temperature=0, max_tokens=9))
    while engine.has_work:
        engine.step()
    wanted = Engine(NullExecutor(executor.limits)).logits([4, 5, 6])
    np.testing.assert_array_equal(engine.logits([4, 5, 6]), wanted)
    engine.close()
