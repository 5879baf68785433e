"""A model as a function of its samples: traced, cut at the tap, and kept readable as it trains."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import TorchDispatchMode

from lmn.errors import LmnError
from lmn.lowering import ChainStep, NotAChain, lower
from lmn.preserve import preserved

Select = Callable[[Any], Tensor]

_BATCH_BYTES = 1 << 23  # of the widest intermediate result of samples that are run at a time
_LARGEST_BATCH = 1024
_MOST_EXAMPLES = 8


class Network:
    """The tail of a model: the function from a submodule's output (the tap) to the model's output.

    The structure is traced once; the weights are read at each use, so a Network stays valid while the model trains.

    Parameters
    ----------
    model : nn.Module
    example : Tensor of shape (n_example, ...)
        Some inputs of the model, up to eight, as different as can be. Their values matter only to the checks.
    tap : str, optional
        Name of a submodule, as in ``model.named_modules()``; its output is the sample. Default: the samples are the inputs.
    select : callable, optional
        Picks the tensor to measure from the model's output, e.g. ``lambda out: out.logits[:, -1]``.

    Attributes
    ----------
    path : {"traced", "whole model"}
        How the tail is run: as a graph cut at the tap, or as the whole model with the tap's output substituted.
    why : str
        Why the model is run whole, or an empty string.
    widest : int
        The largest number of values a sample in any intermediate result of the tail.
    single_inside : bool
        Whether the tail computes in float32 or less even from float64 samples, and so can't be had in float64.

    Raises
    ------
    LmnError
        Unknown tap, a tap that is not called once or gives no tensor, an output that is no tensor or depends on the input by
        a way around the tap, samples that influence each other, a model that takes several inputs.
    """

    def __init__(self, model: nn.Module, example: Tensor, tap: str | None = None, select: Select | None = None) -> None:
        self.model = unwrapped(model)
        self.tap = tap or None
        _check_can_run(self.model)
        if select is not None and not callable(select):
            raise LmnError(f"select= is a function of the model's output, e.g. lambda out: out[0]; got {select!r}.")
        self._tap_module = _submodule(model, self.tap)
        self._root = _Root(self.model, select)
        self._casts: dict[torch.dtype, dict[str, Tensor]] = {}
        self._graph: fx.GraphModule | None = None
        with self.reading():
            _check_takes_one_input(self.model)
            inputs = _three_rows(example)
            outputs = self._checked_run(inputs)
            samples = self._run_to_tap(inputs)
            self._widest_of_model = max(1, _growth(self._root, inputs).widest)
            self.sample_shape = samples.shape[1:]
            self._example = samples[:2].clone()
            self._dummy = inputs[:1]
            self._check_no_way_around(example[:_MOST_EXAMPLES])
            self.path, self.why = self._trace(samples, outputs)
            self.widest = max(self.sample_shape.numel(), _growth(self._tail, samples).widest)
            self.single_inside = self._computes_in_single(samples)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The model in evaluation mode, left as it was afterwards; enclose every use of ``samples``, ``tail``, ``chain``."""
        with preserved(self.model):
            try:
                yield
            finally:
                self._casts.clear()

    def samples(self, inputs: Tensor) -> Tensor:
        """The activations at the tap, shape (n_points, *sample_shape)."""
        return torch.cat([self._run_to_tap(batch) for batch in inputs.split(batch_size(self._widest_of_model))])

    def tail(self, h: Tensor) -> Tensor:
        """The model's output, flattened to (n_points, n_out), from samples h of shape (n_points, *sample_shape).

        Computed in h's dtype: the parameters are cast where they have another. h may be overwritten.
        """
        return self._tail(h)

    def chain(self) -> list[ChainStep] | NotAChain:
        """The tail as an alternation of affine maps and activations with the weights of now, or why it is none."""
        if self._graph is None:
            return NotAChain("the model is run whole")
        return lower(self._graph, self._example)

    # -- running ---------------------------------------------------------------------------------------------------------

    def _tail(self, h: Tensor) -> Tensor:
        out = self._substituted(self._dummies(h), h) if self._graph is None else self._in_dtype(self._graph, h)
        return out.reshape(len(h), -1)

    def _substituted(self, inputs: Tensor, h: Tensor) -> Tensor:
        """The whole model on inputs, with h for the tap's output."""
        if self._tap_module is None:
            return self._in_dtype(self._root, h)
        with _output_replaced(self._tap_module, h):
            inputs = inputs.to(h.dtype, copy=True) if inputs.is_floating_point() else inputs.clone()
            return self._in_dtype(self._root, inputs, h.dtype)

    def _in_dtype(self, module: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """module(x) with the parameters in the given dtype, or x's."""
        dtype = dtype or x.dtype
        if dtype not in self._casts:
            tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
            same = all(tensor.dtype == dtype for tensor in floating.values())
            self._casts[dtype] = {} if same else {name: tensor.to(dtype) for name, tensor in floating.items()}
        cast = self._casts[dtype]
        out: Tensor = functional_call(module, cast, (x,)) if cast else module(x)
        return out

    def _computes_in_single(self, samples: Tensor) -> bool:
        """Whether an intermediate result of the tail is of less than float64 though the samples are float64."""
        try:
            self._tail(samples.double())  # the parameters are cast here, outside what is looked at
            return _growth(self._tail, samples.double()).single
        except RuntimeError:
            return True

    def _dummies(self, h: Tensor) -> Tensor:
        """An input for each sample: where the tap is substituted, its values don't matter."""
        dummy = self._dummy.to(h.dtype) if self._dummy.is_floating_point() else self._dummy
        return dummy.expand(h.shape[0], *dummy.shape[1:]).clone()

    def _run_to_tap(self, inputs: Tensor) -> Tensor:
        if self._tap_module is None:
            return inputs.clone()
        return _outputs_of(self._tap_module, self._root, inputs.clone(), str(self.tap))

    # -- checks ----------------------------------------------------------------------------------------------------------

    def _checked_run(self, inputs: Tensor) -> Tensor:
        """The model's outputs for a small batch, after checking that a sample's output is its own."""
        try:
            with self._checked_calls():
                together: Tensor = self._root(inputs.clone())  # the model may write into its input
        except LmnError:
            raise
        except Exception as error:
            raise LmnError(
                f"the model can't be run on the grid's samples, {_described(inputs)}: {_in_short(error)}"
                + _hint(self.model, inputs)
            ) from error
        if together.layout != torch.strided:
            raise LmnError(f"the output is {together.layout}; make it dense with select=lambda out: out.to_dense().")
        if together.shape[:1] != inputs.shape[:1]:
            raise LmnError(
                f"the output's first dimension must be the batch; {len(inputs)} samples gave an output of shape "
                f"{tuple(together.shape)}. Pick or transpose it with select=."
            )
        if not together.is_floating_point():
            raise LmnError(f"the output is of dtype {together.dtype}; pick a real-valued one with select=.")
        if not torch.isfinite(together).all():
            raise LmnError("the model's output is not finite (NaN or infinity) on the grid; is the training diverged?")
        if together.numel() == 0:
            raise LmnError(f"the output is empty, of shape {tuple(together.shape)}; there is nothing to measure.")
        try:
            alone = torch.cat([self._root(inputs[i : i + 1].clone()) for i in range(len(inputs))])
        except Exception as error:
            raise LmnError(
                f"the model runs on a batch of {len(inputs)} samples and not on one ({_in_short(error)}). A sample's output "
                "must be its own; one that is normalised over the batch also in evaluation mode, say, is not."
            ) from error
        tolerance = 1e-2 if together.dtype in (torch.float16, torch.bfloat16) else 1e-3
        if alone.shape != together.shape or (together - alone).abs().max() > tolerance * together.abs().max():
            raise LmnError(
                "a sample's output changes with the batch it is in, or from call to call (attention or normalisation across "
                "the batch, or randomness that evaluation mode does not switch off): such a model has no function of a sample."
            )
        return together.reshape(len(together), -1)

    @contextmanager
    def _checked_calls(self) -> Iterator[None]:
        """The tap is called once in what is enclosed."""
        if self._tap_module is None:
            yield
            return
        calls: list[None] = []
        handle = self._tap_module.register_forward_hook(lambda *_: calls.append(None))
        try:
            yield
        finally:
            handle.remove()
        if not calls:
            raise LmnError(f"tap {self.tap!r} is never called when the model runs; tap a submodule that is.")
        if len(calls) > 1:
            raise LmnError(
                f"tap {self.tap!r} is called {len(calls)} times in a run, so its output is not one sample; tap a submodule "
                "that is called once (the one before or after it, say)."
            )

    def _check_no_way_around(self, inputs: Tensor) -> None:
        """With the tap's output substituted, the model's own input must not matter: neither another's, nor one that is none."""
        if self._tap_module is None:
            return
        samples = self._run_to_tap(inputs)
        expected = self._substituted(inputs, samples.clone())
        others = [inputs.roll(1, 0)]
        if inputs.is_floating_point():
            others.append(inputs + (1 + inputs.abs().max()) * torch.linspace(-1, 1, inputs.numel()).to(inputs).view_as(inputs))
        got = [self._substituted(other, samples.clone()) for other in others]
        if any((out - expected).abs().max() > 1e-5 * expected.abs().max() for out in got):
            raise LmnError(
                f"the output depends on the input by a way around tap {self.tap!r} (a skip connection or a second branch), so "
                "it is no function of the tap's output; tap a submodule that all paths go through."
            )

    # -- tracing ---------------------------------------------------------------------------------------------------------

    def _trace(self, samples: Tensor, outputs: Tensor) -> tuple[str, str]:
        if _has_any_global_hook():
            return "whole model", "hooks on all modules are registered"
        if any(isinstance(module, torch.jit.ScriptModule) for module in self.model.modules()):
            return "whole model", "it is compiled by TorchScript"
        why = ""
        for trace in (self._trace_symbolically, self._trace_by_running):
            try:
                with redirect_stderr(StringIO()):  # a graph that fails prints its code, also where that is no failure
                    self._graph = trace(samples)
                    self._casts.clear()
                    got = self._tail(samples.clone())
                if torch.allclose(got, outputs, rtol=1e-3, atol=1e-3 * float(outputs.abs().max())):
                    return "traced", ""
                why = why or "the traced graph gives other outputs than the model"
            except Exception as error:  # whatever a tracer can't follow, the model itself can
                why = why or _in_short(error)
            self._graph = None
        self._casts.clear()
        return "whole model", why

    def _trace_symbolically(self, _: Tensor) -> fx.GraphModule:
        """By torch.fx: 10 ms, and modules stay visible; control flow that looks at tensors can't be followed."""
        tracer = _Tracer(self._tap_module)
        graph = tracer.trace(self._root)
        (x,) = (node for node in graph.nodes if node.op == "placeholder")
        if self._tap_module is not None:
            (tap,) = tracer.taps
            with graph.inserting_after(x):
                h = graph.placeholder("h")
            tap.replace_all_uses_with(h)
            _remove_unused(graph, keep=h)
            if x.users:
                raise TypeError("the tail reads the model's input (its shape, say)")
            graph.erase_node(x)
        graph.lint()
        return fx.GraphModule(self._root, graph)

    def _trace_by_running(self, samples: Tensor) -> fx.GraphModule:
        """By running the model with the tap substituted under symbolic shapes: follows any control flow but on values."""

        def run(h: Tensor) -> Tensor:
            if self._tap_module is None:
                return self._root(h)  # type: ignore[no-any-return]
            with _output_replaced(self._tap_module, h):
                return self._root(self._dummies(h))  # type: ignore[no-any-return]

        tracer = make_fx(run, tracing_mode="symbolic", pre_dispatch=True, _allow_non_fake_inputs=True)
        graph_module: fx.GraphModule = tracer(samples.clone())
        graph_module.graph.eliminate_dead_code()
        graph_module.recompile()
        return graph_module


def batch_size(widest: int) -> int:
    """How many samples to run at a time, where the widest intermediate result has so many values a sample."""
    return max(1, min(_LARGEST_BATCH, _BATCH_BYTES // (8 * widest)))


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile's and DistributedDataParallel's wrappers."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = cast(nn.Module, model._orig_mod)
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        else:
            return model


class _Root(nn.Module):
    """The model followed by the selection of its output: one tensor with the batch first."""

    def __init__(self, model: nn.Module, select: Select | None) -> None:
        super().__init__()
        self.model = model
        self._select = select

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        if self._select is None:
            return _one_tensor(out, "the model returned")
        try:
            selected = self._select(out)
        except Exception as error:
            raise LmnError(f"select= failed on the model's output, {_kind(out)}: {_in_short(error)}.") from error
        return _one_tensor(selected, "select= returned")


def _kind(out: Any) -> str:
    """What an output is, in a few words."""
    if isinstance(out, Tensor):
        return f"a tensor of shape {tuple(out.shape)}"
    if isinstance(out, Mapping):
        return f"{type(out).__name__} with the keys {list(out)}"
    if isinstance(out, tuple | list):
        return f"{type(out).__name__} of {len(out)}"
    return type(out).__name__


def _one_tensor(out: Any, source: str) -> Tensor:
    if isinstance(out, Tensor | fx.Proxy):
        return out  # type: ignore[return-value]
    logits = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", None)
    if isinstance(logits, Tensor | fx.Proxy):
        return logits  # type: ignore[return-value]
    if isinstance(out, tuple | list) and len(out) == 1:
        return _one_tensor(out[0], source)
    key = repr(next(iter(out))) if isinstance(out, Mapping) and out else "0"
    raise LmnError(
        f"{source} {_kind(out)}, not one tensor nor something with logits; "
        f"pick a tensor with select=, e.g. select=lambda out: out[{key}]."
    )


class _Tracer(fx.Tracer):
    """Notes the node that the tap's output is, and goes into any module that the tap is inside of."""

    def __init__(self, tap: nn.Module | None) -> None:
        super().__init__()
        self._tap = tap
        self.taps: list[fx.Node] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self._tap is not None and m is not self._tap and any(child is self._tap for child in m.modules()):
            return False
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
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
class _Growth:
    """Of the results that grow with the batch, which views of weights do not.

    Attributes
    ----------
    widest : int
        Values a sample of the largest.
    single : bool
        Whether one is of less than float64.
    """

    widest: int
    single: bool


def _growth(function: Callable[[Tensor], Tensor], samples: Tensor) -> _Growth:
    with _Results() as once:
        function(samples.clone())
    with _Results() as twice:
        function(torch.cat([samples, samples]))
    sizes = [0] * len(twice.numels) if len(once.numels) != len(twice.numels) else once.numels
    grown = [(b - a, dtype) for a, b, dtype in zip(sizes, twice.numels, twice.dtypes, strict=True) if b > a]
    single = any(dtype in (torch.float32, torch.float16, torch.bfloat16) for _, dtype in grown)
    return _Growth(max((size for size, _ in grown), default=0) // len(samples), single)


class _Results(TorchDispatchMode):
    """Notes the size and the dtype of the result of each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.numels: list[int] = []
        self.dtypes: list[torch.dtype | None] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numels.append(out.numel() if isinstance(out, Tensor) else 0)
        self.dtypes.append(out.dtype if isinstance(out, Tensor) else None)
        return out


@contextmanager
def _output_replaced(module: nn.Module, output: Tensor) -> Iterator[None]:
    handle = module.register_forward_hook(lambda *_: output)
    try:
        yield
    finally:
        handle.remove()


@dataclass
class _Captured(Exception):  # noqa: N818
    output: Any


def _outputs_of(module: nn.Module, root: nn.Module, inputs: Tensor, tap: str) -> Tensor:
    """What a submodule returns while the model runs; the rest of the model is not run."""

    def capture(_module: nn.Module, _args: Any, output: Any) -> None:
        raise _Captured(output)

    handle = module.register_forward_hook(capture)
    try:
        root(inputs)
        output = None
    except _Captured as captured:
        output = captured.output
    finally:
        handle.remove()
    if not isinstance(output, Tensor):
        raise LmnError(f"tap {tap!r} returns {type(output).__name__}; tap a submodule whose output is one tensor.")
    if len(output) != len(inputs):
        raise LmnError(
            f"tap {tap!r} gave an output of shape {tuple(output.shape)} for {len(inputs)} samples; "
            "tap a submodule whose output has the batch first."
        )
    return output.detach()


def _submodule(model: nn.Module, tap: str | None) -> nn.Module | None:
    """The submodule of a name, by the model's own names or by those inside its wrappers."""
    if tap is None:
        return None
    if not isinstance(tap, str):
        raise LmnError(f"tap is the name of a submodule, as in model.named_modules(); got {type(tap).__name__}.")
    modules: dict[str, nn.Module] = dict(unwrapped(model).named_modules(remove_duplicate=False))
    by_any_name: dict[str, nn.Module] = {**dict(model.named_modules(remove_duplicate=False)), **modules}
    if tap in by_any_name and tap != "":
        return by_any_name[tap]
    modules.pop("", None)
    close = difflib.get_close_matches(tap, modules, n=5, cutoff=0.3)
    found = "close names" if close else "there are"
    names = ", ".join(repr(name) for name in close or list(modules)[:8]) or "none: the model has no submodules"
    raise LmnError(f"the model has no submodule {tap!r} to tap; {found}: {names}.")


def _three_rows(example: Tensor) -> Tensor:
    """Three samples, so that the batch has a size of its own: the first again where there are too few."""
    return torch.cat([example[:2], example[:1], example[:1]])[:3]


def _check_can_run(model: nn.Module) -> None:
    lazy = (UninitializedParameter, UninitializedBuffer)
    if any(isinstance(tensor, lazy) for tensor in [*model.parameters(), *model.buffers()]):
        raise LmnError("the model has lazy modules that are not initialised; run it once on a batch before it is measured.")


def _check_takes_one_input(model: nn.Module) -> None:
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return
    required = [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(required) > 1:
        raise LmnError(
            f"the model takes {len(required)} inputs ({', '.join(required)}) and a grid is one tensor; wrap the model in a "
            "module that fixes the others, or that takes them apart from one tensor."
        )


def _described(x: Tensor) -> str:
    shape = ", ".join(["batch", *map(str, x.shape[1:])])
    return f"{x.dtype} of shape ({shape}) on {x.device}".replace("torch.", "")


def _in_short(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _hint(model: nn.Module, inputs: Tensor) -> str:
    """What is most likely wrong with samples that a model does not take."""
    if inputs.is_floating_point() and any(isinstance(module, nn.Embedding) for module in model.modules()):
        return ". Does it take tokens? Pass integers, and a tap after the embedding."
    if inputs.is_floating_point() and inputs.ndim == 1:
        return ". One value a sample? Pass samples[:, None]."
    return ""
