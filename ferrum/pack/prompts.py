"""What goes before the texts of a model that embeds, by the kind of text: the member ``prompts.json``."""

from __future__ import annotations

import msgspec

from ferrum.errors import FerrumError
from ferrum.pack.check import damaged
from ferrum.pack.reader import Pack

PROMPTS_NAME = "prompts.json"
_MAX_CHARS = 1 << 16


class Prompts(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """``prompts`` by name; ``default`` is the name of the one before texts of no kind, empty for none."""

    prompts: dict[str, str] = {}
    default: str = ""

    def before(self, text: str, name: str | None) -> str:
        """``text`` as the model reads it: behind the prompt ``name``, or behind the default one. Raises FerrumError for another
        name."""
        wanted = self.default if name is None else name
        if wanted and wanted not in self.prompts:
            known = ", ".join(self.prompts)
            what = f"the model has no prompt {wanted[:80]!r}, " + (f"only {known}" if known else "and no other")
            raise FerrumError("invalid-parameter", what, "prompt_name", "leave it out, or name one of the model's")
        return self.prompts.get(wanted, "") + text


def encode_prompts(prompts: Prompts) -> bytes:
    return msgspec.json.encode(prompts, order="sorted")


def read_prompts(pack: Pack) -> Prompts:
    """The prompts of a pack, or none. Raises FerrumError for a member that is not what it should be."""
    if PROMPTS_NAME not in pack:
        return Prompts()
    where = f"{pack.path}: {PROMPTS_NAME}"
    try:
        found = msgspec.json.decode(pack.member(PROMPTS_NAME), type=Prompts)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise damaged(f"not prompts: {error}", where) from None
    if found.default and found.default not in found.prompts:
        raise damaged("the default is none of the prompts", f"{where}: default")
    if any(len(text) > _MAX_CHARS for text in found.prompts.values()):
        raise damaged(f"a prompt of more than {_MAX_CHARS} characters", f"{where}: prompts")
    return found
