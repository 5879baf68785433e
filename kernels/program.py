"""A network as steps on tensors, each affine or of a known piecewise-linear kind: what regions are found from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmn.kernels.pieces import Pieces
from lmn.kernels.windows import Windows

Value = Any  # a Tensor with the batch first, or a tuple of them


@dataclass(frozen=True, eq=False)
class Step:
    """One operation on results that depend on the sample.

    Attributes
    ----------
    name : str
        Of the node, for messages.
    sources : tuple of int
        The results that it takes, by slot; the sample is in slot 0.
    target : int
        The slot that its result goes to.
    run : callable
        (sources, batch size) to the result, by torch.
    bend : Pieces, Windows or None
        What it is, if it is not affine: a pointwise activation of its one source, or the largest of each of some windows.
    shape : tuple of int
        Of its result for one sample.
    done : tuple of int
        Slots that nothing needs after it.
    """

    name: str
    sources: tuple[int, ...]
    target: int
    run: Callable[[Sequence[Value], int], Value]
    bend: Pieces | Windows | None
    shape: tuple[int, ...]
    done: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Program:
    """Steps from samples of shape (n, *sample_shape) to outputs, with weights of their own in one dtype. None writes in place.

    Attributes
    ----------
    steps : tuple of Step
    output : int
        The slot of the output.
    widest : int
        Values a sample of the widest result.
    in_dtype : callable
        The same program in another dtype, from the same weights.
    """

    steps: tuple[Step, ...]
    output: int
    widest: int
    in_dtype: Callable[[torch.dtype], Program]

    @property
    def bends(self) -> tuple[Step, ...]:
        """The steps that are not affine."""
        return tuple(step for step in self.steps if step.bend is not None)

    def __call__(self, h: Tensor) -> Tensor:
        """The outputs of samples, (n, n_out)."""
        out: Tensor = self._run(h, self.steps)[self.output]
        return out.reshape(len(h), -1)

    def visit(self, h: Tensor, at_bend: Callable[[Step, Tensor], None]) -> None:
        """Run samples up to the last bend, and tell what goes into each: units of shape (n, n_units)."""
        bends = self.bends
        if not bends:
            return
        last = self.steps.index(bends[-1])
        values = self._run(h, self.steps[:last], at_bend)
        at_bend(bends[-1], units_of([values[slot] for slot in bends[-1].sources], len(h)))

    def _run(self, h: Tensor, steps: Sequence[Step], at_bend: Callable[[Step, Tensor], None] | None = None) -> dict[int, Value]:
        values: dict[int, Value] = {0: h}
        for step in steps:
            sources = [values[slot] for slot in step.sources]
            if step.bend is not None and at_bend is not None:
                at_bend(step, units_of(sources, len(h)))
            values[step.target] = step.run(sources, len(h))
            for slot in step.done:
                del values[slot]
        return values


def units_of(sources: Sequence[Tensor], n: int) -> Tensor:
    """A bend's sources as units one after the other, (n, n_units)."""
    flat = [source.reshape(n, -1) for source in sources]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
