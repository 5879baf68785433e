"""What torch.compile made of modules and functions is run as it is written, in the thread that measures."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.fx import _symbolic_trace
from torch.utils._python_dispatch import TorchDispatchMode


class _Mark(threading.local):
    """In place of torch.fx's mark of a trace, a bool of the whole process: true in those threads that measure."""

    depth = 0

    def __bool__(self) -> bool:
        return self.depth > 0


class _Refusal:
    """torch.compile's setting to refuse compiled functions in a trace; of the process, or of each thread in newer releases."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0  # that are within
        self._is_shared = self._before = False

    def lift(self) -> None:
        with self._lock:
            if (config := _config()) is not None:
                if self._threads == 0:
                    self._is_shared, self._before = False, config.error_on_nested_fx_trace
                self._is_shared = self._is_shared or (self._threads > 0 and not config.error_on_nested_fx_trace)
                config.error_on_nested_fx_trace = False
            self._threads += 1

    def put_back(self) -> None:
        with self._lock:
            self._threads -= 1
            if (config := _config()) is not None and not (self._threads and self._is_shared):
                config.error_on_nested_fx_trace = self._before


def _config() -> Any:
    """torch.compile's settings; None where nothing was compiled: importing it takes seconds."""
    return sys.modules.get("torch._dynamo.config")


_MARK, _REFUSAL = _Mark(), _Refusal()


@contextmanager
def as_written() -> Iterator[None]:
    """Within, in this thread, what is compiled is run and traced as it was written; in others as it is compiled.

    Measuring would compile it again for each dtype and batch, and torch.compile, having done so too often, runs it as written
    ever after. That it does so by itself in a trace of torch.fx, where it is told not to refuse, is made use of.
    """
    outermost = _MARK.depth == 0
    if outermost:
        _REFUSAL.lift()
        if _symbolic_trace._is_fx_tracing_flag is False:  # else it is there, or another thread traces
            mark_of_this_thread()
    _MARK.depth += 1
    try:
        yield
    finally:
        _MARK.depth -= 1
        if outermost:
            _REFUSAL.put_back()


class Watch(TorchDispatchMode):
    """Sees operations, and is no reason to torch.compile not to compile what other threads run meanwhile."""

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True


def mark_of_this_thread() -> None:
    """Called when torch.fx has begun a trace and set its mark for all threads; what that was before comes back after it.

    The mark stays: it is false in threads that don't measure.
    """
    setattr(_symbolic_trace, "_is_fx_tracing_flag", _MARK)  # noqa: B010 - a bool, to mypy
