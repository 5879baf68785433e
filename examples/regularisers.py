"""Weight decay, an L1 penalty and neither on addition modulo 31: LMN beside the norms of the weights.

python examples/regularisers.py        # about five minutes
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from gallery import fit, options, scores

import lmn
from lmn.paper import TaskName
from lmn.paper.tasks import split, task
from lmn.paper.train import network


def main() -> None:
    short, out = options(__doc__)
    modadd = task(TaskName.MODADD)
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.3), layout="constrained")
    for name, decay, l1, colour in (
        ("weight decay 0.2", 0.2, 0.0, "#e8432f"), ("L1, 2e-5", 0.0, 2e-5, "#1313d6"), ("neither", 0.0, 0.0, "#666666")
    ):  # fmt: skip
        torch.manual_seed(0)
        model = network(modadd.n_tokens)
        training, test = split(modadd)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=decay)
        weights = list(model.parameters())

        def extra(model=model, training=training, test=test, weights=weights) -> dict[str, float]:
            l1_norm = sum(float(w.detach().abs().sum()) for w in weights)
            l2_norm = sum(float(w.detach().square().sum()) for w in weights) ** 0.5
            on = scores(model, training.tokens, training.classes, "training") | scores(model, test.tokens, test.classes, "test")
            return {"L1 norm": l1_norm, "L2 norm": l2_norm} | on

        callback = lmn.Callback(
            training.tokens, tap="linear2", every=20 if short else 300, max_points=200, metrics=("lmn",), extra=extra
        )
        with callback.attach(model, optimizer):
            penalty = (lambda weights=weights, l1=l1: l1 * sum(w.abs().sum() for w in weights)) if l1 else lambda: 0.0
            fit(model, optimizer, training.tokens, training.classes, 40 if short else 9000, penalty)
        history = callback.history
        axes[0].plot(history["step"], history["training_accuracy"], "--", color=colour)
        for ax, column in zip(axes, ("test_accuracy", "lmn", "L2 norm", "L1 norm"), strict=True):
            ax.plot(history["step"], history[column], color=colour, label=name)
            ax.set(xlabel="training step", ylabel="LMN of 200 samples" if column == "lmn" else column)
        last = history.iloc[-1]
        print(
            f"{name}: test accuracy {last.test_accuracy:.0%}, LMN {last.lmn:.1f} of 200 samples, L2 norm {last['L2 norm']:.1f}"
        )
    for ax in axes:
        ax.set_ylim(bottom=0)
    axes[0].set(ylabel="accuracy of test (training: dashed)", ylim=(-0.02, 1.05))
    axes[0].legend(frameon=False, fontsize="small")
    figure.savefig(out / "regularisers.png", dpi=90)


if __name__ == "__main__":
    main()
