"""What differs between the GPUs that Triton compiles for."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import triton
from triton.backends.compiler import GPUTarget

IS_TRITON_3_2, IS_TRITON_3_8 = (triton.__version__.startswith(version) for version in ("3.2.", "3.8."))


@dataclass(frozen=True)
class Target:
    """What runs a kernel, so far as it decides which configurations fit.

    Attributes
    ----------
    backend : str
        Triton's name of a vendor: "cuda" or "hip"; "cpu" of its interpreter.
    takes_64_rows : bool
        Whether products of 64 rows take a matrix from shared memory, and not through registers: on Hopper, and from Blackwell's
        data centre GPUs on.
    """

    backend: str
    takes_64_rows: bool = False

    @classmethod
    def of(cls, gpu: GPUTarget) -> Target:
        return cls(gpu.backend, gpu.backend == "cuda" and gpu.arch // 10 in (9, 10))


def target_of(device: torch.device) -> Target:
    """What a device is."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return Target("cpu")
    if device.type != "cuda":
        raise ValueError(f"Triton kernels run on a GPU, or with TRITON_INTERPRET=1 in its interpreter; got arrays on {device}.")
    if torch.version.hip is not None:
        return Target("hip")
    major, minor = torch.cuda.get_device_capability(device)
    return Target.of(GPUTarget("cuda", 10 * major + minor, 32))


def multiprocessors(device: torch.device) -> int:
    """Of a device; one where it is no GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def precision_on(backend: str) -> str:
    """The input precision of float32 products: three TF32 products where the matrix unit has them, else float32 itself.

    TF32 keeps 10 bits of the mantissa; a sum of three products of halves keeps 21 or more (Ootomo, Yokota 2022). AMD's matrix
    unit multiplies float32, and so does the interpreter.
    """
    return "tf32x3" if backend == "cuda" else "ieee"


def warps_on(backend: str, warps: int) -> int:
    """Of so many warps of 32 threads: AMD's have twice as many threads."""
    return max(1, warps // 2) if backend == "hip" else warps
