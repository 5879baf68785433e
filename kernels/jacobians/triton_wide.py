"""The Triton kernel of the inner products of wide chains' Jacobians: a sweep's last product, which goes to no memory."""

from __future__ import annotations

import triton
import triton.language as tl

from lmn.kernels.triton_dot import dot_added
from lmn.kernels.triton_products import product_tile, times_slopes


@triton.jit(do_not_specialize=["n_rows", "rows_a_point"])
def gram_products(
    a,
    weights,
    slopes,
    out,
    n_rows,
    n_in,
    n_out,
    rows_a_point,
    SLOPED: tl.constexpr,
    ROWS: tl.constexpr,
    INS: tl.constexpr,
    OUTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of each point's rows, a times weights, (n_rows, n_in) by (n_in, n_out), the inner products, (n_rows, rows_a_point).

    With SLOPED rows are first multiplied by the slopes, (n_rows // rows_a_point, n_out), of their point. A program takes the
    points of which ROWS hold all rows, and all columns, some after the other: of the rows of several points it makes all inner
    products, and stores those of one.
    """
    local = tl.arange(0, ROWS)
    a_program = ROWS // rows_a_point * rows_a_point
    rows = tl.program_id(0).to(tl.int64) * a_program + local
    present = (local < a_program) & (rows < n_rows)
    total = tl.zeros((ROWS, ROWS), tl.float32)
    for begin in range(0, n_out, OUTS):
        outs = begin + tl.arange(0, OUTS)
        values = product_tile(a, weights, rows, present, outs, n_in, n_out, ROWS, INS, OUTS, PRECISION)
        if SLOPED:
            mask = present[:, None] & (outs < n_out)[None, :]
            values = times_slopes(values, slopes, rows, rows_a_point, outs, n_out, mask)
        total = dot_added(total, values, tl.trans(values), PRECISION)
    of_one = (local // rows_a_point)[:, None] == (local // rows_a_point)[None, :]
    place = out + rows[:, None] * rows_a_point + (local % rows_a_point)[None, :]
    tl.store(place, total, mask=present[:, None] & present[None, :] & of_one)
