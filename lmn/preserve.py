"""A measurement leaves the model as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode without gradients, and put everything back, whatever happens inside.

    Restored: the training flag and the attributes of every module (hooks, parameters, buffers and submodules by identity),
    the values of buffers, and the state of the random generators. Parameters are never written to, so they are not copied.
    """
    modules = list(model.modules())
    attributes = [_shallow_copy(module) for module in modules]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        try:
            for module in modules:
                module.training = False
            with torch.no_grad():
                yield
        finally:
            for module, saved in zip(modules, attributes, strict=True):
                _restore(module, saved)
            with torch.no_grad():
                for buffer, value in buffers:
                    if not _same(buffer, value):
                        buffer.copy_(value)


def _cuda_devices(model: nn.Module) -> list[int]:
    tensors = [*model.parameters(), *model.buffers()]
    return sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})


def _shallow_copy(module: nn.Module) -> dict[str, Any]:
    # Dictionaries of a module (hooks, registries) are copied one level down: a forward pass may add to them.
    return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(module).items()}


def _restore(module: nn.Module, saved: dict[str, Any]) -> None:
    now = vars(module)
    for name in [name for name in now if name not in saved]:
        del now[name]
    for name, value in saved.items():
        current = now.get(name)
        if isinstance(value, dict) and isinstance(current, dict):
            if not _identical(current, value):
                current.clear()
                current.update(value)
        elif current is not value:
            now[name] = value


def _identical(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return list(a) == list(b) and all(a[key] is b[key] for key in a)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
