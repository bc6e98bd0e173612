"""Text from model files, made fit for messages."""

from __future__ import annotations


def quote(value: object, limit: int = 80) -> str:
    """repr() of a value that came from a file, cut to ``limit`` characters: a file must not fill the screen."""
    text = repr(value[: limit + 1] if isinstance(value, (str, bytes, list)) else value)
    return text if len(text) <= limit else text[:limit] + "..."
