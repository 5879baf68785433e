"""A model on a grid: what every operation starts from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lmn.checks import check_whole
from lmn.errors import LmnError
from lmn.grid import RegularGrid, Samples
from lmn.network import Network
from lmn.preserve import alone_with
from lmn.selection import Select
from lmn.submodules import unwrapped

_EXAMPLES = 32


class Subject:
    """A network on a grid, open for measuring: a context in which the model is in evaluation mode, and left as it was."""

    def __init__(
        self, model: nn.Module, grid: Samples | RegularGrid, tap: str | None = None, select: Select | None = None
    ) -> None:
        if not isinstance(model, nn.Module):
            raise LmnError(f"the model is {type(model).__name__}; give a torch.nn.Module.")
        check_whole(unwrapped(model))
        self.grid = grid
        with alone_with(unwrapped(model)):
            like = _like(unwrapped(model))
        example = grid.at(spread(grid.n_points, _EXAMPLES), like)
        if tap is None and not example.is_floating_point():
            raise LmnError(
                f"the samples are of dtype {example.dtype} and have no points between them; if they are tokens, name the "
                "submodule whose output is to be interpolated, e.g. tap='embedding'; if they are values, pass samples.float()."
            )
        if tap is None and like is not None and example.dtype != like.dtype:
            raise LmnError(
                f"the samples are {example.dtype} and the model is {like.dtype}; "
                f"pass samples.to({like.dtype}), or a model of the samples' dtype."
            )
        if like is not None and example.device != like.device:
            raise LmnError(f"the samples are on {example.device} and the model is on {like.device}; move one of them.")
        if example.is_meta:
            raise LmnError("the samples and the model are on the meta device and have no values; give them values first.")
        self._like = like
        self.network = Network(model, example, tap, select)

    def __enter__(self) -> Subject:
        self._reading = self.network.reading()
        self._reading.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._reading.__exit__(*exception)

    def like_model(self, inputs: Tensor) -> Tensor:
        """Inputs in the model's dtype and on its device."""
        return inputs if self._like is None else inputs.to(self._like)

    def samples(self, indices: Tensor) -> Tensor:
        """The activations at the tap of the points of the given indices, float32 or float64: maybe a view of the grid's."""
        if self.network.tap is None:
            h = self.grid.at(indices, self._like)
            return h if h.dtype == torch.float64 else h.float()
        h = torch.cat([self.network.samples(self.grid.at(part, self._like)) for part in indices.split(1024)])
        if not h.is_floating_point():
            raise LmnError(f"the tap's output is of dtype {h.dtype}; tap a submodule with a real-valued output.")
        if not bool(torch.isfinite(h).all()):
            raise LmnError("the activations at the tap are not finite (NaN or infinity); is the training diverged?")
        return h if h.dtype == torch.float64 else h.float()


def spread(n: int, most: int = 8) -> Tensor:
    """A few indices out of n, from the first to the last: samples to check by."""
    return torch.linspace(0, n - 1, min(most, n), dtype=torch.float64, device="cpu").long()


def _like(model: nn.Module) -> Tensor | None:
    """A parameter or buffer that shows the model's device and dtype."""
    tensors = (tensor for group in (model.parameters(), model.buffers()) for tensor in group if tensor.is_floating_point())
    return next(tensors, None)
