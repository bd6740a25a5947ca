"""The CUDA and Metal devices on their stand-ins, with a pack's real kernels: launches run in the emulator."""

from __future__ import annotations

import numpy as np

from ferrum.devices.cuda import CudaExecutor
from ferrum.devices.cuda_driver import Driver, choose_gpu
from ferrum.devices.emulate import Module, build
from ferrum.devices.emulate.module import Address, Prepared
from ferrum.devices.metal import Metal, MetalExecutor
from ferrum.devices.options import DeviceOptions
from ferrum.pack.reader import Pack
from tests.devices.fake_cuda import FakeDriver, Kernel
from tests.devices.fake_metal import FakeApi, FakeDevice, pool


def emulated_kernel(module: Module, symbol: str) -> Kernel:
    """The kernel as the stand-in calls it: parameters are 64-bit words, pointers where the kernel declares pointers."""
    pointers = [size == 0 for size in module.kernels[symbol].params]

    def run(grid: tuple[int, int, int], block: tuple[int, int, int], shared: int, words: list[int]) -> None:
        args = [Address(w) if p else int(np.int32(np.uint32(w & 0xFFFFFFFF))) for w, p in zip(words, pointers, strict=True)]
        Prepared(module, symbol, grid, block, args, shared=shared).run()

    return run


def emulated_driver(pack: Pack, capability: tuple[int, int]) -> FakeDriver:
    module = build(bytes(pack.member("code/step.cu")).decode(), "cuda")
    kernels = {symbol: emulated_kernel(module, symbol) for symbol in module.kernels}
    params = {symbol: len(kernel.params) for symbol, kernel in module.kernels.items()}
    return FakeDriver(capability=capability, kernels=kernels, num_params=params)


def emulated_metal_kernel(module: Module, symbol: str) -> Kernel:
    """The kernel as the stand-in for Metal calls it: every argument is an address, for a reference that of the number."""

    def run(grid: tuple[int, int, int], block: tuple[int, int, int], shared: int, addresses: list[int]) -> None:
        Prepared(module, symbol, grid, block, [Address(a) for a in addresses], shared=shared).run()

    return run


def load_emulated_metal(pack: Pack, options: DeviceOptions) -> MetalExecutor:
    module = build(bytes(pack.member("code/step.metal")).decode(), "metal")
    device = FakeDevice({symbol: emulated_metal_kernel(module, symbol) for symbol in module.kernels})
    return MetalExecutor(Metal(FakeApi, pool), device, pack, options)


def load_emulated(pack: Pack, options: DeviceOptions, capability: tuple[int, int] = (8, 0)) -> CudaExecutor:
    target, driver = pack.manifest.target, Driver(emulated_driver(pack, capability))
    return CudaExecutor(driver, choose_gpu(driver, target.arch, target.name, pack.path.name), pack, options)
