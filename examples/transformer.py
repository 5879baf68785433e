"""A transformer of one layer on addition modulo 43, tapped after its embedding: no chain of layers, and measured all the same.

As in Nanda et al. 2023 (arXiv 2301.05217), smaller: without normalisation, a strong weight decay, read off at "=". The pairs
(a, b) and (b, a) are both of the training set or both of the test set.

python examples/transformer.py        # about three minutes
"""

from __future__ import annotations

import torch
from gallery import fit, options, scores
from torch import Tensor, nn

import lmn
from lmn.curves import curves


class Transformer(nn.Module):
    """Tokens a, b and "=" to the class of a + b, read off at the last."""

    def __init__(self, n_tokens: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens + 1, width)
        self.position = nn.Parameter(0.1 * torch.randn(3, width))
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, n_tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head((x + self.mlp(x))[:, -1])


def sums(pairs: Tensor, p: int) -> tuple[Tensor, Tensor]:
    """Tokens "a b =" in both orders, and the classes a + b mod p."""
    both = torch.unique(torch.cat([pairs, pairs.flip(1)]), dim=0)
    return torch.cat([both, torch.full((len(both), 1), p)], dim=1), both.sum(1) % p


def main() -> None:
    short, out = options(__doc__)
    p = 43
    pairs = torch.combinations(torch.arange(p), with_replacement=True)
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))]
    n_train = len(pairs) * 8 // 10
    train, test = sums(pairs[:n_train], p), sums(pairs[n_train:], p)
    torch.manual_seed(0)
    model = Transformer(p)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=2.0, betas=(0.9, 0.98))

    def extra() -> dict[str, float]:
        return scores(model, *train, "train") | scores(model, *test, "test")

    samples = train[0][torch.randperm(len(train[0]))[: 12 if short else 96]]
    callback = lmn.Callback(
        samples, tap="embedding", every=10 if short else 50, metrics=("lmn",), extra=extra, asynchronous=True
    )
    with callback.attach(model, optimizer):
        fit(model, optimizer, *train, 20 if short else 2300)
    print(callback)
    print(callback.history.iloc[[0, len(callback.rows) // 2, -1]].to_string(index=False))
    curves(callback.rows, columns=["lmn", "train_loss", "test_loss", "train_accuracy", "test_accuracy"],
           title=f"A 1-layer transformer on addition modulo {p}").savefig(out / "transformer.png", dpi=80)  # fmt: skip


if __name__ == "__main__":
    main()
