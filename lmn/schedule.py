"""When to measure."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from lmn.errors import LmnError, whole_number

DEFAULT_EVERY = 200


@dataclass
class Schedule:
    """Every so many steps, or as often as a share of the time allows.

    Attributes
    ----------
    every : int or None
    share : float or None
        Of the time since the start that measuring may take.
    spent : float
        Seconds that it took.
    reached : int
        The last step that was measured, or -1.
    due : float
        The step, or with ``share`` the second by perf_counter, from which on to measure again: all that is looked at on most
        steps, as what a training has driven out of the caches costs tens of microseconds to look at.
    """

    every: int | None
    share: float | None
    spent: float = 0.0
    reached: int = -1
    due: float = -math.inf
    began: float = field(default_factory=lambda: time.perf_counter())
    ended: float | None = None

    @classmethod
    def of(cls, every: Any, overhead: Any) -> Schedule:
        if every is not None and overhead is not None:
            raise LmnError(f"give every= or overhead=, not both; got every={every!r} and overhead={overhead!r}.")
        if overhead is None:
            return cls(whole_number(DEFAULT_EVERY if every is None else every, "every, steps between measurements,", 1), None)
        number = isinstance(overhead, int | float) and not isinstance(overhead, bool)
        if not number or not 0 < overhead <= 1:
            raise LmnError(f"overhead is the share of the time that measuring may take, above 0 and up to 1; got {overhead!r}.")
        return cls(None, float(overhead))

    def begin(self, reached: int) -> None:
        """Time counts from now, and steps from the last that an earlier run has measured."""
        self.began = time.perf_counter()
        self.reach(reached)

    def reach(self, step: int) -> None:
        """Steps need not go by ones: the first one that reaches or passes a multiple of ``every`` is measured next."""
        self.reached = step
        if self.every is not None:
            self.due = (step // self.every + 1) * self.every

    def is_due(self, step: int, *, at_end: bool = False) -> bool:
        """Whether to measure this step, or the last one."""
        if self.every is None:
            return time.perf_counter() >= self.due
        return at_end or step >= self.due

    def took(self, seconds: float) -> None:
        """Of a measurement; the next is expected to take as long."""
        self.spent += seconds
        if self.share is not None:
            self.due = self.began + (self.spent + seconds) / self.share - seconds

    def stop(self) -> None:
        """Count no more time."""
        self.ended, self.due = self.ended or time.perf_counter(), -math.inf

    @property
    def elapsed(self) -> float:
        return (self.ended or time.perf_counter()) - self.began

    @property
    def share_so_far(self) -> float:
        elapsed = self.elapsed
        return self.spent / elapsed if elapsed > 0 else math.nan
