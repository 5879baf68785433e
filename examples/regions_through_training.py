"""The regions of a classifier of the plane through its training, with the local complexity around its samples.

python examples/regions_through_training.py        # about a minute
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from gallery import fit, mlp, options, scores
from torch import Tensor

import lmn
from lmn.animation import animate
from lmn.curves import curves


def spirals(n: int) -> tuple[Tensor, Tensor]:
    """Two arms, n points each."""
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(2 * n, generator=generator).sqrt() * 2.2 * math.pi
    y = torch.arange(2 * n) % 2
    radius, angle = t / (2.4 * math.pi), t + math.pi * y
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return x + 0.02 * torch.randn(x.shape, generator=generator), y


def main() -> None:
    short, out = options(__doc__)
    x, y = spirals(50 if short else 200)
    model, grid = mlp(2, 32, 32, 2), lmn.box([-1, -1], [1, 1], 64)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    moments = [0, 5, 10] if short else [0, 5, 10, 20, 35, 50, 75, 100, 150, 200, 300, 400, 600, 800, 1100, 1500, 2000]
    found, rows, before = [], [], 0
    for step in moments:
        fit(model, optimizer, x, y, step - before)
        before = step
        found.append(lmn.regions(model, grid, progress=False))
        complexity = lmn.local_complexity(model, x, r=0.02, n_directions=2, progress=False).mean
        measured = lmn.measure(model, x[:300], metrics=("lmn",), progress=False).lmn
        numbers = {"lmn": measured, "exact_regions": float(found[-1].count), "local_complexity": complexity}
        rows.append({"step": step, "wall_time": 0.0, **numbers, **scores(model, x, y, "train")})
        print(f"step {step}: {found[-1].count} regions, local complexity {complexity:.2f}")
    titles = [f"step {row['step']}: {row['exact_regions']:.0f} regions" for row in rows]

    def samples(ax: Any) -> None:
        for arm, colour in enumerate(("white", "black")):
            ax.scatter(*x[y == arm].T, s=7, color=colour, edgecolor="#555555", linewidth=0.4, zorder=3)

    animate(found, Path(out) / "regions_through_training.gif", titles=titles, seconds=8, decorate=samples)
    columns = ["lmn", "exact_regions", "local_complexity", "train_accuracy"]
    curves(rows, columns=columns, title="Two spirals").savefig(out / "regions_through_training.png", dpi=80)


if __name__ == "__main__":
    main()
