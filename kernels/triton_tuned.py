"""Which of a few configurations a Triton kernel is launched in: the fastest on the GPU at hand, timed once and remembered."""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

from lmn.kernels.triton_checks import Arrays, check_arrays, check_grid, require
from lmn.kernels.triton_targets import Target, multiprocessors, precision_on, target_of, warps_on

Grid = tuple[int, ...] | Callable[[dict[str, Any]], tuple[int, ...]]

_PRECISIONS = ("", "ieee", "tf32x3", "tf32")
_WAVES = 4  # programs a multiprocessor, from which on a launch says which configuration is the fastest
_timing = threading.Lock()  # Triton's autotuners keep what they are doing; and nobody else should launch meanwhile


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
    found, on disk too where it can (from Triton 3.4 on): all later launches take that. Kernels must come to the same when they
    are run again. Until then a launch too small to tell, or into a CUDA graph, where nothing can be timed, takes the first that
    fits, and Triton's interpreter always does.

    Configurations add in other orders, and their last bits differ. Where those decide what is counted, equal points would
    differ between two launches: there, without a ``key``, the first that fits is taken always, and so it is of all kernels
    under ``torch.use_deterministic_algorithms``.

    Attributes
    ----------
    kernel : triton.JITFunction
    key : tuple of str, or None
        Arguments for which the fastest may be another; None where none is timed.
    choices : tuple of Choice
    arrays : callable
        The kernel's arguments by name to what its arrays have to be: those that it reads or writes.
    """

    kernel: Any
    key: tuple[str, ...] | None
    choices: tuple[Choice, ...]
    arrays: Callable[[dict[str, Any]], Arrays]
    _fastest: dict[tuple[Any, ...], Choice] = field(default_factory=dict)

    def fitting(self, arguments: dict[str, Any], target: Target) -> tuple[Choice, ...]:
        """Those that may be launched; the first of them if nobody takes the time."""
        found = tuple(choice for choice in self.choices if choice.fits(arguments, target))
        return found[:1] if self.key is None else found

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
            if len(choices) > 1 and not torch.are_deterministic_algorithms_enabled():
                waves = math.prod(size) / multiprocessors(device)
                can_time = waves >= _WAVES and not torch.cuda.is_current_stream_capturing()
                first = self._best_of(choices, grid, arguments, target, device, can_time) or first
            self.kernel[grid](**arguments, **first.tile, **first.options(backend))

    def _best_of(
        self,
        choices: tuple[Choice, ...],
        grid: Grid,
        arguments: dict[str, Any],
        target: Target,
        device: torch.device,
        can_time: bool,
    ) -> Choice | None:
        """The fastest for such arguments; None where that is not known and can't be found out by this launch."""
        assert self.key is not None  # or there would be no choice
        names = [*self.key, *(name for name in ("PRECISION",) if name in self.kernel.arg_names)]
        key = (choices, device, *(arguments[name] for name in names))
        with _timing:
            if key not in self._fastest and can_time:
                configs = [each.config(target.backend) for each in choices]
                on_disk = {"cache_results": True} if "cache_results" in inspect.signature(triton.autotune).parameters else {}
                autotuner = triton.autotune(configs=configs, key=names, **on_disk)(self.kernel)
                autotuner[grid](**arguments)
                found = [config.all_kwargs() for config in configs].index(autotuner.best_config.all_kwargs())
                self._fastest[key] = choices[found]
            return self._fastest.get(key)


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
