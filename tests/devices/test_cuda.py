"""The CUDA device on a stand-in for the driver: order, sizes and lifetimes of its calls, and what it says when one fails."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ferrum.devices.cuda import CudaDevice, CudaExecutor
from ferrum.devices.cuda_driver import Driver, Gpu, choose_gpu, list_gpus, open_driver
from ferrum.devices.null import NullExecutor
from ferrum.devices.options import DeviceOptions
from ferrum.errors import FerrumError
from ferrum.pack.reader import Pack, open_pack
from tests.devices.conftest import SMALL, fake_driver, load_cuda
from tests.devices.fake_cuda import ENUMS, NUM_VALUES, CUlaunchConfig, CUresult, parameter_names
from tests.devices.null_model import launch_table, write_launch_pack
from tests.devices.test_contract import fill, last_logits, prompt

# What may happen between the first and the last step.
ALLOWED = {"cuMemcpyHtoDAsync", "cuGraphLaunch", "cuEventRecord", "cuEventSynchronize"}


def test_the_stand_in_has_the_signatures_of_the_package() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    for name, ours in parameter_names().items():
        line = (getattr(driver, name).__doc__ or "").split("\n")[0]
        inside = line[line.index("(") + 1 : line.rindex(")")]
        inside = re.sub(r":[^,]*(\[[^\]]*\][^,]*)*", "", inside)
        theirs = [re.split(r"[\s*]+", part.strip())[-1] for part in inside.split(",") if part.strip()]
        assert ours == theirs, name


def test_the_stand_in_returns_as_many_values_as_the_package() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    for name in parameter_names():
        section = re.search(
            r"^( *)Returns\n\1-------\n\1CUresult\n(.*?)(?:\n\s*\n|\Z)", getattr(driver, name).__doc__ or "", re.M | re.S
        )
        assert section is not None, name
        # what is further to the right is text
        assert sum(line[len(section[1])] != " " for line in section[2].splitlines()) == NUM_VALUES.get(name, 0), name


def test_the_stand_in_has_the_numbers_of_the_package() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    for enum in ENUMS:
        assert {m.name: int(getattr(getattr(driver, enum.__name__), m.name)) for m in enum} == {m.name: int(m) for m in enum}
    ours, theirs = CUlaunchConfig, driver.CUlaunchConfig
    assert set(dir(theirs)) >= ours.FIELDS, "a field that is set and that the package does not know would be lost"


def test_the_package_without_a_driver_is_one_line() -> None:
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    try:
        gpus = list_gpus(open_driver())
    except FerrumError as error:
        assert error.code == "device-missing" and "\n" not in str(error)
    else:
        assert isinstance(gpus, list)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(FerrumError, match="cuda-bindings is not installed") as error:
        open_driver()
    assert error.value.code == "device-missing" and "pip install" in error.value.next_step


def test_a_step_allocates_nothing_and_waits_once(cuda_pack: Pack) -> None:
    driver, kernels = fake_driver()
    executor = load_cuda(driver, kernels, cuda_pack)
    held = len(driver.allocated), len(driver.pinned)
    driver.calls.clear()
    for tokens in (1, 5, 12):
        fill(executor, [(prompt(executor, tokens), 0, [0, 1, 2])])
        executor.step()
    names = driver.names()
    assert set(names) <= ALLOWED and names.count("cuEventSynchronize") == names.count("cuGraphLaunch") == 3
    assert "cuMemcpyHtoDAsync" not in names, "nothing but the graph's own copies"
    assert held == (len(driver.allocated), len(driver.pinned))


def test_rare_lists_are_copied_only_when_used(cuda_pack: Pack) -> None:
    driver, kernels = fake_driver()
    executor = load_cuda(driver, kernels, cuda_pack)
    b = fill(executor, [(prompt(executor, 5), 0, [0, 1])])
    b.penalty_start[1] = 2
    b.penalty_token[:2], b.penalty_count[:2] = (3, 4), 1
    driver.calls.clear()
    executor.step()
    copies = [args for name, args in driver.calls if name == "cuMemcpyHtoDAsync"]
    assert [args[2] for args in copies] == [8, 8]


def test_a_graph_is_inputs_kernels_outputs(cuda_pack: Pack) -> None:
    driver, kernels = fake_driver()
    executor = load_cuda(driver, kernels, cuda_pack)
    names = driver.names()
    starts = [i for i, name in enumerate(names) if name == "cuStreamBeginCapture"]
    for start in starts:
        inside = names[start + 1 : names.index("cuStreamEndCapture", start)]
        kernel = [i for i, name in enumerate(inside) if name == "cuLaunchKernel"]
        assert (
            inside[0] == "cuMemcpyHtoDAsync"
            and inside[-1] == "cuMemcpyDtoHAsync"
            and kernel == list(range(kernel[0], len(inside) - 1))
        )
        assert inside[1 : kernel[0]] in ([], ["cuMemcpyDtoDAsync"])
    recordings = len(executor._recordings.all)
    assert len(starts) == 2 * (recordings + len(executor._recordings.decode_indices()))
    assert driver.shared_limit == {"null_sample": 60 << 10}


def test_recordings_follow_the_phase_and_the_bucket(cuda_pack: Pack) -> None:
    driver, kernels = fake_driver()
    executor = load_cuda(driver, kernels, cuda_pack)
    fill(executor, [(prompt(executor, 1), 0, [i]) for i in range(3)])
    executor.step()
    assert kernels.launched[-2:] == [("null_write_one", (4, 1, 1)), ("null_sample", (4, 1, 1))]
    fill(executor, [(prompt(executor, 9), 0, [0, 1, 2])])
    executor.step()
    assert kernels.launched[-2:] == [("null_write", (12, 1, 1)), ("null_sample", (8, 1, 1))]


def test_kernels_that_wait_themselves_are_started_early(tmp_path: Path) -> None:
    replace = msgspec.structs.replace
    launches = [replace(launch, on=replace(launch.on, early=True)) for launch in launch_table("", "").launches]
    with open_pack(write_launch_pack(tmp_path / "null.fpk", "cuda", "sm_90a", launches=launches), trust=True) as pack:
        driver, kernels = fake_driver(capability=(9, 0))
        executor = load_cuda(driver, kernels, pack)
        configs = [(args[0], args[1]) for name, args in driver.calls if name == "cuLaunchKernelEx"]
        assert {symbol for _, symbol in configs} == {"null_sample"}, "the first launch follows the copy of the inputs"
        for config, _ in configs:
            (attribute,) = config.attrs
            assert attribute.id == 6 and attribute.value.programmaticStreamSerializationAllowed == 1
        wanted = NullExecutor(executor.limits)
        for each in (executor, wanted):
            fill(each, [(prompt(each, 5), 0, [0, 1])])
            each.step()
        assert executor.buffers.out_token[0] == wanted.buffers.out_token[0]


def test_weights_go_through_two_pinned_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ferrum.devices.cuda._STAGING_BYTES", 100)
    with open_pack(write_launch_pack(tmp_path / "null.fpk", "cuda", "sm_89"), trust=True) as pack:
        driver, kernels = fake_driver()
        executor = load_cuda(driver, kernels, pack)
        size = pack.manifest.weights_bytes
        copies = [args for name, args in driver.calls if name == "cuMemcpyHtoDAsync"][: -(-size // 100)]
        assert sum(args[2] for args in copies) == size and len({args[1] for args in copies}) == 2
        fill(executor, [(prompt(executor, 5), 0, [0, 1])])
        executor.step()  # the kernel compares what arrived


def test_everything_is_freed_in_the_end(cuda_pack: Pack) -> None:
    driver, kernels = fake_driver()
    executor = load_cuda(driver, kernels, cuda_pack)
    fill(executor, [(prompt(executor, 5), 0, [0, 1])])
    executor.begin()  # still under way
    executor.close()
    executor.close()
    assert driver.everything_freed()
    assert executor.buffers.tokens.size == executor.limits.max_tokens, "no view of freed memory is left"


STEPS_OF_LOADING = (
    "cuDevicePrimaryCtxRetain", "cuStreamCreate", "cuLibraryLoadData", "cuLibraryGetKernel", "cuFuncSetAttribute", "cuMemAlloc",
    "cuMemHostAlloc", "cuMemcpyHtoDAsync", "cuEventCreate", "cuLaunchKernel", "cuGraphInstantiate", "cuGraphUpload",
)  # fmt: skip


@pytest.mark.parametrize("name", STEPS_OF_LOADING)
def test_a_failed_load_frees_what_it_took(cuda_pack: Pack, name: str) -> None:
    driver, kernels = fake_driver(failing={name: CUresult.CUDA_ERROR_INVALID_VALUE})
    with pytest.raises(FerrumError) as error:
        load_cuda(driver, kernels, cuda_pack)
    assert error.value.code in ("device-failed", "code-unloadable") and "\n" not in str(error.value)
    assert driver.everything_freed()


def test_a_fault_in_a_kernel_is_named(cuda_pack: Pack) -> None:
    driver, kernels = fake_driver()
    executor = load_cuda(driver, kernels, cuda_pack)
    fill(executor, [(prompt(executor, 5), 0, [0, 1])])
    driver.failing["kernel"] = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(FerrumError, match="ILLEGAL_ADDRESS") as error:
        executor.step()
    assert error.value.code == "device-failed" and error.value.where == "cuda: Fake GPU"
    executor.close()


def test_too_little_memory_is_said_so(cuda_pack: Pack) -> None:
    driver, kernels = fake_driver(memory=600_000)
    with pytest.raises(FerrumError) as error:
        load_cuda(driver, kernels, cuda_pack)
    assert error.value.code in ("out-of-memory", "kv-memory-too-small")
    assert driver.everything_freed()


def test_another_thread_may_step(cuda_pack: Pack) -> None:
    driver, kernels = fake_driver()
    executor = load_cuda(driver, kernels, cuda_pack)
    wanted = last_logits(executor, prompt(executor, 5), 0, [0, 1])
    found: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: found.append(last_logits(executor, prompt(executor, 5), 0, [2, 3])))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], wanted)


def test_a_new_thread_with_the_id_of_an_old_one_is_bound_too(cuda_pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system gives the number of a thread that has ended to a later one, which has no context."""
    monkeypatch.setattr(threading, "get_ident", lambda: 1)
    driver, kernels = fake_driver()
    executor = load_cuda(driver, kernels, cuda_pack)
    bound = driver.names().count("cuCtxSetCurrent")
    thread = threading.Thread(target=executor.free_memory)
    thread.start()
    thread.join()
    assert driver.names().count("cuCtxSetCurrent") == bound + 1


