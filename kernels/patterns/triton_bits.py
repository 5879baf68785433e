"""Bits in Triton: packed into words, and words mixed into hashes of 128 bits, as in csrc/hash.hpp and csrc/patterns.cpp."""

from __future__ import annotations

import triton
import triton.language as tl

_FIRST_A, _FIRST_B = tl.constexpr(0x243F6A8885A308D3), tl.constexpr(0x13198A2E03707344)  # digits of pi
_STEP = tl.constexpr(0xD6E8FEB86659FD93)


@triton.jit
def _mixed(x):
    """splitmix64 (Steele, Lea, Flood 2014), uint64."""
    x = x + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def first_hash(POINTS: tl.constexpr):
    """Of no words: the two halves, (POINTS,), uint64."""
    nothing = tl.zeros((POINTS,), tl.uint64)
    return nothing + _FIRST_A, nothing + _FIRST_B


@triton.jit
def next_hash(a, b, word):
    """With a word, int64, after those that it is of."""
    bits = word.to(tl.uint64, bitcast=True)
    return _mixed(a ^ bits), _mixed(b + bits * _STEP)


@triton.jit
def store_hash(hashes, points, present, a, b):
    """To (n_points, 2), int64."""
    tl.store(hashes + 2 * points, a.to(tl.int64, bitcast=True), mask=present)
    tl.store(hashes + 2 * points + 1, b.to(tl.int64, bitcast=True), mask=present)


@triton.jit
def packed(z, breakpoints, is_unit, BREAKPOINTS: tl.constexpr):
    """The bits z > breakpoint of z, (rows, columns), unit by unit, as words, (rows, columns * BREAKPOINTS / 64), int64.

    columns are a power of 2, 32 or more, and BREAKPOINTS 1 or 2, of all units the same; bits of what ``is_unit``, (columns,),
    has not are 0. Halves of words are summed up, of 32 bits, as the GPU's integers have.
    """
    UNITS: tl.constexpr = 32 // BREAKPOINTS  # whose bits are half a word
    HALVES: tl.constexpr = z.shape[1] // UNITS
    column = tl.arange(0, z.shape[1])
    bits = tl.zeros(z.shape, tl.int32)
    for which in tl.static_range(BREAKPOINTS):
        bit = tl.where(is_unit, 1 << (column % UNITS * BREAKPOINTS + which), 0)
        bits += tl.where(z > tl.load(breakpoints + which), bit[None, :], 0)
    halves = tl.sum(tl.reshape(bits, (z.shape[0], HALVES, UNITS)), axis=2).to(tl.int64) & 0xFFFFFFFF
    if HALVES > 1:
        halves = tl.reshape(halves, (z.shape[0], HALVES // 2, 2)) << (32 * tl.arange(0, 2).to(tl.int64))[None, None, :]
        halves = tl.sum(halves, axis=2)
    return halves


@triton.jit
def at_breakpoints(z, breakpoints, is_unit, BREAKPOINTS: tl.constexpr):
    """Whether a unit is exactly at a breakpoint: (rows,), int32."""
    at_one = tl.zeros(z.shape, tl.int32)
    for which in tl.static_range(BREAKPOINTS):
        at_one = at_one | ((z == tl.load(breakpoints + which)) & is_unit[None, :]).to(tl.int32)
    return tl.max(at_one, axis=1)


@triton.jit(do_not_specialize=["n_points", "n_words", "first_word"])
def pack(z, breakpoints, words, n_points, n_units, n_breakpoints, n_words, first_word, POINTS: tl.constexpr):
    """The bits z > breakpoint of z, (n_points, n_units), unit by unit, to words (n_points, n_words), int64, from first_word on.

    Breakpoints are of the type of z. A program packs one word of a tile of points.
    """
    words_of_z = tl.cdiv(n_units * n_breakpoints, 64)
    number, tile = tl.program_id(0) % words_of_z, tl.program_id(0) // words_of_z  # there may be more than 65,535 of both
    points = tile.to(tl.int64) * POINTS + tl.arange(0, POINTS)
    place = tl.arange(0, 64)
    bit = number * 64 + place
    unit = bit // n_breakpoints
    present = points < n_points
    is_unit = unit < n_units
    at = tl.load(breakpoints + bit % n_breakpoints)
    value = tl.load(z + points[:, None] * n_units + unit[None, :], mask=present[:, None] & is_unit[None, :], other=0.0)
    above = (value > at[None, :]) & is_unit[None, :]
    word = tl.sum(above.to(tl.int64) << place.to(tl.int64)[None, :], axis=1)
    tl.store(words + points * n_words + first_word + number, word, mask=present)


@triton.jit(do_not_specialize=["n_points", "n_words"])
def hashed(words, hashes, n_points, n_words, POINTS: tl.constexpr):
    """The hashes, (n_points, 2), of words, (n_points, n_words); both int64."""
    points = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    present = points < n_points
    a, b = first_hash(POINTS)
    for number in range(n_words):
        a, b = next_hash(a, b, tl.load(words + points * n_words + number, mask=present, other=0))
    store_hash(hashes, points, present, a, b)
