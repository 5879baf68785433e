"""What was found out about a model, kept from one measurement to the next: its graph, and sizes of what it computes.

Tracing takes longer than many a measurement. A graph is used again for a model that looks as it did, module by module, and
only if it gives what the model gives, to rounding, at the samples that a new one is checked at. Looks are: which modules there
are, of which classes, with which attributes, and sizes of tensors. Values of parameters and buffers are read at each use, and a
graph that was traced while some were looked at is not kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from lmn.as_written import Watch
from lmn.preserve import Habits
from lmn.submodules import has_original_forward, is_compiled

_MOST_KEPT = 8  # graphs of one model: for as many taps, selections and sizes
_DEEPEST = 6


@dataclass(eq=False)
class Remembered:
    """Of one model, tap, selection, and kind of samples.

    Attributes
    ----------
    graph : fx.Graph
        From the tap on, on the model inside a ``Root``; its nodes name modules and parameters, and hold none.
    run : callable
        (root, samples) to the graph's output.
    tensors : tuple of str
        The parameters and buffers of a root that the graph needs.
    constants : dict of str to Tensor
        Other tensors that it needs.
    habits : Habits
    batch_of_model, batch, widest, single_inside
        As of the ``Network``.
    derivative : str
        What had the model's own derivatives the last time, or "" where nobody has looked yet.
    """

    graph: fx.Graph
    run: Callable[[nn.Module, Tensor], Any]
    tensors: tuple[str, ...]
    constants: dict[str, Tensor]
    habits: Habits
    batch_of_model: int
    batch: int
    widest: int
    single_inside: bool
    derivative: str = ""


_KEPT: WeakKeyDictionary[nn.Module, dict[Hashable, Remembered]] = WeakKeyDictionary()


def recall(model: nn.Module, key: Hashable) -> Remembered | None:
    return None if key is None else _KEPT.get(model, {}).get(key)


def remember(model: nn.Module, key: Hashable, found: Remembered) -> None:
    if key is not None:
        kept = _KEPT.setdefault(model, {})
        while len(kept) >= _MOST_KEPT:
            del kept[next(iter(kept))]
        kept[key] = found


class _Reads(Watch):
    """Notes whether a tensor's values were looked at, by operations."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        looks = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        self.seen = self.seen or func in looks
        return func(*args, **(kwargs or {}))


_LOOKS = {"tolist", "numpy", "item", "__array__", "__bool__", "__float__", "__int__", "__index__", "__contains__", "__repr__"}


class _Calls(TorchFunctionMode):
    """The same by methods of tensors, some of which no operation shows."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or getattr(func, "__name__", "") in _LOOKS
        return func(*args, **(kwargs or {}))


@contextmanager
def reads() -> Iterator[Callable[[], bool]]:
    """Whether values of tensors were looked at in what is enclosed."""
    with _Calls() as calls, _Reads() as operations:
        yield lambda: calls.seen or operations.seen


# ---- how a model looks ------------------------------------------------------------------------------------------------------


class _NotComparable(Exception):  # noqa: N818
    """Something of which it can't be told whether it is as it was."""


def looks(model: nn.Module, tap: str | None, select: Any, samples: Tensor) -> Hashable:
    """What must be the same for a graph to be used again; None where that can't be told.

    A hook may read anything, so a model with hooks is not remembered; neither is one with an attribute that is no plain value,
    container or object of such, function without variables of its own, or tensor.
    """
    kind = (tuple(samples.shape[1:]), samples.dtype, samples.device)
    modules = modules_of(model)
    try:
        return None if modules is None else (tap, _value(select, 0), kind, modules)
    except _NotComparable:
        return None


def modules_of(model: nn.Module) -> Hashable:
    """What must be the same for a model to be the same up to the values of its parameters and buffers; None as above."""
    first: dict[int, int] = {}  # of tensors, by which it is known which are shared
    try:
        return tuple(_module(name, module, first) for name, module in model.named_modules(remove_duplicate=False))
    except _NotComparable:
        return None


