"""The bits of samples' activation patterns, from what goes into each bend."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lmn import _core
from lmn.kernels.patterns.problem import Layout
from lmn.kernels.pieces import Pieces
from lmn.kernels.program import Program, Step
from lmn.kernels.windows import Windows


def largest_members(windows: Windows, units: Tensor) -> Tensor:
    """Which member of each window is the largest, the first of equal ones: (n, n_units) to (n, n_windows), int64."""
    signed = units if windows.sign > 0 else -units
    padded = torch.cat([signed, signed.new_full((len(units), 1), -torch.inf)], dim=1)  # where members are -1
    members = torch.from_numpy(windows.members).to(units.device)
    best = padded[:, members[:, 0]]
    position = torch.zeros(best.shape, dtype=torch.int64, device=units.device)
    for place in range(1, members.shape[1]):
        value = padded[:, members[:, place]]
        larger = value > best
        best = torch.where(larger, value, best)
        position[larger] = place
    return position


def lines_of(bend: Pieces | Windows, units: Tensor) -> tuple[Tensor, np.ndarray]:
    """Whose bits a bend's are, value by value and breakpoint by breakpoint whether it is above: (n, n_values)."""
    if isinstance(bend, Pieces):
        return units, bend.breakpoints
    position = largest_members(bend, units)
    bits = (position[:, :, None] >> torch.arange(bend.bits_each, device=units.device)) & 1
    return bits.flatten(1).float(), np.array([0.5])


def pack(step: Step, units: Tensor, words: np.ndarray, first_word: int, threads: int) -> None:
    """Write the bits of one bend into samples' words, (n, n_words), from units of shape (n, n_units)."""
    assert step.bend is not None
    z, breakpoints = lines_of(step.bend, units)
    array = np.ascontiguousarray((z if z.dtype == torch.float64 else z.float()).cpu().numpy())
    write = _core.pack_bits_f64 if array.dtype == np.float64 else _core.pack_bits_f32
    write(array, breakpoints, words, first_word, threads)


def tied(bend: Pieces | Windows, units: Tensor) -> Tensor:
    """Whether a sample is exactly where two pieces meet, or two members are the largest: (n, n_units) to (n,), bool."""
    if isinstance(bend, Pieces):
        at = torch.zeros(len(units), dtype=torch.bool, device=units.device)
        for place in bend.breakpoints.tolist():
            at |= (units == place).any(1)
        return at
    signed = units if bend.sign > 0 else -units
    padded = torch.cat([signed, signed.new_full((len(units), 1), -torch.inf)], dim=1)  # where members are -1
    members = padded[:, torch.from_numpy(bend.members).to(units.device)]  # (n, n_windows, size)
    return ((members == members.amax(2, keepdim=True)).sum(2) > 1).any(1)


def words_of(program: Program, samples: Tensor, threads: int, numbers: np.ndarray | None = None) -> np.ndarray:
    """The patterns of samples, (n, n_words), uint64.

    With numbers, (n,), of the samples there is one word more: a sample's number, and one, if it is exactly where pieces meet.
    """
    layout = Layout.of(program)
    first_words = dict(zip((step.target for step in program.bends), layout.first_words, strict=False))
    words = np.empty((len(samples), layout.n_words + (numbers is not None)), dtype=np.uint64)
    on_edge = np.zeros(len(samples), dtype=bool)

    def at_bend(step: Step, units: Tensor) -> None:
        pack(step, units, words, first_words[step.target], threads)
        if numbers is not None and step.bend is not None:
            np.logical_or(on_edge, tied(step.bend, units).cpu().numpy(), out=on_edge)

    program.visit(samples, at_bend)
    if numbers is not None:
        words[:, -1] = np.where(on_edge, numbers + 1, 0)
    return words
