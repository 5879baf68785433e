"""A model as it is now, beside the one that goes on training."""

from __future__ import annotations

import copy
from collections.abc import Hashable

import torch
from torch import nn

from lmn.remembered import modules_of


class Snapshot:
    """A copy of a model, brought up to date where that is all it takes: what was found out about it stays known."""

    def __init__(self) -> None:
        self._copy: nn.Module | None = None
        self._looks: Hashable = None  # of the model, when it was copied

    def of(self, model: nn.Module) -> nn.Module:
        """The copy, with the weights of now; the one of before is overwritten.

        Raises
        ------
        Exception
            Whatever a model that can't be copied raises.
        """
        looks = modules_of(model)
        if self._copy is None or looks is None or looks != self._looks:
            self._copy, self._looks = copy.deepcopy(model), looks
            return self._copy
        with torch.no_grad():
            for new, old in ((self._copy.parameters(), model.parameters()), (self._copy.buffers(), model.buffers())):
                for kept, now in zip(new, old, strict=True):
                    kept.copy_(now)
        return self._copy