def test_two_steps_under_way_do_not_mix(cuda_pack: Pack) -> None:
    """The second step is filled while the first has not even read its inputs."""
    driver, kernels = fake_driver(late=True)
    executor = load_cuda(driver, kernels, cuda_pack)
    one, two = prompt(executor, 5, 1), prompt(executor, 7, 2)
    wanted = [int(last_logits(executor, tokens, 0, [0, 1]).argmax()) for tokens in (one, two)]
    fill(executor, [(one, 0, [0, 1])])
    executor.begin()
    fill(executor, [(two, 0, [2, 3])])
    executor.begin()
    first = executor.finish().out_token[0]
    second = executor.finish().out_token[0]
    assert [first, second] == wanted


@pytest.mark.parametrize(
    ("arch", "capability", "runs"),
    [
        ("sm_80", (8, 0), True), ("sm_80", (8, 9), True), ("sm_86", (8, 0), False), ("sm_89", (9, 0), False),
        ("sm_90a", (9, 0), True), ("sm_100a", (10, 0), True), ("sm_100a", (10, 3), False), ("sm_120a", (12, 0), True),
        ("sm_120a", (12, 1), False), ("apple-m1", (8, 9), False), ("sm_75", (7, 5), True), ("sm_75", (8, 0), False),
        ("sm_90", (9, 0), True), ("sm_100", (10, 3), True), ("sm_103", (10, 0), False), ("sm_100f", (10, 3), True),
        ("sm_120", (12, 1), True), ("sm_120f", (12, 1), True), ("sm_121", (12, 0), False), ("sm_100", (12, 0), False),
        ("sm_80", (8, 7), False), ("sm_86", (8, 7), False), ("sm_87", (8, 7), True), ("sm_87", (8, 9), False),
        ("sm_87", (8, 8), False), ("sm_110", (11, 0), True),
    ],
)  # fmt: skip
def test_which_gpu_runs_which_code(arch: str, capability: tuple[int, int], runs: bool) -> None:
    assert Gpu(0, "x", capability, 0, 1).runs(arch) is runs


