"""A transformer of one layer on addition modulo 23, tapped after its embedding: no chain of layers, and measured all the same.

python examples/transformer.py        # about five minutes
"""

from __future__ import annotations

import torch
from gallery import fit, options, scores
from torch import Tensor, nn

import lmn
from lmn.curves import curves


class Transformer(nn.Module):
    """Tokens a, b and "=" to the class of a + b, read off at the last."""

    def __init__(self, n_tokens: int, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens + 1, width)
        self.position = nn.Parameter(0.1 * torch.randn(3, width))
        self.layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, n_tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens) + self.position)[:, -1])


def main() -> None:
    short, out = options(__doc__)
    p = 23
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    tokens, classes = torch.cat([pairs, torch.full((p * p, 1), p)], dim=1), pairs.sum(1) % p
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(0))
    train, test = order[: p * p * 7 // 10], order[p * p * 7 // 10 :]
    torch.manual_seed(0)
    model = Transformer(p)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1.0)

    def extra() -> dict[str, float]:
        return scores(model, tokens[train], classes[train], "train") | scores(model, tokens[test], classes[test], "test")

    n = 12 if short else 96
    callback = lmn.Callback(
        tokens[train[:n]], tap="embedding", every=10 if short else 100, metrics=("lmn",), extra=extra, asynchronous=True
    )
    with callback.attach(model, optimizer):
        fit(model, optimizer, tokens[train], classes[train], 20 if short else 3000)
    print(callback)
    print(callback.history.iloc[[0, len(callback.rows) // 2, -1]].to_string(index=False))
    curves(callback.rows, columns=["lmn", "train_loss", "test_loss", "train_accuracy", "test_accuracy"],
           title=f"A 1-layer transformer on addition modulo {p}").savefig(out / "transformer.png", dpi=80)  # fmt: skip


if __name__ == "__main__":
    main()
