"""Numbers in sentences."""

from __future__ import annotations


def counted(n: int, what: str, form: str = "") -> str:
    """So many of something, the number in a format of ``format``."""
    return f"{n:{form}} {what}{'' if n == 1 else 's'}"
