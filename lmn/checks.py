"""What must hold of a model and its samples for there to be a function of a sample at all."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from lmn.errors import LmnError, in_short

_ROUNDINGS = 100  # that an output may change by in another batch


def check_initialised(model: nn.Module) -> None:
    lazy = (UninitializedParameter, UninitializedBuffer)
    if any(isinstance(tensor, lazy) for tensor in [*model.parameters(), *model.buffers()]):
        raise LmnError("the model has lazy modules that are not initialised; run it once on a batch before it is measured.")


def check_whole(model: nn.Module) -> None:
    """Each process has all of it: a part of one that is sharded would wait for the others, in the middle of their training."""
    tensor, sharded = (sys.modules.get(f"torch.distributed.{name}") for name in ("tensor", "fsdp"))
    kinds = tuple(
        getattr(module, name) for module, name in ((tensor, "DTensor"), (sharded, "FullyShardedDataParallel")) if module
    )
    if any(isinstance(part, kinds) for part in (*model.parameters(), *model.modules())):
        raise LmnError(
            "the model's parameters are sharded over processes (FSDP, or tensor parallelism), and one process measures; gather "
            "them into a model of their own, e.g. by torch.distributed.checkpoint.state_dict.get_model_state_dict with "
            "full_state_dict=True, and measure that one."
        )


def check_takes_one_input(model: nn.Module) -> None:
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return
    required = [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(required) > 1:
        raise LmnError(
            f"the model takes {len(required)} inputs ({', '.join(required)}) and a grid is one tensor; wrap the model in a "
            "module that fixes the others, or that takes them apart from one tensor."
        )


def checked_outputs(root: nn.Module, inputs: Tensor, during_one_run: AbstractContextManager[None]) -> Tensor:
    """The model's outputs for a small batch, shape (n_points, n_out), after checking that a sample's output is its own."""
    try:
        with during_one_run:
            together: Tensor = root(inputs.clone())  # the model may write into its input
    except LmnError:
        raise
    except Exception as error:
        raise LmnError(
            f"the model can't be run on the grid's samples, {_described(inputs)}: {in_short(error)}" + _hint(root, inputs)
        ) from error
    if together.layout != torch.strided:
        raise LmnError(f"the output is {together.layout}; make it dense with select=lambda out: out.to_dense().")
    if together.shape[:1] != inputs.shape[:1]:
        raise LmnError(
            f"the output's first dimension must be the batch; {len(inputs)} samples gave an output of shape "
            f"{tuple(together.shape)}. Pick or transpose it with select=."
        )
    if not together.is_floating_point():
        raise LmnError(f"the output is of dtype {together.dtype}; pick a real-valued one with select=.")
    if not torch.isfinite(together).all():
        raise LmnError("the model's output is not finite (NaN or infinity) on the grid; is the training diverged?")
    if together.numel() == 0:
        raise LmnError(f"the output is empty, of shape {tuple(together.shape)}; there is nothing to measure.")
    try:
        alone = torch.cat([root(inputs[i : i + 1].clone()).reshape(1, -1) for i in range(len(inputs))])
    except Exception as error:
        raise LmnError(
            f"the model runs on a batch of {len(inputs)} samples and not on one ({in_short(error)}). A sample's output "
            "must be its own; one that is normalised over the batch also in evaluation mode, say, is not."
        ) from error
    together = together.reshape(len(together), -1)
    tolerance = 1e-2 if together.dtype in (torch.float16, torch.bfloat16) else 1e-4
    most = tolerance * float(together.abs().max())
    changed = math.inf if alone.shape != together.shape else float((together - alone).abs().max())
    if changed > most and changed > _ROUNDINGS * _rounding(root, inputs, together):
        raise LmnError(
            "a sample's output changes with the batch it is in, or from call to call (attention or normalisation across "
            "the batch, or randomness that evaluation mode does not switch off): such a model has no function of a sample."
        )
    return together


@contextmanager
def called_once(tap: str | None, module: nn.Module | None) -> Iterator[None]:
    """Raise where the tapped submodule, if there is one, is not called exactly once in what is enclosed."""
    if module is None:
        yield
        return
    calls: list[None] = []
    handle = module.register_forward_hook(lambda *_: calls.append(None))
    try:
        yield
    finally:
        handle.remove()
    if not calls:
        raise LmnError(f"tap {tap!r} is never called when the model runs; tap a submodule that is.")
    if len(calls) > 1:
        raise LmnError(
            f"tap {tap!r} is called {len(calls)} times in a run, so its output is not one sample; tap a submodule "
            "that is called once (the one before or after it, say)."
        )


def check_no_way_around(tap: str, substituted: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, samples: Tensor) -> None:
    """With the tap's output substituted, the model's own input must not matter: neither another's, nor one that is none.

    Parameters
    ----------
    substituted : callable
        (inputs, samples) to the outputs of the whole model on the inputs, with the samples for the tap's output.
    """
    expected = substituted(inputs, samples.clone())
    others = [inputs.roll(1, 0)]
    if inputs.is_floating_point():
        shift = torch.linspace(-1, 1, inputs.numel(), device="cpu").to(inputs).view_as(inputs)
        others.append(inputs + (1 + inputs.abs().max()) * shift)
    got = [substituted(other, samples.clone()) for other in others]
    if any((out - expected).abs().max() > 1e-5 * expected.abs().max() for out in got):
        raise LmnError(
            f"the output depends on the input by a way around tap {tap!r} (a skip connection or a second branch), so "
            "it is no function of the tap's output; tap a submodule that all paths go through."
        )


def _described(x: Tensor) -> str:
    shape = ", ".join(["batch", *map(str, x.shape[1:])])
    return f"{x.dtype} of shape ({shape}) on {x.device}".replace("torch.", "")


def _rounding(root: nn.Module, inputs: Tensor, outputs: Tensor) -> float:
    """How much a last digit of the inputs changes outputs; more than their size, where they are differences of equal terms."""
    if not inputs.is_floating_point() or not torch.equal(root(inputs.clone()).reshape(outputs.shape), outputs):
        return 0.0  # of what changes from call to call nothing is rounding
    nudged = root(inputs * (1 + torch.finfo(inputs.dtype).eps))
    return float((nudged.reshape(outputs.shape) - outputs).abs().max())


def _hint(model: nn.Module, inputs: Tensor) -> str:
    """What is most likely wrong with samples that a model does not take."""
    if inputs.is_floating_point() and any(isinstance(module, nn.Embedding) for module in model.modules()):
        return ". Does it take tokens? Pass integers, and a tap after the embedding."
    if inputs.is_floating_point() and inputs.ndim == 1:
        return ". One value a sample? Pass samples[:, None]. One sample? Pass samples[None]."
    return ""
