"""What a Triton kernel is given, checked before its launch: a kernel reads past an array that is too small, and tells nobody.

Operators can be called by anyone, as ``torch.ops.lmn``. What is wrong with a call is a ValueError: kernels know arrays, and
what a user should do about a model is said above them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lmn.kernels.activations import CORES

Arrays = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # of arguments' names: what they have to be

_MOST_PROGRAMS = (2**31 - 1, 65_535, 65_535)  # along the axes of a grid, on NVIDIA


def of_type(dtype: torch.dtype, **shapes: tuple[int, ...]) -> Arrays:
    """Arrays of one type."""
    return {name: (dtype, shape) for name, shape in shapes.items()}


def single(**shapes: tuple[int, ...]) -> Arrays:
    """Arrays of float32."""
    return of_type(torch.float32, **shapes)


def require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def sizes_of(name: str, value: Tensor, n_axes: int) -> tuple[int, ...]:
    """The shape of an argument that has so many axes."""
    require(value.ndim == n_axes, f"{name} has to have {n_axes} axes; got shape {tuple(value.shape)}.")
    return tuple(value.shape)


def check_cores(*cores: int) -> None:
    """That there are such."""
    require(all(0 <= core < len(CORES) for core in cores), f"cores are numbered from 0 to {len(CORES) - 1}; got {cores}.")


def check_arrays(arguments: dict[str, Any], arrays: Arrays, device: torch.device) -> None:
    """That arguments are on a device, of their types, one row after the other, with as many values in rows as long as said."""
    for name, (dtype, shape) in arrays.items():
        value = arguments[name]
        fits = value.shape[-1:] == shape[-1:] and value.numel() == torch.Size(shape).numel()
        if not (fits and value.dtype == dtype and value.device == device and value.is_contiguous()):
            order = "" if value.is_contiguous() else ", not contiguous"
            raise ValueError(
                f"{name} has to be a contiguous {dtype} of shape {shape} on {device}, as the other arguments say; "
                f"got a {value.dtype} of shape {tuple(value.shape)} on {value.device}{order}."
            )


def check_grid(grid: tuple[int, ...]) -> None:
    """That a GPU takes so many programs."""
    fits = all(n <= most for n, most in zip(grid, _MOST_PROGRAMS, strict=False))
    require(fits, f"a launch of {grid} programs is more than a GPU takes; split it.")
