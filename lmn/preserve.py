"""A measurement leaves the model as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode without gradients, and put everything back, whatever happens inside.

    Restored: the training flag and the attributes of every module (hooks, parameters, buffers and submodules by identity;
    lists, sets and dictionaries with what was in them), the values of buffers and of embeddings that renormalise themselves,
    and the state of torch's, NumPy's and Python's random generators. Other parameters are not written to by a forward pass, so
    they are not copied. What a forward pass or a user's hook changes elsewhere stays changed.

    One thread at a time measures a model; others wait.
    """
    with alone_with(model):
        yield from _preserved(model)


def _preserved(model: nn.Module) -> Iterator[None]:
    modules = list(model.modules())
    training = [module.training for module in modules]
    attributes = [_shallow_copy(module) for module in modules]
    tensors = [(tensor, tensor.detach().clone()) for tensor in [*model.buffers(), *_written_in_forward(modules)]]
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - the user's, whichever it is
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        try:
            for module in modules:
                module.training = False
            with torch.no_grad():
                yield
        finally:
            for module, saved, flag in zip(modules, attributes, training, strict=True):
                _restore(module, saved)
                if module.training != flag:
                    module.training = flag  # TorchScript keeps it elsewhere
            with torch.no_grad():
                for tensor, value in tensors:
                    if not _same(tensor, value):
                        tensor.copy_(value)
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_LOCKS_LOCK = Lock()


def alone_with(model: nn.Module) -> Any:
    """A context in which no other thread measures the model, and so none has its parameters in another dtype."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, RLock())


def _written_in_forward(modules: list[nn.Module]) -> list[torch.Tensor]:
    renormalised = (nn.Embedding, nn.EmbeddingBag)
    return [m.weight for m in modules if isinstance(m, renormalised) and m.max_norm is not None]


def _cuda_devices(model: nn.Module) -> list[int]:
    tensors = [*model.parameters(), *model.buffers()]
    return sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})


def _shallow_copy(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    # Containers of a module (hooks, registries, records) are copied one level down: a forward pass may add to them.
    return {name: (value, _contents(value)) for name, value in vars(module).items()}


def _contents(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(value)
    return list(value) if isinstance(value, list | set) else None


def _restore(module: nn.Module, saved: dict[str, tuple[Any, Any]]) -> None:
    now = vars(module)
    for name in [name for name in now if name not in saved]:
        del now[name]
    for name, (value, contents) in saved.items():
        if now.get(name) is not value:
            now[name] = value
        if contents is not None and not _identical(_contents(value), contents):
            value.clear()
            value.extend(contents) if isinstance(value, list) else value.update(contents)


def _identical(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return list(a) == list(b) and all(a[key] is b[key] for key in a)
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
