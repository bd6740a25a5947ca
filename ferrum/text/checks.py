"""What every text must be before anything looks at it."""

from __future__ import annotations

from ferrum.errors import FerrumError

MAX_TEXT_CHARS = 64 * 1024 * 1024


def check_text(text: str, where: str = "prompt") -> None:
    """Raises FerrumError for text that UTF-8 cannot express or that is too long to be a prompt."""
    if len(text) > MAX_TEXT_CHARS:
        raise FerrumError("text-too-long", f"a text may have {MAX_TEXT_CHARS} characters", where, "shorten it")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            what = f"character {error.start} is half of a surrogate pair"
            raise FerrumError("invalid-text", what, where, "send valid Unicode") from None
