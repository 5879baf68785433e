"""Which part of what a library trains is measured."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lmn.errors import LmnError

Part = str | Callable[[nn.Module], nn.Module] | None


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
