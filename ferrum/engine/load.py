"""From a pack's path to an engine that is ready for its first request."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ferrum.devices.base import Device, Executor
from ferrum.devices.options import DeviceOptions
from ferrum.engine.encoder import Encoder
from ferrum.engine.engine import Engine
from ferrum.engine.options import EngineOptions
from ferrum.engine.reports import EngineInfo, WindowInfo
from ferrum.errors import FerrumError
from ferrum.pack.programs import kv_groups, require_encode, require_program, require_step
from ferrum.pack.reader import Pack, open_pack
from ferrum.pack.schema import ENCODE
from ferrum.structured.masks import GrammarMasks

if TYPE_CHECKING:
    from ferrum.text.tokenizer import Tokenizer

# name: module and class, imported when the device is used
DEVICES = {
    "cpu": ("ferrum.devices.cpu", "CpuDevice"),
    "cuda": ("ferrum.devices.cuda", "CudaDevice"),
    "metal": ("ferrum.devices.metal", "MetalDevice"),
    "emulate": ("ferrum.devices.emulate.device", "EmulatedDevice"),
    "null": ("ferrum.devices.null", "NullDevice"),
}
AUTO = "auto"


@dataclass(frozen=True)
class LoadedModel:
    """An open pack, its executor and the engine over it, which makes tokens or embeddings. ``close`` frees everything."""

    pack: Pack
    executor: Executor
    engine: Engine | Encoder
    info: EngineInfo

    @property
    def generator(self) -> Engine:
        """Raises FerrumError when the pack only embeds."""
        if isinstance(self.engine, Encoder):
            require_step(self.pack.manifest, str(self.pack.path))
        assert isinstance(self.engine, Engine)
        return self.engine

    @property
    def encoder(self) -> Encoder:
        """Raises FerrumError when the pack only generates."""
        if isinstance(self.engine, Engine):
            require_encode(self.pack.manifest, str(self.pack.path))
        assert isinstance(self.engine, Encoder)
        return self.engine

    def close(self) -> None:
        self.engine.close()
        self.pack.close()


def load_model(
    path: str | os.PathLike[str],
    *,
    device: str = AUTO,
    trust: bool = False,
    device_options: DeviceOptions | None = None,
    engine_options: EngineOptions | None = None,
) -> LoadedModel:
    """Open the pack at ``path`` on ``device`` ("auto": the one it was compiled for).

    Raises FerrumError: a bad pack or option, an unknown device, a machine or memory that does not fit.
    """
    device_options = device_options or DeviceOptions()
    engine_options = engine_options or EngineOptions()
    _check_options(device_options)
    pack = open_pack(Path(path), trust=trust)
    try:
        record = pack.manifest
        name = record.target.device if device == AUTO else device
        length = _model_len(record.model.max_model_len, device_options, engine_options)
        executor = find_device(name).load(pack, replace(device_options, max_model_len=length))
        try:
            engine = _engine(pack, executor, replace(engine_options, max_model_len=length))
        except BaseException:
            executor.close()
            raise
    except BaseException:
        pack.close()
        raise
    info = _encoder_info(pack, name, engine) if isinstance(engine, Encoder) else _info(pack, name, engine)
    return LoadedModel(pack, executor, engine, info)


def _engine(pack: Pack, executor: Executor, options: EngineOptions) -> Engine | Encoder:
    if require_program(pack.manifest, str(pack.path)).name == ENCODE:
        return Encoder(executor, options)
    ends = pack.manifest.text.eos_token_ids
    return Engine(executor, options, eos_token_ids=ends, masks=_masks(pack, executor.limits.vocab_size, ends))


def _masks(pack: Pack, vocab_size: int, ends: list[int]) -> GrammarMasks | None:
    """What grammars of requests become; none without a tokenizer, which is read when the first one comes."""
    if "tokenizer.json" not in pack:
        return None

    def tokenizer() -> Tokenizer:
        from ferrum.text.tokenizer import Tokenizer

        return Tokenizer(pack.member("tokenizer.json"))

    return GrammarMasks(tokenizer, vocab_size, ends)


def find_device(name: str) -> Device:
    """The device called ``name``. Raises FerrumError for a name that is not in ``DEVICES``."""
    if name not in DEVICES:
        known = ", ".join(DEVICES)
        raise FerrumError("unknown-device", f"there is no device {name!r}", "device", f"use auto or one of: {known}")
    module, attribute = DEVICES[name]
    try:
        device: Device = getattr(importlib.import_module(module), attribute)()
    except ImportError as error:
        what = f"the device {name} needs the package {error.name}"
        raise FerrumError("device-missing", what, "device", "pip install 'ferrum-infer[compile]'") from None
    return device


def _model_len(longest: int, device_options: DeviceOptions, engine_options: EngineOptions) -> int:
    wanted = [n for n in (device_options.max_model_len, engine_options.max_model_len) if n]
    if max(wanted, default=0) > longest:
        what = f"max_model_len {max(wanted)} exceeds {longest}, for which the pack was compiled"
        raise FerrumError("invalid-option", what, "max_model_len", "compile with a larger --max-model-len")
    return min(wanted, default=longest)


# Numbers that devices hold as int32, with room for sums of them.
LARGEST = {
    "max_seqs": 1 << 16, "max_tokens": 1 << 20, "max_samples": 1 << 20, "max_model_len": (1 << 31) - 1,
    "kv_cache_bytes": 1 << 48, "num_threads": 1 << 12,
}  # fmt: skip


def _check_options(options: DeviceOptions) -> None:
    for field in fields(options):
        value = getattr(options, field.name)
        if isinstance(field.default, (bool, str)) and isinstance(value, type(field.default)):
            continue
        smallest, largest = 1 if field.name in ("max_seqs", "max_tokens") else 0, LARGEST[field.name]
        if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
            what = f"{field.name} must be a whole number from {smallest} to {largest}"
            raise FerrumError("invalid-option", what, field.name, "give another number")


def _encoder_info(pack: Pack, device: str, encoder: Encoder) -> EngineInfo:
    record, limits = pack.manifest, encoder.executor.limits
    return EngineInfo(
        model=record.model.name,
        device=device,
        vocab_size=limits.vocab_size,
        max_model_len=encoder.max_model_len,
        max_num_seqs=encoder.max_seqs,
        max_num_batched_tokens=encoder.max_tokens,
        max_queue=encoder.options.max_queue,
        num_blocks=0,
        block_size=limits.block_size,
        bytes_per_block=0,
        weight_bytes=record.weights_bytes,
        kv_bytes=0,
        prefix_cache=False,
        embedding_width=encoder.width,
    )


def _info(pack: Pack, device: str, engine: Engine) -> EngineInfo:
    record, limits, scheduler = pack.manifest, engine.executor.limits, engine.scheduler
    groups = kv_groups(record)
    block_bytes = groups[0].unit_bytes
    windows = [
        WindowInfo(window=kept.window, num_blocks=kept.count, bytes_per_block=group.unit_bytes)
        for kept, group in zip(limits.groups, groups[1:], strict=True)
    ]
    return EngineInfo(
        model=record.model.name,
        device=device,
        vocab_size=limits.vocab_size,
        max_model_len=engine.max_model_len,
        max_num_seqs=scheduler.max_seqs,
        max_num_batched_tokens=scheduler.max_tokens,
        max_queue=engine.options.max_queue,
        num_blocks=limits.num_blocks,
        block_size=limits.block_size,
        bytes_per_block=block_bytes,
        weight_bytes=record.weights_bytes,
        windows=windows,
        kv_bytes=limits.num_blocks * block_bytes + sum(w.num_blocks * w.bytes_per_block for w in windows),
        prefix_cache=engine.options.prefix_cache,
    )
