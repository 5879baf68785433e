"""A model as a function of its samples: traced, cut at the tap, and kept readable as it trains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from lmn import remembered
from lmn.bends import Bends
from lmn.checks import called_once, check_initialised, check_no_way_around, check_takes_one_input, checked_outputs
from lmn.errors import LmnError, in_short
from lmn.kernels.program import Program
from lmn.lowering import ChainStep, NotAChain, lower
from lmn.memory import working_bytes
from lmn.preserve import UNKNOWN, Habits, autocast_restored, observed, preserved
from lmn.program import program
from lmn.remembered import Remembered
from lmn.selection import Root, Select, check_select
from lmn.submodules import output_replaced, outputs_of, own_sizes, submodule, unwrapped
from lmn.tail_graph import TailGraph
from lmn.tracing import Growth, growth, traced_by_running, traced_symbolically, why_untraceable

_BATCH_BYTES = 1 << 21  # of the widest intermediate result of samples that are run at a time
_COLUMN_BYTES = 1 << 22  # of what a convolution copies
_LARGEST_BATCH, _LARGEST_BATCH_ON_GPU = 1 << 10, 1 << 16
_ROUNDINGS = 16  # that the same operations may differ by
_MOST_CHECKED = 32  # samples at which a graph must give what the model gives

Read = TypeVar("Read", Program, Bends)
# What is not known of a model that can't be read, and how that is said in a few words ("": the whole message).
_PIECES = "the pieces that it is linear on are not known", ""
_ACTIVATIONS = "its activations are not seen", "the model could not be traced"


class Network:
    """The tail of a model: the function from a submodule's output (the tap) to the model's output.

    The structure is traced once; the weights are read at each use, so a Network stays valid while the model trains.

    Parameters
    ----------
    model : nn.Module
    example : Tensor of shape (n_example, ...)
        Some inputs of the model, as different as can be. Their values matter only to the checks.
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
    batch : int
        How many samples the tail may be given at a time.
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
        self.tap = tap
        check_initialised(self.model)
        check_select(select)
        self._tap_module = submodule(model, self.tap)
        self._root = Root(self.model, select)
        self._casts: dict[tuple[nn.Module, torch.dtype], dict[str, Tensor]] = {}
        self._graph: TailGraph | None = None
        self._chain: list[ChainStep] | NotAChain | None = None
        self._programs: dict[tuple[torch.dtype, torch.device], Program] = {}
        self._looks = remembered.looks(self.model, tap, select, example)
        self._known = remembered.recall(self.model, self._looks)
        self._habits = UNKNOWN if self._known is None else self._known.habits
        self._unseen: Tensor | None = example

    def _look(self, example: Tensor, learn: Callable[[Habits], None]) -> None:
        """Check the model, and find out what there is to know of it; part of that may be remembered."""
        known = self._known
        check_takes_one_input(self.model)
        inputs = _rows(example, _batch_unlike(self.model, example))
        with observed(self.model) as habits:
            checked_outputs(self._root, inputs, called_once(self.tap, self._tap_module))
        self._habits = habits[0]
        learn(self._habits)
        if known is not None and known.habits != self._habits:
            known = None
        samples = self._run_to_tap(inputs)
        self._natural = samples.dtype
        self._batch_of_model = batch_size(growth(self._root, inputs), inputs.device) if known is None else known.batch_of_model
        self.sample_shape = samples.shape[1:]
        self._example = samples[:2].clone()
        self._dummy = inputs[:1]
        some = example[: max(len(inputs), min(_MOST_CHECKED, self._batch_of_model))]
        if self.tap is not None:
            check_no_way_around(self.tap, self._substituted, some, self._run_to_tap(some))
        checked = _and_between(self._run_to_tap(some))
        if known is not None and self._is_as_remembered(known, checked):
            self.path, self.why = "traced", ""
            self.widest, self.batch, self.single_inside = known.widest, known.batch, known.single_inside
            return
        self._known = None
        self.path, self.why, may_be_kept = self._trace(samples, checked)
        self._check_runs(samples)
        grown = growth(self.tail, samples)
        self.widest = max(self.sample_shape.numel(), grown.widest)
        self.batch = min(batch_size(each, samples.device) for each in (grown, Growth(self.widest, 0, False)))
        self.single_inside = self._computes_in_single(samples)
        if may_be_kept and self._graph is not None:
            graph = copy.deepcopy(self._graph.graph)
            sizes = self._batch_of_model, self.batch, self.widest, self.single_inside
            self._known = Remembered(graph, self._graph.run, self._graph.tensors, self._graph.constants, self._habits, *sizes)
            remembered.remember(self.model, self._looks, self._known)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The model in evaluation mode, left as it was afterwards; enclose every use of ``samples``, ``tail``, ``chain``.

        When it is first entered, the model is looked at.
        """
        with preserved(self.model, self._habits) as learn:
            try:
                if self._unseen is not None:
                    example, self._unseen = self._unseen, None
                    self._look(example, learn)
                yield
            finally:
                self._casts.clear()
                self._programs.clear()
                self._chain = None

    @property
    def draws(self) -> bool:
        """Whether the model draws random numbers, also in evaluation mode; known once it was read."""
        return self._habits.draws

    def samples(self, inputs: Tensor) -> Tensor:
        """The activations at the tap, shape (n_points, *sample_shape)."""
        return torch.cat([self._run_to_tap(batch) for batch in inputs.split(self._batch_of_model)])

    def tail(self, h: Tensor) -> Tensor:
        """The model's output, flattened to (n_points, n_out), from samples h of shape (n_points, *sample_shape).

        Computed as the model computes it where h has the dtype that the model's samples have, and otherwise in h's dtype: the
        parameters are cast to it. h may be overwritten.
        """
        if self._graph is None:
            return self.untraced(h)
        with autocast_restored():
            out = self._in_dtype(self._graph, h)
        return out.reshape(len(h), -1).to(h.dtype)  # a model may cast its output

    def untraced(self, h: Tensor) -> Tensor:
        """The same by the model itself, whatever was read off it."""
        with autocast_restored():
            out = self._substituted(self._dummies(h), h)
        return out.reshape(len(h), -1).to(h.dtype)

    @property
    def derivative(self) -> str:
        """What had the model's own derivatives the last time, or ""; may be set, and is remembered where the graph is."""
        return "" if self._known is None else self._known.derivative

    @derivative.setter
    def derivative(self, found: str) -> None:
        if self._known is not None:
            self._known.derivative = found

    def chain(self) -> list[ChainStep] | NotAChain:
        """The tail as an alternation of affine maps and activations with the weights of now, or why it is none."""
        if self._graph is None:
            return NotAChain("the model is run whole")
        if self._chain is None:
            self._chain = lower(self._graph.root, self._graph.graph, self._example)
        return self._chain

    def program(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Program:
        """The tail as affine steps and bends, in the given dtype, with a copy of the weights of now, maybe on another device.

        Raises
        ------
        LmnError
            It has a part that is not piecewise linear, or not known to be; or it could not be traced.
        """
        key = dtype, torch.device(device or self._example.device)
        if key not in self._programs:
            sample = self._example[:1].to(key[1], dtype)
            self._programs[key] = self._step_by_step(lambda graph: program(graph, sample), dtype, *_PIECES)
        return self._programs[key]

    def bends(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Bends:
        """The tail with its activations and maxima, in the given dtype, with a copy of the weights of now.

        Raises
        ------
        LmnError
            It could not be traced; or it has an activation that has no kink, or is not known.
        """
        sample = self._example[:1].to(device, dtype)
        return self._step_by_step(lambda graph: Bends(graph, sample), dtype, *_ACTIVATIONS)

    def _step_by_step(self, read: Callable[[fx.GraphModule], Read], dtype: torch.dtype, what: str, short: str) -> Read:
        """What is read off the traced tail by running it node by node; or an error that says what is not known without it."""
        if self._graph is None:
            raise LmnError(
                f"the model could not be traced, so {what}; take sizes from x.shape, do not branch on values, pass the "
                "original of a compiled module, or measure the linear mapping number, metrics=('lmn',). The tracers said: "
                f"{self.why}.",
                short=short,
            )
        try:
            return read(self._graph.module)
        except LmnError:
            raise
        except Exception as error:  # whatever the model's operations don't take of what is asked here
            raise LmnError(f"the traced model can't be run step by step in {dtype} ({in_short(error)}), so {what}.") from error

    # -- running ---------------------------------------------------------------------------------------------------------

    def _substituted(self, inputs: Tensor, h: Tensor) -> Tensor:
        """The whole model on inputs, with h for the tap's output."""
        if self._tap_module is None:
            return self._in_dtype(self._root, h)
        with output_replaced(self._tap_module, h):
            inputs = inputs.to(h.dtype, copy=True) if inputs.is_floating_point() else inputs.clone()
            return self._in_dtype(self._root, inputs, h.dtype)

    def _in_dtype(self, module: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """module(x), the parameters as they are for samples of the model's own dtype, otherwise in x's or the given one."""
        dtype = dtype or x.dtype
        if (module, dtype) not in self._casts:
            tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            if isinstance(module, TailGraph):
                tensors = {f"root.{name}": tensors[f"root.{name}"] for name in module.tensors}
            floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
            same = dtype == self._natural or all(tensor.dtype == dtype for tensor in floating.values())
            self._casts[module, dtype] = {} if same else {name: tensor.to(dtype) for name, tensor in floating.items()}
        cast = self._casts[module, dtype]
        out: Tensor = functional_call(module, cast, (x,)) if cast else module(x)
        return out

    def _computes_in_single(self, samples: Tensor) -> bool:
        """Whether an intermediate result of the tail is of less than float64 though the samples are float64."""
        try:
            self.tail(samples.double())  # the parameters are cast here, outside what is looked at
            return growth(self.tail, samples.double()).single
        except RuntimeError:
            return True

    def _check_runs(self, samples: Tensor) -> None:
        """The tail can be run in what it is measured in."""
        working = samples if samples.dtype == torch.float64 or not samples.is_floating_point() else samples.float()
        try:
            self.tail(working.clone())
        except RuntimeError as error:
            raise LmnError(
                f"from {'its inputs' if self.tap is None else f'tap {self.tap!r}'} on, the model can't be run in "
                f"{working.dtype} ({in_short(error)}); tap a submodule before the parts that have another dtype, or convert "
                "the model to one dtype."
            ) from error

    def _dummies(self, h: Tensor) -> Tensor:
        """An input for each sample: where the tap is substituted, its values don't matter."""
        dummy = self._dummy.to(h.dtype) if self._dummy.is_floating_point() else self._dummy
        return dummy.expand(h.shape[0], *dummy.shape[1:]).clone()

    def _run_to_tap(self, inputs: Tensor) -> Tensor:
        if self._tap_module is None:
            return inputs.clone()
        return outputs_of(self._tap_module, self._root, inputs.clone(), str(self.tap))

    def _trace(self, samples: Tensor, checked: Tensor) -> tuple[str, str, bool]:
        """Find a graph that gives what the model gives at the samples to be checked; and tell whether it may be remembered."""
        why = why_untraceable(self.model)
        if why:
            return "whole model", why, False
        reasons = []
        by_symbols = partial(traced_symbolically, self._root, self._tap_module)
        by_running = partial(traced_by_running, self._run_from_tap, samples, self._root)
        for trace in (by_symbols, by_running):
            try:
                with remembered.reads() as looked:
                    graph = trace()
                if self._gives_the_outputs(TailGraph.of(graph), checked):
                    return "traced", "", not looked()
                reasons.append("the traced graph gives other outputs than the model")
            except Exception as error:  # whatever a tracer can't follow, the model itself can
                reasons.append(in_short(error))
            self._graph = None
        return "whole model", "; ".join(dict.fromkeys(reasons)), False

    def _is_as_remembered(self, known: Remembered, checked: Tensor) -> bool:
        """Take a remembered graph for the tail, if it still is it."""
        try:
            graph = TailGraph(self._root.beside(known.constants), known.graph, known.run, known.tensors)
            return not why_untraceable(self.model) and self._gives_the_outputs(graph, checked, same_operations=True)
        except Exception:  # whatever has changed, a new graph will have it
            return False

    def _gives_the_outputs(self, graph: TailGraph, checked: Tensor, *, same_operations: bool = False) -> bool:
        """Take a graph for the tail, and tell whether it gives what the model gives at some samples."""
        self._graph = graph
        # Of two sizes at least: a graph may have taken the batch's for a constant. The same for both: an output that is a
        # difference of large terms is rounded otherwise in another batch.
        parts = [part for part in (checked[:2], *checked[2:].split(self._batch_of_model)) if len(part)]
        expected = torch.cat([self.untraced(part.clone()) for part in parts])
        got = torch.cat([self.tail(part.clone()) for part in parts])
        if same_operations:  # each output to rounding
            most = _ROUNDINGS * torch.finfo(expected.dtype).eps * expected.abs().amax(0)
            return bool(((got - expected).abs() <= most).all())
        size = expected.abs().nan_to_num(nan=0.0, posinf=0.0).max()  # what overflows, overflows in both
        return torch.allclose(got, expected, rtol=1e-3, atol=1e-3 * float(size), equal_nan=True)

    def _run_from_tap(self, h: Tensor) -> Tensor:
        if self._tap_module is None:
            return self._root(h)  # type: ignore[no-any-return]
        with output_replaced(self._tap_module, h):
            return self._root(self._dummies(h))  # type: ignore[no-any-return]


def batch_size(grown: Growth, device: torch.device) -> int:
    """How many samples to run at a time."""
    by_widest = working_bytes(device, _BATCH_BYTES) // (8 * max(1, grown.widest))
    by_columns = working_bytes(device, _COLUMN_BYTES) // (8 * max(1, grown.columns))
    return max(1, min(_LARGEST_BATCH if device.type == "cpu" else _LARGEST_BATCH_ON_GPU, by_widest, by_columns))


def _rows(example: Tensor, n: int) -> Tensor:
    """So many samples: the first ones again where there are too few."""
    return example[torch.arange(n, device=example.device) % len(example)]


def _batch_unlike(model: nn.Module, example: Tensor) -> int:
    """A small size for a batch that no other size in the model is equal to: a tracer takes equal sizes for one."""
    sizes = own_sizes(model, example)
    return next((n for n in (3, 5, 7, 11, 13, 17, 19) if n not in sizes), 23)


def _and_between(samples: Tensor) -> Tensor:
    """Samples, and what is halfway between each and the next."""
    if not samples.is_floating_point():
        return samples
    return torch.cat([samples, torch.lerp(samples, samples.roll(1, 0), 0.5)])
