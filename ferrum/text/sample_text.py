"""The texts on which packs are measured: prose, code, a dialogue and a table of numbers, each a sequence of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from ferrum.errors import FerrumError
from ferrum.text.tokenizer import Tokenizer

TEXTS = (
    "The ferry left before sunrise, when the harbour was still grey and the gulls sat in rows along the wall. Marta had bought "
    "her ticket the evening before, because in autumn the office opened late and the captain waited for nobody. She stood at "
    "the stern with a cup of tea and watched the lights of the town grow small. On the island her brother would be mending nets "
    "by now; he never slept past five. Between them lay eleven miles of water, a letter that neither had answered, and the "
    "house that their parents had left to both of them.\n",
    "from collections import Counter\n\n\ndef most_common_words(path, count=10):\n    \"\"\"The words of a file that occur most "
    "often, with their numbers.\"\"\"\n    words = Counter()\n    with open(path, encoding=\"utf-8\") as file:\n        for line "
    "in file:\n            for word in line.lower().split():\n                words[word.strip(\".,;:!?\")] += 1\n    return "
    "words.most_common(count)\n\n\nif __name__ == \"__main__\":\n    for word, number in most_common_words(\"notes.txt\"):\n"
    "        print(f\"{number:6d}  {word}\")\n",
    "User: My bread does not rise in winter. What can I do?\nAssistant: Yeast works slowly when it is cold. Let the dough stand "
    "in a warm place, for example in the oven with only the lamp on, and give it twice the time.\nUser: How do I know that it "
    "has risen enough?\nAssistant: Press it with a finger. If the dent fills slowly and not completely, it is ready. If it "
    "springs back at once, wait another half hour.\nUser: And if it has stood for too long?\nAssistant: Then knead it again for "
    "a minute, shape it, and let it rise a second time.\n",
    "Month, rain in mm, days of frost, warmest day in degrees\nJanuary, 61, 14, 9.5\nFebruary, 48, 12, 11.0\nMarch, 55, 7, "
    "17.5\nApril, 43, 2, 22.0\nMay, 67, 0, 27.5\nJune, 72, 0, 31.0\nThe first half of the year had 61 + 48 + 55 + 43 + 67 + 72 "
    "= 346 mm of rain, which is 346 / 6 = 57.7 mm a month. There were 14 + 12 + 7 + 2 = 35 days of frost. In 2019 it had been "
    "298 mm and 41 days, so this year was 48 mm wetter and 6 days milder.\n",
)  # fmt: skip


def sample_tokens(tokenizer: Tokenizer, vocab_size: int, most: int) -> list[list[int]]:
    """Of each text at most ``most`` tokens that are read, each to predict the one behind it, and the last of these.

    A text that the vocabulary cannot spell is left out.
    """
    return tokens_of(TEXTS, tokenizer, vocab_size, 1 + most)


def tokens_of(texts: Sequence[str], tokenizer: Tokenizer, vocab_size: int, most: int) -> list[list[int]]:
    """Of each text at most ``most`` tokens, at least two; a text that the vocabulary cannot spell is left out."""
    found = []
    for text in texts:
        with contextlib.suppress(FerrumError):
            ids = [token for token in tokenizer.encode(text) if token < vocab_size]
            found.append(ids[:most])
    return [ids for ids in found if len(ids) > 1]


def pieces_of(tokenizer: Tokenizer, text: str, vocab_size: int, most: int) -> list[list[int]]:
    """Any text in pieces of at most ``most`` tokens and one to predict; each begins with what the one before it ended with.

    Raises FerrumError where the vocabulary cannot spell it.
    """
    ids = [token for token in tokenizer.encode(text) if token < vocab_size]
    pieces = [ids[at : at + most + 1] for at in range(0, len(ids), most)]
    return [piece for piece in pieces if len(piece) > 1]
