"""A model as a function of its samples: traced, cut at the tap, and kept readable as it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from io import StringIO

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from lmn.checks import called_once, check_initialised, check_no_way_around, check_takes_one_input, checked_outputs
from lmn.errors import LmnError, in_short
from lmn.kernels.program import Program
from lmn.lowering import ChainStep, NotAChain, lower
from lmn.preserve import preserved
from lmn.program import program
from lmn.selection import Root, Select
from lmn.submodules import output_replaced, outputs_of, submodule, unwrapped
from lmn.tracing import Growth, growth, traced_by_running, traced_symbolically, why_untraceable

_BATCH_BYTES = 1 << 21  # of the widest intermediate result of samples that are run at a time
_COLUMN_BYTES = 1 << 22  # of what a convolution copies
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
        self.tap = tap or None
        check_initialised(self.model)
        if select is not None and not callable(select):
            raise LmnError(f"select= is a function of the model's output, e.g. lambda out: out[0]; got {select!r}.")
        self._tap_module = submodule(model, self.tap)
        self._root = Root(self.model, select)
        self._casts: dict[torch.dtype, dict[str, Tensor]] = {}
        self._graph: fx.GraphModule | None = None
        with self.reading():
            check_takes_one_input(self.model)
            inputs = _three_rows(example)
            outputs = checked_outputs(self._root, inputs, called_once(self.tap, self._tap_module))
            samples = self._run_to_tap(inputs)
            self._batch_of_model = batch_size(growth(self._root, inputs))
            self.sample_shape = samples.shape[1:]
            self._example = samples[:2].clone()
            self._dummy = inputs[:1]
            if self.tap is not None:
                some = example[:_MOST_EXAMPLES]
                check_no_way_around(self.tap, self._substituted, some, self._run_to_tap(some))
            self.path, self.why = self._trace(samples, outputs)
            grown = growth(self._tail, samples)
            self.widest = max(self.sample_shape.numel(), grown.widest)
            self.batch = min(batch_size(grown), batch_size(Growth(self.widest, 0, False)))
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
        return torch.cat([self._run_to_tap(batch) for batch in inputs.split(self._batch_of_model)])

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

    def program(self, dtype: torch.dtype) -> Program:
        """The tail as affine steps and bends, in the given dtype, with a copy of the weights of now.

        Raises
        ------
        LmnError
            It has a part that is not piecewise linear, or not known to be; or it could not be traced.
        """
        if self._graph is None:
            raise LmnError(f"the model could not be traced ({self.why}), so the pieces that it is linear on are not known.")
        return program(self._graph, self._example[:1].to(dtype))

    # -- running ---------------------------------------------------------------------------------------------------------

    def _tail(self, h: Tensor) -> Tensor:
        out = self._substituted(self._dummies(h), h) if self._graph is None else self._in_dtype(self._graph, h)
        return out.reshape(len(h), -1).to(h.dtype)  # a model may cast its output

    def _substituted(self, inputs: Tensor, h: Tensor) -> Tensor:
        """The whole model on inputs, with h for the tap's output."""
        if self._tap_module is None:
            return self._in_dtype(self._root, h)
        with output_replaced(self._tap_module, h):
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
            return growth(self._tail, samples.double()).single
        except RuntimeError:
            return True

    def _dummies(self, h: Tensor) -> Tensor:
        """An input for each sample: where the tap is substituted, its values don't matter."""
        dummy = self._dummy.to(h.dtype) if self._dummy.is_floating_point() else self._dummy
        return dummy.expand(h.shape[0], *dummy.shape[1:]).clone()

    def _run_to_tap(self, inputs: Tensor) -> Tensor:
        if self._tap_module is None:
            return inputs.clone()
        return outputs_of(self._tap_module, self._root, inputs.clone(), str(self.tap))

    def _trace(self, samples: Tensor, outputs: Tensor) -> tuple[str, str]:
        why = why_untraceable(self.model)
        if why:
            return "whole model", why
        by_symbols = partial(traced_symbolically, self._root, self._tap_module)
        by_running = partial(traced_by_running, self._run_from_tap, samples)
        for trace in (by_symbols, by_running):
            try:
                with redirect_stderr(StringIO()):  # a graph that fails prints its code, also where that is no failure
                    self._graph = trace()
                    self._casts.clear()
                    # Of two sizes: a graph may have taken the batch's for a constant.
                    got = torch.cat([self._tail(samples.clone()), self._tail(samples[:2].clone())])
                expected = torch.cat([outputs, outputs[:2]])
                if torch.allclose(got, expected, rtol=1e-3, atol=1e-3 * float(outputs.abs().max())):
                    return "traced", ""
                why = why or "the traced graph gives other outputs than the model"
            except Exception as error:  # whatever a tracer can't follow, the model itself can
                why = why or in_short(error)
            self._graph = None
        self._casts.clear()
        return "whole model", why

    def _run_from_tap(self, h: Tensor) -> Tensor:
        if self._tap_module is None:
            return self._root(h)  # type: ignore[no-any-return]
        with output_replaced(self._tap_module, h):
            return self._root(self._dummies(h))  # type: ignore[no-any-return]


def batch_size(grown: Growth) -> int:
    """How many samples to run at a time."""
    by_widest = _BATCH_BYTES // (8 * max(1, grown.widest))
    return max(1, min(_LARGEST_BATCH, by_widest, _COLUMN_BYTES // (8 * max(1, grown.columns))))


def _three_rows(example: Tensor) -> Tensor:
    """Three samples, so that the batch has a size of its own: the first again where there are too few."""
    return torch.cat([example[:2], example[:1], example[:1]])[:3]
