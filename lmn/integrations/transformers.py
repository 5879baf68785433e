"""Measuring in a training by Hugging Face's Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmn.errors import LmnError
from lmn.integrations.adapter import Adapter, Part
from lmn.submodules import unwrapped
from lmn.wording import warn

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise LmnError("transformers is not installed; pip install transformers accelerate.") from error

if TYPE_CHECKING:
    from lmn.callback import Callback
    from lmn.history import History
    from lmn.journal import Row
    from lmn.measurement import Measurement


class LmnCallback(TrainerCallback):
    """Measure a model while a Trainer trains it; see :class:`lmn.Callback`, which has the same parameters.

    Added by :meth:`add_to`, it logs through the trainer: to its log history and to whatever it reports to. Its numbers are also
    among the metrics of each evaluation, so that ``metric_for_best_model="eval_lmn/lmn"`` and early stopping can go by them:
    where one does, each evaluation is measured too, unless ``overhead`` has it wait.
    Steps are the trainer's ``global_step``; only the main process measures. With a ``path``, a training that is resumed goes on
    in the same file. After a measurement that fails, the last numbers stay. Of several in one training, each needs a ``name``.

    Attributes
    ----------
    history, last, rows
        As of :class:`lmn.Callback`.

    Parameters
    ----------
    grid, **options
        As for :class:`lmn.Callback`.
    part : str or callable, optional
        What is measured: the name of a submodule of the model, or a function of it. Default: the model.

    Examples
    --------
    >>> LmnCallback(tokens, tap="bert.embeddings", path="history.jsonl").add_to(trainer)
    >>> trainer.train()
    """

    def __init__(self, grid: Any, *, part: Part = None, **options: Any) -> None:
        self._measuring = Adapter(grid, part, options)
        self._trainer: Any = None

    def add_to(self, trainer: Any) -> LmnCallback:
        """Add it to a Trainer, ahead of callbacks that look at an evaluation's metrics."""
        self._trainer = trainer
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    @property
    def history(self) -> History:
        return self._begun.history

    @property
    def last(self) -> Measurement | None:
        return self._begun.last

    @property
    def rows(self) -> list[Row]:
        return self._begun.rows

    @property
    def _begun(self) -> Callback:
        if self._measuring.callback is None:
            raise LmnError("there is no history before the training begins, and in processes that don't measure.")
        return self._measuring.callback

    def __repr__(self) -> str:
        return f"<LmnCallback: {self._measuring}>"

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        if self._trainer is None:
            warn(
                "given to Trainer(callbacks=...), lmn's numbers go to state.log_history alone; added by "
                "LmnCallback(...).add_to(trainer), they go to what the trainer reports to, too."
            )

        def log(values: dict[str, float], step: int) -> None:
            if self._trainer is not None:
                self._trainer.log(values | {f"{self._measuring.prefix}step": step})
            else:
                state.log_history.append(values | {"step": step})

        self._measuring.begin(unwrapped(model), log, lambda: _logged(state), _earlier(state, self._measuring))
        self._measuring.step(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._measuring.step(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        # An old number again is no improvement.
        if self._measuring.owns((args.metric_for_best_model or "").removeprefix("eval_")):
            self._measuring.freshen(state.global_step)
        self._measuring.share()
        if metrics is not None:
            metrics.update({f"eval_{name}": value for name, value in self._measuring.latest.items()})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._measuring.end(state.global_step)


def _earlier(state: Any, measuring: Adapter) -> list[Row]:
    """What a training that is resumed has logged of its measurements."""
    rows = []
    for logged in state.log_history:
        own = {name.removeprefix(measuring.prefix): value for name, value in logged.items() if measuring.owns(name)}
        if own:
            rows.append({"step": logged["step"]} | own)
    return rows


def _logged(state: Any) -> dict[str, float]:
    """The losses and metrics that the trainer logged last."""
    own = [row for row in state.log_history if not any(name.startswith("lmn/") for name in row)]
    found: dict[str, float] = {}
    for row in own[-2:]:
        found |= {
            name: float(value)
            for name, value in row.items()
            if name not in ("step", "epoch") and isinstance(value, int | float) and not name.startswith("eval_lmn/")
        }
    return found
