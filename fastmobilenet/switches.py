"""Environment variables that turn a way to compute layers on or off."""

from __future__ import annotations

import os


def switch(name: str) -> bool | None:
    """What the variable says, 0 or 1; None where it is empty or missing. Raises ValueError for any other value."""
    text = os.environ.get(name, "").strip()
    if text not in ("", "0", "1"):
        raise ValueError(f"{name} must be 0 or 1, not {text!r}")
    return text == "1" if text else None
