"""What the server asks of an engine. ``ferrum.engine_process.client.EngineClient`` is one; tests bring others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ferrum.engine.params import SamplingParams
from ferrum.engine.reports import EngineInfo, EngineStats, TokenEvent


class BackendGeneration(Protocol):
    """One running request."""

    async def batch(self) -> list[TokenEvent]:
        """All events that are there, at least one; an empty list at the end. Raises FerrumError."""

    def abort(self, index: int | None = None) -> None:
        """End one choice or all; safe to call again."""


class Backend(Protocol):
    """An engine, wherever it runs."""

    info: EngineInfo

    @property
    def alive(self) -> bool: ...

    def generate(self, prompt: Sequence[int], params: SamplingParams, *, salt: str = "") -> BackendGeneration:
        """Send a request; its refusal is raised by ``batch``. Raises FerrumError when the engine takes none."""

    async def embed(self, prompt: Sequence[int], dimensions: int = 0) -> bytes:
        """The embedding of a prompt, float32 in little-endian bytes; ``dimensions`` 0: all of it. Raises FerrumError."""

    async def stats(self) -> EngineStats: ...

    async def close(self) -> None:
        """End the engine; running requests fail with the code "engine-closed"."""
