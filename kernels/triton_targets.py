"""What differs between the GPUs that Triton compiles for."""

from __future__ import annotations

import torch


def precision_of(device: torch.device) -> str:
    """The input precision of float32 products: three TF32 products where the matrix unit has them, else float32 itself.

    TF32 keeps 10 bits of the mantissa; a sum of three products of halves keeps 21 or more (Ootomo, Yokota 2022). AMD's matrix
    unit multiplies float32, and so does the interpreter.
    """
    return "tf32x3" if device.type == "cuda" and torch.version.hip is None else "ieee"
