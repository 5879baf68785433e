"""A measurement leaves the model as it was."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from lmn.as_written import Watch, as_written
from lmn.errors import LmnError
from lmn.submodules import has_original_forward


@dataclass(frozen=True)
class Habits:
    """What a model does to what it does not own as it runs.

    Attributes
    ----------
    draws : bool
        Whether it draws from the process's random generators. Their states are put back only if it does: other threads draw
        from them too, and must not draw the same numbers again.
    writes : bool
        Whether it writes into its parameters.
    """

    draws: bool
    writes: bool


UNKNOWN = Habits(draws=True, writes=True)


class _Beside(threading.local):
    training = False


_BESIDE = _Beside()


@contextmanager
def beside_training() -> Iterator[None]:
    """Within, in this thread, random generators are left alone: a training draws from them, and the model does not."""
    before, _BESIDE.training = _BESIDE.training, True
    try:
        yield
    finally:
        _BESIDE.training = before


_MOST_COPIED = 1 << 26  # bytes of parameters, of a model of unknown habits


@contextmanager
def preserved(model: nn.Module, habits: Habits = UNKNOWN) -> Iterator[Callable[[Habits], None]]:
    """Put ``model`` in evaluation mode without gradients, and put everything back, whatever happens inside.

    Restored: the training flag and the attributes of every module (hooks, parameters, buffers and submodules by identity;
    containers, arrays, tensors and generators with what was in them), the values of buffers and of parameters, the state of
    torch's, NumPy's and Python's random generators, and whether autocast is on: inside, it is off, until the model itself
    switches it on. What a forward pass or a user's hook changes elsewhere stays changed.

    One thread at a time measures a model; others wait.

    Yields
    ------
    callable
        To be told the model's habits when they are known.
    """
    with alone_with(model):
        yield from _preserved(model, habits)


def _preserved(model: nn.Module, habits: Habits) -> Iterator[Callable[[Habits], None]]:
    known = habits
    copies: list[tuple[Tensor, Tensor]] = []

    def learn(found: Habits) -> None:
        nonlocal known
        known = found
        if not found.writes:
            copies.clear()

    modules = list(model.modules())
    training = [module.training for module in modules]
    attributes = [_Attributes(module) for module in modules]
    buffers = [(tensor, tensor.detach().clone()) for tensor in model.buffers()]
    copies += _copies(model) if habits.writes else []
    versions = {name: parameter._version for name, parameter in model.named_parameters()}
    generators = None if _BESIDE.training else _Generators(model)
    with autocast_restored(), as_written(), torch.inference_mode(False), torch.no_grad():
        for device in _AUTOCAST_DEVICES:
            torch.set_autocast_enabled(device, False)
        try:
            if any(type(module).train is not nn.Module.train for module in modules):
                model.eval()  # which keeps a mode of its own
            for module in modules:
                module.training = False
                if has_original_forward(module):
                    vars(module).pop("forward", None)
            yield learn
        finally:
            for module, saved, flag in zip(modules, attributes, training, strict=True):
                saved.restore(module)
                if module.training != flag:
                    module.training = flag  # TorchScript keeps it elsewhere
            for tensor, value in [*buffers, *copies]:
                if not _same(tensor, value):
                    tensor.copy_(value)
            if generators is not None and known.draws:
                generators.restore()
    if known.writes and not copies:
        _check_unwritten(model, versions)


def _copies(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The parameters with their values: of a large model those only that are known to be written to, its embeddings'."""
    parameters: list[Tensor] = list(model.parameters())
    if sum(p.numel() * p.element_size() for p in parameters) > _MOST_COPIED:
        renormalised = (nn.Embedding, nn.EmbeddingBag)
        parameters = [m.weight for m in model.modules() if isinstance(m, renormalised) and m.max_norm is not None]
    return [(parameter, parameter.detach().clone()) for parameter in parameters]


def _check_unwritten(model: nn.Module, versions: dict[str, int]) -> None:
    written = [name for name, parameter in model.named_parameters() if parameter._version != versions.get(name)]
    if written:
        raise LmnError(
            f"the model writes into its parameters as it runs ({', '.join(written[:3])}), and they are too large to be copied "
            "and put back; have it compute a new tensor instead."
        )


@contextmanager
def observed(model: nn.Module) -> Iterator[list[Habits]]:
    """Enclose a run of the model: its habits are in the list afterwards."""
    found: list[Habits] = []
    beside = _BESIDE.training
    versions = [parameter._version for parameter in model.parameters()]
    numpy_state, python_state = _numpy_state(), random.getstate()
    with _Draws() as draws:
        yield found
    elsewhere = not beside and (python_state != random.getstate() or not _equal_states(numpy_state, _numpy_state()))
    writes = versions != [parameter._version for parameter in model.parameters()]
    found.append(Habits(draws.seen or elsewhere, writes))


