"""Which of a few configurations a Triton kernel is launched in: the fastest on the GPU at hand, timed once and remembered."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

from lmn.kernels.triton_checks import Arrays, check_arrays, check_grid, require
from lmn.kernels.triton_targets import Target, precision_on, target_of, warps_on

Grid = tuple[int, ...] | Callable[[dict[str, Any]], tuple[int, ...]]

_PRECISIONS = ("", "ieee", "tf32x3", "tf32")
_WAVES = 4  # programs a multiprocessor, from which on a launch says which configuration is the fastest


def _always(_arguments: dict[str, Any], _target: Target) -> bool:
    return True


@dataclass(frozen=True, eq=False)
class Choice:
    """A configuration: constexprs of tiles, warps of 32 threads, stages of loops.

    Attributes
    ----------
    tile : dict of str to int
    warps, stages : int
    roomy : bool
        Whether a thread may have all registers, where the compiler would rather spill a few to fit more warps.
    fits : callable
        (arguments, target) to whether it fits the registers: only then it is launched.
    """

    tile: dict[str, int]
    warps: int
    stages: int = 1
    roomy: bool = False
    fits: Callable[[dict[str, Any], Target], bool] = _always

    def __str__(self) -> str:
        tile = "".join(f"{name} {value}, " for name, value in self.tile.items())
        return f"{tile}{self.warps} warps" + (f", {self.stages} stages" if self.stages > 1 else "")

    def options(self, backend: str) -> dict[str, int]:
        """As a launch takes it."""
        room = ({"maxnreg": 255} if backend == "cuda" else {"waves_per_eu": 1}) if self.roomy else {}
        return {"num_warps": warps_on(backend, self.warps), "num_stages": self.stages} | room

    def config(self, backend: str) -> triton.Config:
        """As an autotuner takes it, which knows of AMD's own options as of constexprs."""
        options = self.options(backend)
        own = {name: options.pop(name) for name in ("waves_per_eu",) if name in options}
        return triton.Config(self.tile | own, **options)


@dataclass(frozen=True, eq=False)
class Tuned:
    """A kernel and the few configurations that it is launched in.

    Triton times those that fit at the first large launch for each value of ``key``, precision and device, and keeps what it
    found, on disk too where it can (from Triton 3.4 on). Kernels must come to the same when they are run again. A launch too
    small to tell, and Triton's interpreter, takes the first that fits; and so does each under
    ``torch.use_deterministic_algorithms``, as configurations add in other orders, and their last bits differ.

    Attributes
    ----------
    kernel : triton.JITFunction
    key : tuple of str
        Arguments for which the fastest may be another.
    choices : tuple of Choice
    arrays : callable
        The kernel's arguments by name to what its arrays have to be: those that it reads or writes.
    """

    kernel: Any
    key: tuple[str, ...]
    choices: tuple[Choice, ...]
    arrays: Callable[[dict[str, Any]], Arrays]
    _autotuners: dict[tuple[tuple[Choice, ...], torch.device], Any] = field(default_factory=dict)

    def fitting(self, arguments: dict[str, Any], target: Target) -> tuple[Choice, ...]:
        return tuple(choice for choice in self.choices if choice.fits(arguments, target))

    def launch(self, grid: Grid, precision: str = "", **arguments: Any) -> None:
        """Run the kernel on the device that its tensors are on, unless the grid is empty.

        Parameters
        ----------
        grid : tuple of int, or function of the constexprs to such
        precision : str
            "ieee", "tf32x3" or "tf32", of the kernel's products; by default what the device does float32 with.

        Raises
        ------
        ValueError
            Arrays that are not what the kernel's other arguments say, or a device that can't run it.
        """
        device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
        require(precision in _PRECISIONS, f"the precision of products is one of {_PRECISIONS}; got {precision!r}.")
        check_arrays(arguments, self.arrays(arguments), device)
        takes_precision = "PRECISION" in self.kernel.arg_names
        launches = _recorded.get()
        if launches is not None:
            launches.append(Launch(self, arguments | ({"PRECISION": precision} if takes_precision else {})))
            return
        target = target_of(device)
        backend = target.backend
        if takes_precision:
            arguments["PRECISION"] = precision or precision_on(backend)
        choices = self.fitting(arguments, target)
        first = choices[0]
        size = grid(first.tile) if callable(grid) else grid
        check_grid(size)
        if not math.prod(size):
            return
        if backend == "cpu":
            self.kernel[grid](**arguments, **first.tile)
            return
        with torch.cuda.device(device):
            waves = math.prod(size) / torch.cuda.get_device_properties(device).multi_processor_count
            if len(choices) == 1 or waves < _WAVES or torch.are_deterministic_algorithms_enabled():
                self.kernel[grid](**arguments, **first.tile, **first.options(backend))
            else:
                self._fastest_of(choices, device, backend)[grid](**arguments)

    def _fastest_of(self, choices: tuple[Choice, ...], device: torch.device, backend: str) -> Any:
        if (choices, device) not in self._autotuners:
            configs = [each.config(backend) for each in choices]
            key = [*self.key, *(name for name in ("PRECISION",) if name in self.kernel.arg_names)]
            on_disk = {"cache_results": True} if "cache_results" in inspect.signature(triton.autotune).parameters else {}
            self._autotuners[choices, device] = triton.autotune(configs=configs, key=key, **on_disk)(self.kernel)
        return self._autotuners[choices, device]


@dataclass(frozen=True, eq=False)
class Launch:
    """What a kernel was to be launched with, but for a choice among its configurations."""

    tuned: Tuned
    arguments: dict[str, Any]


_recorded = ContextVar[list[Launch] | None]("_recorded", default=None)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within, launches are noted here and not made."""
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)
