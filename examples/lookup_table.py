"""A lookup table against a compressed solution of the same data: equal on every sample, and told apart at once.

python examples/lookup_table.py        # seconds

On a circle, y = |x_1|. The table has a unit for each sample, which is active at that sample alone; the other network has two
units. Nothing is trained.
"""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import torch
from gallery import options
from matplotlib.collections import LineCollection
from matplotlib.colors import SymLogNorm
from torch import Tensor, nn

import lmn


def lookup_table(x: Tensor, y: Tensor) -> nn.Sequential:
    """Unit i is relu(x_i · x - c), c halfway between x_i · x_i = 1 and the nearest other sample's."""
    nearest = float((x @ x.T).fill_diagonal_(-1).max())
    c = (1 + nearest) / 2
    model = nn.Sequential(nn.Linear(2, len(x)), nn.ReLU(), nn.Linear(len(x), 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(x)
        model[0].bias.fill_(-c)
        model[2].weight.copy_(y[None] / (1 - c))
        model[2].bias.zero_()
    return model


def compressed() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        model[2].weight.fill_(1.0)
    return model


def main() -> None:
    short, out = options(__doc__)
    n = 12 if short else 48
    angle = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n + 0.1
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    y = x[:, 0].abs()
    colours = SymLogNorm(linthresh=1.0, vmin=0.0, vmax=100.0)  # the table's outputs grow fast outside the circle
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for ax, (name, model) in zip(axes, (("lookup table", lookup_table(x, y)), ("compressed", compressed())), strict=True):
        assert torch.allclose(model(x)[:, 0], y)
        found = lmn.measure(model, x, metrics=("lmn",), progress=False)
        regions = lmn.regions(model, lmn.box([-1.2, -1.2], [1.2, 1.2], 2), progress=False)
        side = torch.linspace(-1.2, 1.2, 300, dtype=torch.float64)
        output = model(torch.cartesian_prod(side, side)).detach().reshape(300, 300).T.numpy()
        image = ax.imshow(output, origin="lower", extent=(-1.2, 1.2, -1.2, 1.2), norm=colours, cmap="viridis")
        outlines = [polygon[[*range(len(polygon)), 0]] for polygon in regions.vertices]
        ax.add_collection(LineCollection(outlines, linewidths=0.4, colors="#ffffff99"))
        ax.scatter(*x.T.numpy(), s=22, c=y.numpy(), norm=colours, edgecolor="white", linewidth=0.8, zorder=3)
        ax.set(xlabel="first input", ylabel="second input")
        said = f"LMN {found.lmn:.1f} of {n} samples, {regions.count:,} regions"
        ax.set_title(f"{name}: {said}")
        print(f"{name}: {said}")
    figure.colorbar(image, ax=axes, label="output", ticks=[0, 0.5, 1, 3, 10, 30, 100], format="%g", extend="max")
    figure.savefig(out / "lookup_table.png", dpi=90)


if __name__ == "__main__":
    main()
