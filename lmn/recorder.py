"""Traced graphs run in one dtype, whatever they cast to: what their nodes are is seen from the results."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, fx, nn

from lmn import operations
from lmn.kernels.activations import Activation
from lmn.kernels.windows import Windows
from lmn.submodules import own_sizes


class InOneDtype(fx.Interpreter):
    """Runs a graph in one dtype; its module must have its weights in it."""

    def __init__(self, module: fx.GraphModule, dtype: torch.dtype, *, keep: bool = False) -> None:
        super().__init__(module, garbage_collect_values=not keep)
        self.extra_traceback = False
        self.dtype = dtype

    def run_node(self, n: fx.Node) -> Any:
        return self.env[n.args[0]] if is_cast(n, self.env) else in_dtype(super().run_node(n), self.dtype)  # type: ignore[index]


class Recorder(InOneDtype):
    """Keeps every result, and tells what is an activation or a maximum."""

    def __init__(self, module: fx.GraphModule, dtype: torch.dtype) -> None:
        super().__init__(module, dtype, keep=True)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)  # of now: an operation in place may change it
        return value

    def run_on(self, sample: Tensor, n: int) -> None:
        """Run on one sample, of shape (1, ...), n times."""
        with torch.no_grad():
            self.run(sample.repeat(n, *[1] * (sample.ndim - 1)))

    def submodule(self, node: fx.Node) -> nn.Module | None:
        return self.fetch_attr(str(node.target)) if node.op == "call_module" else None

    def name_of(self, node: fx.Node) -> str:
        return operations.name_of(node, self.submodule(node))

    def is_weight(self, node: fx.Node, depends: Any) -> bool:
        """Whether a node casts a weight to the dtype of a sample-dependent result: still a weight."""
        return self.name_of(node) in operations.CASTS and node.args[0] not in depends

    def live(self) -> set[fx.Node]:
        """What the output needs, and what writes in place into what it needs."""
        live, memory = set[fx.Node](), set[int]()
        for node in reversed(self.module.graph.nodes):  # type: ignore[union-attr, arg-type]
            needed = node in live or node.op in ("output", "placeholder")
            if not needed and node.op.startswith("call") and operations.in_place(node, self.submodule(node)):
                needed = bool(storages(self.env[node]) & memory)
            if needed:
                live |= {node, *node.all_input_nodes}
                memory |= set().union(*(storages(self.env[source]) for source in node.all_input_nodes))
        return live

    def seems_to_bend(self, node: fx.Node) -> bool:
        """Whether a node is an activation or a maximum by its name alone."""
        module, name = self.submodule(node), self.name_of(node)
        if module is not None and type(module) in operations.ACTIVATION_MODULES:
            return True
        maximum = name in operations.MAXIMA or ("max" in name.lower() and "pool" in name.lower())
        return maximum or name in operations.ACTIVATION_FUNCTIONS

    def bend(self, node: fx.Node, sources: list[fx.Node]) -> Activation | Windows | None:
        """The activation or maximum that a node is, of sources that depend on the sample; None for all else.

        Of a module that does something else than its class says, by hooks or a forward of its own, nothing is known.
        """
        module, name, where = self.submodule(node), self.name_of(node), where_of(node)
        shapes = [self.shapes[source][1:] for source in sources if source in self.shapes]
        others = [arg for arg in node.args if arg not in sources]
        args: Any = tuple(self.map_nodes_to_values(others, node))  # type: ignore[arg-type]
        kwargs: Any = self.map_nodes_to_values(node.kwargs, node)
        if module is not None and operations.is_custom(module):
            return operations.custom_activation(module, where)
        if module is not None and not operations.is_plain(module):
            return None
        if module is not None and type(module) in operations.ACTIVATION_MODULES:
            name = operations.ACTIVATION_MODULES[type(module)]
            given = {key: getattr(module, key) for key in operations.ACTIVATION_FUNCTIONS[name]}
            return operations.read_activation(name, given, shapes[0], where)
        if module is None and name in operations.ACTIVATION_FUNCTIONS and len(sources) == 1:
            return operations.read_activation(name, operations.parameters_of(name, args, kwargs), shapes[0], where)
        if shapes and (name in operations.MAXIMA or "pool" in name.lower()):
            value = self.env[node]
            out = value[0] if isinstance(value, tuple | list) else value
            options = operations.window_options(name, args, kwargs, module)
            return operations.read_windows(name, options, shapes, tuple(out.shape[1:]), where)
        return None


def is_cast(node: fx.Node, env: dict[fx.Node, Any]) -> bool:
    """Whether a node casts its argument from one floating dtype to another, and does nothing else."""
    if node.op not in ("call_method", "call_function") or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    name, value = operations.name_of(node, None), env.get(node.args[0])
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    others = [env.get(arg, arg) if isinstance(arg, fx.Node) else arg for arg in (*node.args[1:], *node.kwargs.values())]
    dtypes = [arg.dtype if isinstance(arg, Tensor) else arg for arg in others if isinstance(arg, Tensor | torch.dtype)]
    floating = all(dtype.is_floating_point for dtype in dtypes)
    return name in operations.FLOATING or (name in operations.CASTS and bool(dtypes) and floating)


def in_dtype(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def has_tensor(value: Any) -> bool:
    """Whether a result is a tensor, or some of which one is."""
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(isinstance(x, Tensor) for x in value))


def storages(value: Any) -> set[int]:
    """The memory that a result stands in."""
    if isinstance(value, Tensor):
        return {value.untyped_storage().data_ptr()} if value.numel() else set()
    return set().union(*map(storages, value)) if isinstance(value, tuple | list) else set()


def where_of(node: fx.Node) -> str:
    """Where in its model a node is, for messages."""
    return str(node.target).removeprefix("model.") if node.op == "call_module" else node.name


def batch_unlike(module: fx.GraphModule, sample: Tensor) -> int:
    """A batch size that, as one more, is no size of the model's own: what has it is seen to grow with the batch."""
    sizes = own_sizes(module, sample) | {len(child._modules) for child in module.modules()}
    return next(n for n in itertools.count(2) if not sizes & {n, n + 1})
