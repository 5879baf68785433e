"""The three tasks of "Grokking as Compression": each network memorises, and then generalises as its LMN falls.

python examples/paper_tasks.py        # about ten minutes
"""

from __future__ import annotations

import matplotlib.pyplot as plt
from gallery import options

from lmn.paper import TaskName
from lmn.paper.tasks import task
from lmn.paper.train import train


def main() -> None:
    short, out = options(__doc__)
    figure, axes = plt.subplots(2, 3, figsize=(11, 5), sharex="col", layout="constrained")
    for (above, below), name in zip(axes.T, TaskName, strict=True):
        run = train(task(name), steps=40 if short else 15_000, every=20 if short else 250)
        steps = run.column("step")
        above.plot(steps, run.column("lmn"), color="#e8432f", label="LMN")
        above.plot(steps, run.column("l2_norm"), color="#6a9a6a", label="L2 norm")
        above.set(title=run.task.title, ylim=(0, None))
        below.plot(steps, run.column("train_accuracy"), "--", color="#1313d6", label="training accuracy")
        below.plot(steps, run.column("test_accuracy"), color="#1313d6", label="test accuracy")
        below.set(xlabel="training step", ylim=(0, 1.05))
        print(f"{run.task.title}: LMN {run.column('lmn').max():.1f} at its highest, {run.rows[-1].lmn:.1f} at the end")
    for row, label in zip(axes, ("LMN, L2 norm", "accuracy"), strict=True):
        row[0].set_ylabel(label)
        row[0].legend(frameon=False, fontsize="small")
    figure.savefig(out / "paper_tasks.png", dpi=90)


if __name__ == "__main__":
    main()
