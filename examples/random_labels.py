"""Real against random labels on scikit-learn's digits (Zhang et al. 2017): do LMN and regions tell memorising from learning?

python examples/random_labels.py        # about two minutes

The same network learns 400 digits with their own labels, and with labels drawn at random, to the same training accuracy.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from gallery import fit, mlp, options, scores
from sklearn.datasets import load_digits

import lmn


def main() -> None:
    short, out = options(__doc__)
    data = load_digits()
    images, labels = torch.from_numpy(data.data).float() / 16, torch.from_numpy(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = images[order[:400]], labels[order[:400]]
    random = torch.randint(0, 10, y.shape, generator=torch.Generator().manual_seed(1))
    plane = lmn.plane(x[0], x[1], x[2], 64)  # through three of the digits
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for name, classes, colour in (("real labels", y, "#1313d6"), ("random labels", random, "#e8432f")):
        for seed in range(1 if short else 3):
            model = mlp(64, 128, 128, 10, seed=seed)
            optimizer = torch.optim.Adam(model.parameters(), 1e-3)
            rows = []
            for step in range(0, 41 if short else 1201, 20 if short else 60):
                found = lmn.measure(model, x[:300], metrics=("lmn",), progress=False)
                regions = lmn.regions(model, plane, progress=False)
                rows.append((step, scores(model, x, classes, "train")["train_accuracy"], found.lmn, regions.count))
                fit(model, optimizer, x, classes, 20 if short else 60)
            steps, accuracy, numbers, counts = zip(*rows, strict=True)
            for ax, values in zip(axes, (accuracy, numbers, counts), strict=True):
                ax.plot(steps, values, color=colour, linewidth=1.2, label=name if seed == 0 else None)
            print(f"{name}, seed {seed}: accuracy {accuracy[-1]:.0%}, LMN {numbers[-1]:.1f}, {counts[-1]} regions in the plane")
    for ax, label in zip(axes, ("training accuracy", "LMN of 300 digits", "regions in a plane through 3 digits"), strict=True):
        ax.set(xlabel="training step", ylabel=label, ylim=(0, None))
    axes[0].legend(frameon=False)
    figure.savefig(out / "random_labels.png", dpi=90)


if __name__ == "__main__":
    main()