def test_a_pack_for_another_gpu_is_refused() -> None:
    driver, _ = fake_driver(capability=(9, 0))
    with pytest.raises(FerrumError, match=r"Fake GPU \(sm_90\)") as error:
        choose_gpu(Driver(driver), "sm_89", "cuda-sm89", "x.fpk")
    assert error.value.code == "wrong-machine"
    orin, _ = fake_driver(capability=(8, 7))
    with pytest.raises(FerrumError, match=r"has Fake GPU \(sm_87\); a Tegra runs no code but its own") as error:
        choose_gpu(Driver(orin), "sm_86", "cuda-sm86", "x.fpk")
    assert error.value.code == "wrong-machine" and "\n" not in str(error.value)
    assert choose_gpu(Driver(orin), "sm_87", "cuda-sm87", "x.fpk").arch == "sm_87"
    driver.count = 0
    with pytest.raises(FerrumError) as error:
        choose_gpu(Driver(driver), "sm_89", "cuda-sm89", "x.fpk")
    assert error.value.code == "device-missing"


def test_a_pack_for_another_device_is_refused(tmp_path: Path) -> None:
    path = write_launch_pack(tmp_path / "m.fpk", "metal", "apple-m1", "code/step.metal")
    with open_pack(path, trust=True) as pack, pytest.raises(FerrumError) as error:
        CudaDevice().load(pack, SMALL)
    assert error.value.code == "wrong-machine"


def test_roofs_are_measured_and_freed(cuda_pack: Pack) -> None:
    driver, kernels = fake_driver(memory=64 << 20)
    executor: CudaExecutor = load_cuda(driver, kernels, cuda_pack, DeviceOptions(max_seqs=2, max_tokens=4))
    held = len(driver.allocated)
    assert executor.measure_roofs()["read_gb_per_s"] > 0
    assert len(driver.allocated) == held
