"""What the nodes of traced graphs are: names of operations, pointwise activations, maxima, and what is affine."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from lmn.errors import LmnError, in_short
from lmn.kernels import windows
from lmn.kernels.activations import Activation, activation
from lmn.kernels.windows import Windows

# Pointwise activations, with the names of the parameters that follow their argument.
ACTIVATION_FUNCTIONS: dict[str, tuple[str, ...]] = {
    "relu": (),
    "leaky_relu": ("negative_slope",),
    "prelu": ("weight",),
    "abs": (),
    "hardtanh": ("min_val", "max_val"),
    "relu6": (),
    "clamp": ("min", "max"),
    "clamp_min": ("min",),
    "clamp_max": ("max",),
    "hardsigmoid": (),
    "softshrink": ("lambd",),
    "tanh": (),
    "sigmoid": (),
    "silu": (),
    "gelu": ("approximate",),
    "elu": ("alpha",),
    "selu": (),
    "softplus": ("beta", "threshold"),
    "hardswish": (),
    "mish": (),
}
ACTIVATION_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "prelu",
    nn.Hardtanh: "hardtanh",
    nn.ReLU6: "relu6",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Softshrink: "softshrink",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.ELU: "elu",
    nn.SELU: "selu",
    nn.Softplus: "softplus",
    nn.Hardswish: "hardswish",
    nn.Mish: "mish",
}

# Operations that are affine in their sample-dependent arguments; a program's builder checks each by probing it. Of products
# and quotients, one factor may depend on the sample.
AFFINE = {
    *("linear", "matmul", "mm", "bmm", "addmm", "addmv", "mv", "einsum", "tensordot", "bilinear"),
    *("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("batch_norm", "native_batch_norm", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean", "sum", "cumsum"),
    *("add", "sub", "rsub", "neg", "pos", "mul", "div", "truediv", "true_divide", "iadd", "isub", "imul", "itruediv"),
    *("cat", "concat", "concatenate", "stack", "hstack", "vstack", "chunk", "split", "unbind", "getitem", "select", "slice"),
    *("narrow", "index_select", "flatten", "unflatten", "view", "reshape", "_unsafe_view", "view_as", "reshape_as", "ravel"),
    *("unsqueeze", "squeeze", "permute", "transpose", "swapaxes", "movedim", "t", "expand", "expand_as", "repeat", "tile"),
    *("contiguous", "clone", "detach", "alias", "to", "_to_copy", "float", "double", "type_as", "roll", "flip", "pad"),
    *("constant_pad_nd", "interpolate", "upsample_nearest2d", "upsample_bilinear2d", "pixel_shuffle", "pixel_unshuffle"),
    *("channel_shuffle", "unfold", "fold", "im2col", "col2im", "zeros_like", "ones_like", "full_like", "new_zeros"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"),
    *("where", "masked_fill", "diagonal", "repeat_interleave", "lerp", "addcmul", "new_ones", "new_full"),
    *("zeros", "ones", "full"),
}
AFFINE_MODULES = (
    *(nn.Linear, nn.Identity, nn.Flatten, nn.Unflatten, nn.Fold, nn.Unfold, nn.PixelShuffle, nn.PixelUnshuffle),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.Upsample, nn.ChannelShuffle),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.CircularPad2d),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)
KNOWN_MODULES = (*AFFINE_MODULES, *ACTIVATION_MODULES)  # those that bend are read before
CASTS = {"to", "type_as", "type", "_to_copy"}
FLOATING = {"float", "double", "half", "bfloat16"}
# Known to be smooth, beyond the smooth activations of the table: for a message that says so.
SMOOTH = {
    *("softmax", "_softmax", "log_softmax", "_log_softmax", "layer_norm", "native_layer_norm", "group_norm", "instance_norm"),
    *("native_group_norm", "exp", "log", "sin", "cos", "sqrt", "rsqrt", "pow", "square", "reciprocal", "normalize", "celu"),
    *("logsigmoid", "softsign", "scaled_dot_product_attention", "multi_head_attention_forward", "LayerNorm"),
    *("GroupNorm", "Softmax", "LogSoftmax", "MultiheadAttention", "CELU", "Softsign", "LogSigmoid", "GLU", "glu", "RMSNorm"),
    *("rms_norm", "var", "std", "erf", "tan", "atan", "sigmoid", "softmin", "Softmin", "TransformerEncoderLayer"),
}


_ALIASES = {"clip": "clamp", "absolute": "abs"}


def name_of(node: fx.Node, module: nn.Module | None) -> str:
    """torch's name of what a node does: a module's class, or a function's name without a trailing underscore."""
    if module is not None:
        return type(module).__name__
    target = node.target
    packet = getattr(target, "overloadpacket", target)
    name = target if isinstance(target, str) else getattr(packet, "__name__", str(packet))
    name = name if name.startswith("_") else name.rstrip("_")
    return _ALIASES.get(name, name)


