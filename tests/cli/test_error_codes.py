"""Every error code in the sources has a paragraph, and no paragraph is left over."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from ferrum.cli.error_codes import ERROR_CODES

ROOT = Path(__file__).parents[2]
FOLDERS = ("ferrum", "graphs", "codegen")
CODE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def sources() -> list[Path]:
    found = [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))]
    links = [ROOT / "ferrum" / name for name in ("graphs", "codegen", "templates")]
    return [p for p in found if not any(p.is_relative_to(link) for link in links) and p.name != "error_codes.py"]


def used_codes() -> dict[str, str]:
    """Error code → a file that uses it: first arguments of FerrumError, whether written there or chosen by a condition."""
    found: dict[str, str] = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
                "FerrumError",
                "__init__",
            ):
                first = node.args[0] if node.args else next((k.value for k in node.keywords if k.arg == "code"), None)
                texts = [c.value for c in ast.walk(first) if isinstance(c, ast.Constant)] if first is not None else []
                found.update((text, str(path)) for text in texts if isinstance(text, str) and CODE.fullmatch(text))
    return found


def test_every_code_is_explained() -> None:
    used = used_codes()
    assert len(used) > 20
    missing = {code: path for code, path in used.items() if code not in ERROR_CODES}
    assert not missing


def test_explanations_are_for_codes_that_exist() -> None:
    everything = "\n".join(path.read_text(encoding="utf-8") for path in sources())
    assert [code for code in ERROR_CODES if f'"{code}"' not in everything] == []
    for code, text in ERROR_CODES.items():
        assert CODE.fullmatch(code) and len(text) > 40 and text.endswith("."), code
