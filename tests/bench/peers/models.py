"""The same random weights for everyone: a model folder, our packs, GGUF files."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ferrum.graphs.models.random_weights import write_model
from tests.bench.peers.cases import SHAPES, Format
from tests.bench.peers.install import Peers
from tests.bench.peers.process import run
from tests.bench.peers.vocabulary import Vocabulary

LONGEST = 16384
KEPT_PACKS = 2  # of earlier compilers
# How llama-quantize may store the embedding and LM head beside the layers' type; the nearest in bytes to our pack is used.
VARIANTS: dict[str, tuple[str, ...]] = {
    "pure": ("--pure",),
    "Q6_K head": (),
    "Q8_0 head": ("--token-embedding-type", "q8_0", "--output-tensor-type", "q8_0"),
}


@dataclass(frozen=True)
class Models:
    """The files of one shape."""

    shape: str
    peers: Peers
    prove: bool = True

    @property
    def config(self) -> dict[str, Any]:
        return SHAPES[self.shape]

    @property
    def folder(self) -> Path:
        folder = self.peers.work / self.shape
        if not (folder / "model.safetensors").exists():
            write_model(folder, self.config)
        if not (folder / "tokenizer.json").exists():
            Vocabulary(self.config["vocab_size"]).write(folder)
        return folder

    @cached_property
    def longest(self) -> int:
        return min(LONGEST, int(self.config["max_position_embeddings"]))

    def pack(self, quant: str, kv_dtype: str = "") -> Path:
        """Compiled again when the compiler has changed."""
        stem = f"{self.shape}.{quant}{'.kv-' + kv_dtype if kv_dtype else ''}"
        path = self.peers.work / f"{stem}.{compiler_digest()}.fpk"
        if not path.exists():
            packs = sorted(self.peers.work.glob(f"{stem}.????????.fpk"), key=lambda p: p.stat().st_mtime)
            for old in packs[:-KEPT_PACKS]:
                old.unlink()
            options = ["--quant", quant, "--max-model-len", str(self.longest)]
            options += ["--kv-dtype", kv_dtype] if kv_dtype else []
            options += [] if self.prove else ["--no-prove"]
            print(f"compiling {path.name}", flush=True)
            run([sys.executable, "-m", "ferrum", "compile", self.folder, *options, "-o", path], timeout=3600)
        return path

    def bf16_gguf(self) -> Path:
        path = self.peers.work / f"{self.shape}.BF16.gguf"
        if not path.exists():
            temporary = path.with_suffix(".part")
            module = "tests.bench.peers.gguf_model"
            run([self.peers.python, "-m", module, self.folder, temporary], PYTHONPATH=str(Path.cwd()))
            temporary.rename(path)
        return path

    def gguf(self, kind: str, variant: str = "pure") -> Path:
        if kind == "BF16":
            return self.bf16_gguf()
        name = f"{kind}-{variant.replace(' ', '-')}" if variant != "pure" else kind
        path = self.peers.work / f"{self.shape}.{name}.gguf"
        if not path.exists():
            temporary = path.with_suffix(".part")
            run([self.peers.programs / "llama-quantize", *VARIANTS[variant], self.bf16_gguf(), temporary, kind])
            temporary.rename(path)
        return path

    def nearest_gguf(self, form: Format) -> tuple[Path, dict[str, Any]]:
        """The GGUF of the format's type that is nearest in bytes to our pack, and both sizes."""
        ours = self.weight_bytes(self.pack(form.quant))
        variants = ("pure",) if form.gguf in ("BF16", "Q8_0") else tuple(VARIANTS)
        found = {v: self.gguf(form.gguf, v) for v in variants}
        bytes_of = {v: path.stat().st_size - self.text_bytes() for v, path in found.items()}
        variant = min(variants, key=lambda v: abs(bytes_of[v] - ours))
        size = {
            "shape": self.shape,
            "format": form.name,
            "variant": f"{form.gguf}, {variant}",
            "ours": ours,
            "theirs": bytes_of[variant],
            "parameters": self.parameters,
        }
        return found[variant], size

    def text_bytes(self) -> int:
        """What of a GGUF file is not weights: measured on the bfloat16 file, whose weights are known."""
        return self.bf16_gguf().stat().st_size - 2 * self.parameters

    @cached_property
    def parameters(self) -> int:
        data = (self.folder / "model.safetensors").stat().st_size
        with (self.folder / "model.safetensors").open("rb") as file:
            return (data - 8 - int.from_bytes(file.read(8), "little")) // 2

    def weight_bytes(self, pack: Path) -> int:
        return next(int(m["nbytes"]) for m in self.manifest(pack)["members"] if m["name"] == "weights")

    def step_bytes(self, pack: Path) -> int:
        """Of the weights, what one step reads: not the embedding's table, of which it reads a row."""
        programs = self.manifest(pack)["code"][0]["programs"]
        return sum(int(k["weight_bytes"]) for build in programs.values() for k in build["kernels"])

    def manifest(self, pack: Path) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(run([sys.executable, "-m", "ferrum", "explain", pack, "--json"]))
        return result

    def forget(self) -> None:
        """Drop the files' pages from memory, so that each program maps pages as it reads them itself.

        How large the pages of a file are depends on who put them there. A file that was just written with small writes lies in
        small pages, and reading weights through those is up to a tenth slower.
        """
        for path in self.peers.work.glob(f"*{self.shape}*/**/*"):
            _forget(path)
        for path in self.peers.work.glob(f"{self.shape}.*"):
            _forget(path)

    def openvino(self, form: Format) -> Path:
        """A folder for OpenVINO GenAI, which writes its own form of the GGUF beside it at the first load.

        The variant in which every weight has the format's bits: OpenVINO widens a Q6_K head to 8 bits.
        """
        source = self.gguf(form.openvino)
        folder = self.peers.work / f"openvino-{source.stem}"
        if not (folder / "openvino_model.xml").exists():
            folder.mkdir(exist_ok=True)
            link = folder / "model.gguf"
            link.unlink(missing_ok=True)
            link.symlink_to(source.absolute())
            self.peers.worker("openvino_worker", json.dumps({"convert": str(link)}))
        return folder

    # arithmetic and bytes of one token

    def _head_dim(self) -> int:
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"])

    def linear_flops(self) -> float:
        """Multiplications and additions of the layers' products for one token, the LM head left out."""
        c = self.config
        width = self._head_dim() * (2 * c["num_attention_heads"] + 2 * c["num_key_value_heads"])
        return 2.0 * int(c["num_hidden_layers"] * c["hidden_size"] * (width + 3 * c["intermediate_size"]))

    def attention_flops(self, context: float) -> float:
        return 4.0 * context * int(self.config["num_hidden_layers"] * self.config["num_attention_heads"]) * self._head_dim()

    def prefill_flops(self, prompt: int) -> float:
        """Of one token on average."""
        return self.linear_flops() + self.attention_flops(prompt / 2)

    def kv_bytes(self, pack: Path) -> float:
        """Of one token in our cache."""
        return float(sum(state["unit_bytes"] / state["unit"] for state in self.manifest(pack)["states"]))


def _forget(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not on the disk yet cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compiler_digest() -> str:
    """Of every source file that decides what a pack holds."""
    digest = hashlib.sha256()
    for folder in ("graphs", "codegen", "templates", "ferrum/pack"):
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix in (".py", ".j2", ".h") and not {"tiny", "cuda", "metal"} & set(path.parts):
                digest.update(f"{path}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:8]