class _Draws(Watch):
    """Notes, of this thread, whether an operation draws random numbers."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())
        return func(*args, **(kwargs or {}))


class _Generators:
    """The states of the process's random generators."""

    def __init__(self, model: nn.Module) -> None:
        self._devices = cuda_devices(model)
        self._cpu, self._cuda = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in self._devices]
        self._numpy, self._python = _numpy_state(), random.getstate()

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        for device, state in zip(self._devices, self._cuda, strict=True):
            torch.cuda.set_rng_state(state, device)
        np.random.set_state(self._numpy)  # noqa: NPY002 - the user's, whichever it is
        random.setstate(self._python)


def _numpy_state() -> Any:
    return np.random.get_state()  # noqa: NPY002


def _equal_states(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@contextmanager
def autocast_restored() -> Iterator[None]:
    """Leave autocast as it was: a traced graph switches it by operations of its own, and not back where it fails in between.

    So with how deep it is in autocasts, too: the outermost clears the copies of weights that are kept in their other dtype.
    """
    depth = torch.autocast_increment_nesting()
    before = [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in _AUTOCAST_DEVICES]
    cached = torch.is_autocast_cache_enabled()
    try:
        yield
    finally:
        for device, (enabled, dtype) in zip(_AUTOCAST_DEVICES, before, strict=True):
            if torch.is_autocast_enabled(device) != enabled or torch.get_autocast_dtype(device) != dtype:
                torch.set_autocast_enabled(device, enabled)
                torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(cached)
        left = torch.autocast_decrement_nesting()
        while left >= depth:
            left = torch.autocast_decrement_nesting()
        if left == 0:
            torch.clear_autocast_cache()


_AUTOCAST_DEVICES = ("cpu", "cuda")

_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_LOCKS_LOCK = Lock()


def alone_with(model: nn.Module) -> Any:
    """A context in which no other thread measures the model, and so none has its parameters in another dtype."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, RLock())


def cuda_devices(model: nn.Module) -> list[int]:
    """Of its parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})


class _Attributes:
    """A module's attributes, and what is in those that can be written to: containers, arrays, tensors, generators."""

    def __init__(self, module: nn.Module) -> None:
        self._saved = {name: (value, _contents(value, name not in _OF_TORCH)) for name, value in vars(module).items()}

    def restore(self, module: nn.Module) -> None:
        now = vars(module)
        for name in [name for name in now if name not in self._saved]:
            del now[name]
        for name, (value, restore) in self._saved.items():
            if now.get(name) is not value:
                now[name] = value
            if restore is not None:
                restore()


_OF_TORCH = ("_parameters", "_buffers", "_modules")  # whose values are kept by themselves
_DEEPEST = 8


def _contents(value: Any, deep: bool, depth: int = 0) -> Callable[[], object] | None:
    """What puts back the contents of something that can be written to, or None."""
    if isinstance(value, dict | list | set | deque):
        return _container(value, deep and depth < _DEEPEST, depth)
    if not deep:
        return None
    if (
        isinstance(value, Tensor)
        and not isinstance(value, nn.Parameter)
        and value.layout == torch.strided
        and not value.is_meta
    ):
        tensor, copy, version = value, value.detach().clone(), value._version if not value.is_inference() else -1
        return lambda: None if version == tensor._version else tensor.copy_(copy)
    if isinstance(value, np.ndarray):
        array, saved = value, value.copy()
        return lambda: np.copyto(array, saved)
    if isinstance(value, torch.Generator):
        generator, state = value, value.get_state()
        return lambda: generator.set_state(state)
    if isinstance(value, np.random.Generator):
        bits, numbers = value.bit_generator, value.bit_generator.state
        return lambda: setattr(bits, "state", numbers)
    if isinstance(value, random.Random):
        own, before = value, value.getstate()
        return lambda: own.setstate(before)
    return None


def _container(value: Any, deep: bool, depth: int) -> Callable[[], None]:
    contents = dict(value) if isinstance(value, dict) else list(value)
    items = contents.values() if isinstance(contents, dict) else contents
    inside = (
        [restore for restore in (_contents(item, True, depth + 1) for item in items) if restore is not None] if deep else []
    )

    def restore() -> None:
        now = dict(value) if isinstance(value, dict) else list(value)
        if not _identical(now, contents):
            value.clear()
            value.extend(contents) if isinstance(value, list | deque) else value.update(contents)
        for each in inside:
            each()

    return restore


def _identical(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return list(a) == list(b) and all(a[key] is b[key] for key in a)
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
