"""Any tail on any device, by PyTorch: chunks of pairs that fit the cache, three sums a pair and output, no path kept.

The tail runs on a chunk at a time; the sums are taken of as many chunks together as their outputs fit the cache, so that the
two dozen small operations that they cost are paid seldom. The deviation from the chord is taken of the outputs:
u(λ) = y(λ) - y_i - λ (y_j - y_i) is zero at both ends, so the m - 2 interior points are all that is run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

from lmn.kernels.connectivity.problem import CONSTANT, TOLERANCE, Problem, Progress
from lmn.kernels.threads import torch_threads

_CACHE_BYTES = 3 << 19  # of a chunk's widest intermediate result, a core: fastest for 100 to 6,000 values a sample
_GPU_BYTES = 1 << 28
_MOST_CACHE_BYTES = 1 << 23  # however many cores: memory is bounded
_MOST_PAIRS, _MOST_CHUNKS = 1 << 16, 16  # of which the sums are taken together: progress is told after each
_SINGLES_A_DOUBLE = 8  # samples at a time in float32, whose convolutions seldom copy, for each of float64
_SUMS_BYTES, _SUMS_BYTES_ON_GPU = 1 << 22, 1 << 26
_NOISE_POINTS = 256
_BYTES_AN_OUTPUT = 80  # of a pair, in float64, while its sums become r^2


def connectivity(problem: Problem, out: Tensor, progress: Progress) -> int:
    """Fill ``out``, shape (n_points, n_points). Returns the number of pairs done again in float64."""
    pairs = problem.pairs
    out.fill_diagonal_(1)
    single = problem.samples.dtype == torch.float32
    with torch.no_grad(), torch_threads(problem.threads), _freed_memory_kept(out.device):
        runner = _Runner(problem, problem.samples)
        again = _Runner(problem, problem.samples.double()) if single and problem.double else None
        redone = 0
        batch = runner.pairs_a_batch
        for first in range(0, len(pairs), batch):
            i, j = (torch.from_numpy(x).to(out.device) for x in pairs.numbered(first, first + batch))
            count = len(i)
            r2, error = runner.r2(i, j)
            out[i, j] = out[j, i] = r2.to(out.dtype)
            wrong = ~(error <= TOLERANCE)
            if again is not None and bool(wrong.any()):
                redone += int(wrong.sum())
                _redo(again, i[wrong], j[wrong], out)
            progress(count)
    return redone


class ByTheTail:
    """Does pairs again, by the tail in float64, that a kernel has given up; made ready when the first comes."""

    def __init__(self, problem: Problem, out: Tensor) -> None:
        self._problem, self._out = problem, out

    def redo(self, i: Tensor, j: Tensor) -> None:
        with torch.no_grad(), torch_threads(self._problem.threads), _freed_memory_kept(self._out.device):
            _redo(self._runner, i, j, self._out)

    @cached_property
    def _runner(self) -> _Runner:
        return _Runner(self._problem, self._problem.samples.double())


def _redo(runner: _Runner, i: Tensor, j: Tensor, out: Tensor) -> None:
    for part in range(0, len(i), runner.pairs_a_batch):
        these = slice(part, part + runner.pairs_a_batch)
        r2, _ = runner.r2(i[these], j[these])
        out[i[these], j[these]] = out[j[these], i[these]] = r2.to(out.dtype)


@contextmanager
def _freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Have the C library keep what each chunk frees for the next one, and give it back to the system at the end.

    glibc gives freed memory back past a threshold that grows with the largest block freed so far, 32 MiB at most; below it,
    every chunk pays for its pages again, a fifth to a third of its time. The block is never written to.
    """
    if device.type != "cpu":
        yield
        return
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")
    try:
        yield
    finally:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)


def _extreme(y: Tensor) -> Tensor | None:
    """1 / the outputs' sizes, shape (n_out,), where their squares would leave their dtype's range; otherwise None."""
    size = y.abs().amax(0)
    size = torch.where(size > 0, size, 1)
    limit = torch.finfo(y.dtype).tiny ** 0.25
    return None if bool(((size > limit) & (size < 1 / limit)).all()) else 1 / size


def _rounding_noise(problem: Problem, y: Tensor) -> Tensor:
    """The mean square of the float32 outputs' errors, (n_out,), float64: at the samples, and at places between some.

    The samples alone may have none, where they are numbers that float32 holds and sums exactly.
    """
    errors = [y.double() - problem.y]
    if problem.double:
        generator, n, count = torch.Generator().manual_seed(0), problem.n_points, _NOISE_POINTS
        i, j = (torch.randint(n, (count,), generator=generator, device="cpu").to(y.device) for _ in range(2))
        t = torch.rand(count, generator=generator, device="cpu").to(problem.samples)
        t = t.reshape(-1, *[1] * (problem.samples.ndim - 1))
        for part in torch.arange(count, device=y.device).split(problem.batch):
            between = torch.lerp(problem.samples[i[part]], problem.samples[j[part]], t[part])
            double = problem.tail(between.double())
            errors.append(problem.tail(between).double() - double)
    return torch.cat(errors).square().mean(0)


