"""A ReLU network's regions in a square by splitting polygons in rational numbers: no tolerance, and nothing of lmn's."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

Point = tuple[Fraction, Fraction]
Affine = tuple[Fraction, Fraction, Fraction]  # a, b, c of a x + b y + c
Weights = Sequence[tuple[Sequence[Sequence[float]], Sequence[float]]]  # which are binary fractions


class Region(NamedTuple):
    """A polygon on which the units so far are affine."""

    polygon: list[Point]
    units: list[Affine]


def regions(weights: Weights, half: float) -> list[Region]:
    """The full-dimensional activation regions in [-half, half]²; their units are the network's outputs."""
    h, one, zero = Fraction(half), Fraction(1), Fraction(0)
    square = [(-h, -h), (h, -h), (h, h), (-h, h)]
    found = [Region(square, [(one, zero, zero), (zero, one, zero)])]
    for layer, (w, b) in enumerate(weights):
        if layer:
            found = [part for region in found for part in cut_by_units(region)]
        found = [
            Region(region.polygon, [combined(row, region.units, c) for row, c in zip(w, b, strict=True)]) for region in found
        ]
    return found


def area(polygon: list[Point]) -> Fraction:
    turned = polygon[1:] + polygon[:1]
    return sum((x * v - u * y for (x, y), (u, v) in zip(polygon, turned, strict=True)), Fraction(0)) / 2


def cut_by_units(region: Region) -> list[Region]:
    parts = [Region(region.polygon, [])]
    for unit in region.units:
        parts = [
            Region(side, [*part.units, unit if positive else (Fraction(0),) * 3])
            for part in parts
            for positive, side in sides(part.polygon, unit)
        ]
    return parts


def sides(polygon: list[Point], unit: Affine) -> list[tuple[bool, list[Point]]]:
    """The parts of a positive area in which the unit is positive, and in which it is not."""
    found = []
    for positive in (True, False):
        a, b, c = unit if positive else tuple(-x for x in unit)
        values = [a * x + b * y + c for x, y in polygon]
        side = []
        for k, (point, value) in enumerate(zip(polygon, values, strict=True)):
            following, after = polygon[(k + 1) % len(polygon)], values[(k + 1) % len(polygon)]
            if value >= 0:
                side.append(point)
            if value * after < 0:
                t = value / (value - after)
                side.append(tuple(p + t * (q - p) for p, q in zip(point, following, strict=True)))
        everywhere_zero = not any(values)
        if len(side) > 2 and area(side) > 0 and not (positive and everywhere_zero):
            found.append((positive, side))
    return found


def combined(row: Sequence[float], units: list[Affine], c: float) -> Affine:
    def total(k: int) -> Fraction:
        return sum((Fraction(w) * unit[k] for w, unit in zip(row, units, strict=True)), Fraction(0))

    return total(0), total(1), total(2) + Fraction(c)
