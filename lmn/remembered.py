"""What was found out about a model, kept from one measurement to the next: its graph, and sizes of what it computes.

Tracing takes longer than many a measurement. A graph is used again for a model that looks as it did, module by module, and
only if it gives what the model gives at the samples that a new one is checked at. Looks are: which modules there are, of which
classes, with which hooks, plain attributes, and sizes of tensors. Values of parameters and buffers are read at each use, and a
graph that was traced while some were looked at is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lmn.preserve import Habits

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
    habits : Habits
    batch_of_model, batch, widest, single_inside
        As of the ``Network``.
    derivative : str
        What was seen to have the model's own derivatives, or "" where nobody has looked yet.
    """

    graph: fx.Graph
    run: Callable[[nn.Module, Tensor], Any]
    tensors: tuple[str, ...]
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


def may_be_kept(module: fx.GraphModule) -> bool:
    """Whether a graph has no tensors of its own, which another root would lack."""
    return not any(node.op == "get_attr" and str(node.target).startswith("_") for node in module.graph.nodes)


class _Reads(TorchDispatchMode):
    """Notes whether a tensor's values were looked at."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        looks = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        self.seen = self.seen or func in looks
        return func(*args, **(kwargs or {}))


@contextmanager
def reads() -> Iterator[_Reads]:
    """Whether values of tensors are looked at in what is enclosed: ``seen``, afterwards."""
    with _Reads() as found:
        yield found


# ---- how a model looks ------------------------------------------------------------------------------------------------------


def looks(model: nn.Module, tap: str | None, select: Any, samples: Tensor) -> Hashable:
    """What must be the same for a graph to be used again; None where that can't be told."""
    selection = _function(select)
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    if scripted or (selection is None and select is not None):
        return None
    kind = (tuple(samples.shape[1:]), samples.dtype, samples.device)
    return (tap, selection, kind, tuple(_module(name, module) for name, module in model.named_modules(remove_duplicate=False)))


def _function(function: Any) -> Hashable:
    """A function by its code, where it has nothing else; its address may be another's next time."""
    if not isinstance(function, FunctionType) or function.__closure__ or function.__defaults__ or function.__kwdefaults__:
        return None
    return function.__code__, function.__module__


_LISTED = ("_parameters", "_buffers", "_modules")
_IGNORED = ("training", *_LISTED)


def _module(name: str, module: nn.Module) -> Hashable:
    attributes = vars(module)
    tensors = [(key, t.shape, t.dtype) for listed in _LISTED[:2] for key, t in attributes[listed].items() if t is not None]
    plain = [(key, _value(value, 0)) for key, value in attributes.items() if key not in _IGNORED]
    return name, id(module), type(module), id(type(module).forward), tuple(tensors), tuple(plain)


def _value(value: Any, depth: int) -> Hashable:
    """A plain value, or what is in a container of them; of everything else its identity."""
    if value is None or isinstance(value, int | float | str | bytes | torch.dtype | torch.device | torch.Size):
        return type(value), value
    if depth < _DEEPEST:
        if isinstance(value, dict):
            return type(value), tuple((_value(k, depth + 1), _value(v, depth + 1)) for k, v in value.items())
        if isinstance(value, list | tuple):
            return type(value), tuple(_value(item, depth + 1) for item in value)
    return type(value), id(value)
