"""Which of a few configurations a Triton kernel is launched in: the fastest on the GPU at hand, timed once and remembered."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import triton
from torch import Tensor

from lmn.kernels.triton_report import Configuration

Grid = tuple[int, ...] | Callable[[dict[str, Any]], tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Choice:
    """A configuration: constexprs of tiles, warps of 32 threads, stages of loops.

    Attributes
    ----------
    tile : dict of str to int
    warps, stages : int
    """

    tile: dict[str, int]
    warps: int
    stages: int = 1

    @property
    def warps_here(self) -> int:
        """Warps of as many threads as AMD's have are half as many."""
        return max(1, self.warps // 2) if torch.version.hip is not None else self.warps

    def __str__(self) -> str:
        tile = " x ".join(map(str, self.tile.values()))
        return f"{tile + ', ' if tile else ''}{self.warps} warps" + (f", {self.stages} stages" if self.stages > 1 else "")


@dataclass(frozen=True, eq=False)
class Tuned:
    """A kernel and the few configurations that it is launched in.

    Triton times them all at the first launch for each value of ``key``, and keeps what it found, on disk too where it can
    (from Triton 3.4 on). Kernels must come to the same when they are run again. Triton's interpreter takes the first.

    Attributes
    ----------
    kernel : triton.JITFunction
    key : tuple of str
        Arguments for which the fastest may be another.
    choices : tuple of Choice
    """

    kernel: Any
    key: tuple[str, ...]
    choices: tuple[Choice, ...]

    def launch(self, grid: Grid, **arguments: Any) -> None:
        """Run the kernel on the device that its tensors are on.

        Parameters
        ----------
        grid : tuple of int, or function of the constexprs to such
        """
        device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
        if os.environ.get("TRITON_INTERPRET") == "1":
            self.kernel[grid](**arguments, **self.choices[0].tile)
            return
        with torch.cuda.device(device):
            self._tuned[grid](**arguments)

    @cached_property
    def _tuned(self) -> Any:
        configs = [triton.Config(each.tile, num_warps=each.warps_here, num_stages=each.stages) for each in self.choices]
        on_disk = {"cache_results": True} if "cache_results" in inspect.signature(triton.autotune).parameters else {}
        return triton.autotune(configs=configs, key=list(self.key), **on_disk)(self.kernel)

    def configurations(
        self, operation: str, label: str, constants: dict[str, Any], types: dict[str, str], defaults: Sequence[int] = (0,)
    ) -> Iterator[Configuration]:
        """For the report: all choices, of which those numbered as defaults must not spill."""
        for number, each in enumerate(self.choices):
            yield Configuration(
                operation,
                f"{label}, {each}",
                self.kernel,
                constants | each.tile,
                types,
                each.warps,
                each.stages,
                default=number in defaults,
            )
