"""The runtime runs without the compiler: importing the server loads neither torch nor onnx nor the compiler."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = ("torch", "onnx", "transformers", "safetensors", "ferrum.graphs", "ferrum.codegen", "ferrum.devices.emulate")
MODULES = ["ferrum.server.app", "ferrum.engine_process.main", "ferrum.llm", "ferrum.pack.reader", "ferrum.cli.main", "ferrum.hub"]


def loaded_by(code: str, tmp_path: Path) -> set[str]:
    """Names of the modules that a fresh Python has loaded after running ``code`` outside the repository."""
    program = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", MODULES)
def test_the_runtime_does_not_load_the_compiler(module: str, tmp_path: Path) -> None:
    loaded = loaded_by(f"import {module}", tmp_path)
    assert module in loaded
    assert not loaded.intersection(FORBIDDEN)


def test_the_verbs_load_nothing_heavy(tmp_path: Path) -> None:
    """``ferrum --help`` builds every parser and must stay quick."""
    loaded = loaded_by("from ferrum.cli.main import build_parser; build_parser()", tmp_path)
    assert not loaded.intersection((*FORBIDDEN, "numpy", "sanic", "huggingface_hub", "rich.progress"))


def test_stages_are_told_without_the_compilers_packages(tmp_path: Path) -> None:
    """``ferrum explain STAGE`` works where only the runtime is installed."""
    loaded = loaded_by("from ferrum.cli.explain import stage_texts; assert stage_texts()", tmp_path)
    assert not loaded.intersection(("torch", "onnx", "transformers", "safetensors", "ml_dtypes"))


def test_the_server_loads_no_arrays(tmp_path: Path) -> None:
    """What only the engine's process needs stays there; both start at the same time, on cores that they share."""
    loaded = loaded_by("import ferrum.server.lifecycle", tmp_path)
    assert "sanic" in loaded
    assert not loaded.intersection(("numpy", "ferrum.devices.base", "ferrum.engine.engine", "huggingface_hub", "rich", "tomllib"))


def test_the_engine_is_started_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    """All that ``serve`` has imported when it spawns the engine's process."""
    loaded = loaded_by("import ferrum.cli.main, ferrum.cli.serve, ferrum.hub, ferrum.store, ferrum.server.start", tmp_path)
    assert "ferrum.engine_process.spawn" in loaded
    heavy = ("asyncio", "jinja2", "msgspec", "numpy", "sanic", "tokenizers", "tomllib", "huggingface_hub", "rich")
    assert not loaded.intersection((*FORBIDDEN, *heavy))


def test_bare_names_do_not_resolve(tmp_path: Path) -> None:
    """The top-level folders are not top-level packages, whatever is installed."""
    program = "import graphs"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode != 0 and "No module named 'graphs'" in done.stderr


def test_environment_is_read_in_one_file() -> None:
    pattern = re.compile(r"""environ[^\n]*FERRUM_|getenv\([^\n]*FERRUM_""")
    readers = [p for p in (ROOT / "ferrum").rglob("*.py") if p.name != "env.py" and pattern.search(p.read_text(encoding="utf-8"))]
    readers += [p for d in ("graphs", "codegen") for p in (ROOT / d).rglob("*.py") if "FERRUM_" in _environment_reads(p)]
    assert readers == []


def _environment_reads(path: Path) -> str:
    return "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if "environ" in line or "getenv" in line)


def test_at_most_ten_variables() -> None:
    from ferrum.env import VARIABLES

    assert len(VARIABLES) <= 10 and all(v.name.startswith("FERRUM_") and v.flag.startswith("-") for v in VARIABLES)


def test_no_pickle() -> None:
    """Neither the module nor the torch functions that use it."""
    pattern = re.compile(r"^\s*(import|from) (pickle|shelve|marshal|dill|cloudpickle)\b|torch\.(save|load)\(", re.MULTILINE)
    folders = ("ferrum", "graphs", "codegen")
    bad = [str(p) for d in folders for p in (ROOT / d).rglob("*.py") if pattern.search(p.read_text(encoding="utf-8"))]
    assert bad == []


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """By module what it imports when it runs, imports inside functions too."""
    graph = grimp.build_graph("ferrum", exclude_type_checking_imports=True, cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_no_module_imports_itself_by_a_way_round(imports: dict[str, set[str]]) -> None:
    left = {module: set(found) for module, found in imports.items()}
    while free := [module for module, found in left.items() if not found]:
        for module in free:
            del left[module]
        for found in left.values():
            found.difference_update(free)
    # what offers LLM and compile loads them when asked for
    around = {module for module in left if module != "ferrum" and left[module] != {"ferrum"}}
    assert not around, f"among these is a cycle: {sorted(around)}"


@pytest.mark.parametrize("word", ["Blocks", "Checkpoint", "Expr", "Source", "Stage", "Step", "Family", "Launch", "Layout"])
def test_a_word_of_the_glossary_is_one_class(word: str) -> None:
    """docs/architecture.md says what each means; a second class of the name would be a second meaning."""
    definition = re.compile(rf"^(?:class {word}\b|{word}(?:: TypeAlias)? = )", re.M)
    files = [p for d in ("ferrum", "graphs", "codegen") for p in (ROOT / d).rglob("*.py")]
    found = [str(p.relative_to(ROOT)) for p in files if definition.search(p.read_text(encoding="utf-8"))]
    assert len(found) <= 1, found


@pytest.mark.parametrize(
    ("room", "users"),
    [("ferrum.devices.emulate", ["ferrum.codegen"]), ("ferrum.graphs.tiny", []), ("ferrum.graphs.tiny.training", [])],
)
def test_rooms_that_only_some_may_enter(imports: dict[str, set[str]], room: str, users: list[str]) -> None:
    """The emulator is for the proof, and found by its name as any device; nothing needs how the built-in model was made."""
    allowed = tuple(f"{name}." for name in (room, *users))
    inside = {m for m in imports if f"{m}.".startswith(f"{room}.")}
    users_found = {m for m, others in imports.items() if inside & others and not f"{m}.".startswith(allowed)}
    assert inside and users_found == set()


def test_the_drawing_of_the_rooms_is_the_imports(imports: dict[str, set[str]]) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = {m[1]: set(m[2].split()) for m in re.finditer(r"^([a-z_]+) *→ *([a-z_ ]*)$", page, re.M)}
    small = {"", "env", "errors", "version", "__main__"}  # what every room may use, and the way in
    found: dict[str, set[str]] = {room_of(module): set() for module in imports}
    for module, others in imports.items():
        found[room_of(module)] |= {room_of(other) for other in others} - {room_of(module)} - small
    assert drawn == {room: others for room, others in found.items() if room not in small}


def test_no_file_is_over_450_lines_and_no_function_over_60() -> None:
    command = ["git", "ls-files", "ferrum", "codegen", "graphs", "templates", "tests"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    sources = [ROOT / name for name in listed if Path(name).suffix in (".py", ".c", ".h", ".j2")]
    assert len(sources) > 500
    for path in sources:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 450, path
        for node in ast.walk(ast.parse(text)) if path.suffix == ".py" else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"
