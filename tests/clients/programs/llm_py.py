from report import TINY, check

import os
import pathlib
import subprocess
import sys
import tempfile

folder = tempfile.mkdtemp()
# setup
MODELS = f"""
- model_id: ferrum
  model_name: tiny
  api_base: {TINY}/v1
"""
pathlib.Path(folder, "extra-openai-models.yaml").write_text(MODELS)
# end
PROGRAM = [str(pathlib.Path(sys.executable).with_name("llm")), "-m", "ferrum", "-o", "max_tokens", "16"]
ENVIRONMENT = {**os.environ, "LLM_USER_PATH": folder, "OPENAI_API_KEY": "none"}


def run(*more):
    return subprocess.run([*PROGRAM, *more], capture_output=True, text=True, env=ENVIRONMENT, stdin=subprocess.DEVNULL)


@check("chat")
def _():
    done = run("--no-stream", "Say something.")
    return done.returncode == 0 or (_ for _ in ()).throw(RuntimeError(done.stderr))


@check("stream")
def _():
    done = run("Say something.")
    return done.returncode == 0 or (_ for _ in ()).throw(RuntimeError(done.stderr))
