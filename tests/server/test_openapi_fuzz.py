"""Schemathesis over /openapi.json: every route is asked what its document allows and what it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.harness import echoes, running

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
EXAMPLES = os.environ.get("EXAMPLES", "6")  # of each route


@pytest.mark.slow
def test_no_answer_is_a_fault_or_undocumented(tmp_path: Path) -> None:
    """Two phases: examples of each field, and hundreds of random requests. The engine echoes, so that answers are real ones."""
    with running(echoes(), batch_dir=tmp_path) as server:
        program = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.url}/openapi.json"]
        flags = ["--checks", CHECKS, "--max-examples", EXAMPLES, "--seed", "1", "--phases", "coverage,fuzzing", "--no-color"]
        done = subprocess.run([*program, *flags], capture_output=True, text=True, timeout=60 + 40 * int(EXAMPLES), cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert server.request("GET", "/health")[1]["status"] == "healthy"
