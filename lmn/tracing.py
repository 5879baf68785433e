"""The tail of a model as a graph: from the tap's output to the model's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import RLock, get_ident
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.module import _has_any_global_hook

from lmn.as_written import Watch, mark_of_this_thread, traced_as_written
from lmn.graph_modules import forgotten, graph_module
from lmn.operations import is_custom

# torch.fx replaces nn.Module's own methods while it traces, for all threads: one trace at a time, and what other threads run
# meanwhile, a training step say, is none of its business.
_ONE_AT_A_TIME = RLock()


@contextmanager
def _alone() -> Iterator[None]:
    """One trace at a time, and other threads, a training's say, compile nothing within: torch.compile takes back what torch.fx
    replaced in all threads while it compiles, and replaces it again when the trace may be over.
    """
    convert_frame = sys.modules.get("torch._dynamo.convert_frame")  # where nobody compiles it is not imported
    with _ONE_AT_A_TIME, nullcontext() if convert_frame is None else convert_frame.compile_lock, traced_as_written():
        yield


def why_untraceable(model: nn.Module) -> str:
    """Why a model is run whole without trying to trace it, or ""."""
    if _has_any_global_hook():
        return "hooks on all modules are registered"
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return "it is compiled by TorchScript"
    return ""


def traced_symbolically(root: nn.Module, tap: nn.Module | None) -> fx.GraphModule:
    """By torch.fx: 10 ms, and modules stay visible; control flow that looks at tensors can't be followed."""
    tracer = _Tracer(tap)
    with _alone(), _len_of_proxies(root):
        graph = tracer.trace(root)
    (x,) = (node for node in graph.nodes if node.op == "placeholder")
    if tap is not None:
        (tapped,) = tracer.taps
        with graph.inserting_after(x):
            h = graph.placeholder("h")
        tapped.replace_all_uses_with(h)
        _remove_unused(graph, keep=h)
        if x.users:
            raise TypeError("the tail reads the model's input (its shape, say)")
        graph.erase_node(x)
    graph.lint()
    return graph_module(root, graph)


@contextmanager
def _len_of_proxies(root: nn.Module) -> Iterator[None]:
    """Let the modules' own code, which often says ``x.view(len(x), -1)``, ask the length of what is traced.

    ``len`` must return a number, so torch.fx can't answer it; a function of that name in the code's own module can.
    """

    def length(x: Any) -> Any:
        return x.size(0) if isinstance(x, fx.Proxy) else len(x)

    forwards = (type(module).forward for module in root.modules() if not type(module).__module__.startswith("torch."))
    spaces = [getattr(forward, "__globals__", {}) for forward in forwards]
    changed = {id(space): space for space in spaces if "len" not in space}
    for space in changed.values():
        space["len"] = length
    try:
        yield
    finally:
        for space in changed.values():
            del space["len"]


def traced_by_running(tail: Callable[[Tensor], Tensor], samples: Tensor, root: nn.Module) -> fx.GraphModule:
    """By running the tail under symbolic shapes: follows any control flow but on values.

    The nodes name the parameters and buffers as the root does; other tensors have names of the tracer's own.
    """

    def run(h: Tensor) -> Tensor:  # the tracer takes a method's `self` for an input
        mark_of_this_thread()
        return tail(h)

    tracer = make_fx(run, tracing_mode="symbolic", pre_dispatch=True, _allow_non_fake_inputs=True)
    with _alone():
        traced = forgotten(tracer(samples.clone()))
    graph = traced.graph
    graph.eliminate_dead_code()
    names = {id(tensor): name for name, tensor in (*root.named_parameters(), *root.named_buffers())}
    tensors = dict[str, Tensor]()
    for node in graph.find_nodes(op="get_attr"):
        tensor = getattr(traced, str(node.target))
        node.target = names.get(id(tensor), node.target)
        tensors[str(node.target)] = tensor
    return graph_module(tensors, graph)


class _Tracer(fx.Tracer):
    """Notes the node that the tap's output is, and goes into any module that the tap is inside of."""

    def __init__(self, tap: nn.Module | None) -> None:
        super().__init__()
        self._tap, self._thread = tap, get_ident()
        self.taps: list[fx.Node] = []

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        mark_of_this_thread()
        return super().create_args_for_root(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self._tap is not None and m is not self._tap and any(child is self._tap for child in m.modules()):
            return False
        if is_custom(m):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if get_ident() != self._thread:
            return forward(*args, **kwargs)
        out = super().call_module(m, forward, args, kwargs)
        if m is self._tap:
            if not isinstance(out, fx.Proxy):
                raise TypeError(f"the tap returned {type(out).__name__}")
            self.taps.append(out.node)
        return out


def _remove_unused(graph: fx.Graph, keep: fx.Node) -> None:
    """Remove what the output does not need, unless it may write into something that it does need."""
    for node in reversed(graph.nodes):
        if node.users or node.op in ("output", "placeholder") or node is keep:
            continue
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        if (node.op == "call_method" and in_place) or (node.op == "call_function" and (in_place or node.kwargs.get("inplace"))):
            raise TypeError(f"'{name}' writes in place and its result is not used")
        graph.erase_node(node)


@dataclass(frozen=True)
class Growth:
    """Of the results that grow with the batch, which views of weights do not.

    Attributes
    ----------
    widest : int
        Values a sample of the largest.
    columns : int
        Values a sample of the largest copy that a convolution may make of what it is given, one of it for each of the kernel's
        places, as torch's do where no library has one: in float64.
    single : bool
        Whether one is of less than float64.
    """

    widest: int
    columns: int
    single: bool


def growth(function: Callable[[Tensor], Tensor], samples: Tensor) -> Growth:
    samples = samples[:2]
    with _Results() as once:
        function(samples.clone())
    with _Results() as twice:
        function(torch.cat([samples, samples]))
    sizes = [0] * len(twice.numels) if len(once.numels) != len(twice.numels) else once.numels
    grown = [(b - a, dtype) for a, b, dtype in zip(sizes, twice.numels, twice.dtypes, strict=True) if b > a]
    single = any(dtype in (torch.float32, torch.float16, torch.bfloat16) for _, dtype in grown)
    return Growth(max((size for size, _ in grown), default=0) // len(samples), twice.columns // (2 * len(samples)), single)


class _Results(Watch):
    """Notes the size and the dtype of the result of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.numels: list[int] = []
        self.dtypes: list[torch.dtype | None] = []
        self.columns = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numels.append(out.numel() if isinstance(out, Tensor) else 0)
        self.dtypes.append(out.dtype if isinstance(out, Tensor) else None)
        if func is torch.ops.aten.convolution.default:
            places = out.numel() // out.shape[1]
            self.columns = max(self.columns, places * args[1][0].numel())
        return out
