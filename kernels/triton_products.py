"""Matrix products in Triton for layers that are too wide for one kernel, with what comes after them done on the way out.

Rows go to memory after each layer and come from there. A kernel that kept them and streamed the weights would save that: by
the model of triton_work.py, of all time on an H100 39 % of connectivity (three layers of 256 units), 31 % of Jacobians (two of
256), 15 % of patterns and 9 % of local complexity (four of 200); and would take more from the caches for it, as fewer rows fit
a program: connectivity/triton_wide.py has the numbers of the first, where it would save most; of the others nobody has them.

Why not cuBLAS: of float32 it gives what has no matrix unit, 67 TFLOP/s on an H100 by the data sheet, or TF32 alone, of three
digits, by a global switch. The products of those three layers of 256 would take 25 ms there at least, and 85 on an A100; these
take 22 and 82 by the model, in which nothing overlaps, and of all but connectivity what comes after them needs no pass of its
own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lmn.kernels.cores_triton import activation_with_slope
from lmn.kernels.triton_dot import dot_added

PLAIN, WITH_SLOPES, SLOPED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def rows_and_columns(n_columns, COLUMNS: tl.constexpr):
    """Which rows a program takes, int64, and which COLUMNS of n_columns, by their numbers.

    Those of all columns of the same rows run beside each other, so that these come from memory once, and for the rest from
    the second cache: weights are there in any order.
    """
    blocks = tl.cdiv(n_columns, COLUMNS)
    return (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks


@triton.jit
def product_tile(a, weights, rows, present, outs, n_in, n_out, ROWS: tl.constexpr, INS: tl.constexpr, OUTS: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """Some rows of a, (.., n_in), those present, by some columns of weights, (n_in, n_out): (ROWS, OUTS)."""
    total = tl.zeros((ROWS, OUTS), tl.float32)
    for first in range(0, n_in, INS):
        ins = first + tl.arange(0, INS)
        mask_w = (ins < n_in)[:, None] & (outs < n_out)[None, :]
        part = tl.load(a + rows[:, None] * n_in + ins[None, :], mask=present[:, None] & (ins < n_in)[None, :], other=0.0)
        w = tl.load(weights + ins.to(tl.int64)[:, None] * n_out + outs[None, :], mask=mask_w, other=0.0)
        total = dot_added(total, part, w, PRECISION)
    return total


@triton.jit
def times_slopes(values, slopes, rows, rows_a_point, outs, n_out, mask):
    """Rows, each times some columns of the slopes, (n_points, n_out), of its point."""
    of_point = (rows // rows_a_point)[:, None] * n_out + outs[None, :]
    return values * tl.load(slopes + of_point, mask=mask, other=0.0)


@triton.jit(do_not_specialize=["n_rows", "rows_a_point"])
def products(
    a,
    weights,
    out,
    bias,
    scales,
    straights,
    slopes,
    p0,
    p1,
    kink,
    n_rows,
    n_in,
    n_out,
    rows_a_point,
    EPILOGUE: tl.constexpr,
    CORE: tl.constexpr,
    ROWS: tl.constexpr,
    INS: tl.constexpr,
    OUTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = a times weights, (n_rows, n_in) by (n_in, n_out), and with it as its epilogue says:

    WITH_SLOPES: plus a bias, and through the activation after it, whose slopes go to ``slopes``, of the shape of out; SLOPED:
    each row times the slopes, (n_rows // rows_a_point, n_out), of its point.
    """
    tile, block = rows_and_columns(n_out, OUTS)
    rows = tile * ROWS + tl.arange(0, ROWS)
    outs = block * OUTS + tl.arange(0, OUTS)
    total = product_tile(a, weights, rows, rows < n_rows, outs, n_in, n_out, ROWS, INS, OUTS, PRECISION)
    mask = (rows < n_rows)[:, None] & (outs < n_out)[None, :]
    place = rows[:, None] * n_out + outs[None, :]
    if EPILOGUE == SLOPED:
        total = times_slopes(total, slopes, rows, rows_a_point, outs, n_out, mask)
    elif EPILOGUE == WITH_SLOPES:
        total += tl.load(bias + outs, mask=outs < n_out, other=0.0)[None, :]
        scale = tl.load(scales + outs, mask=outs < n_out, other=0.0)[None, :]
        straight = tl.load(straights + outs, mask=outs < n_out, other=0.0)[None, :]
        total, slope = activation_with_slope(total, scale, straight, p0, p1, kink, CORE)
        tl.store(slopes + place, slope, mask=mask)
    tl.store(out + place, total, mask=mask)
