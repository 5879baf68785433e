"""What the examples share: their options, and training on a whole set."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).parent


def options(description: str) -> tuple[bool, Path]:
    """Whether to run in a short mode, which shows that it runs and nothing else; and where the pictures go."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--short", action="store_true", help="a few steps: does it still run?")
    parser.add_argument("--out", type=Path, default=HERE / "pictures", help="folder of the pictures")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the networks are small: threads would wait for each other
    return given.short, given.out


def mlp(*widths: int, act: Callable[[], nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), act()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def scores(model: nn.Module, x: Tensor, y: Tensor, name: str) -> dict[str, float]:
    """Loss and accuracy, as a callback's ``extra`` gives them."""
    training = model.training
    out = model.eval()(x)
    model.train(training)
    loss = functional.cross_entropy(out, y)
    return {f"{name}_loss": float(loss), f"{name}_accuracy": float((out.argmax(1) == y).float().mean())}


def fit(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int,
    penalty: Callable[[], Any] = lambda: 0.0,
) -> None:  # fmt: skip
    """So many steps of the whole set."""
    for _ in range(steps):
        optimizer.zero_grad()
        (functional.cross_entropy(model(x), y) + penalty()).backward()
        optimizer.step()
