"""Submodules of a user's model: found by name, listened to, and with their output replaced."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lmn.errors import LmnError


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside the wrappers of torch.compile, of parallel training, of moving averages and of Lightning Fabric."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = cast(nn.Module, model._orig_mod)
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel | AveragedModel):
            model = cast(nn.Module, model.module)
        elif isinstance(getattr(model, "_forward_module", None), nn.Module):  # of Fabric
            model = cast(nn.Module, model._forward_module)
        else:
            return model


def is_compiled(module: nn.Module) -> bool:
    """Whether it is what torch.compile makes of a module."""
    return "_orig_mod" in module._modules


def has_original_forward(module: nn.Module) -> bool:
    """Whether Accelerate has wrapped its forward pass, which is the one of its class."""
    original = vars(module).get("_original_forward")
    return original is not None and getattr(original, "__func__", None) is type(module).forward


def submodule(model: nn.Module, tap: str | None) -> nn.Module | None:
    """The submodule of a name, by the model's own names or by those inside its wrappers."""
    if tap is None:
        return None
    if not isinstance(tap, str):
        raise LmnError(f"tap is the name of a submodule, as in model.named_modules(); got {type(tap).__name__}.")
    modules: dict[str, nn.Module] = dict(unwrapped(model).named_modules(remove_duplicate=False))
    as_written = {name.replace("_orig_mod.", ""): module for name, module in modules.items()}  # of submodules that are compiled
    by_any_name: dict[str, nn.Module] = {**dict(model.named_modules(remove_duplicate=False)), **as_written, **modules}
    if tap in by_any_name and tap != "":
        return by_any_name[tap]
    modules.pop("", None)
    close = difflib.get_close_matches(tap, modules, n=5, cutoff=0.3)
    found = "close names" if close else "there are"
    names = ", ".join(repr(name) for name in close or list(modules)[:8]) or "none: the model has no submodules"
    raise LmnError(f"the model has no submodule {tap!r} to tap; {found}: {names}.")


@contextmanager
def output_replaced(module: nn.Module, output: Tensor) -> Iterator[None]:
    handle = module.register_forward_hook(lambda *_: output)
    try:
        yield
    finally:
        handle.remove()


@dataclass
class _Captured(Exception):  # noqa: N818
    output: Any


def outputs_of(module: nn.Module, root: nn.Module, inputs: Tensor, tap: str) -> Tensor:
    """What a submodule returns while the model runs; the rest of the model is not run."""

    def capture(_module: nn.Module, _args: Any, output: Any) -> None:
        raise _Captured(output)

    handle = module.register_forward_hook(capture)
    try:
        root(inputs)
        output = None
    except _Captured as captured:
        output = captured.output
    finally:
        handle.remove()
    if not isinstance(output, Tensor):
        raise LmnError(f"tap {tap!r} returns {type(output).__name__}; tap a submodule whose output is one tensor.")
    if len(output) != len(inputs):
        raise LmnError(
            f"tap {tap!r} gave an output of shape {tuple(output.shape)} for {len(inputs)} samples; "
            "tap a submodule whose output has the batch first."
        )
    return output.detach()


def own_sizes(model: nn.Module, example: Tensor) -> set[int]:
    """The sizes of a model's parameters and buffers, and of one sample: what a batch's size is not to be taken for."""
    tensors = (example[0], *model.parameters(), *model.buffers())
    return {size for tensor in tensors for size in tensor.shape}
