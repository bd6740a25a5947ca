"""The version of ferrum: what is shown, and what a pack says it was made by."""

from __future__ import annotations

__version__ = "0.1.0"
