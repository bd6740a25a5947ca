from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ferrum.devices.base import Executor, Limits, StepBuffers
from ferrum.errors import FerrumError
from ferrum.pack.layers import LayerPoint, LayerTest
from ferrum.pack.reader import Pack, open_pack, read_manifest
from ferrum.pack.schema import SelfTest, SelfTestCase
from ferrum.pack.selftest import read_selftest
from ferrum.pack.signing import generate_key, sign_pack
from ferrum.pack.verify import VerifyReport, verify_pack
from ferrum.proof.numbers import ProofReport, prove_pack
from ferrum.proof.sketch import sketch, stored
from tests.pack.helpers import MEMBERS, VOCAB_SIZE, code_record, minimal_manifest, step_record, write_minimal_pack

LIMITS = Limits(max_tokens=4, max_seqs=2, max_samples=2, num_blocks=8, block_size=4, max_blocks_per_seq=8, vocab_size=VOCAB_SIZE)
TABLE = np.random.default_rng(0).standard_normal((VOCAB_SIZE, VOCAB_SIZE)).astype(np.float32)


def reference(tokens: list[int]) -> np.ndarray:
    """A model whose logits depend on every token and its position."""
    weights = np.cos(np.arange(len(tokens), dtype=np.float32))
    return (TABLE[tokens] * weights[:, None]).sum(0)


