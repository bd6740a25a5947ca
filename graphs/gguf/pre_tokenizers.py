"""How text is cut into words before byte pairs are merged, by what ``tokenizer.ggml.pre`` says.

The patterns are those of the models' own ``tokenizer.json``. Source of the names: llama.cpp's ``llama-vocab.cpp``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PreTokenizer:
    """``patterns`` cut one after the other, matches and what lies between them standing alone. ``whole``: a word that is a token
    is that one, whatever merges would make of it. ``bos``: a sequence begins with one where the file does not say."""

    patterns: tuple[str, ...]
    whole: bool = False
    bos: bool = False

    def as_json(self) -> dict[str, Any]:
        cuts = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in self.patterns]
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        return {"type": "Sequence", "pretokenizers": [*cuts, level]}


_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)

GPT2 = PreTokenizer((r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",))
DIGITS = PreTokenizer((r"\p{N}", *GPT2.patterns))
LLAMA3 = PreTokenizer((rf"{_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_LINES}",))
QWEN2 = PreTokenizer((rf"{_SHORT}|{_WORD}|\p{{N}}|{_LINES}",))
QWEN35 = PreTokenizer(
    (rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",)
)
TEKKEN = PreTokenizer((rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_SLASHED}",), whole=True, bos=True)
GPT4O = PreTokenizer((rf"{_CASED[0]}{_SHORT}?|{_CASED[1]}{_SHORT}?|\p{{N}}{{1,3}}|{_SLASHED}",))
FALCON = PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", *GPT2.patterns, "[0-9][0-9][0-9]"))
CODER = PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"))
SEED = PreTokenizer((rf"{_SHORT}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",))
MINICPM5 = PreTokenizer((r"\p{N}{1,3}", rf"{_SHORT}|{_WORD}|\p{{N}}+|{_LINES}"), whole=True)
DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", *GPT2.patterns, r"\p{N}+", "[0-9][0-9][0-9]"))

_META = PreTokenizer(LLAMA3.patterns, whole=True, bos=True)
_GLM4 = PreTokenizer(LLAMA3.patterns, whole=True)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "": DEFAULT,
    "default": DEFAULT,
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), _META),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), LLAMA3),
    **dict.fromkeys(("glm4", "glm5"), _GLM4),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "grok-2", "solar-open"), QWEN2),
    "qwen35": QWEN35,
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat"), GPT2),
    "mellum": GPT2,
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"), DIGITS),
    "falcon": FALCON,
    "deepseek-coder": CODER,
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), PreTokenizer(_DEEPSEEK)),
    "tekken": TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), GPT4O),
    "seed-coder": SEED,
    "minicpm5": MINICPM5,
}
