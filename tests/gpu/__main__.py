"""The tests of a GPU with a Python that may lack pytest: ``python3 -m tests.gpu --prepared DIR``."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.gpu import carried


def main(arguments: list[str]) -> int:
    if "--prepared" not in arguments[:-1]:
        raise SystemExit("error: which folder was prepared? python3 -m tests.gpu --prepared DIR")
    folder = Path(arguments[arguments.index("--prepared") + 1])
    prepared = carried.read(folder)
    if missing := carried.add_wheels(folder, carried.PACKAGES):
        raise SystemExit(carried.explain(missing, prepared, folder))
    import pytest

    return int(pytest.main(["-q", "-m", "gpu", "tests/gpu", *arguments]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
