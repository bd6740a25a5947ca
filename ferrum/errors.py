"""The one error type that users see, and the exit codes of the command line."""

from __future__ import annotations

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class FerrumError(Exception):
    """A mistake or a limit that the user can act on.

    ``code`` is a stable kebab-case identifier (``ferrum explain CODE`` describes it), ``what`` says what is wrong,
    ``where`` names the file, field, module or option, ``next_step`` says what to do. All are single lines without
    control characters, so that one error is always one line.
    """

    def __init__(self, code: str, what: str, where: str = "", next_step: str = "") -> None:
        self.code = code
        self.what = one_line(what)
        self.where = one_line(where)
        self.next_step = one_line(next_step)
        super().__init__(str(self))

    def __str__(self) -> str:
        return " · ".join(part for part in (self.what, self.where, self.next_step) if part)

    def __reduce__(self) -> tuple[type[FerrumError], tuple[str, str, str, str]]:
        return FerrumError, (self.code, self.what, self.where, self.next_step)


def one_line(text: str, limit: int = 400) -> str:
    """``text`` without control characters (a name from a file must not move the cursor), cut at ``limit`` characters."""
    start = str(text)[: 4 * limit]  # a name from a request may have megabytes
    clean = "".join(c if c.isprintable() else " " for c in start).strip()
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"
