"""The paper's three tasks: two tokens in, one class out, over all pairs of tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import permutations

import torch
from torch import Tensor

from lmn.paper import TaskName


@dataclass(frozen=True, eq=False)
class Task:
    """A binary operation on tokens 0..n_tokens-1, learned from a part of its table.

    Attributes
    ----------
    title : str
        For figures.
    table : Tensor of shape (n_tokens, n_tokens), int64
        table[a, b] is the class of the pair (a, b); the classes are the tokens themselves.
    """

    title: str
    table: Tensor = field(repr=False)

    @property
    def n_tokens(self) -> int:
        return len(self.table)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of tokens and their classes.

    Attributes
    ----------
    tokens : Tensor of shape (n_pairs, 2), int64
    classes : Tensor of shape (n_pairs,), int64
    """

    tokens: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.tokens)


def task(name: TaskName) -> Task:
    """The task of a name."""
    match name:
        case TaskName.MODADD:
            a = torch.arange(31)
            return Task("Addition modulo 31", (a[:, None] + a) % 31)
        case TaskName.S4:
            return Task("Composition in S4", _composition_table(4))
        case TaskName.XOR:
            a = torch.arange(32)
            return Task("5-bit bitwise XOR", a[:, None] ^ a)


def split(task: Task) -> tuple[Pairs, Pairs]:
    """All pairs of a task, 80 % of them (rounded down) drawn by torch's generator for training and the others for the test."""
    n = task.n_tokens
    order = torch.randperm(n * n)
    tokens = torch.stack([order // n, order % n], dim=1)
    pairs = Pairs(tokens, task.table[tokens[:, 0], tokens[:, 1]])
    n_train = n * n * 4 // 5
    return (
        Pairs(pairs.tokens[:n_train], pairs.classes[:n_train]),
        Pairs(pairs.tokens[n_train:], pairs.classes[n_train:]),
    )


def _composition_table(n: int) -> Tensor:
    """The table of (a ∘ b)(i) = a(b(i)) over all permutations of n things, in lexicographic order: 0 is the identity."""
    elements = list(permutations(range(n)))
    number = {element: index for index, element in enumerate(elements)}
    return torch.tensor([[number[tuple(a[i] for i in b)] for b in elements] for a in elements])
