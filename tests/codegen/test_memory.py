"""What a compile of a large checkpoint keeps in memory, proof included: windows of the files, never all of one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ferrum.graphs.models.random_weights import SHAPES, write_model
from ferrum.graphs.tiny.chat import MODEL_FOLDER
from ferrum.pack.pages import WINDOW
from ferrum.pack.quality import read_quality
from ferrum.pack.reader import open_pack

MIB = 1 << 20


def peaks(command: list[str]) -> dict[str, int]:
    """Bytes at the highest moments of a process: anonymous memory, pages of files. Seen from outside, every few milliseconds."""
    highest = {"RssAnon": 0, "RssFile": 0}
    process = subprocess.Popen(command)
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            lines = status.read_text().splitlines()
        except OSError:  # it has just ended
            continue
        for line in lines:
            name, _, value = line.partition(":")
            if name in highest:
                highest[name] = max(highest[name], int(value.split()[0]) * 1024)
        time.sleep(0.003)
    assert process.returncode == 0
    return highest


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_compile_keeps_windows_of_its_files(tmp_path: Path) -> None:
    config = SHAPES["qwen3-0.6b"] | {"vocab_size": 40000, "num_hidden_layers": 12}
    folder = write_model(tmp_path / "model", config)
    shutil.copy(MODEL_FOLDER / "tokenizer.json", folder)  # so that the pack has a quality card
    checkpoint = (folder / "model.safetensors").stat().st_size
    assert checkpoint > 400 * MIB
    base = [sys.executable, "-m", "ferrum", "compile", str(folder), "--dump-dir", str(tmp_path / "dumps")]
    subprocess.run([*base, "--stop-after", "fuse_paged"], check=True)
    # torch traces the model before; its own libraries are no pages of the model
    found = peaks([*base, "--start-from", "layout", "--quant", "int8", "-o", str(tmp_path / "x.fpk")])
    with open_pack(tmp_path / "x.fpk", trust=True) as pack:
        assert read_quality(pack) is not None
    assert found["RssFile"] <= 3 * WINDOW + 64 * MIB  # numpy's and Python's own files
    assert found["RssAnon"] <= 512 * MIB
