"""What the callbacks of other libraries share: a Callback that is made when the training begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lmn.callback import Callback
from lmn.errors import LmnError
from lmn.grid import as_grid
from lmn.loggers import Log

Part = str | Callable[[nn.Module], nn.Module] | None


class Adapter:
    """Measures a part of the model that a library trains; the options are those of ``lmn.Callback``.

    They are looked at when it is made. The Callback, with its file, is made when the training begins: only then do the
    processes of a training know each other.

    Attributes
    ----------
    callback : Callback or None
        None before the training begins, and in processes that don't measure.
    latest : dict of str to float
        The last numbers, by the keys of loggers.
    """

    def __init__(self, grid: Any, part: Part, options: dict[str, Any]) -> None:
        self._grid, self._part = as_grid(grid), part
        self._log, self._extra = options.pop("log", None), options.pop("extra", dict)
        self._options = options
        without_file = {name: value for name, value in options.items() if name != "path"}
        Callback(self._grid, log=self._log, extra=self._extra, **without_file)
        self._model: nn.Module | None = None
        self.callback: Callback | None = None
        self.latest: dict[str, float] = {}

    def begin(self, model: nn.Module, log: Log, logged: Callable[[], Mapping[str, float]]) -> Callback:
        """Make the Callback: ``log`` is the library's, and ``logged`` what it knows at a measurement."""

        def tell(values: dict[str, float], step: int) -> None:
            self.latest = values
            log(values, step)

        self._model = part_of(model, self._part)
        self.callback = Callback(
            self._grid, log=(tell, self._log), extra=lambda: {**logged(), **self._extra()}, **self._options
        )
        return self.callback

    def step(self, step: int) -> None:
        if self.callback is not None and self._model is not None:
            self.callback(self._model, step)

    def end(self, step: int) -> None:
        if self.callback is not None:
            self.callback.close(self._model, step)


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