def has_plain_tensors(looks: Hashable) -> bool:
    """Whether a model has tensors that are neither parameters nor buffers, by what ``modules_of`` says of it."""
    return isinstance(looks, _Held) or (isinstance(looks, tuple | frozenset) and any(map(has_plain_tensors, looks)))


@dataclass(frozen=True, eq=False)
class _Held:
    """A tensor that is the same only as itself; held, so that no other gets its identity."""

    tensor: Tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.tensor is self.tensor

    def __hash__(self) -> int:
        return id(self.tensor)


_TENSORS = ("_parameters", "_buffers")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# What torch keeps in every module besides.
_IGNORED = {*vars(nn.Module()), *_TENSORS, "_compiled_call_impl", "_flat_weights", "_flat_weight_refs"}


_LIGHTNING = ("lightning.", "pytorch_lightning.", "lightning_fabric.")


@cache
def _attributes_of(base: Any) -> frozenset[str]:
    """Those of a LightningModule's own, its trainer say, which changes with each step."""
    return frozenset(vars(base()))


def _module(name: str, module: nn.Module, first: dict[int, int]) -> Hashable:
    attributes = vars(module)
    if is_compiled(module):  # which is run as it is written
        return name, id(module), type(module)
    hooked = any(attributes.get(hooks) for hooks in _HOOKS)
    if hooked or isinstance(module, torch.jit.ScriptModule):
        raise _NotComparable
    tensors = [
        (kept, key, t.shape, t.dtype, t.device, first.setdefault(id(t), len(first)))
        for kept in _TENSORS
        for key, t in attributes[kept].items()
        if t is not None
    ]
    ignored = _IGNORED | ({"forward", "_original_forward"} if has_original_forward(module) else set())
    bases: tuple[Any, ...] = type(module).__mro__
    for base in bases:
        if base.__module__.startswith(_LIGHTNING) and issubclass(base, nn.Module):
            ignored = ignored | _attributes_of(base)
    plain = [(key, _value(value, 0)) for key, value in attributes.items() if key not in ignored]
    return name, id(module), type(module), id(type(module).forward), tuple(tensors), tuple(plain)


_PLAIN = (
    int,
    float,
    complex,
    str,
    bytes,
    Enum,
    torch.dtype,
    torch.device,
    torch.Size,
    slice,
    range,
    type,
    ModuleType,
    BuiltinFunctionType,
)


def _value(value: Any, depth: int) -> Hashable:
    """What a value is compared by."""
    if depth > _DEEPEST:
        raise _NotComparable
    if value is None or isinstance(value, _PLAIN):
        return type(value), str(value) if isinstance(value, slice) else value
    if isinstance(value, dict):
        return type(value), tuple((_value(key, depth + 1), _value(item, depth + 1)) for key, item in value.items())
    if isinstance(value, list | tuple | deque):
        return type(value), tuple(_value(item, depth + 1) for item in value)
    if isinstance(value, set | frozenset):
        return type(value), frozenset(_value(item, depth + 1) for item in value)
    if isinstance(value, Tensor):
        return type(value), _Held(value), value._version if not value.is_inference() else -1, value.shape, value.dtype
    if isinstance(value, np.ndarray):
        return type(value), value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, FunctionType):
        cells = tuple(_value(cell.cell_contents, depth + 1) for cell in value.__closure__ or ())
        defaults = _value((value.__defaults__, value.__kwdefaults__), depth + 1)
        return value.__code__, value.__module__, cells, defaults
    if isinstance(value, MethodType):
        owner = value.__self__  # of a module the identity: what it looks like is compared where it is in the model
        return value.__func__, id(owner) if isinstance(owner, nn.Module) else _value(owner, depth + 1)
    if isinstance(value, partial):
        return type(value), _value((value.func, value.args, value.keywords), depth + 1)
    if isinstance(value, nn.Module) or not hasattr(value, "__dict__") or hasattr(type(value), "__slots__"):
        raise _NotComparable
    return type(value), _value(vars(value), depth + 1)
