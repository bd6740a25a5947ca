from report import SCRIPTED, check

import os
import pathlib
import subprocess
import sys
import tempfile

folder = tempfile.mkdtemp()
program = str(pathlib.Path(sys.executable).with_name("aider"))
# setup
os.environ["OPENAI_API_BASE"] = f"{SCRIPTED}/v1"
os.environ["OPENAI_API_KEY"] = "none"
flags = ["--model", "openai/tiny", "--no-show-model-warnings"]
# end
QUIET = ["--yes-always", "--no-git", "--no-check-update", "--no-analytics", "--no-pretty", "--map-tokens", "0", "--exit"]


@check("chat")
def _():
    command = [program, *flags, *QUIET[:-1], "--message", "Say something."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, stdin=subprocess.DEVNULL, timeout=180)
    return "said by the script" in done.stdout or (_ for _ in ()).throw(RuntimeError(done.stdout[-300:] + done.stderr[-300:]))
