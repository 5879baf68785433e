"""The networks that regions are benchmarked on, random ones and some trained in a few seconds."""

from __future__ import annotations

import itertools
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional


def relu_network(*widths: int) -> nn.Sequential:
    """Fully connected, as torch initialises it: uniform in ±1/sqrt(n_in)."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def random_network(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    return relu_network(*widths)


@cache
def trained_network(*widths: int, steps: int = 1500) -> nn.Sequential:
    """Fitted to the signed distance from a bumpy sphere, as small networks in graphics are."""
    torch.manual_seed(0)
    model = relu_network(*widths).float()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(steps):
        x = torch.rand(1024, widths[0]) * 2 - 1
        distance = x.norm(dim=1) - 0.5 - 0.15 * torch.sin(6 * x).prod(dim=1)
        optimizer.zero_grad()
        functional.mse_loss(model(x)[:, 0], distance).backward()
        optimizer.step()
    return model.double().requires_grad_(False)


class ResNet(nn.Module):
    """Two residual blocks of convolutions with batch normalisation, max and average pooling: digits of 8 x 8 pixels."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(4))
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        for block in (0, 2):
            h = torch.relu(self.norms[block](self.convolutions[block](x)))
            x = torch.relu(x + self.norms[block + 1](self.convolutions[block + 1](h)))
            if block == 0:
                x = self.pool(x)
        return self.head(x.mean(dim=(2, 3)))


@cache
def trained_resnet() -> tuple[ResNet, Tensor]:
    """After some steps on scikit-learn's digits, and the digits, (1797, 1, 8, 8), float64 in [0, 1]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, classes = torch.from_numpy(data.images).float()[:, None] / 16, torch.from_numpy(data.target)
    torch.manual_seed(0)
    model = ResNet()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        part = torch.randint(len(images), (128,))
        optimizer.zero_grad()
        functional.cross_entropy(model(images[part]), classes[part]).backward()
        optimizer.step()
    return model.double().eval().requires_grad_(False), images.double()
