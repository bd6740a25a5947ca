"""Builds and installs the peers under one folder, away from the project's environment."""

from __future__ import annotations

import os
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.bench.peers.process import run

LLAMA_PACKAGE = "llama-cpp-python==0.3.36"
CONSTRAINTS = Path(__file__).with_name("constraints.txt")
PACKAGES = ("openvino-genai", "transformers", "matplotlib", "gguf")
BUILD_TOOLS = ("scikit-build-core", "cmake", "ninja")
TARGETS = ("llama-bench", "llama-batched-bench", "llama-server", "llama-completion", "llama-quantize")


@dataclass(frozen=True)
class Peers:
    """``python``: the peers' interpreter; ``programs``: the folder of llama.cpp's programs."""

    python: Path
    programs: Path
    work: Path

    def worker(self, name: str, argument: str) -> str:
        """Run a module of this package with the peers' Python; the last line it prints is its answer."""
        module = f"tests.bench.peers.{name}"
        text = run([self.python, "-m", module, argument], PYTHONPATH=os.getcwd(), HF_HUB_OFFLINE="1")
        return text.strip().splitlines()[-1]


def install(work: Path) -> Peers:
    """Everything that is missing."""
    work.mkdir(parents=True, exist_ok=True)
    peers = Peers((work / "venv/bin/python").absolute(), work / "llama-build/bin", work)
    if not (work / "ready").exists():
        _environment(peers)
        (work / "ready").touch()
    if not all((peers.programs / name).exists() for name in TARGETS):
        _llama(peers)
    return peers


def _environment(peers: Peers) -> None:
    if not peers.python.exists():
        run([sys.executable, "-m", "venv", peers.work / "venv"])
    pip = (peers.python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", CONSTRAINTS)
    run([*pip, "torch==2.13.0"], timeout=3600)  # first and alone: nothing may bring another build of it
    run([*pip, *PACKAGES, *BUILD_TOOLS, "torch==2.13.0"], timeout=3600)


def _llama(peers: Peers) -> None:
    work = peers.work
    pip = (peers.python, "-m", "pip", "download", "-q", "--disable-pip-version-check")
    if not list(work.glob("llama_cpp_python-*.tar.gz")):
        run([*pip, "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", work, LLAMA_PACKAGE])
    with tarfile.open(next(work.glob("llama_cpp_python-*.tar.gz"))) as tar:
        tar.extractall(work, filter="data")
    source = next(work.glob("llama_cpp_python-*/vendor/llama.cpp"))
    path = f"{peers.python.parent}:{os.environ['PATH']}"
    flags = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF")
    run(["cmake", "-G", "Ninja", "-S", source, "-B", work / "llama-build", *flags], PATH=path)
    run(["cmake", "--build", work / "llama-build", "--target", *TARGETS], timeout=7200, PATH=path)
