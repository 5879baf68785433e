"""torch.fx's graph modules, of which nothing is left when they are gone."""

from __future__ import annotations

import copy
import linecache
import weakref
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import graph_module as of_torch


def graph_module(root: Any, graph: fx.Graph) -> fx.GraphModule:
    """Of a module, or of tensors by their names."""
    return forgotten(fx.GraphModule(root, graph))


def copied(module: fx.GraphModule, sample: Tensor) -> fx.GraphModule:
    """A copy of its own, of the weights of now, in a sample's dtype and on its device."""
    with torch.no_grad():
        return forgotten(copy.deepcopy(module)).to(sample.device, sample.dtype).requires_grad_(False)


def forgotten(module: fx.GraphModule) -> fx.GraphModule:
    """The module itself, whose source torch.fx, and Python, will not keep for longer than it is there."""
    weakref.finalize(module, _forget, type(module).forward.__code__.co_filename)
    return module


def _forget(source: str) -> None:
    of_torch._loader.eval_cache.pop(source, None)
    linecache.cache.pop(source, None)
