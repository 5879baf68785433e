"""What torch.compile made of modules and functions is run as it is written, in the thread that measures."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch.fx import _symbolic_trace
from torch.utils._python_dispatch import TorchDispatchMode

P = ParamSpec("P")
R = TypeVar("R")


class _Thread(threading.local):
    measures = traces = 0  # how deep it is in what does so

    def __bool__(self) -> bool:
        """In place of torch.fx's mark of a trace, which is the whole process's."""
        return self.traces > 0


_THREAD = _Thread()


class _Stance:
    """In place of torch.compile's, which is the whole process's: in threads that measure, to compile nothing."""

    def __init__(self, own: Any) -> None:
        self._own = own

    @property
    def stance(self) -> str:
        return "force_eager" if _THREAD.measures else str(self._own.stance)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


# What torch.compile has every call of a Python function in this thread go through; None where it has nothing do so.
_what_compiles: Callable[[], object] = torch._C._dynamo.eval_frame.get_eval_frame_callback


def _of_torch_compile(name: str) -> Any:
    """One of its modules; None where nobody compiles, and it is not imported, which takes seconds."""
    return sys.modules.get(f"torch._dynamo.{name}")


@contextmanager
def as_written() -> Iterator[None]:
    """Within, in this thread, what is compiled is run as it was written; in others as it is compiled.

    Measuring would compile it again for each dtype and batch, and torch.compile, having done so too often, runs it as written
    ever after.
    """
    eval_frame = _of_torch_compile("eval_frame")
    if eval_frame is not None and not isinstance(eval_frame._stance, _Stance):
        eval_frame._stance = _Stance(eval_frame._stance)  # and stays: in other threads it is the one before
    _THREAD.measures += 1
    try:
        yield
    finally:
        _THREAD.measures -= 1


def not_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """A function that may be called in what is compiled, a training's step say, and is not to be compiled with it.

    torch.compile's own wrapper costs 20 microseconds where a training has driven it out of the caches, ten times what a loop
    over nothing else shows: it is gone through only where something is compiled.
    """
    disabled: list[Callable[P, R]] = []

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if _what_compiles() is None:
            return function(*args, **kwargs)
        if not disabled and (decorators := _of_torch_compile("decorators")) is not None:
            disabled.append(decorators.disable(function))
        return (disabled[0] if disabled else function)(*args, **kwargs)

    run._torchdynamo_disable = True  # type: ignore[attr-defined]  # what it is called in is compiled up to here
    return run


@contextmanager
def traced_as_written() -> Iterator[None]:
    """Within, in this thread, which traces by torch.fx, what is compiled is traced as it was written, and not refused."""
    config = _of_torch_compile("config")
    refuses = config is not None and config.error_on_nested_fx_trace
    if config is not None:
        config.error_on_nested_fx_trace = False
    _THREAD.traces += 1
    try:
        yield
    finally:
        _THREAD.traces -= 1
        if config is not None:
            config.error_on_nested_fx_trace = refuses


def mark_of_this_thread() -> None:
    """Called when torch.fx has begun a trace and set its mark for all threads; what that was before comes back after it."""
    setattr(_symbolic_trace, "_is_fx_tracing_flag", _THREAD)  # noqa: B010 - a bool, to mypy


class Watch(TorchDispatchMode):
    """Sees operations, and is no reason to torch.compile not to compile what other threads run meanwhile."""

    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True
