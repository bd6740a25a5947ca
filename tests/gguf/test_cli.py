"""Files on the command line: what they are called, what is said of those that are not read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ferrum.compile_process import has_tokenizer
from ferrum.errors import FerrumError
from ferrum.graphs.models.config import from_hf
from ferrum.hub import choose_files, parse_name
from ferrum.store import check_tokenizer, source_identity
from tests.conftest import CommandLine
from tests.gguf.maker import converted
from tests.gguf.raw import put
from tests.gguf.test_tokenizer import LEVEL, byte_pairs, listing, made, merges_of


def test_files_are_told_apart(tmp_path: Path) -> None:
    path = put(tmp_path, b"GGUF", "Some.Model-Q4_K_M.gguf")
    name = parse_name(str(path))
    assert (name.kind, name.path, name.short) == ("file", path, "some.model-q4_k_m")
    shard = put(tmp_path, b"GGUF", "m-00002-of-00003.gguf")
    assert parse_name(str(shard)).short == "m"


@pytest.mark.parametrize(
    ("name", "there", "code", "words"),
    [
        ("model.gguf", False, "model-not-found", "there is no such file"),
        ("model.onnx", False, "model-not-found", "there is no such file"),
        ("model.pt2", False, "model-not-found", "there is no such file"),
        ("model.safetensors", True, "format-unsupported", "give the folder that it is in"),
        ("model.txt", True, "format-unsupported", "not models that can be read"),
        ("model.pt", True, "unsafe-format", "pickle files can run code"),
        ("qwen3:0.6b-q4_k_m", False, "format-unsupported", "give the path of a .gguf file"),
    ],
)
def test_what_is_not_read_is_named(name: str, there: bool, code: str, words: str, tmp_path: Path) -> None:
    text = str(put(tmp_path, b"x", name)) if there else name if ":" in name else str(tmp_path / name)
    with pytest.raises(FerrumError, match=words) as caught:
        parse_name(text)
    assert caught.value.code == code and "folder" not in caught.value.what


def test_a_repository_of_files_is_named() -> None:
    with pytest.raises(FerrumError, match="the repository has GGUF files only"):
        choose_files(parse_name("org/name-GGUF"), ["README.md", "name.Q4_K_M.gguf"])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "gptq", "bits": 5, "group_size": 128}, "gptq, 5 bits \\(2, 3, 4, 8 bits are read"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "gptq, 4 bits \\(groups of 0 are not read"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "marlin"}, "checkpoint_format marlin is"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv_fast"}, "\\(version gemv_fast is not"),
        ({"quant_method": "awq", "bits": 8, "group_size": 128}, "awq, 8 bits \\(4 bits are read"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "compressed-tensors, marlin-24 \\(format marlin-24 is"),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized", "sparsity_config": {"format": "sparse-24-mask"}},
            "\\(sparsity sparse-24-mask is not read yet",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 6, "type": "float"}}}},
            "\\(float of 6 bits is not read",
        ),
        ({"quant_method": "compressed-tensors", "quantization_status": "frozen"}, "quantization_status frozen is not read"),
        ({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {}}}, "transforms of activations"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "x"}, "x \\(bnb_4bit_quant_type x"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes \\(neither of four bits nor of eight"),
        ({"quant_method": "fp8", "weight_block_size": [64, 128]}, "fp8 \\(blocks of \\[64, 128\\] are not read yet"),
        ({"quant_method": "fp8", "fmt": "e3m4"}, "fp8 \\(fmt e3m4 is not read yet"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "modelopt \\(quant_algo W4A8_AWQ is not read yet"),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 128}, "auto-round, 4 bits \\(packing_format None is not"),
        ({"quant_method": "hqq"}, "hqq \\(not read yet"),
        ({}, "no named method"),
        ("x", "no named method"),
    ],
)
def test_quantized_folders_are_refused_by_their_method(config: object, words: str) -> None:
    with pytest.raises(FerrumError, match=words):
        from_hf({"architectures": ["LlamaForCausalLM"], "quantization_config": config})


def test_a_pack_belongs_to_the_file_s_bytes(tmp_path: Path) -> None:
    first, second = (put(tmp_path, b"GGUF", f"m-0000{n}-of-00002.gguf") for n in (1, 2))
    name = parse_name(str(first))
    before = source_identity(name, first)
    assert source_identity(name, first) == before
    os.utime(second, (1, 1))
    assert source_identity(name, first) != before


def test_models_without_a_tokenizer_are_refused_before_they_are_compiled(tmp_path: Path) -> None:
    _, path = converted("llama", tmp_path / "a.gguf")
    assert not has_tokenizer(path)
    with pytest.raises(FerrumError, match="has no tokenizer"):
        check_tokenizer(path)
    original = byte_pairs(LEVEL)
    check_tokenizer(made(tmp_path, {"model": "gpt2", "pre": "gpt-2", "merges": merges_of(original), **listing(original)}))


def test_a_file_is_checked(ferrum: CommandLine, tmp_path: Path) -> None:
    original = byte_pairs(LEVEL)
    path = made(tmp_path, {"model": "gpt2", "pre": "gpt-2", "merges": merges_of(original), **listing(original)})
    done = ferrum("check", str(path), "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["ok"], done.stderr
    done = ferrum("check", str(tmp_path / "none.gguf"))
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "there is no such file" in done.stderr


@pytest.mark.slow
def test_a_file_is_compiled_and_run(ferrum: CommandLine, tmp_path: Path) -> None:
    from tests.gguf.test_models import blocky_llama

    _, path = blocky_llama(tmp_path / "model.gguf", {"": "q4_k", "ffn_down": "q3_k"})
    done = ferrum("compile", str(path), "-o", "x.fpk", timeout=300)
    assert done.returncode == 0, done.stderr
    assert "note: weights: q4_k stays as it is (int4k-g32); q3_k becomes bf16" in done.stderr
    original = byte_pairs(LEVEL)
    words = {"model": "gpt2", "pre": "gpt-2", "merges": merges_of(original), **listing(original)}
    path = made(tmp_path, words, "{{ messages[0].content }}")
    done = ferrum("run", str(path), "--prompt", "hi", "--max-tokens", "4", timeout=300)
    assert done.returncode == 0, done.stderr
