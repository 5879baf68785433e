"""Piecewise-linear networks that are no chains: convolutions, pooling, skip connections, maxima."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class ResidualConvNet(nn.Module):
    """Batch normalisation, a residual connection, max pooling with padding, average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv2, self.conv3 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.pool, self.mean, self.head = nn.MaxPool2d(3, stride=2, padding=1), nn.AvgPool2d(2), nn.Linear(12, 3)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-0.3, 0.3)
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv1(x)))
        x = x + self.conv3(functional.leaky_relu(self.conv2(x), 0.1))
        return self.head(self.mean(self.pool(x)).flatten(1))


class Dense(nn.Module):
    """Results concatenated, as in DenseNet, with one in-place activation that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(10, 6), nn.Linear(16, 2)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.activation(self.a(x))], dim=1)
        return self.head(torch.cat([x, self.activation(self.b(x))], dim=1))


class Maxima(nn.Module):
    """Maxout: the largest of groups of units, of two results, and over a dimension; and the smallest."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 12), nn.Linear(6, 5), nn.Linear(6, 5)
        self.d, self.e = nn.Linear(5, 8), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).unflatten(1, (6, 2)).amax(dim=2)
        x = torch.minimum(torch.maximum(self.b(x), self.c(x)), torch.abs(self.b(x)))
        return self.e(self.d(x).reshape(-1, 2, 4).max(dim=2).values)


class Branches(nn.Module):
    """Three activations, parts of one result, adaptive max pooling along a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.conv, self.head = nn.Linear(4, 9), nn.Conv1d(1, 3, 3), nn.Linear(9, 2)
        self.slopes = nn.PReLU(3, init=-0.5)

    def forward(self, x: Tensor) -> Tensor:
        p, q, r = self.a(x).chunk(3, dim=1)
        h = torch.cat([functional.relu6(4 * p), functional.hardtanh(2 * q), self.slopes(r)], 1)
        return self.head(functional.adaptive_max_pool1d(self.conv(h[:, None]), 3).flatten(1))


class Transposing(nn.Module):
    """Applied along the last of two dimensions, mixed along the other, a residual connection after each."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.channels, self.head = nn.Linear(3, 3), nn.Linear(2, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.relu(self.tokens(x.transpose(1, 2))).transpose(1, 2)
        x = x - 0.5 * torch.relu(self.channels(x))
        return self.head(x.reshape(len(x), -1)) / 3 + 1


# Model and the shape of an input.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual convolutions": (ResidualConvNet, (1, 8, 8)),
    "dense": (Dense, (4,)),
    "maxima": (Maxima, (4,)),
    "branches": (Branches, (4,)),
    "transposing": (Transposing, (3, 2)),
    "chain": (lambda: nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 7), nn.Hardtanh(), nn.Linear(7, 3)), (4,)),
    "affine": (lambda: nn.Linear(4, 3), (4,)),
}


def built(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(seed)
    build, shape = MODELS[name]
    return build().double().eval(), shape