def is_plain(module: nn.Module, but_for_torchs: bool = False) -> bool:
    """Whether a module does what its class does: no hooks, and torch's own forward, which some libraries replace.

    Parameters
    ----------
    but_for_torchs : bool
        Allow the hooks by which torch.nn.utils computes weights from others (weight_norm, spectral_norm, prune).
    """
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if but_for_torchs:
        hooks = [hook for hook in hooks if not type(hook).__module__.startswith("torch.nn.utils.")]
    return not hooks and "forward" not in vars(module) and type(module).forward.__module__.startswith("torch.nn.modules")


def unparametrized(module: nn.Module) -> type[nn.Module]:
    """A module's class; of one with torch.nn.utils.parametrizations, which get a class of their own, what it was."""
    return type(module).__mro__[1] if parametrize.is_parametrized(module) else type(module)


def is_custom(module: nn.Module) -> bool:
    """Whether a module is an activation of the user's own that says where its linear pieces meet."""
    return hasattr(module, "breakpoints") and not module._modules


def in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node overwrites its first argument."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    name = target.partition(".")[0]
    return bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE_OPERATORS


_IN_PLACE_OPERATORS = {"iadd", "isub", "imul", "itruediv"}


def read_activation(name: str, parameters: dict[str, Any], shape: tuple[int, ...], where: str) -> Activation | None:
    """A pointwise activation on samples of the given shape, or None for parameters that it is not known with."""
    if name == "prelu":
        weight = parameters["weight"].detach().to("cpu", torch.float64).reshape(-1)
        channels = shape[0] if shape else 1
        if len(weight) not in (1, channels):
            return None
        parameters = {"weight": weight.repeat_interleave(int(np.prod(shape)) // len(weight))}
    if any(isinstance(value, Tensor) and name != "prelu" for value in parameters.values()):
        return None  # bounds that are tensors
    found = activation(name, where=where, **parameters)
    if found.core == "clamp" and not found.p0 < found.p1:
        return None  # a constant
    return activation("identity") if found.core == "clamp" and math.isinf(found.p0) and math.isinf(found.p1) else found


def custom_activation(module: nn.Module, where: str) -> Activation:
    """A pointwise activation of the user's own, which says by an attribute ``breakpoints`` where its linear pieces meet.

    Raises
    ------
    LmnError
        Breakpoints that are not ascending numbers, or between which the module is not linear.
    """
    name, breakpoints = type(module).__name__, module.breakpoints
    try:
        at = torch.as_tensor(breakpoints, dtype=torch.float64, device="cpu").reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        at = torch.tensor([torch.nan], device="cpu")
    if len(at) == 0 or not bool(torch.isfinite(at).all()) or bool((at[1:] <= at[:-1]).any()):
        raise LmnError(f"'{where}' ({name}) has breakpoints that are not ascending numbers: {breakpoints!r}.")
    function = copy.deepcopy(module).double()
    ends = torch.cat([at[:1] - 100, at, at[-1:] + 100])
    t = torch.linspace(0, 1, 9, dtype=torch.float64, device="cpu")
    between = ends[:-1, None] + t * (ends[1:] - ends[:-1])[:, None]  # (n_pieces, 9)
    try:
        with torch.no_grad():
            y = function(between.reshape(-1, 1)).reshape(between.shape)
    except Exception as error:
        raise LmnError(
            f"'{where}' ({name}) has breakpoints and can't be run on values of shape (n, 1) ({in_short(error)}); a module with "
            "breakpoints is one activation, the same for each value."
        ) from error
    chord = y[:, :1] + t * (y[:, -1:] - y[:, :1])
    if not bool(torch.allclose(y, chord, rtol=1e-9, atol=1e-9 * float(y.abs().max()))):
        raise LmnError(f"'{where}' ({name}) is not linear between its breakpoints {at.tolist()}.")
    return Activation(name, "pieces", function, piecewise_linear=True, breakpoints=tuple(at.tolist()), where=where)


def parameters_of(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The parameters that an activation was called with: ``args`` without its argument."""
    names = ACTIVATION_FUNCTIONS[name]
    return dict(zip(names, args, strict=False)) | {key: kwargs[key] for key in names if key in kwargs}


def read_windows(
    name: str, options: dict[str, Any], shapes: list[tuple[int, ...]], out_shape: tuple[int, ...], where: str
) -> Windows | None:
    """A maximum or minimum as windows, or None for what is none.

    Parameters
    ----------
    name : str
        Of the operation.
    options : dict
        Its parameters by name.
    shapes : list of tuple
        Of the sample-dependent sources, without the batch.
    """
    pooled = re.fullmatch(r"(adaptive_)?max_?pool([123])d(_with_indices)?", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    sign = -1 if name in ("minimum", "amin", "min") else 1
    if pooled is not None:
        n_axes = int(pooled[2])
        if pooled[1]:
            members = windows.adaptive_pooling(shapes[0], out_shape, n_axes)
        else:
            kernel = _sizes(options["kernel_size"], n_axes)
            stride = _sizes(options.get("stride") or kernel, n_axes)
            padding, dilation = _sizes(options.get("padding", 0), n_axes), _sizes(options.get("dilation", 1), n_axes)
            members = windows.pooling(shapes[0], out_shape, kernel, stride, padding, dilation)
    elif name in ("maximum", "minimum", "max", "min") and len(shapes) == 2 and shapes[0] == shapes[1]:
        members = windows.elementwise(int(np.prod(shapes[0])), 2)
    elif name in ("amax", "amin", "max", "min") and len(shapes) == 1 and _are_axes(options.get("dim")):
        rank = len(shapes[0])
        axes = [axis - 1 if axis > 0 else axis % (rank + 1) - 1 for axis in _sizes(options["dim"], 0)]
        if -1 in axes:
            return None  # over the batch
        members = windows.along(shapes[0], axes)
    else:
        return None
    return Windows(np.ascontiguousarray(members), sign, where)


def _are_axes(value: Any) -> bool:
    axes = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(axis, int) and not isinstance(axis, bool) for axis in axes)


def _sizes(value: Any, n_axes: int) -> list[int]:
    sizes = list(value) if isinstance(value, list | tuple) else [value]
    return sizes * n_axes if len(sizes) == 1 and n_axes else sizes


MAXIMA = {"maximum", "minimum", "amax", "amin", "max", "min"}
WINDOW_OPTIONS = {
    "pool": ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "reduce": ("dim", "keepdim"),
}


def window_options(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], module: nn.Module | None) -> dict[str, Any]:
    """The parameters of a maximum by name: ``args`` without its sources."""
    names = WINDOW_OPTIONS["pool" if "pool" in name.lower() else "reduce"]
    if module is not None:
        return {key: getattr(module, key) for key in names if hasattr(module, key)}
    return dict(zip(names, args, strict=False)) | {key: kwargs[key] for key in names if key in kwargs}
