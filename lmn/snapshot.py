"""A model as it is now, beside the one that goes on training."""

from __future__ import annotations

import copy
from collections.abc import Hashable

import torch
from torch import nn

from lmn.preserve import cuda_devices
from lmn.remembered import has_plain_tensors, modules_of


class Snapshot:
    """A copy of a model, brought up to date where that is all it takes: what was found out about it stays known."""

    def __init__(self) -> None:
        self._copy: nn.Module | None = None
        self._looks: Hashable = None  # of the model, when it was copied
        self._copying: list[tuple[int, torch.cuda.Event]] = []  # what ends it, on each GPU

    def of(self, model: nn.Module) -> nn.Module:
        """The copy, with the weights of now; the one of before is overwritten.

        Raises
        ------
        Exception
            Whatever a model that can't be copied raises.
        """
        with torch.inference_mode(False), torch.no_grad():
            looks = modules_of(model)
            # Plain tensors are copied anew: they may share memory with parameters.
            same = looks is not None and looks == self._looks and not has_plain_tensors(looks)
            if self._copy is None or not (same and _updated(self._copy, model)):
                self._copy, self._looks = copy.deepcopy(model), looks
            self._copying = [(device, torch.cuda.current_stream(device).record_event()) for device in cuda_devices(model)]
            return self._copy

    def wait(self) -> None:
        """Have this thread's streams, which need not be those that the training runs on, go on when the copy is made.

        The training's streams need not wait for a measurement: it is over when its numbers are read.
        """
        for device, copied in self._copying:
            torch.cuda.current_stream(device).wait_event(copied)

    def forget(self) -> None:
        """Let go of the copy."""
        self._copy = self._looks = None
        self._copying = []


def _updated(copied: nn.Module, model: nn.Module) -> bool:
    """Bring a copy's parameters and buffers up to date, if that can be done in place."""
    try:
        for new, old in ((copied.parameters(), model.parameters()), (copied.buffers(), model.buffers())):
            for kept, now in zip(new, old, strict=True):
                kept.copy_(now)
    except (RuntimeError, ValueError):  # of tensors whose elements share memory, say
        return False
    return True
