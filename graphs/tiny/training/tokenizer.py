"""Makes the tokenizer: byte-level BPE in which known words are one token and everything else is single letters and digits.

``ignore_merges`` (as in Llama 3) takes a whole pre-token from the vocabulary if it is there. With no other merges, letters of
unknown words and digits stay single, which is what makes copying, reversing and sums learnable for a small model.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from ferrum.graphs.tiny import data, facts
from ferrum.graphs.tiny.chat import MODEL_FOLDER

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<tools>",
    "</tools>",
)  # visible text, one token each
# Qwen's split: contractions, words with one leading non-letter, single digits, punctuation runs, line ends, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCAB_SIZE = 768
CONTEXT = 1024


def fixed_texts() -> Iterator[str]:
    """Every wording without its slots, and every listed word alone and after a space."""
    forms = itertools.chain(
        *data.TEXT_FORMS.values(),
        data.JSON_ASKS,
        data.JSON_PAIR_ASKS,
        facts.CAPITAL_FORMS,
        facts.COLOUR_FORMS,
        facts.OPPOSITE_FORMS,
        facts.COUNT_FORMS,
        (" " + subject for subject in facts.COUNTS),
        facts.TALK,
        facts.TALK.values(),
        data.SYSTEM_PROMPTS,
        data.TOOL_RESULTS,
        data.JSON_FORMS,
        *((said, reply, *asks) for said, reply, asks in data.RECALL_FORMS.values()),
        *(requests for _, requests in data.TOOLS.values()),
    )
    for form in forms:
        yield from form.replace("{", "\x00").replace("}", "\x00").split("\x00")[::2]
    words = itertools.chain(
        *(pair for table in (facts.CAPITALS, facts.COLOURS, facts.OPPOSITES) for pair in table.items()),
        facts.NAMES, facts.CITIES, facts.COLOUR_WORDS, facts.ROOMS, facts.DAYS, facts.PETS,
    )
    for word in words:
        yield word
        yield " " + word
    for name, (types, _) in data.TOOLS.items():
        yield name + "(" + ", ".join(f"{key}: {kind}" for key, kind in types.items()) + ")\n"
        for value in ("x", 1):
            yield json.dumps({"name": name, "arguments": dict.fromkeys(types, value)}) + "\n"
    yield '{"name": "x", "age": 1, "city": "x"} rain snow cloudy sunny\n\nsystem\nuser\nassistant\n'


def make_tokenizer() -> Tokenizer:
    """The same tokenizer every time: bytes first, then known words in order of their text, unused ids, then the markers."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {piece for text in fixed_texts() for piece, _ in split.pre_tokenize_str(text)}
    tokens = letters + sorted(word for word in words if len(word) > 1)
    room = VOCAB_SIZE - len(SPECIAL) - len(MARKERS)
    if len(tokens) > room:
        raise ValueError(f"{len(tokens)} tokens do not fit in {room}")
    tokens += [f"<|unused_{i}|>" for i in range(room - len(tokens))]
    tokenizer = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], ignore_merges=True, byte_fallback=False)
    )
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in MARKERS])
    return tokenizer


def main() -> None:
    """Writes tokenizer.json into the model's folder."""
    MODEL_FOLDER.mkdir(exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save(str(MODEL_FOLDER / "tokenizer.json"))
    used = sum(not t.startswith("<|unused") for t in tokenizer.get_vocab())
    print(f"{MODEL_FOLDER.name}/tokenizer.json: {used} tokens used of {tokenizer.get_vocab_size()}")


if __name__ == "__main__":
    main()
