"""Numbers in sentences, and warnings of where they come from."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

_NOT_THE_USERS = tuple(str(Path(module.__file__).parent) for module in (sys.modules["lmn"], torch) if module.__file__)


def warn(message: str) -> None:
    """Warn, and show the line of the user's that led here, not one of ours."""
    depth, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, stacklevel=depth)


def counted(n: int, what: str, form: str = "") -> str:
    """So many of something, the number in a format of ``format``."""
    return f"{n:{form}} {what}{'' if n == 1 else 's'}"
