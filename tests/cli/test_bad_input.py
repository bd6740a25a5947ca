"""What users get wrong: each is one line that says what, where and what to do next, and exit status 1."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ferrum import env
from ferrum.cli.main import main
from ferrum.pack.schema import TargetRecord
from tests.cli.checkpoint import tensors, write_checkpoint
from tests.cli.packs import write_pack
from tests.conftest import CommandLine
from tests.pack.helpers import minimal_manifest, write_minimal_pack

FAULT = re.compile(r"error: \w+(Error|Exception|Exit)\b")
Captured = pytest.CaptureFixture[str]


def refused(capsys: Captured, *arguments: str) -> str:
    """The one line on stderr of a command that must fail with status 1."""
    capsys.readouterr()
    assert main(arguments) == 1
    out, text = capsys.readouterr()
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and text.splitlines()[-1] == errors[0], text
    assert errors[0].count(" · ") >= 1 and not FAULT.match(errors[0]), "a fault of ours is no answer"
    return errors[0]


def this_target() -> TargetRecord:
    return TargetRecord(name="cpu", device="cpu", arch=os.uname().machine, features=[])


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix in (".fpk", ".tmp"))


def test_missing_tensors_are_listed_at_once(tmp_path: Path, capsys: Captured) -> None:
    weights = tensors()
    del weights["model.layers.0.mlp.up_proj.weight"], weights["model.norm.weight"]
    folder = write_checkpoint(tmp_path / "m", weights)
    line = refused(capsys, "compile", str(folder), "-o", str(tmp_path / "m.fpk"))
    assert "model.layers.0.mlp.up_proj.weight" in line and "model.norm.weight" in line
    assert left(tmp_path) == []


def test_wrong_shapes_are_listed_at_once(tmp_path: Path, capsys: Captured) -> None:
    weights = tensors()
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.o_proj.weight"):
        weights[name] = weights[name][:-1].copy()
    folder = write_checkpoint(tmp_path / "m", weights)
    line = refused(capsys, "compile", str(folder), "-o", str(tmp_path / "m.fpk"))
    assert "up_proj" in line and "o_proj" in line and "95" in line and "96" in line
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["FalconForCausalLM"]}, "FalconForCausalLM"),
        ({"hidden_act": "relu2"}, "relu2"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "longrope"),
    ],
)
def test_unsupported_configuration(tmp_path: Path, capsys: Captured, changes: dict[str, object], named: str) -> None:
    folder = write_checkpoint(tmp_path / "m", **changes)
    assert named in refused(capsys, "compile", str(folder))
    assert named in refused(capsys, "check", str(folder))


def test_unsupported_op(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """``compile`` names it in one line; ``check`` prints one line for each, with module and source."""
    import torch

    from ferrum.graphs.models.blocks import RMSNorm

    monkeypatch.setattr(RMSNorm, "forward", lambda self, x: torch.special.bessel_j0(x) * self.weight)
    folder = write_checkpoint(tmp_path / "m")
    assert "bessel" in refused(capsys, "compile", str(folder), "-o", str(tmp_path / "m.fpk"))
    capsys.readouterr()
    assert main(["check", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines and "bessel" in lines[0] and "blocks.py:" in lines[0]


def test_a_folder_without_a_model(tmp_path: Path, capsys: Captured) -> None:
    assert "config.json" in refused(capsys, "compile", str(tmp_path))
    folder = write_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    assert "no weights" in refused(capsys, "compile", str(folder))
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    assert "run any code" in refused(capsys, "compile", str(folder))


def test_a_damaged_checkpoint(tmp_path: Path, capsys: Captured) -> None:
    folder = write_checkpoint(tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "model.safetensors" in refused(capsys, "compile", str(folder))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--target", "cpu-6502"), "cpu-6502"),
        (("--max-model-len", "100000000"), "--max-model-len"),
        (("--stop-after", "lunch"), "lunch"),
        (("--start-from", "fuse_mlp", "--dump-dir", "nowhere"), "nowhere"),
    ],
)
def test_bad_options(tmp_path: Path, capsys: Captured, arguments: tuple[str, ...], named: str) -> None:
    folder = write_checkpoint(tmp_path / "m")
    assert named in refused(capsys, "compile", str(folder), "-o", str(tmp_path / "m.fpk"), *arguments)


def test_full_disk(tmp_path: Path) -> None:
    """Writes stop in the middle of the pack: one line, and nothing under its name or any other."""
    # more weights than the limit, which the compiler's own files stay below
    folder = write_checkpoint(tmp_path / "m", tensors(vocab_size=30_000), vocab_size=30_000)
    out = tmp_path / "out"
    out.mkdir()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))

    command = [sys.executable, "-m", "ferrum", "compile", str(folder), "-o", str(out / "m.fpk"), "--quant", "f32"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, cwd=tmp_path, timeout=100)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ") and "space" in done.stderr.splitlines()[-1]
    assert list(out.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "m")
    (tmp_path / "file").touch()
    monkeypatch.setattr("ferrum.codegen.stages.trace", lambda job: pytest.fail("the model was traced"))
    for place, named in (
        (tmp_path / "no" / "m.fpk", "no such folder"),
        (tmp_path / "file" / "m.fpk", "file"),
        (tmp_path, "folder"),
    ):
        assert named in refused(capsys, "compile", str(folder), "-o", str(place))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as on a file system that is mounted read-only
    assert "no file can be made" in refused(capsys, "compile", str(folder), "-o", str(tmp_path / "m.fpk"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("compile", ""), "no such model"),
        (("compile", "~nobody-here/x"), "~nobody-here/x"),
        (("pull", "org/name@"), "no revision"),
        (("compile", "x" * 5000), "too long"),
        (("list", "nowhere"), "no such folder"),
        (("--config", "/", "list"), "folder"),
    ],
)
def test_names_that_are_none(capsys: Captured, arguments: tuple[str, ...], named: str) -> None:
    assert named in refused(capsys, *arguments)


def test_a_settings_folder_of_an_unknown_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRUM_HOME", "~nobody-here/x")
    assert env.home() == Path.cwd() / "~nobody-here" / "x"


def test_a_missing_configuration_is_called_missing(tmp_path: Path, capsys: Captured) -> None:
    assert "there is no such file" in refused(capsys, "compile", str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "is not JSON" in refused(capsys, "compile", str(tmp_path))


def test_an_untrusted_pack_is_not_run_by_verify(tmp_path: Path, capsys: Captured) -> None:
    pack = write_minimal_pack(tmp_path / "x.fpk", manifest=minimal_manifest(target=this_target()))
    assert refused(capsys, "verify", str(pack), "--numeric").endswith("sign it, or add --trust")
    assert "cannot be loaded" in refused(capsys, "verify", str(pack), "--numeric", "--trust")


def test_interrupted_while_modules_are_loaded() -> None:
    """Ctrl-C in the first half second is one line as well."""
    program = (
        "import sys\n"
        "class Cut:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'ferrum.cli.options': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Cut())\n"
        "from ferrum.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_an_interrupted_compiler_process_leaves_nothing(tmp_path: Path) -> None:
    """What serve and run send when Ctrl-C comes while a model is compiled for them."""
    folder = write_checkpoint(tmp_path / "m")
    program = (
        "import os, signal, sys; import ferrum.codegen.packing as d, ferrum.compile_process as c\n"
        "import ferrum.codegen.toolchains.cxx as t; t.CToolchain.compile = lambda *a: b'code'\n"  # nothing runs it
        "write = d.write_weights\n"
        "def cut(*a): os.kill(os.getpid(), signal.SIGTERM); return write(*a)\n"
        "d.write_weights = cut\n"
        "try: sys.exit(c.main())\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    options = json.dumps({"model": str(folder), "output": str(tmp_path / "m.fpk")})
    done = subprocess.run([sys.executable, "-c", program], input=options, capture_output=True, text=True, timeout=100)
    assert done.returncode == 130 and left(tmp_path) == []


@pytest.mark.parametrize(("arguments", "status"), [(["run", "missing.fpk"], 1), (["fly"], 2)])
def test_an_error_that_nobody_reads_is_still_a_status(arguments: list[str], status: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ferrum", *arguments]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=writer, timeout=100)
    os.close(writer)
    assert done.returncode == status


def test_a_pack_for_another_cpu(tmp_path: Path, ferrum: CommandLine) -> None:
    arch = "aarch64" if os.uname().machine == "x86_64" else "x86_64"
    path = write_pack(tmp_path / "other.fpk", name="cpu-other", device="cpu", arch=arch, features=["impossible"])
    for verb in (["run", "--prompt", "x"], ["bench"], ["serve"]):
        done = ferrum(verb[0], str(path), "--trust", *verb[1:])
        assert done.returncode == 1, verb
        assert "cpu-other" in done.stderr and "--target cpu" in done.stderr, (verb, done.stderr)
        assert len(done.stderr.splitlines()) == 1, (verb, done.stderr)


def test_busy_port(tmp_path: Path, ferrum: CommandLine) -> None:
    pack = write_pack(tmp_path / "null.fpk", device="null")
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        done = ferrum("serve", str(pack), "--trust", "--port", str(port))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert str(port) in done.stderr and "--port" in done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_an_open_address_needs_a_key(tmp_path: Path, ferrum: CommandLine, host: str) -> None:
    done = ferrum("serve", str(tmp_path / "any.fpk"), "--host", host)
    assert done.returncode == 1 and "--api-key" in done.stderr and len(done.stderr.splitlines()) == 1


def test_interrupted_compile_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C while a model is compiled: status 130, no file."""
    folder = write_checkpoint(tmp_path / "m")
    program = (
        "import os, signal, sys; from ferrum.cli.main import main; import ferrum.codegen.packing as d\n"
        "import ferrum.codegen.toolchains.cxx as t; t.CToolchain.compile = lambda *a: b'code'\n"  # nothing runs it
        "write = d.write_weights\n"
        "def cut(*a): os.kill(os.getpid(), signal.SIGINT); return write(*a)\n"
        "d.write_weights = cut\n"
        f"sys.exit(main(['compile', {str(folder)!r}, '-o', {str(tmp_path / 'm.fpk')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 130 and done.stderr.splitlines()[-1] == "error: interrupted"
    assert left(tmp_path) == []


@pytest.mark.parametrize("verb", [["serve"], ["run", "--prompt", "hi"]])
def test_a_model_without_a_tokenizer_is_refused_before_it_is_compiled(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ferrum import compile_process

    def compile_apart(options: dict[str, str], on_stage: object) -> Path:
        raise AssertionError("compiled")

    monkeypatch.setenv("FERRUM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(compile_process, "compile_apart", compile_apart)
    folder = write_checkpoint(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    line = refused(capsys, *verb, str(folder))
    assert "no tokenizer.json" in line and str(folder) in line
    (folder / "config.json").unlink()
    assert "config.json" in refused(capsys, *verb, str(folder))


def test_a_remembered_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's pack is found again; other options, another checkpoint or another compiler mean another pack."""
    from ferrum import compile_process, store

    monkeypatch.setenv("FERRUM_HOME", str(tmp_path / "home"))
    compiled: list[Path] = []

    def compile_apart(options: dict[str, str], on_stage: object) -> Path:
        path = Path(options["output"])
        path.write_bytes(b"pack")
        compiled.append(path)
        return path

    monkeypatch.setattr(compile_process, "compile_apart", compile_apart)
    folder = write_checkpoint(tmp_path / "m")
    first = store.resolve_pack(str(folder))
    assert first == store.resolve_pack(str(folder)) and len(compiled) == 1
    assert first.parent == env.packs_dir() and first.name.startswith("m.")
    assert store.resolve_pack(str(folder), store.PackRequest(quant="int8")) != first
    assert store.resolve_pack(str(folder), store.PackRequest(max_model_len=64)) != first
    monkeypatch.setattr(store, "compiler_digest", lambda: "other")
    assert store.resolve_pack(str(folder)) != first
    os.utime(folder / "model.safetensors", (1, 1))
    assert len({*compiled, store.resolve_pack(str(folder))}) == 5