class _Runner:
    def __init__(self, problem: Problem, h: Tensor) -> None:
        self._problem = problem
        self._h = h
        m, n_out = problem.m, problem.y.shape[1]
        t = torch.arange(1, m - 1, device=h.device, dtype=torch.float64) / (m - 1)
        self._t = t.to(h.dtype)
        self._moments = torch.stack([torch.ones_like(t), t - 0.5]).to(h.dtype)  # (2, m - 2)
        self._ones = torch.ones_like(self._t)
        on_cpu = h.device.type == "cpu"
        singles = _SINGLES_A_DOUBLE if on_cpu else 2
        self._samples_a_call = problem.batch * (singles if h.dtype == torch.float32 else 1)
        self._y = torch.cat([problem.tail(part.clone()) for part in h.split(problem.batch)])
        self._scale = _extreme(self._y)
        steps = (m - 2) * h.element_size()
        most = max(1, (_SUMS_BYTES if on_cpu else _SUMS_BYTES_ON_GPU) // ((2 * steps + _BYTES_AN_OUTPUT) * n_out))
        self._chunk = min(most, self._pairs_of(steps * problem.widest))
        self.pairs_a_batch = self._chunk * min(_MOST_CHUNKS, most // self._chunk)
        self._noise = torch.zeros(n_out, dtype=torch.float64, device=h.device)
        if h.dtype == torch.float32:
            self._noise += _rounding_noise(problem, self._y)
        if self._scale is not None:
            self._noise *= self._scale.double() ** 2

    def _pairs_of(self, n_bytes: int) -> int:
        """The pairs that fit the cache with so many bytes each."""
        cache = min(_CACHE_BYTES * self._problem.threads, _MOST_CACHE_BYTES)
        budget = cache if self._h.device.type == "cpu" else _GPU_BYTES
        return max(1, min(_MOST_PAIRS, budget // n_bytes))

    def _outputs(self, i: Tensor, j: Tensor) -> Tensor:
        """The tail at the interior points of pairs: (m - 2, n_pairs, n_out)."""
        t, m = self._t.reshape(-1, *[1] * self._h.ndim), self._problem.m
        y = self._y.new_empty(m - 2, len(i), self._y.shape[1])
        for first in range(0, len(i), self._chunk):
            part = slice(first, first + self._chunk)
            h_i = self._h[i[part]]
            path = torch.addcmul(h_i, t, self._h[j[part]] - h_i)  # (m - 2, n_pairs, ...)
            outputs = [self._problem.tail(some) for some in path.flatten(0, 1).split(self._samples_a_call)]
            y[:, part] = (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unflatten(0, path.shape[:2])
        return y

    def r2(self, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """L of pairs, shape (n_pairs,), float64, and the estimated rounding error of each."""
        m, problem = self._problem.m, self._problem
        y = self._outputs(i, j)
        y_i = self._y[i]
        u = y - torch.addcmul(y_i, self._t[:, None, None], self._y[j] - y_i)
        dy = problem.y[j] - problem.y[i]
        if self._scale is not None:
            u, dy = u.mul_(self._scale), dy.mul_(self._scale)
        sums = (self._moments @ u.flatten(1)).reshape(2, *y_i.shape).double()
        squares = (
            (self._ones @ u.square_().flatten(1)).reshape(y_i.shape).double()
        )  # 10 times as fast as torch's norms and sums
        sxx = m * (m + 1) / (12 * (m - 1))
        sxy = torch.add(sums[1], dy, alpha=sxx)
        rest = squares.addcmul_(sums[0], sums[0], value=-1 / m).addcmul_(sums[1], sums[1], value=-1 / sxx).clamp_(min=0)
        total = torch.addcmul(rest, sxy, sxy, value=1 / sxx)
        if u.dtype == torch.float64:
            size = torch.maximum(problem.y[i].abs(), problem.y[j].abs())
            size = size if self._scale is None else size * self._scale
            unexplained = torch.where(total <= m * (CONSTANT * size) ** 2, 0.0, rest / total)
            return 1 - unexplained.mean(1), torch.zeros_like(total[:, 0])
        still = (total == 0) & (dy == 0)  # a dead output
        inverse = total.clamp_(min=torch.finfo(torch.float64).tiny).reciprocal_()  # 0/0, of a constant output, is 0
        unexplained = (rest * inverse).mean(1)
        error = rest.mul_(4 * self._noise).sqrt_().add_(self._noise * (m - 2)).mul_(inverse).clamp_(max=1)
        error.masked_fill_(still, 0)
        return 1 - unexplained, error.mean(1)
