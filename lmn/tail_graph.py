"""A tail as a graph, and as the code that runs it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

from lmn.graph_modules import graph_module


class TailGraph(nn.Module):
    """A graph on a module that has what its nodes name; run without the wrapper that prints its code where it fails.

    Parameters
    ----------
    root : nn.Module
    graph : fx.Graph
    run : callable
        (root, samples) to the graph's output.
    tensors : tuple of str
        The root's parameters and buffers that the graph needs.
    """

    def __init__(
        self, root: nn.Module, graph: fx.Graph, run: Callable[[nn.Module, Tensor], Any], tensors: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.root, self.graph, self.run, self.tensors = root, graph, run, tensors

    @classmethod
    def of(cls, module: fx.GraphModule) -> TailGraph:
        tensors = (*dict(module.named_parameters()), *dict(module.named_buffers()))
        return cls(module, module.graph, type(module).forward, tensors)

    @property
    def constants(self) -> dict[str, Tensor]:
        """Tensors that the graph needs and the model does not have."""
        tensors = (*self.root.named_buffers(), *self.root.named_parameters())
        return {name: tensor.detach() for name, tensor in tensors if not name.startswith("model.")}

    @cached_property
    def module(self) -> fx.GraphModule:
        """The graph with nothing but what it needs."""
        return self.root if isinstance(self.root, fx.GraphModule) else graph_module(self.root, copy.deepcopy(self.graph))

    def forward(self, x: Tensor) -> Any:
        return self.run(self.root, x)
