"""Packed layers of every kind, with what they mean: by the methods' own package where there is one, else by their formulas."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

Tensors = dict[str, torch.Tensor]
# AutoAWQ, packing_utils.py: of eight columns, which lies at each place of a word, the lowest first
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@dataclass
class Made:
    """A layer ``[n, k]``: its tensors by what follows the layer's name, its weights, and its format in packs for CPUs and GPUs
    if they keep it."""

    tensors: Tensors
    values: torch.Tensor
    cpu: str = ""
    gpu: str = ""


Maker = Callable[[int, int], Made]


def words(codes: torch.Tensor, bits: int, axis: int, order: tuple[int, ...] = ()) -> torch.Tensor:
    """Numbers side by side along an axis, the lowest first, bit by bit."""
    lanes = codes.movedim(axis, -1).long()
    if order:
        lanes = lanes.reshape(*lanes.shape[:-1], -1, len(order))[..., list(order)].reshape(lanes.shape)
    stream = (lanes[..., None] >> torch.arange(bits) & 1).flatten(-2)
    stream = torch.nn.functional.pad(stream, (0, -stream.shape[-1] % 32))
    found = (stream.reshape(*stream.shape[:-1], -1, 32) << torch.arange(32)).sum(-1)
    return torch.where(found >= 1 << 31, found - (1 << 32), found).int().movedim(-1, axis).contiguous()


def uniform(*shape: int, scale: float = 0.005, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return ((torch.rand(shape) + 0.5) * scale).to(dtype)


def spread(part: torch.Tensor, size: int, axis: int, length: int) -> torch.Tensor:
    return part.repeat_interleave(size, axis).narrow(axis, 0, length)


def gptq(bits: int, size: int, sym: bool = False, ordered: bool = False, v2: bool = False, scales: Any = torch.float16) -> Maker:
    """``size`` -1: all of K."""

    def make(n: int, k: int) -> Made:
        group, top = k if size == -1 else size, 1 << bits
        groups = -(-k // group)
        codes, scale = torch.randint(0, top, (k, n)), uniform(groups, n, scale=0.05 / top, dtype=scales)
        zeros = torch.full((groups, n), top // 2) if sym else torch.randint(1, top, (groups, n))
        index = torch.randperm(k) // group if ordered else torch.arange(k) // group
        values = (codes - zeros[index]).float() * scale[index].float()
        stored = zeros if v2 else zeros - 1
        tensors = {"qweight": words(codes, bits, 0), "qzeros": words(stored, bits, 1), "scales": scale, "g_idx": index.int()}
        held = "" if ordered else f"-g{math.gcd(group, 128)}"
        kind = ("int8" if bits == 8 else "int4s") if sym else "int4a" if bits <= 4 else ""
        fmt = kind + held if kind and held and scales == torch.float16 else ""
        return Made(tensors, values.T.contiguous(), fmt, fmt)

    return make


def awq(size: int, across: bool = True) -> Maker:
    def make(n: int, k: int) -> Made:
        groups = k // size
        codes, zeros, scale = torch.randint(0, 16, (n, k)), torch.randint(0, 16, (n, groups)), uniform(n, groups)
        values = (codes - spread(zeros, size, 1, k)).float() * spread(scale, size, 1, k).float()
        fmt = f"int4a-g{size}"
        if across:
            parts = {"qweight": words(codes.T, 4, 1, AWQ_ORDER), "qzeros": words(zeros.T, 4, 1, AWQ_ORDER)}
            return Made(parts | {"scales": scale.T.contiguous()}, values, fmt, fmt)
        width = -(-groups // 8) * {32: 4, 64: 2}.get(size, 1)  # AutoAWQ, gemv.py: calculate_zeros_width
        padded = torch.nn.functional.pad(scale, (0, width * 8 - groups))
        filled = torch.nn.functional.pad(words(zeros, 4, 1), (0, width - -(-groups // 8)))
        return Made({"qweight": words(codes, 4, 1), "qzeros": filled, "scales": padded}, values, fmt, fmt)

    return make


@dataclass(frozen=True)
class Compressed:
    """A layer as compressed-tensors writes it: its format, what the configuration says of weights and the scales' dtype."""

    format: str
    args: dict[str, Any]
    dtype: torch.dtype = torch.bfloat16
    cpu: str = ""
    gpu: str = ""
    ordered: bool = False

    def scheme(self) -> QuantizationScheme:
        acts = QuantizationArgs(num_bits=8, type=self.args["type"], dynamic=True, strategy="token")
        given = acts if self.format in ("int-quantized", "float-quantized") else None
        return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**self.args), input_activations=given)

    def config(self) -> dict[str, Any]:
        values = {"symmetric": True, "group_size": None, "actorder": "group" if self.ordered else None, "dynamic": False}
        return {"targets": ["Linear"], "weights": values | self.args, "format": self.format, "input_activations": None}

    def __call__(self, n: int, k: int) -> Made:
        args, compressor = self.args, BaseCompressor.get_value_from_registry(self.format)
        size = args.get("group_size") or k
        shape = {"tensor": (1,), "channel": (n, 1), "block": (-(-n // 32), -(-k // 32))}.get(args["strategy"], (n, k // size))
        fp4 = args["type"] == "float" and args["num_bits"] == 4
        powers = torch.exp2(torch.randint(-9, -6, shape).float())
        scale = powers if self.format.startswith("mx") else uniform(*shape, dtype=self.dtype)
        state = {"weight": torch.randn(n, k) * 0.02, "weight_scale": scale}
        if fp4 and size == 16:
            state |= {"weight_scale": scale.float() * 20000, "weight_global_scale": torch.tensor([20000.0])}
        if not args.get("symmetric", True):
            half = 1 << args["num_bits"] - 1
            state["weight_zero_point"] = torch.randint(-half, half, shape, dtype=torch.int8)
        state = compressor.compress(state, self.scheme())
        theirs = compressor.decompress(dict(state), self.scheme())["weight"]
        values = self._fp4(state, size) if fp4 else self._wide(compressor, state)
        assert torch.equal(values.to(theirs.dtype), theirs)  # theirs are rounded to the scales' dtype
        group = math.gcd(size, 128)
        return Made(state, values, self.cpu.format(group), self.gpu.format(group))

    def _wide(self, compressor: Any, state: Tensors) -> torch.Tensor:
        """The same before it is rounded."""
        if state["weight_scale"].dtype == torch.uint8:
            scale = torch.exp2(state["weight_scale"].float() - 127)
            return state["weight"].float() * scale.repeat_interleave(self.args["group_size"], 1)
        wide = state | {"weight_scale": state["weight_scale"].float()}
        return compressor.decompress(wide, self.scheme())["weight"]  # type: ignore[no-any-return]

    def _fp4(self, state: Tensors, size: int) -> torch.Tensor:
        packed, stored = state["weight_packed"], state["weight_scale"]
        scale = torch.exp2(stored.float() - 127) if stored.dtype == torch.uint8 else stored.float() / state["weight_global_scale"]
        codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()
        return E2M1[codes] * scale.repeat_interleave(size, 1)


def fp8(
    block: tuple[int, int] | None, dtype: torch.dtype = E4M3, suffix: str = "weight_scale_inv", static: bool = False
) -> Maker:
    def make(n: int, k: int) -> Made:
        codes = (torch.randn(n, k) * 20).to(dtype)
        shape = (-(-n // block[0]), -(-k // block[1])) if block else ()
        scale = uniform(*shape, scale=0.001, dtype=torch.float32)
        wide = spread(spread(scale, block[0], 0, n), block[1], 1, k) if block else scale
        tensors = {"weight": codes, suffix: scale} | ({"input_scale": torch.tensor(0.5)} if static else {})
        kept = dtype == E4M3 and (block is None or shape[1] == 1)
        return Made(tensors, codes.float() * wide, "", "fp8" if kept else "")

    return make


def nvfp4(n: int, k: int) -> Made:
    """ModelOpt: the scales' scale multiplies."""
    codes, scale = torch.randint(0, 16, (n, k)), (torch.rand(n, k // 16) * 200 + 10).to(E4M3)
    whole = torch.tensor(0.00005)
    packed = (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)
    tensors = {"weight": packed, "weight_scale": scale, "weight_scale_2": whole, "input_scale": torch.tensor(0.5)}
    return Made(tensors, E2M1[codes] * (scale.float() * whole).repeat_interleave(16, 1))


NF4 = torch.linspace(-1, 1, 16)


def bnb4(block: int, nested: bool, kind: str = "nf4") -> Maker:
    """bitsandbytes, functional.py; a table of ours, since the file has it."""

    def make(n: int, k: int) -> Made:
        codes, count = torch.randint(0, 16, (n * k,), dtype=torch.uint8), -(-n * k // block)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [n, k]}
        tensors = {"weight": (codes[0::2] << 4 | codes[1::2])[:, None], "weight.quant_map": NF4}
        absmax = uniform(count, scale=0.05, dtype=torch.float32)
        if nested:
            table, inner = torch.linspace(-1, 1, 256), uniform(-(-count // 256), scale=0.02, dtype=torch.float32)
            places = torch.randint(0, 256, (count,), dtype=torch.uint8)
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.04}
            tensors |= {"weight.absmax": places, "weight.nested_absmax": inner, "weight.nested_quant_map": table}
            absmax = table[places.long()] * spread(inner, 256, 0, count) + torch.tensor(0.04)
        else:
            tensors["weight.absmax"] = absmax
        text = bytearray(json.dumps(state).encode())
        tensors[f"weight.quant_state.bitsandbytes__{kind}"] = torch.frombuffer(text, dtype=torch.uint8)
        return Made(tensors, (NF4[codes.long()] * spread(absmax, block, 0, n * k)).reshape(n, k))

    return make


def bnb8(n: int, k: int) -> Made:
    codes, column = torch.randint(-127, 128, (n, k), dtype=torch.int8), uniform(n, scale=0.05, dtype=torch.float32)
    tensors = {"weight": codes, "SCB": column, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return Made(tensors, codes.float() * (column / 127)[:, None])
