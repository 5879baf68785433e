"""The Triton kernel of Jacobians of narrow chains: a tile of points forward in registers, then the rows of their Jacobians.

A row of a Jacobian is taken for all points of the tile at once; or, where the inner products of rows are wanted, all rows of
one point after the other. Either way a tile of 16 rows, or as many as a point has, goes through the chain's matrices, which
come from the cache, and is multiplied by slopes in between. Of few points these rounds are shared out among programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lmn.kernels.triton_chain import first_map, product, slopes_of, some_columns
from lmn.kernels.triton_dot import dot_added

STORED, GRAM = tl.constexpr(0), tl.constexpr(1)


@triton.jit
def _swept(rows, s1, s2, s3, matrices, columns, nothing, DEPTH: tl.constexpr, WIDTH: tl.constexpr, SOME: tl.constexpr,
           PRECISION: tl.constexpr):  # fmt: skip
    """Rows, (POINTS, WIDTH), through the matrices between the slopes, (POINTS, WIDTH) or (1, WIDTH), up to the last of them."""
    if DEPTH > 1:
        rows = product(rows, matrices, WIDTH, columns, None, nothing, WIDTH, SOME, PRECISION) * s1
    if DEPTH > 2:
        rows = product(rows, matrices + WIDTH * WIDTH, WIDTH, columns, None, nothing, WIDTH, SOME, PRECISION) * s2
    if DEPTH > 3:
        rows = product(rows, matrices + 2 * WIDTH * WIDTH, WIDTH, columns, None, nothing, WIDTH, SOME, PRECISION) * s3
    return rows


@triton.jit
def _of_point(slopes, which, POINTS: tl.constexpr):
    """One point's slopes, (1, WIDTH)."""
    return tl.sum(tl.where((tl.arange(0, POINTS) == which)[:, None], slopes, 0.0), axis=0)[None, :]


@triton.jit
def _share(rounds):
    """The rounds of this program, among those of the same points: from one to before another."""
    which, programs = tl.program_id(1), tl.num_programs(1)
    each = tl.cdiv(rounds, programs)
    return which * each, tl.minimum((which + 1) * each, rounds)


@triton.jit(do_not_specialize=["n_points", "n_in", "n_rows", "n_columns"])
def fused_jacobians(
    x,
    first,
    first_bias,
    weights,
    biases,
    scales,
    straights,
    parameters,
    start,
    matrices,
    end,
    out,
    n_points,
    n_in,
    n_rows,
    n_columns,
    nothing,
    REVERSE: tl.constexpr,
    ENDS: tl.constexpr,
    MODE: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    POINTS: tl.constexpr,
    ROWS: tl.constexpr,
    INS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SOME: tl.constexpr,
    CORE0: tl.constexpr,
    CORE1: tl.constexpr,
    CORE2: tl.constexpr,
    CORE3: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of a tile of points x, (n_points, n_in): the Jacobians, whose rows are, with REVERSE, those of (n_points, n_rows,
    n_columns), else the columns of (n_points, n_columns, n_rows); or the inner products of their rows, at most ROWS,
    (n_points, n_rows, n_rows).

    first (n_in, WIDTH), weights (DEPTH - 1, WIDTH, WIDTH) and what goes with them are of the forward pass; start
    (n_rows, WIDTH), matrices (DEPTH - 1, WIDTH, WIDTH) and, with ENDS, end (WIDTH, n_columns) of the sweep, in its order.
    ``nothing`` is 0: loads that look the same in each round of a loop would be moved out of it, and take registers all at once.
    """
    points = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    present = points < n_points
    columns = tl.arange(0, WIDTH)
    z = first_map(x, first, first_bias, points, present, n_in, columns, WIDTH, POINTS, INS, PRECISION)
    s0, s1, s2, s3 = slopes_of(
        z, weights, biases, scales, straights, parameters, columns, nothing, DEPTH, WIDTH, SOME, CORE0, CORE1, CORE2, CORE3,
        PRECISION,
    )  # fmt: skip
    if REVERSE and DEPTH == 2:
        s0, s1 = s1, s0
    if REVERSE and DEPTH == 3:
        s0, s2 = s2, s0
    if REVERSE and DEPTH == 4:
        s0, s1, s2, s3 = s3, s2, s1, s0
    if MODE == STORED:
        of_point = out + points[:, None] * n_rows * n_columns
        row_stride, column_stride = n_columns if REVERSE else 1, 1 if REVERSE else n_rows
        first_row, end_row = _share(n_rows)
        for row in range(first_row, end_row):
            here = matrices + row * nothing
            rows = tl.load(start + row * WIDTH + columns)[None, :] * s0
            rows = _swept(rows, s1, s2, s3, here, columns, nothing, DEPTH, WIDTH, SOME, PRECISION)
            if ENDS:
                for begin in range(0, n_columns, COLUMNS):
                    at = begin + tl.arange(0, COLUMNS)
                    values = product(rows, end, n_columns, at, (at < n_columns)[None, :], nothing, WIDTH, SOME, PRECISION)
                    place = of_point + row * row_stride + at[None, :] * column_stride
                    tl.store(place, values, mask=present[:, None] & (at < n_columns)[None, :])
            else:
                place = of_point + row * row_stride + columns[None, :] * column_stride
                tl.store(place, rows, mask=present[:, None] & (columns < n_columns)[None, :])
    else:
        row = tl.arange(0, ROWS)
        PARTS: tl.constexpr = (WIDTH + SOME - 1) // SOME
        square = (row < n_rows)[:, None] & (row < n_rows)[None, :]
        first_point = tl.program_id(0).to(tl.int64) * POINTS
        first_which, end_which = _share(tl.minimum(POINTS, n_points - first_point).to(tl.int32))
        for which in range(first_which, end_which):
            here = matrices + which * nothing
            begins = start + which * nothing + row[:, None] * WIDTH + columns[None, :]
            rows = tl.load(begins, mask=(row < n_rows)[:, None], other=0.0) * _of_point(s0, which, POINTS)
            p1, p2, p3 = _of_point(s1, which, POINTS), _of_point(s2, which, POINTS), _of_point(s3, which, POINTS)
            rows = _swept(rows, p1, p2, p3, here, columns, nothing, DEPTH, WIDTH, SOME, PRECISION)
            gram = tl.zeros((ROWS, ROWS), tl.float32)
            if ENDS:
                for begin in range(0, n_columns, COLUMNS):
                    at = begin + tl.arange(0, COLUMNS)
                    values = product(rows, end, n_columns, at, (at < n_columns)[None, :], nothing, WIDTH, SOME, PRECISION)
                    gram = dot_added(gram, values, tl.trans(values), PRECISION)
            else:
                # Once, in a loop: beside the other products all of them would be shared out to warps as this square one is.
                for part in range(nothing, PARTS):
                    some = rows if PARTS == 1 else some_columns(rows, part, WIDTH, SOME)
                    gram = dot_added(gram, some, tl.trans(some), PRECISION)
            place = out + (first_point + which) * n_rows * n_rows + row[:, None] * n_rows + row[None, :]
            tl.store(place, gram, mask=square)
