"""What doctor and verify see of this machine's GPUs, with and without them."""

from __future__ import annotations

import pytest

from ferrum.cli import doctor
from ferrum.cli.machine import machine_for
from ferrum.devices import gpus
from ferrum.devices.cuda_driver import Driver, missing
from ferrum.engine.load import DEVICES, find_device
from ferrum.errors import FerrumError
from ferrum.pack.schema import TargetRecord
from tests.devices.conftest import fake_driver, fake_metal


def target(device: str, arch: str) -> TargetRecord:
    return TargetRecord(name=f"{device}-{arch}", device=device, arch=arch, features=[arch])


def test_doctor_names_gpus_and_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "open_driver", lambda: Driver(fake_driver(capability=(9, 0), memory=8 << 30)[0]))
    monkeypatch.setattr(gpus, "open_metal", lambda: (None, fake_metal(family=1008)[0]))
    monkeypatch.setattr("platform.mac_ver", lambda: ("15.2", ("", "", ""), "arm64"))
    (cuda,) = doctor.gpus("cuda")
    assert cuda.state == "ok" and cuda.detail == "Fake GPU: sm_90, 8.0 GiB, CUDA 13.0"
    (metal,) = doctor.gpus("metal")
    assert metal.state == "ok" and "apple-m2" in metal.detail
    assert machine_for(target("cuda", "sm_90a")) == ("sm_90a", ["sm_90a"])
    assert machine_for(target("cuda", "sm_89")) == ("sm_90", ())
    assert machine_for(target("metal", "apple-m1")) == ("apple-m1", ["apple-m1"])


def test_doctor_names_a_gpu_that_nothing_can_be_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "open_driver", lambda: Driver(fake_driver(capability=(7, 0))[0]))
    (cuda,) = doctor.gpus("cuda")
    assert cuda.state == "note" and cuda.detail == "Fake GPU: sm_70, which no target is for: use a pack for cpu"


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> Driver:
        raise missing("there is no NVIDIA driver", "install it")

    monkeypatch.setattr(gpus, "open_driver", nothing)
    (found,) = doctor.gpus("cuda")
    assert found.state == "note" and found.detail == "there is no NVIDIA driver: install it"
    assert machine_for(target("cuda", "sm_89")) is None
    monkeypatch.setattr(gpus, "open_driver", lambda: Driver(fake_driver(count=0)[0]))
    (found,) = doctor.gpus("cuda")
    assert found.state == "note" and "CUDA_VISIBLE_DEVICES" in found.detail


def test_doctor_names_a_system_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "open_metal", lambda: (None, fake_metal(family=1010)[0]))
    monkeypatch.setattr("platform.mac_ver", lambda: ("14.6", ("", "", ""), "arm64"))
    (metal,) = doctor.gpus("metal")
    assert metal.state == "note" and "macOS 14.6: update macOS" in metal.detail and "apple-m1" in metal.detail
    monkeypatch.setattr("platform.mac_ver", lambda: ("15.5", ("", "", ""), "arm64"))
    (metal,) = doctor.gpus("metal")
    assert metal.state == "ok" and "apple-m4" in metal.detail, "what the chip could run on a newer system is not offered"


@pytest.mark.parametrize("name", [name for name in DEVICES if name != "emulate"])
def test_every_device_can_be_found(name: str) -> None:
    assert find_device(name).name == name


def test_a_device_whose_package_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, "cuda", ("ferrum.devices.no_such_module", "X"))
    with pytest.raises(FerrumError) as error:
        find_device("cuda")
    assert error.value.code == "device-missing"
