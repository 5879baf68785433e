"""A GPU that is not there: tensors that say they are on cuda:0, hold their values on the CPU, and can't be mixed with others.

Within ``pretended_gpu()``, ``.to("cuda")``, ``device="cuda"`` and ``.cpu()`` work; Triton's kernels run in its interpreter.
What a real GPU refuses is refused: operands on two devices, ``.numpy()``. Models are moved by ``moved``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA = torch.device("cuda", 0)
# Real GPUs take indices and sources of copies from the CPU.
_TAKES_BOTH = ("aten.index.", "aten.index_put", "aten._index_put", "aten.copy_", "aten._to_copy", "aten._unsafe_index")


class OnGpu(Tensor):
    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        made: OnGpu = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held = held.detach()
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGpu({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(func), kwargs or {}
        elsewhere = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and not isinstance(x, OnGpu) and x.ndim]
        if elsewhere and not name.startswith(_TAKES_BOTH):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu! ({name})")
        out = func(*tree_map_only(OnGpu, lambda x: x.held, args), **tree_map_only(OnGpu, lambda x: x.held, kwargs))
        in_place = name.split(".")[1].endswith("_")
        if func.namespace == "lmn":
            return out
        return args[0] if in_place else tree_map_only(Tensor, OnGpu, out)


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return OnGpu(x.detach().clone())

    @staticmethod
    def backward(_ctx: Any, grad: OnGpu) -> Tensor:  # type: ignore[override]
        return grad.held.clone()


class _MovedBack(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: OnGpu) -> Tensor:  # type: ignore[override]
        return x.held.clone()

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return OnGpu(grad)


def _on(device: Any, x: Tensor) -> Any:
    to_gpu = torch.device(device).type == "cuda"
    if to_gpu == isinstance(x, OnGpu):
        return x
    return _Moved.apply(x) if to_gpu else _MovedBack.apply(x)


class _Gpu(TorchFunctionMode):
    """What a tensor is asked for that tells its device, or that makes one on a device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name, x = dict(kwargs or {}), getattr(func, "__name__", ""), args[0] if args else None
        if isinstance(x, OnGpu):
            asked = getattr(func, "__self__", None) if name == "__get__" else None
            if asked in (torch.Tensor.device, torch.Tensor.is_cuda):
                return CUDA if asked is torch.Tensor.device else True
            if name in ("numpy", "__array__"):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
            if name in ("tolist", "untyped_storage"):
                return func(x.held, *args[1:], **kwargs)
            if name == "cpu":
                return _on("cpu", x)
            if name == "unravel_index":  # in which a tensor is made beside x
                return tree_map_only(Tensor, OnGpu, func(x.held, *args[1:], **kwargs))
        if func is torch.Tensor.to:
            return self._to(x, list(args[1:]), kwargs)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            of_gpu = any(isinstance(each, OnGpu) for each in tree_leaves((args, kwargs)))
            kwargs = {key: value for key, value in kwargs.items() if key != "device"} | ({} if of_gpu else {"device": "cpu"})
            return _on("cuda", func(*args, **kwargs))
        if device is not None and name.endswith("_like"):
            return func(*tree_map_only(OnGpu, lambda each: each.held, args), **kwargs)
        return func(*args, **kwargs)

    def _to(self, x: Any, given: list[Any], kwargs: dict[str, Any]) -> Any:
        device, dtype, copy = kwargs.get("device"), kwargs.get("dtype"), kwargs.get("copy", False)
        for each in given:
            if isinstance(each, Tensor):
                device, dtype = CUDA if isinstance(each, OnGpu) else "cpu", each.dtype
            elif isinstance(each, torch.dtype):
                dtype = each
            elif isinstance(each, str | torch.device):
                device = each
        if copy or (dtype is not None and dtype != x.dtype):
            x = torch.Tensor.to(x, dtype=dtype or x.dtype, copy=copy)
        return x if device is None else _on(device, x)


@contextmanager
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    state = torch.zeros(1, dtype=torch.uint8)
    for name, value in {"get_rng_state": state, "set_rng_state": None, "mem_get_info": (8 << 30, 16 << 30)}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)  # by .to(), where kinds differ
    with _Gpu():
        yield


def moved(model: nn.Module) -> nn.Module:
    """The model on the GPU, within ``pretended_gpu``."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(OnGpu(parameter.detach().clone()), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else OnGpu(buffer.detach().clone())
    return model
