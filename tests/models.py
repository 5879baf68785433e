"""Models that measurements are tested on: what people train, small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

DATA = Path(__file__).parent / "data"


class PaperNetwork(nn.Module):
    """Two tokens embedded by one table, concatenated, 64-100-100-31, SiLU (arXiv 2310.05918); one activation module reused."""

    def __init__(self, n_tokens: int = 31, n_out: int = 31) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, 32)
        self.linear1 = nn.Linear(64, 100)
        self.linear2 = nn.Linear(100, 100)
        self.linear3 = nn.Linear(100, n_out)
        self.activation = nn.SiLU()

    def forward(self, pairs: Tensor) -> Tensor:
        x = self.embedding(pairs).flatten(1)
        return self.linear3(self.activation(self.linear2(self.activation(self.linear1(x)))))


def trained_paper_network(step: int) -> tuple[PaperNetwork, Tensor]:
    """The network after so many steps of the recipe, and its training pairs."""
    with np.load(DATA / f"lmn_modadd_{step}.npz") as data:
        model = PaperNetwork()
        with torch.no_grad():
            model.embedding.weight.copy_(torch.from_numpy(data["emb"]))
            for number in (1, 2, 3):
                linear = getattr(model, f"linear{number}")
                linear.weight.copy_(torch.from_numpy(data[f"w{number}"]))
                linear.bias.copy_(torch.from_numpy(data[f"b{number}"]))
        return model, torch.from_numpy(data["X"])


class ResidualMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.gelu(self.stem(x))
        return self.head(h + torch.relu(self.block(h)))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.pool, self.conv2, self.head = nn.MaxPool2d(2), nn.Conv2d(6, 4, 3), nn.Linear(4 * 2 * 2, 5)
        with torch.no_grad():  # as after training, not the identity
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(functional.silu(self.norm(self.conv1(x))))
        return self.head(torch.relu(self.conv2(x)).view(x.shape[0], -1))


class Transformer(nn.Module):
    """A 1-layer decoder on modular addition: tokens a, b, = ; the logits of all positions."""

    def __init__(self, n_tokens: int = 12, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(n_tokens, width), nn.Parameter(torch.randn(3, width) / 4)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down, self.head = nn.Linear(width, 32), nn.Linear(32, width), nn.Linear(width, n_tokens)
        self.heads = heads

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        batch, length, width = x.shape
        x = x + self.position[:length]
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mask = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        attention = torch.softmax(q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5 + mask, dim=-1)
        x = x + self.out((attention @ v).transpose(1, 2).reshape(batch, length, width))
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return self.head(x)


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


class WithLogits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3))

    def forward(self, x: Tensor) -> Output:
        return Output(loss=None, logits=self.body(x))


class TiedWeights(nn.Module):
    """A token model whose unembedding is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(9, 6), nn.Linear(6, 6)

    def forward(self, token: Tensor) -> Tensor:
        h = functional.silu(self.hidden(self.embedding(token)))
        return functional.linear(h, self.embedding.weight)


class LooksAtShapes(nn.Module):
    """Control flow on a tensor's shape: torch.fx can't follow it, running it can."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or len(x) == 0:
            raise ValueError("a batch of vectors")
        return self.second(functional.softplus(self.first(x)))


class InPlaceResidual(nn.Module):
    """The activation after the tap overwrites the tap's output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu_(self.stem(x))
        return self.head(h + torch.tanh(self.inner(h)))


class LooksAtValues(nn.Module):
    """Control flow on a tensor's values: nothing can trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if float(h.abs().max()) > 2:
            h = h * 0
        return self.second(h)


@dataclass
class Case:
    """A model, inputs, how it is measured, and the path that it is expected to take."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    path: str
    tap: str | None = None
    select: Callable[[Any], Tensor] | None = None


def vectors(n: int, width: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(n, width)


def tokens(n: int, length: int, n_tokens: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(n_tokens, (n, length) if length else (n,))


def _mlp() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(4, 11), nn.BatchNorm1d(11), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        *(nn.Linear(11, 7), nn.Identity(), nn.GELU(), nn.Linear(7, 3)),
    )


CASES: dict[str, Case] = {
    "mlp": Case(_mlp, vectors(9, 4), "chain"),
    "mlp, tapped inside": Case(_mlp, vectors(9, 4), "chain", tap="1"),
    "one output": Case(_mlp, vectors(9, 4), "chain", select=lambda out: out[:, 1]),
    "cnn": Case(ConvNet, lambda: torch.randn(6, 2, 8, 8), "traced"),
    "cnn, tapped inside": Case(ConvNet, lambda: torch.randn(6, 2, 8, 8), "traced", tap="conv1"),
    "cnn, tapped late": Case(ConvNet, lambda: torch.randn(6, 2, 8, 8), "chain", tap="conv2"),
    "residual": Case(ResidualMLP, vectors(8, 5), "traced"),
    "residual, tapped after": Case(ResidualMLP, vectors(8, 5), "traced", tap="stem"),
    "residual, in place": Case(InPlaceResidual, vectors(8, 4), "traced", tap="stem"),
    "paper, embedding": Case(PaperNetwork, tokens(10, 2, 31), "chain", tap="embedding"),
    "paper, linear1": Case(PaperNetwork, tokens(10, 2, 31), "chain", tap="linear1"),
    "paper, linear2": Case(PaperNetwork, tokens(10, 2, 31), "chain", tap="linear2"),
    "paper, linear3": Case(PaperNetwork, tokens(10, 2, 31), "chain", tap="linear3"),
    "transformer": Case(Transformer, tokens(7, 3, 12), "traced", tap="embedding", select=lambda out: out[:, -1]),
    "logits": Case(WithLogits, vectors(7, 4), "chain"),
    "logits, tapped": Case(WithLogits, vectors(7, 4), "chain", tap="body.0"),
    "tied weights": Case(TiedWeights, tokens(8, 0, 9), "chain", tap="embedding"),
    "shapes": Case(LooksAtShapes, vectors(7, 4), "chain"),
    "shapes, tapped": Case(LooksAtShapes, vectors(7, 4), "chain", tap="first"),
    "values": Case(LooksAtValues, vectors(6, 4), "whole model"),
    "values, tapped": Case(LooksAtValues, vectors(6, 4), "whole model", tap="first"),
}


def built(case: Case) -> tuple[nn.Module, Tensor]:
    """The case's model and inputs, the same at every call."""
    torch.manual_seed(0)
    return case.build(), case.inputs()
