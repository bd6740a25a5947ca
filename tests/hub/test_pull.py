"""``ferrum pull`` against a local stand-in for the hub: plain, cut, killed, corrupted, incomplete, refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import CommandLine
from tests.hub.stand_in import COMMIT, Hub, etag, serve

WEIGHTS = random.Random(7).randbytes(3_000_000)
CONFIG = json.dumps({"architectures": ["Qwen3ForCausalLM"]}).encode()


def repository(**changes: bytes) -> dict[str, bytes]:
    files = {
        "config.json": CONFIG,
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
        "1_Pooling/config.json": b'{"pooling_mode": "mean"}',
        "2_Dense/config.json": b"{}",
        "model.safetensors": WEIGHTS,
        "pytorch_model.bin": b"pickle",
        "README.md": b"text",
        "onnx/model.onnx": b"other",
    }
    return {**files, **changes}


def sharded(shards: int = 2) -> dict[str, bytes]:
    files = repository()
    del files["model.safetensors"]
    names = [f"model-{i:05}-of-{shards:05}.safetensors" for i in range(1, shards + 1)]
    for i, name in enumerate(names):
        files[name] = random.Random(i).randbytes(100_000)
    files["model.safetensors.index.json"] = json.dumps({"weight_map": {f"w{i}": n for i, n in enumerate(names)}}).encode()
    return files


def settings(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}


def snapshot(tmp_path: Path, commit: str = COMMIT) -> Path:
    return tmp_path / "hf" / "hub" / "models--org--name" / "snapshots" / commit


def leftovers(tmp_path: Path) -> list[str]:
    return [p.name for p in (tmp_path / "hf").rglob("*.incomplete")]


def test_plain_pull_takes_safe_files_only(ferrum: CommandLine, tmp_path: Path) -> None:
    with serve(Hub(repository())) as hub:
        done = ferrum("pull", "org/name", "--json", **settings(hub, tmp_path))
        assert done.returncode == 0, done.stderr
        asked = len(hub.requests)
        again = ferrum("pull", "org/name", **settings(hub, tmp_path))
        assert again.returncode == 0, again.stderr
        assert len(hub.requests) == asked + 1, "a second pull asks only for the list of files"
    answer = json.loads(done.stdout)
    folder = snapshot(tmp_path)
    assert answer["path"] == str(folder) and answer["revision"] == COMMIT
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == [
        "1_Pooling/config.json",
        "additional_chat_templates/tool_use.jinja",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert leftovers(tmp_path) == []


def test_pull_is_readable_by_huggingface_hub(ferrum: CommandLine, tmp_path: Path) -> None:
    """The cache keeps the layout that other programs expect."""
    with serve(Hub(repository())) as hub:
        assert ferrum("pull", "org/name", **settings(hub, tmp_path)).returncode == 0
    code = "import huggingface_hub as h; print(h.hf_hub_download('org/name', 'model.safetensors', local_files_only=True))"
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert Path(found.stdout.strip()).read_bytes() == WEIGHTS


def test_resume_after_a_cut_connection(ferrum: CommandLine, tmp_path: Path) -> None:
    with serve(Hub(repository(), cut={"model.safetensors": 1_000_000})) as hub:
        done = ferrum("pull", "org/name", **settings(hub, tmp_path))
        assert done.returncode == 0, done.stderr
        first, second = hub.ranges("model.safetensors")
    assert first == "" and second.startswith("bytes=") and int(second[6:-1]) > 0
    assert (snapshot(tmp_path) / "model.safetensors").read_bytes() == WEIGHTS


def test_resume_after_kill(ferrum: CommandLine, tmp_path: Path) -> None:
    """A killed pull leaves its bytes; the next one asks only for the rest."""
    with serve(Hub(repository(), stall={"model.safetensors": 2_000_000})) as hub:
        command = [sys.executable, "-m", "ferrum", "pull", "org/name"]
        process = subprocess.Popen(command, env={**os.environ, **settings(hub, tmp_path)}, stderr=subprocess.DEVNULL)
        assert hub.stalled.wait(60)
        blobs = snapshot(tmp_path).parent.parent / "blobs"
        part = blobs / (etag("model.safetensors", WEIGHTS) + ".incomplete")
        deadline = time.monotonic() + 30
        while (not part.exists() or part.stat().st_size == 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        have = part.stat().st_size
        assert 0 < have < len(WEIGHTS)
        assert not (snapshot(tmp_path) / "model.safetensors").exists()
        listed = ferrum("list", "--json", **settings(hub, tmp_path))
        assert [e["status"] for e in json.loads(listed.stdout)] == ["incomplete"]
        done = ferrum("pull", "org/name", **settings(hub, tmp_path))
        assert done.returncode == 0, done.stderr
        assert hub.ranges("model.safetensors")[-1] == f"bytes={have}-"
        listed = ferrum("list", "--json", **settings(hub, tmp_path))
        assert [(e["name"], e["status"]) for e in json.loads(listed.stdout)] == [("org/name", "ready")]
    assert (snapshot(tmp_path) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_hash_mismatch(ferrum: CommandLine, tmp_path: Path, name: str) -> None:
    with serve(Hub(repository(), corrupt={name})) as hub:
        done = ferrum("pull", "org/name", **settings(hub, tmp_path))
        assert_one_line(done, f"error: the bytes differ from the hub's hash · org/name {name}")
        assert not (snapshot(tmp_path) / name).exists() and leftovers(tmp_path) == []
        hub.corrupt.clear()
        assert ferrum("pull", "org/name", **settings(hub, tmp_path)).returncode == 0


def test_a_listed_file_that_is_not_there(ferrum: CommandLine, tmp_path: Path) -> None:
    with serve(Hub(repository(), absent={"model.safetensors"})) as hub:
        done = ferrum("pull", "org/name", **settings(hub, tmp_path))
    assert_one_line(done, "error: the hub lists a file that it does not have · org/name")


def test_a_shard_that_is_not_listed(ferrum: CommandLine, tmp_path: Path) -> None:
    files = sharded()
    del files["model-00002-of-00002.safetensors"]
    with serve(Hub(files)) as hub:
        done = ferrum("pull", "org/name", **settings(hub, tmp_path))
        assert_one_line(done, "error: the repository has no model-00002-of-00002.safetensors · org/name")
        listed = ferrum("list", **settings(hub, tmp_path))
    assert "incomplete" in listed.stdout


def test_sharded_pull(ferrum: CommandLine, tmp_path: Path) -> None:
    files = sharded(3)
    files["unrelated.safetensors"] = b"not in the index"
    with serve(Hub(files)) as hub:
        assert ferrum("pull", "org/name", **settings(hub, tmp_path)).returncode == 0
    assert len(list(snapshot(tmp_path).glob("model-*.safetensors"))) == 3
    assert not (snapshot(tmp_path) / "unrelated.safetensors").exists()


def test_an_index_that_leaves_the_folder(ferrum: CommandLine, tmp_path: Path) -> None:
    files = repository()
    files["model.safetensors.index.json"] = json.dumps({"weight_map": {"w": "../../outside.safetensors"}}).encode()
    with serve(Hub(files)) as hub:
        done = ferrum("pull", "org/name", **settings(hub, tmp_path))
    assert_one_line(done, "error: the index names ../../outside.safetensors")


def test_gated(ferrum: CommandLine, tmp_path: Path) -> None:
    with serve(Hub(repository(), gated=True)) as hub:
        done = ferrum("pull", "org/name", **settings(hub, tmp_path))
    assert_one_line(done, "error: access to this repository must be granted · org/name · accept its licence")


def test_unknown_model(ferrum: CommandLine, tmp_path: Path) -> None:
    with serve(Hub(repository())) as hub:
        done = ferrum("pull", "org/other", **settings(hub, tmp_path))
        assert_one_line(done, "error: the hub has no such model · org/other")
        done = ferrum("pull", "no such", **settings(hub, tmp_path))
        assert_one_line(done, "error: no such model · no such")


def test_revision(ferrum: CommandLine, tmp_path: Path) -> None:
    other = "2" * 40
    with serve(Hub(repository(), revisions={"main": COMMIT, "v2": other})) as hub:
        env = settings(hub, tmp_path)
        assert ferrum("pull", "org/name@v2", **env).returncode == 0
        assert (snapshot(tmp_path, other) / "config.json").is_file() and not snapshot(tmp_path).exists()
        assert ferrum("pull", "org/name", "--revision", COMMIT, **env).returncode == 0
        assert (snapshot(tmp_path) / "config.json").is_file()
        done = ferrum("pull", "org/name", "--revision", "v3", **env)
    assert_one_line(done, "error: no revision v3 · org/name")


def test_a_model_that_cannot_be_compiled_is_refused_before_its_weights(ferrum: CommandLine, tmp_path: Path) -> None:
    config = json.dumps({"architectures": ["NowhereForCausalLM"], "model_type": "nowhere"}).encode()
    with serve(Hub(repository(**{"config.json": config}))) as hub:
        done = ferrum("compile", "org/name", **settings(hub, tmp_path))
        assert hub.ranges("config.json") and not hub.ranges("model.safetensors")
    assert done.returncode == 1 and "NowhereForCausalLM" in done.stderr.splitlines()[-1]


def test_only_pickle_files(ferrum: CommandLine, tmp_path: Path) -> None:
    files = repository()
    del files["model.safetensors"]
    with serve(Hub(files)) as hub:
        done = ferrum("pull", "org/name", **settings(hub, tmp_path))
    assert_one_line(done, "error: only pickle files (.bin, .pt) are there, which can run code · org/name")


def test_no_hub(ferrum: CommandLine, tmp_path: Path) -> None:
    done = ferrum("pull", "org/name", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path / "hf"))
    assert_one_line(done, "error: the connection to the hub failed · org/name")


def assert_one_line(done: subprocess.CompletedProcess[str], start: str) -> None:
    assert done.returncode == 1, (done.stdout, done.stderr)
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1].startswith(start), done.stderr
    assert "Traceback" not in done.stderr
