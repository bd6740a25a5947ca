"""A pytest plugin that lets vLLM's tests of its OpenAI server speak to ``ferrum serve``: ``RemoteOpenAIServer`` is ours, and what
they import of vLLM's own classes is a stand-in, which no test that counts uses."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import itertools
import os
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from outside_model import MAX_LENGTH, TINY
from outside_servers import Asked, Servers

from ferrum.text.tokenizer import Tokenizer

servers = Servers(Path(os.environ["OUTSIDE_PACKS"]))
REASONING = "--reasoning-parser"  # with it their tests want whole answers, and a model that may think; others ask up to a limit
THINKING = (TINY.parent / "chat_template.jinja").read_text(encoding="utf-8") + (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
LENGTHS = {"--max-model-len", "--max_model_len"}
KEPT_FLAGS = {"--root-path"}
STAND_INS = ("vllm", "transformers", "pybase64", "openai_harmony", "mcp", "tblib", "PIL")


class RemoteOpenAIServer:
    """Under vLLM's name and with its methods, for their fixtures. Flags that ferrum has in its own words are handed on."""

    DUMMY_API_KEY = "token-abc123"

    def __init__(
        self, model: str, vllm_serve_args: Sequence[str], *, env_dict: Mapping[str, str] | None = None, **_: Any
    ) -> None:
        flags = ["--served-model-name", model]
        for name, value in itertools.pairwise(vllm_serve_args):
            if name in LENGTHS:
                flags += ["--max-model-len", str(min(int(value), MAX_LENGTH))]
            elif name in KEPT_FLAGS:
                flags += [name, value]
        key = (env_dict or {}).get("VLLM_API_KEY")
        if key:
            flags += ["--api-key", key]
        ends = REASONING in vllm_serve_args
        self.port = servers.port(Asked(THINKING if ends else "", tuple(flags), ends))
        self._key = key or self.DUMMY_API_KEY

    def __enter__(self) -> RemoteOpenAIServer:
        return self

    def __exit__(self, *_: object) -> None:
        """It is kept for the next that asks for the same."""

    @property
    def url_root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url_for(self, *parts: str) -> str:
        return "/".join((self.url_root, *parts))

    def get_client(self, **more: Any) -> openai.OpenAI:
        return openai.OpenAI(**self._client(more))

    def get_async_client(self, **more: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**self._client(more))

    def _client(self, more: Mapping[str, Any]) -> dict[str, Any]:
        return {"base_url": self.url_for("v1"), "api_key": self._key, "max_retries": 0, "timeout": 120, **more}


class Anything:
    """What a stand-in has under every name: a class that takes whatever it is made with, and whose methods do nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Nothing is kept."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: ""


class TheirTokenizer:
    """``get_tokenizer`` of vLLM, for the model that is served."""

    def __init__(self, **_: Any) -> None:
        self._tokenizer = Tokenizer((TINY / "tokenizer.json").read_bytes())

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)


class StandIn(types.ModuleType):
    """A module in which everything is found."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return TheirTokenizer if name == "get_tokenizer" else type(name, (Anything, Exception), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in STAND_INS else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> StandIn:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing in it."""


def skipped(*_: Any, **__: Any) -> Any:
    """Their marks of tests that need several GPUs or one of a kind."""
    return pytest.mark.skip


# conftest files are read before pytest is configured
sys.meta_path.insert(0, Finder())
sys.modules["tests.utils"] = types.ModuleType("tests.utils")
sys.modules["tests.utils"].__dict__.update(
    RemoteOpenAIServer=RemoteOpenAIServer, ROCM_EXTRA_ARGS=[], multi_gpu_only=skipped, requires_fp8=pytest.mark.skip
)


def pytest_unconfigure(config: pytest.Config) -> None:
    servers.close()
