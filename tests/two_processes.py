"""A training in two processes that stops early by lmn/lmn, which the first process alone measures.

python two_processes.py lightning
torchrun --nproc_per_node 2 two_processes.py transformers
"""

import sys
import tempfile
from pathlib import Path

OPTIONS = {"every": 2, "m": 4, "metrics": ("lmn",)}


def by_lightning(folder: Path) -> int:
    from lightning import pytorch as pl
    from test_lightning import EarlyStopping, LmnCallback, Module, data, fit

    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[LmnCallback(data()[0], **OPTIONS), EarlyStopping("lmn/lmn", mode="max", stopping_threshold=1.0)],
    )  # fmt: skip
    fit(trainer, Module())
    return int(trainer.global_step)


def by_transformers(folder: Path) -> int:
    from test_transformers import EarlyStoppingCallback, LmnCallback, built, tokens

    how = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "eval_lmn/lmn", "greater_is_better": True}
    trainer = built(folder, EarlyStoppingCallback(1, 1e9), steps=40, ddp_backend="gloo", load_best_model_at_end=False, **how)
    LmnCallback(tokens(), tap="bert.embeddings", **OPTIONS).add_to(trainer)
    trainer.train()
    return int(trainer.state.global_step)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        run = {"lightning": by_lightning, "transformers": by_transformers}[sys.argv[1]]
        sys.stdout.write(f"stopped after {run(Path(made))} steps\n")
