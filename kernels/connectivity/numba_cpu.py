"""Chains on the CPU, by Numba: the algorithm of csrc/connectivity.hpp in loops that LLVM vectorises.

A tile is 64 pairs (i, j), in lanes; the columns of all matrices in it are steps along the segments x lanes. A core is called
through its address, on a row of columns at a time: the kernel is compiled once a precision, whatever the activations.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, register_jitable
from torch import Tensor

from lmn.kernels.connectivity.problem import CONSTANT, TOLERANCE, Chain, Problem, Progress
from lmn.kernels.connectivity.torch_eager import ByTheTail
from lmn.kernels.cores_numba import FASTMATH, elementwise

_LANES = 64  # pairs in a tile; compiled loops take the number from an array, as LLVM unrolls one it knows instead
_OUTPUTS, _UNITS = 4, 3  # of a block in a product: its weights, inputs and sums are registers enough for 16, and fastest in 32
_TILE_BYTES = 1 << 18  # of deviations, which a product reads once a block of outputs: a part of the second-level cache
_PAIRS_A_TASK = 64 * _LANES  # of one thread at a time: whole tiles

# Of a batch, between which progress is told and Ctrl-C is heard: a fraction of a second.
_PAIRS_A_BATCH = 1 << 17
_PRODUCTS_A_BATCH = 1 << 33


def connectivity(problem: Problem, out: Tensor, progress: Progress) -> int:
    """Fill ``out``, shape (n_points, n_points), float32 or float64. Returns the number of pairs done again in float64."""
    chain = problem.chain
    assert chain is not None
    if not chain.layers:  # affine
        out.fill_(1)
        return 0
    out.fill_diagonal_(1)
    matrix = out.numpy()
    single = problem.samples.dtype == torch.float32
    kernel = _Kernel(chain, problem.m, np.float32 if single else np.float64)
    in_double: _Kernel | None = None
    pairs, redone, by_the_tail = problem.pairs, 0, ByTheTail(problem, out)
    tasks = max(
        problem.threads,
        min(_PAIRS_A_BATCH, problem.threads * _PRODUCTS_A_BATCH // chain.n_products(problem.m)) // _PAIRS_A_TASK,
    )
    with ThreadPoolExecutor(problem.threads) as pool:
        for first in range(0, len(pairs), tasks * _PAIRS_A_TASK):
            i, j = pairs.numbered(first, first + tasks * _PAIRS_A_TASK)
            r2, error = kernel.r2(i, j, pool)
            if single:
                again = np.flatnonzero(~(error <= TOLERANCE))  # a NaN is among them
                if len(again):
                    in_double = in_double or _Kernel(chain, problem.m, np.float64)
                    r2[again], error[again] = in_double.r2(i[again], j[again], pool)
                    redone += len(again)
            matrix[i, j] = matrix[j, i] = r2
            given_up = ~(error <= problem.tolerance_f64)
            if problem.double and given_up.any():
                by_the_tail.redo(torch.from_numpy(i[given_up]), torch.from_numpy(j[given_up]))
            progress(len(i))
    return redone


class _Arrays(NamedTuple):
    """A chain for the compiled kernel, in one precision: "real". The units of all layers stand one after another.

    Attributes
    ----------
    first, units, cores : (n_layers,), int64
        Of each layer the first unit, the number of units, and the address of the compiled core.
    parameters : (n_layers, 2), real
        p0 and p1 of the cores.
    z : (n_units, n_points), float64
    scale, slope : (n_units,), real
    weights : (n_weights,), real
        Of all affine maps, see _packed.
    ends_in_activation : bool
    y : (n_out, n_points), float64
    noise : (n_out,), float64
        Variance that rounding adds to an output's deviation.
    single : bool
    t, centred : (m - 2,), real
        The segments' interior points, in (0, 1), and t - 1/2.
    steps : int
        The most that are taken at once.
    """

    first: np.ndarray
    units: np.ndarray
    cores: np.ndarray
    parameters: np.ndarray
    z: np.ndarray
    scale: np.ndarray
    slope: np.ndarray
    weights: np.ndarray
    ends_in_activation: bool
    y: np.ndarray
    noise: np.ndarray
    single: bool
    t: np.ndarray
    centred: np.ndarray
    steps: int


class _Scratch(NamedTuple):
    """What a thread works in.

    Attributes
    ----------
    z_i, dz, core_i, dcore : (n_units, lanes), real
        z of sample i, z of sample j less that, and the same of the cores.
    deviation, shift : (units of the widest layer, steps x lanes), real
        From the chord: of activations, which a product takes; of the next layer's pre-activations, which it gives.
    sums : (n_out, 3, lanes), real
        Over the steps, of an output's deviation u, of (t - 1/2) u and of u^2.
    """

    z_i: np.ndarray
    dz: np.ndarray
    core_i: np.ndarray
    dcore: np.ndarray
    deviation: np.ndarray
    shift: np.ndarray
    sums: np.ndarray


class _Kernel:
    def __init__(self, chain: Chain, m: int, dtype: type[np.floating]) -> None:
        layers, activations = chain.layers, [layer.activation for layer in chain.layers]
        units = np.array([len(layer.z) for layer in layers], np.int64)
        scale, slope = zip(*(a.by_unit(n) for a, n in zip(activations, units, strict=True)), strict=True)
        weights = [_packed(layer.weight) for layer in layers if layer.weight is not None]
        t = np.arange(1, m - 1) / (m - 1)
        most_steps = max(1, _TILE_BYTES // (int(units.max()) * _LANES * np.dtype(dtype).itemsize))
        self._arrays = _Arrays(
            first=np.cumsum(units) - units,
            units=units,
            cores=np.array([elementwise(a.core, dtype).address for a in activations], np.int64),
            parameters=np.array([(a.p0, a.p1) for a in activations], dtype),
            z=chain.z,
            scale=np.concatenate(scale).astype(dtype),
            slope=np.concatenate(slope).astype(dtype),
            weights=np.concatenate([np.empty(0), *weights]).astype(dtype),
            ends_in_activation=layers[-1].weight is None,
            y=chain.y,
            noise=chain.rounding_noise(dtype),
            single=dtype == np.float32,
            t=t.astype(dtype),
            centred=(t - 0.5).astype(dtype),
            steps=math.ceil((m - 2) / math.ceil((m - 2) / most_steps)),  # balanced
        )

    def r2(self, i: np.ndarray, j: np.ndarray, pool: ThreadPoolExecutor) -> tuple[np.ndarray, np.ndarray]:
        """L of pairs and its estimated rounding error: i and j, (n_pairs,), int64, to two (n_pairs,), float64.

        The tiles, and so the bits, are the same for any number of threads.
        """
        r2, error = np.empty(len(i)), np.empty(len(i))

        def run(first: int) -> None:
            task = slice(first, first + _PAIRS_A_TASK)
            _run(i[task], j[task], self._arrays, self._scratch(), r2[task], error[task])

        for _ in pool.map(run, range(0, len(i), _PAIRS_A_TASK)):
            pass
        return r2, error

    def _scratch(self) -> _Scratch:
        chain = self._arrays
        widest, columns, dtype = int(chain.units.max()), chain.steps * _LANES, chain.scale.dtype
        return _Scratch(
            *(_aligned((len(chain.z), _LANES), dtype) for _ in range(4)),
            deviation=_aligned((_whole_blocks(widest, _UNITS), columns), dtype),
            shift=_aligned((_whole_blocks(widest, _OUTPUTS), columns), dtype),
            sums=_aligned((len(chain.y), 3, _LANES), dtype),
        )


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that starts at a cache line: a vector that lies across two costs twice."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


@register_jitable
def _whole_blocks(count, block):
    return (count + block - 1) // block * block


def _packed(weight: np.ndarray) -> np.ndarray:
    """Weights (n_next, n_hidden) as [block of outputs][block of units][output][unit], filled up with zeros, flat."""
    n_next, n_hidden = weight.shape
    padded = np.zeros((_whole_blocks(n_next, _OUTPUTS), _whole_blocks(n_hidden, _UNITS)))
    padded[:n_next, :n_hidden] = weight
    return padded.reshape(-1, _OUTPUTS, padded.shape[1] // _UNITS, _UNITS).transpose(0, 2, 1, 3).ravel()


# ---- compiled --------------------------------------------------------------------------------------------------------

_OPTIONS = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy"}
_jit = njit(**_OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True)  # called from compiled code alone, cached with it


@intrinsic
def _apply_core(_typing_context, address, p0, p1, data, n):
    """Call the function that kernels/cores_numba.py: elementwise has compiled, on n values at the address ``data``."""

    def generate(context, builder, signature, arguments):
        where, first, second, values, count = arguments
        real = context.get_value_type(signature.args[1])
        integer = context.get_value_type(types.intp)
        function = ir.FunctionType(ir.VoidType(), (real, real, real.as_pointer(), integer)).as_pointer()
        pointer = builder.inttoptr(values, real.as_pointer())
        builder.call(builder.inttoptr(where, function), (first, second, pointer, count))
        return context.get_dummy_value()

    return types.void(types.intp, p0, p1, types.uintp, types.intp), generate


@njit(**_OPTIONS, cache=True)
def _run(i, j, chain, scratch, r2, error):
    """Fill L and its estimated rounding error of pairs, tile by tile; the last tile is filled up with the last pair."""
    n_layers, n_out, n_steps = len(chain.units), len(chain.y), len(chain.t)
    z_i, dz, core_i, dcore, deviation, shift, sums = scratch
    of_i, of_j = np.empty(_LANES, np.uintp), np.empty(_LANES, np.uintp)  # unsigned: no check for counting from the end
    dy, least, unexplained, wrong = np.empty(_LANES), np.empty(_LANES), np.empty(_LANES), np.empty(_LANES)
    for tile in range(0, len(i), _LANES):
        for lane in range(_LANES):
            pair = min(tile + lane, len(i) - 1)
            of_i[lane], of_j[lane] = i[pair], j[pair]
        for layer in range(n_layers):
            first, units, core = chain.first[layer], chain.units[layer], chain.cores[layer]
            p0, p1 = chain.parameters[layer, 0], chain.parameters[layer, 1]
            _set_ends(of_i, of_j, first, units, core, p0, p1, chain.z, z_i, dz, core_i, dcore)
        sums[:] = 0
        for step in range(0, n_steps, chain.steps):
            t, centred = chain.t[step : step + chain.steps], chain.centred[step : step + chain.steps]
            packed = 0
            for layer in range(n_layers):
                first, units, core = chain.first[layer], chain.units[layer], chain.cores[layer]
                p0, p1 = chain.parameters[layer, 0], chain.parameters[layer, 1]
                scale, slope, last = chain.scale, chain.slope, layer == n_layers - 1
                _deviate(first, units, core, p0, p1, scale, slope, t, z_i, dz, core_i, dcore, layer > 0, shift, deviation)
                if last and chain.ends_in_activation:
                    for k in range(n_out):
                        _accumulate(deviation[k], t, centred, sums[k])
                    break
                size = _whole_blocks(units, _UNITS) * _OUTPUTS
                for k in range(0, n_out if last else chain.units[layer + 1], _OUTPUTS):
                    row = 0 if last else k  # the last products are used up at once
                    products = shift[row : row + _OUTPUTS]
                    _multiply(chain.weights[packed : packed + size], deviation, len(t) * _LANES, products)
                    packed += size
                    if last:
                        for output in range(k, min(k + _OUTPUTS, n_out)):
                            _accumulate(products[output - k], t, centred, sums[output])
        _reduce(of_i, of_j, chain.y, chain.noise, chain.single, n_steps, sums, dy, least, unexplained, wrong)
        for lane in range(min(_LANES, len(i) - tile)):
            r2[tile + lane] = 1 - unexplained[lane] / n_out
            error[tile + lane] = wrong[lane] / n_out


@_jit
def _set_ends(of_i, of_j, first, units, core, p0, p1, z, z_i, dz, core_i, dcore):
    """The ends of segments in one layer, and those of the cores along them."""
    for c in range(first, first + units):
        of_samples, z_i_c, dz_c, core_i_c, core_j_c = z[c], z_i[c], dz[c], core_i[c], dcore[c]
        for lane in range(_LANES):
            z_i_c[lane] = of_samples[of_i[lane]]
            dz_c[lane] = of_samples[of_j[lane]] - of_samples[of_i[lane]]  # in float64 before it is rounded
        for lane in range(len(z_i_c)):
            core_i_c[lane] = z_i_c[lane]
            core_j_c[lane] = z_i_c[lane] + dz_c[lane]
    _apply_core(core, p0, p1, core_i[first].ctypes.data, units * _LANES)
    _apply_core(core, p0, p1, dcore[first].ctypes.data, units * _LANES)
    for c in range(first, first + units):
        core_i_c, dcore_c = core_i[c], dcore[c]
        for lane in range(len(dcore_c)):
            dcore_c[lane] -= core_i_c[lane]


@_jit
def _deviate(first, units, core, p0, p1, scale, slope, t, z_i, dz, core_i, dcore, shifted, shift, deviation):
    """The deviations of a layer's activations from their chords, where their arguments deviate by shift, or by nothing:

    deviation[c] = scale[c] (core(z + t dz + shift[c]) - core's chord at t) + slope[c] shift[c].
    """
    n_columns = len(t) * _LANES
    for c in range(units):
        unit, row, u = first + c, deviation[c], shift[c]
        z_i_c, dz_c, core_i_c, dcore_c = z_i[unit], dz[unit], core_i[unit], dcore[unit]
        scale_c, slope_c = scale[unit], slope[unit]
        for step in range(len(t)):
            at, t_step = row[step * _LANES : (step + 1) * _LANES], t[step]
            for lane in range(len(dz_c)):
                at[lane] = z_i_c[lane] + t_step * dz_c[lane]
        if shifted:
            for q in range(n_columns):
                row[q] += u[q]
        _apply_core(core, p0, p1, row.ctypes.data, n_columns)
        for step in range(len(t)):
            at, t_step = row[step * _LANES : (step + 1) * _LANES], t[step]
            for lane in range(len(dcore_c)):
                at[lane] = scale_c * (at[lane] - (core_i_c[lane] + t_step * dcore_c[lane]))
        if shifted:
            for q in range(n_columns):
                row[q] += slope_c * u[q]
    deviation[units : _whole_blocks(units, _UNITS)] = 0  # what fills up the last block


@_jit
def _multiply(weights, columns, n_columns, products):
    """products[k] = sum over c of weights[c // 3, k, c % 3] columns[c], for four k.

    Twelve weights stay in registers while a loop, vectorised for whatever machine this is, passes over the columns.
    """
    y0, y1, y2, y3 = products[0], products[1], products[2], products[3]
    for q in range(n_columns):
        y0[q] = y1[q] = y2[q] = y3[q] = 0
    for c in range(0, len(weights) // _OUTPUTS, _UNITS):
        w = weights[c * _OUTPUTS : (c + _UNITS) * _OUTPUTS]
        w00, w01, w02, w10, w11, w12 = w[0], w[1], w[2], w[3], w[4], w[5]
        w20, w21, w22, w30, w31, w32 = w[6], w[7], w[8], w[9], w[10], w[11]
        row0, row1, row2 = columns[c], columns[c + 1], columns[c + 2]
        for q in range(n_columns):
            x0, x1, x2 = row0[q], row1[q], row2[q]
            y0[q] = y0[q] + w00 * x0 + w01 * x1 + w02 * x2
            y1[q] = y1[q] + w10 * x0 + w11 * x1 + w12 * x2
            y2[q] = y2[q] + w20 * x0 + w21 * x1 + w22 * x2
            y3[q] = y3[q] + w30 * x0 + w31 * x1 + w32 * x2


@_jit
def _accumulate(u, t, centred, sums):
    s1, s2, s3 = sums[0], sums[1], sums[2]
    for step in range(len(t)):
        u_step, centred_step = u[step * _LANES : (step + 1) * _LANES], centred[step]
        for lane in range(len(s1)):
            s1[lane] += u_step[lane]
            s2[lane] += centred_step * u_step[lane]
            s3[lane] += u_step[lane] * u_step[lane]


@_jit
def _reduce(of_i, of_j, y, noise, single, n_steps, sums, dy, least, unexplained, wrong):
    """The sums over outputs of 1 - r^2, and of its estimated rounding error; in float64 from here on."""
    m = n_steps + 2
    sxx = m * (m + 1) / (12 * (m - 1))
    one_by_m, one_by_sxx = 1 / m, 1 / sxx
    unexplained[:] = 0
    wrong[:] = 0
    for k in range(len(y)):
        y_k, s1, s2, s3, noise_k = y[k], sums[k, 0], sums[k, 1], sums[k, 2], noise[k]
        for lane in range(_LANES):
            y_i, y_j = y_k[of_i[lane]], y_k[of_j[lane]]
            dy[lane] = y_j - y_i
            least[lane] = m * (CONSTANT * max(abs(y_i), abs(y_j))) ** 2
        for lane in range(len(dy)):
            # y(t) = y_i + t dy + u(t), so cov(y, t) m = dy sxx + sum(t' u), and what a line leaves of y it leaves of u.
            u, tu, uu = np.float64(s1[lane]), np.float64(s2[lane]), np.float64(s3[lane])
            sxy = dy[lane] * sxx + tu
            rest = uu - u * u * one_by_m - tu * tu * one_by_sxx
            rest = 0.0 if rest < 0 else rest  # a NaN stays
            total = sxy * sxy * one_by_sxx + rest
            one_by_total = 1 / total
            estimate = (noise_k * n_steps + 2 * math.sqrt(noise_k * rest)) * one_by_total
            # What does not move, for its size, is constant, and so affine: but float32 knows that only of what stands still.
            unmoved = 1.0 if single and (total != 0 or dy[lane] != 0) else total * 0
            moves = total > least[lane]
            unexplained[lane] += rest * one_by_total if moves else total * 0
            estimate = estimate if moves else unmoved
            wrong[lane] += 1.0 if estimate > 1 else estimate
