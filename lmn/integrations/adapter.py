"""What the callbacks of other libraries share: a Callback that is made when the training begins."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lmn.callback import Callback
from lmn.errors import LmnError
from lmn.grid import as_grid
from lmn.journal import Row
from lmn.loggers import Log, named, prefix_of
from lmn.measurement import is_measured

_begun = weakref.WeakSet["Adapter"]()

Part = str | Callable[[nn.Module], nn.Module] | None


class Adapter:
    """Measures a part of the model that a library trains; the options are those of ``lmn.Callback``.

    They are looked at when it is made. The Callback, with its file, is made when the training begins: only then do the
    processes of a training know each other.

    Attributes
    ----------
    name : str or None
        Of the Callback.
    callback : Callback or None
        None before the training begins, and in processes that don't measure.
    prefix : str
        Of the keys of loggers.
    latest : dict of str to float
        The last numbers, by those keys; a measurement that fails leaves them.
    """

    def __init__(self, grid: Any, part: Part, options: dict[str, Any]) -> None:
        self._grid, self._part = as_grid(grid), part
        self._log, self._extra = options.pop("log", None), options.pop("extra", None) or dict
        self.name: str | None = options.get("name")
        self.prefix = prefix_of(self.name)
        self._options = options
        without_file = {name: value for name, value in options.items() if name != "path"}
        Callback(self._grid, log=self._log, extra=self._extra, **without_file)
        self._model: nn.Module | None = None
        self.callback: Callback | None = None
        self.latest: dict[str, float] = {}

    def begin(self, model: nn.Module, log: Log, logged: Callable[[], Mapping[str, float]], earlier: Sequence[Row] = ()) -> None:
        """Make the Callback, that goes on after the one before, or after the rows of an earlier run.

        ``log`` is the library's, and ``logged`` what it knows at a measurement.
        """

        def tell(values: dict[str, float], step: int) -> None:
            self.latest = values
            log(values, step)

        before = earlier if self.callback is None else self.callback.rows
        for other in list(_begun):  # a training that was stopped and did not say so, as by Ctrl-C in a notebook
            if other is self or other._path == self._path is not None:
                other.let_go()
        _begun.add(self)
        self._model = part_of(model, self._part)
        self.callback = Callback(
            self._grid, log=(tell, self._log), extra=lambda: {**logged(), **self._extra()}, **self._options
        )
        self.callback.recall(before)
        self.latest = named(_latest_of(self.callback.rows), self.prefix)  # until there are others

    def owns(self, key: str) -> bool:
        """Whether a key is of this callback, and of none that has another name."""
        return key.startswith(self.prefix) and "/" not in key.removeprefix(self.prefix)

    def __str__(self) -> str:
        return "not begun, or in a process that doesn't measure" if self.callback is None else str(self.callback)

    def share(self) -> None:
        """Let all processes of a training, each of which has to call this, know the first one's numbers: to stop at once."""
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            latest = [self.latest]
            torch.distributed.broadcast_object_list(latest, src=0)
            (self.latest,) = latest

    def let_go(self) -> None:
        """Of the file."""
        if self.callback is not None:
            self.callback.close()

    @property
    def _path(self) -> str | None:
        path = self._options.get("path")
        return None if path is None else os.path.realpath(path)

    def step(self, step: int) -> None:
        if self.callback is not None and self._model is not None:
            self.callback(self._model, step)

    def freshen(self, step: int) -> None:
        """Measure a step at which the library looks at the numbers, early stopping say, so that they are not those before."""
        if self.callback is not None and self._model is not None:
            self.callback.freshen(self._model, step)

    def end(self, step: int) -> None:
        if self.callback is not None:
            self.callback.close(self._model, step)


def _latest_of(rows: Sequence[Row]) -> dict[str, float]:
    """The numbers of the last measurement that succeeded."""
    last = next((row for row in reversed(rows) if "error" not in row), {})
    return {name: value for name, value in last.items() if is_measured(name) and value is not None}


def part_of(model: nn.Module, part: Part) -> nn.Module:
    """The model itself, or the submodule that is named, or what a function makes of it."""
    if part is None:
        return model
    if callable(part):
        return part(model)
    try:
        return model.get_submodule(part)
    except AttributeError as error:
        names = ", ".join(repr(name) for name, _ in model.named_children()) or "none"
        raise LmnError(f"{type(model).__name__} has no submodule {part!r} to measure; there are: {names}.") from error
