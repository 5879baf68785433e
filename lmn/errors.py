"""The one exception that lmn raises for what a caller can mend."""

from __future__ import annotations

import operator
from typing import Any

import torch

_MOST_THREADS = 1024


class LmnError(ValueError):
    """Input that can't be measured: the message says what was wrong, what was got and what to do.

    Attributes
    ----------
    short : str
        What was wrong, in a few words: for a note on what was not measured.
    """

    def __init__(self, message: str, short: str = "") -> None:
        super().__init__(message)
        self.short = short or message


def whole_number(value: Any, name: str, least: int, most: int = 2**31 - 1) -> int:
    """A parameter that is a whole number (of any integer type, but no bool) within bounds; or an LmnError."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise LmnError(f"{name} is a whole number, at least {least}; got {value!r}.") from None
    if number < least:
        raise LmnError(f"{name} must be at least {least}; got {number}.")
    if number > most:
        raise LmnError(f"{name} must be at most {most}; got {number}.")
    return number


def thread_count(threads: int | None) -> int:
    """How many CPU threads a caller asks for: as many as torch uses, if not told."""
    return torch.get_num_threads() if threads is None else whole_number(threads, "threads", 1, _MOST_THREADS)


def in_short(error: Exception) -> str:
    """Another library's error, in one line of an LmnError."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
