"""What differs between the GPUs that Triton compiles for."""

from __future__ import annotations

import os

import torch
import triton

VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])  # of Triton
IS_TRITON_3_2 = VERSION == (3, 2)


def backend_of(device: torch.device) -> str:
    """Triton's name of a device's vendor: "cuda" or "hip"; "cpu" of what its interpreter runs."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "cpu"
    if device.type != "cuda":
        raise ValueError(f"Triton kernels run on a GPU, or with TRITON_INTERPRET=1 in its interpreter; got arrays on {device}.")
    return "cuda" if torch.version.hip is None else "hip"


def precision_on(backend: str) -> str:
    """The input precision of float32 products: three TF32 products where the matrix unit has them, else float32 itself.

    TF32 keeps 10 bits of the mantissa; a sum of three products of halves keeps 21 or more (Ootomo, Yokota 2022). AMD's matrix
    unit multiplies float32, and so does the interpreter.
    """
    return "tf32x3" if backend == "cuda" else "ieee"


def warps_on(backend: str, warps: int) -> int:
    """Of so many warps of 32 threads: AMD's have twice as many threads."""
    return max(1, warps // 2) if backend == "hip" else warps
