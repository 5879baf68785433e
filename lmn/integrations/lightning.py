"""Measuring in a Lightning training."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from lmn.callback import Callback
from lmn.errors import LmnError
from lmn.grid import as_grid
from lmn.integrations.part import Part, part_of
from lmn.journal import Row
from lmn.loggers import PREFIX

if TYPE_CHECKING:
    from lmn.history import History

_NAMES = ("lightning.pytorch", "pytorch_lightning")


def _lightning() -> ModuleType:
    """The library that the user imported; of the two names it has, the classes of one are not those of the other."""
    for name in _NAMES:
        if name in sys.modules:
            return sys.modules[name]
    for name in _NAMES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise LmnError("Lightning is not installed; pip install 'lmn[lightning]'.")


class LmnCallback(_lightning().Callback):  # type: ignore[misc]
    """Measure a LightningModule while a Trainer trains it; see :class:`lmn.Callback`, which has the same parameters.

    The numbers go to all of the trainer's loggers, and to ``callback_metrics``, so that early stopping and checkpoints can
    monitor ``"lmn/lmn"``. What the module logs itself is kept in the history beside them. Steps are the trainer's
    ``global_step``. Its state is in checkpoints: a training that is resumed goes on with its history.

    Parameters
    ----------
    grid, **options
        As for :class:`lmn.Callback`.
    part : str or callable, optional
        What is measured: the name of a submodule of the LightningModule, or a function of it. Default: the LightningModule.

    Examples
    --------
    >>> trainer = Trainer(callbacks=[LmnCallback(samples, tap="embedding"), EarlyStopping("lmn/lmn")])
    """

    def __init__(self, grid: Any, *, part: Part = None, **options: Any) -> None:
        super().__init__()
        self._grid, self._part, self._options = as_grid(grid), part, options
        self._given_log = options.pop("log", None)
        Callback(self._grid, **{name: value for name, value in options.items() if name != "path"})  # that it can be made
        self._callback: Callback | None = None
        self._rows: list[Row] = []
        self._latest: dict[str, float] = {}

    @property
    def history(self) -> History:
        from lmn.history import History

        return History.of(self._rows) if self._callback is None else self._callback.history

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        def log(values: dict[str, float], step: int) -> None:
            self._latest = values
            self._tell(trainer)
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step)

        self._callback = Callback(self._grid, log=log if self._given_log is None else (log, self._given_log), **self._options)
        self._callback.recall(self._rows)
        self._measure(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._measure(trainer, pl_module)
        self._tell(trainer)

    def on_validation_end(self, trainer: Any, _pl_module: Any) -> None:
        self._tell(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._callback is not None:
            self._callback.close(part_of(pl_module, self._part), trainer.global_step, **_logged(trainer))

    def on_exception(self, _trainer: Any, _pl_module: Any, _exception: BaseException) -> None:
        if self._callback is not None:
            self._callback.close()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows if self._callback is None else self._callback.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rows = state_dict["rows"]

    def _measure(self, trainer: Any, pl_module: Any) -> None:
        if self._callback is not None:
            self._callback(part_of(pl_module, self._part), trainer.global_step, **_logged(trainer))

    def _tell(self, trainer: Any) -> None:
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._latest.items()})


def _logged(trainer: Any) -> dict[str, float]:
    """What the module logs itself."""
    return {
        name.replace("/", "_"): float(value) for name, value in trainer.callback_metrics.items() if not name.startswith(PREFIX)
    }
