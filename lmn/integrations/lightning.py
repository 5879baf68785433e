"""Measuring in a Lightning training."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from lmn.errors import LmnError
from lmn.integrations.adapter import Adapter, Part
from lmn.journal import Row
from lmn.loggers import PREFIX

if TYPE_CHECKING:
    from lmn.history import History
    from lmn.measurement import Measurement

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
    raise LmnError("Lightning is not installed; pip install lightning.")


class LmnCallback(_lightning().Callback):  # type: ignore[misc]
    """Measure a LightningModule while a Trainer trains it; see :class:`lmn.Callback`, which has the same parameters.

    The numbers go to all of the trainer's loggers, and to ``callback_metrics``, so that early stopping and checkpoints can
    monitor ``"lmn/lmn"``: where one does, the end of each epoch and each validation are measured too, unless ``overhead`` has
    it wait. Until there is another number, as after a measurement that fails, the last ones stay. What the module logs itself
    is kept in the history beside them. Steps are the trainer's ``global_step``. Its state is in checkpoints: a training that is
    resumed goes on with its history. Of several in one training, each needs a ``name``.

    Attributes
    ----------
    history, last, rows
        As of :class:`lmn.Callback`.

    Parameters
    ----------
    grid, **options
        As for :class:`lmn.Callback`.
    part : str or callable, optional
        What is measured: the name of a submodule of the LightningModule, or a function of it. Default: the LightningModule.
        Name the network where the module around it counts its steps, say, in an attribute: a module that has changed is traced
        anew.

    Examples
    --------
    >>> trainer = Trainer(callbacks=[LmnCallback(samples, tap="embedding"), EarlyStopping("lmn/lmn")])
    """

    def __init__(self, grid: Any, *, part: Part = None, **options: Any) -> None:
        super().__init__()
        self._measuring = Adapter(grid, part, options)
        self._rows: list[Row] = []

    @property
    def history(self) -> History:
        from lmn.history import History

        return History.of(self.rows)

    @property
    def last(self) -> Measurement | None:
        callback = self._measuring.callback
        return None if callback is None else callback.last

    @property
    def rows(self) -> list[Row]:
        callback = self._measuring.callback
        return self._rows if callback is None else callback.rows

    def __repr__(self) -> str:
        return f"<LmnCallback: {self._measuring}>"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        def log(values: dict[str, float], step: int) -> None:
            self._tell(trainer)
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step)

        self._measuring.begin(pl_module, log, lambda: _logged(trainer), self._rows)
        self._measuring.step(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self._measuring.step(trainer.global_step)
        if trainer.is_last_batch:
            self._freshen(trainer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._freshen(trainer)

    def _freshen(self, trainer: Any) -> None:
        """Before early stopping or a checkpoint goes by the numbers: an old one again is no improvement."""
        if any(self._measuring.owns(str(getattr(callback, "monitor", ""))) for callback in trainer.callbacks):
            self._measuring.freshen(trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._measuring.step(trainer.global_step)
        self._measuring.share()
        self._tell(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._measuring.share()
        self._tell(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._measuring.end(trainer.global_step)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._measuring.let_go()

    @property
    def state_key(self) -> str:
        """Of its state in a checkpoint."""
        name = self._measuring.name
        return str(super().state_key if name is None else self._generate_state_key(name=name))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._rows = state_dict["rows"]

    def _tell(self, trainer: Any) -> None:
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._measuring.latest.items()})


def _logged(trainer: Any) -> dict[str, float]:
    """What the module logs itself."""
    return {
        name.replace("/", "_"): float(value) for name, value in trainer.callback_metrics.items() if not name.startswith(PREFIX)
    }