class ToyExecutor:
    """The same model behind the step interface: its "KV cache" holds (token, position) of each slot."""

    def __init__(self, noise: float = 0.0, from_position: int = 0) -> None:
        self.limits = LIMITS
        self.buffers = StepBuffers(LIMITS)
        self.noise, self.from_position = noise, from_position
        self.cache = np.full((LIMITS.num_blocks, LIMITS.block_size, 2), -1, np.int64)
        self.out = np.zeros((LIMITS.max_samples, VOCAB_SIZE), np.float32)
        self.steps = 0
        self.closed = False

    def step(self) -> None:
        b = self.buffers
        assert b.num_seqs == 1 and b.num_tokens <= LIMITS.max_tokens and list(b.query_start[:2]) == [0, b.num_tokens]
        for token, position in zip(b.tokens[: b.num_tokens], b.positions[: b.num_tokens], strict=True):
            block = b.block_table[0, 0, position // LIMITS.block_size]
            self.cache[block, position % LIMITS.block_size] = token, position
        context = [self.cache[b.block_table[0, 0, p // 4], p % 4] for p in range(b.context_len[0])]
        assert [position for _, position in context] == list(range(b.context_len[0]))
        if b.num_samples:
            assert list(b.sample_rows[:1]) == [b.num_tokens - 1] and b.temperature[0] == 0 and b.repetition_penalty[0] == 1
            self.out[0] = reference([int(token) for token, _ in context])
            if b.context_len[0] >= self.from_position:
                self.out[0] *= 1 + self.noise
                self.out[0, 3] += 100 * self.noise
        self.steps += 1

    def logits(self) -> np.ndarray:
        return self.out[: self.buffers.num_samples]

    def copy_block(self, source: int, target: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


def case(tokens: list[int], length: int) -> SelfTestCase:
    row = reference(tokens)
    top = [int(i) for i in np.argsort(-row)[:5]]
    greedy: list[int] = []
    for _ in range(length):
        greedy.append(int(np.argmax(reference(tokens + greedy))))
    return SelfTestCase(
        tokens=tokens,
        top_tokens=top,
        top_logits=[float(row[i]) for i in top],
        logit_norm=float(np.linalg.norm(row)),
        greedy=greedy,
    )


def write(path: Path, test: SelfTest) -> Path:
    return write_minimal_pack(path, members={**MEMBERS, "step/selftest.json": msgspec.json.encode(test)})


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return write(tmp_path / "x.fpk", SelfTest(tolerance=1e-4, cases=[case([3], 4), case([1, 2, 3, 4, 5, 6, 7, 8, 9], 8)]))


def verify(pack: Path, tmp_path: Path, executor: Executor | None = None, trust: bool = True, **more: object) -> ProofReport:
    def make(opened: Pack) -> Executor:
        assert executor is not None and bytes(opened.weights) == MEMBERS["weights"]
        return executor

    folders = {"state_dir": tmp_path, "config_dir": tmp_path}
    return prove_pack(pack, make, trust=trust, **folders, **more)  # type: ignore[arg-type]


def states(report: VerifyReport) -> dict[str, str]:
    return {check.name: check.state for check in report.checks}


def test_a_good_pack(pack: Path, tmp_path: Path) -> None:
    executor, seen = ToyExecutor(), []
    report = verify(pack, tmp_path, executor, machine=("x86_64", {"avx2", "fma", "sse2"}), progress=seen.append)
    assert report.ok and executor.closed and executor.steps == (1 + 3) + (3 + 7)
    assert len(report.cases) == 2 and max(c.error for c in report.cases) < 1e-6
    found = states(report)
    assert found["structure"] == found["contract"] == found["machine"] == found["numeric"] == found["member weights"] == "ok"
    assert found["trust"] == "skipped"  # nobody vouches for it, which is not a fault of its bytes
    assert sum(seen) == sum(member.nbytes for member in read_manifest(pack).members)


def test_the_first_diverging_case_is_named(pack: Path, tmp_path: Path) -> None:
    executor = ToyExecutor(noise=0.01, from_position=9)
    report = verify(pack, tmp_path, executor)
    last = report.checks[-1]
    assert not report.ok and last.name == "numeric" and "case 1" in last.detail
    assert executor.closed


class LayeredExecutor(ToyExecutor):
    """Shows three values of each step; ``wrong`` is added to one number of the second one."""

    def __init__(self, wrong: float = 0.0, noise: float = 0.0) -> None:
        super().__init__(noise)
        self.wrong = wrong

    def step_through(self, points: list[LayerPoint]) -> Iterator[np.ndarray]:
        self.step()
        n = self.buffers.num_tokens
        values = layer_values(self.buffers.tokens[:n], self.buffers.positions[:n])
        values[1, -1, 0] += self.wrong
        yield from values[: len(points)]


def layer_values(tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
    layers, width = np.arange(3)[:, None, None], np.arange(8)
    return np.sin(1.0 + layers + tokens[None, :, None] * width + positions[None, :, None]).astype(np.float32)


@pytest.fixture
def layered_pack(tmp_path: Path) -> Path:
    """Its longer prompt takes three steps of the executor."""
    test = SelfTest(tolerance=1e-4, cases=[case([3], 4), case([1, 2, 3, 4, 5, 6, 7, 8, 9], 8)])
    points = [LayerPoint(layer=i, part="mlp", launch=i, slot=0, width=8, row_bytes=32, dtype="f32") for i in range(3)]
    sketches = [[stored(sketch(v)) for v in layer_values(np.array(c.tokens), np.arange(len(c.tokens)))] for c in test.cases]
    layers = LayerTest(tolerance=1e-4, limit=1e-2, points=points, sketches=sketches)
    made = {"step/selftest.json": msgspec.json.encode(test), "step/layers.json": msgspec.json.encode(layers)}
    manifest = minimal_manifest(code=[code_record(layers="step/layers.json")])
    return write_minimal_pack(tmp_path / "layers.fpk", None, manifest, {**MEMBERS, **made})


def test_layers_are_compared_over_all_steps_of_a_prompt(layered_pack: Path, tmp_path: Path) -> None:
    report = verify(layered_pack, tmp_path, LayeredExecutor())
    assert report.ok and "3 values of layers" in report.checks[-1].detail
    assert max(d for c in report.cases if c.layers for d in c.layers.deviations) < 1e-6
    plain = verify(layered_pack, tmp_path, ToyExecutor())
    assert plain.ok and plain.checks[-1].detail.endswith("the device shows no layers")


def test_the_first_diverging_layer_is_named(layered_pack: Path, tmp_path: Path) -> None:
    report = verify(layered_pack, tmp_path, LayeredExecutor(wrong=0.01, noise=0.01))
    assert report.checks[-1].detail.startswith("layer 1: mlp is the first to deviate, by ")
    small = verify(layered_pack, tmp_path, LayeredExecutor(wrong=0.01))
    assert small.ok, "below the limit, and the answers are right"
    large = verify(layered_pack, tmp_path, LayeredExecutor(wrong=1))
    assert not large.ok and large.checks[-1].detail.startswith("layer 1: mlp"), "whatever the answers are"
    outside = verify(layered_pack, tmp_path, LayeredExecutor(noise=0.01))
    assert not outside.ok and outside.checks[-1].detail.startswith("the layers agree to ")


def test_a_pack_without_values_of_layers(pack: Path, tmp_path: Path) -> None:
    assert verify(pack, tmp_path, LayeredExecutor()).checks[-1].detail.endswith("the pack has no values of its layers")


def test_a_wrong_greedy_token_is_found(pack: Path, tmp_path: Path) -> None:
    report = verify(pack, tmp_path, ToyExecutor(noise=0.5, from_position=12))
    assert report.cases[1].error < 1e-6 and report.cases[1].diverged_at_token >= 3
    assert "another greedy token" in report.checks[-1].detail


def test_nan_is_not_agreement(pack: Path, tmp_path: Path) -> None:
    for position in (0, 11):
        assert not verify(pack, tmp_path, ToyExecutor(noise=float("nan"), from_position=position)).ok


def test_a_tie_may_fall_either_way(tmp_path: Path) -> None:
    good = case([1, 2], 1)
    row = reference([1, 2])
    second = int(np.argsort(-row)[1])
    gap = float((row.max() - row[second]) / np.abs(row).max())
    for tolerance, ok in ((gap * 0.6, True), (gap * 0.4, False)):
        test = SelfTest(tolerance=tolerance, cases=[msgspec.structs.replace(good, greedy=[second])])
        assert verify(write(tmp_path / "x.fpk", test), tmp_path, ToyExecutor()).ok == ok


def test_damaged_members_are_all_listed_and_no_code_runs(pack: Path, tmp_path: Path) -> None:
    data = bytearray(pack.read_bytes())
    for member in read_manifest(pack).members:
        if member.name in ("weights", "code/step.so"):
            data[member.offset + 3] ^= 4
    pack.write_bytes(data)
    report = verify(pack, tmp_path)
    found = states(report)
    assert found["member weights"] == found["member code/step.so"] == "failed" and found["member step/plan.json"] == "ok"
    assert found["numeric"] == "skipped" and not report.ok


def test_another_machine(pack: Path, tmp_path: Path) -> None:
    for machine, text in ((("aarch64", {"avx2", "fma"}), "aarch64"), (("x86_64", {"avx2"}), "lacks fma")):
        report = verify(pack, tmp_path, machine=machine)
        check = next(check for check in report.checks if check.name == "machine")
        assert check.state == "failed" and text in check.detail and states(report)["numeric"] == "skipped"


def test_trust_states(pack: Path, tmp_path: Path) -> None:
    generate_key(tmp_path / "k")
    (tmp_path / "trusted").mkdir(mode=0o700)
    (tmp_path / "trusted" / "k.pub").write_bytes((tmp_path / "k.pub").read_bytes())
    sign_pack(pack, tmp_path / "k")
    assert states(verify(pack, tmp_path, ToyExecutor()))["trust"] == "ok"
    pack.with_name("x.fpk.sig").write_bytes(b"nonsense")
    report = verify(pack, tmp_path)
    assert states(report)["trust"] == "failed" and states(report)["numeric"] == "skipped"
    built = write_minimal_pack(tmp_path / "y.fpk", tmp_path)
    assert states(verify_pack(built, state_dir=tmp_path))["trust"] == "ok"


def test_code_of_an_untrusted_pack_is_not_run(pack: Path, tmp_path: Path) -> None:
    report = verify(pack, tmp_path, trust=False)  # making an executor would raise
    assert states(report)["numeric"] == "failed" and "not run" in report.checks[-1].detail
    assert verify_pack(pack, state_dir=tmp_path, config_dir=tmp_path).ok  # its bytes are sound


def test_without_a_selftest(tmp_path: Path) -> None:
    manifest = minimal_manifest(programs=[step_record(selftest="")], required=["weights"])
    path = write_minimal_pack(tmp_path / "x.fpk", None, manifest, MEMBERS)
    report = verify(path, tmp_path)
    assert report.ok and report.checks[-1].detail == "the pack has no self-test"


def test_a_structure_fault_is_raised(tmp_path: Path, pack: Path) -> None:
    pack.write_bytes(pack.read_bytes()[:-1])
    with pytest.raises(FerrumError, match="end of central directory"):
        verify(pack, tmp_path)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"tokens": []}, "cases[0]"),
        ({"tokens": [16]}, "cases[0]"),
        ({"tokens": [-1]}, "cases[0]"),
        ({"greedy": [99]}, "cases[0]"),
        ({"top_logits": []}, "cases[0]"),
        ({"tokens": [1] * 65}, "cases[0]"),
        ({"logit_norm": "x"}, "logit_norm"),
        ({"more": 1}, "more"),
    ],
)
def test_selftests_are_checked(tmp_path: Path, change: dict[str, object], named: str) -> None:
    raw = msgspec.to_builtins(SelfTest(tolerance=0.1, cases=[case([1], 1)]))
    raw["cases"][0].update(change)
    path = write_minimal_pack(tmp_path / "x.fpk", members={**MEMBERS, "step/selftest.json": msgspec.json.encode(raw)})
    with open_pack(path, trust=True) as opened, pytest.raises(FerrumError) as caught:
        read_selftest(opened)
    assert named in str(caught.value) and "step/selftest.json" in str(caught.value)


def test_too_little_memory_for_a_case(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fpk", SelfTest(tolerance=0.1, cases=[case([1] * 40, 1)]))
    with pytest.raises(FerrumError, match="11 KV blocks"):
        verify(path, tmp_path, ToyExecutor())
