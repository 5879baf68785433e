"""What of a model's output is measured: one tensor, with the batch first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from lmn.errors import LmnError, in_short

Select = Callable[[Any], Tensor]


def check_select(select: Any) -> None:
    if select is not None and not callable(select):
        raise LmnError(f"select= is a function of the model's output, e.g. lambda out: out[0]; got {select!r}.")


class Root(nn.Module):
    """The model followed by the selection of its output: one tensor with the batch first.

    Beside the model it may have tensors that a graph on it needs.
    """

    def __init__(self, model: nn.Module, select: Select | None, constants: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.model = model
        self._select = select
        for name, tensor in (constants or {}).items():
            self.register_buffer(name, tensor)

    def beside(self, constants: Mapping[str, Tensor]) -> Root:
        """The same with such tensors."""
        return Root(self.model, self._select, constants)

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        if self._select is None:
            return _one_tensor(out, "the model returned")
        try:
            selected = self._select(out)
        except Exception as error:
            raise LmnError(f"select= failed on the model's output, {_kind(out)}: {in_short(error)}.") from error
        return _one_tensor(selected, "select= returned")


def _kind(out: Any) -> str:
    """What an output is, in a few words."""
    if isinstance(out, Tensor):
        return f"a tensor of shape {tuple(out.shape)}"
    if isinstance(out, Mapping):
        return f"{type(out).__name__} with the keys {list(out)}"
    if isinstance(out, tuple | list):
        return f"{type(out).__name__} of {len(out)}"
    return type(out).__name__


def _one_tensor(out: Any, source: str) -> Tensor:
    if isinstance(out, Tensor | fx.Proxy):
        return out  # type: ignore[return-value]
    logits = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", None)
    if isinstance(logits, Tensor | fx.Proxy):
        return logits  # type: ignore[return-value]
    if isinstance(out, tuple | list) and len(out) == 1:
        return _one_tensor(out[0], source)
    key = repr(next(iter(out))) if isinstance(out, Mapping) and out else "0"
    raise LmnError(
        f"{source} {_kind(out)}, not one tensor nor something with logits; "
        f"pick a tensor with select=, e.g. select=lambda out: out[{key}]."
    )
