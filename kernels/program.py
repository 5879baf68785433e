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
    """Steps from samples of shape (n, *sample_shape) to outputs, with weights of their own in one dtype.

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

    @property
    def to_last_bend(self) -> Program:
        """The steps that the last bend needs, whose own result it is."""
        last = max((index for index, step in enumerate(self.steps) if step.bend is not None), default=-1)
        output = self.steps[last].target if last >= 0 else 0
        return Program(self.steps[: last + 1], output, self.widest, lambda dtype: self.in_dtype(dtype).to_last_bend)

    def __call__(self, h: Tensor, at_bend: Callable[[Step, Tensor], None] | None = None) -> Tensor:
        """The outputs, (n, n_out), of samples, which may be overwritten; at_bend gets what goes into bends, (n, n_units)."""
        values: dict[int, Value] = {0: h}
        for step in self.steps:
            sources = [values[slot] for slot in step.sources]
            if step.bend is not None and at_bend is not None:
                at_bend(step, units_of(sources, len(h)))
            values[step.target] = step.run(sources, len(h))
            for slot in step.done:
                values.pop(slot, None)
        out: Tensor = values[self.output]
        return out.reshape(len(h), -1)


def units_of(sources: Sequence[Tensor], n: int) -> Tensor:
    """A bend's sources as units one after the other, (n, n_units)."""
    flat = [source.reshape(n, -1) for source in sources]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
