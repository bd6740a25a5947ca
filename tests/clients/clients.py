"""The clients that are tried unmodified, what each is installed from, and the digest of how they are tried."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
PROGRAMS = FOLDER / "programs"
ADDRESS = "http://127.0.0.1:8000"
CHECKS = ("chat", "stream", "tools", "structured")


@dataclass(frozen=True)
class Client:
    """``packages``: what pip or npm installs, the first of which has the version that is told. ``program``: in ``PROGRAMS``."""

    name: str
    packages: tuple[str, ...]
    program: str

    @property
    def is_npm(self) -> bool:
        return self.program.endswith(".mjs")

    @property
    def environment(self) -> str:
        """Its folder under build/clients; everything of npm shares one."""
        return "npm" if self.is_npm else self.name.split()[0] + ("-old" if "==" in self.packages[0] else "")

    def setup(self) -> str:
        """The lines of its program that set it up, as they are run."""
        _, _, rest = (PROGRAMS / self.program).read_text(encoding="utf-8").partition(" setup\n")
        lines = re.split(r"\n(?:#|//) end\n", rest)[0].strip()
        for server in ("TINY", "SCRIPTED"):
            lines = re.sub(rf"\$?\{{{server}\}}", ADDRESS, lines).replace(f"= {server}", f'= "{ADDRESS}"')
        return lines.replace(f'f"{ADDRESS}', f'"{ADDRESS}')


CLIENTS = (
    Client("openai", ("openai",), "openai_py.py"),
    Client("openai 2.8", ("openai==2.8.0",), "openai_py.py"),
    Client("openai (npm)", ("openai",), "openai_js.mjs"),
    Client("ollama", ("ollama",), "ollama_py.py"),
    Client("litellm", ("litellm",), "litellm_py.py"),
    Client("langchain-openai", ("langchain-openai",), "langchain_py.py"),
    Client("instructor", ("instructor",), "instructor_py.py"),
    Client("pydantic-ai", ("pydantic-ai-slim[openai]",), "pydantic_ai_py.py"),
    Client("Vercel AI SDK", ("ai", "@ai-sdk/openai", "zod"), "ai_sdk_js.mjs"),
    Client("llm", ("llm",), "llm_py.py"),
    Client("aider", ("aider-chat",), "aider_py.py"),
)


def stamp() -> str:
    """Digest of everything that decides how the clients are tried; the table carries it."""
    digest = hashlib.sha256()
    for path in sorted(p for p in FOLDER.rglob("*") if p.suffix in (".py", ".mjs") and "__pycache__" not in p.parts):
        digest.update(f"\0{path.relative_to(FOLDER).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
